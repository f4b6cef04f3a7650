"""The one error a user can cause, and the nearest-spelling hint that goes with it."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Bad config, data or workdir. The message names key, file and row, what was expected, and the
    nearest valid choice.

    Programs print it without a traceback and exit with status 2.
    """


class Stopped(Exception):
    """The program was asked to stop (see `stopping`), and has saved what there was to save; the
    message says where.

    Programs exit with `status`, EX_TEMPFAIL of sysexits.h: the same command may be given again.
    """

    status = 75


def nearest(word: str, choices: Iterable[str]) -> str:
    """Returns ' Did you mean "x"?' for the choice most like `word`, or '' where nothing is
    close."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f' Did you mean "{close[0]}"?' if close else ''


def check_choice(start: str, value: Any, choices: Iterable[str], known: str = 'Known') -> None:
    """Checks that a value is among the choices.

    Args:
      start: of the message: key and value, and what is wrong, without the full stop.
      value: what was given.
      choices: what it may be.
      known: what the message calls the choices.

    Raises:
      UserError: it is not; names the nearest of them, and all.
    """
    choices = list(choices)
    if value not in choices:
        raise UserError(f'{start}.{nearest(str(value), choices)} {known}: {listing(choices)}.')


def listing(choices: Iterable[str]) -> str:
    """Returns the choices, sorted and comma-separated, as errors print them."""
    return ', '.join(sorted(choices))


def one_line(text: str, most: int = 300) -> str:
    """Returns a text of unknown origin as a part of a message: its white space as single spaces,
    what is beyond `most` characters cut."""
    text = ' '.join(text[: 10 * most].split())
    return text if len(text) <= most else f'{text[:most]}...'


def divisor(number: int, wanted: int) -> int:
    """Returns the divisor of `number` nearest to `wanted`."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - wanted))


def show(value: Any, length: int = 80) -> str:
    """Returns how Python shows a value, cut to about `length` characters, whatever its own `repr`
    does."""
    if isinstance(value, str | bytes) and len(value) > length:
        value = value[:length]  # showing all of it first would take as long as it is
        return f'{value!r}...'
    try:
        text = repr(value)
    except BaseException as error:  # noqa: B036, of others' code; also integers of thousands of digits
        return f'<{type(value).__name__} that cannot be shown: {type(error).__name__}>'
    return text if len(text) <= length else f'{text[:length]}...'
