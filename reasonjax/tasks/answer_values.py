r"""What an answer means: a number, a list, set, tuple or interval of answers, or, where it is none
of these, its words.

The rules:

* Numbers are exact: `1/2`, `0.5`, `\frac12` and `5e-1` are equal, 0.333 and 1/3 are not. `1,234`,
  `1 234`, `1'234`, `1{,}234`, `1.234.567` and `1.234,56` have thousands; a decimal comma counts
  only where it can be nothing else (so `1,2` is a list of two).
* What is said of a number beside its size is dropped where only one side says it: `18 cm`, `$18`
  and `18 apples` equal 18. Units and currencies that both sides state must agree: 18 cm is not 18
  m, $18 is not 18 euros.
* A number with a percent sign counts as it is written, as usual in GSM8K and MATH, and as what it
  means: 50% equals 50, and it equals 0.5. Without the sign, 50 and 0.5 differ.
* `x = 18` equals 18, and not `y = 18`; `total cost = 18` and `3 + 15 = 18` are 18.
* `1, 2`, `2 and 1`, `\{1, 2\}` are equal: no order is stated. `(1, 2)`, `[1, 2]`, `(1, 2]` and `[1,
  2)` differ from these, and from each other.
* Anything else is compared as it is written, apart from how LaTeX spells it; words without regard
  to case.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from reasonjax.tasks.answer_numbers import Number, read_number, same_amount
from reasonjax.tasks.answer_spelling import simplify_answer, simplify_expression

LONGEST = 1000  # characters; a longer answer is compared as it is written
_DEEPEST = 6  # answers within answers


class Group(NamedTuple):
    """Several answers. `kind`: '{}' where they have no order, 'u' for a union, else the two
    brackets around them."""

    kind: str
    items: tuple


class Named(NamedTuple):
    """An answer that says what it is the value of."""

    name: str
    value: 'Value'


class Words(NamedTuple):
    """Anything else: `text` to compare, and how it was `written`."""

    text: str
    written: str


Value = Number | Group | Named | Words


@functools.lru_cache(8192)
def read_value(text: str) -> Value:
    """Reads an answer by the rules of this module; any text has a value."""
    if len(text) > LONGEST:
        return Words(text.strip(), text)
    return _read(simplify_answer(text), 0)


def same_value(a: Value, b: Value, same_words: Callable[[Value, Value], bool]) -> bool:
    """Returns whether two values are equal.

    Args:
      a, b: in either order.
      same_words: compares two of which at least one is `Words` and the other is not a group.
    """
    if isinstance(a, Named) and isinstance(b, Named):
        return a.name == b.name and same_value(a.value, b.value, same_words)
    if isinstance(a, Named) or isinstance(b, Named):
        a, b = (x.value if isinstance(x, Named) else x for x in (a, b))
        return same_value(a, b, same_words)
    if isinstance(a, Group) and isinstance(b, Group):
        if a.kind != b.kind or len(a.items) != len(b.items):
            return False
        if a.kind not in ('{}', 'u'):
            return all(same_value(x, y, same_words) for x, y in zip(a.items, b.items))
        return _same_in_any_order(a.items, list(b.items), same_words)
    if isinstance(a, Group) or isinstance(b, Group):
        return False
    if isinstance(a, Number) and isinstance(b, Number):
        stated = {unit for unit in (a.unit or '%' * a.percent, b.unit or '%' * b.percent) if unit}
        return len(stated) <= 1 and same_amount(a, b)
    return same_words(a, b)


def same_spelling(a: Value, b: Value) -> bool:
    """Returns whether two values are words written alike; compares words for `same_value`."""
    return isinstance(a, Words) and isinstance(b, Words) and a.text == b.text


def _same_in_any_order(items: Sequence[Value], left: list[Value], same_words: Callable) -> bool:
    for item in items:
        place = next(
            (i for i, other in enumerate(left) if same_value(item, other, same_words)), None
        )
        if place is None:
            return False
        left.pop(place)
    return True


_IN = re.compile(r'(\\?[A-Za-z]+(?:_\w)?)\s*\\in(?![A-Za-z])\s*')
_ABOUT = re.compile(
    r'(?:\\(?:approx|Rightarrow|Longrightarrow|implies|therefore)(?![A-Za-z])|=>|-+>|=|~'
    r'|(?:about|approximately|approx\.?|roughly|around|exactly|only|just|nearly)\b)\s*',
    re.I,
)
_NAME = re.compile(r'(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\(\w\))?)(?: [A-Za-z]+){0,4}')
_VARIABLE = re.compile(r'\\?[A-Za-z](?:_\{?\w+\}?)?(?:\(\w\))?|\\[A-Za-z]+')
_VARIABLES = re.compile(r'\( ?[A-Za-z](?:_\w)?(?: ?, ?[A-Za-z](?:_\w)?)+ ?\)')
_UNNAMED = re.compile(
    r'[^A-Za-z]*(?:\\(?:frac|times|cdot|div|sqrt|binom|pi|pm|log|ln|(?:arc)?(?:sin|cos|tan|cot))(?![A-Za-z])[^A-Za-z]*)*'
)
_QUOTED = re.compile(r"""'[^']+'|"[^"]+\"""")
_FACTORIAL = re.compile(r'[\d)]!$')
_OPENING = {'(': ')', '[': ']', '\u2983': '\u2984', '{': '}'}
_CLOSING = {')', ']', '\u2984', '}'}


def _read(text: str, depth: int) -> Value:
    if depth > _DEEPEST or not text:
        return Words(text, text)
    while (
        text[:1] == '{' and _closed_at(text) == len(text) - 1 and len(_split(text[1:-1], ',')) == 1
    ):
        text = text[1:-1].strip()
    number = read_number(text)
    if number is not None:
        return number
    if about := _ABOUT.match(text):
        return _read(text[about.end() :], depth + 1)
    if named := _IN.match(text):
        return Named(named[1], _read(text[named.end() :], depth + 1))
    equation = _equation(text, depth)
    if equation is not None:
        return equation
    parts = _split(text, r'\cup')
    if len(parts) > 1:
        return Group('u', tuple(_read(part, depth + 1) for part in parts))
    if text[:1] in _OPENING and _closed_at(text) == len(text) - 1:
        return _bracketed(text, depth)
    parts = _listed(text)
    if len(parts) == 1 and text.count(r'\pm') == 1:
        parts = [text.replace(r'\pm', sign).strip().removeprefix('+').strip() for sign in '+-']
    if len(parts) > 1 and all(parts):
        return Group('{}', _flat(_read(part, depth + 1) for part in parts))
    return Words(simplify_expression(text), text)


def _equation(text: str, depth: int) -> Value | None:
    left, equals, right = text.partition('=')
    left, right = left.strip(), right.strip()
    differs = left[-1:] == '!' and not _FACTORIAL.search(left)
    if not equals or not right or left[-1:] in '<>:' or differs or _depths(left) != 0:
        return None
    if _VARIABLE.fullmatch(right) and (number := read_number(left)):
        return Named(right, number)
    if (_UNNAMED.fullmatch(left) and left[:1] not in _OPENING) or _VARIABLES.fullmatch(left):
        return _read(right, depth + 1)
    if not _NAME.fullmatch(left) or len(_listed(text)) > 1:
        return None
    value = _read(right, depth + 1)
    return Named(re.sub('[{}]', '', left), value) if _VARIABLE.fullmatch(left) else value


def _bracketed(text: str, depth: int) -> Value:
    inner = text[1:-1].strip()
    if not inner or text[0] == '[' == text[-1:]:
        return Words(simplify_expression(text), text)
    parts = _split(inner, ';') if ';' in inner else _split(inner, ',')
    kind = '{}' if text[0] in '{\u2983' else text[0] + text[-1]
    if len(parts) == 1 and kind == '{}':
        return Group('{}', _flat([_read(inner, depth + 1)]))
    if len(parts) == 1:
        # a list of one, as text
        is_inner = kind == '()' or (kind == '[]' and _QUOTED.fullmatch(inner))
        return (
            _read(inner.strip('"\''), depth + 1)
            if is_inner
            else Words(simplify_expression(text), text)
        )
    items = (_read(part, depth + 1) for part in parts)
    return Group(kind, _flat(items) if kind == '{}' else tuple(items))


def _flat(items: Sequence[Value]) -> tuple:
    """Flattens unordered groups among the items, such as the two values of `1 \\pm 2`."""
    flat = []
    for item in items:
        flat.extend(item.items if isinstance(item, Group) and item.kind == '{}' else [item])
    return tuple(flat)


def _depths(text: str) -> int:
    """Returns how many brackets are open at the end of a text."""
    return sum((c in _OPENING) - (c in _CLOSING) for c in text)


def _closed_at(text: str) -> int:
    """Returns where the bracket at the start is closed, by any kind (as in intervals); else -1."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0:
            return i
    return -1


def _split(text: str, separator: str) -> list[str]:
    """Splits a text at separators outside of brackets. A comma that may separate thousands is none
    where other commas have a space after them."""
    spaced = separator == ',' and ', ' in text
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        depth += (text[i] in _OPENING) - (text[i] in _CLOSING)
        if (
            depth == 0
            and text.startswith(separator, i)
            and not (spaced and _THOUSANDS.match(text, max(0, i - 1)))
        ):
            parts.append(text[start:i].strip())
            start = i = i + len(separator)
        else:
            i += 1
    return [*parts, text[start:].strip()]


_THOUSANDS = re.compile(r'\d,\d{3}(?!\d)')
_AND = re.compile(r'\s*,?\s+(?:and|or)\s+')


def _listed(text: str) -> list[str]:
    """Splits a list that has no brackets around it: at commas, semicolons, 'and', 'or'."""
    if _depths(text) != 0:
        return [text]
    joined = _AND.sub(' \x04 ', text)
    separator = ';' if ';' in text else ','
    return [part for section in _split(joined, '\x04') for part in _split(section, separator)]
