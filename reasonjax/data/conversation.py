"""A conversation: its messages, and what its row gives the chat template beside them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from reasonjax.data.messages import checked, is_chat
from reasonjax.data.tokenizers import Message
from reasonjax.errors import UserError
from reasonjax.files import parse_json


class Conversation(NamedTuple):
    """Messages, and what the template is given beside them.

    Attributes:
        messages: at least one; see `reasonjax.data.messages.checked`.
        options: `tools` and `template_kwargs` of `Tokenizer.chat_text`.
    """

    messages: Sequence[Message]
    options: Mapping[str, Any]


def conversation(
    messages: Sequence[Message], example: Mapping[str, Any], name: str
) -> Conversation:
    """Checks messages, and adds what the columns `tools` and `chat_template_kwargs` of their row
    say.

    Args:
        messages: see `is_chat`.
        example: the row.
        name: the column the messages are from, for errors.

    Raises:
        UserError: see `reasonjax.data.messages.checked`; or a column that is not what its name
          says.
    """
    try:
        tools = _without_nulls(_parsed(example.get('tools'), 'tools')) or None
    except RecursionError as error:
        raise UserError('column "tools" is nested too deeply') from error
    if tools is not None and not is_chat(tools):
        raise UserError('column "tools" must be a list of JSON schemas')
    template_kwargs = _parsed(example.get('chat_template_kwargs'), 'chat_template_kwargs') or {}
    if not isinstance(template_kwargs, Mapping):
        raise UserError(
            'column "chat_template_kwargs" must map variables of the chat template to values'
        )
    given = {key: value for key, value in template_kwargs.items() if value is not None}
    return Conversation(checked(messages, name, tools), {'tools': tools, 'template_kwargs': given})


def _parsed(value: Any, name: str) -> Any:
    """Parses a column that tables of fixed types hold as JSON text; returns others as they are."""
    return parse_json(value, f'column "{name}", which is text') if isinstance(value, str) else value


def _without_nulls(value: Any) -> Any:
    """Drops the null keys that a table gives to every schema because one has them."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list | tuple) else value
