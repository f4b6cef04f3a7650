"""Attention problems of both forms, with their answer in float64, for `test_kernels` and the script
that it runs on eight devices."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from reasonjax.model import kernels
from reasonjax.model.attention import in_chunks, seen_by
from reasonjax.model.config import ModelConfig
from reasonjax.parallel import layout

CONFIG = ModelConfig(
    vocab_size=8,
    dim=8,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=24,
    mlp_dim=8,
    query_scale=0.3,
    window=20,
    attention_pattern=('local', 'global'),
)
PROMPT, BIN = 70, 133


class Problem(NamedTuple):
    """Queries, keys, values and the weights of a sum of outputs; what is seen; segments of queries
    and keys, and what hides more than they and the order of places do."""

    arrays: tuple[np.ndarray, ...]
    mask_BxSxT: np.ndarray
    distance_BxSxT: np.ndarray
    real_BxS: np.ndarray
    segments: tuple[np.ndarray, np.ndarray]
    beyond: str


def drawn(config, S, T, rows, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((S, config.heads), (T, config.kv_heads), (T, config.kv_heads), (S, config.heads))
    return [
        rng.normal(size=(rows, length, heads, config.head_dim)).astype(np.float32)
        for length, heads in shapes
    ]


def within(segments, attend):
    """A query's own row: earlier keys of its segment that are not hidden, and itself."""
    T = segments.shape[1]
    mask = np.zeros((*segments.shape, T), bool)
    for b, t in np.ndindex(*segments.shape):
        for s in range(t + 1):
            mask[b, t, s] = segments[b, t] == segments[b, s] and (
                attend is None or attend[b, s] or s == t
            )
    return mask


def hidden(shape, hide):
    return np.random.default_rng(3).random(shape) > 0.3 if hide else None


def rows(config, hide=False, T=BIN, number=2):
    """Two documents and padding; padding on the left; rows after these are one document."""
    segments = np.ones((number, T), np.int32)
    segments[0, 50:], segments[0, 120:], segments[1, :40] = 2, 0, 0
    attend = hidden(segments.shape, hide)
    distance = np.broadcast_to(np.arange(T)[:, None] - np.arange(T), (number, T, T))
    return problem(
        config,
        within(segments, attend),
        distance,
        (segments, segments),
        'positions are hidden' if hide else '',
    )


def bins(config, packed, hide=False, number=2):
    """A bin of one completion, or of two that begin at the same distance from their prompt, and one
    that is full."""
    shown = np.ones((number, PROMPT), bool)
    shown[0, :33] = False
    segments, at = np.ones((number, BIN), np.int32), np.tile(np.arange(BIN), (number, 1))
    if packed:
        segments[0, 45:], at[0, 45:] = 2, np.arange(BIN - 45)
    segments[0, 110:] = 0
    attend = hidden(segments.shape, hide)
    positions = at + shown.sum(1)[:, None]
    of_keys = np.concatenate([np.cumsum(shown, 1) - 1, positions], axis=1)
    distance = positions[:, :, None] - of_keys[:, None]
    mask = np.concatenate(
        [np.broadcast_to(shown[:, None], (number, BIN, PROMPT)), within(segments, attend)], axis=2
    )
    of_keys = np.concatenate([shown, segments > 0], axis=1)
    beyond = 'rows are packed' if packed else 'positions are hidden' if hide else ''
    return problem(config, mask, distance, (segments, of_keys.astype(np.int32)), beyond)


def problem(config, mask, distance, segments, beyond):
    q, k, v, weights = drawn(config, mask.shape[1], mask.shape[2], len(mask))
    real = segments[0] > 0
    arrays = (q, k, v, weights * real[..., None, None])
    return Problem(arrays, mask, distance, real, segments, beyond)


def answer(config, given, local):
    """Outputs and the gradients of their weighted sum, by the formulas, in float64 (Vaswani et al.
    2017, arXiv:1706.03762)."""
    q, k, v, weights = (x.astype(np.float64) for x in given.arrays)
    each = config.heads // config.kv_heads
    out, d_q, d_k, d_v = (np.zeros_like(x) for x in (q, q, k, v))
    scale, cap = config.query_scale or config.head_dim**-0.5, config.attention_softcap
    mask = given.mask_BxSxT & (given.distance_BxSxT < config.window) if local else given.mask_BxSxT
    for b, h in np.ndindex(len(q), config.heads):
        queries, keys, values, w = (
            q[b, :, h],
            k[b, :, h // each],
            v[b, :, h // each],
            weights[b, :, h],
        )
        products = queries @ keys.T * scale
        scores = np.tanh(products / cap) * cap if cap else products
        exps = np.where(mask[b], np.exp(scores - scores.max()), 0)
        shares = exps / exps.sum(1, keepdims=True)
        out[b, :, h] = shares @ values
        d_shares = w @ values.T
        d_scores = (
            shares
            * (d_shares - (d_shares * shares).sum(1, keepdims=True))
            * (1 - (scores / cap) ** 2 if cap else 1)
        )
        d_q[b, :, h] = d_scores @ keys * scale
        d_k[b, :, h // each] += d_scores.T @ queries * scale
        d_v[b, :, h // each] += shares.T @ w
    return out, d_q, d_k, d_v


def computed(config, given, local, mesh=None):
    """The same by `config.attention_kernel`, compiled, for a mesh if there is one."""
    asked = given.mask_BxSxT, given.distance_BxSxT, *given.segments
    *qkv, weights = given.arrays
    run = _compiled(
        config, given.beyond, isinstance(local, bool), mesh, (kernels.CUDNN, kernels.FLASH)
    )
    # Arrays are arguments: the compiler would compute with constants, and take minutes.
    if mesh is None:
        return run(local, asked, weights, *qkv)
    everywhere = jax.device_put((asked, weights, *qkv), NamedSharding(mesh, PartitionSpec()))
    return run(local, *everywhere)


@functools.cache
def _compiled(config, beyond, static, mesh, forms):
    """Compiled `(local, asked, weights, *qkv) -> output and gradients`; `forms` are those of the
    kernels that it is traced with."""
    del forms

    def attended(asked, qkv, local):
        seen, segments = asked[:2], asked[2:]
        S, T = asked[0].shape[1:]
        if config.attention_kernel != 'xla':
            seen = functools.partial(seen_by, config, *seen)
            return kernels.weigher(config, seen, *segments, beyond)(*qkv, local)
        return in_chunks(config, lambda _: seen, (jnp.zeros((1, S)),), before=T - S)(*qkv, local)

    def both(local, asked, weights, *qkv):
        def loss(*qkv):
            out = attended(asked, qkv, local)
            return jnp.vdot(weights, out), out

        (_, out), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*qkv)
        return out, *grads

    return jax.jit(
        both if mesh is None else layout.on(mesh, both), static_argnums=(0,) if static else ()
    )


def agree(got, given, wanted, tolerance=2e-6):
    """Outputs where there are tokens, and all gradients; all is finite."""
    for name, mine, right in zip(('out', 'd_q', 'd_k', 'd_v'), got, wanted, strict=True):
        mine = np.asarray(mine, np.float64)
        assert mine.shape == right.shape and np.isfinite(mine).all(), name
        if name == 'out':
            mine, right = mine[given.real_BxS], right[given.real_BxS]
        assert np.abs(right).max() > 0.1
        np.testing.assert_allclose(
            mine, right, atol=tolerance * np.abs(right).max(), rtol=0, err_msg=name
        )
