"""Pipelines: source -> transforms -> tokens -> batches, as iterators that restore bit for bit (see
`stream`)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reasonjax.data import chat, forms, render, stream
from reasonjax.data import packing as rows_of
from reasonjax.data.sources import Source
from reasonjax.data.stream import Batches, Item, Measure, Transform
from reasonjax.data.tokenizers import Tokenizer
from reasonjax.errors import UserError

__all__ = ['Batches', 'Evaluation', 'evaluation', 'prompts', 'supervised']


def supervised(
    source: Source,
    transforms: Sequence[Transform],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    batch_size: int,
    seed: int,
    overlong: str = 'error',
    packing: bool = False,
    shuffle: bool = True,
    form: str = 'demonstration',
    step_separator: str = '\n',
) -> Batches:
    """Makes training batches, over and over, in a new order each epoch.

    Args:
        source: rows.
        transforms: applied in order to each row; see `reasonjax.methods.transforms`.
        tokenizer: see `reasonjax.data.tokenizers`.
        max_length: tokens per row of a batch (T).
        batch_size: examples per batch; B is the number of their rows: twice as many for
          preferences, else as many.
        seed: fixes the order and every draw of the transforms.
        overlong: what to do with an example of more than `max_length` tokens: 'error', or 'drop'
          and count it.
        packing: put several whole documents in a row. Demonstrations only; `batch_size` then counts
          rows.
        shuffle: False keeps the order of the source.
        form: what rows are; see `reasonjax.data.forms`.
        step_separator: follows each step of a stepwise row.

    Returns:
        An iterator of dicts of [B, T] arrays: `tokens` int32, `weights` float32, `segments` int32,
          `positions` int32,
        and what `forms` says batches of this form have beside them.

    Raises:
        UserError: a bad setting at once; a bad row, named with its file and line, when it is
          reached.
    """
    stream.check_positive(max_length=max_length, batch_size=batch_size)
    if packing and form != 'demonstration':
        raise UserError(
            f'data.packing: only demonstrations can be packed; rows of data.form="{form}" are told '
            'apart by row'
        )
    rendered = forms.renderer(form, tokenizer, step_separator=step_separator)
    measure = Measure(
        max_length,
        overlong,
        'max_length',
        rendered,
        lambda rows: max(len(row.tokens) for row in rows),
        _unread(forms.COLUMNS, tokenizer),
    )
    examples = stream.examples(source, transforms, measure, seed, shuffle)
    settings = [
        tokenizer.fingerprint(),
        max_length,
        overlong,
        packing,
        seed,
        shuffle,
        form,
        repr(step_separator),
    ]
    pad_id = tokenizer.pad_id
    fingerprint = stream.fingerprint(source, settings)
    if packing:
        documents = examples.map(lambda item: item.rendered[0])
        rows = rows_of.pack(documents, max_length=max_length, pad_id=pad_id, seed=seed)
        return Batches(rows, batch_size, rows_of.stacked, examples.counters, fingerprint)

    def collate(items: Sequence[Item]) -> dict[str, np.ndarray]:
        documents = [document for item in items for document in item.rendered]
        return rows_of.stacked(
            [rows_of.padded(document, pad_id=pad_id, length=max_length) for document in documents]
        )

    return Batches(examples, batch_size, collate, examples.counters, fingerprint)


def prompts(
    source: Source,
    transforms: Sequence[Transform],
    tokenizer: Tokenizer,
    *,
    max_prompt_length: int,
    num_prompts: int,
    seed: int,
    overlong: str = 'error',
    shuffle: bool = True,
) -> Batches:
    """Makes batches of prompts to generate from, over and over, in a new order each epoch.

    Args:
        source: rows.
        transforms: applied in order to each row.
        tokenizer: see `reasonjax.data.tokenizers`.
        max_prompt_length: tokens per prompt (Tp).
        num_prompts: prompts per batch (P).
        seed: fixes the order and every draw of the transforms.
        overlong: what to do with a prompt of more than `max_prompt_length` tokens: 'error', or
          'drop' and count it.
        shuffle: False keeps the order of the source.

    Returns:
        An iterator of dicts: `tokens`, `segments` (1 token, 0 padding) and `positions`, each [P,
          Tp] int32,
        left-padded; `index` [P] int64, the place of the prompt in the stream; `rows`, a list of P
        examples with all their columns.

    Raises:
        UserError: a bad setting at once; a bad row, named with its file and line, when it is
          reached.
    """
    stream.check_positive(max_prompt_length=max_prompt_length, num_prompts=num_prompts)
    measure = _prompt_measure(max_prompt_length, overlong, tokenizer)
    examples = stream.examples(source, transforms, measure, seed, shuffle)
    settings = [tokenizer.fingerprint(), max_prompt_length, overlong, seed, shuffle]

    def collate(items: Sequence[Item]) -> dict[str, Any]:
        return _prompt_batch(items, tokenizer.pad_id, max_prompt_length)

    return Batches(
        examples, num_prompts, collate, examples.counters, stream.fingerprint(source, settings)
    )


@dataclass(frozen=True)
class Evaluation:
    """One ordered pass over prompts.

    Attributes:
        batches: dicts as `prompts` makes them, all of one size, with `valid` [P] bool: False marks
            the repeats that fill the last.
        counters: as those of `Batches`.
    """

    batches: tuple[dict[str, Any], ...]
    counters: dict[str, int]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def evaluation(
    source: Source,
    transforms: Sequence[Transform],
    tokenizer: Tokenizer,
    *,
    max_prompt_length: int,
    batch_size: int,
    overlong: str = 'error',
) -> Evaluation:
    """Makes batches of every prompt once, in the order of the source.

    Args:
        source: rows.
        transforms: applied in order to each row.
        tokenizer: see `reasonjax.data.tokenizers`.
        max_prompt_length: tokens per prompt (Tp).
        batch_size: prompts per batch (P); the last batch is filled with repeats marked invalid.
        overlong: 'error', or 'drop' and count it.

    Raises:
        UserError: a bad setting or row, or no prompt left.
    """
    stream.check_positive(max_prompt_length=max_prompt_length, batch_size=batch_size)
    measure = _prompt_measure(max_prompt_length, overlong, tokenizer)
    counters = dict.fromkeys(stream.COUNTERS, 0)
    items = []
    for i in range(len(source)):
        outcome = stream.transformed(source, transforms, measure, 0, i, i)
        outcome.count(counters)
        for example, rendered in outcome.kept:
            items.append(Item(len(items), example, rendered))
    counters['examples'] = len(items)
    if not items:
        raise UserError(stream.nothing_left(source, counters, measure))
    batches = []
    for start in range(0, len(items), batch_size):
        chunk = items[start : start + batch_size]
        filled = chunk + [chunk[-1]] * (batch_size - len(chunk))
        batch = _prompt_batch(filled, tokenizer.pad_id, max_prompt_length)
        batches.append(batch | {'valid': np.arange(batch_size) < len(chunk)})
    return Evaluation(tuple(batches), counters)


def _prompt_measure(limit: int, overlong: str, tokenizer: Tokenizer) -> Measure:
    return Measure(
        limit,
        overlong,
        'max_prompt_length',
        lambda row: [render.prompt(row, tokenizer)],
        len,
        _unread(('prompt',), tokenizer),
    )


def _unread(columns: Sequence[str], tokenizer: Tokenizer) -> Callable[[Mapping[str, Any]], int]:
    return lambda example: chat.unread(example, columns, tokenizer)


def _prompt_batch(items: Sequence[Item], pad_id: int, length: int) -> dict[str, Any]:
    batch = rows_of.left_padded([item.rendered for item in items], pad_id=pad_id, length=length)
    index = np.array([item.index for item in items], np.int64)
    return batch | {'index': index, 'rows': [item.example for item in items]}
