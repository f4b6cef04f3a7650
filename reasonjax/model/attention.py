"""How queries meet keys. Each function here returns an `Attention` for `model.forward`.

Scores and weighted sums are written as products of matrices throughout: as multiply-and-reduce, jaxlib 0.10.2 gets them wrong on CPU.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reasonjax.model.config import ModelConfig
from reasonjax.model.forward import Attention
from reasonjax.parallel import layout

# Finite, so that a row whose keys are all masked (padding) has a uniform softmax instead of nan.
MASKED = -1e30


def causal(config: ModelConfig, segments_BxT: jax.Array, attend_BxT: jax.Array | None = None, keep: bool = False) -> Attention:
    """Self-attention of each token to itself and earlier tokens of its own segment, of a local layer within the window.

    With `config.attention_chunk` queries are taken a chunk at a time and the chunk's scores computed again in the backward pass, so that
    [B, H, chunk, T] of them exist at once. Where T is split over devices, each takes its own queries and all keys (as Llama 3 was trained,
    Grattafiori et al. 2024, arXiv:2407.21783, section 3.3.2).

    Args:
      config: the model's shape.
      segments_BxT: int32, 0 = padding; tokens see only tokens of an equal segment.
      attend_BxT: optional bool; False hides a position as a key (from all but itself).
      keep: return (k, v) as the layer's cache, for decoding after a prefill.
    """
    T = segments_BxT.shape[1]
    times_1xT = jnp.arange(T)[None]
    number = -(-T // (config.attention_chunk or T))

    def visible(time_1xS: jax.Array, segments_BxS: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of queries at these times: which keys they see, and how far away keys are [S, T]."""
        distance_SxT = time_1xS[0][:, None] - times_1xT
        mask_BxSxT = (distance_SxT >= 0) & (segments_BxS[:, :, None] == segments_BxT[:, None, :])
        if attend_BxT is not None:
            mask_BxSxT = mask_BxSxT & (attend_BxT[:, None, :] | (distance_SxT == 0))
        return mask_BxSxT, distance_SxT

    # Outside the loop over layers, which share it.
    of_all = visible(times_1xT, segments_BxT) if number == 1 else None

    def attention(q: jax.Array, k: jax.Array, v: jax.Array, cache: Any, local: Any) -> tuple[jax.Array, Any]:
        if layout.size('sequence') > 1:
            k, v = (layout.constrain(x, 'batch', None, 'kv_heads', None) for x in (k, v))
        if number == 1:
            out = _weigh(config, q, k, v, *of_all, local)
        else:
            piece = jax.checkpoint(lambda xs: _weigh(config, xs[0], k, v, *visible(*xs[1:]), local))
            out = layout.join_time(jax.lax.map(piece, tuple(layout.split_time(x, number) for x in (q, times_1xT, segments_BxT))), T)
        return out, (k, v) if keep else None

    return attention


def _weigh(
    config: ModelConfig, q: jax.Array, k: jax.Array, v: jax.Array, mask_BxSxT: jax.Array, distance_SxT: jax.Array, local: Any
) -> jax.Array:
    """Attention of S queries [B, S, H, d] to T keys [B, T, K, d]: [B, S, H, d]."""
    B, S, H, d = q.shape
    K = k.shape[2]
    # Key heads lead and their query heads share rows: on CPU these products take half the time of [B, S, K, R, d] ones. Time comes before
    # the query heads, so that a split of it survives the merging of the two.
    q_BxKxSRxd = q.reshape(B, S, K, H // K, d).swapaxes(1, 2).reshape(B, K, -1, d)
    scores = _scores(config, jnp.einsum('bkqd,btkd->bkqt', q_BxKxSRxd, k, preferred_element_type=jnp.float32), d)
    seen = _seen(config, mask_BxSxT, distance_SxT, local)[:, None, :, None]
    weights = jax.nn.softmax(jnp.where(seen, scores.reshape(B, K, S, -1, k.shape[1]), MASKED), axis=-1)
    out = jnp.einsum('bkqt,btkd->bkqd', weights.astype(v.dtype).reshape(B, K, -1, k.shape[1]), v)
    return out.reshape(B, K, S, -1, d).swapaxes(1, 2).reshape(B, S, H, d)


class Prompt(NamedTuple):
    """One layer's keys and values of P prompts, shared by the G rows of each: [P, K, Tp, d]."""

    k: jax.Array
    v: jax.Array


class Own(NamedTuple):
    """One layer's keys and values of what each of the B = P * G rows has produced: [B, K, C, d]."""

    k: jax.Array
    v: jax.Array


def decode(config: ModelConfig, prompt: list[Prompt], prompt_mask_PxTp: jax.Array, index: jax.Array) -> Attention:
    """One new token per row: attention over the group's shared prompt and the row's own cache, one softmax over both.

    Args:
      config: the model's shape.
      prompt: per layer, the prompt cache; P divides the number of rows, rows of a prompt are adjacent. Prompts end in the last column,
        which is the place of the first token in the own cache.
      prompt_mask_PxTp: bool, prompt positions to attend to.
      index: int32 scalar, where in the own cache the new token goes; later places are not attended to.

    The layer cache given to `forward` is `(layer, Own)`.
    """
    Tp = prompt_mask_PxTp.shape[1]

    def attention(q: jax.Array, k: jax.Array, v: jax.Array, cache: tuple[int, Own], local: Any) -> tuple[jax.Array, tuple[int, Own]]:
        layer, own = cache
        B, _, H, d = q.shape
        K, C, P = k.shape[2], own.k.shape[2], prompt_mask_PxTp.shape[0]
        G, R = B // P, H // K
        own = Own(*(jax.lax.dynamic_update_slice_in_dim(old, new.swapaxes(1, 2), index, axis=2) for old, new in zip(own, (k, v))))
        q_BxKxRxd = q.reshape(B, K, R, d)
        q_PxKxGRxd = q.reshape(P, G, K, R, d).swapaxes(1, 2).reshape(P, K, G * R, d)
        shared = _scores(config, jnp.einsum('pkgd,pktd->pkgt', q_PxKxGRxd, prompt[layer].k, preferred_element_type=jnp.float32), d)
        of_prompt_PxTp = _seen(config, prompt_mask_PxTp, Tp - 1 - jnp.arange(Tp) + index, local)
        shared = jnp.where(of_prompt_PxTp[:, None, None], shared, MASKED)
        shared_BxKxRxT = shared.reshape(P, K, G, R, -1).swapaxes(1, 2).reshape(B, K, R, -1)
        mine_BxKxRxC = _scores(config, jnp.einsum('bkrd,bkcd->bkrc', q_BxKxRxd, own.k, preferred_element_type=jnp.float32), d)
        distance_C = index - jnp.arange(C)
        mine_BxKxRxC = jnp.where(_seen(config, distance_C >= 0, distance_C, local), mine_BxKxRxC, MASKED)
        weights = jax.nn.softmax(jnp.concatenate([shared_BxKxRxT, mine_BxKxRxC], axis=-1), axis=-1).astype(v.dtype)
        of_prompt, of_own = weights[..., :-C], weights[..., -C:]
        of_prompt = of_prompt.reshape(P, G, K, R, -1).swapaxes(1, 2).reshape(P, K, G * R, -1)
        out_PxKxGRxd = jnp.einsum('pkgt,pktd->pkgd', of_prompt, prompt[layer].v)
        out = out_PxKxGRxd.reshape(P, K, G, R, d).swapaxes(1, 2).reshape(B, K, R, d)
        out = out + jnp.einsum('bkrc,bkcd->bkrd', of_own, own.v)
        return out.reshape(B, 1, H, d), (layer, own)

    return attention


def _scores(config: ModelConfig, products: jax.Array, head_dim: int) -> jax.Array:
    """Products of queries and keys, scaled and capped."""
    scores = products * (config.query_scale or head_dim**-0.5)
    cap = config.attention_softcap
    return jnp.tanh(scores / cap) * cap if cap else scores


def _seen(config: ModelConfig, mask: jax.Array, distance: jax.Array, local: Any) -> jax.Array:
    """The mask, of a local layer without what lies beyond the window; `local` is a bool, or an array of one where layers are scanned."""
    if local is False:
        return mask
    near = distance < config.window
    return mask & (near if local is True else near | ~local)
