"""Training a vocabulary from the text at hand."""

import io
import os
import pathlib
from collections.abc import Iterable

from reasonjax.errors import UserError, one_line


def train_sentencepiece(texts: Iterable[str], path: pathlib.Path, vocab_size: int) -> None:
    """Trains a byte-pair vocabulary and writes it to `path` in one atomic rename.

    Pieces: `<pad>` 0, `</s>` 1, `<s>` 2, `<unk>` 3, `<mask>` 4, then 256 bytes, so that any text
    can be spelt. Digits are single pieces; white space is kept as it is. The same texts give the
    same bytes.

    Args:
        texts: the training texts.
        path: the `.model` file to write; its folder is made.
        vocab_size: number of pieces.

    Raises:
        UserError: no texts, or too few of them for `vocab_size`.
    """
    import sentencepiece as library

    texts = [text for text in texts if text]
    if not texts:
        raise UserError('tokenizer sentencepiece: no texts to train a vocabulary from')
    longest = max(map(_size, texts))
    model = io.BytesIO()
    try:
        library.SentencePieceTrainer.Train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type='bpe',
            vocab_size=vocab_size,
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            # A control piece, unlike a user-defined one, is never produced by encode: a text that
            # spells <mask> stays text.
            control_symbols=['<mask>'],
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name='identity',
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            # The library silently skips longer texts.
            max_sentence_length=longest + 1,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:
        # Some conditions have words behind them, others are all that is said.
        reason = str(error).rpartition('] ')[2] or one_line(str(error))
        raise UserError(
            f'tokenizer.vocab_size: no vocabulary of {vocab_size} pieces from {len(texts)} texts: '
            f'{reason}'
        ) from error
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    unfinished.write_bytes(model.getvalue())
    os.replace(unfinished, path)


def _size(text: str) -> int:
    """Returns the number of bytes of a text in UTF-8."""
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        # which is in a package that imports this module
        from reasonjax.data.tokenizers.protocol import refuse_text

        refuse_text(text, error)
