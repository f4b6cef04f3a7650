"""Reward functions in TRL's signature; no module here imports jax, so reward workers start fast.

`(prompts, completions, <columns>, *, knobs, **kwargs) -> list[float | None]`: one entry per
completion, None where the function has nothing to say about it. Completions are texts, or for
conversations lists of `{'role', 'content'}`. Columns are those of the data's rows, None where a row
lacks one, and `completion_ids`, `terminated` and `rendered_prompts` of what was sampled; see
`reasonjax.sampling.reward_functions`.
"""

from reasonjax.methods.rewards.answer import accuracy
from reasonjax.methods.rewards.layout import format, think_format_reward
from reasonjax.methods.rewards.verified import verified

__all__ = ['accuracy', 'format', 'think_format_reward', 'verified']
