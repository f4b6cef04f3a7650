"""Whether the text of a conversation has all that a message says: seen from the text, or by marks
put into the message."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from reasonjax.data.messages import MARK, THOUGHTS, parsed, words
from reasonjax.data.tokenizers import Message

CONTENT = 'its content'
# Shorter texts may be part of what a template writes by itself.
_TELLING = 16
# Behind a word at the end of a text, or before what may be a tag: some templates cut content at
# `</think>`.
_CUTS = re.compile(r'(?<=[^\s<>\[\]])(?=\s*(?:[<\[]|\Z))')


class Mark(NamedTuple):
    """Text that was put into a message.

    Attributes:
        what: of the message holds it.
        text: unlike any other.
        count: how often a text that has all of the message has it, at least.
    """

    what: str
    text: str
    count: int


def left_out(message: Message, text: str, again: Callable[[Message], str]) -> str:
    """Names the part of an answer that its rendering lacks; '' for none.

    Args:
        message: in the form in which it was rendered.
        text: what the template made of it.
        again: renders the message with marks in its texts, for what the text alone does not settle.
    """
    is_plain = not message.get('tool_calls') and not any(
        message.get(key, '').strip() for key in THOUGHTS
    )
    if (is_telling(message) and position(message, text, 0) >= 0) or (
        is_plain and text.lstrip().startswith(words(message).strip())
    ):
        return ''
    changed, marks = marked(message, 0)
    return missing(marks, again(changed))


def missing(marks: Sequence[Mark], text: str, parts: bool = True) -> str:
    """Names the first piece of a message that a text lacks, entirely or in part; '' for none.

    Args:
        marks: of the message.
        text: its rendering.
        parts: whether a piece has to be there to its last part.
    """
    for mark in marks:
        count = text.count(mark.text)
        if not count or (parts and count < mark.count):
            return f'part of {mark.what}' if count else mark.what
    return ''


def is_telling(message: Message) -> bool:
    """Returns whether a message's words, where a text has them, must come from the message."""
    if message.get('tool_calls') or isinstance(message.get('content'), Mapping):
        return False
    return all(not piece or len(piece) >= _TELLING for piece in _pieces(message))


def position(message: Message, text: str, start: int) -> int:
    """Returns where a message's words end in a text, from `start` on; -1 where they are missing."""
    for piece in _pieces(message):
        start = text.find(piece, start)
        if start < 0:
            return -1
        start += len(piece)
    return start


def _pieces(message: Message) -> list[str]:
    thoughts = [
        message[key] for key in THOUGHTS if key in message and message['role'] == 'assistant'
    ]
    return [piece.strip() for piece in (*thoughts, words(message))]


def marked(message: Message, number: int) -> tuple[Message, list[Mark]]:
    """Returns a message with marks in its texts, names and arguments.

    Args:
        message: in the form in which it is to be rendered.
        number: tells its marks from those of other messages.
    """
    changed, marks, start = dict(message), [], f'{MARK}{number}n'

    def put(text: str, what: str, mark: str) -> str:
        text, count = _CUTS.subn(mark, text)
        marks.append(Mark(what, mark, max(1, count)))
        return text if count else text + mark

    content = message.get('content')
    if isinstance(content, str) and content.strip():
        changed['content'] = put(content, CONTENT, f'{start}c')
    elif isinstance(content, Mapping):
        changed['content'] = {**content, f'{start}c': f'{start}c'}
        marks.append(Mark(CONTENT, f'{start}c', 2))
    elif isinstance(content, list | tuple):
        changed['content'] = [
            {**part, 'text': put(part['text'], f'part {i} of its content', f'{start}p{i}z')}
            if part['text'].strip()
            else part
            for i, part in enumerate(content, 1)
        ]
    for key in THOUGHTS:
        if message['role'] == 'assistant' and message.get(key, '').strip():
            changed[key] = put(message[key], 'its thoughts', f'{start}t')
    if 'tool_calls' in message:
        changed['tool_calls'] = [
            _marked_call(call, i, f'{start}f{i}', marks)
            for i, call in enumerate(message['tool_calls'], 1)
        ]
    return changed, marks


def _marked_call(
    call: Mapping[str, Any], number: int, start: str, marks: list[Mark]
) -> Mapping[str, Any]:
    function = call.get('function', call)
    what = f'call {number} ("{function["name"]}")'
    marks += [Mark(what, f'{start}n', 1), Mark(f'the arguments of {what}', f'{start}a', 2)]
    arguments = {**parsed(function['arguments']), f'{start}a': f'{start}a'}
    text = (
        json.dumps(arguments, ensure_ascii=False)
        if isinstance(function['arguments'], str)
        else arguments
    )
    function = {**function, 'name': f'{function["name"]}{start}n', 'arguments': text}
    return {**call, 'function': function} if 'function' in call else function
