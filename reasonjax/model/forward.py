"""The one forward pass: training, scoring, prefill and decoding differ only in the attention
function they hand in."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reasonjax.model.config import ModelConfig
from reasonjax.model.experts import Routing, mixture
from reasonjax.model.remat import named, rematerialised
from reasonjax.model.rotary import Rotation, rotate, rotations
from reasonjax.parallel import layout
from reasonjax.weights.linear import embed, linear, unembed

# (q [B,T,H,d], k [B,T,K,d], v [B,T,K,d], cache of this layer or None, whether it is local)
# -> (output [B,T,H,d], new cache of this layer or None)
Attention = Callable[[jax.Array, jax.Array, jax.Array, Any, Any], tuple[jax.Array, Any]]
Tap = Callable[[jax.Array | int, jax.Array], jax.Array]


class Output(NamedTuple):
    """What `forward` returns.

    Attributes:
      hidden: [B, T, D] after the final norm, in the compute dtype.
      cache: the new cache; None where attention returns none.
      routing: of the experts, stacked over layers; None where there are none, or no token was to be
        counted.
    """

    hidden: jax.Array
    cache: Any
    routing: Routing | None


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
    counted_BxT: jax.Array | None = None,
) -> Output:
    """Runs the decoder up to and including the final norm.

    Args:
      params: parameter tree of `model.spec.specs`; `params['layers']` is stacked, or a list of
        layers as `unstack` gives.
      config: the model's shape.
      inputs_BxT: int32 token ids.
      positions_BxT: int32 rotary positions.
      attention: how queries meet keys; see `model.attention`.
      cache: what `attention` carries from call to call: a list of per-layer caches, or a pytree
        stacked over layers when `config.scan`.
      inputs_embeds: [B, T, D] to read instead of the embedding rows of `inputs_BxT` (which are
        scaled by `embed_scale`, these are not).
      tap: `tap(layer, residual_BxTxD) -> residual`, called on the residual stream after every
        block; `layer` counts from 0. To capture by writing to a closure, neither scan nor remat.
      counted_BxT: bool, tokens whose routing to experts is reported.
    """
    dtype = jnp.dtype(config.compute_dtype)
    if inputs_embeds is None:
        x = embed(inputs_BxT, params['embed'], dtype)
        x = x if config.embed_scale == 1 else x * jnp.asarray(config.embed_scale, dtype)
    else:
        x = inputs_embeds.astype(dtype)
    x = layout.constrain(x, 'batch', 'time', None)
    tables = rotations(config, positions_BxT)
    number_of_table = {name: number for number, name in enumerate(config.rope_tables)}
    table_of_layer = tuple(number_of_table[name] for name in config.rope_of_layer)

    def block(x: jax.Array, weights: dict, layer: Any, layer_cache: Any) -> tuple[jax.Array, tuple]:
        number = _of_layer(table_of_layer, layer)
        rotation = Rotation(
            *(jax.lax.dynamic_index_in_dim(table, number, keepdims=False) for table in tables)
        )
        local = _of_layer(config.local, layer)
        mixed, layer_cache = _attend(
            weights['attention'], config, x, rotation, attention, layer_cache, local
        )
        x = x + mixed
        mixed, routing = _mlp(weights['mlp'], config, x, counted_BxT)
        x = layout.constrain(x + mixed, 'batch', 'time', None)
        return (x if tap is None else tap(layer, x)), (layer_cache, routing)

    scanned = config.scan and not isinstance(params['layers'], list)
    block = rematerialised(block, config.remat, static_argnums=() if scanned else (2,))

    layers = params['layers']
    if scanned:

        def body(x: jax.Array, xs: tuple) -> tuple[jax.Array, tuple]:
            return block(x, *xs)

        x, (cache, routing) = jax.lax.scan(body, x, (layers, jnp.arange(config.layers), cache))
    else:
        layers = layers if isinstance(layers, list) else unstack(layers, config.layers)
        caches = [None] * config.layers if cache is None else cache
        outputs = []
        for layer, (weights, layer_cache) in enumerate(zip(layers, caches, strict=True)):
            x, beside = block(x, weights, layer, layer_cache)
            outputs.append(beside)
        cache = None if outputs[0][0] is None else [c for c, _ in outputs]
        routing = (
            None
            if outputs[0][1] is None
            else jax.tree.map(lambda *x: jnp.stack(x), *(r for _, r in outputs))
        )
    return Output(_norm(x, params['norm'], config), cache, routing)


def logits(params: dict, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Computes float32 logits [..., V] of hidden states [..., D]. PAD gets -1e9, in training and in
    sampling alike."""
    # Products of the compute dtype, but not rounded to it: in bfloat16 that would move log-probs by
    # hundredths.
    out = (
        unembed(hidden, params['embed'], jnp.float32)
        if config.tied
        else linear(hidden, params['head'], jnp.float32)
    )
    if config.logit_softcap:
        out = jnp.tanh(out / config.logit_softcap) * config.logit_softcap
    if config.pad_id < 0:
        return out
    return jnp.where(jnp.arange(out.shape[-1]) == config.pad_id, -1e9, out)


def unstack(layers: Any, number: int) -> list:
    """Splits stacked layers into a list of layers, whose gradients come back as one concatenation
    per leaf."""
    leaves, structure = jax.tree.flatten(layers)
    pieces = [
        [jnp.squeeze(p, 0) for p in jax.lax.split(leaf, (1,) * number, axis=0)] for leaf in leaves
    ]
    return [jax.tree.unflatten(structure, [piece[i] for piece in pieces]) for i in range(number)]


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, offset: float = 0.0) -> jax.Array:
    """Computes x / rms(x) * (offset + scale) over the last axis in float32, returned in the dtype
    of x (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    # The backward pass computes it again from x: what it would otherwise keep costs more to write
    # and read than to compute.
    @jax.checkpoint
    def normed(x: jax.Array, scale: jax.Array) -> jax.Array:
        x32, scale32 = x.astype(jnp.float32), scale.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
        return (x32 * inverse * (offset + scale32 if offset else scale32)).astype(x.dtype)

    return normed(x, scale)


def _norm(x: jax.Array, scale: jax.Array, config: ModelConfig) -> jax.Array:
    return rms_norm(x, scale, config.norm_eps, config.norm_offset)


def _of_layer(values: tuple, layer: Any) -> Any:
    """Picks the value of a layer. It is a Python value where all layers are alike or `layer` is a
    number, an array where layers are scanned."""
    if len(set(values)) == 1:
        return values[0]
    return values[layer] if isinstance(layer, int) else jnp.asarray(values)[layer]


def _project(x: jax.Array, w: dict, name: str) -> jax.Array:
    out = linear(x, w[name])
    return named(out + w[f'{name}_bias'].astype(out.dtype) if f'{name}_bias' in w else out, name)


def _around(
    w: dict, config: ModelConfig, x: jax.Array, inner: Callable[[jax.Array], tuple[jax.Array, Any]]
) -> tuple[jax.Array, Any]:
    """Norms before, after or around what a block adds to the residual stream."""
    out, beside = inner(_norm(x, w['norm'], config) if 'norm' in w else x)
    return (_norm(out, w['post_norm'], config) if 'post_norm' in w else out), beside


def _attend(
    w: dict,
    config: ModelConfig,
    x: jax.Array,
    rotation: Rotation,
    attention: Attention,
    cache: Any,
    local: Any,
) -> tuple[jax.Array, Any]:
    def heads(normed: jax.Array, name: str, number: int) -> jax.Array:
        out = _project(normed, w, name)
        if config.qk_norm == 'row' and name in 'qk':
            out = _norm(out, w[f'{name}_norm'], config)
        out = out.reshape(*x.shape[:2], number, config.head_dim)
        if config.qk_norm == 'head' and name in 'qk':
            return _norm(out, w[f'{name}_norm'], config)
        return out

    def inner(normed: jax.Array) -> tuple[jax.Array, Any]:
        q = heads(normed, 'q', config.heads)
        k = heads(normed, 'k', config.kv_heads)
        v = heads(normed, 'v', config.kv_heads)
        out, new = attention(rotate(q, rotation), rotate(k, rotation), v, cache, local)
        out = named(out, 'attended')
        return _project(out.reshape(*x.shape[:2], config.heads * config.head_dim), w, 'o'), new

    return _around(w, config, x, inner)


def _mlp(
    w: dict, config: ModelConfig, x: jax.Array, counted_BxT: jax.Array | None
) -> tuple[jax.Array, Routing | None]:
    def activate(x: jax.Array) -> jax.Array:
        if config.activation == 'silu':
            return jax.nn.silu(x)
        return jax.nn.gelu(x, approximate=config.activation == 'gelu_tanh')

    # Computed again in the backward pass, as the norms are.
    @jax.checkpoint
    def gate(x: jax.Array, up: jax.Array) -> jax.Array:
        return activate(x) * up

    def inner(normed: jax.Array) -> tuple[jax.Array, Routing | None]:
        if config.experts:
            return mixture(w, config, normed, activate, counted_BxT)
        up = _project(normed, w, 'up')
        hidden = (
            gate(_project(normed, w, 'gate'), up) if config.gated else jax.checkpoint(activate)(up)
        )
        return _project(hidden, w, 'down'), None

    return _around(w, config, x, inner)
