"""Conversations: which tokens of a rendered chat template the model has to say.

No stock template marks what the assistant says, so it is found by rendering prefixes. The messages
before an answer, with the template's generation prompt, are what the model is given when it
answers; what the text up to and with the answer adds to that, as far as its first EOS, is what the
model has to say: thoughts, words, tool calls, the end of the turn.

Some templates render earlier turns differently once later ones follow (Qwen 3 drops their
thoughts). No single text then holds all answers as the model would give them, so such a
conversation becomes several documents, each of as many successive answers as agree. So does one
whose template writes no EOS behind its answers: each document ends with the EOS that the model has
to say there. Where the token that opens the next turn is an EOS (GLM), it is the end of the answer.

What a message holds and the template leaves out is an error (see `message_marks`).
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from reasonjax.data import message_forms, message_marks
from reasonjax.data.conversation import Conversation
from reasonjax.data.documents import Document, document
from reasonjax.data.messages import MARK, THOUGHTS, is_chat, tool_names, words
from reasonjax.data.tokenizers import Message, Tokenizer
from reasonjax.errors import UserError

# Other names of the assistant.
_ALIASES = {'gpt', 'bot', 'model'}
_ALIASED = '; the transform "messages" calls human a user, and gpt, bot and model an assistant'
# What closes a thought in most templates that write one.
_CLOSING = '</think>'


class Turn(NamedTuple):
    """An answer in its place.

    Attributes:
        head: the text before it, which the model is given.
        said: the answer, up to and with the token that ends it.
        rest: what the template writes after that (a newline, mostly), which is never generated.
    """

    head: str
    said: str
    rest: str


def prompt(chat: Conversation, tokenizer: Tokenizer) -> str:
    """Returns the text to continue: the messages and the generation prompt; an assistant's last
    message is left open."""
    chat = _fitted(chat, tokenizer)
    text = _head(chat, len(chat.messages), tokenizer)
    _check_heard(chat, len(chat.messages), text, tokenizer)
    return text


def documents(chat: Conversation, start: int, tokenizer: Tokenizer) -> list[Document]:
    """Renders the assistant's messages from index `start` on, but for those of weight 0.

    What follows the last of them teaches nothing and is left out. Where message `start` continues
    an assistant's message before it, the two are one turn, of which the model has to say the second
    part.

    Returns:
        A document for each run of successive answers that one text holds as they are given; for
        most templates one.

    Raises:
        UserError: no answer, an empty one, or one that the template leaves out in part or does not
            render as a continuation of what the model is given.
    """
    answers = [
        k
        for k, m in enumerate(chat.messages)
        if k >= start and m['role'] == 'assistant' and m.get('weight', 1)
    ]
    if not answers:
        raise UserError(
            'no assistant message to learn from: every token weight would be zero; roles seen: '
            f'{_roles(chat)}'
            f'{_ALIASED if {m["role"] for m in chat.messages} & _ALIASES else ""}'
        )
    if answers[0] == 0:
        raise UserError(
            'message 1 (assistant) comes before anything it could answer; give it as part of the '
            'prompt'
        )
    for k in answers:
        _check_answer(chat.messages[k], k + 1, tokenizer)
    chat = _fitted(chat, tokenizer)
    turns = [_turn(chat, k, tokenizer, k == start) for k in answers]
    _check_heard(chat, answers[-1], turns[-1].head, tokenizer, answers[-1] == start, answers)
    runs = [[turns[0]]]
    for turn in turns[1:]:
        before = runs[-1][-1]
        if turn.head.startswith(before.head + before.said) and before.said.endswith(
            _ends(tokenizer)
        ):
            runs[-1].append(turn)
        else:
            runs.append([turn])
    return [_document(run, tokenizer) for run in runs]


def unread(example: Mapping[str, Any], columns: Sequence[str], tokenizer: Tokenizer) -> int:
    """Counts the keys of messages in these columns that the chat template does not read; see
    `message_forms.unread`."""
    return sum(
        message_forms.unread(example[name], tokenizer)
        for name in columns
        if is_chat(example.get(name))
    )


def _fitted(chat: Conversation, tokenizer: Tokenizer) -> Conversation:
    message_forms.check_roles(chat.messages, tokenizer)
    message_forms.check_thoughts(chat.messages, tokenizer)
    message_forms.check_order(chat.messages, tokenizer)
    return chat._replace(messages=message_forms.fitted(chat.messages, tokenizer, chat.options))


def _head(chat: Conversation, upto: int, tokenizer: Tokenizer, may_continue: bool = True) -> str:
    """Renders the first `upto` messages and the generation prompt: what the model is given. With
    `may_continue`, an assistant's last message is left open instead."""
    is_open = may_continue and chat.messages[upto - 1]['role'] == 'assistant'
    if is_open and (
        chat.messages[upto - 1].get('tool_calls') or not words(chat.messages[upto - 1]).strip()
    ):
        raise UserError(
            f'message {upto} (assistant) is the last before the answer, which would continue it, '
            'but it has calls or no words; '
            'leave it out, or let a message follow that it can answer'
        )
    return tokenizer.chat_text(
        chat.messages[:upto], not is_open, continue_final_message=is_open, **chat.options
    )


def _turn(chat: Conversation, k: int, tokenizer: Tokenizer, may_continue: bool) -> Turn:
    messages, answer = chat.messages[:k], chat.messages[k]
    continues = may_continue and messages[-1]['role'] == 'assistant'
    head = _head(chat, k, tokenizer, may_continue)

    def rendered(last: Message) -> tuple[str, str]:
        before = [*messages[:-1], _together(messages[-1], last)] if continues else [*messages, last]
        return _said(chat._replace(messages=before), head, last, tokenizer)

    learnt, rest = rendered(answer)
    _check_thoughts(answer, learnt, k + 1)
    what = message_marks.left_out(answer, learnt, lambda marked: rendered(marked)[0])
    if what:
        raise UserError(
            f'message {k + 1} (assistant): the chat template leaves out {what}, so it would not be '
            f'learnt; {_way(what)}'
        )
    return Turn(head, learnt, rest)


def _together(begun: Message, more: Message) -> Message:
    text = words(begun) + words(more)
    return {
        **begun,
        **more,
        'content': [{'type': 'text', 'text': text}]
        if isinstance(begun['content'], list | tuple)
        else text,
    }


def _way(what: str) -> str:
    other = 'tokenizer.chat_template names another template'
    if 'thoughts' in what:
        return f'the transform fold_thoughts writes thoughts into the content, drop_thoughts leaves them out and counts them; {other}'
    return other


def _said(chat: Conversation, head: str, answer: Message, tokenizer: Tokenizer) -> tuple[str, str]:
    """Renders the last message; returns the answer up to its end token, and the text after that."""
    number = len(chat.messages)
    text = tokenizer.chat_text(chat.messages, False, **chat.options)
    if text.startswith(head) and text != head:
        return _ended(chat, text[len(head) :], answer, tokenizer)
    # The template words what comes before differently once the answer is there (Mistral's has the
    # system prompt in the last message, if that is a question). What follows the same question and
    # opening is the answer all the same.
    asked = words(chat.messages[-2]).strip()
    written = next(
        (way for way in (asked, json.dumps(asked, ensure_ascii=False)[1:-1]) if way in head), head
    )
    opening = head[head.rfind(written) :]
    if text.count(opening) == 1 and not text.endswith(opening):
        return _ended(chat, text.partition(opening)[2], answer, tokenizer)
    raise UserError(
        f'the chat template does not render message {number} (assistant) as a continuation of what '
        'the model is given when '
        f'it answers, which ends with {head[-60:]!r}, so its tokens cannot be weighted; set the '
        'variables of the template '
        '(column chat_template_kwargs), or give prompt and completion as strings'
    )


def _ended(chat: Conversation, text: str, answer: Message, tokenizer: Tokenizer) -> tuple[str, str]:
    """Splits an answer after its end token, which is added where only a next turn writes it."""
    start = max(0, message_marks.position(answer, text, 0))
    ends = [text.find(end, start) + len(end) for end in _ends(tokenizer) if end in text[start:]]
    if ends:
        return text[: min(ends)], text[min(ends) :]
    return text + _opening(
        tokenizer, 'tool_calls' in answer, *message_forms.settings(chat.options)
    ), ''


@functools.lru_cache(maxsize=256)
def _opening(tokenizer: Tokenizer, called: bool, has_tools: bool, variables: str) -> str:
    """Returns the EOS that opens the next turn, with the white space before it; '' where none does.
    Where a template does not end answers itself, the model has to say this EOS."""
    options = message_forms.sample_options(has_tools, variables)
    try:
        messages = message_forms.fitted(message_forms.exchange(called), tokenizer, options)
        texts = [tokenizer.chat_text(messages[:size], False, **options) for size in (2, 3)]
    except UserError:
        return ''
    behind, further = (text.rpartition(MARK)[2] for text in texts)
    more = further[len(behind) :] if further.startswith(behind) else ''
    return next(
        (
            more[: more.index(end) + len(end)]
            for end in _ends(tokenizer)
            if more.lstrip().startswith(end)
        ),
        '',
    )


def _document(run: Sequence[Turn], tokenizer: Tokenizer) -> Document:
    """Tokenises a run of turns piece by piece. So the ids before an answer are those the sampler is
    given, whatever merges the tokenizer would make across the border."""
    ids, weights, done = [], [], ''
    for turn in run:
        context_ids = (
            tokenizer.encode_more(turn.head[len(done) :], done)
            if done
            else tokenizer.encode(turn.head)
        )
        answer_ids = tokenizer.encode_more(turn.said, turn.head)
        done = turn.head + turn.said
        if turn is run[-1] and answer_ids[-1] not in tokenizer.eos_ids:
            answer_ids.append(tokenizer.eos_ids[0])
        ids += context_ids + answer_ids
        weights += [0] * len(context_ids) + [1] * len(answer_ids)
    rest = tokenizer.encode_more(run[-1].rest, done)
    return document(ids + rest, weights + [0] * len(rest))


def _check_answer(message: Message, number: int, tokenizer: Tokenizer) -> None:
    if not any(
        (
            words(message).strip(),
            message.get('tool_calls'),
            *(message.get(key, '').strip() for key in THOUGHTS),
        )
    ):
        raise UserError(f'message {number} (assistant) is empty: there is nothing to learn from')
    spelt = next((end for text in _texts(message) for end in _ends(tokenizer) if end in text), None)
    if spelt is not None:
        raise UserError(
            f'message {number} (assistant) spells the token "{spelt}", with which an answer ends: '
            'a model that learns it '
            'stops there. Take it out of the text (the chat template writes it)'
        )


def _check_thoughts(message: Message, answer_text: str, number: int) -> None:
    """Raises UserError where thoughts spell the tag that closes them. The text after that tag would
    count as said."""
    is_spelt = any(_CLOSING in message.get(key, '') for key in THOUGHTS)
    if is_spelt and answer_text.count(_CLOSING) > sum(
        text.count(_CLOSING) for text in _texts(message)
    ):
        raise UserError(
            f'message {number} (assistant): its thoughts spell {_CLOSING}, with which the template '
            'closes them; take it out'
        )


def _check_heard(
    chat: Conversation,
    upto: int,
    text: str,
    tokenizer: Tokenizer,
    may_continue: bool = True,
    learnt: Sequence[int] = (),
) -> None:
    """Raises UserError where the template silently leaves out something before the answer. The
    messages `learnt` are checked elsewhere."""
    missing = [name for name in tool_names(chat.options['tools']) if name not in text]
    if missing:
        raise UserError(
            f'column "tools": the chat template leaves out the tool "{missing[0]}"; it may expect '
            '{"type": "function", "function": {"name", "description", "parameters"}}'
        )
    others = [k for k in range(upto) if k not in learnt]
    doubtful, start = [k for k in others if not message_marks.is_telling(chat.messages[k])], 0
    for k in others:
        if k not in doubtful:
            start = message_marks.position(chat.messages[k], text, start)
            if start < 0:
                doubtful = others
                break
    if not doubtful:
        return
    # A template may trim, escape or move what it is given, and drop what has had its time: when it
    # was said, or asked and answered.
    marked = {k: message_marks.marked(chat.messages[k], k) for k in doubtful}
    messages = [marked[k][0] if k in marked else message for k, message in enumerate(chat.messages)]
    text = _head(chat._replace(messages=messages), upto, tokenizer, may_continue)
    answers = [
        k for k, message in enumerate(chat.messages[:upto]) if message['role'] == 'assistant'
    ]
    for k, (message, marks) in marked.items():
        is_answer = k in answers
        if not message_marks.missing(marks, text, parts=not is_answer):
            continue
        then = k + 1 if is_answer else next((answer for answer in answers if answer > k), upto)
        alone = (
            text
            if then == upto
            else tokenizer.chat_text(messages[:then], not is_answer, **chat.options)
        )
        what = message_marks.missing(marks, alone, parts=not is_answer)
        if not what:
            continue
        if is_answer:
            raise UserError(
                f'message {k + 1} (assistant): the chat template leaves out {what}; {_way(what)}'
            )
        part = '' if what == message_marks.CONTENT else f' ({what})'
        raise UserError(
            f'the chat template leaves out message {k + 1}{part}: it has no role '
            f'"{message["role"]}"; roles seen: {_roles(chat)}'
        )


def _roles(chat: Conversation) -> str:
    return ', '.join(dict.fromkeys(message['role'] for message in chat.messages))


@functools.lru_cache(maxsize=64)
def _ends(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Returns the texts of tokens that end an answer, but for white space, which is ambiguous."""
    return tuple(text for text in map(tokenizer.token, tokenizer.eos_ids) if not text.isspace())


def _texts(value: Any) -> Iterator[str]:
    """Yields every text within a message."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)
