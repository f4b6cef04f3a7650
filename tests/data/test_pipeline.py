"""Pipelines: order, draws, counts, and restoring bit for bit."""

import collections
import json
import pathlib
import subprocess
import sys

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from reasonjax.data import packing, pipeline, sources, tokenizers
from reasonjax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
TOKENIZER = tokenizers.characters(
    lambda: [], pathlib.Path('/nowhere'), alphabet='_.$M#=,0123456789+'
)
SIZE = 23


def source(size=SIZE, label='rows'):
    """Rows whose completion spells the row and whose length differs."""
    return sources.memory(
        rows=[
            {'prompt': f'{i:03d}=', 'completion': '#' + str(i) * (1 + i % 3), 'id': i}
            for i in range(size)
        ],
        label=label,
    )


def noisy(example, rng):
    """Draws the answer, and makes none, one or several examples of a row."""
    for _ in range(int(rng.integers(0, 4))):
        yield {**example, 'completion': f'#{rng.integers(10**6)}'}


def supervised(transforms=(), rows=None, **knobs):
    knobs = {'max_length': 16, 'batch_size': 4, 'seed': 0} | knobs
    return pipeline.supervised(rows or source(), list(transforms), TOKENIZER, **knobs)


def prompts(transforms=(), rows=None, **knobs):
    knobs = {'max_prompt_length': 6, 'num_prompts': 4, 'seed': 0} | knobs
    return pipeline.prompts(rows or source(), list(transforms), TOKENIZER, **knobs)


def take(iterator, number):
    return [next(iterator) for _ in range(number)]


def plain(batch):
    """A batch as comparable Python values."""
    return {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in batch.items()
    }


def ids(batches):
    return [row['id'] for batch in batches for row in batch['rows']]


def test_supervised_batch_by_hand():
    rows = sources.memory(
        rows=[{'prompt': '1=', 'completion': '#1'}, {'prompt': '12=', 'completion': '#34'}]
    )
    batch = next(supervised(rows=rows, batch_size=2, max_length=8, shuffle=False))
    np.testing.assert_array_equal(
        batch['tokens'], [[8, 5, 4, 8, 2, 0, 0, 0], [8, 9, 5, 4, 10, 11, 2, 0]]
    )
    np.testing.assert_array_equal(
        batch['weights'], [[0, 0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 0]]
    )
    np.testing.assert_array_equal(
        batch['segments'], [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0]]
    )
    np.testing.assert_array_equal(
        batch['positions'], [[0, 1, 2, 3, 4, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 0]]
    )
    assert {key: value.dtype.name for key, value in batch.items()} == {
        'tokens': 'int32',
        'weights': 'float32',
        'segments': 'int32',
        'positions': 'int32',
    }


def test_prompts_are_left_padded_and_keep_their_columns():
    rows = sources.memory(
        rows=[{'prompt': '1=', 'solution': 'a'}, {'prompt': '123=', 'solution': 'b'}]
    )
    batch = next(prompts(rows=rows, num_prompts=3, shuffle=False))
    np.testing.assert_array_equal(
        batch['tokens'], [[0, 0, 0, 0, 8, 5], [0, 0, 8, 9, 10, 5], [0, 0, 0, 0, 8, 5]]
    )
    np.testing.assert_array_equal(
        batch['segments'], [[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]]
    )
    np.testing.assert_array_equal(
        batch['positions'], [[0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 2, 3], [0, 0, 0, 0, 0, 1]]
    )
    np.testing.assert_array_equal(batch['index'], [0, 1, 2])
    assert batch['index'].dtype == np.int64
    assert [row['solution'] for row in batch['rows']] == ['a', 'b', 'a']


def test_each_epoch_has_every_row_once_in_a_new_order():
    stream = ids(take(prompts(num_prompts=SIZE), 4))
    epochs = [stream[i : i + SIZE] for i in range(0, len(stream), SIZE)]
    assert all(sorted(epoch) == list(range(SIZE)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4 and epochs[0] != list(range(SIZE))


def test_seeds_do_not_share_orders():
    orders = {
        tuple(ids([batch]))
        for seed in range(6)
        for batch in take(prompts(num_prompts=SIZE, seed=seed), 3)
    }
    assert len(orders) == 18  # an epoch of one seed is not an epoch of the next


def test_without_shuffling_the_order_is_that_of_the_source():
    assert ids(take(prompts(num_prompts=SIZE, shuffle=False), 2)) == list(range(SIZE)) * 2


def test_the_index_numbers_the_stream():
    batches = take(prompts([noisy]), 9)
    np.testing.assert_array_equal(
        np.concatenate([batch['index'] for batch in batches]), np.arange(36)
    )


def test_draws_belong_to_the_place_in_the_stream_and_not_to_the_batch():
    def answers(batches):
        return [row['completion'] for batch in batches for row in batch['rows']]

    assert answers(take(prompts([noisy], num_prompts=2), 30)) == answers(
        take(prompts([noisy], num_prompts=12), 5)
    )
    assert answers(take(prompts([noisy]), 9)) != answers(take(prompts([noisy], seed=1), 9))
    # Each transform of a row has draws of its own, and a second epoch has other draws than the
    # first.
    stream = take(
        prompts([lambda e, r: [{**e, 'x': r.random()}], lambda e, r: [{**e, 'y': r.random()}]]), 12
    )
    drawn = [row[key] for batch in stream for row in batch['rows'] for key in 'xy']
    assert len(set(drawn)) == len(drawn) == 96


@pytest.mark.parametrize('stop', [0, 1, 2, 5, 6, 11, 19])
@pytest.mark.parametrize(
    'make',
    [
        lambda: supervised(),
        lambda: supervised([noisy]),
        lambda: supervised([noisy], packing=True),
        lambda: supervised([noisy], packing=True, max_length=11, overlong='drop'),
        lambda: prompts([noisy]),
    ],
    ids=['plain', 'noisy', 'packed', 'packed-drop', 'prompts'],
)
def test_restored_iterators_continue_bit_for_bit(make, stop):
    undisturbed = make()
    want, counters = [], []
    for _ in range(stop + 12):
        want.append(plain(next(undisturbed)))
        counters.append(undisturbed.counters)
    first = make()
    take(first, stop)
    state = json.loads(json.dumps(first.get_state()))
    restored = make()
    take(restored, 3)  # it may have been used before
    restored.set_state(state)
    assert restored.counters == first.counters
    for i in range(stop, stop + 12):
        assert plain(next(restored)) == want[i]
        assert restored.counters == counters[i]


def test_orbax_saves_and_restores_the_iterator(tmp_path):
    iterator = supervised([noisy], packing=True)
    take(iterator, 5)
    with ocp.CheckpointManager(tmp_path / 'checkpoints') as manager:
        manager.save(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
        manager.wait_until_finished()
        want = [plain(batch) for batch in take(iterator, 5)]
        fresh = supervised([noisy], packing=True)
        manager.restore(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh)))
    assert [plain(batch) for batch in take(fresh, 5)] == want


def test_a_state_of_other_data_is_refused():
    state = supervised().get_state()
    for other in (
        supervised(rows=source(SIZE + 1)),
        supervised(seed=1),
        supervised(max_length=15),
        supervised(packing=True),
    ):
        with pytest.raises(UserError, match='data: .*workdir'):
            other.set_state(state)
    supervised(batch_size=8).set_state(state)  # the stream is the same


def test_packed_batches_hold_the_documents_of_the_stream():
    documents = collections.Counter()
    for batch in take(supervised(batch_size=1, shuffle=False), 3 * SIZE):
        row = {key: value[0] for key, value in batch.items()}
        documents[tuple(row['tokens'][row['segments'] > 0])] += 1
    packed, stream = (
        collections.Counter(),
        supervised(batch_size=1, packing=True, max_length=32, shuffle=False),
    )
    # two whole sets of rows, so a whole stretch of the stream
    for batch in take(stream, 2 * packing.OPEN_ROWS):
        row = {key: value[0] for key, value in batch.items()}
        for segment in range(1, row['segments'].max() + 1):
            inside = row['segments'] == segment
            packed[tuple(row['tokens'][inside])] += 1
            assert (
                row['weights'][inside][0] == 0
                and (row['positions'][inside] == np.arange(inside.sum())).all()
            )
    assert set(packed) == set(documents)
    assert max(packed.values()) - min(packed.values()) <= 1 < min(packed.values())


def test_overlong_rows_stop_the_run_by_name():
    with pytest.raises(UserError) as error:
        take(supervised(rows=source(label='train'), max_length=8, shuffle=False), 9)
    text = str(error.value)
    assert (
        text.startswith('train:3: 9 tokens, but max_length=8')
        and 'max_length to at least 9' in text
        and 'overlong="drop"' in text
    )
    with pytest.raises(UserError, match='train:1: 4 tokens, but max_prompt_length=3'):
        next(prompts(rows=source(label='train'), max_prompt_length=3, shuffle=False))


def test_overlong_rows_are_dropped_and_counted():
    lengths = [4 + 1 + len(str(i)) * (1 + i % 3) + 1 for i in range(SIZE)]
    iterator = supervised(
        overlong='drop', max_length=9, batch_size=sum(length <= 9 for length in lengths)
    )
    batch = next(iterator)
    next(iterator)
    assert batch['tokens'].shape[0] < SIZE
    assert batch['segments'].sum() == sum(length for length in lengths if length <= 9)
    counters = iterator.counters
    assert counters['examples'] == 2 * batch['tokens'].shape[0]
    assert counters['dropped_overlong'] == counters['rows'] - counters['examples'] > 0
    assert counters['rows_without_examples'] == 0


def test_rows_without_examples_are_counted():
    iterator = prompts([lambda example, rng: [example] if example['id'] % 2 else []], shuffle=False)
    take(iterator, 2)
    assert iterator.counters == {
        'rows': 16,
        'examples': 8,
        'rows_without_examples': 8,
        'dropped_overlong': 0,
        'dropped_keys': 0,
    }


@pytest.mark.parametrize('packed', [False, True])
def test_when_nothing_is_left_the_run_stops(packed):
    with pytest.raises(
        UserError, match=r'no example is left.*46 examples were dropped as longer than max_length=4'
    ):
        next(supervised(max_length=4, overlong='drop', packing=packed))
    with pytest.raises(UserError, match='transforms returned nothing for 46 rows'):
        next(supervised([lambda example, rng: []], packing=packed))


def test_bad_rows_are_named():
    rows = sources.memory(
        rows=[{'prompt': '1=', 'completion': '1'}, {'prompt': '1=', 'completoin': '1'}],
        label='train',
    )
    with pytest.raises(
        UserError,
        match='^train:2: needs the columns prompt and completion.*columns found: completoin, prompt',
    ):
        take(supervised(rows=rows, shuffle=False), 2)
    with pytest.raises(UserError, match="^train:2: tokenizer characters: '\\?'"):
        take(
            supervised(
                rows=sources.memory(rows=[{'text': '12'}, {'text': '?'}], label='train'),
                shuffle=False,
            ),
            2,
        )

    def refuses(example, rng):
        raise UserError('no column "x"')

    with pytest.raises(UserError, match='^train:1: no column "x"'):
        next(prompts([refuses], rows=rows, shuffle=False))


@pytest.mark.parametrize(
    ('knobs', 'message'),
    [
        ({'overlong': 'cut'}, 'data.overlong: expected "error" or "drop", got \'cut\''),
        ({'max_length': 0}, 'max_length: expected a positive integer, got 0'),
        ({'batch_size': 0}, 'batch_size: expected a positive integer'),
        ({'seed': -1}, 'seed: expected an integer'),
    ],
)
def test_bad_settings_are_refused_at_once(knobs, message):
    with pytest.raises(UserError, match=message):
        supervised(**knobs)


def test_evaluation_is_one_ordered_pass():
    made = pipeline.evaluation(source(10), [], TOKENIZER, max_prompt_length=6, batch_size=4)
    batches = list(made)
    assert len(made) == 3
    assert [batch['tokens'].shape for batch in batches] == [(4, 6)] * 3
    assert ids(batches) == [*range(10), 9, 9]
    assert (
        np.concatenate([batch['valid'] for batch in batches]).tolist() == [True] * 10 + [False] * 2
    )
    assert np.concatenate([batch['index'] for batch in batches]).tolist() == [*range(10), 9, 9]
    assert made.counters == {
        'rows': 10,
        'examples': 10,
        'rows_without_examples': 0,
        'dropped_overlong': 0,
        'dropped_keys': 0,
    }


def test_evaluation_drops_and_counts_or_stops():
    rows = sources.memory(rows=[{'prompt': '1' * n} for n in (1, 5, 2)], label='test')
    with pytest.raises(UserError, match='^test:2: 5 tokens, but max_prompt_length=4'):
        pipeline.evaluation(rows, [], TOKENIZER, max_prompt_length=4, batch_size=2)
    made = pipeline.evaluation(
        rows, [], TOKENIZER, max_prompt_length=4, batch_size=2, overlong='drop'
    )
    assert len(made) == 1 and made.counters['dropped_overlong'] == 1
    with pytest.raises(UserError, match='max_prompt_length=4'):
        pipeline.evaluation(
            rows, [lambda example, rng: []], TOKENIZER, max_prompt_length=4, batch_size=2
        )


def test_the_pipeline_imports_neither_torch_nor_tensorflow():
    script = """
import sys
import reasonjax.data.pipeline
found = {'torch', 'tensorflow', 'transformers', 'sentencepiece', 'pyarrow', 'tensorflow_datasets'} & set(sys.modules)
assert not found, found
"""
    result = subprocess.run(
        [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_real_rows_through_the_whole_pipeline(data_dir, tmp_path):
    from reasonjax.methods import transforms

    rows = sources.jsonl(path=str(data_dir / 'gsm8k' / 'train.jsonl'), limit=300)
    texts = [f'{rows[i]["question"]}\n{rows[i]["answer"]}' for i in range(len(rows))]
    tokenizer = tokenizers.sentencepiece(lambda: texts, tmp_path, vocab_size=1024)
    iterator = pipeline.supervised(
        rows, [transforms.gsm8k], tokenizer, max_length=768, batch_size=4, seed=0, packing=True
    )
    batch = next(iterator)
    row, inside = batch['tokens'][0], batch['segments'][0] == 1
    text = tokenizer.decode(row[inside])
    assert text.startswith('Question: ') and '\nAnswer: ' in text and '####' in text
    answer = tokenizer.decode(row[inside & (batch['weights'][0] > 0)])
    assert text.partition('\nAnswer:')[2] == answer
    assert (batch['segments'] > 0).mean() > 0.8
