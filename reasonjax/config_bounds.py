"""Bounds of the leaves of a config that are no function's knob."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from reasonjax.bounds import (
    INFINITY,
    AtLeast,
    BelowOne,
    Counted,
    Finite,
    NonNegative,
    OneOf,
    Penalty,
    Positive,
    PositiveFraction,
    Real,
    Seed,
    TemperatureOrGreedy,
    check,
)

# Names of whole numbers from 1 on, from 0 on, and of switches, for `LEAVES`.
FROM_ONE = """
    steps accumulation batch_size log_every keep_checkpoints num_prompts
    num_generations num_iterations minibatches iterations_per_call max_length
    max_prompt_length max_completion_length burst
"""
FROM_ZERO = """
    eval_every checkpoint_every max_nonfinite max_rollbacks prompts_at_once
    reward_workers max_per_prompt dynamic_sampling log_completions_every samples
    min_tokens no_repeat_ngram_size top_k budget times slots cache_length halvings
    prefill_chunk
"""
SWITCHES = """
    packing on_device mask_truncated_completions share_prompts pipelined enabled
    greedy
"""
# The leaves of stages, `evaluation`, `mesh` and `rollout` that are no function's knob, by name,
# wherever they stand; configs/base.py says what each is.
LEAVES = {
    'seed': Seed,
    **dict.fromkeys(('data', 'fsdp', 'expert', 'sequence', 'tensor'), AtLeast(-1)),
    **dict.fromkeys(FROM_ONE.split(), AtLeast(1)),
    **dict.fromkeys(FROM_ZERO.split(), AtLeast(0)),
    **dict.fromkeys(SWITCHES.split(), bool),
    'token_limit': Counted,
    'time_limit': NonNegative,
    'spike_zscore': NonNegative,
    'spike_window': AtLeast(2),
    'temperature': TemperatureOrGreedy,
    'top_p': PositiveFraction,
    'min_p': BelowOne,
    'repetition_penalty': Penalty,
    **dict.fromkeys(('reward_time_limit', 'reward_memory_limit'), Positive),
    'weight': Finite,
    'min_reward': Real(-INFINITY),
    'keep_best_mode': OneOf('max', 'min'),
    'overlong': OneOf('error', 'drop'),
    'rewards_on_error': OneOf('raise', 'drop'),
    'form': OneOf('demonstration', 'preference', 'unpaired', 'stepwise'),
    'cache_dtype': OneOf('', 'int8'),
}


def check_leaves(
    config: Mapping[str, Any], slots: Mapping[str, Any], extra: Mapping[str, Collection[str]]
) -> None:
    """Raises UserError where a leaf that is no function's knob is not within its bound in `LEAVES`.

    Args:
      config: the whole tree.
      slots: keys under which functions are named.
      extra: per slot, the leaves of a function node that are not the function's.
    """
    for key, name, value in leaves(config, slots, extra):
        if name in LEAVES:
            check(value, LEAVES[name], key)


def leaves(
    config: Mapping[str, Any], slots: Mapping[str, Any], extra: Mapping[str, Collection[str]]
) -> Iterator[tuple[str, str, Any]]:
    """Yields (key, name, value) of every leaf of the tree's stages and shared groups that is no
    function's knob; see `check_leaves`."""

    def below(
        node: Mapping[str, Any], key: str, names: Collection[str] | None = None
    ) -> Iterator[tuple[str, str, Any]]:
        for name in node:
            value = node[name]
            if names is not None and name not in names:
                continue
            if not hasattr(value, 'keys'):
                yield f'{key}.{name}', name, value
            elif name not in slots:
                yield from below(value, f'{key}.{name}')
            elif 'name' in value:
                yield from below(value, f'{key}.{name}', extra.get(name, ()))
            else:  # functions side by side
                for one in value:
                    yield from below(value[one], f'{key}.{name}.{one}', extra.get(name, ()))

    for name in config:
        value = config[name]
        if not hasattr(value, 'keys'):
            yield f'config.{name}', name, value
        elif 'kind' in value or name in ('evaluation', 'mesh', 'rollout'):
            yield from below(value, f'config.{name}')
