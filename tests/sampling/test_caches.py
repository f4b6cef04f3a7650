"""Caches of keys and values: read in chunks, rounded to eight bits, and never copied from step to
step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from test_sampler import EOS, FREE, KEY, PROMPTS, SMALL, WINDOWS, left_padded, sampler
from test_slots import assert_alike, with_

from reasonjax.model import decoding
from reasonjax.sampling.sampler import Sampling, decode, prefill


def test_chunks_read_what_one_pass_reads():
    params, prompts = toys.params(), left_padded(PROMPTS)
    for config, chunks in ((WINDOWS[3], (1, 2, 3, 5, 9)), (toys.changed(scan=True), (2,))):
        read = jax.jit(
            lambda sampling, config=config: prefill(params, config, prompts, sampling),
            static_argnums=0,
        )
        whole = read(Sampling())
        for chunk in chunks:
            parts = read(Sampling(prefill_chunk=chunk))
            for one, other in zip(parts, whole, strict=True):
                inside = np.asarray(prompts['segments'] > 0)[:, None, :, None]
                np.testing.assert_allclose(
                    np.where(inside, one.v, 0), np.where(inside, other.v, 0), atol=1e-5
                )
                inside = inside.swapaxes(2, 3)
                np.testing.assert_allclose(
                    np.where(inside, one.k, 0), np.where(inside, other.k, 0), atol=1e-5
                )


def test_int8_caches():
    params, prompts = toys.params(SMALL), left_padded(PROMPTS)
    read = jax.jit(lambda sampling: prefill(params, SMALL, prompts, sampling), static_argnums=0)
    plain, small = read(Sampling()), read(Sampling(cache_dtype='int8'))
    for one, other in zip(small, plain, strict=True):
        assert one.k.dtype == one.v.dtype == jnp.int8
        for whole, scale, exact, axis in (
            (one.k, one.k_scale, other.k, 2),
            (one.v, one.v_scale, other.v, 3),
        ):
            largest = np.abs(np.asarray(exact, np.float64)).max(axis, keepdims=True)
            wanted = np.round(np.asarray(exact, np.float64) / (largest / 127))
            # Where a value lies half-way, float32 may round to the other side.
            assert (
                np.abs(np.asarray(whole) - wanted).max() <= 1
                and np.mean(np.asarray(whole) != wanted) < 0.01
            )
            np.testing.assert_allclose(
                np.asarray(scale), np.squeeze(largest, axis) / 127, rtol=1e-6
            )
    # What is drawn differs in the third digit at most as long as the tokens are the same; in the
    # plain loop and in slots alike.
    exact = sampler(SMALL, FREE)(params, prompts, KEY)
    rounded = sampler(SMALL, with_(cache_dtype='int8'))(params, prompts, KEY)
    same = np.cumprod(np.asarray(exact.tokens == rounded.tokens), axis=-1) > 0
    difference = np.abs(exact.logprob - rounded.logprob)[same]
    assert same.mean() > 0.5 and 1e-4 < difference.max() < 0.1
    assert_alike(
        sampler(SMALL, with_(cache_dtype='int8', slots=5, prefill_chunk=2))(params, prompts, KEY),
        rounded,
        atol=2e-3,
    )


def test_an_empty_position_is_rounded_to_zero():
    zero = decoding.stored(jnp.zeros((1, 2, 3, 4)), jnp.zeros((1, 2, 3, 4)), int8=True)
    assert all(not np.any(x) for x in zero)


@pytest.mark.parametrize(
    'settings', [dict(), dict(slots=8), dict(slots=8, cache_length=100, halvings=1)]
)
def test_caches_stay_in_place(settings):
    config = toys.changed(SMALL, head_dim=64)
    sampling = Sampling(4, 400, eos_ids=EOS, **settings)
    params, prompts = toys.params(config), left_padded(PROMPTS)
    cache = jax.eval_shape(lambda p, x: prefill(p, config, x), params, prompts)
    program = (
        jax.jit(lambda p, x, c, k: decode(p, config, x, c, k, sampling))
        .lower(params, prompts, cache, KEY)
        .compile()
    )
    own = 2 * (sampling.slots or 24) * 2 * 400 * 64 * 4
    # The own cache, once; rows left together and a longer cache are made beside the old ones.
    copies = 1 + 0.5 * bool(sampling.halvings) + (0.5 if sampling.cache_length else 0)
    assert program.memory_analysis().temp_size_in_bytes < (copies + 0.45) * own
