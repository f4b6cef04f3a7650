"""What may follow the number of an answer: a percent sign, a power of a thousand, a currency, a
unit, a few words."""

import re
from typing import NamedTuple

_ALIASES = {
    'mm': 'mm millimeter millimetre',
    'cm': 'cm centimeter centimetre',
    'm': 'm meter metre',
    'km': 'km kilometer kilometre',
    'inch': 'in inch inches',
    'ft': 'ft foot feet',
    'yd': 'yd yard',
    'mile': 'mi mile',
    'mg': 'mg milligram',
    'g': 'g gram gramme',
    'kg': 'kg kilo kilogram',
    'lb': 'lb pound',
    'oz': 'oz ounce',
    'ton': 't ton tonne',
    'ml': 'ml milliliter millilitre',
    'l': 'l liter litre',
    'gallon': 'gal gallon',
    'ms': 'ms millisecond',
    's': 's sec second',
    'min': 'min minute',
    'h': 'h hr hour',
    'day': 'day',
    'week': 'week',
    'month': 'month',
    'year': 'yr year',
    '$': '$ usd dollar buck',
    'cent': 'cent',
    'mile/h': 'mph',
    'km/h': 'kph kmh',
    'rpm': 'rpm',
    'bpm': 'bpm',
    'fps': 'fps',
    'psi': 'psi',
    'degree': 'degree deg',
    'mb': 'mb',
    'gb': 'gb',
    **{sign: sign for sign in '\u20a9\u20bd\u20ba\u20ab\u20b1\u0e3f\u20b4\u20a6\u20aa'},
    '\u20ac': '\u20ac eur euro',
    '\u00a3': '\u00a3 gbp',
    '\u00a5': '\u00a5 yen jpy',
    '\u20b9': '\u20b9 rs inr rupee',
}
_UNITS = {alias: unit for unit, aliases in _ALIASES.items() for alias in aliases.split()}
CURRENCIES = '$\u20ac\u00a3\u00a5\u20b9\u20a9\u20bd\u20ba\u20ab\u20b1\u0e3f\u20b4\u20a6\u20aa'
_POWERS = {'square': '2', 'sq': '2', 'squared': '2', 'cubic': '3', 'cu': '3', 'cubed': '3'}
_SCALES = {
    'hundred': 100,
    'thousand': 10**3,
    'million': 10**6,
    'billion': 10**9,
    'trillion': 10**12,
}
# Words that go on with the calculation, or with a second number: what follows them is no unit.
_CALCULATING = frozenset(
    'and or plus minus over mod modulo divided multiplied than choose factorial sqrt pi sin cos '
    'tan cot sec csc arcsin arccos arctan '
    'log ln exp min max gcd lcm to not point half quarter third'.split()
)
_TOKEN = re.compile(
    r"([A-Za-z]+(?:['-][A-Za-z]+)*)\.?|(\^\s*\{?\s*[23]\s*\}?|[23](?!\d))|(/)|(["
    + CURRENCIES
    + r'])|\s+'
)
_PERCENT = re.compile(r'(?:%|per\s?cents?\b|pct\b)\.?', re.I)
_ORDINAL = re.compile(r'(?:st|nd|rd|th)\b')
_MOST_WORDS = 10


class Suffix(NamedTuple):
    """What follows a number.

    Attributes:
      scale: the number is to be multiplied by it.
      percent: it is said to be one in a hundred.
      unit: a unit or currency that is known, or ''.
    """

    scale: int = 1
    percent: bool = False
    unit: str = ''


def read_suffix(text: str) -> Suffix | None:
    """Reads the unit or words after a number; None where the number is part of something else."""
    ordinal = _ORDINAL.match(text)
    if ordinal:
        text = text[ordinal.end() :]
    rest, percent = text.strip(), False
    if match := _PERCENT.match(rest):
        rest, percent = rest[match.end() :].strip(), True
    if not rest:
        return Suffix(percent=percent)
    tokens, at = [], 0
    while at < len(rest):
        match = _TOKEN.match(rest, at)
        if match is None or len(tokens) > _MOST_WORDS:
            return None
        at = match.end()
        word, power, per, currency = match.groups()
        if word or power or per or currency:
            tokens.append(
                word.lower() if word else f'^{power.strip("^{} ")}' if power else per or currency
            )
    scale = 1
    while tokens and tokens[0].removesuffix('s') in _SCALES:
        scale *= _SCALES[tokens.pop(0).removesuffix('s')]
    if not tokens:
        return Suffix(scale, percent)
    if _CALCULATING & set(tokens):
        return None
    if (
        tokens[0] in ('/', 'per')
        and len(tokens) > 1
        and (len(tokens[1]) > 2 or _named(tokens[1]) == tokens[1] != 'm')
    ):
        return Suffix(scale, percent)  # so much for each
    known, length = _unit(tokens)
    attached = text[:1].isalpha() and not ordinal
    if (
        known
        and (length == len(tokens) or not attached)
        and not (known == 'inch' and tokens[0] == 'in' and len(tokens) > 1)
    ):
        single = attached and len(tokens[0]) == 1  # 5m may be five times m
        return None if single or _is_variable(tokens, length) else Suffix(scale, percent, known)
    return Suffix(scale, percent) if percent or (not attached and _are_words(tokens)) else None


def _unit(tokens: list[str]) -> tuple[str, int]:
    """Returns the unit that the first tokens spell ('' for none), and how many tokens do."""
    unit, at = '', 0
    while at < len(tokens):
        power = _POWERS.get(tokens[at], '')
        name = _named(tokens[at + bool(power)]) if at + bool(power) < len(tokens) else ''
        if not name:
            break
        at += 1 + bool(power)
        if (
            name == 'degree'
            and tokens[at : at + 1]
            and tokens[at] in ('c', 'f', 'celsius', 'fahrenheit')
        ):
            at += 1
        if at < len(tokens) and (tokens[at][0] == '^' or tokens[at] in ('squared', 'cubed')):
            power = tokens[at].lstrip('^') if tokens[at][0] == '^' else _POWERS[tokens[at]]
            at += 1
        unit += name + power
        if (
            at + 1 < len(tokens)
            and tokens[at] in ('/', 'per')
            and (_named(tokens[at + 1]) or tokens[at + 1] in _POWERS)
        ):
            unit, at = f'{unit}/', at + 1
        else:
            break
    return unit.rstrip('/'), at


def _named(word: str) -> str:
    return _UNITS.get(word) or (_UNITS.get(word.removesuffix('s'), '') if len(word) > 2 else '')


def _is_variable(tokens: list[str], start: int) -> bool:
    return start < len(tokens) and len(tokens[-1]) == 1 and tokens[-1].isalpha()


def _are_words(tokens: list[str]) -> bool:
    first = tokens[0]
    spoken = first in _POWERS or (len(first) >= 3 and any(vowel in first for vowel in 'aeiouy'))
    return (
        spoken
        and all(token[0].isalpha() or token in '/' for token in tokens)
        and not _is_variable(tokens, 0)
    )
