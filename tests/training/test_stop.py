"""A run that is asked to stop, wherever it is, has saved that place, and goes on as if it had never
stopped."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from small_runs import ROOT, checkpoints, install_rewards, left_behind, quiet, records, small
from toys import assert_trees_equal

from reasonjax.data import pipeline
from reasonjax.errors import Stopped
from reasonjax.tracking import metrics
from reasonjax.training import rollout_metrics, stopping
from reasonjax.training.run import run, trained


@pytest.fixture(scope='module')
def rewards(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        install_rewards(tmp_path_factory.mktemp('rewards'), patch)
        yield


@contextlib.contextmanager
def asked_at(number):
    """Within it, the `number`th time that the code asks whether to stop, it is to; the message is
    what `stopped` holds."""
    calls, stopped = itertools.count(1), []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped) as error:
        patch.setattr(stopping, 'asked', lambda: next(calls) == number)
        yield stopped
    stopped.append(str(error.value))


def assert_same(disturbed, alone):
    one, other = left_behind(disturbed), left_behind(alone)
    for name in one:
        assert one[name] == other[name], name
    assert_trees_equal(trained(disturbed)[1], trained(alone)[1])


def test_supervised(tmp_path):
    """Asked after a step, before an evaluation, in it, and in the last one: a record is neither
    missing nor there twice."""
    config = small(
        'configs/base.py',
        train__steps=5,
        train__eval_every=2,
        train__checkpoint_every=3,
        train__log_every=2,
        train__keep_best='eval_accuracy',
        evaluation__task__size=8,
        evaluation__samples=0,
    )
    run(config, tmp_path / 'alone')
    workdir = tmp_path / 'work'
    for number, words in [
        (1, 'stage train: step 1 of 5 is done and saved'),
        (2, 'stage train: step 2 of 5 is done and saved; evaluation: 0 of 2 batches'),  # of step 2
        (2, 'evaluation: 1 of 2 batches'),  # the same evaluation, done again first
        # two batches, step 3, step 4: its evaluation comes first, then the stop
        (4, 'stage train: step 4 of 5 is done and saved'),
    ]:
        with asked_at(number) as stopped:
            run(config, workdir)
        assert words in stopped[0], stopped
    for number in (1, 2):  # step 5, then the evaluation of the finished stage
        with asked_at(number):
            run(config, workdir)
    run(config, workdir)
    assert_same(workdir, tmp_path / 'alone')


def test_stops_do_not_change_where_a_rollback_goes(tmp_path, monkeypatch):
    """A checkpoint that there is only because of a stop is not one to go back to: the undisturbed
    run has none there."""
    real = pipeline.Batches.__next__

    def fault(batches):
        batch = real(batches)
        # No weight, no loss: 0 / 0.
        bad = batches.counters['rows'] // len(batch['tokens']) in (6, 7)
        return batch | {'weights': batch['weights'] * np.float32('nan')} if bad else batch

    monkeypatch.setattr(pipeline.Batches, '__next__', fault)
    config = quiet(
        'configs/base.py', train__steps=9, train__checkpoint_every=3, train__max_nonfinite=1
    )
    run(config, tmp_path / 'alone')
    assert records(tmp_path / 'alone')[-1]['rollbacks'] == 1
    # after steps 4, 6 (within the bad stretch) and 7 (right after the rollback)
    for number in (4, 2, 1):
        with asked_at(number):
            run(config, tmp_path / 'work')
    run(config, tmp_path / 'work')
    assert_same(tmp_path / 'work', tmp_path / 'alone')


def test_online_and_collecting(tmp_path, rewards, capfd, monkeypatch):
    """The stages in one run. A warning that was given is not given again, and the steps that lead
    to one are counted on."""
    monkeypatch.setattr(rollout_metrics, 'FLAT_STEPS', 3)
    config = quiet(
        'configs/quickstart.py:filtered_sft',
        stages="('grpo', 'collect', 'resft')",
        collect__steps=3,
        collect__reward_workers=0,
        collect__rewards__accuracy__name='toy_rewards.digits',
        collect__min_reward=2.0,
        collect__max_completion_length=30,
        grpo__steps=5,
        grpo__checkpoint_every=0,
        grpo__reward_workers=0,
        grpo__rewards__accuracy__name='accuracy',
    )
    run(config, tmp_path / 'alone')
    alone = [line for line in capfd.readouterr().err.splitlines() if line.startswith('warning')]
    assert len(alone) == 3 and 'warmup_steps=10' in alone[0]
    assert 'equal rewards for 3 steps' in ''.join(alone), 'a model that knows nothing earns nothing'
    for number in (2, 2, 1, 2, 2):  # after steps 2, 4 and 5; in the collection; in the last stage
        with asked_at(number):
            run(config, tmp_path / 'work')
    run(config, tmp_path / 'work')
    assert [
        line for line in capfd.readouterr().err.splitlines() if line.startswith('warning')
    ] == alone
    assert_same(tmp_path / 'work', tmp_path / 'alone')


def test_phase_times_of_unwritten_steps_are_kept(tmp_path, monkeypatch):
    """With a record every third step, the phases of steps 1 and 2 are part of the record of step 3,
    whoever ran them."""
    config = quiet('configs/base.py', train__steps=3, train__log_every=3, train__checkpoint_every=0)
    with asked_at(2):
        run(config, tmp_path)
    path = tmp_path / 'stages' / '00_train' / 'checkpoints' / '2' / 'meta' / 'metadata'
    phases = json.loads(path.read_text())['meta']['clock']['phases']
    assert set(phases) == {'data', 'update'} and min(phases.values()) > 0
    run(config, tmp_path)
    (record,) = metrics.read(tmp_path / 'metrics.jsonl')
    assert record['time/update'] > phases['update'] and record['time/data'] > phases['data']


SLOW = """
import sys, time
from reasonjax import train
from reasonjax.training import loop
real = loop.evaluate.summarise
def summarise(found):
    print('EVALUATING', flush=True)
    time.sleep(2)
    return real(found)
loop.evaluate.summarise = summarise
sys.exit(train.main(sys.argv[1:]))
"""


def test_sigterm(tmp_path):
    """The program itself: it finishes what it is at, saves, says how to go on, and exits with
    75."""
    settings = {
        'train.steps': 6,
        'train.eval_every': 3,
        'train.checkpoint_every': 0,
        'evaluation.task.size': 4,
        'evaluation.samples': 0,
    }
    config = small(
        'configs/base.py', **{name.replace('.', '__'): value for name, value in settings.items()}
    )
    run(config, tmp_path / 'alone')
    command = [
        sys.executable,
        '-c',
        SLOW,
        '--config',
        'configs/base.py',
        '--smoke',
        '--workdir',
        str(tmp_path / 'work'),
    ]
    command += [f'--config.{name}={value}' for name, value in settings.items()]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while 'EVALUATING' not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    os.kill(process.pid, signal.SIGTERM)
    printed, error = process.communicate(timeout=120)
    assert process.returncode == Stopped.status == 75, error
    assert 'SIGTERM: finishing this step, then saving' in error and 'Traceback' not in error
    assert 'is done and saved. To resume, give the same command again:\n  python -c' in error
    assert {r['step'] for r in records(tmp_path / 'work', 'train')} in ({1, 2, 3}, {1, 2, 3, 4})
    assert sorted(checkpoints(tmp_path / 'work')) in (['00_train/3'], ['00_train/4'])
    run(config, tmp_path / 'work')
    assert_same(tmp_path / 'work', tmp_path / 'alone')
