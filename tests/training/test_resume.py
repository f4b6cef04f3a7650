"""A run that dies anywhere and is started again ends as one that was left alone: bit for bit, in
all it leaves behind."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from small_runs import (
    ROOT,
    checkpoints,
    crash,
    crash_in_update,
    install_rewards,
    left_behind,
    quiet,
    small,
)
from toys import assert_trees_equal

from reasonjax import train
from reasonjax.data import pipeline
from reasonjax.errors import UserError
from reasonjax.reporting import report
from reasonjax.tracking import metrics
from reasonjax.training import collect, evaluate, rollouts
from reasonjax.training import run as runs
from reasonjax.training.checkpoint import Checkpoints
from reasonjax.training.run import run, trained


@pytest.fixture(scope='module')
def rewards(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        install_rewards(tmp_path_factory.mktemp('rewards'), patch)
        yield


def assert_same(disturbed: pathlib.Path, alone: pathlib.Path) -> None:
    one, other = left_behind(disturbed), left_behind(alone)
    for name in one:
        assert one[name] == other[name], name
    ours, theirs = checkpoints(disturbed), checkpoints(alone)
    assert ours.keys() == theirs.keys() and ours
    for name in ours:
        assert_trees_equal(ours[name][0], theirs[name][0])
        assert ours[name][1] == theirs[name][1], name
    assert_trees_equal(trained(disturbed)[1], trained(alone)[1])


def die_and_go_on(config, workdir: pathlib.Path, deaths: list) -> None:
    """Runs until each death in turn, then to the end."""
    for death in deaths:
        with death:
            run(config, workdir, report=lambda folder: report.write(folder))
    run(config, workdir)


def test_supervised(tmp_path):
    """Packing, corruption and accumulation draw or reorder; periods of log, evaluation and
    checkpoint do not divide each other."""
    config = small(
        'configs/base.py',
        train__steps=7,
        train__data__packing=True,
        train__data__max_length=64,
        train__accumulation=2,
        train__corruption__name='masked_thought',
        train__corruption__rate=0.5,
        train__log_every=2,
        train__eval_every=2,
        train__checkpoint_every=3,
        evaluation__task__size=4,
        evaluation__samples=0,
    )
    run(config, tmp_path / 'alone')
    die_and_go_on(
        config,
        tmp_path / 'disturbed',
        [
            crash(pipeline.Batches, '__next__', 2),  # before there is any checkpoint
            crash_in_update(5),  # two steps after the one of step 3
            crash(evaluate, 'summarise'),  # in the evaluation of step 4
            crash(Checkpoints, 'save', after=True),  # after it
            crash(metrics.Writer, 'write', after=True),  # step 7 is written down, not saved
            crash(evaluate, 'summarise'),  # in the evaluation of the finished stage
            # it is written down, the stage is not marked as done
            crash(metrics.Writer, 'write', after=True),
            crash(report, 'write'),  # the stage is marked as done, there is no report
        ],
    )
    assert_same(tmp_path / 'disturbed', tmp_path / 'alone')


def test_online(tmp_path, rewards):
    """Several updates a step, and a KL term whose reference has to be the model that came in, not
    the one restored."""
    config = small(
        'configs/grpo.py',
        warmup__learning_rate__peak=0.01,
        grpo__steps=5,
        grpo__minibatches=2,
        grpo__num_iterations=2,
        grpo__objective__beta=0.1,
        grpo__learning_rate__peak=0.01,
        grpo__learning_rate__warmup_steps=0,
        grpo__rewards__accuracy__name='toy_rewards.digits',
        grpo__reward_workers=0,
        grpo__eval_every=3,
        grpo__checkpoint_every=2,
        grpo__log_completions_every=2,
        evaluation__task__size=4,
        evaluation__samples=0,
    )
    alone, disturbed = tmp_path / 'alone', tmp_path / 'disturbed'
    run(config, alone)
    trace = [r for r in left_behind(alone)['metrics'] if r['stage'] == 'grpo' and 'loss' in r]
    assert all(r['grad_norm'] > 0 and r['kl'] > 0 for r in trace)
    die_and_go_on(
        config,
        disturbed,
        [
            crash_in_update(2),  # of the warm-up
            crash(rollouts.Rollouts, 'draw', 2),
            crash(rollouts, 'score_completions', 2),
            crash_in_update(3),  # in the middle of step 3
            crash(evaluate, 'summarise'),  # in the evaluation of step 3
            # the table of step 4 is written, the step not saved
            crash(metrics.Writer, 'completions', after=True),
            crash(Checkpoints, 'save', after=True),  # of step 4
            crash(rollouts, 'score_completions'),  # of step 5
            crash(runs, '_conclude'),
        ],
    )
    assert_same(disturbed, alone)
    assert len(left_behind(alone)['completions']) == 2


def test_adapters(tmp_path):
    config = quiet(
        'configs/lora.py',
        lora__steps=5,
        lora__checkpoint_every=2,
        lora__log_every=3,
        lora__learning_rate__peak=0.01,
    )
    run(config, tmp_path / 'alone')
    die_and_go_on(
        config,
        tmp_path / 'disturbed',
        [
            crash(Checkpoints, 'save'),  # of the base
            crash_in_update(4),  # of the factors, in step 4
            crash_in_update(3),  # in step 5
        ],
    )
    assert_same(tmp_path / 'disturbed', tmp_path / 'alone')


def test_collecting(tmp_path, rewards):
    """A stopped collection draws only what it lacks, and what is trained on it afterwards does not
    know the difference."""
    config = quiet(
        'configs/quickstart.py:filtered_sft',
        stages="('collect', 'resft')",
        collect__steps=4,
        collect__max_completion_length=30,
        collect__rewards__accuracy__name='toy_rewards.digits',
        collect__reward_workers=0,
        collect__min_reward=2.0,
    )
    run(config, tmp_path / 'alone')
    die_and_go_on(
        config,
        tmp_path / 'disturbed',
        [
            crash(rollouts.Rollouts, 'draw', 2),
            crash(collect, '_part', 2),
            crash(collect, '_write', after=True),
            crash(runs, '_conclude'),
            crash_in_update(2),  # of the stage that trains on it
        ],
    )
    assert_same(tmp_path / 'disturbed', tmp_path / 'alone')


KILLED = """
import importlib, itertools, os, signal, sys
point, call, when, *arguments = sys.argv[1:]
module, _, path = point.partition(':')
owner = importlib.import_module(module)
*parents, name = path.split('.')
for parent in parents:
    owner = getattr(owner, parent)
real, calls = getattr(owner, name), itertools.count(1)

def planted(*given, **options):
    number = next(calls)
    result = real(*given, **options) if when == 'after' or number != int(call) else None
    if number == int(call):
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, planted)
from reasonjax import train
sys.exit(train.main(arguments))
"""


def session_members(session: int) -> list[int]:
    """Processes of a session that are alive; zombies are not."""
    found = []
    for stat in pathlib.Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = stat.read_text().rpartition(')')[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != 'Z':
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(
    not pathlib.Path('/proc/self/stat').exists(), reason='looks for left-over processes in /proc'
)
def test_kill_9(tmp_path, rewards, monkeypatch, capsys):
    """The program itself, killed by the system in each stage; nothing can tidy up, and no worker
    stays behind."""
    settings = {
        'evaluation.task.size': 4,
        'evaluation.samples': 0,
        'sft.learning_rate.peak': 0.01,
        'sft.steps': 3,
        'sft.checkpoint_every': 1,
        'grpo.steps': 3,
        'grpo.checkpoint_every': 1,
        'grpo.rewards.accuracy.name': 'toy_rewards.digits',
        'grpo.learning_rate.peak': 0.01,
        'grpo.learning_rate.warmup_steps': 0,
    }
    run(
        small('configs/quickstart.py', **{k.replace('.', '__'): v for k, v in settings.items()}),
        tmp_path / 'alone',
    )
    workdir = tmp_path / 'disturbed'
    command = ['--config', 'configs/quickstart.py', '--smoke', '--workdir', str(workdir)]
    command += [f'--config.{key}={value}' for key, value in settings.items()]

    for point, call, when in [
        # SFT: step 2 is being written in the background
        ('reasonjax.training.loop:Checkpoints.save', 2, 'after'),
        ('reasonjax.training.rollouts:score_completions', 2, 'before'),  # GRPO: rewards of step 2
        # GRPO: the update of step 3 is running, step 2 is being saved
        ('reasonjax.training.loop:_Training._settle', 3, 'before'),
    ]:
        process = subprocess.Popen(
            [sys.executable, '-c', KILLED, point, str(call), when, *command],
            cwd=ROOT,
            start_new_session=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, output
        deadline = time.monotonic() + 30
        while (left := session_members(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for stray in left:
            os.kill(stray, signal.SIGKILL)
        assert not left, f'{point}: processes stay behind'
    # The rest in this process, which has the programs.
    monkeypatch.chdir(ROOT)
    capsys.readouterr()
    assert train.main(command) == 0
    printed = capsys.readouterr().out
    assert_same(workdir, tmp_path / 'alone')
    assert 'The same problem, answered by each stage' in printed and 'grpo' in printed


def spoil(step: pathlib.Path) -> None:
    """Flips a bit of the largest array file of a checkpoint."""
    path = max(step.rglob('d/*'), key=lambda path: path.stat().st_size)
    data = path.read_bytes()
    path.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])


def test_damaged_checkpoints(tmp_path, rewards, capfd):
    """The newest of a stage under way; then the last of a stage that is done, while the next one
    has none."""
    config = quiet(
        'configs/grpo.py',
        warmup__steps=5,
        warmup__checkpoint_every=2,
        grpo__steps=2,
        grpo__reward_workers=0,
        grpo__rewards__accuracy__name='toy_rewards.digits',
        grpo__checkpoint_every=0,
    )
    alone, work = tmp_path / 'alone', tmp_path / 'work'
    run(config, alone)
    with crash_in_update(5):
        run(config, work)
    spoil(work / 'stages' / '00_warmup' / 'checkpoints' / '4')
    with crash(rollouts.Rollouts, 'draw'):
        run(config, work)
    spoil(work / 'stages' / '00_warmup' / 'checkpoints' / '5')
    run(config, work)
    said = [line for line in capfd.readouterr().err.splitlines() if 'Renamed to' in line]
    assert [line.split(' is damaged')[0].rpartition('/')[2] for line in said] == ['4', '5']
    assert left_behind(work)['metrics'] == left_behind(alone)['metrics']
    assert_trees_equal(trained(work)[1], trained(alone)[1])
    assert_trees_equal(trained(work, 'warmup')[1], trained(alone, 'warmup')[1])


def test_other_data_are_refused(tmp_path):
    """A position in other rows means nothing; a config that names the same files cannot tell, the
    fingerprint can."""
    rows = tmp_path / 'rows.jsonl'
    text = ''.join(f'{{"prompt": "{i}+{i}=", "completion": "{2 * i}"}}\n' for i in range(1, 40))
    rows.write_text(text)
    config = quiet(
        'configs/base.py',
        train__data__source__name='jsonl',
        train__data__source__path=str(rows),
        train__checkpoint_every=1,
        train__steps=3,
    )
    with crash_in_update(2):
        run(config, tmp_path / 'work')
    rows.write_text(text.replace('"completion": "4"', '"completion": "5"'))
    with pytest.raises(UserError, match='data: .*workdir'):
        run(config, tmp_path / 'work')
    rows.write_text(text)
    run(config, tmp_path / 'work')
