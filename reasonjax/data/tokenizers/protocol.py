"""What every tokenizer offers, and what their makers share."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from reasonjax.errors import UserError, one_line
from reasonjax.files import half_character

Message = Mapping[str, Any]
Texts = Callable[[], Iterable[str]]


class Tokenizer(Protocol):
    """What the pipeline, the sampler and the programs expect of a tokenizer.

    Attributes:
        pad_id: fills rows; never one of `eos_ids`.
        eos_ids: every id that ends an answer; training appends the first.
        bos_id: what stands in front of plain text; None for nothing.
        mask_id: what replaces a masked input; None for none.
        vocab_size: one more than the largest id.
    """

    pad_id: int
    eos_ids: tuple[int, ...]
    bos_id: int | None
    mask_id: int | None
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text; adds no special ids."""
        ...

    def encode_more(self, text: str, before: str = '') -> list[int]:
        """Returns the ids of a text that continues `before`, without what the vocabulary puts in
        front of a whole text."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; drops PAD, EOS, BOS and the mask."""
        ...

    def token(self, token_id: int) -> str:
        """Returns one id as a person reads it, special ids included."""
        ...

    def chat_text(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        *,
        tools: Sequence[Mapping] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
    ) -> str:
        """Renders a conversation by the chat template.

        Args:
            messages: at least one; {role, content} and whatever else the template reads.
            add_generation_prompt: end with what opens the assistant's next turn.
            tools: JSON schemas of the functions the model may call.
            template_kwargs: more variables of the template, such as `enable_thinking`.
            continue_final_message: leave the last message open, to be continued.

        Raises:
            UserError: no chat template, or one that refuses these messages.
        """
        ...

    def chat(
        self, messages: Sequence[Message], add_generation_prompt: bool, **options: Any
    ) -> list[int]:
        """Returns `encode(chat_text(...))`."""
        ...

    def fingerprint(self) -> str:
        """Returns a hash of everything that decides which ids a text gets."""
        ...


def continued(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """Encodes a text that continues another, without the space that Llama-2-like vocabularies put
    before every text."""
    if is_context_free(encode):
        return encode(text)
    # The text is encoded behind something it does not merge with, of which the ids are then taken
    # off.
    for before in ('\n', '.', '0', 'a'):
        start, ids = encode(before), encode(before + text)
        if ids[: len(start)] == start:
            return ids[len(start) :]
    raise UserError(
        f'the tokenizer merges {shown(text)} with whatever stands before it, so it cannot continue '
        'a prompt'
    )


def is_context_free(encode: Callable[[str], list[int]]) -> bool:
    """Returns whether a text gets the same ids at the start and after another text."""
    return encode('\na') == [*encode('\n'), *encode('a')]


def specials(tokenizer: Tokenizer) -> set[int | None]:
    """Returns the ids that `decode` drops: PAD, EOS, BOS and the mask."""
    return {tokenizer.pad_id, *tokenizer.eos_ids, tokenizer.bos_id, tokenizer.mask_id}


def refuse_text(text: str, error: Exception) -> NoReturn:
    """Raises a UserError for a text over which a tokenizer's library raised an error."""
    if half := half_character(text):
        raise UserError(
            f'{shown(text)} holds half a character ({half}, a lone surrogate), which no tokenizer '
            'reads; mend or drop it'
        ) from error
    raise UserError(f'the tokenizer refuses {shown(text)}: {one_line(str(error))}') from error


def no_template(what: str) -> str:
    return (
        f'the tokenizer {what} has no chat template: give prompt and completion as strings, '
        'or a Hugging Face tokenizer with a template (tokenizer.chat_template names a file of one)'
    )


def hashed(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + '...')
