"""Weights kept in 8 or 4 bits: blockwise absmax, dequantised where they are used and nowhere else.

A block is `block` consecutive rows of one column: the weights that one output sums over. Rows (the
inputs) of a block are thus never split from their scale when columns are sharded, and any two
columns are independent of each other.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from reasonjax.weights.linear import Axes, Weight

# The quantiles of a normal distribution, 8 above zero, 7 below and zero itself, scaled to [-1, 1]
# (Dettmers et al. 2023, arXiv:2305.14314, appendix E).
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
INT8_LEVELS = 127
# Format -> rows of the weight per row of codes.
FORMATS = {'int8': 1, 'nf4': 2}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantised(Weight):
    """A weight [D, F] in blocks of rows: W = level(code) * absmax of the block. It never trains.

    Attributes:
      codes: int8 [D, F], the level times 127; for nf4 uint8 [D / 2, F], numbers of `NF4` levels in
        two half bytes: of a block's rows, the first half lies in the low ones, the second in the
        high ones. (Bytes, because 4-bit dtypes take a byte each on CPU and cannot be written to a
        checkpoint.)
      absmax: [D / block, F], in the dtype of the weight it was made of, which holds it exactly.
      format: a key of `FORMATS`.
      block: rows per block.
    """

    codes: jax.Array
    absmax: jax.Array
    format: str = dataclasses.field(metadata=dict(static=True))
    block: int = dataclasses.field(metadata=dict(static=True))

    constants: ClassVar[tuple[str, ...]] = ('codes', 'absmax')

    def apply(self, x_NxD: jax.Array) -> jax.Array:
        return _product(x_NxD, self)

    def apply_transposed(self, x_NxF: jax.Array) -> jax.Array:
        return _product_transposed(x_NxF, self)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        block, within = ids // self.block, ids % self.block
        if self.format == 'int8':
            codes = jnp.take(self.codes, ids, axis=0)
        else:
            half = self.block // 2
            pairs = jnp.take(self.codes, block * half + within % half, axis=0)
            codes = pairs >> (4 * (within // half)).astype(jnp.uint8)[..., None]
        return self._scaled(codes, jnp.take(self.absmax, block, axis=0)).astype(dtype)

    def merge(self) -> jax.Array:
        return self.dense(self.absmax.dtype)

    def dense(self, dtype: Any) -> jax.Array:
        """Computes the dense array [..., D, F] of this node in float32, rounded once."""
        *stack, blocks, columns = self.absmax.shape
        codes = self.codes.reshape(*stack, blocks, -1, columns)
        if self.format == 'nf4':
            codes = jnp.concatenate([codes, codes >> 4], axis=-2)
        scaled = self._scaled(codes, self.absmax[..., None, :])
        return scaled.reshape(*stack, blocks * self.block, columns).astype(dtype)

    def _scaled(self, codes: jax.Array, absmax: jax.Array) -> jax.Array:
        absmax = absmax.astype(jnp.float32)
        if self.format == 'int8':
            return codes.astype(jnp.float32) * (absmax / INT8_LEVELS)
        return _nf4_levels(codes) * absmax

    def rounded(self, w: jax.Array) -> jax.Array:
        """Returns another dense array as quantisation in this format leaves it, in its dtype."""
        return quantise(w, self.format, self.block).merge()

    def axes(self, of_dense: Axes) -> 'Quantised':
        # Rows of codes and of scales are both the dense rows in order, in coarser steps.
        return dataclasses.replace(self, codes=of_dense, absmax=of_dense)


def quantise(w: jax.Array, format: str, block: int) -> Quantised:  # noqa: A002
    """Rounds every weight to the nearest level of its block.

    Half a step is the most it moves by: absmax / 254 in int8, absmax times half the gap between two
    levels in nf4 (0.152 at most). A block that holds a NaN is all NaN.

    Args:
      w: [..., D, F].
      format: a key of `FORMATS`.
      block: divides D; even for nf4.
    """
    *stack, rows, columns = w.shape
    blocks = w.reshape(*stack, rows // block, block, columns)
    absmax = jnp.max(jnp.abs(blocks), axis=-2)
    unit = absmax.astype(jnp.float32)[..., None, :]
    levels = blocks.astype(jnp.float32) / jnp.where(unit == 0, 1, unit)
    if format == 'int8':
        codes = jnp.round(levels * INT8_LEVELS).astype(jnp.int8)
    else:
        between = [(low + high) / 2 for low, high in zip(NF4[:-1], NF4[1:])]
        numbers = sum((levels > middle).astype(jnp.uint8) for middle in between)
        low, high = jnp.split(numbers, 2, axis=-2)
        codes = low | (high << 4)
    return Quantised(codes.reshape(*stack, rows // FORMATS[format], columns), absmax, format, block)


def _nf4_levels(codes: jax.Array) -> jax.Array:
    """Levels by the low half bytes. A tree of selections, which fuses with the product; a look-up
    would go element by element on TPU."""
    # Levels that depend on the codes: arrays of constants would be taken out of a scan over layers,
    # all 16 of them.
    nothing = (codes & 0).astype(jnp.float32)
    levels = [nothing + level for level in NF4]
    for bit in range(4):
        is_set = (codes >> bit) & 1 == 1
        levels = [jnp.where(is_set, high, low) for low, high in zip(levels[::2], levels[1::2])]
    return levels[0]


# Recomputed in the backward pass: otherwise the dense matrix of every layer would be kept for it.
@jax.checkpoint
def _product(x_NxD: jax.Array, w: Quantised) -> jax.Array:
    return x_NxD @ w.dense(x_NxD.dtype)


@jax.checkpoint
def _product_transposed(x_NxF: jax.Array, w: Quantised) -> jax.Array:
    return x_NxF @ w.dense(x_NxF.dtype).T
