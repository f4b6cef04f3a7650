"""Hugging Face tokenizer folders."""

import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reasonjax.data.messages import words
from reasonjax.data.tokenizers.protocol import (
    Message,
    Texts,
    continued,
    hashed,
    is_context_free,
    no_template,
    refuse_text,
    specials,
)
from reasonjax.errors import UserError, one_line
from reasonjax.files import expanded, nearest_name, reason
from reasonjax.interop.huggingface.tokenizers import folder_checks, templates

# Enough of what stands before a text to hold the special token it may follow, with the white space
# between.
_REACH = 64


@dataclass(frozen=True)
class HuggingFace:
    """A tokenizer of the transformers library.

    Attributes:
        path: the folder, for errors.
        digest: hash of vocabulary and chat template.
        context_free: whether a text gets the same ids wherever it stands.
        takes_parts: whether the chat template reads content given as parts.
        added: matches an added token; None where there is none.
        tokenizer: of transformers; its `chat_template` is the one in use.
    """

    path: str
    pad_id: int
    eos_ids: tuple[int, ...]
    bos_id: int | None
    mask_id: int | None
    vocab_size: int
    digest: str
    context_free: bool
    takes_parts: bool
    added: re.Pattern | None = field(repr=False, compare=False)
    tokenizer: Any = field(repr=False, compare=False)

    def encode(self, text: str) -> list[int]:
        try:
            return _encode(self.tokenizer, text)
        except Exception as error:  # the tokenizers library raises nothing narrower
            refuse_text(text, error)

    def encode_more(self, text: str, before: str = '') -> list[int]:
        if self.context_free:
            return self.encode(text)
        # A special token cuts a text in two, so what follows depends on nothing before it. Some
        # vocabularies put a space after it, some do not.
        marks = (
            list(self.added.finditer(before, max(0, len(before) - _REACH))) if self.added else []
        )
        if marks:
            start = before[marks[-1].start() :]
            start_ids, ids = self.encode(start), self.encode(start + text)
            if ids[: len(start_ids)] == start_ids:
                return ids[len(start_ids) :]
        return continued(self.encode, text)

    def decode(self, ids: Iterable[int]) -> str:
        dropped = specials(self)
        kept = [i for i in map(int, ids) if i not in dropped]
        return self.tokenizer.decode(
            kept, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def token(self, token_id: int) -> str:
        name = self.tokenizer.convert_ids_to_tokens(token_id)
        if name is None:
            return '<pad>' if token_id == self.pad_id else '<mask>'
        if token_id in self.tokenizer.added_tokens_decoder:
            return name
        text = self.tokenizer.decode(
            [token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        # Part of a character has no text; Llama-2-like vocabularies drop the space that a first
        # word starts with.
        return (
            name.replace('\u2581', ' ') if '\ufffd' in text or name.startswith('\u2581') else text
        )

    def chat_text(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        *,
        tools: Sequence[Mapping] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
    ) -> str:
        if self.tokenizer.chat_template is None:
            raise UserError(no_template(f'in {self.path}'))
        in_words = [
            {**m, 'content': words(m)} if isinstance(m.get('content'), list | tuple) else m
            for m in messages
        ]
        return templates.render(
            self.tokenizer,
            self.path,
            messages if self.takes_parts else in_words,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            template_kwargs=template_kwargs,
            continue_final_message=continue_final_message,
        )

    def chat(
        self, messages: Sequence[Message], add_generation_prompt: bool, **options: Any
    ) -> list[int]:
        return self.encode(self.chat_text(messages, add_generation_prompt, **options))

    def fingerprint(self) -> str:
        return hashed(
            'huggingface', self.digest, self.pad_id, self.eos_ids, self.bos_id, self.mask_id
        )


def huggingface(
    texts: Texts,
    cache_dir: pathlib.Path,
    *,
    path: str = '',
    mask: str = '<mask>',
    chat_template: str = '',
) -> HuggingFace:
    """Opens the tokenizer of a local Hugging Face model folder; nothing is downloaded, no code of
    the folder is run.

    An answer ends with the tokenizer's EOS, any EOS of `generation_config.json`, or the token that
    the chat template writes after an answer. PAD is the tokenizer's own, unless it has none or
    uses an EOS for it: then PAD is a new id after the last token. BOS is used only where the
    tokenizer itself puts it in front of a text.

    Args:
        texts: not used.
        cache_dir: not used.
        path: the folder.
        mask: the token that replaces a masked input: the tokenizer's own mask token, else this one
            where the vocabulary has it, else a new id after the last token. '' for none, which
            leaves the vocabulary as it is.
        chat_template: '' for the folder's own (the one called default, where it has several), the
            name of another of them, or a file.

    Raises:
        UserError: no such folder, no tokenizer in it, one that cannot be read or needs the folder's
            own code, a tokenizer without EOS, no such chat template or one that cannot be used.
    """
    folder = expanded(path)
    if not path or not folder.is_dir():
        raise UserError(
            f'tokenizer.path: no folder {path!r}; expected a local Hugging Face model '
            f'folder.{nearest_name(folder)}'
        )
    tokenizer = _opened(folder)
    if chat_template:
        templates.choose(tokenizer, chat_template, path)
    templates.check(tokenizer.chat_template, path)
    vocabulary = tokenizer.get_vocab()
    size = max(vocabulary.values()) + 1
    eos_ids = _eos_ids(tokenizer, folder, size)
    pad_id = tokenizer.pad_token_id
    if pad_id is None or pad_id in eos_ids:
        pad_id, size = size, size + 1
    mask_id = tokenizer.mask_token_id if mask else None
    if mask and mask_id is None:
        mask_id = vocabulary.get(mask)
        if mask_id is None:
            mask_id, size = size, size + 1
    bos_id = tokenizer.bos_token_id
    if bos_id is not None and _tried(lambda: tokenizer.encode('a'), folder)[:1] != [bos_id]:
        bos_id = None
    if tokenizer.is_fast:
        # A tokenizer.json may carry these; silently truncated text is no text to train on.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    content = (
        tokenizer.backend_tokenizer.to_str()
        if tokenizer.is_fast
        else json.dumps(vocabulary, sort_keys=True)
    )
    added = '|'.join(
        re.escape(token)
        for token in sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        if token
    )
    return HuggingFace(
        path,
        pad_id,
        eos_ids,
        bos_id,
        mask_id,
        size,
        hashed(content, tokenizer.chat_template),
        _tried(lambda: is_context_free(lambda text: _encode(tokenizer, text)), folder),
        templates.takes_parts(tokenizer, path),
        re.compile(added) if added else None,
        tokenizer,
    )


def _encode(tokenizer: Any, text: str) -> list[int]:
    if tokenizer.is_fast:
        # Straight to the Rust object: the wrapper sets truncation state on every call, which
        # threads must not share.
        return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return tokenizer.encode(text, add_special_tokens=False)


def _opened(folder: pathlib.Path) -> Any:
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise UserError(f'tokenizer.path: {folder} cannot be read ({reason(error)})') from error
    if not folder_checks.has_vocabulary(folder):
        shown = ', '.join(names[:12]) + (f' and {len(names) - 12} more' if len(names) > 12 else '')
        raise UserError(
            f'tokenizer.path: no tokenizer in {folder} (expected tokenizer.json or '
            f'tokenizer.model; found {shown or "nothing"})'
        )
    folder_checks.check_files(folder)
    from_model = 'tokenizer.json' not in names and 'tokenizer.model' in names
    if from_model:
        folder_checks.check_model(folder / 'tokenizer.model')
    from transformers import AutoTokenizer

    tokenizer = _tried(
        lambda: AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        ),
        folder,
    )
    if from_model:
        _tried(lambda: folder_checks.check_conversion(_encode, tokenizer, folder), folder)
    folder_checks.check_tokenizer(tokenizer, folder)
    # No template, however it is written down.
    tokenizer.chat_template = tokenizer.chat_template or None
    return tokenizer


def _tried(work: Callable[[], Any], folder: pathlib.Path) -> Any:
    """Calls the tokenizers library, which raises nothing narrower than Exception, and for some
    files not even that."""
    try:
        return work()
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != 'PanicException':
            raise
        raise UserError(
            f'tokenizer.path: the tokenizer in {folder} cannot be read: {one_line(str(error))}'
        ) from error


def _eos_ids(tokenizer: Any, folder: pathlib.Path, size: int) -> tuple[int, ...]:
    ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    more = folder_checks.settings(folder / 'generation_config.json').get('eos_token_id')
    more = [] if more is None else more if isinstance(more, list) else [more]
    for token_id in more:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < size:
            raise UserError(
                f'{folder / "generation_config.json"}: eos_token_id {token_id!r} is not an id of '
                'the tokenizer, '
                f'which has {size}'
            )
    ids += more
    end = templates.turn_end(tokenizer, str(folder))
    ids += [] if end is None else [end]
    if not ids:
        raise UserError(
            f'tokenizer.path: neither the tokenizer nor generation_config.json in {folder} names '
            'an EOS, and no chat '
            'template writes one, so no answer could end'
        )
    return tuple(dict.fromkeys(ids))
