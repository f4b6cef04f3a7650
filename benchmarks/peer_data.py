"""The texts of the workload, made once into a folder: the same tokens for systems whose tokenizers
are of different libraries."""

import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import workload
from reasonjax.data import vocabulary
from reasonjax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
VOCABULARY, PROMPTS, ROWS, FAST = 'gsm4k.model', 'prompts.jsonl', 'sft.jsonl', 'hf_tokenizer'
SPECIAL = ('<pad>', '</s>', '<s>', '<unk>', '<mask>')
SPACE = '\N{LOWER ONE EIGHTH BLOCK}'


def source() -> pathlib.Path:
    """GSM8K's training split."""
    folder = pathlib.Path(os.environ.get('REASONJAX_DATA', ROOT.parent / 'shared' / 'data'))
    file = folder / 'gsm8k' / 'train.jsonl'
    if not file.is_file():
        raise UserError(
            f'no file {file}: set REASONJAX_DATA to a folder that holds gsm8k/train.jsonl '
            '(question and answer a line).'
        )
    return file


def prepare(
    folder: pathlib.Path, train: pathlib.Path, vocab_size: int = workload.MODEL['vocab']
) -> pathlib.Path:
    """Makes, if it is not there yet:

      gsm4k.model     the SentencePiece vocabulary
      prompts.jsonl   `prompt`, `answer`: the first questions of at most 128 tokens, BOS included
      sft.jsonl       `text` and its `ids`: rows of 256 tokens, BOS and EOS included
      hf_tokenizer/   the same vocabulary as a fast tokenizer of transformers, which puts BOS first

    Args:
      folder: to make it in.
      train: JSONL with `question` and `answer`.
      vocab_size: pieces.

    Returns:
      The folder.

    Raises:
      UserError: too little text, or tokenizers that disagree.
    """
    if (folder / ROWS).is_file():
        return folder
    rows = [json.loads(line) for line in train.read_text(encoding='utf-8').splitlines()]
    unfinished = folder.with_name(f'{folder.name}.unfinished')
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    texts = [f'{row["question"]}\n{row["answer"]}\n' for row in rows]
    vocabulary.train_sentencepiece(texts, unfinished / VOCABULARY, vocab_size)
    pieces = _pieces(unfinished / VOCABULARY)
    prompts = _prompts(rows, pieces)
    examples = list(_exact_rows(texts, pieces, workload.ROWS))
    fast = fast_tokenizer(unfinished / VOCABULARY)
    fast.save_pretrained(unfinished / FAST)
    for text in [row['prompt'] for row in prompts] + [row['text'] for row in examples]:
        if fast(text)['input_ids'] != [2, *pieces.encode(text)]:
            raise UserError(
                f'the fast tokenizer of {VOCABULARY} reads {text[:80]!r} differently than '
                'SentencePiece does.'
            )
    _write(unfinished / PROMPTS, prompts)
    _write(unfinished / ROWS, examples)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return folder


def _prompts(rows: Sequence[dict], pieces: Any) -> list[dict]:
    limit = workload.GRPO['prompt_length']
    fitting = [row for row in rows if len(pieces.encode(row['question'])) < limit]
    if len(fitting) < workload.PROMPTS:
        raise UserError(
            f'only {len(fitting)} questions have at most {limit} tokens; {workload.PROMPTS} are '
            'needed.'
        )
    return [
        {'prompt': row['question'], 'answer': row['answer']} for row in fitting[: workload.PROMPTS]
    ]


def _exact_rows(texts: Sequence[str], pieces: Any, number: int) -> Iterator[dict]:
    """Pieces of the running text that are exactly as long as a row, and are read back as the tokens
    they were cut from."""
    ids, size, at = pieces.encode(''.join(texts)), workload.SFT['length'] - 2, 0
    for _ in range(number):
        while at + size <= len(ids):
            chunk = ids[at : at + size]
            text = pieces.decode(chunk)
            if pieces.encode(text) == chunk:
                break
            at += 1
        else:
            raise UserError(
                f'the texts make fewer than {number} rows of {workload.SFT["length"]} tokens.'
            )
        yield {'text': text, 'ids': [2, *chunk, 1]}
        at += size


def fast_tokenizer(path: pathlib.Path) -> Any:
    """The vocabulary as a fast tokenizer: byte-pair merges in the order of the pieces' scores."""
    import tokenizers
    import transformers

    pieces = _pieces(path)
    ids = {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())}
    merges = []
    for piece, i in ids.items():
        if i < len(SPECIAL) or pieces.is_byte(i):
            continue
        halves = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        merges += [
            (-pieces.get_score(i), ids[a], ids[b], a, b) for a, b in halves if a in ids and b in ids
        ]
    model = tokenizers.models.BPE(
        ids,
        [(a, b) for *_, a, b in sorted(merges)],
        unk_token='<unk>',
        byte_fallback=True,
        fuse_unk=True,
    )
    made = tokenizers.Tokenizer(model)
    made.normalizer = tokenizers.normalizers.Replace(' ', SPACE)
    steps = [
        tokenizers.decoders.Replace(SPACE, ' '),
        tokenizers.decoders.ByteFallback(),
        tokenizers.decoders.Fuse(),
    ]
    made.decoder = tokenizers.decoders.Sequence(steps)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        '<s> $A', special_tokens=[('<s>', 2)]
    )
    pad, eos, bos, unk, _ = SPECIAL
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=pad, eos_token=eos, bos_token=bos, unk_token=unk
    )


def _pieces(path: pathlib.Path) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def _write(path: pathlib.Path, rows: Sequence[dict]) -> None:
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
