"""Checks of the knobs that generated tasks share."""

from collections.abc import Sequence
from typing import Any

from reasonjax.errors import UserError


def whole(task: str, knob: str, value: Any, lowest: int, highest: int) -> int:
    """Returns `value` where it is a whole number from `lowest` to `highest`.

    Raises:
      UserError: it is not; names the nearest.
    """
    if isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest:
        return value
    near = (
        f' Nearest: {min(max(round(value), lowest), highest)}.'
        if isinstance(value, int | float) and abs(value) < 1e9
        else ''
    )
    raise UserError(
        f'{task}: {knob} must be a whole number from {lowest} to {highest}, got {value!r}.{near}'
    )


def levels(task: str, values: Sequence[int], lowest: int, highest: int) -> tuple[int, ...]:
    """Returns the levels as a tuple where there is one at least, and each is a whole number from
    `lowest` to `highest`.

    Raises:
      UserError: otherwise.
    """
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise UserError(
            f'{task}: levels must be whole numbers from {lowest} to {highest}, one at least, got '
            f'{values!r}.'
        )
    return tuple(whole(task, 'levels', level, lowest, highest) for level in values)
