"""Quantised leaves against float64 NumPy: the levels, the rounding, the products, and what a
backward pass keeps."""

import dataclasses
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.weights import partition
from reasonjax.weights.linear import LowRank, embed, linear, merge, unembed
from reasonjax.weights.quantised import FORMATS, NF4, Quantised, quantise

D, F, BLOCK = 24, 10, 8
LEVELS = {'int8': np.arange(-127, 128) / 127, 'nf4': np.array(NF4)}
# Half the widest gap between two levels.
BOUNDS = {'int8': 0.5 / 127, 'nf4': (NF4[1] - NF4[0]) / 2}
compiled = jax.jit(quantise, static_argnums=(1, 2))


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), jnp.float32)


def reference(w, format, block=BLOCK):
    """Each weight's nearest level times its block's largest magnitude, one column and block at a
    time."""
    w, levels = np.asarray(w, np.float64), LEVELS[format]
    out = np.zeros_like(w)
    for at in np.ndindex(*w.shape[:-2], w.shape[-1]):
        for start in range(0, w.shape[-2], block):
            place = (*at[:-1], slice(start, start + block), at[-1])
            absmax = np.abs(w[place]).max()
            if absmax:
                out[place] = (
                    levels[np.abs(w[place][:, None] / absmax - levels).argmin(axis=1)] * absmax
                )
    return out


def test_levels_are_the_quantiles_that_define_them():
    # Appendix E: eight quantiles above zero and seven below, evenly spaced in probability up to the
    # one that is midway between the last of 15 and of 16 intervals.
    last = 1 - (1 / 30 + 1 / 32) / 2
    inverse = statistics.NormalDist().inv_cdf
    above = [inverse(p) for p in np.linspace(last, 0.5, 9)[:-1]]
    below = [-inverse(p) for p in np.linspace(last, 0.5, 8)[:-1]]
    wanted = np.sort([*below, 0.0, *above]) / max(above)
    np.testing.assert_allclose(NF4, wanted, atol=1e-6)


@pytest.mark.parametrize('format', FORMATS)
@pytest.mark.parametrize('stack', [(), (3,), (2, 3)])
def test_rounding(format, stack):
    w = draw(*stack, D, F) * jnp.exp(draw(*stack, 1, F, seed=1))
    node = compiled(w, format, BLOCK)
    np.testing.assert_allclose(node.merge(), reference(w, format), atol=1e-6)
    assert node.codes.shape == (*stack, D // FORMATS[format], F) and node.codes.dtype.itemsize == 1
    assert node.absmax.shape == (*stack, D // BLOCK, F)
    bound = BOUNDS[format] * np.repeat(node.absmax, BLOCK, axis=-2)
    error = np.abs(np.asarray(node.merge(), np.float64) - w)
    assert np.all(error <= bound * (1 + 1e-5)) and error.max() > 0.3 * bound.min()


@pytest.mark.parametrize('format', FORMATS)
def test_rounding_twice_changes_nothing(format):
    once = compiled(draw(D, F), format, BLOCK)
    twice = compiled(once.merge(), format, BLOCK)
    np.testing.assert_array_equal(twice.codes, once.codes)
    np.testing.assert_allclose(twice.merge(), once.merge(), rtol=1e-6)


@pytest.mark.parametrize('format', FORMATS)
def test_scales_are_exact_in_the_dtype_of_the_weight(format):
    w = draw(D, F).astype(jnp.bfloat16)
    node = compiled(w, format, BLOCK)
    assert node.absmax.dtype == node.merge().dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        node.absmax, np.abs(np.asarray(w, np.float32)).reshape(D // BLOCK, BLOCK, F).max(axis=1)
    )
    largest = np.abs(w) == np.repeat(node.absmax, BLOCK, axis=0)
    if format == 'int8':
        np.testing.assert_array_equal(np.asarray(node.merge())[largest], np.asarray(w)[largest])
    assert node.dense(jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize('format', FORMATS)
def test_zeros_stay_zero_and_nothing_hides_a_nan(format):
    w = draw(D, F).at[:BLOCK, 0].set(0).at[BLOCK, 1].set(jnp.nan).at[0, 2].set(jnp.inf)
    out = np.asarray(compiled(w, format, BLOCK).merge())
    assert np.all(out[:BLOCK, 0] == 0)
    assert np.all(np.isnan(out[BLOCK : 2 * BLOCK, 1])) and np.isfinite(out[:BLOCK, 1]).all()
    assert not np.isfinite(out[0, 2])


def nodes(format):
    node = compiled(draw(D, F), format, BLOCK)
    return {'alone': node, 'adapted': LowRank(node, draw(D, 3), draw(3, F), jnp.float32(0.7))}


def exact(w):
    if isinstance(w, LowRank):
        return exact(w.base) + 0.7 * np.asarray(w.a, np.float64) @ np.asarray(w.b, np.float64)
    return np.asarray(w.dense(jnp.float32), np.float64)


@pytest.mark.parametrize('format', FORMATS)
@pytest.mark.parametrize('kind', ['alone', 'adapted'])
def test_the_three_products_and_their_gradients(format, kind):
    w, x, y, ids = (
        nodes(format)[kind],
        draw(2, 4, D),
        draw(2, 4, F),
        np.array([[0, 23, 3], [8, 7, 12]]),
    )
    np.testing.assert_allclose(merge(w), exact(w), atol=1e-6)
    np.testing.assert_allclose(linear(x, w), np.asarray(x, np.float64) @ exact(w), atol=2e-5)
    np.testing.assert_allclose(unembed(y, w), np.asarray(y, np.float64) @ exact(w).T, atol=2e-5)
    np.testing.assert_allclose(embed(ids, w, 'float32'), exact(w)[ids], atol=1e-5)
    np.testing.assert_allclose(
        jax.grad(lambda x: jnp.sum(y * linear(x, w)))(x),
        np.asarray(y, np.float64) @ exact(w).T,
        atol=2e-5,
    )
    np.testing.assert_allclose(
        jax.grad(lambda y: jnp.sum(x * unembed(y, w)))(y),
        np.asarray(x, np.float64) @ exact(w),
        atol=2e-5,
    )
    assert (
        linear(x.astype(jnp.bfloat16), w).dtype
        == unembed(y.astype(jnp.bfloat16), w).dtype
        == jnp.bfloat16
    )
    assert embed(ids, w, 'bfloat16').dtype == jnp.bfloat16


@pytest.mark.parametrize('format', FORMATS)
def test_a_backward_pass_over_layers_keeps_no_dense_weight(format):
    layers, width = 12, 128
    w = jax.ShapeDtypeStruct((layers, width, width), jnp.float32)
    low = (
        jax.ShapeDtypeStruct((layers, width, 2), jnp.float32),
        jax.ShapeDtypeStruct((layers, 2, width), jnp.float32),
    )

    def loss(low, x, base):
        def body(x, layer):
            base, a, b = layer
            return jnp.tanh(linear(x, LowRank(base, a, b, jnp.float32(1)))), None

        return jnp.sum(jax.lax.scan(body, x, (base, *low))[0])

    x = jax.ShapeDtypeStruct((4, width), jnp.float32)
    node = jax.eval_shape(lambda w: quantise(w, format, 32), w)
    memory = jax.jit(jax.grad(loss)).lower(low, x, node).compile().memory_analysis()
    one_layer, factors = 4 * width**2, 4 * 2 * layers * width * 2
    assert (
        memory.argument_size_in_bytes
        < layers * one_layer * (0.3 if format == 'int8' else 0.17) + factors + 4096
    )
    # Two of them, as a product and its transpose may each have one; far from all twelve.
    assert memory.temp_size_in_bytes < 4 * one_layer


@pytest.mark.parametrize('format', FORMATS)
def test_layers_scan(format):
    stack, x = compiled(draw(3, D, F), format, BLOCK), draw(4, D)
    _, out = jax.jit(lambda s: jax.lax.scan(lambda carry, w: (carry, linear(x, w)), 0, s))(stack)
    np.testing.assert_allclose(
        out, np.asarray(x, np.float64) @ np.asarray(stack.merge(), np.float64), atol=2e-5
    )


def test_what_is_constant_in_a_tree():
    tree = {'x': draw(2), 'w': nodes('nf4')['adapted'], 'q': nodes('int8')['alone']}
    fixed = dict(zip(partition.names(tree), jax.tree.leaves(partition.constants(tree))))
    assert {name for name, flag in fixed.items() if flag} == {
        'w/base/codes',
        'w/base/absmax',
        'w/scale',
        'q/codes',
        'q/absmax',
    }
    assert {name for name, flag in fixed.items() if not flag} == {'x', 'w/a', 'w/b'}
    with pytest.raises(
        UserError, match=r'config.filter: chooses q/codes, w/base/codes, of integers'
    ):
        partition.partition(tree, jax.tree.map(lambda _: True, tree))


def test_axes_of_the_parts():
    node = Quantised(0, 0, 'nf4', 64)
    axes = ('layers', 'embed', 'mlp')
    assert node.axes(axes) == Quantised(axes, axes, 'nf4', 64)
    pair = LowRank(node, 0, 0, 0).axes(axes)
    assert pair == LowRank(
        node.axes(axes), ('layers', 'embed', None), ('layers', None, 'mlp'), ('layers',)
    )
    assert LowRank(0, 0, 0, 0).axes(('vocab', 'embed')) == LowRank(
        ('vocab', 'embed'), ('vocab', None), (None, 'embed'), ()
    )
    assert dataclasses.replace(node, block=32) != node
