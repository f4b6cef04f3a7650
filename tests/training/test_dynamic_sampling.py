"""Groups that teach nothing are dropped and replaced; every group that is drawn is trained on,
dropped or carried, and none is lost."""

import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_runs import ROOT, quiet, records, steps

from reasonjax.errors import UserError
from reasonjax.reporting import report
from reasonjax.sampling.reward_pool import Rewards
from reasonjax.sampling.sampler import Rollout
from reasonjax.tracking.metrics import Timers
from reasonjax.training import rollout_state
from reasonjax.training.batch import TEXT
from reasonjax.training.checkpoint_trees import join_arrays, split_arrays
from reasonjax.training.group_buffer import GroupBuffer
from reasonjax.training.reward_spread import fill_batch, has_reward_spread
from reasonjax.training.rollouts import PendingRollout, ScoredRollout, concat_groups, select_groups
from reasonjax.training.run import run

P, G, C = 4, 2, 3
NAN = float('nan')


def test_equal_means_equal():
    rewards = [[0.5, 0.5], [0.5, 0.5 + 1e-6], [NAN, 0.5], [NAN, NAN], [-1.0, -1.0], [0.0, -0.0]]
    assert has_reward_spread(np.array(rewards)).tolist() == [
        False,
        True,
        False,
        False,
        False,
        False,
    ]
    three = [[NAN, 1.0, 1.0], [NAN, 1.0, 0.0], [1.0, 1.0, 0.0]]
    assert has_reward_spread(np.array(three)).tolist() == [False, True, True]
    # Sums of weighted rewards that differ in float64 only have advantages of exactly 0.
    assert has_reward_spread(np.array([[0.1 + 0.2, 0.3]])).tolist() == [False]


def test_choices_by_hand():
    has = np.array([0, 1, 1, 0, 1, 0], bool)
    trained, carried, dropped, filled = fill_batch(has, 2)
    assert (trained.tolist(), carried.tolist(), dropped.tolist(), filled) == (
        [1, 2],
        [4],
        [0, 3, 5],
        0,
    )
    trained, carried, dropped, filled = fill_batch(has, 4)
    assert (trained.tolist(), carried.tolist(), dropped.tolist(), filled) == (
        [1, 2, 4, 5],
        [],
        [0, 3],
        1,
    )
    trained, carried, dropped, filled = fill_batch(has, 6)
    assert (trained.tolist(), carried.tolist(), dropped.tolist(), filled) == (
        [0, 1, 2, 3, 4, 5],
        [],
        [],
        3,
    )
    assert fill_batch(np.zeros(3, bool), 2)[0].tolist() == [1, 2]


class Fake:
    """Rollouts of prompts numbered in the order of the data; `share` of the groups have unequal
    rewards."""

    def __init__(self, share: float, seed: int):
        self.rng, self.share, self.at = np.random.default_rng(seed), share, 0
        self.labels: list[tuple[int, int]] = []
        self.under_way: list[int] = []

    def start_sampling(self, step, params, timers, label):
        del timers
        assert params == step, 'drawn with the first parameters of the step'
        self.labels.append(label)
        number = self.at + np.arange(P)
        self.at += P
        prompts = {
            **dict.fromkeys(TEXT, number[:, None].astype(np.int32)),
            'rows': [{'prompt': str(i), 'answer': (int(i), 1.5)} for i in number],
        }
        tokens = np.broadcast_to(number[:, None, None], (P, G, C)).astype(np.int32)
        ones = np.ones((P, G))
        rollout = Rollout(
            tokens,
            -0.1 * tokens.astype(np.float32),
            tokens.astype(np.float32),
            ones.astype(np.int32),
            ones.astype(bool),
        )
        return PendingRollout(prompts, [rollout], step)

    def finish(self, pending, timers):
        number = pending.prompts['tokens'][:, 0]
        # Decided by the prompt alone: a resumed run scores again.
        values = np.array(
            [[0.0, float(np.random.default_rng(i).random() < self.share)] for i in number]
        )
        rewards = Rewards(
            ('r',), values.reshape(-1, 1), values.reshape(-1), {'rewards/r/errors': 0}
        )
        return self.restored(pending.prompts, pending.parts[0], rewards, np.full(P, pending.step))

    def draw(self, step, params, timers, number):
        return self.finish(self.start_sampling(step, params, timers, (step, number)), timers)

    def restored(self, prompts, rollout, rewards, steps):
        if rewards is None:
            return PendingRollout(prompts, [rollout], int(steps[0]))
        return ScoredRollout(
            prompts, rollout, [[str(row)] * G for row in prompts['rows']], rewards, steps
        )


def numbers(drawn: ScoredRollout) -> list[int]:
    """The prompts of a drawn rollout, after a look at whether all its parts still belong
    together."""
    found = drawn.prompts['tokens'][:, 0]
    assert [row['prompt'] for row in drawn.prompts['rows']] == [str(i) for i in found]
    assert [row['answer'] for row in drawn.prompts['rows']] == [(i, 1.5) for i in found]
    np.testing.assert_array_equal(
        drawn.rollout.tokens, np.broadcast_to(found[:, None, None], (len(found), G, C))
    )
    assert [eval(group[0])['prompt'] for group in drawn.texts] == [str(i) for i in found]
    return found.tolist()


def through_json(state: dict) -> dict:
    """As a checkpoint keeps it."""
    plain, arrays = split_arrays(state)
    return join_arrays(json.loads(json.dumps(plain)), arrays)


@pytest.mark.parametrize('pipelined', [False, True])
@pytest.mark.parametrize('most', [0, 1, 2, 5])
@pytest.mark.parametrize('share', [0.1, 0.5, 0.8, 1.0])
def test_no_group_is_lost(share, most, pipelined):
    """Counted over a whole stage, twice: left alone, and put away and taken up again after every
    step."""
    ends = []
    for interrupted in (False, True):
        fake, last = Fake(share, 0), 12
        settings = dict(num_prompts=P, steps=last, pipelined=pipelined, dynamic_sampling=most)
        buffer, trained, dropped, filled, ages = GroupBuffer(fake, **settings), [], 0, 0, []
        for step in range(1, last + 1):
            before = fake.at
            drawn, sampled, metrics = buffer.next(step, step, Timers())
            numbers(sampled)
            assert len(numbers(drawn)) == P and fake.at - before <= P * (max(most, 1) + 1)
            trained += numbers(drawn)
            ages.append(step - drawn.steps)
            kept = has_reward_spread(drawn.total_PxG)
            if most:
                assert metrics['dynamic/batches'] <= most
                assert (~kept).sum() == metrics['dynamic/filled_groups'], (
                    'nothing uninformative but what fills the batch'
                )
                assert kept.all() or metrics['dynamic/batches'] == most, (
                    'filled only when all batches have been drawn'
                )
                dropped += metrics['dynamic/dropped_groups']
                filled += metrics['dynamic/filled_groups']
                assert metrics['dynamic/carried_groups'] < P
            if pipelined or most > 1:
                assert (
                    metrics['sampling/staleness'] == ages[-1].mean()
                    and metrics['sampling/staleness_max'] == ages[-1].max()
                )
            if interrupted:
                state = through_json(buffer.get_state())
                buffer = GroupBuffer(fake, **settings)
                buffer.set_state(state)
        state = buffer.get_state()
        waiting = (
            []
            if not state.get('carried')
            else rollout_state.rows_from_json(state['carried']['rows'])
        )
        assert not state.get('flying'), 'nothing is drawn for a step that does not come'
        assert len(set(trained)) == len(trained), 'no group is trained on twice'
        assert not set(trained) & {int(row['prompt']) for row in waiting}
        assert len(trained) + dropped + len(waiting) == fake.at == P * len(fake.labels)
        assert len(set(fake.labels)) == len(fake.labels), 'no random numbers are used twice'
        most_age = max(age.max() for age in ages)
        assert most_age <= pipelined + (most > 1)
        if share == 0.8 and most == 5:
            assert most_age == 1 + pipelined and dropped > 0 and filled == 0
        if share == 0.1 and most == 2:
            assert filled > 0
        ends.append((trained, dropped, fake.labels))
    assert ends[0] == ends[1]


def test_one_batch_is_the_batch():
    """n = 1 keeps everything and its order."""
    one, none = (
        GroupBuffer(Fake(0.4, 0), num_prompts=P, steps=9, pipelined=False, dynamic_sampling=n)
        for n in (1, 0)
    )
    for step in range(1, 5):
        assert numbers(one.next(step, step, Timers())[0]) == numbers(
            none.next(step, step, Timers())[0]
        )
    assert one.get_state() == none.get_state() == {}


def test_draws_are_counted_on_within_a_step():
    fake = Fake(0.3, 0)
    buffer = GroupBuffer(fake, num_prompts=P, steps=9, pipelined=False, dynamic_sampling=9)
    for step in (1, 2, 3):
        buffer.next(step, step, Timers())
    for step, group in itertools.groupby(fake.labels, lambda label: label[0]):
        found = [number for _, number in group]
        assert found == list(range(len(found))), step


def test_taken_and_together_undo_each_other():
    fake = Fake(0.5, 0)
    parts = [fake.draw(step, step, None, 0) for step in (1, 2)]
    both = concat_groups(parts)
    assert numbers(both) == list(range(8)) and both.steps.tolist() == [1] * 4 + [2] * 4
    mixed = select_groups(both, np.array([6, 1, 3]))
    assert numbers(mixed) == [6, 1, 3] and mixed.steps.tolist() == [2, 1, 1]
    np.testing.assert_array_equal(mixed.total_PxG, both.total_PxG[[6, 1, 3]])
    assert mixed.rewards.values.shape == (6, 1)


def test_rows_come_back_as_they_were():
    rows = [
        {
            'prompt': 'a\u2028\ud800',
            'n': 1,
            'x': 0.1,
            'big': 2**70,
            'none': None,
            'yes': True,
            'nan': float('-inf'),
        },
        {
            'prompt': [{'role': 'user'}],
            't': (1, (2, [3])),
            'b': b'\x00\xff',
            'd': {'__tuple__': [1]},
            'k': {1: 'one', (2,): 2},
        },
        {
            'prompt': '',
            'a': np.arange(6, dtype=np.float16).reshape(2, 3),
            's': np.float32(0.1),
            'u': np.str_('ü'),
            'e': np.zeros((0, 2)),
        },
    ]
    found = rollout_state.rows_from_json(json.loads(json.dumps(rollout_state.rows_to_json(rows))))
    assert found[:2] == rows[:2] and [type(x) for x in found[1].values()] == [
        type(x) for x in rows[1].values()
    ]
    for name, value in rows[2].items():
        other = found[2][name]
        assert (
            type(other) is type(value)
            and np.array_equal(other, value)
            and getattr(other, 'dtype', 0) == getattr(value, 'dtype', 0)
        )
    with pytest.raises(UserError, match='column "when" holds datetime.date'):
        import datetime

        rollout_state.rows_to_json([{'prompt': '', 'when': [datetime.date(2026, 1, 1)]}])


COARSE = """
def coarse(prompts, completions, **kwargs):
    return [float(sum(map(ord, text)) % 3 == 0) for text in completions]
"""


@pytest.fixture
def coarse(tmp_path, monkeypatch):
    (tmp_path / 'coarse_rewards.py').write_text(COARSE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{ROOT}')
    monkeypatch.setattr(report, 'write', lambda workdir: None)
    return dict(
        stages="('grpo',)",
        grpo__rewards__accuracy__name='coarse_rewards.coarse',
        grpo__reward_workers=0,
        grpo__steps=4,
        grpo__learning_rate__peak=0.01,
        grpo__learning_rate__warmup_steps=0,
    )


def test_a_run(tmp_path, coarse):
    """Batches are full of groups that teach something; with one batch a step it is the run
    without."""
    for number in (0, 1, 6):
        run(
            quiet('configs/grpo.py', grpo__dynamic_sampling=number, **coarse),
            tmp_path / str(number),
        )
    plain, one, six = (steps(tmp_path / str(number), 'grpo') for number in (0, 1, 6))
    assert [{k: v for k, v in r.items() if not k.startswith('dynamic/')} for r in one] == plain
    assert [r['dynamic/filled_groups'] for r in one] == [
        round(4 * r['frac_reward_zero_std']) for r in plain
    ]
    assert any(r['frac_reward_zero_std'] > 0 for r in plain), 'there is something to drop'
    assert all(r['frac_reward_zero_std'] == 0 and r['dynamic/filled_groups'] == 0 for r in six)
    assert (
        max(r['dynamic/batches'] for r in six) > 1
        and max(r['sampling/staleness_max'] for r in six) == 1
    )
    tables = [
        pq.read_table(path).to_pylist()
        for path in sorted((tmp_path / '6' / 'completions').glob('*'))
    ]
    assert len(tables) == 4 and all(row['advantage'] != 0 for table in tables for row in table)
    drawn, left = 4 * sum(r['dynamic/batches'] for r in six), six[-1]['dynamic/carried_groups']
    assert drawn == 4 * 4 + sum(r['dynamic/dropped_groups'] for r in six) + left
    with pytest.raises(UserError, match='dynamic_sampling=-1'):
        run(quiet('configs/grpo.py', grpo__dynamic_sampling=-1, **coarse), tmp_path / 'refused')
    assert records(tmp_path / '6')
