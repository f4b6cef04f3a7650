"""Shrinks any config to a run of seconds: the same code, one layer, two steps a stage."""

from collections.abc import Sequence

import ml_collections

from reasonjax import config as configs

MODEL = dict(vocab_size=0, dim=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp_dim=64)
STAGE = dict(
    steps=2,
    batch_size=4,
    num_prompts=4,
    num_generations=2,
    prompts_at_once=0,
    max_completion_length=8,
    log_every=1,
    eval_every=1,
    checkpoint_every=1,
    reward_workers=1,
    log_completions_every=1,
    min_reward=0.0,
)
EVALUATION = dict(batch_size=4, max_completion_length=8, overlong='drop')
DATA_LIMIT = 64


def shrink(
    config: ml_collections.ConfigDict, overrides: Sequence[tuple[str, str]] = ()
) -> ml_collections.ConfigDict:
    """Returns a small copy of a loaded config; a model that `init` names keeps its size. Overrides
    are applied last."""
    c = config.copy_and_resolve_references().unlock()
    if not c.init:
        c.model.update({k: v for k, v in MODEL.items() if k in c.model})
    for name in set(c.stages) & set(c.keys()):
        stage = c[name]
        for key, value in STAGE.items():
            if key in stage:
                stage[key] = min(stage[key], value) if key in ('steps', 'minibatches') else value
        if 'minibatches' in stage:
            stage.minibatches = min(stage.minibatches, 2)
        if 'accumulation' in stage:
            stage.accumulation = min(stage.accumulation, 2)
        if 'data' in stage:
            _shorten(stage.data.source)
            # A vocabulary learnt from a few rows makes longer texts of the same rows.
            stage.data.overlong = 'drop'
        _within(stage)
    c.evaluation.update({k: v for k, v in EVALUATION.items() if k in c.evaluation})
    _within(c.evaluation)
    _shorten(c.evaluation.task, 8)
    if 'vocab_size' in c.tokenizer:
        c.tokenizer.vocab_size = min(c.tokenizer.vocab_size, 512)
    for key, value in overrides:
        configs.override(c, key, value)
    c.lock()
    return c


def _within(group: ml_collections.ConfigDict) -> None:
    """Keeps numbers of tokens below the shortened completion."""
    for owner, key in ((group, 'min_tokens'), (group.get('thinking', {}), 'budget')):
        if key in owner:
            owner[key] = min(owner[key], group.max_completion_length // 2)


def _shorten(source: ml_collections.ConfigDict, number: int = DATA_LIMIT) -> None:
    for key in ('size', 'limit'):
        if key in source:
            source[key] = number if source[key] is None else min(source[key], number)
