"""Preference pairs whose prompt is not a column of its own: it is what both answers begin with."""

from collections.abc import Mapping
from typing import Any

from reasonjax.errors import UserError


def prompt_and_answers(example: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Returns prompt, chosen answer and rejected answer of a preference row, all strings or all
    lists of messages.

    The prompt is the column `prompt` where it is of the answers' kind. Else it is what `chosen` and
    `rejected` begin with: messages that are equal one by one, or text up to the word in which they
    first differ. The space before that word belongs to the answers, a line break to the prompt.
    (TRL's `extract_prompt` cuts text at the first character that differs, within words too: `blue`
    and `brown` would become `lue` and `rown`.)

    Raises:
        UserError: answers that are not both strings or both messages, are the same, have nothing in
            common or begin with one another, or a prompt of another kind.
    """
    prompt, chosen, rejected = example.get('prompt'), example.get('chosen'), example.get('rejected')
    kinds = {type(chosen), type(rejected)}
    if kinds - {str} and kinds - {list, tuple}:
        names = ' and '.join(type(x).__name__ for x in (chosen, rejected))
        raise UserError(
            f'chosen and rejected must both be strings or both be lists of messages, found {names}'
        )
    if chosen == rejected:
        raise UserError('chosen and rejected are the same: there is nothing to prefer')
    if prompt is not None and isinstance(prompt, str) == isinstance(chosen, str):
        return prompt, chosen, rejected
    if prompt is not None and not isinstance(prompt, str):
        raise UserError(
            'prompt is a list of messages, chosen and rejected are strings; give all three in one '
            'way'
        )
    same = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b),
        min(len(chosen), len(rejected)),
    )
    if isinstance(chosen, str):
        # The last space, or what follows the last line break, of what they share.
        same = max(chosen.rfind(' ', 0, same), chosen.rfind('\n', 0, same) + 1)
    if not same:
        raise UserError(
            'there is no column "prompt", and chosen and rejected do not begin with the same: no '
            'prompt'
        )
    if same in (len(chosen), len(rejected)):
        raise UserError(
            'one of chosen and rejected is the beginning of the other, which leaves it no answer'
        )
    common, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
    # Some data sets keep the question as text beside answers that are whole conversations.
    if isinstance(prompt, str) and not any(
        prompt.strip() in str(message.get('content')) for message in common
    ):
        raise UserError(
            'column "prompt" is text that is not among the messages with which chosen and rejected '
            'begin'
        )
    return common, chosen, rejected
