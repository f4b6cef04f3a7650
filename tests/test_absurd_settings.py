"""Absurd settings, as a user may give them on the command line or in a file: one line says what is
wrong, and nothing has run."""

import pathlib
import re
import textwrap

import ml_collections
import numpy as np
import pytest

from reasonjax import config as configs
from reasonjax import programs
from reasonjax.errors import UserError
from reasonjax.smoke import shrink
from reasonjax.training import cautions
from reasonjax.training.run import run

ROOT = pathlib.Path(__file__).parents[1]

ABSURD = {
    'sft.learning_rate.peak=-0.1': 'config.sft.learning_rate.peak=-0.1: must be from 0 to 10000; '
    'nearest: 0.',
    'sft.learning_rate.peak=inf': 'config.sft.learning_rate.peak=inf: must be finite, from 0 to '
    '10000; nearest: 10000.0.',
    'sft.learning_rate.peak=1e39': 'config.sft.learning_rate.peak=1e+39: must be from 0 to 10000; '
    'nearest: 10000.0.',
    'sft.learning_rate.warmup_steps=-3': 'config.sft.learning_rate.warmup_steps=-3: must be at '
    'least 0; nearest: 0.',
    'sft.learning_rate.final_fraction=2': 'config.sft.learning_rate.final_fraction=2.0: must be '
    'from 0 to 1; nearest: 1.',
    'sft.optimizer.clip_norm=-1': 'config.sft.optimizer.clip_norm=-1.0: must be above 0 or '
    'infinity; nearest: 1.0.',
    'sft.optimizer.clip_norm=0': 'config.sft.optimizer.clip_norm=0.0: must be above 0 or infinity; '
    'default: inf.',
    'sft.optimizer.clip_norm=1e400': '--config.sft.optimizer.clip_norm=1e400: expected float (now '
    '1.0), got str.',
    'sft.optimizer.b2=2': 'config.sft.optimizer.b2=2.0: must be at least 0 and below 1; default: '
    '0.999.',
    'sft.optimizer.b1=1': 'config.sft.optimizer.b1=1.0: must be at least 0 and below 1; default: '
    '0.9.',
    'sft.optimizer.b2=0.9999999999': 'config.sft.optimizer.b2=0.9999999999: must be at least 0 and '
    'below 1, also in float32',
    'sft.optimizer.eps=0': 'config.sft.optimizer.eps=0.0: must be above 0 and at most 1; default: '
    '1e-08.',
    'sft.optimizer.weight_decay=-1': 'config.sft.optimizer.weight_decay=-1.0: must be at least 0; '
    'nearest: 0.',
    'sft.optimizer.mu_dtype=float8': 'config.sft.optimizer.mu_dtype="float8": unknown.',
    'sft.steps=0': 'config.sft.steps=0: must be at least 1; nearest: 1.',
    'sft.steps=99999999999': 'config.sft.steps=99999999999: must be at most 2147483647, which is '
    'what 32 bits hold',
    'sft.steps=' + '9' * 5000: "9' (5002 characters): expected int (now 800), got str.",
    'sft.learning_rate.peak=' + '9' * 400: '(402 characters): expected float (now 0.003), got int.',
    'sft.steps=' + '-' * 9000 + '1': 'expected int (now 800), got str.',
    'sft.steps=1e3': '--config.sft.steps=1e3: expected int (now 800), got float.',
    'sft.batch_size=-26': 'config.sft.batch_size=-26: must be at least 1; nearest: 1.',
    'sft.accumulation=0': 'config.sft.accumulation=0: must be at least 1; nearest: 1.',
    'sft.log_every=0': 'config.sft.log_every=0: must be at least 1',
    'sft.eval_every=-1': 'config.sft.eval_every=-1: must be at least 0; nearest: 0.',
    'sft.checkpoint_every=-1': 'config.sft.checkpoint_every=-1: must be at least 0',
    'sft.keep_checkpoints=0': 'config.sft.keep_checkpoints=0: must be at least 1',
    'sft.keep_best_mode=mx': 'config.sft.keep_best_mode="mx": unknown. Did you mean "max"?',
    'sft.max_nonfinite=-1': 'config.sft.max_nonfinite=-1: must be at least 0',
    'sft.spike_zscore=-1': 'config.sft.spike_zscore=-1.0: must be at least 0',
    'sft.spike_window=1': 'config.sft.spike_window=1: must be at least 2; nearest: 2.',
    'sft.time_limit=inf': 'config.sft.time_limit=inf: must be finite, at least 0',
    'sft.data.max_length=0': 'config.sft.data.max_length=0: must be at least 1',
    'sft.data.overlong=cut': 'config.sft.data.overlong="cut": unknown. Known: drop, error.',
    'sft.data.source.answer_only=1.5': 'config.sft.data.source.answer_only=1.5: must be from 0 to '
    '1; nearest: 1.',
    'sft.data.source.levels=(0,)': 'config.sft.data.source.levels=(0,): entry 0, 0, must be from 1 '
    'to 15; nearest: 1.',
    'sft.data.source.size=0': 'config.sft.data.source.size=0: must be at least 1; nearest: 1.',
    'sft.data.source.seed=-1': 'config.sft.data.source.seed=-1: must be from 0 to 4294967295; '
    'nearest: 0.',
    'grpo.num_prompts=0': 'config.grpo.num_prompts=0: must be at least 1',
    'grpo.temperature=-1': 'config.grpo.temperature=-1.0: must be 0 or from 0.0001 to 10000; '
    'nearest: 0.',
    'grpo.temperature=inf': 'config.grpo.temperature=inf: must be finite, 0 or from 0.0001 to '
    '10000; nearest: 10000.0.',
    'grpo.top_k=-1': 'config.grpo.top_k=-1: must be at least 0; nearest: 0.',
    'grpo.top_p=0': 'config.grpo.top_p=0.0: must be above 0 and at most 1',
    'grpo.min_p=1': 'config.grpo.min_p=1.0: must be at least 0 and below 1',
    'grpo.repetition_penalty=0': 'config.grpo.repetition_penalty=0.0: must be from 0.0001 to '
    '10000; nearest: 0.0001.',
    'grpo.reward_time_limit=0': 'config.grpo.reward_time_limit=0.0: must be above 0',
    'grpo.reward_workers=-2': 'config.grpo.reward_workers=-2: must be at least 0; nearest: 0.',
    'grpo.rewards.accuracy.weight=inf': 'config.grpo.rewards.accuracy.weight=inf: must be finite',
    'grpo.rewards.accuracy.extract=hsh': 'config.grpo.rewards.accuracy.extract="hsh": unknown. Did '
    'you mean "hash"?',
    'grpo.advantage.epsilon=0': 'config.grpo.advantage.epsilon=0.0: must be above 0 and at most 1; '
    'default: 0.0001.',
    'grpo.objective.epsilon=-0.2': 'config.grpo.objective.epsilon=-0.2: must be at least 0 or '
    'infinity; nearest: 0.',
    'grpo.objective.beta=-0.1': 'config.grpo.objective.beta=-0.1: must be at least 0; nearest: 0.',
    'grpo.objective.epsilon_high=x': 'config.grpo.objective.epsilon_high="x": must be a number, at '
    'least 0 or infinity or None.',
    'grpo.objective.importance_sampling_clip_max=0.5': 'config.grpo.objective.importance_sampling_clip_max=0.5: must be at least 1 or infinity or None; nearest: 1.',
    'grpo.thinking.budget=-1': 'config.grpo.thinking.budget=-1: must be at least 0',
    'grpo.sampler.burst=0': 'config.grpo.sampler.burst=0: must be at least 1',
    'evaluation.samples=-1': 'config.evaluation.samples=-1: must be at least 0',
    'evaluation.batch_size=0': 'config.evaluation.batch_size=0: must be at least 1',
    'evaluation.task.size=0': 'config.evaluation.task.size=0: must be at least 1',
    'mesh.fsdp=-2': 'config.mesh.fsdp=-2: must be at least -1; nearest: -1.',
    'seed=-1': 'config.seed=-1: must be from 0 to 4294967295; nearest: 0.',
    'seed=4294967296': 'config.seed=4294967296: must be from 0 to 4294967295; nearest: 4294967295.',
    'model.dim=0': 'config.model.dim=0: must be at least 1; nearest: 1.',
    'model.rope_theta=-1': 'config.model.rope_theta=-1.0: must be above 0; nearest: 1.0.',
    'model.norm_eps=1e30': 'config.model.norm_eps=1e+30: must be above 0 and at most 1; nearest: 1.',
    'model.embed_std=1e30': 'config.model.embed_std=1e+30: must be from 0 to 10000; nearest: '
    '10000.0.',
    'sft.optimizer.eps=1e30': 'config.sft.optimizer.eps=1e+30: must be above 0 and at most 1; '
    'nearest: 1.',
    'grpo.advantage.epsilon=1e30': 'config.grpo.advantage.epsilon=1e+30: must be above 0 and at '
    'most 1; nearest: 1.',
    'model.norm_eps=inf': 'config.model.norm_eps=inf: must be finite, above 0 and at most 1; '
    'nearest: 1.',
}


@pytest.mark.parametrize('override', ABSURD, ids=lambda text: text[:60])
def test_absurd_settings_are_refused_in_one_line(override, tmp_path):
    with pytest.raises(UserError) as error:
        run(
            configs.load(str(ROOT / 'configs/quickstart.py'), [tuple(override.split('=', 1))]),
            tmp_path / 'run',
        )
    assert (
        ABSURD[override] in str(error.value)
        and '\n' not in str(error.value)
        and len(str(error.value)) < 300
    )
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('line', 'words'),
    [
        (
            "c.train.learning_rate = dict(name='constant', peak=float('nan'))",
            'config.train.learning_rate.peak=nan: must be a number',
        ),
        (
            "c.train.learning_rate = dict(name='constant', peak='1e-3')",
            'peak="1e-3": must be a number, from 0 to 10000; nearest: 0.001.',
        ),
        (
            "c.train.adapter = dict(name='lora', r=2.5)",
            'config.train.adapter.r=2.5: must be a whole number, at least 1; nearest: 2.',
        ),
        (
            "c.train.adapter = dict(name='lora', r=True)",
            'config.train.adapter.r=True: must be a whole number, at least 1; nearest: 1.',
        ),
        (
            "c.train.adapter = dict(name='lora', lora_alpha=0.0)",
            'config.train.adapter.lora_alpha=0.0: must be above 0; default: 16.0.',
        ),
        (
            "c.train.adapter = dict(name='lora', use_rslora=1)",
            'config.train.adapter.use_rslora=1: must be True or False.',
        ),
        (
            "c.train.adapter = dict(name='lora', quantise='nf5')",
            'config.train.adapter.quantise="nf5": unknown. Did you mean "nf4"?',
        ),
        (
            "c.train.corruption = dict(name='masked_thought', rate=1.2)",
            'train.corruption.rate=1.2: must be from 0 to 1; nearest: 1.',
        ),
        (
            "c.train.optimizer = dict(name='sgd', momentum=-0.5)",
            'config.train.optimizer.momentum=-0.5: must be at least 0 and below 1',
        ),
        (
            'c.train.steps = True',
            'config.train.steps=True: must be a whole number, at least 1; nearest: 1.',
        ),
        (
            'c.train.steps = 10**5000',
            'config.train.steps=a number of about 5001 digits: must be at most 2147483647',
        ),
        (
            'c.train.spike_zscore = float("nan")',
            'config.train.spike_zscore=nan: must be a number, at least 0',
        ),
        (
            'c.evaluation.thinking = dict(budget=1.5)',
            'config.evaluation.thinking.budget=1.5: must be a whole number, at least 0',
        ),
        ('c.mesh = dict(data=0.5)', 'config.mesh.data=0.5: must be a whole number, at least -1'),
        (
            "c.model.rope_scaling = dict(name='linear', factor=0.0)",
            'config.model.rope_scaling.factor=0.0: must be above 0.',
        ),
        (
            "c.model.rope_scaling = dict(name='longrope', short_factor=(1.0, float('nan')), "
            'long_factor=(1.0,), '
            'original_max_position_embeddings=8)',
            'short_factor=(1.0, nan): entry 1, nan, must be a number, above 0.',
        ),
        (
            "c.train.data.source = dict(name='jsonl', path='x', limit=0)",
            'config.train.data.source.limit=0: must be at least 1 or None',
        ),
        (
            "c.train.data.source = dict(name='tracking', size=5, modulus=1)",
            'modulus=1: must be from 2 to 1000; nearest: 2.',
        ),
        (
            "c.train.data.source = dict(name='bayes', size=5, dropout=1.0)",
            'dropout=1.0: must be at least 0 and below 1',
        ),
        (
            "c.train.data.source = dict(name='countdown', size=5, attempts=0)",
            'attempts=0: must be from 1 to 1000; nearest: 1.',
        ),
        (
            'c.train.steps = 2.5',
            "raised TypeError Could not override field 'steps' (reference). 2.5 is of original "
            "type <class 'float'>",
        ),
        (
            "c.train.update(batch_size='96')",
            "raised TypeError Could not override field 'batch_size' (reference). 96 is of",
        ),
        (
            'c.train.data.packing = 1',
            "raised TypeError Could not override field 'packing' (reference). 1 is of",
        ),
        ('c.train.steps = None', 'config.train.steps=None: must be a whole number, at least 1.'),
        (
            "c.tokenizer = dict(name='sentencepiece', vocab_size=-5)",
            'config.tokenizer.vocab_size=-5: must be at least 1; nearest: 1.',
        ),
    ],
)
def test_absurd_values_in_a_file_are_refused_in_one_line(line, words, tmp_path):
    body = textwrap.indent(f'c = base.get_config()\n{line}\nreturn c', '    ')
    (tmp_path / 'mine.py').write_text(f'from configs import base\n\ndef get_config():\n{body}\n')
    with pytest.raises(UserError) as error:
        configs.load(str(tmp_path / 'mine.py'))
    assert words in str(error.value) and '\n' not in str(error.value)


def test_a_config_that_was_changed_after_it_was_loaded_is_checked_again(tmp_path):
    config = configs.load(str(ROOT / 'configs/sft.py'))
    with config.unlocked():
        config.train.optimizer.clip_norm = -1.0
    with pytest.raises(UserError, match='config.train.optimizer.clip_norm=-1.0: must be above 0'):
        run(config, tmp_path)


TOGETHER = {
    'grpo.min_tokens=30': 'config.grpo.min_tokens=30: must be below max_completion_length=30, '
    'where every completion ends; nearest: 29.',
    'grpo.thinking.budget=31': 'config.grpo.thinking.budget=31: must be below '
    'max_completion_length=30',
    'evaluation.min_tokens=99': 'config.evaluation.min_tokens=99: must be below '
    'max_completion_length=30',
    'evaluation.thinking.budget=30': 'config.evaluation.thinking.budget=30: must be below '
    'max_completion_length=30',
    'evaluation.samples=4 evaluation.temperature=0': 'config.evaluation.samples=4: with '
    'temperature=0 they would be 4 times',
    'sft.optimizer.weight_decay=400': 'config.sft.optimizer.weight_decay=400: with '
    'learning_rate.peak=0.003 an update takes 1.2 times each',
    'grpo.optimizer.weight_decay=1e6': 'config.grpo.optimizer.weight_decay=1e+06: with '
    'learning_rate.peak=0.0002',
}


@pytest.mark.parametrize('overrides', TOGETHER)
def test_settings_that_mean_nothing_together_are_refused_before_anything_runs(overrides, tmp_path):
    pairs = [tuple(override.split('=', 1)) for override in overrides.split()]
    with pytest.raises(UserError) as error:
        run(configs.load(str(ROOT / 'configs/quickstart.py'), pairs), tmp_path)
    assert TOGETHER[overrides] in str(error.value) and '\n' not in str(error.value)
    assert not list(tmp_path.glob('stages/*'))


def test_a_smoke_run_keeps_numbers_of_tokens_within_its_short_completions():
    pairs = [
        ('grpo.min_tokens', '20'),
        ('grpo.thinking.budget', '25'),
        ('evaluation.min_tokens', '9'),
        ('evaluation.thinking.budget', '3'),
    ]
    config, _ = programs.load_config(str(ROOT / 'configs/quickstart.py'), [], smoke=True)
    assert (config.grpo.min_tokens, config.grpo.thinking.budget) == (0, 0)
    loaded = shrink(configs.load(str(ROOT / 'configs/quickstart.py'), pairs))
    assert (
        loaded.grpo.max_completion_length,
        loaded.grpo.min_tokens,
        loaded.grpo.thinking.budget,
    ) == (8, 4, 4)
    assert (loaded.evaluation.min_tokens, loaded.evaluation.thinking.budget) == (4, 3)


@pytest.mark.parametrize(
    ('stage', 'updates', 'words'),
    [
        (
            dict(steps=10, learning_rate=dict(warmup_steps=30)),
            10,
            'has 10 updates and learning_rate.warmup_steps=30: .* 33% of its peak',
        ),
        (dict(steps=10, learning_rate=dict(warmup_steps=30)), 40, ''),
        (dict(steps=30, learning_rate=dict(warmup_steps=30)), 30, ''),
        (dict(steps=2, learning_rate=dict(warmup_steps=30)), 2, ''),
        (dict(steps=10, learning_rate=dict()), 10, ''),
    ],
)
def test_a_learning_rate_that_never_rises_is_said(stage, updates, words, capsys):
    cautions.say(ml_collections.ConfigDict(stage), 'sft', {'w': np.zeros(2, np.float32)}, updates)
    error = capsys.readouterr().err
    assert re.fullmatch(f'warning: stage sft {words}\\.\n', error) if words else not error
