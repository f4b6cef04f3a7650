"""Records, completions, event files, timers, the progress line and the final table."""

import datetime
import decimal
import io
import json
import math
import pathlib
import subprocess
import sys
import threading

import jax
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


def test_progress_prints_plain_lines_where_there_is_no_terminal():
    stream, now = io.StringIO(), [0.0]
    with metrics.Progress(
        'grpo', 100, start=10, stream=stream, every=10, clock=lambda: now[0]
    ) as progress:
        for step in range(11, 101):
            # the first step compiles, and must not count in the pace
            now[0] += 100 if step == 11 else 0.5
            progress.update(step, {'loss': 9.0, 'reward': step / 100, 'tokens_per_second': 12345.6})
    lines = stream.getvalue().splitlines()
    assert lines[0] == 'grpo 11/100  reward 0.11  12.3k tokens/s'
    # 69 steps of half a second
    assert lines[1] == 'grpo 31/100  reward 0.31  12.3k tokens/s  0:34 left'
    assert lines[-1] == 'grpo 100/100  reward 1  12.3k tokens/s'
    assert len(lines) == 6


def test_progress_is_silent_in_all_processes_but_the_first(monkeypatch):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    stream = io.StringIO()
    with metrics.Progress('sft', 3, stream=stream) as progress:
        progress.update(3, {'loss': 0.25})
    assert stream.getvalue() == ''


def test_progress_is_one_live_line_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with metrics.Progress('sft', 3, stream=stream) as progress:
        for step in (1, 2, 3):
            progress.update(step, {'loss': 0.25})
    assert (
        'sft' in stream.getvalue()
        and '3/3' in stream.getvalue()
        and 'loss 0.25' in stream.getvalue()
    )


def test_progress_says_that_it_compiles_and_for_how_long():
    stream, now = io.StringIO(), [0.0]
    with metrics.Progress(
        'sft', 500, start=20, stream=stream, every=1e9, clock=lambda: now[0]
    ) as progress:
        for seconds in (12, 75, 3700):
            now[0] = float(seconds)
            progress.wait()
        progress.update(21, {'loss': 1.0})
    assert stream.getvalue().splitlines() == [
        'sft 20/500  compiling 0:12',
        'sft 20/500  compiling 1:15',
        'sft 20/500  compiling 1:01:40',
        'sft 21/500  loss 1',
    ]


class Waiting(io.StringIO):
    """A stream that can be waited for: `written` is set when there is something on it."""

    def __init__(self, terminal=False):
        super().__init__()
        self.written, self._terminal = threading.Event(), terminal

    def isatty(self):
        return self._terminal

    def write(self, text):
        if 'compiling' in text:
            self.written.set()
        return super().write(text)


@pytest.mark.parametrize('terminal', [False, True])
def test_progress_says_so_by_itself(terminal):
    """While the first step blocks the program."""
    stream = Waiting(terminal)
    with metrics.Progress('sft', 3, stream=stream, every=0.01) as progress:
        assert stream.written.wait(60)
        progress.update(1, {'loss': 1.0})
        before = stream.getvalue().count('compiling')
        progress.update(2, {'loss': 1.0})
    assert 'compiling 0:0' in stream.getvalue() and (
        terminal or stream.getvalue().count('compiling') <= before + 1
    )


def test_progress_of_what_does_not_compile():
    stream = io.StringIO()
    with metrics.Progress('export', 100, stream=stream, waiting='', every=0.0) as progress:
        assert progress.text() == ''
        progress.update(100, {})
    assert stream.getvalue() == 'export 100/100\n'


def test_table(tmp_path):
    stream = io.StringIO()
    metrics.table(
        [
            {
                'name': 'fresh [x]',
                'accuracy': 0.0,
                'ci95': [0, 0.0037],
                'mean_length': 18.06,
                'problems': 1000,
            },
            {
                'name': 'grpo',
                'accuracy': 0.981,
                'ci95': [0.971, 0.988],
                'sampled_accuracy': 0.913,
                'sampled_ci95': [0.894, 0.929],
                'mean_length': 29.94,
                'problems': 1000,
                'seconds': 19.44,
            },
        ],
        stream=stream,
    )
    fresh, grpo = (
        line.split()
        for line in stream.getvalue().splitlines()
        if ' %' in line and 'greedy' not in line
    )
    assert ' '.join(fresh) == 'fresh [x] 0.0 % [0.0, 0.4] - 18.1 1000 -'
    assert ' '.join(grpo) == 'grpo 98.1 % [97.1, 98.8] 91.3 % [89.4, 92.9] 29.9 1000 19.4'


def test_writing_imports_neither_torch_nor_tensorflow(tmp_path):
    code = (
        'import sys; from reasonjax.tracking import metrics; w = metrics.Writer(sys.argv[1]); '
        'w.write("s", 1, {"a": 1.0});'
        'assert not {"torch", "tensorflow", "matplotlib"} & set(sys.modules)'
    )
    root = pathlib.Path(metrics.__file__).parents[2]
    subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=True, cwd=root)
