"""Transforms of what assistants think (`reasoning_content`, `thinking`, `reasoning`), for chat
templates that do not read it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from reasonjax.data.forms import COLUMNS
from reasonjax.data.messages import THOUGHTS, is_chat, words
from reasonjax.methods.transforms.columns import Example


def fold_thoughts(
    example: Example,
    rng: np.random.Generator,
    *,
    opening: str = '<think>\n',
    closing: str = '\n</think>\n\n',
) -> Iterable[dict[str, Any]]:
    """Writes the thoughts of assistants into their content, in front of the words.

    Args:
        example: a row; messages without thoughts stay as they are.
        rng: not used.
        opening: what stands before a thought.
        closing: what stands between a thought and the words.
    """

    def folded(message: Mapping[str, Any], key: str) -> dict[str, Any]:
        rest = {name: value for name, value in message.items() if name not in THOUGHTS}
        return rest | {'content': f'{opening}{message[key]}{closing}{words(message)}'}

    return [_changed(example, folded)]


def drop_thoughts(example: Example, rng: np.random.Generator) -> Iterable[dict[str, Any]]:
    """Leaves the thoughts of assistants out of what is learnt; `data/dropped_keys` counts them.

    Args:
        example: a row.
        rng: not used.
    """

    def dropped(message: Mapping[str, Any], key: str) -> dict[str, Any]:
        # Under a name that no template reads: such keys are counted.
        return {name: value for name, value in message.items() if name not in THOUGHTS} | {
            'dropped_thoughts': message[key]
        }

    return [_changed(example, dropped)]


def _changed(
    example: Example, change: Callable[[Mapping[str, Any], str], dict[str, Any]]
) -> dict[str, Any]:
    """Changes every assistant message of a row that has a thought. `change` gets the message and
    the key of the thought."""
    changed = dict(example)
    for column in COLUMNS:
        if is_chat(changed.get(column)):
            changed[column] = [change(m, key) if (key := _key(m)) else m for m in changed[column]]
    return changed


def _key(message: Mapping[str, Any]) -> str:
    if message.get('role') != 'assistant':
        return ''
    return next(
        (key for key in THOUGHTS if isinstance(message.get(key), str) and message[key].strip()), ''
    )
