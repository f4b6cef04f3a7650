"""Finding the answer in a completion, reading the solution of a row, and comparing the two."""

import datetime
import decimal
import fractions
import functools
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from reasonjax.errors import UserError, check_choice, listing, show
from reasonjax.tasks.answer_text import find_answer, find_answer_of_solution, find_last_boxed
from reasonjax.tasks.answer_values import Words, read_value, same_spelling, same_value

STRICT = re.compile(r'#### (-?[0-9.,]+)')
FLEXIBLE = re.compile(r'(-?[$0-9.,]{2,})|(-?[0-9]+)')
NUMBER = re.compile(r'[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)')
TOLERANCE = decimal.Decimal('1e-4')


def _strict(text: str) -> str | None:
    match = STRICT.search(text)
    return match.group(1) if match else None


def _flexible(text: str) -> str | None:
    numbers = [match.group() for match in FLEXIBLE.finditer(text)]
    return numbers[-1] if numbers else None


def _hash(text: str) -> str | None:
    _, mark, answer = text.partition('#')
    return answer if mark else None


def _last_line(text: str) -> str | None:
    lines = text.split('\n')
    return next((line.strip() for line in reversed(lines) if line.strip()), None)


EXTRACTORS = {
    'answer': find_answer,
    'strict': _strict,
    'flexible': _flexible,
    'hash': _hash,
    'boxed': find_last_boxed,
    'last_line': _last_line,
}


def extract(text: str, how: str) -> str | None:
    r"""Finds the answer in a text.

    Args:
      text: a completion, or a reference answer.
      how: 'answer' wherever a model may have put it: in a box, after 'the answer is', in bold, at
        the end (see `answer_text`); 'strict' the number after the first '#### ' (GSM8K's own form);
        'flexible' the last thing that looks like a number, by the expression with which
        lm-evaluation-harness reads GSM8K (so that scores compare: two or more of `$0-9.,` count,
        even '...'); 'hash' everything after the first '#'; 'boxed' what is in the last \boxed{...}
        whose braces are balanced, in every spelling (\fbox{7}, \boxed 7); 'last_line' the last line
        that is not blank, stripped.

    Returns:
      The answer as written, or None where there is none.

    Raises:
      UserError: no extractor of that name.
    """
    check_choice(f'extract: unknown way "{how}" to find an answer', how, EXTRACTORS)
    return EXTRACTORS[how](text)


def same_answer(a: str, b: str) -> bool:
    """Returns whether two answers mean the same: numbers, lists, sets, tuples, intervals or words.
    Numbers are compared exactly and in every spelling.

    50% equals both 50, as GSM8K and MATH have it, and 0.5; without the sign, 50 and 0.5 differ.
    Units count where both state one. See `answer_values` for all rules.
    """
    return same_value(read_value(a), read_value(b), same_spelling)


def _number(text: str) -> decimal.Decimal | None:
    plain = text.strip().replace(',', '').replace('$', '').removesuffix('.')
    return decimal.Decimal(plain) if NUMBER.fullmatch(plain) else None


def same_number(a: str, b: str) -> bool:
    """Returns whether two texts are the same number, |a - b| < 1e-4.

    Commas, dollar signs, blanks and a final dot are ignored. Where either is no plain decimal
    number, the stripped texts are compared. This goes with the extractors that read as
    lm-evaluation-harness does; `same_answer` knows what else a number can look like.
    """
    x, y = _number(a), _number(b)
    if x is None or y is None:
        return a.strip() == b.strip()
    return abs(x - y) < TOLERANCE


def same_text(a: str, b: str) -> bool:
    """Returns whether two texts are equal, character by character."""
    return a == b


def same_mathematics(a: str, b: str) -> bool:
    r"""Returns whether two answers mean the same, as `same_answer` does, or as math-verify can show
    of expressions (LaTeX or plain): x + 1 and 1 + x.

    Numbers, sets, tuples and intervals are distinguished as in `same_answer`; the library compares
    only what is in them. It has no time limit of its own (the library's relies on alarm
    signals, which work in main threads only): call it where a hang can be killed, as the reward
    pool does.

    Args:
      a: what was answered.
      b: the solution.

    Raises:
      UserError: math-verify is not installed.
    """
    if importlib.util.find_spec('math_verify') is None:
        raise UserError(
            'equality="math_verify" needs the package math-verify: pip install "reasonjax[tasks]".'
        )
    if a.strip() == b.strip():
        return True
    # not above: it imports sympy, which is heavy, and optional
    from reasonjax.tasks.answer_library import same_expression

    return same_value(read_value(a), read_value(b), same_expression)


EQUALITIES = {
    'answer': same_answer,
    'number': same_number,
    'text': same_text,
    'math_verify': same_mathematics,
}


def equivalent(a: str, b: str, equality: str = 'answer') -> bool:
    """Compares an answer with a solution.

    Args:
      a: what was answered.
      b: the solution.
      equality: 'answer' (`same_answer`), 'number' (`same_number`), 'text' (`same_text`) or
        'math_verify' (`same_mathematics`).

    Raises:
      UserError: no equality of that name, or its package is missing.
    """
    check_choice(f'equality: unknown "{equality}"', equality, EQUALITIES)
    return EQUALITIES[equality](a, b)


# Under which of these keys a row's mapping has the answer.
KEYS = ('ground_truth', 'solution', 'answer', 'final_answer', 'target', 'value')
# A solution that was cut off before its answer.
UNFINISHED = re.compile(r'\\(?:boxed|fbox)\s*\{(?![^{}]*\})(?:[^{}]|\{[^{}]*\})*\Z|####\s*\Z')
# What a completion that gives an answer looks like, for each extractor.
GIVEN = {
    'answer': (r'\boxed{%s}', 'The answer is %s', '%s'),
    'strict': ('#### %s',),
    'flexible': ('The answer is %s',),
    'hash': ('#%s',),
    'boxed': (r'\boxed{%s}',),
    'last_line': ('%s',),
}


def write_solution(value: Any) -> str | None:
    """Returns a row's solution as a text, however the data holds it; None where it is unknown
    (None, '', an empty list).

    A number is written without exponent and without zeros at its end (7.0 is '7', 1e-05 is
    '0.00001'). A list of one is that one, a mapping what it has under one of `KEYS`.

    Raises:
      UserError: nan, infinity, several answers, lists in lists, bytes that are no text, and
        everything else.
    """
    return _text(value, 0)


def _text(value: Any, depth: int) -> str | None:
    if getattr(value, 'dtype', None) is not None and hasattr(value, 'tolist'):  # of NumPy
        # The shortest digits that its own precision tells apart: 0.1 as float32 is not 0.1 as
        # float64.
        value = float(str(value)) if value.dtype.kind == 'f' and not value.shape else value.tolist()
    if value is None or value == '' or (isinstance(value, list | tuple) and not value):
        return None
    if isinstance(value, str):
        return str(value) if value.strip() else None
    if isinstance(value, bytes):
        try:
            return value.decode('utf-8') or None
        except UnicodeDecodeError as error:
            raise UserError(
                f'column "solution": expected text, found bytes that are not UTF-8 ({show(value)}).'
            ) from error
    if isinstance(value, bool | datetime.date | datetime.time):
        return str(value)
    if isinstance(value, int | float | decimal.Decimal | fractions.Fraction):
        return _number_text(value)
    if isinstance(value, Mapping) and depth < 3:
        keys = [key for key in KEYS if key in value] if len(value) > 1 else list(value)
        if len(keys) > 1:  # a table fills every mapping with the keys of all
            keys = [key for key in keys if value[key] is not None] or keys[:1]
        if len(keys) == 1:
            return _text(value[keys[0]], depth + 1)
        raise UserError(
            f'column "solution": of a mapping, one key may be the answer ({", ".join(KEYS)}), '
            f'found {listing(map(str, value)) or "none"}.'
        )
    if (
        isinstance(value, list | tuple)
        and len(value) == 1
        and not isinstance(value[0], list | tuple)
    ):
        return _text(value[0], depth + 1)
    if isinstance(value, list | tuple):
        raise UserError(
            f'column "solution": expected one answer, found {len(value)} in a list '
            f'({show(value)}); write them as one text.'
        )
    raise UserError(
        f'column "solution": expected a text or a number, found {type(value).__name__} '
        f'({show(value)}).'
    )


def _number_text(value: Any) -> str:
    if isinstance(value, fractions.Fraction):
        return str(value)
    exact = decimal.Decimal(
        value if isinstance(value, int | decimal.Decimal) else repr(float(value))
    )
    if not exact.is_finite():
        raise UserError(
            f'column "solution": expected an answer, found {exact}; use null where it is unknown.'
        )
    if abs(exact.adjusted()) > 400:  # nobody writes it out
        return str(exact)
    text = format(exact, 'f')
    return text.rstrip('0').rstrip('.') if '.' in text else text


def read_solution(value: Any, how: str = 'answer', equality: str = 'answer') -> str | None:
    r"""Returns a row's solution in the form that completions are compared with; None where it is
    unknown.

    Of a worked solution that is its answer: what follows '####', what is in a box, what it says the
    answer is, else its last number.

    Args:
      value: what the column holds; see `write_solution`.
      how: as for `extract`.
      equality: as for `equivalent`. With 'text' a text is taken as it is, where it can be answered
        so.

    Raises:
      UserError: as `write_solution`, or a solution that no completion can be marked right with.
    """
    text = write_solution(value)
    return None if text is None else _answerable(text, how, equality)


@functools.lru_cache(8192)
def _answerable(text: str, how: str, equality: str) -> str:
    # names that are unknown are an error of their own
    extract('', how), equivalent('', '', equality)
    for candidate in dict.fromkeys(_candidates(text, how, equality)):
        if any(
            _is_right(given.replace('%s', candidate), candidate, how, equality)
            for given in GIVEN[how]
        ):
            return candidate
    raise UserError(
        f'column "solution": no completion can be marked right with {show(text)} under '
        f'extract="{how}" and equality="{equality}". '
        'extract="answer" with equality="answer" reads numbers in every form, and words; use null '
        'where the answer is unknown.'
    )


def _candidates(text: str, how: str, equality: str) -> Iterator[str]:
    if equality == 'text':
        yield text
        yield text.strip()
    answer = find_answer_of_solution(_unpacked(text))
    value = read_value(answer)
    is_empty = isinstance(value, Words) and not value.text  # an empty box would equal it
    if is_empty or r'\boxed' in answer or UNFINISHED.search(text):
        return
    if equality == 'number' and _number(answer) is None:
        yield from _plain(answer)
    yield answer
    # Without a unit or a currency, where the extractor reads none.
    for part in [
        *(extract(given.replace('%s', answer), how) for given in GIVEN[how]),
        (_flexible(answer) or '').replace('$', ''),
    ]:
        if part and same_answer(part, answer):
            yield part
    yield from _plain(answer)


def _plain(answer: str) -> Iterator[str]:
    """Yields a number that may have an exponent, written out; nothing for other texts."""
    try:
        yield _number_text(decimal.Decimal(answer))
    except (decimal.InvalidOperation, UserError):
        return


def _unpacked(text: str) -> str:
    """Returns the answer in a JSON object that is given as text; any other text as it is."""
    if not (text.startswith('{') and text.rstrip().endswith('}')):
        return text
    try:
        value = json.loads(text)
        return (write_solution(value) if value else None) or text
    except (ValueError, RecursionError, UserError):
        return text


def _is_right(completion: str, solution: str, how: str, equality: str) -> bool:
    # Of math-verify, which takes seconds to import, only what it does without the library.
    answer = extract(completion, how)
    return answer is not None and (
        same_answer if equality == 'math_verify' else EQUALITIES[equality]
    )(answer, solution)
