"""Chained arithmetic modulo 10: operations on digits, one after the other from the left, without
precedence.

Format, for k operations (the level), with results modulo 10 and `granularity` from coarse to fine:

    prompt             9+2-8*6=
    0  answer          #8
    1  rewrite         1-8*6=3*6=8#8             what is left of the expression after each operation
    2  steps           9+2=1,1-8=3,3*6=8#8       each operation with its two operands

In a rewrite an operation's operands stand one expression back, amid what is copied; in steps they
stand right before the result: that is the finer grain, and from six operations on also the shorter
text. With `restate` each expression or step is written twice, so that a hidden character can mostly
be read off its twin:

    1  rewrite         1-8*6=1-8*6=3*6=3*6=8=8#8
    2  steps           9+2=1,9+2=1,1-8=3,1-8=3,3*6=8,3*6=8#8

The answer is one digit, so a guess is right one time in ten, and more often after a multiplication.
"""

import functools

import numpy as np

from reasonjax.bounds import AtLeast, Between, OneOf, Seed
from reasonjax.errors import UserError
from reasonjax.protocols import Task
from reasonjax.tasks.checks import levels as checked_levels
from reasonjax.tasks.checks import whole
from reasonjax.tasks.exact import ON_TOKENS, verify
from reasonjax.tasks.generated import STREAMS, Generated

__all__ = ['CHARACTERS', 'chain', 'verify']

CHARACTERS = '#=,0123456789+-*'
OPERATIONS = {
    '+': lambda a, b: (a + b) % 10,
    '-': lambda a, b: (a - b) % 10,
    '*': lambda a, b: (a * b) % 10,
}
MAX_LEVEL = 99


def trace(expression: str, granularity: int, restate: bool = False) -> tuple[str, str]:
    """Works out an expression like '9+2-8*6'.

    Args:
      expression: digits with operations between them.
      granularity: 1 'rewrite' or 2 'steps'; 0 for none.
      restate: every part twice.

    Returns:
      The working, without the answer ('' for granularity 0), and the result.
    """
    parts = []
    while len(expression) > 1:
        a, operation, b = expression[:3]
        result = str(OPERATIONS[operation](int(a), int(b)))
        expression = result + expression[3:]
        parts += [expression if granularity == 1 else f'{a}{operation}{b}={result}'] * (1 + restate)
    return ('', '=', ',')[granularity].join(parts) if granularity else '', expression


def draw(rng: np.random.Generator, level: int, *, granularity: int, restate: bool) -> dict:
    """Draws a problem of `level` operations."""
    digits = rng.integers(10, size=level + 1).tolist()
    operations = [list(OPERATIONS)[i] for i in rng.integers(len(OPERATIONS), size=level).tolist()]
    expression = ''.join(
        f'{digit}{operation}' for digit, operation in zip(digits, [*operations, ''])
    )
    working, result = trace(expression, granularity, restate)
    return {'prompt': f'{expression}=', 'completion': f'{working}#{result}', 'solution': result}


def key(row: dict) -> str:
    """Returns what identifies a problem: its expression."""
    return row['prompt']


def chain(
    *,
    split: OneOf(*STREAMS) = 'train',
    size: AtLeast(1),
    levels: tuple[Between(1, MAX_LEVEL), ...] = (1, 2, 3, 4),
    seed: Seed = 0,
    granularity: Between(0, 2) = 1,
    restate: bool = False,
) -> Task:
    """Builds the task of chained arithmetic modulo 10. Problems out of distribution are those of
    higher levels.

    There are only 300 problems of one operation and 9000 of two: a long split holds them several
    times, other splits never.

    Args:
      split: 'train' (demonstrations), 'prompts' (problems for reinforcement), 'validation' or
        'test'.
      size: number of problems; a longer split starts with the problems of a shorter one.
      levels: numbers of operations, drawn evenly, from 1 to 99.
      seed: not negative.
      granularity: of the demonstrations: 0 the answer, 1 'rewrite', 2 'steps'. The problems do not
        depend on it.
      restate: write each part of the working twice.

    Raises:
      UserError: a value out of range, or nothing to restate.
    """
    whole('chain', 'granularity', granularity, 0, 2)
    if restate and not granularity:
        raise UserError(
            'chain: restate=True writes the working twice, and granularity=0 has none. Nearest: '
            'granularity=1.'
        )
    settings = {'granularity': granularity, 'restate': bool(restate)}
    source = Generated(
        'chain',
        split,
        size,
        seed,
        checked_levels('chain', levels, 1, MAX_LEVEL),
        functools.partial(draw, **settings),
        key,
        settings,
    )
    return Task(f'chain/{split}', source, verify, ON_TOKENS)
