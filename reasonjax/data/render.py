"""Rendering: one example becomes token ids and the weight of each id as a target.

Demonstrations come in three shapes, told apart by their columns: `prompt` and `completion`,
`messages`, or `text`. Weights are 1 on what the model has to say (answers and their EOS) and 0 on
what it is told. A conversation may need several documents (see `reasonjax.data.chat`). Beside
messages a row may have `tools`, a list of JSON schemas, and `chat_template_kwargs`, variables of
the chat template; `completion_ids` are the tokens of a completion that was sampled, which are
learnt as they were drawn.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from reasonjax.data import chat
from reasonjax.data.conversation import conversation
from reasonjax.data.documents import Document, document
from reasonjax.data.messages import is_chat, words
from reasonjax.data.tokenizers import Tokenizer
from reasonjax.errors import UserError, listing, nearest

Example = Mapping[str, Any]


def demonstration(example: Example, tokenizer: Tokenizer) -> list[Document]:
    """Renders an example for supervised training.

    * strings: [BOS] prompt completion EOS, weight 1 on completion and EOS (an EOS that the
      completion spells out is not repeated);
    * messages: the chat template; weight 1 on what each assistant turn adds to the text before it,
      up to and with its EOS;
    * text: [BOS] text EOS, weight 1 on all but the first.

    Returns:
        One document; several only of a conversation whose template renders earlier turns
        differently later.

    Raises:
        UserError: a missing or empty column, or an answer that cannot be weighted.
    """
    if 'completion' in example:
        return answered(
            example,
            column(example, 'prompt'),
            column(example, 'completion'),
            'completion',
            tokenizer,
        )
    if 'messages' in example:
        messages = column(example, 'messages')
        if not is_chat(messages):
            raise UserError(
                'column "messages" must be a non-empty list of {role, content} messages'
            )
        return chat.documents(conversation(messages, example, 'messages'), 0, tokenizer)
    if 'text' in example:
        text = column(example, 'text')
        if not isinstance(text, str):
            raise UserError(f'column "text" must be a string, found {type(text).__name__}')
        return [_strings('', text, tokenizer, 'text')]
    raise UserError(
        'needs the columns prompt and completion, or messages, or text; columns found: '
        f'{listing(example)}'
    )


def answered(
    example: Example, before: Any, answer: Any, name: str, tokenizer: Tokenizer
) -> list[Document]:
    """Renders a prompt and one answer to it, both strings or both messages.

    Args:
        example: the row, for what else the chat template is given.
        before: the prompt.
        answer: of column `name`.
        name: for errors.
        tokenizer: see `reasonjax.data.tokenizers`.

    Raises:
        UserError: as `demonstration`.
    """
    if isinstance(before, str) and isinstance(answer, str):
        return [_strings(before, answer, tokenizer, name)]
    if is_chat(before) and is_chat(answer):
        if name == 'completion' and example.get('completion_ids') is not None:
            return [_sampled(example, before, answer, tokenizer)]
        both = conversation([*before, *answer], example, f'prompt + {name}')
        return chat.documents(both, len(before), tokenizer)
    raise UserError(
        f'prompt and {name} must both be strings or both be lists of {{role, content}} messages, '
        f'found {type(before).__name__} and {type(answer).__name__}'
    )


def _sampled(example: Example, before: Any, answer: Any, tokenizer: Tokenizer) -> Document:
    """Renders a prompt, and the sampled tokens as they were drawn: a template may write others."""
    _, prompt_ids = asked({**example, 'prompt': before}, tokenizer)
    ids = example['completion_ids']
    if (
        not isinstance(ids, list | tuple)
        or not ids
        or not all(isinstance(i, int) and 0 <= i < tokenizer.vocab_size for i in ids)
    ):
        raise UserError(
            'column "completion_ids" must be a non-empty list of token ids of this tokenizer'
        )
    if len(answer) != 1 or tokenizer.decode(ids) != words(answer[0]):
        raise UserError(
            'column "completion_ids" holds the tokens of another text than "completion", which was '
            'changed since, or sampled with '
            'another tokenizer; leave the column out to learn the text as the chat template writes '
            'it'
        )
    ids = [*ids] if ids[-1] in tokenizer.eos_ids else [*ids, tokenizer.eos_ids[0]]
    return document(prompt_ids + ids, [0] * len(prompt_ids) + [1] * len(ids))


def prompt(example: Example, tokenizer: Tokenizer) -> np.ndarray:
    """Renders the prompt of an example for generation: [BOS] prompt, or the chat template with its
    generation prompt.

    A conversation that ends with an assistant's message is left open there, to be continued.

    Returns:
        [T] int32 ids, T >= 1.

    Raises:
        UserError: no prompt column, an empty prompt, or messages that the chat template cannot
          render.
    """
    return np.array(asked(example, tokenizer)[1], np.int32)


def asked(example: Example, tokenizer: Tokenizer) -> tuple[str, list[int]]:
    """Returns the text of a prompt, and its ids; see `prompt`."""
    value = column(example, 'prompt')
    if not value:
        raise UserError('column "prompt" is empty; generation needs something to continue')
    if isinstance(value, str):
        return value, with_bos(tokenizer.encode(value), tokenizer)
    if not is_chat(value):
        raise UserError(
            f'column "prompt" must be a string or a list of {{role, content}} messages, found '
            f'{type(value).__name__}'
        )
    text = chat.prompt(conversation(value, example, 'prompt'), tokenizer)
    return text, tokenizer.encode(text)


def column(example: Example, name: str) -> Any:
    """Returns a column, or raises a UserError that lists the columns there are."""
    if name not in example:
        raise UserError(
            f'no column "{name}"; columns found: {listing(example)}.{nearest(name, example)}'
        )
    if example[name] is None:
        raise UserError(f'column "{name}" is null')
    return example[name]


def with_bos(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Puts BOS in front unless there is one: a text may spell it out, and two would be a sequence
    no model has seen."""
    if tokenizer.bos_id is None or ids[:1] == [tokenizer.bos_id]:
        return ids
    return [tokenizer.bos_id, *ids]


def texts(example: Example) -> Iterator[str]:
    """Yields the texts of an example of any form, in the order they are read: what a vocabulary is
    learnt from."""
    for name in ('prompt', 'completion', 'completions', 'chosen', 'rejected', 'messages', 'text'):
        value = example.get(name)
        if is_chat(value):
            yield '\n'.join(words(message) for message in value)
        elif isinstance(value, list | tuple):
            yield from (item for item in value if isinstance(item, str))
        elif isinstance(value, str):
            yield value


def _strings(before: str, answer: str, tokenizer: Tokenizer, name: str) -> Document:
    answer_ids = tokenizer.encode_more(answer, before) if before else tokenizer.encode(answer)
    if not answer_ids or answer_ids[0] in tokenizer.eos_ids:
        raise UserError(f'column "{name}" is empty: there is nothing to learn from')
    if answer_ids[-1] not in tokenizer.eos_ids:
        answer_ids = [*answer_ids, tokenizer.eos_ids[0]]
    before_ids = tokenizer.encode(before) if before else []
    ids = with_bos([*before_ids, *answer_ids], tokenizer)
    return document(ids, [0] * (len(ids) - len(answer_ids)) + [1] * len(answer_ids))
