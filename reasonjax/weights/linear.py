"""How a weight is applied: the only place where an activation meets a parameter.

The model calls `linear`, `embed` and `unembed` and never multiplies by hand. A leaf is an array, or
a `Weight` node that knows its own product; an adapter is therefore a kind of leaf, and neither the
model nor the sampler knows that adapters exist.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from reasonjax.parallel import layout

Axes = tuple[str | None, ...]


class Weight(abc.ABC):
    """A parameter that is more than one array. Subclasses are frozen dataclasses registered as
    pytrees.

    In a stack of layers every leaf of the node carries the layer axis in front. Shapes are not
    validated at construction: tree transformations rebuild nodes around things that are not arrays.

    Attributes:
      constants: names of the parts that are constants of the node's definition: filters leave them
        frozen.
    """

    constants: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def apply(self, x_NxD: jax.Array) -> jax.Array:
        """Computes x @ W, for W of shape [D, F]: returns [N, F]."""

    @abc.abstractmethod
    def apply_transposed(self, x_NxF: jax.Array) -> jax.Array:
        """Computes x @ W.T: returns [N, D]."""

    @abc.abstractmethod
    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        """Looks up rows of W by integer ids of any shape: returns [..., F]."""

    @abc.abstractmethod
    def merge(self) -> jax.Array:
        """Returns the dense array that this node stands for."""

    @abc.abstractmethod
    def axes(self, of_dense: Axes) -> 'Weight':
        """Returns the logical axes of each part in a node of this kind. `of_dense` are those of the
        dense array (the layer axis included)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank(Weight):
    """W + scale * A B (Hu et al. 2021, arXiv:2106.09685, equation 3).

    Attributes:
      base: the frozen weight [D, F], an array or another node.
      a: [D, r].
      b: [r, F]; zero at the start, so that the adapted model equals its base.
      scale: [], lora_alpha / r (a leaf, not metadata: a change of value does not recompile; every
        filter leaves it frozen).
    """

    base: Any
    a: jax.Array
    b: jax.Array
    scale: jax.Array

    constants: ClassVar[tuple[str, ...]] = ('scale',)

    def apply(self, x_NxD: jax.Array) -> jax.Array:
        dtype = x_NxD.dtype
        low_NxR = x_NxD @ self.a.astype(dtype)
        return matmul(x_NxD, self.base) + (low_NxR @ self.b.astype(dtype)) * self.scale.astype(
            dtype
        )

    def apply_transposed(self, x_NxF: jax.Array) -> jax.Array:
        dtype = x_NxF.dtype
        low_NxR = x_NxF @ self.b.T.astype(dtype)
        return matmul_transposed(x_NxF, self.base) + (
            low_NxR @ self.a.T.astype(dtype)
        ) * self.scale.astype(dtype)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        low = jnp.take(self.a, ids, axis=0).astype(dtype) @ self.b.astype(dtype)
        return embed(ids, self.base, dtype) + low * self.scale.astype(dtype)

    def merge(self) -> jax.Array:
        base = merge(self.base)
        # Axes count from the right, so that a stack of layers merges in one go.
        a, b = self.a.astype(jnp.float32), self.b.astype(jnp.float32)
        delta = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST) * self.scale[..., None, None]
        return (base.astype(jnp.float32) + delta).astype(base.dtype)

    def axes(self, of_dense: Axes) -> 'LowRank':
        *stack, rows, columns = of_dense
        base = self.base.axes(of_dense) if is_weight(self.base) else of_dense
        return LowRank(base, a=(*stack, rows, None), b=(*stack, None, columns), scale=tuple(stack))


def matmul(x_NxD: jax.Array, w: Any, dtype: Any = None) -> jax.Array:
    """Computes x @ W in the dtype of x, for a leaf of shape [D, F]. The result is in `dtype`, by
    default that of x."""
    if isinstance(w, Weight):
        return w.apply(x_NxD).astype(dtype or x_NxD.dtype)
    w = w.astype(x_NxD.dtype)
    if _worth_turning(x_NxD, w.shape[0], w.shape[1]):
        return jnp.matmul(x_NxD, jax.lax.optimization_barrier(w.T).T, preferred_element_type=dtype)
    return jnp.matmul(x_NxD, w, preferred_element_type=dtype)


def matmul_transposed(x_NxF: jax.Array, w: Any, dtype: Any = None) -> jax.Array:
    """Computes x @ W.T with the dtypes of `matmul`."""
    if isinstance(w, Weight):
        return w.apply_transposed(x_NxF).astype(dtype or x_NxF.dtype)
    w = w.astype(x_NxF.dtype)
    if _worth_turning(x_NxF, w.shape[0], w.shape[1]):
        return jnp.matmul(x_NxF, jax.lax.optimization_barrier(w.T), preferred_element_type=dtype)
    return jnp.matmul(x_NxF, w.T, preferred_element_type=dtype)


def _worth_turning(x: jax.Array, rows: int, columns: int) -> bool:
    """Returns whether transposing a weight before use pays: on CPU, with more rows than columns.

    The gradient then comes as a product with fewer rows than columns, which takes two thirds of the
    time of the other. A copy of the weight is worth it where there are many tokens.
    """
    return rows > columns and x.ndim == 2 and 4 * len(x) >= rows and layout.platform() == 'cpu'


def linear(x: jax.Array, w: Any, dtype: Any = None) -> jax.Array:
    """Applies a leaf [D, F] to the last axis of x [..., D]; returns [..., F] in `dtype`, by default
    that of x."""
    out = matmul(_rows(x), w, dtype)
    return out.reshape(*x.shape[:-1], out.shape[-1])


def unembed(x: jax.Array, w: Any, dtype: Any = None) -> jax.Array:
    """Applies the transpose of an embedding leaf [V, D] to the last axis of x [..., D]: logits
    [..., V] of a tied head."""
    out = matmul_transposed(_rows(x), w, dtype)
    return out.reshape(*x.shape[:-1], out.shape[-1])


def _rows(x: jax.Array) -> jax.Array:
    """Flattens [..., D] to [N, D].

    On CPU the backward pass of a [B, T, D] product transposes, at twice the time. Where T is split
    over devices as B is, the array is left as it is: the two could be merged only after gathering
    them.
    """
    return x if layout.size('sequence') > 1 else x.reshape(-1, x.shape[-1])


def grouped(x_MxD: jax.Array, w_ExDxF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Applies a bank of matrices to rows sorted by matrix: the first sizes[0] rows times w[0], the
    next sizes[1] times w[1], and so on.

    Args:
      x_MxD: rows.
      w_ExDxF: an array; adapters over banks are not offered (`lora` refuses to target one).
      sizes_E: int32, sums to M.

    Returns:
      [M, F] in the dtype of x.
    """
    return jax.lax.ragged_dot(x_MxD, w_ExDxF.astype(x_MxD.dtype), sizes_E)


def embed(ids: jax.Array, w: Any, dtype: Any) -> jax.Array:
    """Looks up rows of an embedding leaf [V, D] by int ids [...]: returns [..., D] in `dtype`."""
    if isinstance(w, Weight):
        return w.take(ids, dtype)
    if layout.size('fsdp', 'sequence') > 1:
        # Rows of a table split by columns would have to be gathered for the whole batch: gather the
        # table instead, in the smaller dtype.
        w = layout.constrain(w.astype(dtype), 'vocab', None)
    return jnp.take(w, ids, axis=0).astype(dtype)


def merge(w: Any) -> jax.Array:
    """Returns the dense array of a leaf."""
    return w.merge() if isinstance(w, Weight) else w


def is_weight(node: Any) -> bool:
    return isinstance(node, Weight)


def merge_tree(params: Any) -> Any:
    """Replaces every node of a parameter tree by its dense array."""
    return jax.tree.map(merge, params, is_leaf=is_weight)
