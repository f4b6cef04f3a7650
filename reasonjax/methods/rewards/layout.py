"""Rewards for the form of a completion."""

import functools
import re
from collections.abc import Sequence

from reasonjax.errors import UserError
from reasonjax.methods.rewards.text import text_of

THINK = r'<think>(?!.*<think>).*?</think>.*'


@functools.lru_cache
def _compiled(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UserError(f'format: pattern {pattern!r} is not a regular expression: {error}.') from error


def format(
    prompts: Sequence, completions: Sequence[str | list[dict]], *, pattern: str = THINK, **kwargs
) -> list[float]:
    """1.0 where the whole completion matches a regular expression (the dot matches newlines too), else 0.0.

    The default pattern asks for one `<think>...</think>` at the very start.

    Args:
      prompts: not read.
      completions: N texts or conversations.
      pattern: regular expression for the whole completion.

    Raises:
      UserError: the pattern is not a regular expression.
    """
    expression = _compiled(pattern)
    return [float(expression.fullmatch(text_of(completion)) is not None) for completion in completions]


def think_format_reward(prompts: Sequence, completions: Sequence[str | list[dict]], **kwargs) -> list[float]:
    """TRL's name for `format` with the default pattern."""
    return format(prompts, completions)
