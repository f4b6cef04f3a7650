"""How queries meet keys. Each function here returns an `Attention` for `model.forward`.

Scores and weighted sums are written as products of matrices throughout: as multiply-and-reduce, jaxlib 0.10.2 gets them wrong on CPU.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reasonjax.model import kernels
from reasonjax.model.config import ModelConfig
from reasonjax.model.forward import Attention
from reasonjax.parallel import layout

# Finite, so that a row whose keys are all masked (padding) has a uniform softmax instead of nan.
MASKED = -1e30


def causal(config: ModelConfig, segments_BxT: jax.Array, attend_BxT: jax.Array | None = None, keep: bool = False) -> Attention:
    """Self-attention of each token to itself and earlier tokens of its own segment, of a local layer within the window.

    With `config.attention_chunk` queries are taken a chunk at a time and the chunk's scores computed again in the backward pass, so that
    [B, H, chunk, T] of them exist at once. Where T is split over devices, each takes its own queries and all keys (as Llama 3 was trained,
    Grattafiori et al. 2024, arXiv:2407.21783, section 3.3.2). With `config.attention_kernel` a kernel does all this in its own way.

    Args:
      config: the model's shape.
      segments_BxT: int32, 0 = padding; tokens see only tokens of an equal segment.
      attend_BxT: optional bool; False hides a position as a key (from all but itself).
      keep: return (k, v) as the layer's cache, for decoding after a prefill.
    """
    times_1xT = jnp.arange(segments_BxT.shape[1])[None]

    def visible(time_1xS: jax.Array, segments_BxS: jax.Array) -> tuple[jax.Array, jax.Array]:
        return earlier(time_1xS, segments_BxS, segments_BxT, attend_BxT), time_1xS[0][:, None] - times_1xT

    if config.attention_kernel == 'xla':
        weigh = in_chunks(config, visible, (times_1xT, segments_BxT))
    else:
        weigh = kernels.causal(config, segments_BxT, attend_BxT)

    def attention(q: jax.Array, k: jax.Array, v: jax.Array, cache: Any, local: Any) -> tuple[jax.Array, Any]:
        if layout.size('sequence') > 1:
            k, v = (layout.constrain(x, 'batch', None, 'kv_heads', None) for x in (k, v))
        return weigh(q, k, v, local), (k, v) if keep else None

    return attention


def earlier(time_1xS: jax.Array, segments_BxS: jax.Array, segments_BxT: jax.Array, attend_BxT: jax.Array | None) -> jax.Array:
    """Which of a row's T places a query at these places sees [B, S, T]: itself, and what is earlier in its segment and not hidden."""
    ahead_SxT = time_1xS[0][:, None] - jnp.arange(segments_BxT.shape[1])
    mask_BxSxT = (ahead_SxT >= 0) & (segments_BxS[:, :, None] == segments_BxT[:, None, :])
    return mask_BxSxT if attend_BxT is None else mask_BxSxT & (attend_BxT[:, None, :] | (ahead_SxT == 0))


def in_chunks(config: ModelConfig, visible: Callable, of_queries: tuple[jax.Array, ...]) -> Callable[..., jax.Array]:
    """Builds `weigh(q [B, S, H, d], k [B, T, K, d], v, local) -> [B, S, H, d]`, `config.attention_chunk` queries at a time.

    Args:
      config: the model's shape.
      visible: of the chunk's part of `of_queries`: which keys they see [B, S, T], and how far away keys are, [S, T] or [B, S, T].
      of_queries: arrays [B or 1, S] that tell queries apart.
    """
    S = of_queries[0].shape[1]
    number = -(-S // (config.attention_chunk or S))
    # Outside the loop over layers, which share it.
    of_all = visible(*of_queries) if number == 1 else None

    def weigh(q: jax.Array, k: jax.Array, v: jax.Array, local: Any) -> jax.Array:
        if number == 1:
            return _weigh(config, q, k, v, *of_all, local)
        piece = jax.checkpoint(lambda xs: _weigh(config, xs[0], k, v, *visible(*xs[1:]), local))
        return layout.join_time(jax.lax.map(piece, tuple(layout.split_time(x, number) for x in (q, *of_queries))), S)

    return weigh


def _weigh(
    config: ModelConfig, q: jax.Array, k: jax.Array, v: jax.Array, mask_BxSxT: jax.Array, distance_SxT: jax.Array, local: Any
) -> jax.Array:
    """Attention of S queries [B, S, H, d] to T keys [B, T, K, d]: [B, S, H, d]."""
    B, S, H, d = q.shape
    K = k.shape[2]
    # Key heads lead and their query heads share rows: on CPU these products take half the time of [B, S, K, R, d] ones. Time comes before
    # the query heads, so that a split of it survives the merging of the two.
    q_BxKxSRxd = q.reshape(B, S, K, H // K, d).swapaxes(1, 2).reshape(B, K, -1, d)
    scores = scaled(config, jnp.einsum('bkqd,btkd->bkqt', q_BxKxSRxd, k, preferred_element_type=jnp.float32), d)
    seen = seen_by(config, mask_BxSxT, distance_SxT, local)[:, None, :, None]
    weights = jax.nn.softmax(jnp.where(seen, scores.reshape(B, K, S, -1, k.shape[1]), MASKED), axis=-1)
    out = jnp.einsum('bkqt,btkd->bkqd', weights.astype(v.dtype).reshape(B, K, -1, k.shape[1]), v)
    return out.reshape(B, K, S, -1, d).swapaxes(1, 2).reshape(B, S, H, d)


def scaled(config: ModelConfig, products: jax.Array, head_dim: int) -> jax.Array:
    """Products of queries and keys, scaled and capped."""
    scores = products * (config.query_scale or head_dim**-0.5)
    cap = config.attention_softcap
    return jnp.tanh(scores / cap) * cap if cap else scores


def seen_by(config: ModelConfig, mask: jax.Array, distance: jax.Array, local: Any) -> jax.Array:
    """The mask, of a local layer without what lies beyond the window; `local` is a bool, or an array of one where layers are scanned."""
    if local is False:
        return mask
    near = distance < config.window
    return mask & (near if local is True else near | ~local)
