"""Reward for the right answer."""

from collections.abc import Sequence

from reasonjax.bounds import OneOf
from reasonjax.errors import UserError
from reasonjax.methods.rewards.text import text_of
from reasonjax.tasks.answers import EQUALITIES, EXTRACTORS, equivalent, extract


def accuracy(
    prompts: Sequence,
    completions: Sequence[str | list[dict]],
    solution: Sequence,
    terminated: Sequence[bool] | None = None,
    *,
    extract: OneOf(*EXTRACTORS) = 'flexible',
    equality: OneOf(*EQUALITIES) = 'number',
    require_termination: bool = False,
    **kwargs,
) -> list[float | None]:
    """1.0 where the answer found in a completion is the solution, else 0.0; None where the row has no solution.

    Args:
      prompts: not read.
      completions: N texts or conversations.
      solution: N solutions, texts or numbers; None or '' means unknown.
      terminated: N flags, whether the completion ended by itself (with the end-of-sequence token).
      extract: how the answer is found; see `reasonjax.tasks.answers.extract`.
      equality: 'number', 'text' or 'math_verify'; see `reasonjax.tasks.answers.equivalent`.
      require_termination: a completion that was cut off at the length limit gets 0.0.

    Raises:
      UserError: unknown `extract` or `equality`, a missing package, or no `terminated` where it is required.
    """
    if require_termination and terminated is None:
        raise UserError('accuracy: require_termination=True needs the column "terminated".')
    ended = terminated if require_termination else [True] * len(completions)
    return [
        None if gold is None or gold == '' else float(end and _right(text_of(completion), str(gold), extract, equality))
        for completion, gold, end in zip(completions, solution, ended, strict=True)
    ]


def _right(text: str, solution: str, how: str, equality: str) -> bool:
    answer = extract(text, how)
    return answer is not None and equivalent(answer, solution, equality)
