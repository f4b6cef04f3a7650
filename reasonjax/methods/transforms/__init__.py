"""Transforms: `(example, rng, *, knobs) -> iterable of examples`, on the host, applied to each row in the order the
config lists them.

An example that comes out has `prompt` and `completion`, or `messages`, or `text`; every other column survives and
reaches the reward functions. A transform may return several examples or none. `rng` is the row's own generator: the
same draws on every restart.
"""

from reasonjax.methods.transforms.columns import chat, messages, prompt_completion
from reasonjax.methods.transforms.word_problems import gsm8k

__all__ = ['chat', 'gsm8k', 'messages', 'prompt_completion']
