"""Numbers as answers write them: separators, fractions, powers of ten, units, currencies."""

import re
from fractions import Fraction
from typing import NamedTuple

from reasonjax.tasks.answer_units import CURRENCIES, read_suffix

_MOST_DIGITS = 800  # of a number that is computed with, exponent included


class Huge(NamedTuple):
    """A number that is compared digit by digit: sign, digits without zeros at either end, power of
    ten."""

    sign: str
    digits: str
    exponent: int


class Number(NamedTuple):
    """A number, whether it is a percentage, and its unit where that is known."""

    amount: Fraction | Huge
    percent: bool = False
    unit: str = ''


def same_amount(a: Number, b: Number) -> bool:
    """Returns whether two numbers are equal; a percentage also where it equals what it means."""
    if a.amount == b.amount:
        return True
    if a.percent == b.percent:
        return False
    share, other = (a, b) if a.percent else (b, a)
    return _scaled(share.amount, -2) == other.amount


def _scaled(amount: Fraction | Huge, power: int) -> Fraction | Huge:
    """Returns the amount times a power of ten."""
    if isinstance(amount, Fraction) and abs(power) <= _MOST_DIGITS:
        return amount * Fraction(10) ** power
    return amount._replace(exponent=amount.exponent + power) if isinstance(amount, Huge) else amount


_MAGNITUDES = [
    (re.compile(pattern), thousands, comma)
    for pattern, thousands, comma in (
        (r'\d+\.?\d*|\.\d+', '', '.'),
        (r'[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?', ',', '.'),
        (r'[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d*)?', ',', '.'),
        (r'[1-9]\d{0,2}(?: \d{3})+(?:\.\d*)?', ' ', '.'),
        (r"[1-9]\d{0,2}(?:'\d{3})+(?:\.\d*)?", "'", '.'),
        (r'[1-9]\d{0,2}(?:_\d{3})+(?:\.\d*)?', '_', '.'),
        (r'[1-9]\d{0,2}(?:\.\d{3}){2,}', '.', ','),
        (r'[1-9]\d{0,2}(?:\.\d{3})+,\d+', '.', ','),
        (r'[1-9]\d{0,2}(?: \d{3})+,\d+', ' ', ','),
        (r"[1-9]\d{0,2}(?:'\d{3})+,\d+", "'", ','),
    )
]
_SIGN = re.compile(
    r'([+-]?)\s*(?:(?:US|A|C|NZ|HK)?(['
    + CURRENCIES
    + r'])|(USD|EUR|GBP|Rs\.?|INR)(?![A-Za-z]))?\s*([+-]?)\s*'
)
_DIGITS = re.compile(r"\.?\d(?:[.,'_ ]?\d)*\.?")
_POWER = re.compile(
    r'\s*(?:\*|[xX])\s*10\s*\^\s*(?:\{\s*([+-]?\d{1,12})\s*\}|([+-]?\d{1,12}))|[eE]([+-]?\d{1,12})(?![\w.])'
)
_TEN = re.compile(r'10\s*\^\s*(?:\{\s*([+-]?\d{1,12})\s*\}|([+-]?\d{1,12}))')
_FRACTION = re.compile(r'\\frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))')
_RATIO = re.compile(r'(\d+)\s*/\s*(\d+)(?![\d.,/])')
_MIXED = re.compile(r'(\d+)(?:\s*(?=\\frac)|\s+(?=\d+\s*/\s*\d))')
_DECIMAL_COMMA = re.compile(r'\d+,\d\d')


def read_number(text: str) -> Number | None:
    """Reads a number with all that may stand around it; None where the text is anything else.

    Args:
      text: as `simplify_answer` returns it.
    """
    start = _SIGN.match(text)
    if start[1] and start[4]:
        return None
    negative, currency = '-' in (start[1], start[4]), start[2] or start[3]
    read = _read_amount(text, start.end(), bool(currency) or text[-1:] in CURRENCIES)
    if read is None:
        return None
    amount, end = read
    suffix = read_suffix(text[end:])
    if suffix is None or (currency and suffix.unit and suffix.unit not in CURRENCIES):
        return None
    if suffix.scale > 1:
        amount = _scaled(amount, len(str(suffix.scale)) - 1)
    if negative:
        amount = -amount if isinstance(amount, Fraction) else amount._replace(sign='-')
    unit = (read_suffix(f' {currency.rstrip(".")}') or suffix).unit if currency else suffix.unit
    return Number(amount, suffix.percent, unit)


def _read_amount(text: str, start: int, money: bool) -> tuple[Fraction | Huge, int] | None:
    """Reads an unsigned number from `start` on; returns the number and where it ends, or None."""
    mixed = _MIXED.match(text, start)
    if mixed and (part := _read_fraction(text, mixed.end())):
        return (int(mixed[1]) + part[0], part[1]) if 0 <= part[0] < 1 else None
    if part := _read_fraction(text, start):
        return part
    if ten := _TEN.match(text, start):
        return _decimal('1', int(ten[1] or ten[2])), ten.end()
    digits = _DIGITS.match(text, start)
    if digits is None:
        return None
    plain, end = _magnitude(digits[0]), digits.end()
    if plain is None and money and _DECIMAL_COMMA.fullmatch(digits[0]):
        plain = digits[0].replace(',', '.')
    power = _POWER.match(text, end)
    if plain is None or text[end : end + 1] in ('^', '_', '!', '\\', '*'):
        return (
            None
            if power is None or plain is None
            else (_decimal(plain, _exponent(power)), power.end())
        )
    if power:
        return _decimal(plain, _exponent(power)), power.end()
    over = re.compile(r'\s*/\s*(?=\.?\d)').match(text, end)
    if over is None:
        return _decimal(plain, 0), end
    below = _DIGITS.match(text, over.end())
    top, bottom = _decimal(plain, 0), _decimal(_magnitude(below[0]) or '0', 0)
    quotient = (
        top / bottom
        if isinstance(top, Fraction) and isinstance(bottom, Fraction) and bottom
        else None
    )
    return None if quotient is None else (quotient, below.end())


def _exponent(power: re.Match) -> int:
    return int(next(group for group in power.groups() if group))


def _read_fraction(text: str, start: int) -> tuple[Fraction, int] | None:
    r"""Reads `\frac{1}{2}`, in every spelling, or 1/2."""
    match = _FRACTION.match(text, start)
    if match is None:
        match = _RATIO.match(text, start)
        return (
            (Fraction(int(match[1]), int(match[2])), match.end())
            if match and int(match[2])
            else None
        )
    above, below = (read_number((match[i] or match[i + 1] or '').strip()) for i in (1, 3))
    if (
        not all(x and not x.percent and isinstance(x.amount, Fraction) for x in (above, below))
        or not below.amount
    ):
        return None
    return above.amount / below.amount, match.end()


def _magnitude(text: str) -> str | None:
    """Returns digits with their separators as plain digits with a decimal point; None where the
    separators make no sense."""
    for pattern, thousands, point in _MAGNITUDES:
        if pattern.fullmatch(text):
            return (text.replace(thousands, '') if thousands else text).replace(point, '.')
    return None


def _decimal(text: str, exponent: int) -> Fraction | Huge:
    before, _, behind = text.partition('.')
    digits, exponent = (before + behind).lstrip('0'), exponent - len(behind)
    short = digits.rstrip('0')
    exponent += len(digits) - len(short)
    if not short:
        return Fraction(0)
    if len(short) + abs(exponent) > _MOST_DIGITS:
        return Huge('', short, exponent)
    return Fraction(int(short)) * Fraction(10) ** exponent
