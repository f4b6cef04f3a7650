"""Reward by a task's own rule."""

import inspect
import sys
from collections.abc import Callable, Sequence

from reasonjax import tasks
from reasonjax.errors import UserError, listing, nearest
from reasonjax.methods.rewards.text import text_of


def verified(
    prompts: Sequence[str], completions: Sequence[str | list[dict]], terminated: Sequence[bool], *, task: str, **columns
) -> list[float]:
    """1.0 where a task's own rule, its `verify`, finds a completion correct, else 0.0.

    Args:
      prompts: N prompts.
      completions: N texts or conversations.
      terminated: N flags, whether the completion ended by itself (with the end-of-sequence token).
      task: a name from `reasonjax.tasks`, e.g. 'countdown'.
      **columns: N values each: what the rule reads of a row.

    Raises:
      UserError: no such task, or no column that its rule reads.
    """
    verify = _rule(task)
    columns = columns | {'prompt': prompts}
    rows = [_Row(task, {name: values[i] for name, values in columns.items()}) for i in range(len(prompts))]
    return [
        float(verify(text_of(completion), row, bool(ended))['correct'])
        for completion, row, ended in zip(completions, rows, terminated, strict=True)
    ]


class _Row(dict):
    """A row whose missing columns are the user's error."""

    def __init__(self, task: str, columns: dict):
        super().__init__(columns)
        self._task = task

    def __missing__(self, column: str):
        hint = f'{nearest(column, self)} There are: {listing(self)}.'
        raise UserError(f'verified: the rule of {self._task} reads the column "{column}".{hint}')


def _rule(task: str) -> Callable[[str, dict, bool], dict]:
    functions = {name: value for name, value in vars(tasks).items() if inspect.isfunction(value)}
    rules = {name: getattr(sys.modules[value.__module__], 'verify', None) for name, value in functions.items()}
    known = [name for name, rule in rules.items() if rule]
    if task not in known:
        raise UserError(f'verified: unknown task "{task}".{nearest(str(task), known)} Known: {listing(known)}.')
    return rules[task]
