"""What a value may be, as part of its declaration: bounds of knobs and of the programs' flags;
those of the other leaves of a config are in `config_bounds`.

A bound is a type in a signature: `peak: Positive`, `size: AtLeast(1)`, `split: OneOf('train',
'test')`, `limit: AtLeast(1) | None`, `levels: tuple[Between(1, 9), ...]`. Not-a-number is within
none. A float is finite, also as float32 holds it, unless its bound names infinity; above 0 means
above 0 in float32 too. Whole numbers are those of 32 bits.
"""

import argparse
import dataclasses
import inspect
import math
import numbers
import struct
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

from reasonjax.errors import UserError, listing, nearest

LARGEST = 2**31 - 1  # of whole numbers: what the devices count with
# smallest and largest positive numbers of float32; CPUs flush what is smaller to 0
SINGLE = (2.0**-126, (2 - 2.0**-23) * 2.0**127)
INFINITY = math.inf
LONGEST = 60  # characters of a value in a message
NOTHING = inspect.Parameter.empty


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`.

    Attributes:
      low, high: the ends; None where there is none but what 32 bits hold. An infinite end is within
        the range.
      above, below: whether the end itself is left out.
      beside: numbers that are allowed besides, such as 0 for "off".
    """

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False
    beside: tuple[float, ...] = ()

    def text(self) -> str:
        """Describes the range in words; '' where all numbers are within it."""
        low, high = (
            None if end is None or math.isinf(end) else _written(end)
            for end in (self.low, self.high)
        )
        words = [f'{"above" if self.above else "at least"} {low}'] if low else []
        words += [f'{"below" if self.below else "at most"} {high}'] if high else []
        words = (
            [f'from {low} to {high}'] if low and high and not (self.above or self.below) else words
        )
        infinite = [
            text
            for text, end in (('-infinity', self.low), ('infinity', self.high))
            if end is not None and math.isinf(end)
        ]
        return ' or '.join(
            [
                *map(_written, self.beside),
                *[' and '.join(words)] * bool(words),
                *infinite * bool(words),
            ]
        )


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of these texts."""

    values: tuple[str, ...]


def Real(
    low: float | None = None,
    high: float | None = None,
    *,
    above: bool = False,
    below: bool = False,
    beside: tuple = (),
) -> Any:
    """Returns the type of a number within a range; see `Range`."""
    return Annotated[float, Range(low, high, above, below, beside)]


def AtLeast(low: int) -> Any:
    """Returns the type of a whole number of at least `low` that fits in 32 bits."""
    return Annotated[int, Range(low)]


def Between(low: int, high: int) -> Any:
    """Returns the type of a whole number from `low` to `high`, both included."""
    return Annotated[int, Range(low, high)]


def OneOf(*values: str) -> Any:
    """Returns the type of a text that is one of `values`."""
    return Annotated[str, Choice(values)]


Finite = Real()
NonNegative = Real(0)
NonNegativeOrInfinite = Real(0, INFINITY)
Positive = Real(0, above=True)
PositiveOrInfinite = Real(0, INFINITY, above=True)
Fraction = Real(0, 1)
PositiveFraction = Real(0, 1, above=True)
BelowOne = Real(0, 1, below=True)
# Logits are divided by it: below, they would no longer be finite; above, all tokens are equally
# likely.
TemperatureOrGreedy = Real(1e-4, 1e4, beside=(0,))
# Logits are multiplied by it, those of removed tokens (-1e30) too.
Penalty = Real(1e-4, 1e4)
# What `randomness.key` takes apart: jax reads the low 32 bits and drops the rest, so that 2**32
# would draw what 0 does.
Seed = Between(0, 2**32 - 1)
Counted = Between(0, 2**53)  # tokens, which are counted in float64


def fault(value: Any, kind: Any, default: Any = NOTHING) -> str:
    """Says what is wrong with a value.

    Args:
      value: as it is given.
      kind: what it may be: a type, with or without a bound. What is no number, text, truth value or
        tuple of these is not looked at.
      default: offered where no other value is near.

    Returns:
      Words that follow 'KEY=VALUE: ', with the nearest choice; '' where nothing is wrong.
    """
    arms = [
        arm
        for arm in (typing.get_args(kind) if _is_union(kind) else (kind,))
        if arm is not type(None)
    ]
    optional = len(arms) < len(typing.get_args(kind)) if _is_union(kind) else default is None
    if value is None and optional:
        return ''
    faults = [_fault(value, arm, default) for arm in arms]
    if not all(faults):
        return ''
    words, hint = faults[0]
    return f'{words}{" or None" * optional}{hint}.'


def base(kind: Any) -> Any:
    """Strips the bound from a type."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


def _fault(value: Any, kind: Any, default: Any) -> tuple[str, ...]:
    """Returns what is wrong with a value and a hint at the nearest choice; () where nothing is."""
    # A user may annotate with more than bounds.
    of = base(kind)
    bound = next(
        (x for x in getattr(kind, '__metadata__', ()) if isinstance(x, Range | Choice)), None
    )
    if of in (int, float):
        bound = bound or Range(-INFINITY, INFINITY)
        wrong = _number_fault(value, of, bound)
        return (f'must be {wrong}', _hint(value, of, bound, default)) if wrong else ()
    if of is bool:
        return () if isinstance(value, bool) else ('must be True or False', '')
    if of is str:
        known = bound.values if bound else ()
        if not isinstance(value, str):
            return (f'must be a text{f", one of {_listed(known)}" if known else ""}', '')
        if known and value not in known:
            return ('unknown', f'.{nearest(value, known)} Known: {_listed(known)}')
        return ()
    if typing.get_origin(of) is tuple and typing.get_args(of)[1:] == (...,):
        if not isinstance(value, tuple | list):
            return ('must be a list, in brackets', '')
        each = typing.get_args(of)[0]
        return next(
            (
                (f'entry {i}, {shown(x)}, {wrong[:-1]}', '')
                for i, x in enumerate(value)
                if (wrong := fault(x, each))
            ),
            (),
        )
    return ()


def _number_fault(value: Any, of: type, bound: Range) -> str:
    """Describes what a number has to be; '' where the value is within its bound."""
    integral = of is int
    kind = numbers.Integral if integral else numbers.Real
    what = ', '.join(filter(None, ('a whole number' if integral else 'a number', bound.text())))
    if isinstance(value, bool) or not isinstance(value, kind) or value != value:
        return what
    if value in bound.beside:
        return ''
    if integral:
        low, high = bound.low, LARGEST if bound.high is None else bound.high
        if value > high and bound.high is None:
            return f'at most {LARGEST}, which is what 32 bits hold'
        return '' if (low is None or value >= low) and value <= high else bound.text()
    number, single = _single(value)
    if math.isinf(number):
        if number in (bound.low, bound.high):
            return ''
        return ', '.join(filter(None, ('finite', bound.text())))
    if math.isinf(single) and (bound.high if number > 0 else bound.low) is None:
        return f'at {"most" if number > 0 else "least"} {math.copysign(SINGLE[1], number):.8g}, which is what float32 holds'
    within = bound.low is None or (single > bound.low if bound.above else number >= bound.low)
    within &= bound.high is None or (single < bound.high if bound.below else number <= bound.high)
    if within:
        return ''
    as_it_is = (bound.low is None or number > bound.low) and (
        bound.high is None or number < bound.high
    )
    return bound.text() + (', also in float32' if as_it_is else '')


def _written(end: float) -> str:
    return str(end) if isinstance(end, int) else f'{end:.10g}'


def _single(value: Any) -> tuple[float, float]:
    """Returns a number as float64 and as float32: what is too small is 0, too large infinite."""
    try:
        number = float(value)
    except OverflowError:
        return (INFINITY, INFINITY) if value > 0 else (-INFINITY, -INFINITY)
    if abs(number) < SINGLE[0]:
        return number, 0.0
    try:
        return number, struct.unpack('f', struct.pack('f', number))[0]
    except OverflowError:
        return number, math.copysign(INFINITY, number)


def _hint(value: Any, of: type, bound: Range, default: Any) -> str:
    """Suggests the nearest value within the bound, else the default; '' where neither fits."""

    def fits(x: Any) -> bool:
        return x is not NOTHING and x is not None and not _number_fault(x, of, bound)

    near = parse_number(value, of) if isinstance(value, str) else value
    if isinstance(near, numbers.Real) and not math.isnan(number := _single(near)[0]):
        near = near if fits(near) and isinstance(value, str) else _clamped(number, of, bound)
    return (
        f'; nearest: {shown(near)}'
        if fits(near)
        else f'; default: {shown(default)}'
        if fits(default)
        else ''
    )


def _clamped(number: float, of: type, bound: Range) -> float:
    least, most = (-LARGEST - 1, LARGEST) if of is int else (-INFINITY, INFINITY)
    near = min(
        max(number, least if bound.low is None else bound.low),
        most if bound.high is None else bound.high,
    )
    if bound.above and bound.low == 0 and number < 0:
        near = -number  # a sign too many
    if math.isinf(number):
        return near
    near = min(near, *bound.beside, key=lambda x: abs(x - number)) if bound.beside else near
    return round(near) if of is int and not math.isinf(near) else near


def parse_number(text: str, of: type) -> Any:
    """Parses a number; returns the text where it is none or has more digits than Python reads."""
    try:
        return of(text)
    except (ValueError, OverflowError):
        return text


def _listed(values: Collection[str]) -> str:
    return listing(value or '""' for value in values)


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def shown(value: Any) -> str:
    """Formats a value for messages, shortened where it is long."""
    try:
        text = repr(value) if isinstance(value, str) else str(value)
    except ValueError:  # Python's limit on the digits of an integer
        if isinstance(value, int):
            return f'a number of about {int(value.bit_length() * math.log10(2)) + 1} digits'
        return type(value).__name__
    if len(text) <= LONGEST:
        return text
    return f'{text[: LONGEST // 2]}...{text[-LONGEST // 6 :]} ({len(text)} characters)'


def check(value: Any, kind: Any, key: str, default: Any = NOTHING) -> None:
    """Raises UserError where a value is not within its bound, in one line: key, value, what is
    expected, the nearest choice."""
    if wrong := fault(value, kind, default):
        text = f'"{value}"' if isinstance(value, str) and len(value) <= LONGEST else shown(value)
        raise UserError(f'{key}={text}: {wrong}')


def kinds(function: Callable) -> dict[str, tuple[Any, Any]]:
    """Returns types and defaults of a function's knobs (its keyword-only parameters), by name."""
    try:
        signature = inspect.signature(function, eval_str=True)
    # of a user's function: types that exist for type checkers only
    except (NameError, AttributeError, TypeError, SyntaxError):
        signature = inspect.signature(function)
    return {
        p.name: (p.annotation, p.default)
        for p in signature.parameters.values()
        if p.kind is p.KEYWORD_ONLY
    }


def check_knobs(function: Callable, given: Mapping[str, Any], key: str) -> None:
    """Raises UserError where a knob that is given is not within the bound that the function's
    signature declares; `key` is the node's."""
    for name, (kind, default) in kinds(function).items():
        if name in given:
            check(given[name], kind, f'{key}.{name}', default)


def check_fields(instance: Any, key: str) -> None:
    """Raises UserError where a field of a dataclass is not within the bound that its type
    declares."""
    for field in dataclasses.fields(instance):
        default = NOTHING if field.default is dataclasses.MISSING else field.default
        check(getattr(instance, field.name), field.type, f'{key}.{field.name}', default)


def flag(kind: Any) -> Callable[[str], Any]:
    """Returns what argparse takes as `type`: it reads a number and refuses one that is not within
    its bound."""

    def read(text: str) -> Any:
        value = parse_number(text, base(kind))
        if wrong := fault(value, kind):
            raise argparse.ArgumentTypeError(
                f'{text if len(text) <= LONGEST else shown(text)}: {wrong}'
            )
        return value

    return read


def read(text: Any, kind: Any, key: str) -> Any:
    """Parses a number and checks it against its bound.

    Raises:
      UserError: the text is no number, or one outside its bound.
    """
    value = parse_number(text, base(kind)) if isinstance(text, str) else text
    check(value, kind, key)
    return value
