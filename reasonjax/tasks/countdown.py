"""Countdown: reach a target from some numbers, each used exactly once.

Format, for n numbers (the level) and `granularity` from coarse to fine; numbers of more than one
digit have commas between them:

    prompt        284>20:                                  28,4,17>41:
    0  answer     #2*8+4
    1  attempts   4+2+8=14,2*8+4=20#2*8+4                  failed expressions, then the right one,
                                                           with what each comes to
    2  results    4+2=6+8=14,2*8=16+4=20#2*8+4             the result of every operation

Expressions are worked out from the left: all operations bind alike, and there are no parentheses.
Every one whose value is the target is right, with any of + - * / and with results below zero or
between whole numbers; demonstrations stay with whole numbers from 0.

`solves` marks expressions as they are usually written, with precedence and parentheses.
"""

import collections
import functools
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from reasonjax.bounds import AtLeast, Between, OneOf, Seed
from reasonjax.errors import UserError
from reasonjax.protocols import OnTokens, Task, TokenRule
from reasonjax.tasks.checks import levels as checked_levels
from reasonjax.tasks.checks import whole
from reasonjax.tasks.generated import STREAMS, TRIES, Generated

CHARACTERS = '#=,0123456789+-*/>:'
OPERATIONS = '+-*/'
MAX_COUNT, MAX_NUMBER, MAX_TARGET = 8, 999, 999_999
PROMPT = re.compile(r'([0-9]{1,8}|[0-9]{1,3}(?:,[0-9]{1,3}){0,7})>([0-9]{1,6}):')
FROM_THE_LEFT = re.compile(r'[0-9]+(?:[-+*/][0-9]+)*')
PIECE = re.compile(r'\s*([0-9]+|[-+*/()])')


class Attempt(NamedTuple):
    """An expression: its numbers from the left, the operations between them, and the result of
    each."""

    numbers: tuple[int, ...]
    operations: tuple[str, ...]
    results: tuple[int, ...]


def written(attempt: Attempt) -> str:
    """Writes the expression of an attempt."""
    return ''.join(map('{}{}'.format, ('', *attempt.operations), attempt.numbers))


def working(attempts: Sequence[Attempt], granularity: int) -> str:
    """Writes attempts: 1 each with its value, 2 with the result of every operation; '' for 0."""
    if granularity == 0:
        return ''
    if granularity == 1:
        return ','.join(f'{written(attempt)}={attempt.results[-1]}' for attempt in attempts)
    steps = [
        ''.join(
            f'{op}{x}={result}' for op, x, result in zip(a.operations, a.numbers[1:], a.results)
        )
        for a in attempts
    ]
    return ','.join(f'{attempt.numbers[0]}{text}' for attempt, text in zip(attempts, steps))


def attempt(rng: np.random.Generator, numbers: Sequence[int], operations: str) -> Attempt | None:
    """Draws an attempt: the numbers in random order, with random operations. Operations are among
    those that stay with whole numbers from 0; None where none does."""
    first, *others = order = rng.permutation(numbers).tolist()
    done, results, value = [], [], first
    for x in others:
        possible = [
            o
            for o in operations
            if not (o == '-' and x > value) and not (o == '/' and (x == 0 or value % x))
        ]
        if not possible:
            return None
        done.append(possible[rng.integers(len(possible))])
        value = int(_applied(done[-1], Fraction(value), x))
        results.append(value)
    return Attempt(tuple(order), tuple(done), tuple(results))


def _applied(operation: str, a: Fraction, b: Fraction | int) -> Fraction:
    """Applies an operation to a and b; raises ZeroDivisionError where b is 0 and divides."""
    return {'+': a.__add__, '-': a.__sub__, '*': a.__mul__, '/': a.__truediv__}[operation](b)


def draw(
    rng: np.random.Generator,
    level: int,
    *,
    operations: str,
    largest: int,
    largest_target: int,
    attempts: int,
    granularity: int,
) -> dict:
    """Draws a problem of `level` numbers, whose target is the value of a random expression."""
    for _ in range(TRIES):
        numbers = rng.integers(1, largest + 1, size=level).tolist()
        right = attempt(rng, numbers, operations)
        if right and 1 <= right.results[-1] <= largest_target:
            break
    else:
        raise UserError(
            f'countdown: of {TRIES} expressions of {level} numbers up to largest={largest} with '
            f'operations="{operations}" none comes to '
            f'1 to largest_target={largest_target}. Set a larger largest_target, or other '
            'operations.'
        )
    target = right.results[-1]
    # Draws of its own: the problems are the same whatever the demonstrations show.
    tries, shown = np.random.default_rng(int(rng.integers(2**63))), []
    for _ in range(attempts - 1):
        trial = attempt(tries, numbers, operations)
        if trial and trial.results[-1] == target:
            right = trial
            break
        if trial and trial not in shown:
            shown.append(trial)
    prompt = f'{("," if largest > 9 else "").join(map(str, numbers))}>{target}:'
    solution = written(right)
    return {
        'prompt': prompt,
        'completion': f'{working([*shown, right], granularity)}#{solution}',
        'solution': solution,
    }


def parsed(prompt: str) -> tuple[list[int], int]:
    """Reads the numbers and the target of a prompt.

    Raises:
      UserError: it is not one of this task.
    """
    match = PROMPT.fullmatch(prompt) if isinstance(prompt, str) else None
    if not match:
        raise UserError(
            f'countdown: expected a prompt such as "284>20:" or "28,4,17>41:", got {prompt!r}.'
        )
    return [int(number) for number in (match[1].split(',') if ',' in match[1] else match[1])], int(
        match[2]
    )


def key(row: dict) -> str:
    """Returns what identifies a problem: its numbers, in any order, and its target."""
    numbers, target = parsed(row['prompt'])
    return f'{sorted(numbers)}>{target}'


def _each_once(texts: Sequence[str], numbers: Sequence[int]) -> bool:
    # As texts: a number may be longer than Python reads, and 02 is not how 2 is written.
    return collections.Counter(texts) == collections.Counter(map(str, numbers))


def reaches(expression: str, numbers: Sequence[int], target: int) -> bool:
    """Returns whether an expression uses each number exactly once and comes to the target, exactly.
    The expression is worked out from the left.

    Any text may be given: what is no such expression ('', spaces, signs, parentheses, other digits
    than 0-9) is wrong.
    """
    if not FROM_THE_LEFT.fullmatch(expression):
        return False
    texts = re.split('[-+*/]', expression)
    if not _each_once(texts, numbers):
        return False
    value, others = Fraction(int(texts[0])), map(int, texts[1:])
    try:
        for operation, x in zip(re.findall('[-+*/]', expression), others):
            value = _applied(operation, value, x)
    except ZeroDivisionError:
        return False
    return value == target


def solves(expression: str, numbers: Sequence[int], target: int) -> bool:
    """Returns whether an expression uses each number exactly once and equals the target, exactly.
    The expression has usual precedence and parentheses.

    Spaces may stand between its parts; an '=' may not, nor a sign that is no operation between two
    parts. Any text may be given, of any length: it is read in one pass, without recursion, and no
    number is computed before all are known to be the right ones.
    """
    pieces, end = [], 0
    while match := PIECE.match(expression, end):
        pieces.append(match[1])
        end = match.end()
    if expression[end:].strip() or not _each_once(
        [piece for piece in pieces if piece.isdigit()], numbers
    ):
        return False
    rank = {'+': 1, '-': 1, '*': 2, '/': 2}
    values, waiting, operand = [], [], True  # `operand`: a number or '(' has to come next

    def settle(least: int) -> None:
        """Applies the waiting operations of rank `least` or higher, back to the last '('."""
        while waiting and rank.get(waiting[-1], 0) >= least:
            b, a = values.pop(), values.pop()
            values.append(_applied(waiting.pop(), a, b))

    try:
        for piece in pieces:
            if (piece.isdigit() or piece == '(') is not operand:
                return False
            if piece.isdigit():
                values.append(Fraction(int(piece)))
                operand = False
            elif piece == '(':
                waiting.append(piece)
            elif piece == ')':
                settle(1)
                if not waiting:
                    return False
                waiting.pop()
            else:
                settle(rank[piece])
                waiting.append(piece)
                operand = True
        settle(1)
    except ZeroDivisionError:
        return False
    return not operand and not waiting and values == [target]


def verify(completion: str, row: dict, terminated: bool) -> dict:
    """Marks a completion right iff its answer `reaches` the row's target, and the text ends there.
    The answer is all that follows the first '#'."""
    _, mark, answer = completion.partition('#')
    return {
        'correct': terminated and bool(mark) and reaches(answer, *parsed(row['prompt'])),
        'answer': answer if mark else None,
    }


verify.reads = ('prompt',)


def on_tokens(tokenizer: Any, max_tokens: int) -> TokenRule:
    """Builds the rule that marks tokens of a tokenizer as `verify` marks their text."""
    from reasonjax.tasks.on_tokens_countdown import expression_after  # not above: it imports jax

    return expression_after('#', tokenizer)


ON_TOKENS = OnTokens({'name': 'verified', 'task': 'countdown'}, on_tokens)


def countdown(
    *,
    split: OneOf(*STREAMS) = 'train',
    size: AtLeast(1),
    levels: tuple[Between(2, MAX_COUNT), ...] = (3, 4),
    seed: Seed = 0,
    granularity: Between(0, 2) = 2,
    operations: str = '+-*',
    largest: Between(1, MAX_NUMBER) = 9,
    largest_target: Between(1, MAX_TARGET) = 99,
    attempts: Between(1, 1000) = 4,
) -> Task:
    """Builds the task Countdown: numbers and a target that a random expression of them comes to.

    With the defaults there are 1860 problems of three numbers and 19226 of four, and a random
    attempt is right one time in 10 and in 29.

    Demonstrations search: up to `attempts` - 1 random attempts, what was tried before left out,
    until one is right; else a right one last.

    Args:
      split: 'train' (demonstrations), 'prompts' (problems for reinforcement), 'validation' or
        'test'. Problems with the same numbers in another order and the same target are one problem.
      size: number of problems; a longer split starts with the problems of a shorter one.
      levels: how many numbers, drawn evenly, from 2 to 8.
      seed: not negative.
      granularity: of the demonstrations: 0 the answer, 1 attempts, 2 results. The problems do not
        depend on it, nor on `attempts`.
      operations: those that demonstrations use, among + - * /. An answer may use all four.
      largest: numbers are drawn from 1 to this, at most 999.
      largest_target: targets are from 1 to this, at most 999999.
      attempts: at most this many in a demonstration, the right one included.

    Raises:
      UserError: a value out of range, or, where a row is asked for, no problem with such numbers
        and targets.
    """
    wrong = set(operations) - set(OPERATIONS)
    if not operations or wrong or len(set(operations)) < len(operations):
        near = (
            ''.join(operation for operation in OPERATIONS if operation in operations) or OPERATIONS
        )
        raise UserError(
            f'countdown: operations must be some of "{OPERATIONS}", each once, got {operations!r}. '
            f'Nearest: "{near}".'
        )
    settings = {
        'operations': operations,
        'largest': whole('countdown', 'largest', largest, 1, MAX_NUMBER),
        'largest_target': whole('countdown', 'largest_target', largest_target, 1, MAX_TARGET),
        'attempts': whole('countdown', 'attempts', attempts, 1, 1000),
        'granularity': whole('countdown', 'granularity', granularity, 0, 2),
    }
    levels = checked_levels('countdown', levels, 2, MAX_COUNT)
    source = Generated(
        'countdown', split, size, seed, levels, functools.partial(draw, **settings), key, settings
    )
    return Task(f'countdown/{split}', source, verify, ON_TOKENS)
