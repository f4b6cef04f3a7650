"""Draws by the inverse of the distribution function, against exact probabilities and float64
NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasonjax.model.logprobs import distribution_scores
from reasonjax.sampling import drawing

LAST = 1 - 2.0**-24  # the largest number that can come


def by_definition(mass, uniform, width):
    """The two levels in float64."""
    mass = np.asarray(mass, np.float64)
    blocks = np.pad(mass, (0, -len(mass) % width)).reshape(-1, width)

    def chosen(mass, u):
        return int(np.searchsorted(np.cumsum(mass), u * mass.sum(), side='right'))

    block = chosen(blocks.sum(axis=1), uniform[0])
    return block * width + chosen(blocks[block], uniform[1])


@pytest.mark.parametrize('vocabulary', [1, 2, 5, 12, 64, 100])
def test_draws_follow_the_masses(vocabulary):
    rng = np.random.default_rng(vocabulary)
    mass = np.where(
        rng.uniform(size=vocabulary) < 0.3, 0, np.exp(2 * rng.standard_normal(vocabulary))
    ).astype(np.float32)
    mass[rng.integers(vocabulary)] = 1
    rows = 20_000
    keys = jax.random.split(jax.random.key(vocabulary), rows)
    drawn = np.asarray(
        jax.jit(
            lambda k: drawing.draw(jnp.broadcast_to(mass, (rows, vocabulary)), drawing.uniforms(k))
        )(keys)
    )
    counts, wanted = np.bincount(drawn, minlength=vocabulary), mass / mass.sum() * rows
    assert np.all(counts[mass == 0] == 0) and len(counts) == vocabulary
    cells = wanted > 0
    freedom = max(cells.sum() - 1, 1)
    assert np.sum((counts - wanted)[cells] ** 2 / wanted[cells]) < freedom + 6 * np.sqrt(
        2 * freedom
    )


def test_a_large_vocabulary_against_float64():
    V, rows = 151_936, 16
    rng = np.random.default_rng(0)
    # A few tokens share half of the mass, the rest is spread over all others, most of them far
    # below 2**-24.
    mass = np.exp(3 * rng.standard_normal(V)).astype(np.float32)
    mass[rng.integers(0, V, 5)] = mass.sum() / 10
    mass[rng.uniform(size=V) < 0.2] = 0
    width = 512
    draw = jax.jit(drawing.draw)
    different, drawn = 0, []
    for i in range(40):
        uniform = np.asarray(drawing.uniforms(jax.random.split(jax.random.key(i), rows)))
        tokens = np.asarray(draw(jnp.broadcast_to(mass, (rows, V)), uniform))
        for token, u in zip(tokens, uniform):
            different += token != by_definition(mass, u, width)
        drawn += tokens.tolist()
    # Rounding may move what lies within 1e-6 of a border.
    assert different <= 2 and np.all(mass[drawn] > 0)
    # Of tokens in order of mass, groups with equal shares of it are drawn alike.
    order = np.argsort(mass)
    group = np.empty(V, int)
    group[order] = np.minimum(
        np.cumsum(mass[order].astype(np.float64)) / mass.sum(dtype=np.float64) * 20, 19
    ).astype(int)
    share = np.bincount(group, weights=mass, minlength=20) / mass.sum(dtype=np.float64)
    counts, wanted = np.bincount(group[drawn], minlength=20), share * len(drawn)
    cells = wanted > 0
    assert cells.sum() > 10 and np.sum(
        (counts - wanted)[cells] ** 2 / wanted[cells]
    ) < 19 + 6 * np.sqrt(38)


@pytest.mark.parametrize('vocabulary', [3, 17, 300, 5000])
def test_what_has_no_mass_is_never_drawn(vocabulary):
    rng = np.random.default_rng(1)
    ends = [0.0, 2.0**-24, 0.5, LAST]
    uniform = np.array([(a, b) for a in ends for b in ends], np.float32)
    draw = jax.jit(drawing.draw)
    for number in (1, 2, vocabulary // 2):
        mass = np.zeros((len(uniform), vocabulary), np.float32)
        for row in mass:
            row[rng.choice(vocabulary, max(number, 1), replace=False)] = np.exp(
                5 * rng.standard_normal(max(number, 1))
            )
        tokens = np.asarray(draw(mass, uniform))
        assert np.all(np.take_along_axis(mass, tokens[:, None], axis=1) > 0)


def test_uniforms_are_as_fine_as_float32_allows():
    u = np.asarray(drawing.uniforms(jax.random.split(jax.random.key(0), 20_000)))
    assert u.dtype == np.float32 and u.min() >= 0 and u.max() < 1 and np.all(u * 2**24 % 1 == 0)
    assert (
        abs(u.mean() - 0.5) < 0.01
        and abs(np.corrcoef(u.T)[0, 1]) < 0.03
        and len(np.unique(u)) > 39_000
    )


@pytest.mark.parametrize('scale, offset', [(0.1, 0), (3.0, 0), (200.0, 0), (3.0, 1000)])
def test_scores_equal_those_of_training(scale, offset):
    logits = (offset + scale * np.random.default_rng(0).standard_normal((6, 50))).astype(np.float32)
    logits[:, 0] = -1e9
    tokens = np.arange(6) + 3
    one = drawing.distribution(jnp.asarray(logits))
    exact = np.asarray(logits, np.float64)
    exact -= exact.max(1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(1, keepdims=True))
    np.testing.assert_allclose(
        one.logprob(tokens), exact[np.arange(6), tokens], atol=1e-5, rtol=1e-6
    )
    np.testing.assert_allclose(one.entropy(), -np.sum(np.exp(exact) * exact, axis=1), atol=1e-5)
    wanted = distribution_scores(jnp.asarray(logits), jnp.asarray(tokens))
    # Training subtracts the log-normaliser itself, with the rounding of the logits' size.
    np.testing.assert_allclose(
        one.logprob(tokens), wanted.logprob, atol=1e-4 if offset else 1e-5, rtol=1e-6
    )
    np.testing.assert_allclose(one.entropy(), wanted.entropy, atol=1e-4 if offset else 1e-5)
