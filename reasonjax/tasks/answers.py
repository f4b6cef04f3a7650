"""Finding the answer in a completion, and comparing it with the solution."""

import decimal
import importlib.util
import re

from reasonjax.errors import UserError, listing, nearest

STRICT = re.compile(r'#### (-?[0-9.,]+)')
FLEXIBLE = re.compile(r'(-?[$0-9.,]{2,})|(-?[0-9]+)')
NUMBER = re.compile(r'[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)')
BOXED_OR_BRACE = re.compile(r'\\boxed\s*\{|\\.|[{}]', re.DOTALL)
TOLERANCE = decimal.Decimal('1e-4')


def _strict(text: str) -> str | None:
    found = STRICT.search(text)
    return found.group(1) if found else None


def _flexible(text: str) -> str | None:
    found = [match.group() for match in FLEXIBLE.finditer(text)]
    return found[-1] if found else None


def _hash(text: str) -> str | None:
    _, found, answer = text.partition('#')
    return answer if found else None


def _boxed(text: str) -> str | None:
    # One pass with a stack of open braces: a model that repeats an unclosed \boxed{ must not make this quadratic.
    opened, last = [], None
    for token in BOXED_OR_BRACE.finditer(text):
        if token.group()[-1] == '{' and token.group() != r'\{':
            opened.append((token.end(), len(token.group()) > 1))
        elif token.group() == '}' and opened:
            start, boxed = opened.pop()
            if boxed and (last is None or start > last[0]):
                last = (start, token.start())
    return text[slice(*last)] if last else None


def _last_line(text: str) -> str | None:
    lines = text.split('\n')
    return next((line.strip() for line in reversed(lines) if line.strip()), None)


EXTRACTORS = {'strict': _strict, 'flexible': _flexible, 'hash': _hash, 'boxed': _boxed, 'last_line': _last_line}


def extract(text: str, how: str) -> str | None:
    r"""Finds the answer in a text.

    Args:
      text: a completion, or a reference answer.
      how: 'strict' the number after the first '#### ' (GSM8K's own form); 'flexible' the last thing that looks like a
        number, by the expression with which lm-evaluation-harness reads GSM8K (so that scores compare: two or more of
        `$0-9.,` count, even '...'); 'hash' everything after the first '#'; 'boxed' the last \boxed{...} whose braces
        are balanced; 'last_line' the last line that is not blank, stripped.

    Returns:
      The answer as written, or None where there is none.

    Raises:
      UserError: no extractor of that name.
    """
    if how not in EXTRACTORS:
        known = f'{nearest(how, EXTRACTORS)} Known: {listing(EXTRACTORS)}.'
        raise UserError(f'extract: unknown way "{how}" to find an answer.{known}')
    return EXTRACTORS[how](text)


def _number(text: str) -> decimal.Decimal | None:
    plain = text.strip().replace(',', '').replace('$', '').removesuffix('.')
    return decimal.Decimal(plain) if NUMBER.fullmatch(plain) else None


def same_number(a: str, b: str) -> bool:
    """Whether two texts are the same number, |a - b| < 1e-4, apart from commas, dollar signs, blanks and a final dot.

    Where either is no plain decimal number: whether the stripped texts are equal.
    """
    x, y = _number(a), _number(b)
    if x is None or y is None:
        return a.strip() == b.strip()
    return abs(x - y) < TOLERANCE


def same_text(a: str, b: str) -> bool:
    """Whether two texts are equal, character by character."""
    return a == b


def same_mathematics(a: str, b: str) -> bool:
    r"""Whether two expressions (LaTeX or plain) mean the same, by math-verify; equal stripped texts always do.

    It has no time limit of its own (the library's relies on alarm signals, which work in main threads only): call it
    where a hang can be killed, as the reward pool does.

    Args:
      a: what was answered.
      b: the solution.

    Raises:
      UserError: math-verify is not installed.
    """
    if importlib.util.find_spec('math_verify') is None:
        raise UserError('equality="math_verify" needs the package math-verify: pip install "reasonjax[tasks]".')
    import math_verify  # heavy (sympy), and optional

    if a.strip() == b.strip():
        return True
    answer, solution = (math_verify.parse(rf'\boxed{{{text}}}', parsing_timeout=None) for text in (a, b))
    return bool(math_verify.verify(solution, answer, timeout_seconds=None))


EQUALITIES = {'number': same_number, 'text': same_text, 'math_verify': same_mathematics}


def equivalent(a: str, b: str, equality: str = 'number') -> bool:
    """Compares an answer with a solution.

    Args:
      a: what was answered.
      b: the solution.
      equality: 'number' (`same_number`), 'text' (`same_text`) or 'math_verify' (`same_mathematics`).

    Raises:
      UserError: no equality of that name, or its package is missing.
    """
    if equality not in EQUALITIES:
        raise UserError(f'equality: unknown "{equality}".{nearest(equality, EQUALITIES)} Known: {listing(EQUALITIES)}.')
    return EQUALITIES[equality](a, b)
