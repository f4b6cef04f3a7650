"""What a run does with configs, data, rewards and workdirs that cannot work, and with finished
stages."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import small_runs

from reasonjax.errors import UserError
from reasonjax.sampling.text import Completion
from reasonjax.training import collect
from reasonjax.training.run import run, trained


def no_evaluation(location: str = 'configs/base.py', **overrides: str):
    return small_runs.quiet(location, **overrides)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A finished run of two steps."""
    workdir = tmp_path_factory.mktemp('finished')
    run(no_evaluation(), workdir)
    return workdir


def test_a_finished_stage_is_not_run_again(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob('checkpoints/*')}
    summary = run(no_evaluation(), finished)
    assert [s['name'] for s in summary['stages']] == ['train']
    assert {p: p.stat().st_mtime_ns for p in finished.rglob('checkpoints/*')} == before


def test_workdir_of_another_config(finished):
    with pytest.raises(UserError, match=r'config.train.batch_size: 4 -> 2') as error:
        run(no_evaluation(train__batch_size='2'), finished)
    assert 'config.json' in str(error.value) and '--workdir' in str(error.value)


def test_starting_from_a_checkpoint(finished, tmp_path):
    run(no_evaluation(init=f'checkpoint:{finished}', train__learning_rate__peak='0.0'), tmp_path)
    old, new = trained(finished)[1], trained(tmp_path)[1]
    jax.tree.map(np.testing.assert_array_equal, old, new)


def test_checkpoint_of_another_shape(finished, tmp_path):
    with pytest.raises(UserError, match='config.init: .*config.model') as error:
        run(no_evaluation(init=f'checkpoint:{finished}', model__mlp_dim='32'), tmp_path)
    assert 'layers/mlp/up: expected (1, 32, 32), found (1, 32, 64)' in str(error.value)


def test_checkpoint_of_another_vocabulary(finished, tmp_path):
    with pytest.raises(UserError, match='another tokenizer'):
        run(
            no_evaluation(init=f'checkpoint:{finished}', tokenizer__alphabet='_.$M#=,0123456789+-'),
            tmp_path,
        )


def test_starting_from_a_stage(finished, tmp_path):
    run(
        no_evaluation(init=f'checkpoint:{finished}:train', train__learning_rate__peak='0.0'),
        tmp_path / 'named',
    )
    with pytest.raises(UserError, match=r'no training stage "trian". Did you mean "train"'):
        run(no_evaluation(init=f'checkpoint:{finished}:trian'), tmp_path / 'unknown')


@pytest.mark.parametrize(
    'init', ['nowhere', 'checkpoint:', 'checkpoint:/does/not/exist', 'hf:', 'hf:x']
)
def test_bad_init(init, tmp_path):
    with pytest.raises(UserError, match='checkpoint:WORKDIR|holds no run|hf:x: no such folder'):
        run(no_evaluation(init=init), tmp_path)


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        (dict(stages="('trian',)"), r'config.stages: no stage "trian". Did you mean "train"\?'),
        (
            dict(train__kind='suprvised'),
            r'config.train.kind: unknown kind "suprvised". Did you mean "supervised"\?',
        ),
        (dict(train__steps='0'), r'config.train.steps=0: must be at least 1'),
        (
            dict(train__accumulation='3'),
            r'config.train.accumulation=3: does not divide 4 rows \(batch_size\); nearest: [24]',
        ),
        (dict(train__filter__name='lora'), r'no low-rank weights'),
        (
            dict(train__data__max_length='12', train__data__overlong='error'),
            r'addition:train\[\d+\].*12',
        ),
        (
            dict(model__kv_heads='3', model__heads='4'),
            r'config.model.kv_heads=3: must divide heads=4; nearest: [24]',
        ),
        (
            dict(model__vocab_size='7'),
            r'config.model.vocab_size=7: the tokenizer produces ids up to 17',
        ),
        (dict(mesh__data='3'), r'config.mesh'),
    ],
)
def test_bad_settings(overrides, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run(no_evaluation(**overrides), tmp_path)


def grpo(**overrides: str):
    return no_evaluation('configs/grpo.py', stages="('grpo',)", **overrides)


def test_one_generation_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'config.grpo.num_generations=1.*at least 2'):
        run(grpo(grpo__num_generations='1'), tmp_path)


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'grpo__num_generations': '1'}, 'config.grpo.num_generations=1'),
        ({'grpo__minibatches': '3'}, 'config.grpo.minibatches=3'),
        ({'grpo__temperature': '0'}, 'config.grpo.temperature=0'),
    ],
)
def test_settings_of_a_later_stage_are_refused_before_the_first_one_runs(
    overrides, message, tmp_path
):
    with pytest.raises(UserError, match=message):
        run(no_evaluation('configs/quickstart.py', stages="('sft', 'grpo')", **overrides), tmp_path)
    assert not list(tmp_path.glob('**/checkpoints/*')) and not (tmp_path / 'metrics.jsonl').exists()


def test_minibatches_divide_prompts(tmp_path):
    with pytest.raises(
        UserError, match=r'config.grpo.minibatches=3: must divide num_prompts=4; nearest: [24]'
    ):
        run(grpo(grpo__minibatches='3'), tmp_path)


def test_a_prompt_too_long_is_refused_or_counted(tmp_path):
    with pytest.raises(UserError, match=r'addition:prompts\[\d+\].*6.*drop'):
        run(
            grpo(grpo__data__max_prompt_length='6', grpo__data__overlong='error'),
            tmp_path / 'refused',
        )
    run(grpo(grpo__data__max_prompt_length='6', grpo__data__overlong='drop'), tmp_path / 'dropped')
    records = [
        json.loads(line)
        for line in (tmp_path / 'dropped' / 'metrics.jsonl').read_text().splitlines()
    ]
    assert records[-1]['data/dropped_overlong'] > 0


REWARDS = """
import math, time
def raises(prompts, completions, **kwargs):
    raise RuntimeError('no such luck')
def hangs(prompts, completions, **kwargs):
    time.sleep(60)
def is_nan(prompts, completions, **kwargs):
    return [math.nan] * len(prompts)
def too_few(prompts, completions, **kwargs):
    return [1.0]
def half(prompts, completions, **kwargs):
    return [None if i % 2 else 1.0 for i in range(len(prompts))]
"""


@pytest.fixture
def failing_rewards(tmp_path, monkeypatch):
    (tmp_path / 'failing_rewards.py').write_text(REWARDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    return tmp_path / 'work'


@pytest.mark.parametrize(
    ('name', 'message'),
    [('raises', 'no such luck'), ('hangs', '0.3'), ('is_nan', 'nan'), ('too_few', r'1.*2|2.*1')],
)
def test_a_failing_reward_names_itself(name, message, failing_rewards):
    overrides = dict(
        grpo__rewards__accuracy__name=f'failing_rewards.{name}', grpo__reward_time_limit='0.3'
    )
    with pytest.raises(UserError, match=message) as error:
        run(grpo(**overrides), failing_rewards)
    assert 'accuracy' in str(error.value)


def test_samples_without_a_reward_are_dropped_and_counted(failing_rewards):
    run(grpo(grpo__rewards__accuracy__name='failing_rewards.half'), failing_rewards)
    records = [
        json.loads(line) for line in (failing_rewards / 'metrics.jsonl').read_text().splitlines()
    ]
    assert [r['rewards/accuracy/dropped'] for r in records] == [4, 4]
    # One valid sample of two a group compares with nothing: no advantage, no gradient.
    assert [r['grad_norm'] for r in records] == [0.0, 0.0]
    assert [r['frac_group_unscored'] for r in records] == [1.0, 1.0]


def test_nothing_collected_is_an_error(tmp_path):
    with pytest.raises(UserError, match='min_reward'):
        run(
            no_evaluation(
                'configs/quickstart.py:filtered_sft',
                stages="('collect', 'resft')",
                collect__min_reward='2.0',
            ),
            tmp_path,
        )


def test_an_empty_completion_is_counted_and_not_kept():
    texts = [
        [
            Completion('a', [3, 1], 2, True),
            Completion('', [1], 1, True),
            Completion('', [1], 1, True),
        ]
    ]
    rewards = SimpleNamespace(total=np.array([1.0, 0.5, 0.0]))
    drawn = SimpleNamespace(prompts={'rows': [{'prompt': 'p'}]}, texts=texts, rewards=rewards)
    part = collect._part(drawn, SimpleNamespace(min_reward=0.5, max_per_prompt=0))
    assert [row['completion'] for row in part['rows']] == ['a']
    assert part['counts'] == {
        'sampled': 3,
        'kept': 1,
        'dropped': 0,
        'empty': 1,
        'reward': 1.5,
        'num_tokens': 4,
    }
    json.dumps(part)


def test_collected_samples_feed_the_next_stage(tmp_path):
    config = no_evaluation(
        'configs/quickstart.py:filtered_sft',
        stages="('collect', 'resft')",
        collect__min_reward='0.0',
        collect__max_completion_length='30',
        resft__data__overlong='drop',
    )
    summary = run(config, tmp_path)
    collected = summary['stages'][0]
    rows = [
        json.loads(line)
        for line in (tmp_path / 'stages' / '00_collect' / 'dataset.jsonl').read_text().splitlines()
    ]
    assert len(rows) == collected['kept'] > 0 and collected['sampled'] == 16
    assert all({'prompt', 'completion', 'solution', 'reward'} <= row.keys() for row in rows)
