"""Transforms that bring columns into the names and shapes training reads."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from reasonjax.errors import UserError, listing, nearest

Example = Mapping[str, Any]

# Names other data sets give to the two speakers.
_ROLES = {'human': 'user', 'gpt': 'assistant', 'bot': 'assistant', 'model': 'assistant'}


def take(example: Example, name: str, knob: str) -> Any:
    """Returns column `name`, which `knob` of a transform names; a UserError lists the columns there
    are."""
    if name not in example:
        raise UserError(
            f'no column "{name}" ({knob}); columns found: '
            f'{listing(example)}.{nearest(name, example)}'
        )
    if example[name] is None:
        raise UserError(f'column "{name}" ({knob}) is null')
    return example[name]


def prompt_completion(
    example: Example,
    rng: np.random.Generator,
    *,
    prompt: str = 'prompt',
    completion: str = 'completion',
) -> Iterable[dict[str, Any]]:
    """Renames two columns to `prompt` and `completion`.

    Args:
        example: a row.
        rng: not used.
        prompt: the column with the prompt.
        completion: the column with the answer to learn; '' where there is none to learn.

    Raises:
        UserError: no such column.
    """
    pair = {'prompt': take(example, prompt, 'prompt_completion.prompt')}
    if completion:
        pair['completion'] = take(example, completion, 'prompt_completion.completion')
    return [
        {key: value for key, value in example.items() if key not in (prompt, completion)} | pair
    ]


def messages(
    example: Example,
    rng: np.random.Generator,
    *,
    messages: str = 'messages',
    role: str = 'role',
    content: str = 'content',
) -> Iterable[dict[str, Any]]:
    """Brings a conversation to `messages`, a list of {role, content}; `human` and `gpt` become
    `user` and `assistant`.

    Args:
        example: a row.
        rng: not used.
        messages: the column with the conversation (`conversations` in ShareGPT files).
        role: the key of the speaker in a message (`from` in ShareGPT files).
        content: the key of the text in a message (`value` in ShareGPT files).

    Raises:
        UserError: no such column, not a list of messages, or a message without these keys.
    """
    turns = take(example, messages, 'messages.messages')
    if not isinstance(turns, list | tuple) or not turns:
        raise UserError(
            f'column "{messages}" (messages.messages) must be a non-empty list of messages, '
            f'found {type(turns).__name__}'
        )
    conversation = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping):
            raise UserError(
                f'column "{messages}": message {number} must be a mapping with {role} and '
                f'{content}, '
                f'found {type(turn).__name__}'
            )
        for key, knob in ((role, 'messages.role'), (content, 'messages.content')):
            if key not in turn:
                raise UserError(
                    f'column "{messages}": message {number} has no "{key}" ({knob}); '
                    f'keys found: {listing(turn)}.{nearest(key, turn)}'
                )
        others = {key: value for key, value in turn.items() if key not in (role, content)}
        conversation.append(
            {'role': _ROLES.get(turn[role], turn[role]), 'content': turn[content]} | others
        )
    return [
        {key: value for key, value in example.items() if key != messages}
        | {'messages': conversation}
    ]


def chat(
    example: Example, rng: np.random.Generator, *, system: str = ''
) -> Iterable[dict[str, Any]]:
    """Wraps a string prompt, and the completion where there is one (white space around it taken
    off), into messages for a chat template.

    Args:
        example: an example with `prompt` and perhaps `completion`, as strings.
        rng: not used.
        system: the system message; '' for none.

    Raises:
        UserError: no prompt, or columns that are not strings.
    """
    chats = {}
    for name, speaker in (('prompt', 'user'), ('completion', 'assistant')):
        if name == 'completion' and name not in example:
            continue
        text = take(example, name, 'chat')
        if not isinstance(text, str):
            raise UserError(f'column "{name}" (chat) must be a string, found {type(text).__name__}')
        # The space that parts a completion from its prompt has no place in a turn of its own.
        chats[name] = [{'role': speaker, 'content': text.strip() if name == 'completion' else text}]
    if system:
        chats['prompt'] = [{'role': 'system', 'content': system}, *chats['prompt']]
    return [{**example, **chats}]


def rename(
    example: Example, rng: np.random.Generator, *, columns: Mapping[str, str]
) -> Iterable[dict[str, Any]]:
    """Gives columns other names, such as `dict(completions='steps')`: some names are what reward
    functions are given.

    Args:
        example: a row.
        rng: not used.
        columns: name -> new name; '' leaves the column out.

    Raises:
        UserError: no such column, or one of the new name is there already.
    """
    for name, new in columns.items():
        if name not in example:
            raise UserError(
                f'no column "{name}" (rename.columns); columns found: '
                f'{listing(example)}.{nearest(name, example)}'
            )
        if new in example and new not in columns:
            raise UserError(
                f'column "{new}" (rename.columns) is there already; choose another name for '
                f'"{name}"'
            )
    kept = {name: value for name, value in example.items() if name not in columns}
    return [kept | {new: example[name] for name, new in columns.items() if new}]


def constants(
    example: Example, rng: np.random.Generator, *, values: Mapping[str, Any]
) -> Iterable[dict[str, Any]]:
    """Gives every row columns of the same value, such as
    `dict(chat_template_kwargs=dict(enable_thinking=False))`.

    Args:
        example: a row; a column that it has already stays as it is.
        rng: not used.
        values: column -> value.
    """
    return [{**values, **example}]
