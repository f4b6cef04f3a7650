"""Rewards for the form of a completion."""

import functools
import re
from collections.abc import Sequence

from reasonjax.errors import UserError
from reasonjax.methods.rewards.text import text_of

THINK = r'<think>(?!.*<think>).*?</think>.*'
# What a generation prompt may end with: thoughts that it has opened for the model, or left out for
# it.
OPENED = re.compile(r'<think>\s*(?:</think>\s*)?\Z')


@functools.lru_cache
def _compiled(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UserError(
            f'format: pattern {pattern!r} is not a regular expression: {error}.'
        ) from error


def format(
    prompts: Sequence,
    completions: Sequence[str | list[dict]],
    rendered_prompts: Sequence[str] | None = None,
    *,
    pattern: str = THINK,
    **kwargs,
) -> list[float]:
    """Scores 1.0 where a regular expression matches the whole completion, else 0.0. The dot matches
    newlines too.

    The default pattern asks for one `<think>...</think>` at the very start. Many chat templates
    write the `<think>` themselves, at the end of the prompt: it then counts as the completion's.
    With a pattern of your own the completion may match with it or without it.

    Args:
      prompts: N prompts; read where there are no `rendered_prompts`, those that are texts.
      completions: N texts or conversations.
      rendered_prompts: N texts, the prompts as the model was given them.
      pattern: regular expression for the whole completion.

    Raises:
      UserError: the pattern is not a regular expression.
    """
    expression, scores = _compiled(pattern), []
    for given, completion in zip(rendered_prompts or prompts, completions, strict=True):
        text = text_of(completion)
        opened = OPENED.search(given) if isinstance(given, str) else None
        ways = (
            [text]
            if opened is None
            else [opened[0] + text]
            if pattern == THINK
            else [text, opened[0] + text]
        )
        scores.append(float(any(expression.fullmatch(way) for way in ways)))
    return scores


def think_format_reward(
    prompts: Sequence,
    completions: Sequence[str | list[dict]],
    rendered_prompts: Sequence[str] | None = None,
    **kwargs,
) -> list[float]:
    """TRL's name for `format` with the default pattern."""
    return format(prompts, completions, rendered_prompts)
