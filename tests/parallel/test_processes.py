"""Several processes: how they are asked for, and two of them (simulated devices, on this machine)
against one."""

import collections
import contextlib
import json
import pathlib
import socket
import subprocess
import sys

import devices
import jax
import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.interop.huggingface import export
from reasonjax.parallel import launch, processes
from reasonjax.tracking import metrics

HERE = pathlib.Path(__file__).parent
START = ('-c', 'import two_processes; two_processes.start()')
LIMIT = 900  # seconds, where other tests run beside
REWARDS = """
import os

def counted(prompts, completions, **kwargs):
    with open(os.environ['REWARD_CALLS'], 'a') as file:
        file.write(''.join(f'{p} {c!r}\\n' for p, c in zip(prompts, completions)))
    return [sum(map(str.isdigit, text)) + 0.1 * len(text) for text in completions]

def fails(prompts, completions, **kwargs):
    if os.environ['FAILS'] == '1':
        raise ValueError('only here')
    return [1.0] * len(prompts)
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def launched(number: int, folder: pathlib.Path, *arguments):
    """A process of Python; what it prints goes to a file, because a full pipe would stop it."""
    environment = devices.environment(number, folder, HERE)
    command = [sys.executable, *map(str, arguments)]
    name = len([*folder.glob('*.out')])
    with (folder / f'{name}.out').open('w') as out, (folder / f'{name}.err').open('w') as err:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=err)
    process.printed, process.errors = folder / f'{name}.out', folder / f'{name}.err'
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope='module')
def ended(tmp_path_factory):
    """Process 0 and 1 of two, then the one that did the same alone, all ended; and the folders of
    their runs."""
    folder = tmp_path_factory.mktemp('processes')
    (folder / 'counted_rewards.py').write_text(REWARDS)
    two, one, port = folder / 'two', folder / 'one', free_port()
    two.mkdir()
    one.mkdir()
    with contextlib.ExitStack() as stack:
        found = [
            stack.enter_context(launched(4, folder, *START, two, one, port, index))
            for index in (0, 1)
        ]
        found.append(stack.enter_context(launched(8, folder, *START, one, two)))
        for process in found:
            process.wait(LIMIT)
    for path in (two / '0.npz', two / '1.npz', one / '0.npz'):
        assert path.is_file(), '\n'.join(process.errors.read_text()[-2000:] for process in found)
    return found, two, one


@pytest.fixture(scope='module')
def seen(ended):
    """What processes 0 and 1 and the single one have seen."""
    _, two, one = ended
    return [
        {name: x for name, x in np.load(path).items()}
        for path in (two / '0.npz', two / '1.npz', one / '0.npz')
    ]


def test_the_two_processes_agree_bitwise(seen):
    first, second, _ = seen
    clocks = ('time/', 'step_time', 'tokens_per_second')
    names = {name for name in first if not any(clock in name for clock in clocks)}
    assert names == {name for name in second if not any(clock in name for clock in clocks)}
    for name in names:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    losses = [name for name in names if name.endswith('/loss')]
    assert len(losses) == 2 + 2 + 3 and len({float(first[name]) for name in losses}) == len(losses)


def test_two_processes_equal_one(seen):
    two, _, one = seen
    clocks = ('time/', 'step_time', 'tokens_per_second')
    assert set(two) == set(one)
    for name in two:
        if name.endswith(('tokens', 'length')):
            np.testing.assert_array_equal(two[name], one[name], err_msg=name)
        elif not any(clock in name for clock in clocks):
            np.testing.assert_allclose(two[name], one[name], atol=1e-4, rtol=1e-4, err_msg=name)
    assert {f'rollout/{step}/tokens' for step in (1, 2, 3)} <= set(two)
    assert two['rewards/1/total'].std() > 0.1, 'rewards that differ'


def test_a_checkpoint_is_read_by_another_number_of_processes(seen):
    two, _, one = seen
    names = [name.removeprefix('theirs/') for name in two if name.startswith('theirs/')]
    assert any('/lora' in name or name.endswith('/a') for name in names) and len(names) > 20
    for name in names:
        np.testing.assert_array_equal(two[f'theirs/{name}'], one[f'params/{name}'], err_msg=name)
        np.testing.assert_array_equal(one[f'theirs/{name}'], two[f'params/{name}'], err_msg=name)


def test_all_processes_name_a_parameter_that_is_no_number_on_one(ended):
    _, two, one = ended
    said = [
        json.loads(path.read_text())['finite']
        for path in (two / '0.json', two / '1.json', one / '0.json')
    ]
    assert (
        len(set(said)) == 1
        and said[0].startswith('here: 1 of ')
        and 'parameters are not finite numbers: embed (1 of ' in said[0]
    )


def test_every_completion_is_scored_once(ended):
    _, two, one = ended
    calls = [(folder / 'calls').read_text().splitlines() for folder in (two, one)]
    assert len(calls[0]) == len(calls[1]) == 3 * 8 * 2
    assert collections.Counter(calls[0]) == collections.Counter(calls[1])


def test_one_process_writes(ended):
    (first, second, _), two, one = ended
    for run in ('lora', 'grpo'):
        written = [
            [(r['stage'], r['step']) for r in metrics.read(folder / run / 'metrics.jsonl')]
            for folder in (two, one)
        ]
        assert written[0] == written[1] and len(written[0]) >= 3
        # TensorBoard's events have the process in their name.
        assert len([*(two / run).glob('tensorboard/*/*')]) == len(
            {stage for stage, _ in written[0]}
        )
        assert json.loads((two / run / 'config.json').read_text()) == json.loads(
            (one / run / 'config.json').read_text()
        )
    assert not [*two.rglob('.shared')]
    assert 'grpo 3/3' in first.printed.read_text()
    lines = second.printed.read_text().splitlines()
    # What the library of collectives prints may have its line split by another thread.
    own = [line for line in lines if line and 'peer ranks' not in line]
    assert not own, own


def test_a_reward_that_fails_in_one_process_ends_both_with_its_error(ended):
    (first, second, alone), *_ = ended
    for index, process in enumerate((first, second)):
        errors = process.errors.read_text()
        assert process.returncode == 2, errors[-3000:]
        assert f'error (process {index} of 2): rewards.accuracy' in errors and 'only here' in errors
        # Prompts 4 to 7 are the second process's.
        assert 'at sample 8 (prompt 4, generation 0)' in errors
    assert alone.returncode == 0, alone.errors.read_text()[-3000:]


def test_a_workdir_of_their_own_and_another_config_are_refused(ended):
    _, two, _ = ended
    for index in (0, 1):
        said = json.loads((two / f'{index}.json').read_text())
        assert f'--workdir={two}/own{index}' in said['folder'] and 'process 1 on' in said['folder']
        assert said['config'].startswith('the config') and 'process 1 on' in said['config']


def test_a_process_that_fails_alone_takes_the_others_with_it(tmp_path):
    port = free_port()
    with (
        launched(1, tmp_path, HERE / 'one_fails.py', port, 0) as first,
        launched(1, tmp_path, HERE / 'one_fails.py', port, 1) as second,
    ):
        assert first.wait(60) and second.wait(60)
        assert (
            'error (process 1 of 2): a file that only process 1 lacks' in second.errors.read_text()
        )
        assert 'went on alone' not in first.errors.read_text()


ALL = {'coordinator': 'host:1234', 'num_processes': '4', 'process_id': '3'}
STARTED = dict(
    coordinator_address='host:1234',
    num_processes=4,
    process_id=3,
    cluster_detection_method='deactivate',
)


@pytest.mark.parametrize(
    ('flags', 'environment', 'wanted'),
    [
        ({}, {}, None),
        (
            {'distributed': False, 'coordinator': None, 'num_processes': None, 'process_id': None},
            {'PATH': '/bin'},
            None,
        ),
        (ALL, {}, STARTED),
        (
            {},
            {
                'REASONJAX_COORDINATOR': 'host:1234',
                'REASONJAX_NUM_PROCESSES': '4',
                'REASONJAX_PROCESS_ID': '3',
            },
            STARTED,
        ),
        # A flag goes before its variable; the rest of the environment stays.
        (
            {'process_id': '3'},
            {
                'REASONJAX_COORDINATOR': 'host:1234',
                'REASONJAX_NUM_PROCESSES': '4',
                'REASONJAX_PROCESS_ID': '0',
            },
            STARTED,
        ),
        (
            ALL | {'coordinator': '[fd00::1]:99'},
            {},
            STARTED | {'coordinator_address': '[fd00::1]:99'},
        ),
        ({'distributed': True}, {}, {}),
        ({}, {'REASONJAX_DISTRIBUTED': 'auto'}, {}),
    ],
)
def test_settings(flags, environment, wanted):
    assert launch.settings(flags, environment) == wanted


@pytest.mark.parametrize(
    ('flags', 'environment', 'words'),
    [
        (
            {'coordinator': 'h:1'},
            {},
            '--coordinator is given without --num_processes (REASONJAX_NUM_PROCESSES) and '
            '--process_id',
        ),
        (
            {},
            {'REASONJAX_PROCESS_ID': '0', 'REASONJAX_NUM_PROCESSES': '2'},
            'REASONJAX_PROCESS_ID is given without --coordinator (',
        ),
        (
            ALL | {'distributed': True},
            {},
            '--distributed has jax find out what --coordinator, --num_processes, --process_id '
            'states',
        ),
        (
            {'distributed': True},
            {'REASONJAX_COORDINATOR': 'h:1'},
            'what REASONJAX_COORDINATOR states',
        ),
        (ALL, {'REASONJAX_DISTRIBUTED': 'auto'}, 'REASONJAX_DISTRIBUTED=auto has jax find out'),
        ({}, {'REASONJAX_DISTRIBUTED': 'yes'}, 'REASONJAX_DISTRIBUTED=yes: expected auto'),
        (ALL | {'coordinator': 'host'}, {}, '--coordinator=host: expected HOST:PORT'),
        (ALL | {'coordinator': ':80'}, {}, '--coordinator=:80: expected HOST:PORT'),
        (ALL | {'coordinator': 'h:0'}, {}, '--coordinator=h:0: expected HOST:PORT'),
        (ALL | {'coordinator': 'h:65536'}, {}, '--coordinator=h:65536: expected HOST:PORT'),
        (ALL | {'coordinator': 'h:²'}, {}, '--coordinator=h:²: expected HOST:PORT'),
        (ALL | {'num_processes': '²'}, {}, '--num_processes="²": must be a whole number'),
        (ALL | {'process_id': '9' * 5000}, {}, '(5002 characters): must be a whole number'),
        (ALL | {'process_id': '4'}, {}, '--process_id=4: of 4 processes the last is 3'),
        (ALL | {'process_id': '-1'}, {}, '--process_id=-1: must be at least 0'),
        (ALL | {'num_processes': '0'}, {}, '--num_processes=0: must be at least 1'),
        (
            {'coordinator': 'h:1', 'process_id': '0'},
            {'REASONJAX_NUM_PROCESSES': 'two'},
            'REASONJAX_NUM_PROCESSES="two": must be a whole',
        ),
    ],
)
def test_wrong_settings(flags, environment, words):
    with pytest.raises(UserError) as error:
        launch.settings(flags, environment)
    assert words in str(error.value)


def test_start_hands_them_to_jax(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, 'initialize', lambda **arguments: calls.append(arguments))
    printing = sys.stdout
    processes.start({}, {})
    assert calls == [] and processes.label() == ''
    processes.start(ALL, {})
    processes.start({'distributed': True}, {})
    assert calls == [STARTED | processes.TIMEOUTS, processes.TIMEOUTS] and sys.stdout is printing


@pytest.mark.parametrize(
    ('raised', 'words'),
    [(ValueError, 'no cluster that it knows'), (RuntimeError, 'did not find each other: why')],
)
def test_start_says_what_failed(raised, words, monkeypatch):
    def initialize(**arguments):
        raise raised('why')

    monkeypatch.setattr(jax.distributed, 'initialize', initialize)
    with pytest.raises(UserError, match=words):
        processes.start({'distributed': True}, {})


@pytest.mark.parametrize('count', [1, 2, 3, 5, 8])
@pytest.mark.parametrize('number', [0, 1, 4, 7, 16])
def test_shares_are_even_and_cover_everything_once(number, count, monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: count)
    shares = []
    for index in range(count):
        monkeypatch.setattr(jax, 'process_index', lambda: index)  # noqa: B023, called at once
        shares.append(range(number)[processes.share(number)])
    assert [i for share in shares for i in share] == [*range(number)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_does_the_work_itself(tmp_path):
    assert (
        processes.gather({'a': 1}) == [{'a': 1}]
        and processes.agree(True)
        and not processes.agree(False)
    )
    assert processes.divided(3, lambda part: [*range(3)][part]) == [[0, 1, 2]]
    assert processes.on_main(lambda: 5) == 5
    calls = []
    assert processes.main_first(lambda: calls.append(1) or 'made') == 'made' and calls == [1]
    processes.check_shared(tmp_path / 'new')
    assert not (tmp_path / 'new').exists()
    with pytest.raises(UserError, match='mine'):
        processes.on_main(lambda: (_ for _ in ()).throw(UserError('mine')))


def test_an_export_is_written_by_one_process(monkeypatch):
    export.check_one_process()
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(UserError, match='written by one process: leave out --distributed'):
        export.check_one_process()
