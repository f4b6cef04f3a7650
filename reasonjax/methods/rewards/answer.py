"""Reward for the right answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from reasonjax.bounds import OneOf
from reasonjax.errors import UserError
from reasonjax.methods.rewards.text import text_of
from reasonjax.tasks.answers import EQUALITIES, EXTRACTORS, equivalent, extract, read_solution


def accuracy(
    prompts: Sequence,
    completions: Sequence[str | list[dict]],
    solution: Sequence,
    terminated: Sequence[bool] | None = None,
    *,
    extract: OneOf(*EXTRACTORS) = 'answer',
    equality: OneOf(*EQUALITIES) = 'answer',
    require_termination: bool = False,
    **kwargs,
) -> list[float | None]:
    r"""Scores 1.0 where a completion's answer is the solution, else 0.0; None without a solution.

    Args:
      prompts: not read.
      completions: N texts or conversations.
      solution: N solutions: texts, numbers, lists of one, or mappings with one answer; also '####
        7', '\boxed{7}' or a worked solution. None or '' means unknown.
      terminated: N flags, whether the completion ended by itself (with the end-of-sequence token).
      extract: how the answer is found; see `reasonjax.tasks.answers.extract`.
      equality: 'answer', 'number', 'text' or 'math_verify'; see
        `reasonjax.tasks.answers.equivalent`.
      require_termination: a completion that was cut off at the length limit gets 0.0.

    Raises:
      UserError: unknown `extract` or `equality`, a missing package, no `terminated` where it is
        required, or a solution that no completion can be marked right with.
    """
    if require_termination and terminated is None:
        raise UserError('accuracy: require_termination=True needs the column "terminated".')
    ended = terminated if require_termination else [True] * len(completions)
    solutions = [read_solution(value, extract, equality) for value in solution]
    return [
        None
        if right is None
        else float(end and _right(text_of(completion), right, extract, equality))
        for completion, right, end in zip(completions, solutions, ended, strict=True)
    ]


def _right(text: str, solution: str, how: str, equality: str) -> bool:
    answer = extract(text, how)
    return answer is not None and equivalent(answer, solution, equality)


def _check_row(
    row: Mapping[str, Any], *, extract: str, equality: str, require_termination: bool
) -> None:
    read_solution(row.get('solution'), extract, equality)


accuracy.check_row = _check_row
