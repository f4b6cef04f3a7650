"""Multi-digit addition, demonstrated in two styles: column by column, or the bare answer.

Format, for numbers of k digits (the level), zero-padded to k:

    prompt       5697+6559=
    worked       79016,95115,65112,56112#12256
    answer only  #12256

A worked demonstration has one group per column, from the right: the two digits, the carry that
comes in, and the two-digit column sum (`7 9 0 16`, then `9 5 1 15`, ...). After the first `#`
stands the sum, always k + 1 digits, most significant first, zero-padded, nothing else; then the
end-of-sequence token, which the text does not hold. Every character is one token of the
quickstart's vocabulary, so the same rule can be checked on tokens: the k + 2 tokens after the first
`#` are the digits of the sum and the end of sequence.
"""

import dataclasses
import functools
import hashlib

import numpy as np

from reasonjax.bounds import AtLeast, Between, Fraction, OneOf, Seed
from reasonjax.errors import UserError, check_choice
from reasonjax.protocols import Task
from reasonjax.tasks.checks import whole
from reasonjax.tasks.exact import ON_TOKENS, verify
from reasonjax.tasks.generated import STREAMS, Generated

__all__ = ['CHARACTERS', 'Problems', 'addition', 'verify', 'working']

CHARACTERS = '#=,0123456789+'
# a uniform float64 in [0, 1) holds 53 bits: no more than 15 decimal digits can be drawn from it
# evenly
MAX_LEVEL = 15


@dataclasses.dataclass(frozen=True)
class Problems:
    """Addition problems as a random-access source; problem i depends on (seed, split, i), the
    levels and nothing else.

    Rows: `prompt`, `completion` (the demonstration), `solution` (k + 1 digits), `level` (k) and
    `style` ('worked' or 'answer', of the demonstration).
    """

    split: str
    size: int
    levels: tuple[int, ...]
    answer_only: float
    seed: int

    @functools.cached_property
    def uniform_Nx4(self) -> np.ndarray:
        """Four uniform float64 in [0, 1) per problem: level, first number, second number, style."""
        # One Philox block is four words and depends on (key, i) only: a larger `size` never changes
        # an earlier problem.
        words = np.random.Philox(key=[self.seed, STREAMS[self.split]]).random_raw(4 * self.size)
        return (words >> np.uint64(11)).reshape(self.size, 4) * 2.0**-53

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < self.size:
            raise IndexError(f'{self!r} has no problem {i}')
        level, first, second, style = self.uniform_Nx4[i].tolist()
        k = self.levels[int(level * len(self.levels))]
        a, b = int(first * 10**k), int(second * 10**k)
        return problem(a, b, k, worked=style >= self.answer_only)

    def where(self, i: int) -> str:
        return f'addition:{self.split}[{i}]'

    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()


def problem(a: int, b: int, k: int, worked: bool) -> dict:
    """Builds the row of the problem a + b, both of k digits."""
    solution = f'{a + b:0{k + 1}d}'
    return {
        'prompt': f'{a:0{k}d}+{b:0{k}d}=',
        'completion': f'{working(a, b, k) if worked else ""}#{solution}',
        'solution': solution,
        'level': k,
        'style': 'worked' if worked else 'answer',
    }


def draw(rng: np.random.Generator, level: int, *, answer_only: float) -> dict:
    """Draws a problem of `level` digits."""
    a, b = rng.integers(10**level, size=2).tolist()
    return problem(a, b, level, worked=rng.random() >= answer_only)


def key(row: dict) -> str:
    """Returns what identifies a problem: its two numbers, in either order."""
    return '+'.join(sorted(row['prompt'].removesuffix('=').split('+')))


def working(a: int, b: int, k: int) -> str:
    """Writes the column-by-column working of a + b over k columns, without the answer."""
    columns, carry = [], 0
    for _ in range(k):
        a, x = divmod(a, 10)
        b, y = divmod(b, 10)
        total = x + y + carry
        columns.append(f'{x}{y}{carry}{total:02d}')
        carry = total // 10
    return ','.join(columns)


def addition(
    *,
    split: OneOf(*STREAMS) = 'train',
    size: AtLeast(1),
    levels: tuple[Between(1, MAX_LEVEL), ...] = (1, 2, 3, 4),
    answer_only: Fraction = 0.5,
    seed: Seed = 0,
    granularity: Between(0, 1) | None = None,
    disjoint: bool = False,
) -> Task:
    """Builds the task of adding two numbers of k digits.

    The splits draw from separate random streams. There are only 100 pairs of one digit and 10^4 of
    two, so those recur between splits; among the 10^8 pairs of four digits that is rare. Report
    accuracy on levels of four or more, or take `disjoint=True`: then no pair of numbers, in either
    order, is in two splits (but in 'train' and 'prompts').

    Args:
      split: 'train' (demonstrations), 'prompts' (problems for reinforcement), 'validation' or
        'test'.
      size: number of problems; a longer split starts with the problems of a shorter one.
      levels: numbers of digits, drawn evenly.
      answer_only: share of demonstrations that give the answer without the working.
      seed: not negative.
      granularity: 0 all demonstrations give the answer only, 1 all show the working; None: as
        `answer_only` says, which otherwise is not read.
      disjoint: draw other problems, of splits that have none in common, also with different seeds.

    Raises:
      UserError: a value out of range.
    """
    check_choice(f'addition: unknown split "{split}"', split, STREAMS)
    if size < 1:
        raise UserError(f'addition: size must be at least 1, got {size}.')
    if not levels or not all(isinstance(k, int) and 1 <= k <= MAX_LEVEL for k in levels):
        raise UserError(
            f'addition: levels must be numbers of digits from 1 to {MAX_LEVEL}, got {levels!r}.'
        )
    if not 0 <= answer_only <= 1:
        raise UserError(f'addition: answer_only is a share from 0 to 1, got {answer_only}.')
    if seed < 0:
        raise UserError(f'addition: seed must not be negative, got {seed}.')
    share = (
        float(answer_only)
        if granularity is None
        else 1.0 - whole('addition', 'granularity', granularity, 0, 1)
    )
    if disjoint:
        settings = {'answer_only': share}
        source = Generated(
            'addition',
            split,
            size,
            seed,
            tuple(levels),
            functools.partial(draw, **settings),
            key,
            settings,
        )
    else:
        source = Problems(split, size, tuple(levels), share, seed)
    return Task(f'addition/{split}', source, verify, ON_TOKENS)
