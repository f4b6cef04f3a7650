"""What the core and the functions that a config names agree on."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Context(NamedTuple):
    """Constants of a stage, as its corruption and objective see them.

    Attributes:
      steps: optimiser steps of the stage.
      pad_id: the tokenizer's padding.
      mask_id: the tokenizer's mask token, None where it has none.
      vocab_size: ids are 0 .. vocab_size - 1.
    """

    steps: int
    pad_id: int
    mask_id: int | None
    vocab_size: int


def needed(objective: Callable) -> frozenset[str]:
    """Lists the optional batch fields that an objective will read, given its knobs.

    Args:
      objective: a function of `reasonjax.methods.objectives` or one's own, bare or with knobs bound
        by `functools.partial`.

    Returns:
      For instance `{'logprob_ref'}`, or the empty set where the function has no attribute `needs`.
    """
    function, given = getattr(objective, 'func', objective), getattr(objective, 'keywords', {})
    declared = getattr(function, 'needs', None)
    if declared is None:
        return frozenset()
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    return frozenset(declared({**defaults, **given}))


def forms(objective: Callable) -> tuple[str, ...]:
    """Lists the forms of rows (`reasonjax.data.forms`) that an objective reads.

    An objective that knows of rejected answers, labels or steps says so in a function attribute
    `forms`. One without it is taken to learn whatever has a weight, so it reads demonstrations
    only.
    """
    return getattr(getattr(objective, 'func', objective), 'forms', ('demonstration',))


class TokenRule(NamedTuple):
    """A task's rule for one tokenizer, as it runs on tokens in a compiled program.

    Attributes:
      columns: `(row) -> {name: array}`, on the host: what the rule needs to know of a problem, of
        equal shapes for all rows.
      reward: `(tokens [..., C] int32, length [...] int32, terminated [...] bool, columns) -> [...]
        float32`, traced; nan where there is nothing to say of a completion. The first axes of each
        column broadcast against those of `length`. Tokens at `length` and after it do not count.
    """

    columns: Callable[[dict], dict[str, Any]]
    reward: Callable[[Any, Any, Any, Mapping[str, Any]], Any]


@dataclasses.dataclass(frozen=True)
class OnTokens:
    """A task's rule, where answers can be checked on tokens.

    Attributes:
      reward: the reward function that says the same of texts, as a config names it: `{'name': ...,
        **knobs}`.
      build: `(tokenizer, max_tokens) -> TokenRule` for completions of up to this many tokens;
        raises UserError where the rule cannot be checked on the tokens of this tokenizer.
    """

    reward: Mapping[str, Any]
    build: Callable[[Any, int], TokenRule]


@dataclasses.dataclass(frozen=True)
class Task:
    """Problems and the rule that marks their answers.

    Attributes:
      name: how results are labelled, e.g. 'gsm8k/test'.
      examples: a random-access source (`len`, `[i] -> dict`, `where(i)`, `fingerprint()`); rows
        hold `prompt` and `solution`, and `completion` where the task has demonstrations.
      verify: `(completion, row, terminated) -> dict`. `completion` is the text without the
        end-of-sequence token, `terminated` says whether that token was produced. The dict holds
        `correct` (bool, the task's headline) and `answer` (str, or None where there was none), and
        for tasks that read answers in two ways also `strict` and `flexible` (bool).
      on_tokens: the same rule on tokens, for stages with `on_device`; None where it needs the text.
    """

    name: str
    examples: Any
    verify: Callable[[str, dict, bool], dict]
    on_tokens: OnTokens | None = None
