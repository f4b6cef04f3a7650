"""Transforms: `(example, rng, *, knobs) -> iterable of examples`, on the host, applied to each row
in the order the config lists them.

An example that comes out has the columns of one of `reasonjax.data.forms`; every other column
survives and reaches the reward functions. A transform may return several examples or none. `rng` is
the row's own generator: the same draws on every restart.
"""

from reasonjax.methods.transforms.columns import (
    chat,
    constants,
    messages,
    prompt_completion,
    rename,
)
from reasonjax.methods.transforms.forms import chosen_only, correct_steps, desirable_only, unpair
from reasonjax.methods.transforms.noise import static_noise
from reasonjax.methods.transforms.thoughts import drop_thoughts, fold_thoughts
from reasonjax.methods.transforms.word_problems import gsm8k

__all__ = [
    'chat',
    'chosen_only',
    'constants',
    'correct_steps',
    'desirable_only',
    'drop_thoughts',
    'fold_thoughts',
    'gsm8k',
    'messages',
    'prompt_completion',
    'rename',
    'static_noise',
    'unpair',
]
