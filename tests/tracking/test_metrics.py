"""Records, completions, event files, timers, the progress line and the final table."""

import datetime
import decimal
import json
import math
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from tensorboardX.proto import event_pb2

from reasonjax.tracking import metrics, tensorboard


def strict(path):
    def refuse(name):
        raise AssertionError(f'{name} is not JSON')

    return [
        json.loads(line, parse_constant=refuse)
        for line in path.read_text(encoding='utf-8').splitlines()
    ]


def run(writer, stage, first, last):
    for step in range(first, last + 1):
        writer.write(stage, step, {'loss': 1 / (step + 1), 'num_tokens': 10 * step})


def test_records_are_on_disk_at_once_and_strict_json(tmp_path):
    writer = metrics.Writer(tmp_path)
    writer.write(
        'sft',
        np.int64(1),
        {
            'loss': jnp.float32(0.5),
            'clip': np.float32('nan'),
            'norm': math.inf,
            'low': -math.inf,
            'ok': True,
            'note': 'née',
            'missing': None,
            'huge': 1e300,
        },
    )
    assert (
        strict(writer.path)
        == metrics.read(writer.path)
        == [
            {
                'stage': 'sft',
                'step': 1,
                'loss': 0.5,
                'clip': None,
                'norm': None,
                'low': None,
                'ok': 1,
                'note': 'née',
                'missing': None,
                'huge': 1e300,
                'nonfinite': 'clip=nan, low=-inf, norm=inf',
            }
        ]
    )


def test_resume_leaves_the_file_of_an_undisturbed_run(tmp_path):
    with metrics.Writer(tmp_path / 'whole') as whole:
        whole.resume('sft', None)
        run(whole, 'sft', 0, 5)
        whole.resume('grpo', None)
        run(whole, 'grpo', 0, 9)
    killed = metrics.Writer(tmp_path / 'killed')
    run(killed, 'sft', 0, 5)
    run(killed, 'grpo', 0, 7)
    with killed.path.open('a') as file:
        file.write('{"stage": "grpo", "step": 8, "lo')  # killed in the middle of a line
    with metrics.Writer(tmp_path / 'killed') as resumed:
        resumed.resume('grpo', 4)
        assert [r['step'] for r in metrics.read(resumed.path) if r['stage'] == 'grpo'] == [
            0,
            1,
            2,
            3,
            4,
        ]
        run(resumed, 'grpo', 5, 9)
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    with metrics.Writer(tmp_path / 'killed') as anew:
        anew.resume('sft', None)
        assert {r['stage'] for r in metrics.read(anew.path)} == {'grpo'}


def parse(path):
    """Event files by the published message definitions; the checksums are compared by
    `test_checksums`."""
    data, events = path.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], 'little')
        events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_tensorboard_events(tmp_path):
    with metrics.Writer(tmp_path) as writer:
        writer.write(
            'sft', 300, {'loss': 0.5, 'note': 'text', 'bad': math.nan, 'big': 1e39, 'num_tokens': 7}
        )
    with metrics.Writer(tmp_path) as writer:
        writer.resume('sft', 200)
        writer.write('sft', 201, {'reward': -1.25})
    first, second = (
        parse(path) for path in sorted((tmp_path / 'tensorboard' / 'sft').glob('*tfevents*'))
    )
    assert first[0].file_version == 'brain.Event:2' and first[0].wall_time > 1e9
    assert first[1].step == 300
    assert {value.tag: value.simple_value for value in first[1].summary.value} == {
        'loss': 0.5,
        'num_tokens': 7,
    }
    assert second[1].step == 201 and second[1].session_log.status == event_pb2.SessionLog.START
    assert second[2].summary.value[0].simple_value == -1.25
    with metrics.Writer(tmp_path / 'without', tensorboard=False) as writer:
        writer.write('sft', 1, {'loss': 1.0})
    assert [path.name for path in (tmp_path / 'without').iterdir()] == ['metrics.jsonl']


def test_checksums():
    # The check value of CRC-32C for the digits 1-9 is E3069283; masked as the format says.
    crc = 0xE3069283
    expected = ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
    assert tensorboard.checksum(b'123456789') == expected.to_bytes(4, 'little')
    record = tensorboard.record(b'123456789')
    assert record[8:12] == tensorboard.checksum(record[:8]) and record[-4:] == expected.to_bytes(
        4, 'little'
    )


def test_completions_of_columns_that_json_has_not(tmp_path):
    odd = [
        datetime.date(2020, 1, 2),
        b'\xff',
        decimal.Decimal('1.5'),
        np.array([1, 2]),
        {'a': datetime.date(2020, 1, 2)},
        10**30,
    ]
    rows = [
        {
            'prompt': 'p',
            'completion': 'c',
            'solution': x,
            'large': 10**30,
            'mixed': [10**30, 0.5][i % 2],
        }
        for i, x in enumerate(odd)
    ]
    with metrics.Writer(tmp_path) as writer:
        table = pq.read_table(writer.completions('grpo', 1, rows)).to_pylist()
    assert [row['solution'] for row in table] == [
        '"2020-01-02"',
        '"b\'\\\\xff\'"',
        '"1.5"',
        '"[1 2]"',
        '{"a": "2020-01-02"}',
        str(10**30),
    ]
    assert {row['large'] for row in table} == {str(10**30)} and [
        row['mixed'] for row in table[:2]
    ] == [str(10**30), '0.5']


def test_completions_have_the_usual_columns(tmp_path):
    rows = [
        {
            'completion': 'c0',
            'advantage': np.float32(0.5),
            'prompt': 'p',
            'accuracy': 1,
            'format': 0.5,
            'level': 4,
            'terminated': True,
        },
        {
            'prompt': [{'role': 'user', 'content': 'é'}],
            'completion': 'c1',
            'accuracy': None,
            'format': 1,
            'advantage': -0.5,
            'level': None,
            'terminated': False,
        },
    ]
    with metrics.Writer(tmp_path) as writer:
        path = writer.completions('grpo', 20, rows)
        assert writer.completions('grpo', 21, []) is None
    assert path == tmp_path / 'completions' / 'completions_00020.parquet'
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    table = pq.read_table(path)
    assert table.column_names == [
        'step',
        'prompt',
        'completion',
        'accuracy',
        'format',
        'level',
        'terminated',
        'advantage',
        'stage',
    ]
    assert table.to_pylist()[1] == {
        'step': 20,
        'prompt': '[{"role": "user", "content": "é"}]',
        'completion': 'c1',
        'accuracy': None,
        'format': 1.0,
        'level': None,
        'terminated': False,
        'advantage': -0.5,
        'stage': 'grpo',
    }


def test_completions_of_two_stages_share_a_step(tmp_path):
    with metrics.Writer(tmp_path) as writer:
        writer.completions(
            'one', 1, [{'prompt': 'p', 'completion': 'a', 'accuracy': 1, 'advantage': 0.0}]
        )
        writer.completions(
            'two', 1, [{'prompt': 'p', 'completion': 'old', 'accuracy': 0.5, 'advantage': 0.0}]
        )
        path = writer.completions(
            'two', 1, [{'prompt': 'p', 'completion': 'b', 'accuracy': 0.5, 'advantage': 0.0}]
        )
    assert [
        (r['stage'], r['completion'], r['accuracy']) for r in pq.read_table(path).to_pylist()
    ] == [('one', 'a', 1), ('two', 'b', 0.5)]


def test_inactive_writes_nothing(tmp_path):
    with metrics.Writer(tmp_path / 'absent', active=False) as writer:
        writer.resume('sft', 3)
        writer.write('sft', 1, {'loss': 1.0})
        writer.completions('sft', 1, [{'prompt': 'p', 'completion': 'c', 'advantage': 0.0}])
        writer.environment()
    assert not (tmp_path / 'absent').exists()


def test_environment(tmp_path):
    found = metrics.Writer(tmp_path).environment()
    assert found == json.loads((tmp_path / 'environment.json').read_text())
    assert (
        found['versions']['numpy'] == np.__version__
        and found['cores'] >= 1
        and found['device_kind']
    )


def test_timers_add_up_and_start_again():
    now = iter([0.0, 1.0, 10.0, 12.5, 20.0, 20.25])
    timers = metrics.Timers(clock=lambda: next(now))
    with timers('generate'):
        pass
    with pytest.raises(KeyError), timers('generate'):
        raise KeyError
    with timers('update'):
        pass
    assert timers.take() == {'time/generate': 3.5, 'time/update': 0.25}
    assert timers.take() == {}


def test_writing_imports_neither_torch_nor_tensorflow(tmp_path):
    code = (
        'import sys; from reasonjax.tracking import metrics; w = metrics.Writer(sys.argv[1]); '
        'w.write("s", 1, {"a": 1.0});'
        'assert not {"torch", "tensorflow", "matplotlib"} & set(sys.modules)'
    )
    root = pathlib.Path(metrics.__file__).parents[2]
    subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=True, cwd=root)
