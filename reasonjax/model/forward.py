"""The one forward pass: training, scoring, prefill and decoding differ only in the attention function they hand in."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reasonjax.model.config import ModelConfig
from reasonjax.weights.linear import embed, linear, unembed

# (q [B,T,H,d], k [B,T,K,d], v [B,T,K,d], cache of this layer or None) -> (output [B,T,H,d], new cache of this layer or None)
Attention = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
Tap = Callable[[jax.Array | int, jax.Array], jax.Array]


def forward(
    params: dict,
    config: ModelConfig,
    inputs_BxT: jax.Array,
    positions_BxT: jax.Array,
    attention: Attention,
    *,
    cache: Any = None,
    inputs_embeds: jax.Array | None = None,
    tap: Tap | None = None,
) -> tuple[jax.Array, Any]:
    """Runs the decoder up to and including the final norm.

    Args:
      params: parameter tree of `model.spec.specs`; `params['layers']` is stacked, or a list of layers as `unstack` gives.
      config: the model's shape.
      inputs_BxT: int32 token ids.
      positions_BxT: int32 rotary positions.
      attention: how queries meet keys; see `model.attention`.
      cache: what `attention` carries from call to call: a list of per-layer caches, or a pytree stacked over layers when `config.scan`.
      inputs_embeds: [B, T, D] to read instead of the embedding rows of `inputs_BxT`.
      tap: `tap(layer, residual_BxTxD) -> residual`, called on the residual stream after every block; `layer` counts from 0. To capture
        by writing to a closure, neither scan nor remat.

    Returns:
      Hidden states [B, T, D] in the compute dtype, and the new cache (None where attention returns none).
    """
    dtype = jnp.dtype(config.compute_dtype)
    x = embed(inputs_BxT, params['embed'], dtype) if inputs_embeds is None else inputs_embeds.astype(dtype)
    rotation = rope(positions_BxT, config.head_dim, config.rope_theta)

    def block(x: jax.Array, weights: dict, layer: Any, layer_cache: Any) -> tuple[jax.Array, Any]:
        mixed, layer_cache = _attend(weights['attention'], config, x, rotation, attention, layer_cache)
        x = x + mixed
        x = x + _mlp(weights['mlp'], config, x)
        return (x if tap is None else tap(layer, x)), layer_cache

    scanned = config.scan and not isinstance(params['layers'], list)
    if config.remat != 'none':
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == 'dots' else None
        block = jax.checkpoint(block, policy=policy, static_argnums=() if scanned else (2,))

    layers = params['layers']
    if scanned:

        def body(x: jax.Array, xs: tuple) -> tuple[jax.Array, Any]:
            return block(x, *xs)

        x, cache = jax.lax.scan(body, x, (layers, jnp.arange(config.layers), cache))
    else:
        layers = layers if isinstance(layers, list) else unstack(layers, config.layers)
        caches = [None] * config.layers if cache is None else cache
        cache = []
        for layer, (weights, layer_cache) in enumerate(zip(layers, caches, strict=True)):
            x, layer_cache = block(x, weights, layer, layer_cache)
            cache.append(layer_cache)
        cache = None if cache[0] is None else cache
    return rms_norm(x, params['norm'], config.norm_eps), cache


def logits(params: dict, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Float32 logits [..., V] of hidden states [..., D]; PAD gets -1e9, in training and in sampling alike."""
    # Products of the compute dtype, but not rounded to it: in bfloat16 that would move log-probs by hundredths.
    out = unembed(hidden, params['embed'], jnp.float32) if config.tied else linear(hidden, params['head'], jnp.float32)
    if config.pad_id < 0:
        return out
    return jnp.where(jnp.arange(out.shape[-1]) == config.pad_id, -1e9, out)


def unstack(layers: Any, number: int) -> list:
    """Splits stacked layers into a list of layers, whose gradients come back as one concatenation per leaf."""
    leaves, structure = jax.tree.flatten(layers)
    pieces = [[jnp.squeeze(p, 0) for p in jax.lax.split(leaf, (1,) * number, axis=0)] for leaf in leaves]
    return [jax.tree.unflatten(structure, [piece[i] for piece in pieces]) for i in range(number)]


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis in float32, returned in the dtype of x (Zhang & Sennrich 2019, arXiv:1910.07467)."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * inverse).astype(x.dtype) * scale.astype(x.dtype)


def rope(positions_BxT: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B, T, 1, head_dim / 2], float32 (Su et al. 2021, arXiv:2104.09864; halves rotated as in Llama and Qwen)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions_BxT.astype(jnp.float32)[..., None, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BxTxHxd: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the two halves of each head by the angles of `rope`."""
    cos, sin = rotation
    a, b = jnp.split(x_BxTxHxd.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BxTxHxd.dtype)


def _attend(w: dict, config: ModelConfig, x: jax.Array, rotation: Any, attention: Attention, cache: Any) -> tuple[jax.Array, Any]:
    normed = rms_norm(x, w['norm'], config.norm_eps)

    def heads(name: str, number: int) -> jax.Array:
        out = linear(normed, w[name])
        if config.qkv_bias:
            out = out + w[f'{name}_bias'].astype(out.dtype)
        return out.reshape(*x.shape[:2], number, config.head_dim)

    q, k, v = heads('q', config.heads), heads('k', config.kv_heads), heads('v', config.kv_heads)
    if config.qk_norm:
        q, k = rms_norm(q, w['q_norm'], config.norm_eps), rms_norm(k, w['k_norm'], config.norm_eps)
    out, cache = attention(rotate(q, rotation), rotate(k, rotation), v, cache)
    return linear(out.reshape(*x.shape[:2], config.heads * config.head_dim), w['o']), cache


def _mlp(w: dict, config: ModelConfig, x: jax.Array) -> jax.Array:
    normed = rms_norm(x, w['norm'], config.norm_eps)
    up = linear(normed, w['up'])
    if config.gated:
        return linear(_activate(linear(normed, w['gate']), config.activation) * up, w['down'])
    return linear(_activate(up, config.activation), w['down'])


def _activate(x: jax.Array, name: str) -> jax.Array:
    return jax.nn.silu(x) if name == 'silu' else jax.nn.gelu(x, approximate=name == 'gelu_tanh')
