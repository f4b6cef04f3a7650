"""What a task is."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Task:
    """Problems and the rule that marks their answers.

    Attributes:
      name: how results are labelled, e.g. 'gsm8k/test'.
      examples: a random-access source (`len`, `[i] -> dict`, `where(i)`, `fingerprint()`); rows hold `prompt` and
        `solution`, and `completion` where the task has demonstrations.
      verify: `(completion, row, terminated) -> dict`. `completion` is the text without the end-of-sequence token,
        `terminated` says whether that token was produced. The dict holds `correct` (bool, the task's headline) and
        `answer` (str, or None where there was none), and for tasks that read answers in two ways also `strict` and
        `flexible` (bool).
    """

    name: str
    examples: Any
    verify: Callable[[str, dict, bool], dict]
