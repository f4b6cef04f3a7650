"""Packing: every document whole, once, apart from its neighbours."""

import grain
import numpy as np
import pytest

from reasonjax.data import packing
from reasonjax.data.render import Document

LENGTH, PAD = 16, 0


def documents(number, longest=LENGTH, seed=0):
    """Documents of random lengths whose ids are unique to them."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(number):
        size = int(rng.integers(2, longest + 1))
        weights = rng.integers(0, 2, size).astype(np.float32)
        weights[0], weights[-1] = 0, 1
        made.append(Document(np.arange(size, dtype=np.int32) + 1000 * (i + 1), weights))
    return made


def packed(docs, **knobs):
    stream = (
        grain.MapDataset.range(len(docs))
        .map(lambda i: docs[i])
        .to_iter_dataset(grain.ReadOptions(1, 2))
    )
    return packing.pack(
        stream, **{'max_length': LENGTH, 'pad_id': PAD, 'seed': 0, 'open_rows': 4} | knobs
    )


def unpacked(rows):
    """The documents found in rows, by their segment ids."""
    for row in rows:
        for segment in range(1, row['segments'].max() + 1):
            inside = row['segments'] == segment
            yield (
                row['tokens'][inside],
                row['weights'][inside],
                row['positions'][inside],
                np.flatnonzero(inside),
            )


@pytest.mark.parametrize('longest', [LENGTH, 5])
@pytest.mark.parametrize('open_rows', [1, 4, 64])
def test_every_document_comes_out_whole_and_once(longest, open_rows):
    docs = documents(200, longest)
    found = {
        int(tokens[0]): (tokens, weights)
        for tokens, weights, _, _ in unpacked(packed(docs, open_rows=open_rows))
    }
    assert len(found) == len(docs) == len(list(unpacked(packed(docs, open_rows=open_rows))))
    for document in docs:
        tokens, weights = found[int(document.tokens[0])]
        np.testing.assert_array_equal(tokens, document.tokens)
        np.testing.assert_array_equal(weights, document.weights)


def test_documents_are_contiguous_with_positions_from_zero_and_no_first_weight():
    for tokens, weights, positions, place in unpacked(packed(documents(200))):
        np.testing.assert_array_equal(place, np.arange(place[0], place[0] + len(tokens)))
        np.testing.assert_array_equal(positions, np.arange(len(tokens)))
        assert weights[0] == 0


def test_what_is_left_of_a_row_is_padding():
    rows = list(packed(documents(200), pad_id=7))
    assert any((row['segments'] == 0).any() for row in rows)
    for row in rows:
        left = row['segments'] == 0
        assert (
            (row['tokens'][left] == 7).all()
            and (row['weights'][left] == 0).all()
            and (row['positions'][left] == 0).all()
        )
        assert not left[:1].any()
        assert {key: (value.shape, value.dtype.name) for key, value in row.items()} == {
            'tokens': ((LENGTH,), 'int32'),
            'weights': ((LENGTH,), 'float32'),
            'segments': ((LENGTH,), 'int32'),
            'positions': ((LENGTH,), 'int32'),
        }


def test_rows_are_shared():
    docs = documents(200, longest=5)
    tokens = sum(len(document.tokens) for document in docs)
    rows = list(packed(docs, open_rows=8))
    assert len(rows) * LENGTH < 1.25 * tokens


@pytest.mark.parametrize('stop', [0, 1, 3, 4, 5, 17, 40])
def test_restored_packing_continues_bit_for_bit(stop):
    docs = documents(200)
    undisturbed = list(packed(docs))
    first = iter(packed(docs))
    for _ in range(stop):
        next(first)
    second = iter(packed(docs))
    second.set_state(first.get_state())
    rest = list(second)
    assert len(rest) == len(undisturbed) - stop
    for got, want in zip(rest, undisturbed[stop:]):
        for key in want:
            np.testing.assert_array_equal(got[key], want[key])


def test_a_weighted_first_token_is_refused():
    bad = Document(np.array([1, 2], np.int32), np.array([1, 1], np.float32))
    with pytest.raises(ValueError, match='predicted from another document'):
        next(iter(packed([bad])))


def test_padded_row_by_hand():
    row = packing.padded(
        Document(np.array([5, 6, 7], np.int32), np.array([0, 0, 1], np.float32)), pad_id=9, length=5
    )
    np.testing.assert_array_equal(row['tokens'], [5, 6, 7, 9, 9])
    np.testing.assert_array_equal(row['weights'], [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(row['segments'], [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(row['positions'], [0, 1, 2, 0, 0])


def test_left_padding_by_hand():
    batch = packing.left_padded(
        [np.array([5, 6], np.int32), np.array([1, 2, 3, 4], np.int32)], pad_id=9, length=4
    )
    np.testing.assert_array_equal(batch['tokens'], [[9, 9, 5, 6], [1, 2, 3, 4]])
    np.testing.assert_array_equal(batch['segments'], [[0, 0, 1, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(batch['positions'], [[0, 0, 0, 1], [0, 1, 2, 3]])
