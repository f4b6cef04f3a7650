"""The options of a comparison: read and refused without jax, a config or a task."""

import argparse
import math
from typing import NamedTuple

from reasonjax.arena.table import MEASURES
from reasonjax.errors import UserError, check_choice, listing, nearest

KINDS = ('tokens', 'flops', 'seconds')


class Budget(NamedTuple):
    """`amount` of 'tokens' (read to train on, or drawn), 'flops' or 'seconds'."""

    kind: str
    amount: float


def check(options: argparse.Namespace) -> None:
    """Raises UserError where the options of `reasonjax.compare` alone say that they cannot work."""
    check_choice(f'--measure={options.measure}: unknown', options.measure, MEASURES)
    parse_budget(options.budget)
    for text in options.override:
        parse_pair(text)


def parse_budget(text: str) -> Budget | None:
    """Reads 'tokens=1e6', 'flops=1e13' or 'seconds=60'; '' is none.

    Raises:
      UserError: another kind, or not a positive number.
    """
    if not text:
        return None
    kind, equals, amount = text.partition('=')
    if kind not in KINDS or not equals:
        raise UserError(
            f'--budget {text}: expected WHAT=N, WHAT one of {listing(KINDS)}.{nearest(kind, KINDS)}'
        )
    try:
        number = float(amount)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise UserError(f'--budget {text}: "{amount}" is not a positive number.')
    return Budget(kind, number)


def parse_pair(text: str) -> tuple[str, str]:
    """Reads KEY=VALUE of --override.

    Raises:
      UserError: it is not of that form.
    """
    key, equals, value = text.partition('=')
    if not equals or not key:
        raise UserError(f'--override {text}: expected KEY=VALUE, such as train.steps=10.')
    return key.removeprefix('config.'), value
