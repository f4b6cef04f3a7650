"""Transforms between the forms of `reasonjax.data.forms`."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from reasonjax.data.pairs import prompt_and_answers
from reasonjax.errors import UserError
from reasonjax.methods.transforms.columns import Example, take


def chosen_only(example: Example, rng: np.random.Generator) -> Iterable[dict[str, Any]]:
    """Makes a preference row a demonstration of the chosen answer; `rejected` is left out.

    Raises:
        UserError: not a preference row.
    """
    prompt, chosen, _ = _pair(example, 'chosen_only')
    return [_without(example, 'chosen', 'rejected') | {'prompt': prompt, 'completion': chosen}]


def unpair(example: Example, rng: np.random.Generator) -> Iterable[dict[str, Any]]:
    """Makes a preference row two unpaired rows: the chosen answer with label True, the rejected one
    with label False.

    Raises:
        UserError: not a preference row.
    """
    prompt, *answers = _pair(example, 'unpair')
    rest = _without(example, 'chosen', 'rejected') | {'prompt': prompt}
    return [
        {**rest, 'completion': answer, 'label': label}
        for answer, label in zip(answers, (True, False), strict=True)
    ]


def desirable_only(example: Example, rng: np.random.Generator) -> Iterable[dict[str, Any]]:
    """Makes an unpaired row with label True a demonstration; a row with label False makes none.

    Raises:
        UserError: no label, or one that is not true or false.
    """
    label = take(example, 'label', 'desirable_only')
    if label not in (0, 1):
        raise UserError(f'column "label" (desirable_only) must be true or false, found {label!r}')
    return [_without(example, 'label')] if label else []


def correct_steps(
    example: Example, rng: np.random.Generator, *, separator: str = '\n'
) -> Iterable[dict[str, Any]]:
    """Makes a stepwise row a demonstration, if every step is right; any other row makes none.

    Args:
        example: an example with `prompt`, and `completions` and `labels` of one length.
        rng: not used.
        separator: what stands between two steps.

    Raises:
        UserError: no such columns, steps that are not texts, or labels for other steps.
    """
    steps, labels = (
        take(example, 'completions', 'correct_steps'),
        take(example, 'labels', 'correct_steps'),
    )
    if len(steps) != len(labels) or not all(isinstance(step, str) for step in steps):
        raise UserError(
            'columns "completions" and "labels" (correct_steps) must be lists of one length, of '
            'texts and labels'
        )
    if not all(labels):
        return []
    return [_without(example, 'completions', 'labels') | {'completion': separator.join(steps)}]


def _pair(example: Example, knob: str) -> tuple[Any, Any, Any]:
    take(example, 'chosen', knob)
    take(example, 'rejected', knob)
    return prompt_and_answers(example)


def _without(example: Example, *names: str) -> dict[str, Any]:
    return {key: value for key, value in example.items() if key not in names}
