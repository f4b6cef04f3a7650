"""Sampling a step ahead: what is drawn with what, what goes into the loss, and a checkpoint while a
rollout waits."""

import contextlib
import itertools
import threading
import time

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from small_runs import ROOT, checkpoints, crash, crash_in_update, left_behind, quiet, steps
from toys import assert_trees_equal

from reasonjax.errors import Stopped, UserError
from reasonjax.parallel import mesh as meshes
from reasonjax.reporting import report
from reasonjax.training import loop, rollouts, stopping
from reasonjax.training.checkpoint import Checkpoints
from reasonjax.training.run import run, trained
from reasonjax.training.step import make_score
from reasonjax.weights.partition import combine

REWARDS = """
import os

def uneven(prompts, completions, **kwargs):
    if prompts[0] == os.environ.get('FAILS_ON'):
        raise ValueError('not this one')
    return [sum(map(ord, text)) % 7 + 0.1 * len(text) for text in completions]

def coarse(prompts, completions, **kwargs):
    return [float(sum(map(ord, text)) % 3 == 0) for text in completions]
"""
STALENESS = ('sampling/staleness', 'sampling/staleness_max')
RATIO = 'sampling/importance_sampling_ratio'


@pytest.fixture(scope='module', autouse=True)
def rewards(tmp_path_factory):
    folder = tmp_path_factory.mktemp('rewards')
    (folder / 'waiting_rewards.py').write_text(REWARDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv('PYTHONPATH', f'{folder}:{ROOT}')
        patch.setattr(report, 'write', lambda workdir: None)
        yield


def config(reward: str = 'uneven', **overrides):
    given = dict(
        stages="('grpo',)",
        grpo__rewards__accuracy__name=f'waiting_rewards.{reward}',
        grpo__reward_workers=0,
        grpo__steps=4,
        grpo__learning_rate__peak=0.01,
        grpo__learning_rate__warmup_steps=0,
        grpo__keep_checkpoints=9,
    )
    return quiet('configs/grpo.py', **(given | overrides))


def tables(workdir) -> list[list[dict]]:
    return [pq.read_table(path).to_pylist() for path in sorted((workdir / 'completions').glob('*'))]


def test_a_policy_that_does_not_move_gives_the_same_run(tmp_path):
    """Without correction bit for bit; with it up to what the sampler's log-probs differ from the
    scorer's."""
    still = dict(grpo__learning_rate__peak=0.0)
    run(config(**still), tmp_path / 'plain')
    run(
        config(
            grpo__pipelined=True, grpo__objective__importance_sampling_correction='none', **still
        ),
        tmp_path / 'none',
    )
    run(config(grpo__pipelined=True, **still), tmp_path / 'stale')
    plain = steps(tmp_path / 'plain', 'grpo')
    assert len({r['loss'] for r in plain}) == 4 and min(r['grad_norm'] for r in plain) > 0
    for name in ('none', 'stale'):
        assert (
            tables(tmp_path / name) == tables(tmp_path / 'plain')
            and len(tables(tmp_path / 'plain')) == 4
        )
        found = steps(tmp_path / name, 'grpo')
        assert [[r.pop(key) for key in STALENESS] for r in found] == [
            [0, 0],
            [1, 1],
            [1, 1],
            [1, 1],
        ]
        if name == 'none':
            assert found == plain
        for one, other in zip(found, plain):
            assert one['loss'] == pytest.approx(other['loss'], rel=1e-4, abs=1e-6)
            assert one['grad_norm'] == pytest.approx(other['grad_norm'], rel=1e-4)
    assert (
        found[0]['loss'] == plain[0]['loss'] and found[0]['grad_norm'] == plain[0]['grad_norm']
    ), 'no staleness, no difference'
    assert (
        all(found[0][f'{RATIO}/{name}'] == 1 for name in ('min', 'mean', 'max'))
        and found[0][f'{RATIO}/clip_ratio'] == 0
    )
    assert all(r[f'{RATIO}/max'] == pytest.approx(1, abs=1e-4) for r in found[1:])


def test_what_is_drawn_with_what(tmp_path, monkeypatch):
    """The next rollout is started before this one is waited for, with the first parameters of the
    step, which are donated meanwhile."""
    events, given = [], {}
    start_sampling, finish = rollouts.Rollouts.start_sampling, rollouts.Rollouts.finish

    def launching(self, step, params, timers, label):
        events.append(('launch', step, label))
        pending = start_sampling(self, step, params, timers, label)
        # A copy taken afterwards, so that the rollout is queued without it.
        given[label] = (step, jax.tree.map(np.array, params), pending)
        return pending

    def landing(self, pending, timers):
        (label,) = [label for label, (_, _, other) in given.items() if other is pending]
        events.append(('land', pending.step, label))
        drawn = finish(self, pending, timers)
        # Sampled again, with the copy and in peace.
        prompts = {name: pending.prompts[name] for name in ('tokens', 'segments', 'positions')} | {
            'index': np.arange(4)
        }
        key = rollouts.randomness.key(
            self._run.config.seed, self._place.number, label[0], 'rollout'
        )
        again = self._generate(given[label][1], prompts, key)
        for name in ('tokens', 'logprob'):
            np.testing.assert_array_equal(getattr(drawn.rollout, name), getattr(again, name))
        return drawn

    monkeypatch.setattr(rollouts.Rollouts, 'start_sampling', launching)
    monkeypatch.setattr(rollouts.Rollouts, 'finish', landing)
    run(config(grpo__pipelined=True, grpo__checkpoint_every=1), tmp_path)
    assert events == [
        ('launch', 1, (1, 0)),
        ('launch', 1, (2, 0)),
        ('land', 1, (1, 0)),
        ('launch', 2, (3, 0)),
        ('land', 1, (2, 0)),
        ('launch', 3, (4, 0)),
        ('land', 2, (3, 0)),
        ('land', 3, (4, 0)),
    ]
    saved = checkpoints(tmp_path)
    for step, params, _ in given.values():
        if step > 1:
            assert_trees_equal(params, saved[f'00_grpo/{step - 1}'][0]['params'])
    assert not np.array_equal(
        *[jax.tree.leaves(given[label][1])[0] for label in ((2, 0), (3, 0))]
    ), 'the policy moves'
    found = steps(tmp_path, 'grpo')
    assert [r['sampling/staleness'] for r in found] == [0, 1, 1, 1]
    assert found[0][f'{RATIO}/max'] == 1 and all(
        r[f'{RATIO}/max'] > 1.01 > 0.99 > r[f'{RATIO}/min'] for r in found[1:]
    )


def test_the_old_policy_is_that_of_the_step(tmp_path, monkeypatch):
    """With several updates a step, ratios are to the policy at its start: scored where it is stale,
    else the sampler's own."""
    compile_, seen = loop.compile_update, []
    settings = config(grpo__pipelined=True, grpo__minibatches=2, grpo__steps=3)

    def compiled(run, stage, *rest):
        update = compile_(run, stage, *rest)
        temperature = stage.config.temperature
        score = jax.jit(meshes.on(run.mesh, make_score(run.model, temperature=temperature)))

        def updating(state, frozen, batch, key):
            own = score(combine(state.trainable, frozen), batch)
            weights = np.asarray(batch['weights'])
            seen.append(
                {
                    name: np.asarray(x) * weights
                    for name, x in (
                        ('own', own),
                        ('old', batch['logprob_old']),
                        ('sampled', batch['logprob_sampled']),
                    )
                }
            )
            return update(state, frozen, batch, key)

        return updating

    monkeypatch.setattr(loop, 'compile_update', compiled)
    run(settings, tmp_path)
    assert len(seen) == 6
    for step, batch in enumerate(seen[::2], 1):  # before the first update of each step
        if step == 1:
            np.testing.assert_array_equal(batch['old'], batch['sampled'])
        else:
            assert np.abs(batch['own'] - batch['sampled']).max() > 1e-3
        np.testing.assert_allclose(batch['old'], batch['own'], atol=2e-5)
    for batch in seen[3::2]:
        assert np.abs(batch['old'] - batch['own']).max() > 1e-3, 'the second update is off it'


def test_time_is_hidden_while_the_devices_are_at_work():
    class Slow:
        def block_until_ready(self):
            assert event.wait(10)
            return self

    event = threading.Event()
    ending = rollouts._Ending(Slow())
    begin = time.perf_counter()
    assert ending.within(begin, begin + 5) == 5, 'not there yet'
    event.set()
    while ending.within(begin, begin + 1e6) > 1e5:
        time.sleep(0.001)
    after = time.perf_counter()
    assert 0 < ending.within(begin, begin + 1e6) <= after - begin
    assert ending.within(after, after + 1) == 0


@contextlib.contextmanager
def asked_at(number):
    """Within it, the run is asked to stop the `number`th time that it looks."""
    calls = itertools.count(1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(stopping, 'asked', lambda: next(calls) == number)
        yield


def test_resume(tmp_path):
    """Killed and stopped while a rollout is in flight and groups wait, the run ends as one that was
    left alone."""
    settings = config(
        'coarse',
        grpo__pipelined=True,
        grpo__dynamic_sampling=4,
        grpo__minibatches=2,
        grpo__steps=6,
        grpo__checkpoint_every=2,
    )
    alone, work = tmp_path / 'alone', tmp_path / 'work'
    run(settings, alone)
    found = steps(alone, 'grpo')
    assert found[0]['dynamic/carried_groups'] + found[1]['dynamic/carried_groups'] > 0, (
        'some wait at a checkpoint that is read'
    )
    assert found[-1]['sampling/staleness_max'] >= 1
    deaths = [
        asked_at(1),  # after step 1
        crash_in_update(4),  # in step 3, after the regular checkpoint of step 2
        # in step 3, what was in flight lands
        crash(rollouts.Rollouts, 'start_sampling', after=True),
        crash(Checkpoints, 'save', after=True),  # of step 4
        crash(rollouts, 'score_completions'),  # of step 5
        asked_at(1),  # after step 5
    ]
    for death in deaths:
        with death:
            run(settings, work)
    run(settings, work)
    one, other = left_behind(work), left_behind(alone)
    for name in one:
        assert one[name] == other[name], name
    assert_trees_equal(trained(work)[1], trained(alone)[1])


def test_a_failing_reward_is_named_as_if_all_were_sampled_at_once(tmp_path, monkeypatch):
    """In the last part, when the rewards of the others are there."""
    run(config(grpo__steps=1), tmp_path / 'fine')
    monkeypatch.setenv('FAILS_ON', tables(tmp_path / 'fine')[0][6]['prompt'])
    texts = []
    for number in (0, 1):
        with pytest.raises(UserError, match='sample 6 .prompt 3, generation 0') as error:
            run(config(grpo__steps=1, grpo__prompts_at_once=number), tmp_path / str(number))
        texts.append(str(error.value))
    assert texts[0] == texts[1] and 'not this one' in texts[0]
