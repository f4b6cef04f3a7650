"""Packing: several whole documents per row, told apart by segment ids and positions."""

from collections.abc import Mapping, Sequence

import grain
import numpy as np

from reasonjax.data.documents import Document

# More open rows than this do not make rows fuller on documents of usual lengths, but make a restart
# replay more.
OPEN_ROWS = 32


def pack(
    documents: grain.IterDataset,
    *,
    max_length: int,
    pad_id: int,
    seed: int,
    open_rows: int = OPEN_ROWS,
) -> grain.IterDataset:
    """Packs documents best-fit into rows; no document is ever split or cut.

    A set of `open_rows` rows is filled until a document fits none of them, then all are emitted in
    an order drawn from `seed`. The state of the iterator is that of `documents` at the start of the
    set, which is filled again on restore.

    Args:
        documents: a stream of `Document`, each of at most `max_length` tokens, with weight 0 on the
          first.
        max_length: tokens per row.
        pad_id: fills what is left of a row.
        seed: draws the order within a set of rows.
        open_rows: rows filled at the same time.

    Returns:
        A stream of rows as `padded` makes them, with segments 1, 2, ... and positions that restart
        at 0.
    """
    packed = grain.experimental.BestFitPackIterDataset(
        documents.map(_checked),
        length_struct={'tokens': max_length, 'weights': max_length},
        padding_struct={'tokens': pad_id, 'weights': 0.0},
        num_packing_bins=open_rows,
        seed=int(np.random.SeedSequence(seed).generate_state(1)[0]),
        shuffle_bins=True,
    )
    return packed.map(_row)


def padded(document: Document, *, pad_id: int, length: int) -> dict[str, np.ndarray]:
    """Makes one row of one document, padded on the right: tokens, weights, segments and positions,
    each [length].

    The document's marks follow under their names: scalars as they are, marks of tokens padded with
    0.
    """
    size = len(document.tokens)
    row = {
        'tokens': np.full(length, pad_id, np.int32),
        'weights': np.zeros(length, np.float32),
        'segments': np.zeros(length, np.int32),
        'positions': np.zeros(length, np.int32),
    }
    row['tokens'][:size] = document.tokens
    row['weights'][:size] = document.weights
    row['segments'][:size] = 1
    row['positions'][:size] = np.arange(size, dtype=np.int32)
    for name, mark in document.marks.items():
        row[name] = mark if mark.ndim == 0 else np.pad(mark, (0, length - size))
    return row


def left_padded(
    prompts: Sequence[np.ndarray], *, pad_id: int, length: int
) -> dict[str, np.ndarray]:
    """Makes left-padded rows, so that every prompt ends in the last column: tokens, segments,
    positions [P, length]."""
    shape = (len(prompts), length)
    batch = {
        'tokens': np.full(shape, pad_id, np.int32),
        'segments': np.zeros(shape, np.int32),
        'positions': np.zeros(shape, np.int32),
    }
    for row, ids in enumerate(prompts):
        start = length - len(ids)
        batch['tokens'][row, start:] = ids
        batch['segments'][row, start:] = 1
        batch['positions'][row, start:] = np.arange(len(ids), dtype=np.int32)
    return batch


def stacked(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stacks rows into a batch, key by key."""
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _checked(document: Document) -> dict[str, np.ndarray]:
    if document.weights[0] != 0:
        raise ValueError(
            'the first token of a document has a weight, but inside a row it would be predicted '
            'from another document'
        )
    return {'tokens': document.tokens, 'weights': document.weights}


def _row(packed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        'tokens': packed['tokens'],
        'weights': packed['weights'],
        'segments': packed['tokens_segment_ids'],
        'positions': packed['tokens_positions'],
    }
