"""A stage that has read or drawn enough ends there, as if it had had so many steps."""

import json

import numpy as np
import pytest
from small_runs import install_rewards, quiet, records, small, steps
from toys import assert_trees_equal

from reasonjax.errors import UserError
from reasonjax.training import counters
from reasonjax.training.run import run, trained

ONLINE = dict(
    stages="('grpo',)", grpo__reward_workers=0, grpo__rewards__accuracy__name='toy_rewards.digits'
)
CONSTANT = dict(
    train__learning_rate__name='constant',
    train__learning_rate__peak=0.01,
    train__learning_rate__warmup_steps=0,
)


def tokens(workdir, stage):
    return [r['num_tokens'] for r in steps(workdir, stage)]


def test_a_limit_ends_a_supervised_stage_with_the_step_that_reaches_it(tmp_path):
    common = CONSTANT | dict(train__eval_every=2, train__log_every=10)
    run(small('configs/sft.py', train__steps=3, **common), tmp_path / 'three')
    run(quiet('configs/sft.py', train__steps=6, **CONSTANT), tmp_path / 'counted')
    limit = int(tokens(tmp_path / 'counted', 'train')[2])
    run(
        small('configs/sft.py', train__steps=6, train__token_limit=limit, **common),
        tmp_path / 'limited',
    )
    # the last step is logged, whatever log_every says
    assert tokens(tmp_path / 'limited', 'train') == [limit]
    assert records(tmp_path / 'limited') == records(tmp_path / 'three')
    assert_trees_equal(trained(tmp_path / 'limited')[1], trained(tmp_path / 'three')[1])


def test_a_limit_ends_an_online_stage_also_when_it_is_resumed(tmp_path, monkeypatch):
    install_rewards(tmp_path, monkeypatch)
    limited = quiet('configs/grpo.py', grpo__steps=50, grpo__token_limit=150, **ONLINE)
    run(limited, tmp_path / 'run')
    drawn = tokens(tmp_path / 'run', 'grpo')
    assert drawn[-1] >= 150 > drawn[-2] and 2 < len(drawn) < 50
    # Killed between its last checkpoint and the note that it is done: nothing is drawn any more.
    (tmp_path / 'run' / 'stages' / '00_grpo' / 'done.json').unlink()
    run(limited, tmp_path / 'run')
    assert tokens(tmp_path / 'run', 'grpo') == drawn


def test_a_limit_ends_a_collection_also_when_it_is_resumed(tmp_path, monkeypatch):
    install_rewards(tmp_path, monkeypatch)

    def collecting(**changes):
        return quiet(
            'configs/quickstart.py:filtered_sft',
            stages="('collect',)",
            collect__reward_workers=0,
            collect__min_reward=-1.0,
            collect__rewards__accuracy__name='toy_rewards.digits',
            **{f'collect__{name}': value for name, value in changes.items()},
        )

    run(collecting(steps=3), tmp_path / 'three')
    counted = [r['num_tokens'] for r in records(tmp_path / 'three')]
    assert counted[0] > 0 and [*counted] == sorted({*counted})
    limited = collecting(steps=50, token_limit=counted[1] + 1)
    run(limited, tmp_path / 'limited')
    assert records(tmp_path / 'limited') == records(tmp_path / 'three')
    folder = tmp_path / 'limited' / 'stages' / '00_collect'
    dataset = (folder / 'dataset.jsonl').read_text()
    assert (
        dataset
        and dataset == (tmp_path / 'three' / 'stages' / '00_collect' / 'dataset.jsonl').read_text()
    )
    (folder / 'done.json').unlink()
    (folder / 'parts' / '00002.json').unlink()
    run(limited, tmp_path / 'limited')
    assert (
        records(tmp_path / 'limited') == records(tmp_path / 'three')
        and (folder / 'dataset.jsonl').read_text() == dataset
    )
    # Seconds: the first step, which compiles, does not count.
    run(collecting(steps=50, time_limit=1e-6), tmp_path / 'timed')
    assert [r['step'] for r in records(tmp_path / 'timed')] == [1, 2]
    with pytest.raises(UserError, match='config.collect.time_limit=-1.0: must be at least 0'):
        run(collecting(time_limit=-1.0), tmp_path / 'below')


def test_a_stage_behind_a_limited_one_starts_from_its_end(tmp_path):
    changes = dict(stages="('train', 'train')", train__steps=6, train__token_limit=1)
    run(quiet('configs/sft.py', **changes), tmp_path / 'run')
    done = tmp_path / 'run' / 'stages' / '01_train_2' / 'done.json'
    first = json.loads((tmp_path / 'run' / 'summary.json').read_text())
    done.unlink()
    for path in (done.parent / 'checkpoints').iterdir():
        path.rename(tmp_path / path.name)
    run(quiet('configs/sft.py', **changes), tmp_path / 'run')
    assert len(tokens(tmp_path / 'run', 'train')) == 1 and [s['name'] for s in first['stages']] == [
        'train',
        'train_2',
    ]


def test_seconds_are_those_of_steps_without_the_first(tmp_path):
    run(quiet('configs/sft.py', train__steps=1000, train__time_limit=0.05), tmp_path)
    found = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    seconds = np.cumsum([r['step_time'] for r in found if 'loss' in r][1:])
    assert seconds[-1] >= 0.05 > (seconds[-2] if len(seconds) > 1 else 0)


def test_processes_end_together_though_their_clocks_differ(monkeypatch):
    heard = []
    monkeypatch.setattr(counters.processes, 'agree', lambda flag: heard.append(flag) or True)
    assert counters.limit_reached({'time_limit': 5.0}, 0, 1.0), 'another process is late'
    assert heard == [False]
    assert not counters.limit_reached({'token_limit': 9}, 3, 1e9) and counters.limit_reached(
        {'token_limit': 9}, 9, 0.0
    )
    assert heard == [False], 'tokens need no agreement'


def test_limits_are_off_at_zero_and_refused_below(tmp_path):
    assert not counters.limit_reached({}, 1e9, 1e9)
    with pytest.raises(
        UserError,
        match='config.train.token_limit=-1: must be from 0 to 9007199254740992; nearest: 0',
    ):
        run(quiet('configs/sft.py', train__token_limit=-1), tmp_path)
