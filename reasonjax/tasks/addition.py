"""Multi-digit addition, demonstrated in two styles: column by column, or the bare answer.

Format, for numbers of k digits (the level), zero-padded to k:

    prompt       5697+6559=
    worked       79016,95115,65112,56112#12256
    answer only  #12256

A worked demonstration has one group per column, from the right: the two digits, the carry that comes in, and the
two-digit column sum (`7 9 0 16`, then `9 5 1 15`, ...). After the first `#` stands the sum, always k + 1 digits, most
significant first, zero-padded, nothing else; then the end-of-sequence token, which the text does not hold. Every
character is one token of the quickstart's vocabulary, so the same rule can be checked on tokens: the k + 2 tokens after
the first `#` are the digits of the sum and the end of sequence.
"""

import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np

from reasonjax.errors import UserError, listing, nearest
from reasonjax.tasks.base import OnTokens, Task, TokenRule

STREAMS = {'train': 0, 'prompts': 1, 'test': 2}
MAX_LEVEL = 15  # a uniform float64 in [0, 1) holds 53 bits: no more than 15 decimal digits can be drawn from it evenly


@dataclasses.dataclass(frozen=True)
class Problems:
    """Addition problems as a random-access source; problem i depends on (seed, split, i), the levels and nothing else.

    Rows: `prompt`, `completion` (the demonstration), `solution` (k + 1 digits), `level` (k) and `style` ('worked' or
    'answer', of the demonstration).
    """

    split: str
    size: int
    levels: tuple[int, ...]
    answer_only: float
    seed: int

    @functools.cached_property
    def uniform_Nx4(self) -> np.ndarray:
        """Four uniform float64 in [0, 1) per problem: level, first number, second number, style."""
        # One Philox block is four words and depends on (key, i) only: a larger `size` never changes an earlier problem.
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
        worked = style >= self.answer_only
        solution = f'{a + b:0{k + 1}d}'
        return {
            'prompt': f'{a:0{k}d}+{b:0{k}d}=',
            'completion': f'{working(a, b, k) if worked else ""}#{solution}',
            'solution': solution,
            'level': k,
            'style': 'worked' if worked else 'answer',
        }

    def where(self, i: int) -> str:
        return f'addition:{self.split}[{i}]'

    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()


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


def verify(completion: str, row: dict, terminated: bool) -> dict:
    """Right iff exactly the digits of the sum follow the first '#', and then the end of sequence."""
    _, found, answer = completion.partition('#')
    return {'correct': terminated and bool(found) and answer == row['solution'], 'answer': answer if found else None}


def on_tokens(tokenizer: Any, max_tokens: int) -> TokenRule:
    """`verify`, for the tokens of this tokenizer."""
    from reasonjax.tasks.on_tokens import answer_after  # not above: it imports jax

    return answer_after('#', tokenizer, max_tokens)


ON_TOKENS = OnTokens({'name': 'accuracy', 'extract': 'hash', 'equality': 'text', 'require_termination': True}, on_tokens)


def addition(
    *, split: str = 'train', size: int, levels: tuple[int, ...] = (1, 2, 3, 4), answer_only: float = 0.5, seed: int = 0
) -> Task:
    """Addition of two numbers of k digits.

    The splits draw from separate random streams. There are only 100 pairs of one digit and 10^4 of two, so those recur
    between splits; among the 10^8 pairs of four digits that is rare. Report accuracy on levels of four or more.

    Args:
      split: 'train' (demonstrations), 'prompts' (problems for reinforcement) or 'test'.
      size: number of problems; a longer split starts with the problems of a shorter one.
      levels: numbers of digits, drawn evenly.
      answer_only: share of demonstrations that give the answer without the working.
      seed: not negative.

    Raises:
      UserError: a value out of range.
    """
    if split not in STREAMS:
        raise UserError(f'addition: unknown split "{split}".{nearest(split, STREAMS)} Known: {listing(STREAMS)}.')
    if size < 1:
        raise UserError(f'addition: size must be at least 1, got {size}.')
    if not levels or not all(isinstance(k, int) and 1 <= k <= MAX_LEVEL for k in levels):
        raise UserError(f'addition: levels must be numbers of digits from 1 to {MAX_LEVEL}, got {levels!r}.')
    if not 0 <= answer_only <= 1:
        raise UserError(f'addition: answer_only is a share from 0 to 1, got {answer_only}.')
    if seed < 0:
        raise UserError(f'addition: seed must not be negative, got {seed}.')
    return Task(f'addition/{split}', Problems(split, size, tuple(levels), float(answer_only), seed), verify, ON_TOKENS)
