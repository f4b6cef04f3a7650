"""Tokenizers: text to ids and back, with the ids a language model gives a meaning to.

A factory is chosen by name in a config and called as `factory(texts, cache_dir, *, knobs)`: `texts`
returns an iterable of training texts, `cache_dir` is where a trained vocabulary is kept;
`characters` needs neither. What comes back is a `Tokenizer`, whatever its type. Those of Hugging
Face folders are in `reasonjax.interop.huggingface.tokenizers`.

`eos_ids` is every id that ends an answer; the first is the one training appends. PAD is never one
of them: masking PAD must not hide the end of an answer. `bos_id` is None unless the model expects
one in front of plain text.
"""

from reasonjax.data.tokenizers.plain import Characters, SentencePiece, characters, sentencepiece
from reasonjax.data.tokenizers.protocol import Message, Texts, Tokenizer

__all__ = [
    'Characters',
    'Message',
    'SentencePiece',
    'Texts',
    'Tokenizer',
    'characters',
    'sentencepiece',
]
