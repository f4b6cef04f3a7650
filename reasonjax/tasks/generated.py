"""Problems that are made as they are asked for: a function of (seed, split, i), and none of them in
two splits.

A problem belongs to the split that a hash of its `key` names, whatever seed drew it: what is
trained on and what is tested on are disjoint by construction, also between two runs with different
seeds.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np

from reasonjax.errors import UserError, check_choice

STREAMS = {'train': 0, 'prompts': 1, 'test': 2, 'validation': 3}
# Of ten equal parts of all problems, those of each split; demonstrations and prompts to reinforce
# may be the same problems.
PARTS = {
    'train': range(2, 10),
    'prompts': range(2, 10),
    'test': range(1),
    'validation': range(1, 2),
}
TRIES = 10_000


@dataclasses.dataclass(frozen=True)
class Generated:
    """A random-access source of problems of one split; the first rows of a longer one are those of
    a shorter one.

    Attributes:
      name: of the task.
      split: 'train' (demonstrations), 'prompts' (problems for reinforcement), 'validation' or
        'test'.
      size: number of problems.
      seed: not negative.
      levels: of difficulty, drawn evenly.
      draw: `(rng, level) -> row`, with `prompt`, `completion`, `solution`; `level` is put beside
        them.
      key: `(row) -> text`: two rows with the same text are one problem. None where `draw` makes
        rows of this split only: none is drawn again, so that rows are distributed as `draw`
        distributes them.
      settings: what `draw` depends on besides, for the fingerprint.
    """

    name: str
    split: str
    size: int
    seed: int
    levels: tuple[Hashable, ...]
    draw: Callable[[np.random.Generator, Any], dict] = dataclasses.field(repr=False)
    key: Callable[[dict], str] | None = dataclasses.field(repr=False)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice(f'{self.name}: unknown split "{self.split}"', self.split, STREAMS)
        if self.size < 1:
            raise UserError(f'{self.name}: size must be at least 1, got {self.size}.')
        if not self.levels:
            raise UserError(f'{self.name}: levels must name at least one.')
        if self.seed < 0:
            raise UserError(f'{self.name}: seed must not be negative, got {self.seed}.')

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < self.size:
            raise IndexError(f'{self!r} has no problem {i}')
        # The counter's high word is the problem: its draws depend on nothing that other problems
        # took.
        rng = np.random.Generator(
            np.random.Philox(key=[self.seed, STREAMS[self.split]], counter=[0, 0, 0, i])
        )
        level = self.levels[int(rng.integers(len(self.levels)))]
        for _ in range(TRIES):
            row = self.draw(rng, level) | {'level': level}
            if self.key is None or part(self.name, self.key(row)) in PARTS[self.split]:
                return row
        raise UserError(
            f'{self.name}: {TRIES} problems of level {level} were drawn, and none belongs to the '
            f'split "{self.split}".'
        )

    def where(self, i: int) -> str:
        return f'{self.name}:{self.split}[{i}]'

    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()


def part(name: str, key: str) -> int:
    """Returns which of ten equal parts of all problems a problem belongs to, from 0 to 9."""
    return int.from_bytes(hashlib.sha256(f'{name}:{key}'.encode()).digest()[:8]) % 10
