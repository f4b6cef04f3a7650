"""Attention kernels of NVIDIA GPUs: cuDNN's through JAX, and tokamax's. See `model.kernels` for
what they have in common."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp

from reasonjax.errors import UserError
from reasonjax.model.config import ModelConfig
from reasonjax.model.kernels_devices import KEYS, QUERIES, filled, on_each_device

# Compute capability of Hopper, from which on cuDNN has heads wider than 128 and tokamax its kernels
# in Mosaic.
HOPPER = 9.0
MASK = ('batch', None, None)


def same_segment(
    config: ModelConfig, segments_BxT: jax.Array, attend_BxT: jax.Array | None
) -> tuple[jax.Array]:
    """Whether what a query sees of its past includes a key [B, T, T]."""
    del config
    same_BxTxT = segments_BxT[:, :, None] == segments_BxT[:, None]
    if attend_BxT is not None:
        same_BxTxT &= attend_BxT[:, None] | jnp.eye(segments_BxT.shape[1], dtype=bool)
    return (same_BxTxT,)


def of_bins(
    config: ModelConfig,
    shown_BxTp: jax.Array,
    segments_BxL: jax.Array,
    attend_BxL: jax.Array | None,
    distance_BxLxT: jax.Array,
) -> tuple[jax.Array, ...]:
    """Whether a query sees a key of its prompt or its bin [B, L, Tp + L]: in a global layer, and,
    where there are any, in a local one."""
    L = segments_BxL.shape[1]
    (own_BxLxL,) = same_segment(config, segments_BxL, attend_BxL)
    shown_BxLxTp = jnp.broadcast_to(shown_BxTp[:, None], (*segments_BxL.shape, shown_BxTp.shape[1]))
    mask_BxLxT = jnp.concatenate([shown_BxLxTp, own_BxLxL & jnp.tri(L, dtype=bool)], axis=2)
    return (
        (mask_BxLxT, mask_BxLxT & (distance_BxLxT < config.window))
        if any(config.local)
        else (mask_BxLxT,)
    )


def dot_product(
    config: ModelConfig,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    prepared: tuple[jax.Array],
    local: bool,
    implementation: str = 'cudnn',
) -> jax.Array:
    """`jax.nn.dot_product_attention` within rows; see `model.kernels.causal`."""
    # What the kernel is told of the past and of a window, it need not compute; a mask only hides
    # it.
    knows = dict(is_causal=True, local_window_size=(config.window - 1, 0) if local else None)
    return _dot_product(config, q, k, v, prepared[0], implementation=implementation, **knows)


def dot_product_bins(
    config: ModelConfig,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    prepared: tuple[jax.Array, ...],
    local: bool,
    implementation: str = 'cudnn',
) -> jax.Array:
    """`jax.nn.dot_product_attention` to prompts and bins; see `model.kernels.in_bins`."""
    return _dot_product(config, q, k, v, prepared[local], implementation=implementation)


def _dot_product(
    config: ModelConfig,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask_BxSxT: jax.Array,
    **knows: Any,
) -> jax.Array:
    S, T = mask_BxSxT.shape[1:]

    def weigh(q: jax.Array, k: jax.Array, v: jax.Array, mask_BxSxT: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=mask_BxSxT[:, None],
            scale=config.query_scale or config.head_dim**-0.5,
            **knows,
        )

    # With a bias, cuDNN differentiates even lengths only.
    even_S, even_T = S + S % 2, T + T % 2
    q, k, v = filled(q, 1, even_S), filled(k, 1, even_T), filled(v, 1, even_T)
    mask_BxSxT = filled(filled(mask_BxSxT, 1, even_S), 2, even_T)
    return on_each_device(weigh, (q, k, v, mask_BxSxT), (QUERIES, KEYS, KEYS, MASK))[:, :S]


def first_keys(
    config: ModelConfig, segments_BxT: jax.Array, attend_BxT: jax.Array | None
) -> tuple[jax.Array, ...]:
    """Where the segment of each position begins [B, T], and, if some are hidden, which positions
    are keys [B, T]."""
    del config
    begins_BxT = jnp.pad(segments_BxT[:, 1:] != segments_BxT[:, :-1], ((0, 0), (1, 0)))
    first_BxT = jax.lax.cummax(jnp.where(begins_BxT, jnp.arange(segments_BxT.shape[1]), 0), axis=1)
    return (first_BxT,) if attend_BxT is None else (first_BxT, attend_BxT)


def flash(
    config: ModelConfig,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    prepared: tuple[jax.Array, ...],
    local: bool,
    implementation: Any = ('mosaic', 'triton'),
) -> jax.Array:
    """tokamax's attention within rows; see `model.kernels.causal`.

    On Hopper and Blackwell its kernel in Mosaic, on older GPUs the one in Triton.
    """
    times_T = jnp.arange(q.shape[1])

    def weigh(
        q: jax.Array, k: jax.Array, v: jax.Array, first_BxT: jax.Array, *attend_BxT: jax.Array
    ) -> jax.Array:
        first_BxT = jnp.maximum(first_BxT, times_T - config.window + 1) if local else first_BxT
        mask = (
            (attend_BxT[0][:, None] | jnp.eye(len(times_T), dtype=bool))[:, None]
            if attend_BxT
            else None
        )
        # A window of its own for each query, from the first key that it sees to itself: no mask is
        # made.
        window = ((times_T - first_BxT)[:, None], 0)
        return _flash(
            config, q, k, v, mask=mask, local_window_size=window, implementation=implementation
        )

    return on_each_device(
        weigh, (q, k, v, *prepared), (QUERIES, KEYS, KEYS, *[('batch', None)] * len(prepared))
    )


def flash_bins(
    config: ModelConfig,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    prepared: tuple[jax.Array, ...],
    local: bool,
    implementation: Any = ('mosaic', 'triton'),
) -> jax.Array:
    """tokamax's attention to prompts and bins; see `model.kernels.in_bins`."""

    def weigh(q: jax.Array, k: jax.Array, v: jax.Array, mask_BxSxT: jax.Array) -> jax.Array:
        return _flash(config, q, k, v, mask=mask_BxSxT[:, None], implementation=implementation)

    return on_each_device(weigh, (q, k, v, prepared[local]), (QUERIES, KEYS, KEYS, MASK))


def _flash(config: ModelConfig, q: jax.Array, k: jax.Array, v: jax.Array, **how: Any) -> jax.Array:
    # An extra, which `check` asks for before a run starts.
    import tokamax

    scale, softcap = config.query_scale or config.head_dim**-0.5, config.attention_softcap or None
    return tokamax.dot_product_attention(q, k, v, scale=scale, logits_soft_cap=softcap, **how)


def check(config: ModelConfig, device: Any) -> None:
    """Raises UserError for what depends on the generation of the GPU, or is not installed."""
    key = f'config.model.attention_kernel="{config.attention_kernel}"'
    generation = float(device.compute_capability)
    if generation < 8:
        raise UserError(
            f'{key}: needs a GPU of compute capability 8.0 or more, and this one has {generation}; '
            'use "xla".'
        )
    if config.attention_kernel == 'cudnn' and config.head_dim > 128 and generation < HOPPER:
        raise UserError(
            f'{key}: heads wider than 128 (head_dim={config.head_dim}) need compute capability '
            f'{HOPPER} or more, and this GPU has '
            f'{generation}; use "flash" or "xla".'
        )
    if config.attention_kernel == 'flash':
        if importlib.util.find_spec('tokamax') is None:
            raise UserError(f'{key}: needs tokamax: pip install reasonjax[kernels].')
        if config.attention_softcap and generation < HOPPER:
            raise UserError(
                f'{key}: the gradient of capped scores '
                f'(attention_softcap={config.attention_softcap}) needs compute capability {HOPPER} '
                'or '
                f'more, and this GPU has {generation}; use "xla".'
            )
