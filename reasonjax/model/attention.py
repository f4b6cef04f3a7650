"""How queries meet keys. Each function here returns an `Attention` for `model.forward`.

Scores and weighted sums are written as products of matrices throughout: as multiply-and-reduce, jaxlib 0.10.2 gets them wrong on CPU.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reasonjax.model.config import ModelConfig
from reasonjax.model.forward import Attention

# Finite, so that a row whose keys are all masked (padding) has a uniform softmax instead of nan.
MASKED = -1e30


def causal(config: ModelConfig, segments_BxT: jax.Array, attend_BxT: jax.Array | None = None, keep: bool = False) -> Attention:
    """Self-attention of each token to itself and earlier tokens of its own segment, of a local layer within the window.

    Args:
      config: the model's shape.
      segments_BxT: int32, 0 = padding; tokens see only tokens of an equal segment.
      attend_BxT: optional bool; False hides a position as a key (from all but itself).
      keep: return (k, v) as the layer's cache, for decoding after a prefill.
    """
    T = segments_BxT.shape[1]
    distance_TxS = jnp.arange(T)[:, None] - jnp.arange(T)[None]
    mask_BxTxS = (distance_TxS >= 0) & (segments_BxT[:, :, None] == segments_BxT[:, None, :])
    if attend_BxT is not None:
        mask_BxTxS = mask_BxTxS & (attend_BxT[:, None, :] | jnp.eye(T, dtype=bool))

    def attention(q: jax.Array, k: jax.Array, v: jax.Array, cache: Any, local: Any) -> tuple[jax.Array, Any]:
        B, T, H, d = q.shape
        K = k.shape[2]
        # Key heads lead and their query heads share rows: on CPU these products take half the time of [B, T, K, R, d] ones.
        q_BxKxRTxd = q.reshape(B, T, K, H // K, d).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, d)
        scores = _scores(config, jnp.einsum('bkqd,bskd->bkqs', q_BxKxRTxd, k, preferred_element_type=jnp.float32), d)
        seen = _seen(config, mask_BxTxS, distance_TxS, local)[:, None, None]
        weights = jax.nn.softmax(jnp.where(seen, scores.reshape(B, K, -1, T, T), MASKED), axis=-1)
        out = jnp.einsum('bkqs,bskd->bkqd', weights.astype(v.dtype).reshape(B, K, -1, T), v)
        out = out.reshape(B, K, -1, T, d).transpose(0, 3, 1, 2, 4).reshape(B, T, H, d)
        return out, (k, v) if keep else None

    return attention


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
