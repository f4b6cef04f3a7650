"""Top-k, top-p and min-p against their definitions, token by token in NumPy, and against transformers."""

import jax.numpy as jnp
import numpy as np
import pytest

from reasonjax.rollout import processors

SETTINGS = [(3, 1.0, 0.0), (0, 0.7, 0.0), (0, 1.0, 0.2), (6, 0.8, 0.1), (1, 0.5, 0.5), (0, 1e-6, 0.0)]


def logits(seed=0, rows=64, vocabulary=9):
    z = 2 * np.random.default_rng(seed).standard_normal((rows, vocabulary)).astype(np.float32)
    z[:, 0] = -1e9  # PAD, as the model's logits have it
    return z


def softmax(z):
    p = np.exp(np.asarray(z, np.float64) - np.max(z))
    return p / p.sum()


def kept(row, top_k, top_p, min_p):
    """The set of tokens left, from the definitions, each step renormalising what the one before left."""
    order = sorted(range(len(row)), key=lambda v: -row[v])
    left = order[:top_k] if top_k else order
    if top_p < 1:
        chosen, mass = [], 0.0
        for v, p in zip(left, softmax(row[left])):
            if mass < top_p:
                chosen.append(v)
            mass += p
        left = chosen
    if min_p > 0:
        p = softmax(row[left])
        left = [v for v, x in zip(left, p) if x >= min_p * p.max()]
    return set(left)


@pytest.mark.parametrize('top_k, top_p, min_p', SETTINGS)
def test_equals_definitions(top_k, top_p, min_p):
    z = logits()
    out = np.asarray(processors.truncate(jnp.asarray(z), top_k, top_p, min_p))
    sizes = set()
    for row, got in zip(z, out):
        survivors = {v for v in range(len(row)) if got[v] > processors.REMOVED}
        # PAD has no mass: whether it counts as one of the k, or as "kept", nobody can see.
        assert survivors - {0} == kept(row, top_k, top_p, min_p) - {0}
        assert all(got[v] == row[v] for v in survivors)
        sizes.add(len(survivors))
    assert min(sizes) >= 1 and (top_k == 1 or top_p < 1e-3 or len(sizes) > 1 or top_k == 3)


@pytest.mark.parametrize('top_k, top_p, min_p', SETTINGS)
def test_equals_transformers(top_k, top_p, min_p):
    torch = pytest.importorskip('torch')
    from transformers.generation import logits_process

    z = logits(seed=1)
    theirs = torch.from_numpy(z)
    for wanted, make in (
        (top_k, lambda: logits_process.TopKLogitsWarper(top_k)),
        (top_p < 1, lambda: logits_process.TopPLogitsWarper(top_p)),
        (min_p, lambda: logits_process.MinPLogitsWarper(min_p)),
    ):
        theirs = make()(None, theirs) if wanted else theirs
    ours = np.asarray(processors.truncate(jnp.asarray(z), top_k, top_p, min_p))
    np.testing.assert_array_equal(ours[:, 1:] > processors.REMOVED, np.isfinite(theirs.numpy()[:, 1:]))


def test_neutral_values_return_the_input_itself():
    z = jnp.asarray(logits())
    assert processors.truncate(z) is z
    assert processors.keep_top_k(z, 0) is z and processors.keep_top_p(z, 1.0) is z and processors.keep_min_p(z, 0.0) is z
    assert processors.keep_top_k(z, 9) is z and processors.keep_top_k(z, 99) is z


def test_ties_and_extremes():
    even = jnp.zeros((1, 4))
    assert np.all(processors.keep_top_k(even, 2) == 0)
    assert int((processors.keep_top_p(even, 0.5) == 0).sum()) == 2
    assert np.all(processors.keep_min_p(even, 0.99) == 0)
    certain = jnp.asarray([[-1e9, 0.0, -1e9]])
    for out in (processors.keep_top_p(certain, 0.01), processors.keep_min_p(certain, 0.01), processors.keep_top_k(certain, 1)):
        assert out[0, 1] == 0 and np.all(out[0, [0, 2]] <= -1e9)
