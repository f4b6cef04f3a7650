"""What math-verify is asked, and how: whether two expressions mean the same. It imports sympy;
`answers` imports it where it is needed."""

import re
from typing import Any

import math_verify
import sympy

from reasonjax.tasks.answer_numbers import Huge
from reasonjax.tasks.answer_values import Value, Words, same_spelling

DIGITS = 50  # to which irrational numbers have to agree
# what `simplify_answer` has put for these
WRITTEN = {'\u2983': r'\{', '\u2984': r'\}', '\x03': r'\\'}
_LETTER = re.compile(r'(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])')
_BASE = re.compile(r'\d_\{?\d')


def same_expression(a: Value, b: Value) -> bool:
    """Returns whether two answers, at least one of them an expression, mean the same.

    Numbers are compared exactly, before the library is asked: it rounds to six decimals what it
    takes for floats, and takes differences below 1e-15 for none, so that it finds 1/2006! and
    1/2004! equal.
    """
    if same_spelling(a, b):
        return True
    if _told_apart(_text(a), _text(b)):
        return False
    ours, theirs = (_parsed(_text(x)) for x in (a, b))
    if not ours or not theirs:
        return False
    pairs = [(x, y) for x in ours for y in theirs]
    verdicts = [_same_number(x, y) for x, y in pairs]
    if any(verdict is not None for verdict in verdicts):
        return any(verdicts)
    kinds = {(_kind(x), _kind(y)) for x, y in pairs}
    if all(x != y for x, y in kinds):
        return False
    return math_verify.verify(
        theirs,
        ours,
        float_rounding=DIGITS,
        numeric_precision=DIGITS,
        strict=True,
        timeout_seconds=None,
    )


def _text(value: Value) -> str:
    if isinstance(value, Words):
        return value.written
    amount = value.amount
    return (
        f'{amount.sign}{amount.digits} \\cdot 10^{{{amount.exponent}}}'
        if isinstance(amount, Huge)
        else str(amount)
    )


def _told_apart(a: str, b: str) -> bool:
    """Returns whether texts differ in what the library ignores: base of a number, letter case."""
    letters = [set(_LETTER.findall(text)) for text in (a, b)]
    lowered = [{letter.lower() for letter in names} for names in letters]
    return bool(_BASE.search(a)) != bool(_BASE.search(b)) or (
        letters[0] != letters[1] and lowered[0] == lowered[1]
    )


def _parsed(text: str) -> list:
    for character, latex in WRITTEN.items():
        text = text.replace(character, latex)
    return math_verify.parse(rf'\boxed{{{text}}}', parsing_timeout=None)


def _kind(value: Any) -> str:
    for kind in (sympy.Tuple, sympy.FiniteSet, sympy.Set, sympy.MatrixBase):
        if isinstance(value, kind):
            return kind.__name__
    return 'expression'


def _same_number(x: Any, y: Any) -> bool | None:
    """Compares two numbers, rational ones exactly; None where either is none."""
    if not all(isinstance(value, sympy.Expr) and not value.free_symbols for value in (x, y)):
        return None
    x, y = (_rational(value.doit()) for value in (x, y))
    if not (x.is_number and y.is_number):
        return None
    if x == y or (x.is_Rational and y.is_Rational):
        return bool(x == y)
    difference = (x - y).evalf(DIGITS, maxn=10 * DIGITS)
    size = max(abs(x.evalf(DIGITS)), abs(y.evalf(DIGITS)))
    return bool(abs(difference) <= size * sympy.Float(10) ** (10 - DIGITS))


def _rational(value: Any) -> Any:
    """Replaces the floats of an expression by the exact fractions that their decimals write."""
    return value.xreplace(
        {number: sympy.Rational(str(number)) for number in value.atoms(sympy.Float)}
    )
