"""Conversations: which tokens of a rendered chat template the model has to say.

No stock template marks what the assistant says, so it is found by rendering prefixes. The messages before an answer, with
the template's generation prompt, are what the model is given when it answers; what the text up to and with the answer
adds to that, as far as its first EOS, is what the model has to say: thoughts, words, tool calls, the end of the turn.

Some templates render earlier turns differently once later ones follow (Qwen 3 drops their thoughts). No single text
then holds all answers as the model would give them, so such a conversation becomes several documents, each of as many
successive answers as agree.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from reasonjax.data.documents import Document, document
from reasonjax.data.tokenizers import Message, Tokenizer
from reasonjax.data.tokenizers.templates import MARK, words
from reasonjax.errors import UserError, listing, nearest

# Names under which templates know what an assistant thinks before it answers.
THOUGHTS = ('reasoning_content', 'thinking', 'reasoning')


class Conversation(NamedTuple):
    """Messages, and what the template is given beside them.

    Attributes:
        messages: at least one.
        options: `tools` and `template_kwargs` of `Tokenizer.chat_text`.
    """

    messages: Sequence[Message]
    options: Mapping[str, Any]


class Turn(NamedTuple):
    """An answer in its place.

    Attributes:
        head: the text before it, which the model is given.
        said: the answer, up to and with the token that ends it.
        rest: what the template writes behind that (a newline, mostly), which is never generated.
    """

    head: str
    said: str
    rest: str


def is_chat(value: Any) -> bool:
    """Whether a column holds messages rather than text: a non-empty list of mappings."""
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(message, Mapping) for message in value)


def conversation(messages: Sequence[Message], example: Mapping[str, Any], name: str) -> Conversation:
    """Checks messages, and adds what the columns `tools` and `chat_template_kwargs` of their row say.

    Args:
        messages: see `is_chat`.
        example: the row.
        name: the column the messages are from, for errors.

    Raises:
        UserError: a message without role or content, or a column that is not what its name says.
    """
    for number, message in enumerate(messages, 1):
        if not isinstance(message.get('role'), str):
            raise UserError(
                f'column "{name}": message {number} has no "role"; keys found: {listing(message)}.'
                f'{nearest("role", message)} The transform "messages" renames keys'
            )
        if all(message.get(key) is None for key in ('content', 'tool_calls', *THOUGHTS)):
            raise UserError(
                f'column "{name}": message {number} ({message["role"]}) has no "content"; '
                f'keys found: {listing(message)}.{nearest("content", message.keys() - {"content"})}'
            )
    tools = _parsed(example.get('tools'), 'tools') or None
    if tools is not None and not is_chat(tools):
        raise UserError('column "tools" must be a list of JSON schemas')
    template_kwargs = _parsed(example.get('chat_template_kwargs'), 'chat_template_kwargs') or {}
    if not isinstance(template_kwargs, Mapping):
        raise UserError('column "chat_template_kwargs" must map variables of the chat template to values')
    return Conversation(messages, {'tools': tools, 'template_kwargs': template_kwargs})


def prompt(chat: Conversation, tokenizer: Tokenizer) -> str:
    """Returns the text to continue: the messages and the generation prompt; an assistant's last message is left open."""
    text = _head(chat, len(chat.messages), tokenizer)
    _check_heard(chat, len(chat.messages), text, tokenizer)
    return text


def documents(chat: Conversation, start: int, tokenizer: Tokenizer) -> list[Document]:
    """Renders the assistant's messages from index `start` on.

    What follows the last of them teaches nothing and is left out. Where message `start` continues an assistant's
    message before it, the two are one turn, of which the model has to say the second part.

    Returns:
        A document for each run of successive answers that one text holds as they are given; for most templates one.

    Raises:
        UserError: no answer, an empty one, or one that the template does not render as a continuation of what the model
            is given.
    """
    answers = [k for k in range(start, len(chat.messages)) if chat.messages[k]['role'] == 'assistant']
    if not answers:
        raise UserError(f'no assistant message to learn from: every token weight would be zero; roles seen: {_roles(chat)}')
    if answers[0] == 0:
        raise UserError('message 1 (assistant) comes before anything it could answer; give it as part of the prompt')
    for k in answers:
        _check_answer(chat.messages[k], k + 1, tokenizer)
    turns = [_turn(chat, k, tokenizer, k == start) for k in answers]
    _check_heard(chat, answers[-1], turns[-1].head, tokenizer)
    runs = [[turns[0]]]
    for turn in turns[1:]:
        if turn.head.startswith(runs[-1][-1].head + runs[-1][-1].said):
            runs[-1].append(turn)
        else:
            runs.append([turn])
    return [_document(run, tokenizer) for run in runs]


def _head(chat: Conversation, upto: int, tokenizer: Tokenizer) -> str:
    """What the model is given when it is to go on after `upto` messages."""
    is_open = upto > 0 and chat.messages[upto - 1]['role'] == 'assistant'
    return tokenizer.chat_text(chat.messages[:upto], not is_open, continue_final_message=is_open, **chat.options)


def _turn(chat: Conversation, k: int, tokenizer: Tokenizer, may_continue: bool) -> Turn:
    messages, (before, answer) = chat.messages[: k + 1], chat.messages[k - 1 : k + 1]
    if may_continue and before['role'] == 'assistant':
        head = _head(chat, k, tokenizer)
        messages = [*messages[:-2], {**before, **answer, 'content': words(before) + words(answer)}]
    else:
        head = tokenizer.chat_text(messages[:-1], True, **chat.options)
    tail = tokenizer.chat_text(messages, False, **chat.options)
    if tail.startswith(head) and tail != head:
        return Turn(head, *_ended(tail[len(head) :], tokenizer))
    # The template words what comes before differently once the answer is there (Mistral's has the system prompt in the
    # last message, if that is a question). What follows the same question and opening is the answer all the same.
    asked = words(chat.messages[k - 1]).strip()
    opening = head[head.rfind(asked) :] if asked in head else head
    if tail.count(opening) == 1 and not tail.endswith(opening):
        return Turn(head, *_ended(tail.partition(opening)[2], tokenizer))
    raise UserError(
        f'the chat template does not render message {k + 1} (assistant) as a continuation of what the model is given when '
        f'it answers, which ends with {head[-60:]!r}, so its tokens cannot be weighted; set the variables of the template '
        '(column chat_template_kwargs), or give prompt and completion as strings'
    )


def _ended(text: str, tokenizer: Tokenizer) -> tuple[str, str]:
    """Cuts what follows a head behind the first token that ends an answer."""
    ends = [text.find(end) + len(end) for end in _ends(tokenizer) if end in text]
    size = min(ends, default=len(text))
    return text[:size], text[size:]


def _document(run: Sequence[Turn], tokenizer: Tokenizer) -> Document:
    """Tokenises piece by piece, so that the ids before an answer are those the sampler is given, whatever merges the
    tokenizer would make across the border."""
    ids, weights, done = [], [], ''
    for turn in run:
        told = tokenizer.encode_more(turn.head[len(done) :], done) if done else tokenizer.encode(turn.head)
        said = tokenizer.encode_more(turn.said, turn.head)
        done = turn.head + turn.said
        if turn is run[-1] and said[-1] not in tokenizer.eos_ids:
            said.append(tokenizer.eos_ids[0])
        ids += told + said
        weights += [0] * len(told) + [1] * len(said)
    rest = tokenizer.encode_more(run[-1].rest, done)
    return document(ids + rest, weights + [0] * len(rest))


def _check_answer(message: Message, number: int, tokenizer: Tokenizer) -> None:
    if not any((words(message).strip(), message.get('tool_calls'), *(message.get(key) for key in THOUGHTS))):
        raise UserError(f'message {number} (assistant) is empty: there is nothing to learn from')
    spelt = next((end for text in _texts(message) for end in _ends(tokenizer) if end in text), None)
    if spelt is not None:
        raise UserError(
            f'message {number} (assistant) spells the token "{spelt}", with which an answer ends: a model that learns it '
            'stops there. Take it out of the text (the chat template writes it)'
        )


def _check_heard(chat: Conversation, upto: int, text: str, tokenizer: Tokenizer) -> None:
    """Stops a conversation of which the template, without a word, leaves out a message: one of a role it does not know."""
    for k, message in enumerate(chat.messages[:upto]):
        if message['role'] == 'assistant' or words(message).strip() in text:
            continue
        # A template may trim or escape what it is given, and an earlier message may have had its time.
        marked = [*chat.messages[:k], {**message, 'content': MARK}]
        everything = [*marked, *chat.messages[k + 1 : upto]]
        if not any(MARK in tokenizer.chat_text(some, True, **chat.options) for some in (everything, marked)):
            raise UserError(
                f'the chat template leaves out message {k + 1}: it has no role "{message["role"]}"; roles seen: {_roles(chat)}'
            )


def _roles(chat: Conversation) -> str:
    return ', '.join(dict.fromkeys(message['role'] for message in chat.messages))


def _ends(tokenizer: Tokenizer) -> list[str]:
    """The tokens that end an answer, as text. White space is none: it may be part of other tokens too."""
    return [text for text in map(tokenizer.token, tokenizer.eos_ids) if not text.isspace()]


def _texts(value: Any) -> Iterator[str]:
    """Every text within a message."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _parsed(value: Any, name: str) -> Any:
    """A column that tables of fixed types hold as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise UserError(f'column "{name}" is text, but not JSON ({error.msg} at column {error.colno})') from error
