"""Rendering: one example becomes token ids and the weight of each id as a target.

Three forms, told apart by their columns: `prompt` and `completion`, `messages`, or `text`. Weights are 1 on what the
model has to say (answers and their EOS) and 0 on what it is told; the first token is never a target, since nothing
precedes it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reasonjax.data.tokenizers import Message, Tokenizer
from reasonjax.errors import UserError, listing, nearest

Example = Mapping[str, Any]


class Document(NamedTuple):
    """One training document.

    Attributes:
        tokens: [T] int32 ids.
        weights: [T] float32, the weight of tokens[t] as a target; weights[0] is 0 and the sum is positive.
    """

    tokens: np.ndarray
    weights: np.ndarray


def document(example: Example, tokenizer: Tokenizer) -> Document:
    """Renders an example for supervised training.

    * strings: [BOS] prompt completion EOS, weight 1 on completion and EOS (an EOS that the completion spells out is not
      repeated);
    * messages: the chat template; weight 1 on what each assistant turn adds to the text before it, up to and with its
      EOS;
    * text: [BOS] text EOS, weight 1 on all but the first.

    Raises:
        UserError: a missing or empty column, an answer without a target, or a chat template that rewrites earlier
            turns.
    """
    if 'completion' in example:
        prompt, completion = column(example, 'prompt'), column(example, 'completion')
        if isinstance(prompt, str) and isinstance(completion, str):
            return _strings(prompt, completion, tokenizer, 'completion')
        if _is_chat(prompt) and _is_chat(completion):
            return _messages([*prompt, *completion], len(prompt), tokenizer)
        raise UserError(
            'prompt and completion must both be strings or both be lists of {role, content} messages, '
            f'found {type(prompt).__name__} and {type(completion).__name__}'
        )
    if 'messages' in example:
        messages = column(example, 'messages')
        if not _is_chat(messages):
            raise UserError('column "messages" must be a non-empty list of {role, content} messages')
        return _messages(messages, 0, tokenizer)
    if 'text' in example:
        text = column(example, 'text')
        if not isinstance(text, str):
            raise UserError(f'column "text" must be a string, found {type(text).__name__}')
        return _strings('', text, tokenizer, 'text')
    raise UserError(f'needs the columns prompt and completion, or messages, or text; columns found: {listing(example)}')


def prompt(example: Example, tokenizer: Tokenizer) -> np.ndarray:
    """Renders the prompt of an example for generation: [BOS] prompt, or the chat template with its generation prompt.

    Returns:
        [T] int32 ids, T >= 1.

    Raises:
        UserError: no prompt column, or an empty prompt.
    """
    value = column(example, 'prompt')
    if not value:
        raise UserError('column "prompt" is empty; generation needs something to continue')
    if isinstance(value, str):
        return np.array(_with_bos(tokenizer.encode(value), tokenizer), np.int32)
    if not _is_chat(value):
        raise UserError(
            f'column "prompt" must be a string or a list of {{role, content}} messages, found {type(value).__name__}'
        )
    return np.array(tokenizer.chat(value, True), np.int32)


def column(example: Example, name: str) -> Any:
    """Returns a column, or raises a UserError that lists the columns there are."""
    if name not in example:
        raise UserError(f'no column "{name}"; columns found: {listing(example)}.{nearest(name, example)}')
    if example[name] is None:
        raise UserError(f'column "{name}" is null')
    return example[name]


def _strings(before: str, answer: str, tokenizer: Tokenizer, name: str) -> Document:
    answer_ids = tokenizer.encode_more(answer) if before else tokenizer.encode(answer)
    if not answer_ids or answer_ids[0] in tokenizer.eos_ids:
        raise UserError(f'column "{name}" is empty: there is nothing to learn from')
    if answer_ids[-1] not in tokenizer.eos_ids:
        answer_ids = [*answer_ids, tokenizer.eos_ids[0]]
    before_ids = tokenizer.encode(before) if before else []
    ids = _with_bos([*before_ids, *answer_ids], tokenizer)
    weights = np.zeros(len(ids), np.float32)
    weights[len(ids) - len(answer_ids) :] = 1
    return _finish(ids, weights)


def _with_bos(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Puts BOS in front unless there is one: a text may spell it out, and two would be a sequence no model has seen."""
    if tokenizer.bos_id is None or ids[:1] == [tokenizer.bos_id]:
        return ids
    return [tokenizer.bos_id, *ids]


def _messages(messages: Sequence[Message], start: int, tokenizer: Tokenizer) -> Document:
    """Weights the assistant turns from index `start` on, found by rendering each prefix of the conversation.

    Prefixes are compared as text and the pieces are tokenised one by one, so that the ids before an answer are those
    the sampler will be given, whatever merges the tokenizer would make across the border.
    """
    text = tokenizer.chat_text(messages, False)
    ids, weights, cursor = [], [], 0
    for k in range(start, len(messages)):
        if messages[k].get('role') != 'assistant':
            continue
        if not messages[k].get('content') and not messages[k].get('tool_calls'):
            raise UserError(f'message {k + 1} (assistant) is empty: there is nothing to learn from')
        head = tokenizer.chat_text(messages[:k], True)
        tail = tokenizer.chat_text(messages[: k + 1], False)
        if not (text.startswith(tail) and tail.startswith(head)):
            raise UserError(
                f'the chat template renders message {k + 1} (assistant) differently once later turns follow, or does '
                'not continue its own generation prompt, so its tokens cannot be weighted; make one example per answer'
            )
        told = tokenizer.encode_more(text[cursor : len(head)]) if cursor else tokenizer.encode(text[: len(head)])
        said = tokenizer.encode_more(text[len(head) : len(tail)])
        ends = [i for i, x in enumerate(said) if x in tokenizer.eos_ids]
        if not ends and len(tail) == len(text):
            said, ends = [*said, tokenizer.eos_ids[0]], [len(said)]
        # What a template writes after EOS (a newline, mostly) is never generated, so it is context.
        spoken = ends[-1] + 1 if ends else len(said)
        ids += told + said
        weights += [0] * len(told) + [1] * spoken + [0] * (len(said) - spoken)
        cursor = len(tail)
    rest = tokenizer.encode_more(text[cursor:])
    if not any(weights):
        raise UserError('no assistant message to learn from: every token weight is zero')
    return _finish(ids + rest, np.array(weights + [0] * len(rest), np.float32))


def _finish(ids: list[int], weights: np.ndarray) -> Document:
    weights[0] = 0
    if not weights.any():
        raise UserError('every token weight is zero: the only token has nothing before it to be predicted from')
    return Document(np.array(ids, np.int32), weights)


def _is_chat(value: Any) -> bool:
    is_list = isinstance(value, list | tuple) and len(value) > 0
    return is_list and all(isinstance(message, Mapping) and 'role' in message for message in value)
