"""Messages of a conversation as rows hold them: what is checked, and what is not part of them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from reasonjax.data.tokenizers import Message
from reasonjax.errors import UserError, listing, nearest
from reasonjax.files import parse_json

# Stands for a message's words where a template is tried out; holds nothing that a template could
# trim or escape.
MARK = 'reasonjaxmark'
# Names under which templates know what an assistant thinks before it answers.
THOUGHTS = ('reasoning_content', 'thinking', 'reasoning')
# Roles that templates know.
ROLES = ('system', 'developer', 'user', 'assistant', 'tool')
# Other names that data sets have for them.
OTHER_THOUGHTS = (
    'thought',
    'thoughts',
    'thinking_content',
    'thinking_blocks',
    'reasoning_text',
    'reasoning_details',
    'chain_of_thought',
)
# Keys that say something and that no template for text writes, and what to do.
_UNREADABLE = {
    'function_call': 'give "tool_calls"',
    'refusal': 'put it into "content"',
    **dict.fromkeys(
        ('image', 'images', 'audio', 'audios', 'video', 'videos'), 'only text can be read'
    ),
}


def is_chat(value: Any) -> bool:
    """Returns whether a column holds messages rather than text: a non-empty list of mappings."""
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(message, Mapping) for message in value)
    )


def words(message: Message) -> str:
    """Returns the content of a message (text, text parts or an object) as one text; '' for none.

    Raises:
        UserError: a part that is not text.
    """
    content = message.get('content')
    if isinstance(content, Mapping):
        return json.dumps(content, ensure_ascii=False)
    if not isinstance(content, list | tuple):
        return '' if content is None else str(content)
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get('text'), str):
            kind = (
                part.get('type', listing(part))
                if isinstance(part, Mapping)
                else type(part).__name__
            )
            raise UserError(
                f'"content" holds a part that is not text ({kind}); only text can be read'
            )
    return ''.join(part['text'] for part in content)


def checked(
    messages: Sequence[Message], name: str, tools: Sequence[Mapping[str, Any]] | None = None
) -> list[Message]:
    """Checks messages and drops what a table fills in: keys without a value, empty lists of calls,
    second copies of thoughts, arguments without a value that their tool does not know.

    Args:
        messages: mappings.
        name: the column they are from, for errors.
        tools: schemas of what may be called, if known.

    Raises:
        UserError: a message without role or content, with something that only other models read,
            with thoughts that are no text or contradict one another, or with calls that are none
            (arguments given as text must be a JSON object).
    """
    known = {function['name']: function.get('parameters') for function in _functions(tools)}
    return [
        _checked(message, f'column "{name}": message {number}', known)
        for number, message in enumerate(messages, 1)
    ]


def parsed(arguments: Any, where: str = '') -> Any:
    """Returns the arguments of a call, which may be given as JSON text, or not at all.

    Raises:
        UserError: text that is not JSON.
    """
    return (
        parse_json(arguments, where)
        if isinstance(arguments, str)
        else {}
        if arguments is None
        else arguments
    )


def tool_names(tools: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """Returns the names of the functions that schemas describe; a tool that is none
    (`code_interpreter`) has no name."""
    return [function['name'] for function in _functions(tools)]


def _functions(tools: Sequence[Mapping[str, Any]] | None) -> list[Mapping[str, Any]]:
    functions = [
        tool['function'] if isinstance(tool.get('function'), Mapping) else tool
        for tool in tools or ()
    ]
    return [function for function in functions if isinstance(function.get('name'), str)]


def _checked(message: Message, where: str, known: Mapping[str, Any]) -> Message:
    role = message.get('role')
    if role is not None and not isinstance(role, str):
        raise UserError(f'{where}: "role" must be text, found {type(role).__name__}')
    if role is None:
        hint = nearest('role', message.keys() - {'role'})
        raise UserError(
            f'{where} has no "role"; keys found: {listing(message)}.{hint} The transform '
            '"messages" renames keys'
        )
    if role not in ROLES and (spelt := role.strip().lower()) in ROLES:
        raise UserError(f'{where}: the role {role!r} must be spelt "{spelt}"')
    where = f'{where} ({role})'
    clean = {key: value for key, value in message.items() if value is not None}
    if not clean.get('tool_calls'):
        clean.pop('tool_calls', None)
    for key, way in _UNREADABLE.items():
        if clean.get(key):
            raise UserError(f'{where} has "{key}", which chat templates do not read; {way}')
    speaking = ('content', 'tool_calls', *THOUGHTS) if role == 'assistant' else ('content',)
    if all(clean.get(key) is None for key in speaking):
        if 'content' in message:
            raise UserError(
                f'{where} has the "content" null, which only an answer with calls or thoughts may '
                'have; an empty one is ""'
            )
        raise UserError(
            f'{where} has no "content"; keys found: '
            f'{listing(message)}.{nearest("content", message)}'
        )
    if 'content' in clean:
        clean['content'] = _content(clean, where)
    if role != 'assistant':
        if 'tool_calls' in clean:
            raise UserError(f'{where} has "tool_calls", which only assistants make')
        return clean
    if clean.get('weight', 1) not in (0, 1):
        raise UserError(
            f'{where}: "weight" must be 0 (not to be learnt) or 1, found {clean["weight"]!r}'
        )
    if 'tool_calls' in clean:
        clean['tool_calls'] = _calls(clean['tool_calls'], where, known)
    return _with_one_thought(clean, where)


def _content(message: Message, where: str) -> Any:
    """Returns a message's content: text, text parts or, of a tool, an object (or JSON text)."""
    content, is_result = message['content'], message['role'] == 'tool'
    if isinstance(content, str) or (is_result and isinstance(content, Mapping)):
        return content
    if is_result and (
        isinstance(content, bool | int | float)
        or (isinstance(content, list | tuple) and not _has_parts(content))
    ):
        return json.dumps(content, ensure_ascii=False)
    if not isinstance(content, list | tuple):
        raise UserError(
            f'{where}: "content" must be text or a list of parts, found {type(content).__name__}'
        )
    try:
        words(message)
    except UserError as error:
        raise UserError(f'{where}: {error}') from error
    return content


def _has_parts(content: Sequence[Any]) -> bool:
    return len(content) > 0 and all(
        isinstance(part, Mapping) and ('type' in part or 'text' in part) for part in content
    )


def _with_one_thought(message: dict[str, Any], where: str) -> dict[str, Any]:
    thoughts = {key: message[key] for key in THOUGHTS if key in message}
    for key, value in thoughts.items():
        if not isinstance(value, str):
            raise UserError(f'{where}: "{key}" must be text, found {type(value).__name__}')
    kept = [key for key, value in thoughts.items() if value.strip()] or list(thoughts)
    if len({thoughts[key] for key in kept}) > 1:
        raise UserError(
            f'{where} has different thoughts under {" and ".join(kept)}; keep one of them'
        )
    return {key: value for key, value in message.items() if key not in thoughts or key == kept[0]}


def _calls(calls: Any, where: str, known: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise UserError(
            f'{where}: "tool_calls" must be a list of {{"function": {{"name", "arguments"}}}}, '
            f'found {type(calls).__name__}'
        )
    return [_call(call, f'{where}: call {number}', known) for number, call in enumerate(calls, 1)]


def _call(call: Mapping[str, Any], where: str, known: Mapping[str, Any]) -> Mapping[str, Any]:
    call = {key: value for key, value in call.items() if value is not None}
    function = call.get('function', call)
    if (
        not isinstance(function, Mapping)
        or not isinstance(function.get('name'), str)
        or not function['name']
    ):
        raise UserError(
            f'{where} has no name; keys found: '
            f'{listing(function if isinstance(function, Mapping) else call)}'
        )
    arguments = function.get('arguments')
    if not isinstance(parsed(arguments, f'{where} ("{function["name"]}"), arguments'), Mapping):
        raise UserError(
            f'{where} ("{function["name"]}"): arguments must be a JSON object, found '
            f'{type(arguments).__name__}'
        )
    parameters = known.get(function['name'])
    if (
        isinstance(arguments, Mapping)
        and isinstance(parameters, Mapping)
        and isinstance(parameters.get('properties'), Mapping)
    ):
        arguments = {
            key: value
            for key, value in arguments.items()
            if value is not None or key in parameters['properties']
        }
    function = {**function, 'arguments': {} if arguments is None else arguments}
    return {**call, 'function': function} if 'function' in call else function
