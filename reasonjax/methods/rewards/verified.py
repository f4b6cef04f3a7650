"""Reward by a task's own rule."""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reasonjax import tasks
from reasonjax.errors import check_choice
from reasonjax.methods.rewards.text import text_of


def verified(
    prompts: Sequence[str],
    completions: Sequence[str | list[dict]],
    terminated: Sequence[bool],
    *,
    task: str,
    **columns: Any,
) -> list[float | None]:
    """Scores 1.0 where a task's own rule, its `verify`, accepts a completion, else 0.0. None where
    the row lacks what the rule reads.

    Args:
      prompts: N prompts.
      completions: N texts or conversations.
      terminated: N flags, whether the completion ended by itself (with the end-of-sequence token).
      task: a name from `reasonjax.tasks`, e.g. 'countdown'.
      **columns: N values each: what the rule reads of a row.

    Raises:
      UserError: no such task, or no column that its rule reads.
    """
    verify, columns = _rule(task), columns | {'prompt': prompts}
    for name in verify.reads:
        check_choice(
            f'verified: the rule of {task} reads the column "{name}"', name, columns, 'There are'
        )
    rows = [{name: values[i] for name, values in columns.items()} for i in range(len(prompts))]
    return [
        None
        if any(row[name] is None or row[name] == '' for name in verify.reads)
        else float(verify(text_of(completion), row, bool(ended))['correct'])
        for completion, row, ended in zip(completions, rows, terminated, strict=True)
    ]


def _rule(task: str) -> Callable[[str, dict, bool], dict]:
    functions = {name: value for name, value in vars(tasks).items() if inspect.isfunction(value)}
    rules = {
        name: getattr(sys.modules[value.__module__], 'verify', None)
        for name, value in functions.items()
    }
    known = [name for name, rule in rules.items() if rule]
    check_choice(f'verified: unknown task "{task}"', task, known)
    return rules[task]


def _needs(*, task: str) -> tuple[str, ...]:
    return tuple(name for name in _rule(task).reads if name != 'prompt')


def _check_row(row: Mapping[str, Any], *, task: str) -> None:
    verify = _rule(task)
    if all(row.get(name) not in (None, '') for name in verify.reads):
        verify('#', row, True)  # a solution or a prompt that the rule cannot read is found now


verified.needs, verified.check_row = _needs, _check_row
