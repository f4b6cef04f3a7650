"""GSM8K as a task of the arena: its training rows divided into those to train on and those to
validate on."""

import dataclasses
from typing import Any

from reasonjax import tasks
from reasonjax.errors import check_choice
from reasonjax.tasks.generated import PARTS, part


@dataclasses.dataclass(frozen=True)
class Picked:
    """Some rows of a source, in its order."""

    source: Any
    index: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> dict:
        return self.source[self.index[i]]

    def where(self, i: int) -> str:
        return self.source.where(self.index[i])

    def fingerprint(self) -> str:
        return f'{self.source.fingerprint()}:{self.index}'


def gsm8k(*, split: str = 'train', size: int, seed: int = 0, path: str = '') -> tasks.Task:
    """Loads the first `size` rows of a split of GSM8K, or all where there are fewer.

    Args:
      split: 'train', 'prompts' (the same), 'validation' (a tenth of the training rows, none of the
        others) or 'test'.
      size: rows at most.
      seed: ignored, as the rows are fixed.
      path: see `tasks.gsm8k`.
    """
    check_choice(f'gsm8k: unknown split "{split}"', split, PARTS)
    task = tasks.gsm8k(path=path, split='test' if split == 'test' else 'train')
    source = task.examples
    # The tenth that is another task's test split is nobody's here: the test rows have a file of
    # their own.
    own = [
        i
        for i in range(len(source))
        if split == 'test' or part('gsm8k', source[i]['prompt']) in PARTS[split]
    ]
    return tasks.Task(f'gsm8k/{split}', Picked(source, tuple(own[:size])), task.verify)
