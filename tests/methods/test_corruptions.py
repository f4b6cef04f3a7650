"""Masked thought: its schedule, where it may act, what it leaves alone, and that its draws are
counted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasonjax import reduce
from reasonjax.errors import UserError
from reasonjax.methods.corruptions import Context, masked_thought, none

V, PAD, MASK, EOS = 40, 0, 5, 2
CONTEXT = Context(steps=30, pad_id=PAD, mask_id=MASK, vocab_size=V)
KEY = jax.random.key(7)


def make_batch(B: int = 4, T: int = 16) -> dict:
    """Rows of two packed segments and padding: prompts of weight 0, responses of weights 0.5 and 1,
    each ending in EOS."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(6, V, (B, T)).astype(np.int32)
    segments = np.ones((B, T), np.int32)
    weights = rng.choice([0.5, 1.0], (B, T)).astype(np.float32)
    half, end = T // 2, T - T // 8
    segments[:, half:] = 2
    segments[:, end:] = 0
    tokens[:, end:] = PAD
    tokens[:, [half - 1, end - 1]] = EOS
    weights[:, : T // 4] = 0
    weights[:, half : half + T // 4] = 0
    weights[:, end:] = 0
    positions = np.where(segments == 2, np.arange(T) - half, np.arange(T)).astype(np.int32)
    return {'tokens': tokens, 'weights': weights, 'segments': segments, 'positions': positions}


@functools.cache
def compiled(context: Context = CONTEXT, **knobs):
    return jax.jit(lambda batch, step: masked_thought(batch, KEY, step, context, **knobs))


def corrupt(batch: dict, step: int = 29, context: Context = CONTEXT, **knobs) -> tuple[dict, dict]:
    changed, metrics = compiled(context, **knobs)(batch, jnp.int32(step))
    return jax.tree.map(np.asarray, changed), {
        k: float(v) for k, v in reduce.values(metrics).items()
    }


def test_none_changes_nothing():
    batch = make_batch()
    changed, metrics = none(batch, KEY, jnp.int32(3), CONTEXT)
    assert changed == batch and metrics == {}


@pytest.mark.parametrize('step', [0, 29])
def test_rate_zero_reads_the_tokens_themselves_even_without_a_mask_token(step: int):
    batch = make_batch()
    changed, metrics = corrupt(
        batch, step, CONTEXT._replace(mask_id=None), rate=0.0, drop_mask=True
    )
    assert set(changed) == set(batch) | {'inputs'}
    np.testing.assert_array_equal(changed['inputs'], batch['tokens'])
    assert metrics == {'mask_rate': 0, 'masked_fraction': 0}


def test_the_rate_rises_linearly_over_two_thirds_of_the_steps_and_stays():
    # With S = 30 and w = 2/3 the ramp is s / 21.
    expected = {
        0: 0.0,
        1: 0.4 / 21,
        7: 0.4 / 3,
        14: 0.8 / 3,
        20: 0.4 * 20 / 21,
        21: 0.4,
        25: 0.4,
        29: 0.4,
    }
    for step, rate in expected.items():
        assert corrupt(make_batch(), step, rate=0.4)[1]['mask_rate'] == pytest.approx(
            rate, rel=1e-6
        )
    assert corrupt(make_batch(), 15, rate=0.4, warmup=1.0)[1]['mask_rate'] == pytest.approx(
        0.4 * 15 / 31, rel=1e-6
    )
    assert corrupt(make_batch(), 1, rate=0.4, warmup=0.0)[1]['mask_rate'] == pytest.approx(
        0.4, rel=1e-6
    )


@pytest.mark.parametrize('step', [0, 10, 29])
@pytest.mark.parametrize('replace_rate', [0.0, 1.0])
def test_the_masked_share_of_response_tokens_is_the_rate(step: int, replace_rate: float):
    batch = make_batch(64, 64)
    changed, metrics = corrupt(batch, step, rate=0.4, replace_rate=replace_rate)
    response = batch['weights'] > 0
    p, n = 0.4 * min(1, step / 21), response.sum()
    fraction = metrics['masked_fraction']
    assert abs(fraction - p) <= 3 * np.sqrt(p * (1 - p) / n)
    changes = (changed['inputs'] != batch['tokens'])[response].mean()
    # A random token may happen to be the one that was there.
    lucky = replace_rate / (V - 2)
    assert abs(changes - fraction * (1 - lucky)) <= 3 * np.sqrt(fraction * lucky / n) + 1e-6
    if step == 29:
        by_position = (changed['inputs'] != batch['tokens']).mean(0)[response.any(0)]
        assert by_position.min() > 0.1, (
            'each response position, the EOS included, must be masked now and then'
        )
        assert np.any(changed['inputs'][batch['tokens'] == EOS] != EOS)


def test_selections_are_independent_of_each_other():
    batch = make_batch(256, 16)
    batch['weights'] = np.ones_like(batch['weights'])
    batch['weights'][:, 0] = 0
    hit = (corrupt(batch, rate=0.4)[0]['inputs'] == MASK)[:, 1:].astype(float)
    along = np.corrcoef(hit[:, :-1].ravel(), hit[:, 1:].ravel())[0, 1]
    across = np.corrcoef(hit[:-1].ravel(), hit[1:].ravel())[0, 1]
    assert abs(along) < 4 / np.sqrt(hit.size) and abs(across) < 4 / np.sqrt(hit.size)


@pytest.mark.parametrize(
    'knobs', [{}, {'replace_rate': 1.0}, {'replace_rate': 0.5}, {'drop_mask': True}]
)
def test_only_inputs_of_response_tokens_change(knobs: dict):
    batch = make_batch()
    changed, _ = corrupt(batch, rate=1.0, **knobs)
    for name, value in batch.items():
        np.testing.assert_array_equal(changed[name], value, err_msg=name)
    assert changed['inputs'].dtype == batch['tokens'].dtype
    outside = batch['weights'] == 0
    np.testing.assert_array_equal(changed['inputs'][outside], batch['tokens'][outside])
    if 'replace_rate' not in knobs:
        assert np.all(changed['inputs'][~outside] == MASK)
    if 'drop_mask' in knobs:
        np.testing.assert_array_equal(changed['attend'], outside)
    else:
        assert 'attend' not in changed


def test_random_replacements_are_uniform_over_the_vocabulary_without_pad_and_mask():
    batch = make_batch(256, 64)
    changed, _ = corrupt(batch, rate=1.0, replace_rate=1.0)
    drawn = changed['inputs'][batch['weights'] > 0]
    counts = np.bincount(drawn, minlength=V)
    assert counts[PAD] == counts[MASK] == 0 and len(counts) == V
    mean = len(drawn) / (V - 2)
    assert np.all(np.abs(np.delete(counts, [PAD, MASK]) - mean) < 5 * np.sqrt(mean))
    without_mask, _ = corrupt(
        batch, context=CONTEXT._replace(mask_id=None), rate=1.0, replace_rate=1.0
    )
    assert set(without_mask['inputs'][batch['weights'] > 0]) == set(range(1, V))


def test_replace_rate_is_the_share_of_random_tokens():
    batch = make_batch(128, 64)
    drawn = corrupt(batch, rate=1.0, replace_rate=0.3)[0]['inputs'][batch['weights'] > 0]
    assert abs((drawn != MASK).mean() - 0.3) < 4 * np.sqrt(0.21 / len(drawn))


@pytest.mark.parametrize(
    'knobs', [{'rate': 0.5}, {'rate': 0.5, 'replace_rate': 0.5, 'drop_mask': True}]
)
def test_draws_depend_on_the_row_and_not_on_the_layout(knobs: dict):
    batch = make_batch(6)
    whole, metrics = corrupt(batch, **knobs)
    numbered = batch | {'row': np.arange(6, dtype=np.int32)}
    order = np.array([4, 1, 5, 0, 3, 2])
    for rows in (np.arange(0, 3), np.arange(3, 6), order):
        part, _ = corrupt({k: v[rows] for k, v in numbered.items()}, **knobs)
        for name in set(whole) & {'inputs', 'attend'}:
            np.testing.assert_array_equal(part[name], whole[name][rows])
    parts = [
        compiled(**knobs)({k: v[i : i + 2] for k, v in numbered.items()}, 29)[1] for i in (0, 2, 4)
    ]
    combined = reduce.values(reduce.over(jax.tree.map(lambda *x: jnp.stack(x), *parts)))
    for name, value in combined.items():
        assert float(value) == pytest.approx(metrics[name], rel=1e-6)


def test_draws_do_not_depend_on_the_padded_length():
    batch = make_batch()
    wide = {k: np.pad(v, ((0, 0), (0, 9))) for k, v in batch.items()}
    narrow, broad = (
        corrupt(batch, rate=0.5, replace_rate=0.5)[0],
        corrupt(wide, rate=0.5, replace_rate=0.5)[0],
    )
    np.testing.assert_array_equal(broad['inputs'][:, :16], narrow['inputs'])
    np.testing.assert_array_equal(broad['inputs'][:, 16:], 0)


def test_another_key_draws_anew():
    batch = make_batch()
    one, other = (
        masked_thought(batch, jax.random.key(k), 29, CONTEXT, rate=0.5)[0]['inputs'] for k in (0, 1)
    )
    assert np.any(np.asarray(one) != np.asarray(other))


def test_corruptions_compose():
    batch = make_batch()
    before = batch | {'inputs': batch['tokens'] + 1, 'attend': batch['segments'] > 0}
    changed, _ = corrupt(before, rate=0.5, drop_mask=True)
    masked = (changed['inputs'] == MASK) & (batch['weights'] > 0)
    assert masked.any()
    np.testing.assert_array_equal(changed['inputs'], np.where(masked, MASK, batch['tokens'] + 1))
    np.testing.assert_array_equal(changed['attend'], (batch['segments'] > 0) & ~masked)


def test_errors():
    with pytest.raises(UserError, match='no mask token.*config.tokenizer.*replace_rate'):
        corrupt(make_batch(), context=CONTEXT._replace(mask_id=None), rate=0.1)
    for knobs in (
        {'rate': 1.5},
        {'rate': -0.1},
        {'rate': 0.1, 'warmup': -1.0},
        {'rate': 0.1, 'replace_rate': 2.0},
    ):
        with pytest.raises(UserError, match=f'{list(knobs)[-1]} is .* expected a number from 0'):
            corrupt(make_batch(), **knobs)
