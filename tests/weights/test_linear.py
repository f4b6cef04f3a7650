"""Dense and low-rank leaves against float64 products of the dense matrix they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from reasonjax.weights.linear import LowRank, embed, grouped, linear, merge, merge_tree, unembed

V, D, R = 9, 6, 3


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), jnp.float32)


def low_rank(*stack, base=None, scale=0.7, seed=0):
    base = draw(*stack, V, D, seed=seed) if base is None else base
    return LowRank(
        base,
        draw(*stack, V, R, seed=seed + 1),
        draw(*stack, R, D, seed=seed + 2),
        jnp.full(stack, scale),
    )


def dense(w):
    """The matrix in float64, by definition."""
    if not isinstance(w, LowRank):
        return np.asarray(w, np.float64)
    a, b = (np.asarray(x, np.float64) for x in (w.a, w.b))
    return dense(w.base) + np.asarray(w.scale, np.float64)[..., None, None] * (a @ b)


LEAVES = {
    'array': draw(V, D),
    'low_rank': low_rank(),
    'nested': low_rank(base=low_rank(seed=5, scale=-1.5)),
}


@pytest.mark.parametrize('name', LEAVES)
def test_the_three_products_and_merge(name):
    w, exact = LEAVES[name], dense(LEAVES[name])
    x, y, ids = draw(2, 4, V), draw(2, 4, D), np.array([[0, 8, 3], [3, 3, 1]])
    np.testing.assert_allclose(merge(w), exact, atol=2e-6)
    np.testing.assert_allclose(linear(x, w), np.asarray(x, np.float64) @ exact, atol=1e-5)
    np.testing.assert_allclose(unembed(y, w), np.asarray(y, np.float64) @ exact.T, atol=1e-5)
    np.testing.assert_allclose(embed(ids, w, 'float32'), exact[ids], atol=1e-5)
    assert (
        linear(x, w).shape == (2, 4, D)
        and unembed(y, w).shape == (2, 4, V)
        and embed(ids, w, 'float32').shape == (2, 3, D)
    )
    assert linear(x[0, 0], w).shape == (D,)


@pytest.mark.parametrize('name', LEAVES)
def test_the_activation_decides_the_dtype(name):
    w = LEAVES[name]
    assert linear(draw(4, V).astype(jnp.bfloat16), w).dtype == jnp.bfloat16
    assert unembed(draw(4, D).astype(jnp.bfloat16), w).dtype == jnp.bfloat16
    assert embed(jnp.arange(3), w, 'bfloat16').dtype == jnp.bfloat16
    assert merge(jax.tree.map(lambda x: x.astype(jnp.bfloat16), w)).dtype == jnp.bfloat16


@pytest.mark.parametrize('rows, columns, turned', [(16, 4, True), (4, 16, False)])
def test_a_tall_weight_is_turned_round_where_there_are_many_tokens(rows, columns, turned):
    w, x, out = draw(rows, columns), draw(40, rows), draw(40, columns, seed=1)
    exact_w, exact_x, exact_out = (np.asarray(m, np.float64) for m in (w, x, out))
    # The embedding has the transposed product.
    for apply, own, given, wanted in (
        (linear, x, out, exact_x @ exact_w),
        (unembed, out, x, exact_out @ exact_w.T),
    ):
        value, back = jax.vjp(apply, own, w)
        of_own, of_w = back(given)
        np.testing.assert_allclose(value, wanted, atol=1e-5)
        np.testing.assert_allclose(
            of_own,
            np.asarray(given, np.float64) @ (exact_w.T if apply is linear else exact_w),
            atol=1e-5,
        )
        np.testing.assert_allclose(of_w, exact_x.T @ exact_out, atol=2e-5)
        on_cpu = jax.default_backend() == 'cpu'
        assert ('optimization_barrier' in str(jax.make_jaxpr(apply)(own, w))) == (turned and on_cpu)
        assert 'optimization_barrier' not in str(jax.make_jaxpr(apply)(own[:3], w)), (
            'a few tokens are not worth a copy'
        )


def test_gradients_of_the_factors():
    w, x, out = low_rank(), draw(4, V), draw(4, D, seed=3)
    grad = jax.grad(lambda w: jnp.sum(linear(x, w) * out))(w)
    outer = np.asarray(x, np.float64).T @ np.asarray(out, np.float64)
    a, b = (np.asarray(m, np.float64) for m in (w.a, w.b))
    np.testing.assert_allclose(grad.base, outer, atol=1e-5)
    np.testing.assert_allclose(grad.a, 0.7 * outer @ b.T, atol=1e-5)
    np.testing.assert_allclose(grad.b, 0.7 * a.T @ outer, atol=1e-5)
    np.testing.assert_allclose(grad.scale, np.sum(outer * (a @ b)), rtol=1e-5)


def test_a_stack_merges_in_one_go_and_scans():
    stack = low_rank(2, base=low_rank(2, seed=5))
    np.testing.assert_allclose(merge(stack), dense(stack), atol=2e-6)
    x = draw(4, V)
    _, out = jax.lax.scan(lambda carry, w: (carry, linear(x, w)), 0, stack)
    np.testing.assert_allclose(out, np.asarray(x, np.float64) @ dense(stack), atol=1e-5)


def test_merge_tree_leaves_no_node():
    tree = {'a': low_rank(), 'b': {'c': draw(3), 'd': LEAVES['nested']}}
    merged = merge_tree(tree)
    assert jax.tree.structure(merged) == jax.tree.structure({'a': 0, 'b': {'c': 0, 'd': 0}})
    np.testing.assert_allclose(merged['b']['d'], dense(tree['b']['d']), atol=2e-6)
    toys.assert_trees_equal(merged['b']['c'], tree['b']['c'])


def test_a_change_of_scale_does_not_recompile():
    run = jax.jit(linear)
    for scale in (0.5, 1.0, 3.0):
        run(draw(4, V), low_rank(scale=scale))
    assert run._cache_size() == 1


@pytest.mark.parametrize('sizes', [(2, 3, 1), (0, 6, 0), (6, 0, 0), (0, 0, 6)])
def test_a_bank_gives_every_row_its_matrix(sizes):
    x, bank, out = draw(6, V), draw(3, V, D), draw(6, D, seed=1)
    owner = np.repeat(np.arange(3), sizes)
    exact_x, exact = np.asarray(x, np.float64), np.asarray(bank, np.float64)
    wanted = np.stack([row @ exact[e] for row, e in zip(exact_x, owner)])
    sizes = jnp.asarray(sizes, jnp.int32)
    np.testing.assert_allclose(grouped(x, bank, sizes), wanted, atol=1e-5)
    assert grouped(x.astype(jnp.bfloat16), bank, sizes).dtype == jnp.bfloat16

    to_x, to_bank = jax.grad(lambda x, bank: jnp.sum(out * grouped(x, bank, sizes)), (0, 1))(
        x, bank
    )
    np.testing.assert_allclose(
        to_x, [g @ exact[e].T for g, e in zip(np.asarray(out, np.float64), owner)], atol=1e-5
    )
    by_hand = np.zeros_like(exact)
    np.add.at(by_hand, owner, exact_x[:, :, None] * np.asarray(out, np.float64)[:, None])
    np.testing.assert_allclose(to_bank, by_hand, atol=1e-5)
