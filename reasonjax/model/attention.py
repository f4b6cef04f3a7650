"""How queries meet keys. Each function here returns an `Attention` for `model.forward`.

Scores and weighted sums are written as products of matrices throughout: as multiply-and-reduce, jaxlib 0.10.2 gets them wrong on CPU.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reasonjax.model.forward import Attention

# Finite, so that a row whose keys are all masked (padding) has a uniform softmax instead of nan.
MASKED = -1e30


def causal(segments_BxT: jax.Array, attend_BxT: jax.Array | None = None, keep: bool = False) -> Attention:
    """Self-attention of each token to itself and earlier tokens of its own segment.

    Args:
      segments_BxT: int32, 0 = padding; tokens see only tokens of an equal segment.
      attend_BxT: optional bool; False hides a position as a key (from all but itself).
      keep: return (k, v) as the layer's cache, for decoding after a prefill.
    """
    T = segments_BxT.shape[1]
    earlier = jnp.arange(T)[:, None] >= jnp.arange(T)[None]
    mask_BxTxS = earlier & (segments_BxT[:, :, None] == segments_BxT[:, None, :])
    if attend_BxT is not None:
        mask_BxTxS = mask_BxTxS & (attend_BxT[:, None, :] | jnp.eye(T, dtype=bool))

    def attention(q: jax.Array, k: jax.Array, v: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        B, T, H, d = q.shape
        q_BxTxKxRxd = _group(q, k.shape[2])
        scores = jnp.einsum('btkrd,bskd->bkrts', q_BxTxKxRxd, k, preferred_element_type=jnp.float32) * d**-0.5
        weights = jax.nn.softmax(jnp.where(mask_BxTxS[:, None, None], scores, MASKED), axis=-1)
        out = jnp.einsum('bkrts,bskd->btkrd', weights.astype(v.dtype), v)
        return out.reshape(B, T, H, d), (k, v) if keep else None

    return attention


class Prompt(NamedTuple):
    """One layer's keys and values of P prompts, shared by the G rows of each: [P, K, Tp, d]."""

    k: jax.Array
    v: jax.Array


class Own(NamedTuple):
    """One layer's keys and values of what each of the B = P * G rows has produced: [B, K, C, d]."""

    k: jax.Array
    v: jax.Array


def decode(prompt: list[Prompt], prompt_mask_PxTp: jax.Array, index: jax.Array) -> Attention:
    """One new token per row: attention over the group's shared prompt and the row's own cache, one softmax over both.

    Args:
      prompt: per layer, the prompt cache; P divides the number of rows, rows of a prompt are adjacent.
      prompt_mask_PxTp: bool, prompt positions to attend to.
      index: int32 scalar, where in the own cache the new token goes; later places are not attended to.

    The layer cache given to `forward` is `(layer, Own)`.
    """

    def attention(q: jax.Array, k: jax.Array, v: jax.Array, cache: tuple[int, Own]) -> tuple[jax.Array, tuple[int, Own]]:
        layer, own = cache
        B, _, H, d = q.shape
        K, C, P = k.shape[2], own.k.shape[2], prompt_mask_PxTp.shape[0]
        G, R = B // P, H // K
        own = Own(*(jax.lax.dynamic_update_slice_in_dim(old, new.swapaxes(1, 2), index, axis=2) for old, new in zip(own, (k, v))))
        q_BxKxRxd = q.reshape(B, K, R, d)
        q_PxKxGRxd = q.reshape(P, G, K, R, d).swapaxes(1, 2).reshape(P, K, G * R, d)
        shared = jnp.einsum('pkgd,pktd->pkgt', q_PxKxGRxd, prompt[layer].k, preferred_element_type=jnp.float32)
        shared = jnp.where(prompt_mask_PxTp[:, None, None], shared * d**-0.5, MASKED)
        shared_BxKxRxT = shared.reshape(P, K, G, R, -1).swapaxes(1, 2).reshape(B, K, R, -1)
        mine_BxKxRxC = jnp.einsum('bkrd,bkcd->bkrc', q_BxKxRxd, own.k, preferred_element_type=jnp.float32)
        mine_BxKxRxC = jnp.where(jnp.arange(C) <= index, mine_BxKxRxC * d**-0.5, MASKED)
        weights = jax.nn.softmax(jnp.concatenate([shared_BxKxRxT, mine_BxKxRxC], axis=-1), axis=-1).astype(v.dtype)
        of_prompt, of_own = weights[..., :-C], weights[..., -C:]
        of_prompt = of_prompt.reshape(P, G, K, R, -1).swapaxes(1, 2).reshape(P, K, G * R, -1)
        out_PxKxGRxd = jnp.einsum('pkgt,pktd->pkgd', of_prompt, prompt[layer].v)
        out = out_PxKxGRxd.reshape(P, K, G, R, d).swapaxes(1, 2).reshape(B, K, R, d)
        out = out + jnp.einsum('bkrc,bkcd->bkrd', of_own, own.v)
        return out.reshape(B, 1, H, d), (layer, own)

    return attention


def _group(q: jax.Array, kv_heads: int) -> jax.Array:
    """[B, T, H, d] -> [B, T, K, R, d], R query heads to a key head."""
    B, T, H, d = q.shape
    return q.reshape(B, T, kv_heads, H // kv_heads, d)
