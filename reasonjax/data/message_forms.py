"""The form in which a chat template reads a message.

Templates differ in what they read and how: thoughts have three names, arguments of a call are an
object or JSON text, an answer without words is '' or nothing at all, content is text or parts. What
a template does not read it leaves out and says nothing. So each kind of message is tried out once,
with marks for its texts, and given in the first form in which the template writes all of them as
they are.
"""

import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from reasonjax.data.messages import MARK, OTHER_THOUGHTS, ROLES, THOUGHTS, parsed, words
from reasonjax.data.tokenizers import Message, Tokenizer
from reasonjax.errors import UserError

# What a template may leave out: `message_marks` sees to the texts, `check_order` to the links,
# `documents` of chat to the weight.
_SEEN_TO = ('role', 'content', 'tool_calls', 'tool_call_id', 'weight')
_QUESTION = {'role': 'user', 'content': 'reasonjaxquestion'}
_CALL = {
    'id': 'reasonjx1',
    'type': 'function',
    'function': {'name': 'reasonjaxtool', 'arguments': {'reasonjaxkey': MARK}},
}
_RESULT = {
    'role': 'tool',
    'name': 'reasonjaxtool',
    'tool_call_id': 'reasonjx1',
    'content': 'reasonjaxresult',
}
_PARAMETERS = {
    'type': 'object',
    'properties': {'reasonjaxkey': {'type': 'string', 'description': 'reasonjax'}},
}
_TOOL = {
    'type': 'function',
    'function': {'name': 'reasonjaxtool', 'description': 'reasonjax', 'parameters': _PARAMETERS},
}


class Form(NamedTuple):
    """How a message is given to a template.

    Attributes:
        content: 'given', 'text', 'parts', or for an answer without words 'empty', 'null' or
          'missing'.
        thoughts: the key of the thoughts; '' where there are none.
        arguments: of calls: 'object' or 'text'.
        calls: 'given', or 'wrapped' where each has to stand under "function".
    """

    content: str = 'given'
    thoughts: str = ''
    arguments: str = 'object'
    calls: str = 'given'


def fitted(
    messages: Sequence[Message], tokenizer: Tokenizer, options: Mapping[str, Any]
) -> list[Message]:
    """Returns messages in the forms that the chat template reads.

    Args:
        messages: see `reasonjax.data.messages.checked`.
        tokenizer: with the template.
        options: `tools` and `template_kwargs` of `Tokenizer.chat_text`.
    """
    return [
        in_form(
            m, form_of(tokenizer, json.dumps(_with_marks(m), sort_keys=True), *settings(options))
        )
        for m in messages
    ]


def settings(options: Mapping[str, Any]) -> tuple[bool, str]:
    """Returns what a form may depend on: whether there are tools, and the variables as JSON."""
    return bool(options.get('tools')), json.dumps(
        options.get('template_kwargs') or {}, sort_keys=True, default=str
    )


def sample_options(has_tools: bool, variables: str) -> dict[str, Any]:
    """Returns template options: a sample tool if `has_tools`, and the variables that JSON gives."""
    return {'tools': [_TOOL] if has_tools else None, 'template_kwargs': json.loads(variables)}


def exchange(called: bool) -> list[Message]:
    """Returns a question, an answer that holds `MARK` (a call, where `called`), and what follows: a
    question, or the result."""
    if not called:
        return [_QUESTION, {'role': 'assistant', 'content': MARK}, _QUESTION]
    return [_QUESTION, {'role': 'assistant', 'content': '', 'tool_calls': [_CALL]}, _RESULT]


@functools.lru_cache(maxsize=4096)
def form_of(tokenizer: Tokenizer, kind: str, has_tools: bool, variables: str) -> Form:
    """Finds the first form in which the template writes all of a message as it is, or else the one
    in which it writes most.

    Args:
        tokenizer: with the template.
        kind: the message with a mark for every text, as JSON.
        has_tools: whether the template is given tools.
        variables: its `template_kwargs`, as JSON.
    """
    message = json.loads(kind)
    forms = list(_forms(message))
    if len(forms) == 1:
        return forms[0]
    options, marks = sample_options(has_tools, variables), set(re.findall(MARK + r'\d', kind))
    best, most = forms[0], -1
    for form in forms:
        text, plain = _tried(in_form(message, form), tokenizer, options)
        # As Python shows a mapping or nothing, or JSON within a JSON text.
        is_odd = (
            f"{{'{MARK}" in text or f'\\"{MARK}' in text or text.count('None') > plain.count('None')
        )
        written = sum(mark in text for mark in marks) - is_odd
        if text and written > most:
            best, most = form, written
        if text and written == len(marks):
            break
    return best


def _tried(message: Message, tokenizer: Tokenizer, options: Mapping[str, Any]) -> tuple[str, str]:
    """Renders a message within a suitable conversation, and the question of that conversation
    alone. Both are '' where the template refuses the message."""

    def rendered(messages: list[Message]) -> str:
        return tokenizer.chat_text(messages, messages[-1]['role'] != 'assistant', **options)

    try:
        if message['role'] == 'user':
            return rendered([message]), ''
        before = fitted(
            exchange(called=True)[: 2 if message['role'] == 'tool' else 1], tokenizer, options
        )
        is_answer = message['role'] in ('assistant', 'tool')
        return rendered([*before, message] if is_answer else [message, *before]), rendered(
            before[:1]
        )
    except UserError:
        return '', ''


def _forms(message: Message) -> Iterator[Form]:
    content, is_answer = message.get('content'), message['role'] == 'assistant'
    if not content:
        contents = ('given', 'empty', 'null', 'missing') if is_answer else ('given',)
    elif isinstance(content, Mapping):
        contents = ('given', 'text')
    else:
        contents = ('given', 'parts') if isinstance(content, str) else ('given', 'text', 'parts')
        if is_answer and len(content) > 1 and not isinstance(content, str):
            # some templates trim each part: a model would learn words without the space between
            contents = ('text', 'parts', 'given')
    key = next((key for key in THOUGHTS if is_answer and message.get(key)), '')
    thoughts = (key, *(other for other in THOUGHTS if other != key)) if key else ('',)
    calls = message.get('tool_calls', ())
    arguments = ('object', 'text') if calls else ('object',)
    wraps = ('given',) if all('function' in call for call in calls) else ('given', 'wrapped')
    return itertools.starmap(Form, itertools.product(contents, thoughts, arguments, wraps))


def in_form(message: Message, form: Form) -> Message:
    """Rewrites a message in the given form."""
    changed, content = dict(message), message.get('content')
    if form.content == 'missing':
        changed.pop('content', None)
    elif form.content in ('empty', 'null'):
        changed['content'] = '' if form.content == 'empty' else None
    elif form.content in ('text', 'parts'):
        text = (
            json.dumps(content, ensure_ascii=False)
            if isinstance(content, Mapping)
            else words(message)
        )
        changed['content'] = text if form.content == 'text' else [{'type': 'text', 'text': text}]
    if form.thoughts and form.thoughts not in changed:
        changed[form.thoughts] = changed.pop(next(key for key in THOUGHTS if key in changed))
    if 'tool_calls' in changed:
        changed['tool_calls'] = [_call_in_form(call, form) for call in changed['tool_calls']]
    return changed


def _call_in_form(call: Mapping[str, Any], form: Form) -> Mapping[str, Any]:
    function = dict(call.get('function', call))
    if form.arguments == 'object':
        function['arguments'] = parsed(function['arguments'])
    elif not isinstance(function['arguments'], str):
        function['arguments'] = json.dumps(function['arguments'], ensure_ascii=False)
    if 'function' in call:
        return {**call, 'function': function}
    if form.calls == 'given':
        return function
    outside = {key: function.pop(key) for key in ('id', 'type', 'index') if key in call}
    return {'type': 'function', **outside, 'function': function}


def _with_marks(message: Message) -> Message:
    """Replaces every text of a message by a mark. Parts and calls after the second are left out:
    they are assumed to be like the second."""
    marks = (f'{MARK}{i}' for i in range(10))
    changed: dict[str, Any] = {'role': message['role']}
    content = message.get('content')
    if isinstance(content, str):
        changed['content'] = next(marks) if content.strip() else ''
    elif isinstance(content, Mapping):
        changed['content'] = {next(marks): next(marks)}
    elif content is not None:
        changed['content'] = [{'type': 'text', 'text': next(marks)} for _ in content[:2]]
    if message['role'] == 'assistant':
        changed |= {
            key: next(marks) if message[key].strip() else '' for key in THOUGHTS if key in message
        }
    if 'tool_calls' in message:
        changed['tool_calls'] = [
            _call_with_marks(call, marks) for call in message['tool_calls'][:2]
        ]
    if message['role'] == 'tool':
        changed |= {key: _RESULT[key] for key in ('name', 'tool_call_id') if key in message}
    return changed


def _call_with_marks(call: Mapping[str, Any], marks: Iterator[str]) -> Mapping[str, Any]:
    arguments = parsed(call.get('function', call)['arguments'])
    function = {'name': next(marks), 'arguments': {next(marks): next(marks)} if arguments else {}}
    outside = {key: _CALL[key] for key in ('id', 'type') if key in call}
    return {**outside, 'function': function} if 'function' in call else outside | function


def check_order(messages: Sequence[Message], tokenizer: Tokenizer) -> None:
    """Raises UserError where results stand in another order than their calls and the template
    writes nothing that links them."""
    calls: list[str] = []
    results: list[str] = []
    differ = True  # the names of the functions
    for number, message in enumerate(messages, 1):
        if message['role'] != 'tool':
            tool_calls = message.get('tool_calls', ())
            names = [call.get('function', call)['name'] for call in tool_calls]
            calls = [call.get('id', '') for call in tool_calls]
            results = []
            differ = len({*names}) == len(names)
            continue
        results.append(message.get('tool_call_id', ''))
        is_known = all(results) and set(results) <= set(calls)
        if (
            is_known
            and results != calls[: len(results)]
            and not _links(tokenizer, differ, 'name' in message)
        ):
            raise UserError(
                f'message {number} (tool) is not the result of the call whose turn it is, and the '
                'chat template does not write which '
                'call it answers; put results in the order of the calls'
            )


@functools.lru_cache(maxsize=256)
def _links(tokenizer: Tokenizer, differ: bool, named: bool) -> bool:
    """Returns whether the template writes which call a result belongs to: its id, or its function
    where functions differ."""
    functions = {
        'reasonjx1': 'reasonjaxtool',
        'reasonjx2': 'reasonjaxother' if differ else 'reasonjaxtool',
    }
    calls = [
        {**_CALL, 'id': key, 'function': {**_CALL['function'], 'name': name}}
        for key, name in functions.items()
    ]
    before = [_QUESTION, {'role': 'assistant', 'content': '', 'tool_calls': calls}]
    texts = []
    for order in (functions, reversed(functions)):
        results = [
            {'role': 'tool', 'content': 'reasonjaxresult', 'tool_call_id': key} for key in order
        ]
        if named:
            results = [result | {'name': functions[result['tool_call_id']]} for result in results]
        try:
            texts.append(tokenizer.chat_text(fitted([*before, *results], tokenizer, {}), True))
        except UserError:
            return False
    return texts[0] != texts[1]


def check_roles(messages: Sequence[Message], tokenizer: Tokenizer) -> None:
    """Raises UserError where the template writes what a custom role says, but not that role."""
    for number, message in enumerate(messages, 1):
        if message['role'] not in ROLES and not _names(tokenizer, message['role']):
            raise UserError(
                f'message {number}: the chat template knows no role "{message["role"]}", and '
                'writes its content as if it were part of '
                'another message'
            )


def check_thoughts(messages: Sequence[Message], tokenizer: Tokenizer) -> None:
    """Raises UserError where an answer has thoughts only under a name that neither we nor the
    template know."""
    for number, message in enumerate(messages, 1):
        if message['role'] == 'assistant' and not any(message.get(key) for key in THOUGHTS):
            for key in OTHER_THOUGHTS:
                if message.get(key) and not reads(tokenizer, 'assistant', key):
                    raise UserError(
                        f'message {number} (assistant) has thoughts under "{key}", which the chat '
                        'template does not read; give them as '
                        f'text under one of {", ".join(THOUGHTS)}'
                    )


@functools.lru_cache(maxsize=256)
def _names(tokenizer: Tokenizer, role: str) -> bool:
    """Returns whether the template tells a role's messages from answers and the message before.
    True also where the template refuses or leaves out such messages."""

    def text(*between: Message) -> str:
        try:
            return tokenizer.chat_text(
                fitted([_QUESTION, *between, _QUESTION], tokenizer, {}), True
            )
        except UserError:
            return ''

    own = text({'role': role, 'content': MARK})
    return MARK not in own or (
        own != text({'role': 'assistant', 'content': MARK}) and own.replace(MARK, '') != text()
    )


@functools.lru_cache(maxsize=4096)
def reads(tokenizer: Tokenizer, role: str, key: str) -> bool:
    """Returns whether the chat template writes what messages of a role have under a key."""
    kinds = [{'role': role, 'content': MARK}]
    if role == 'assistant':
        kinds.append(exchange(called=True)[1])
    return any(
        'reasonjx2' in _tried({**kind, key: 'reasonjx2'}, tokenizer, {})[0]
        for kind in fitted(kinds, tokenizer, {})
    )


def unread(messages: Sequence[Message], tokenizer: Tokenizer) -> int:
    """Counts the keys of messages that hold something and that the chat template does not write (a
    user's name, a date); texts, thoughts and calls are not among them: without these nothing is
    learnt.
    """
    count = 0
    for message in messages:
        role = message.get('role')
        seen_to = {'assistant': (*_SEEN_TO, *THOUGHTS), 'tool': (*_SEEN_TO, 'name')}.get(
            role, _SEEN_TO
        )
        others = [
            key
            for key, value in message.items()
            if key not in seen_to and value not in (None, '', [], {})
        ]
        count += sum(not reads(tokenizer, role, key) for key in others)
    return count
