"""Chat templates of Hugging Face tokenizers: what one is found to do, and errors that say which
message it refuses."""

import functools
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from reasonjax.data.messages import MARK
from reasonjax.data.tokenizers import Message
from reasonjax.errors import UserError, listing, nearest, one_line
from reasonjax.files import expanded, read_text

LONGEST = 2**17  # characters of a template; the longest known have 30,000


def choose(tokenizer: Any, chat_template: str, path: str) -> None:
    """Gives the tokenizer the template that the knob `chat_template` asks for: one of its own by
    name, or a file.

    Raises:
        UserError: no such template and no such file.
    """
    if '{' in chat_template:
        raise UserError(
            'tokenizer.chat_template: expected a name or a file, got what looks like a template; '
            'put it in a file'
        )
    own = tokenizer.chat_template
    names = sorted(own) if isinstance(own, Mapping) else []
    file = expanded(chat_template)
    if chat_template in names:
        tokenizer.chat_template = own[chat_template]
    elif file.is_file():
        if (size := file.stat().st_size) > 4 * LONGEST:
            raise UserError(
                f'tokenizer.chat_template: {file} has {size:,} bytes, but none of more than '
                f'{LONGEST:,} characters is used'
            )
        tokenizer.chat_template = read_text(file)
    else:
        raise UserError(
            f'tokenizer.chat_template: "{chat_template}" is neither a file nor a template of '
            f'{path}, which names {listing(names) or "none"}.{nearest(chat_template, names)}'
        )


def check(template: Any, path: str) -> None:
    """Raises a UserError unless this is what a tokenizer has for a template: a text, texts by name,
    or None."""
    for name, text in template.items() if isinstance(template, Mapping) else [('', template)]:
        called = f'the chat template "{name}"' if name else 'the chat template'
        if not isinstance(name, str) or (text is not None and not isinstance(text, str)):
            wrong = text if isinstance(name, str) else name
            raise UserError(
                f'{called} of {path}: name and template must be text, found {type(wrong).__name__}'
            )
        if text is not None and len(text) > LONGEST:
            raise UserError(
                f'{called} of {path} has {len(text):,} characters, but none longer than '
                f'{LONGEST:,} is used'
            )


def render(
    tokenizer: Any,
    path: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    tools: Sequence[Mapping] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    continue_final_message: bool = False,
) -> str:
    """Renders as `tokenizer.apply_chat_template` does; see `Tokenizer.chat_text`.

    Raises:
        UserError: several templates and none called default, tools or variables that the template
            does not read, a template that runs for too long or makes too much, or one that refuses
            these messages (the first it refuses is named).
    """
    if isinstance(tokenizer.chat_template, Mapping) and 'default' not in tokenizer.chat_template:
        raise UserError(
            f'the tokenizer in {path} has several chat templates and none is called default; '
            f'name one in tokenizer.chat_template: {listing(tokenizer.chat_template)}'
        )
    if not messages:
        raise UserError('a conversation needs at least one message')
    given = dict(template_kwargs or {})
    _check_variables(tokenizer, path, tools, given)

    def attempt(upto: int, add_generation_prompt: bool) -> str:
        return _rendered(
            tokenizer,
            path,
            list(messages[:upto]),
            tools=list(tools) if tools else None,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message and upto == len(messages),
            **given,
        )

    try:
        return attempt(len(messages), add_generation_prompt)
    except UserError:
        raise
    except Exception as error:  # a template is a program, and raises what programs raise
        reason = error
    number = len(messages)
    for upto in range(1, len(messages)):
        try:
            attempt(upto, False)
        except UserError:
            raise
        except Exception as error:
            # A shorter conversation may be refused for a reason of its own.
            if str(error) == str(reason):
                number = upto
                break
    roles = dict.fromkeys(str(message.get('role')) for message in messages)
    raise UserError(
        f'the chat template of {path} refuses message {number} (role '
        f'"{messages[number - 1].get("role")}"): {_in_words(reason)}; '
        f'roles seen: {", ".join(roles)}'
    ) from reason


def takes_parts(tokenizer: Any, path: str) -> bool:
    """Checks whether the template reads content given as a list of parts. Others refuse it, or
    print it as Python shows lists.

    Some read nothing else: they refuse content given as text, or leave it out.
    """
    if tokenizer.chat_template is None:
        return False
    plain, parts = (
        _tried(tokenizer, path, [{'role': 'user', 'content': c}])
        for c in (MARK, [{'type': 'text', 'text': MARK}])
    )
    return parts == plain is not None or (MARK in (parts or '') and MARK not in (plain or ''))


def turn_end(tokenizer: Any, path: str) -> int | None:
    """Returns the id that the template writes right after an answer (spaces aside). None where that
    is no token of its own.

    A model trained on the template ends its answers with this id, whatever the tokenizer calls its
    EOS.
    """
    if tokenizer.chat_template is None:
        return None
    text = _tried(
        tokenizer, path, [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': MARK}]
    )
    if text is None:
        # A template that refuses a plain exchange says so when it is used.
        return None
    _, mark, after = text.rpartition(MARK)
    added = tokenizer.get_added_vocab()
    ends = [token for token in added if token and after.lstrip().startswith(token)]
    return added[max(ends, key=len)] if mark and ends else None


def _rendered(tokenizer: Any, path: str, messages: Sequence[Message], **options: Any) -> str:
    from reasonjax.interop.huggingface.tokenizers import bounded

    try:
        return bounded.render(
            functools.partial(tokenizer.apply_chat_template, messages, tokenize=False, **options)
        )
    except bounded.TooMuch as error:
        raise UserError(
            f'the chat template of {path} {error}; give another one (tokenizer.chat_template names '
            'a file)'
        ) from error


def _tried(tokenizer: Any, path: str, messages: list[Message]) -> str | None:
    """Renders messages with a template; returns None where the template refuses them."""
    try:
        return _rendered(tokenizer, path, messages)
    except UserError:
        raise
    except Exception:  # a template is a program, and raises what programs raise
        return None


def _in_words(error: Exception) -> str:
    """Returns what a template says of messages that it refuses, or what went wrong in it."""
    import jinja2

    own = isinstance(error, jinja2.TemplateError | TypeError | ValueError)
    return one_line(str(error)) if own else f'{type(error).__name__}: {one_line(str(error))}'


def _check_variables(
    tokenizer: Any, path: str, tools: Sequence[Mapping] | None, given: Mapping[str, Any]
) -> None:
    """Raises a UserError where the template would not read what it is given beside the messages."""
    if not tools and not given:
        return
    parameters = inspect.signature(tokenizer.apply_chat_template).parameters.values()
    template = tokenizer.get_chat_template(tools=tools)
    for name, value in {'tools': tools or None, **given}.items():
        # `documents` are handed to the template; the other parameters are not its variables.
        if (
            name in given
            and name != 'documents'
            and any(p.name == name and p.kind is not p.VAR_KEYWORD for p in parameters)
        ):
            raise UserError(
                f'chat_template_kwargs: "{name}" is not a variable of a chat template; leave it out'
            )
        if not re.search(rf'\b{re.escape(name)}\b', template) and value not in (None, '', [], {}):
            where = 'column "tools"' if name == 'tools' else 'chat_template_kwargs'
            raise UserError(
                f'{where}: the chat template of {path} does not read "{name}", so it would have no '
                'effect; leave it out'
            )
