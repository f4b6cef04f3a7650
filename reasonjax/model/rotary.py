"""Rotary positions as the forward pass applies them: which frequencies a layer has, and the
rotation itself."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reasonjax.model.config import ModelConfig, frequencies


class Rotation(NamedTuple):
    """Cosines and sines [..., B, T, 1, rotated / 2], float32."""

    cos: jax.Array
    sin: jax.Array


def longest(config: ModelConfig) -> int:
    """Returns the longest sequence that the positions are good for; 0 for no limit."""
    scaling = dict(config.rope_scaling)
    if 'length' in scaling:
        return max(scaling['length'], scaling['original_max_position_embeddings'])
    return config.max_positions


def rotations(config: ModelConfig, positions_BxT: jax.Array) -> Rotation:
    """Computes the rotation of each table of the model (`config.rope_tables`), stacked in front."""
    tables = [frequencies(config, table) for table in config.rope_tables]
    frequency_Nxd = jnp.asarray(np.stack([f for f, _ in tables]), jnp.float32)
    factor_N = jnp.asarray([factor for _, factor in tables], jnp.float32)[:, None, None, None, None]
    angle = (
        positions_BxT.astype(jnp.float32)[None, ..., None, None]
        * frequency_Nxd[:, None, None, None]
    )
    return Rotation(jnp.cos(angle) * factor_N, jnp.sin(angle) * factor_N)


def rotate(x_BxTxHxd: jax.Array, rotation: Rotation) -> jax.Array:
    """Rotates the two halves of the rotated part of each head (as Llama and Qwen do); the rest
    passes."""
    rotated = 2 * rotation.cos.shape[-1]
    turning, passing = x_BxTxHxd[..., :rotated], x_BxTxHxd[..., rotated:]
    a, b = jnp.split(turning.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate(
        [a * rotation.cos - b * rotation.sin, b * rotation.cos + a * rotation.sin], axis=-1
    ).astype(x_BxTxHxd.dtype)
    return turned if rotated == x_BxTxHxd.shape[-1] else jnp.concatenate([turned, passing], axis=-1)
