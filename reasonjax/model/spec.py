"""The spec tree: one function of the model's shape says what every parameter is.

Abstract parameters, shardings, fresh weights, parameter counts and the names that filters match all
derive from it.
"""

import dataclasses
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from reasonjax.model.config import ModelConfig
from reasonjax.weights.partition import path_name


@dataclasses.dataclass(frozen=True)
class Spec:
    """One parameter (a leaf: not a pytree node).

    Attributes:
      shape: of the stored array; layers are stacked on axis 0.
      axes: logical axis of each dimension, mapped to mesh axes by `parallel.mesh`.
      std: standard deviation of a fresh normal draw; None for a constant.
      constant: value of a fresh constant leaf.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    std: float | None = None
    constant: float = 0.0


def is_spec(node: Any) -> bool:
    return isinstance(node, Spec)


def specs(config: ModelConfig) -> dict:
    """Builds the spec tree of a model.

    Fresh matrices are normal with standard deviation 1/sqrt(fan-in); those that write into the
    residual stream are scaled by 1/sqrt(2 layers) besides (GPT-2's rule), so that its variance does
    not grow with depth.
    """
    D = config.dim
    L = config.layers
    F = config.mlp_dim
    H = config.heads
    K = config.kv_heads
    d = config.head_dim
    residual = 1 / math.sqrt(2 * L)

    def matrix(rows: int, columns: int, axes: tuple[str, str], scale: float = 1.0) -> Spec:
        return Spec((L, rows, columns), ('layers', *axes), std=scale / math.sqrt(rows))

    def bank(rows: int, columns: int, axes: tuple[str, str], scale: float = 1.0) -> Spec:
        return Spec(
            (L, config.experts, rows, columns),
            ('layers', 'expert', *axes),
            std=scale / math.sqrt(rows),
        )

    def norm(width: int, axis: str | None = None) -> Spec:
        return Spec((L, width), ('layers', axis), constant=1.0 - config.norm_offset)

    placed = {'before': ('norm',), 'after': ('post_norm',), 'around': ('norm', 'post_norm')}[
        config.norms
    ]
    attention = {name: norm(D) for name in placed} | {
        'q': matrix(D, H * d, ('embed', 'heads')),
        'k': matrix(D, K * d, ('embed', 'kv_heads')),
        'v': matrix(D, K * d, ('embed', 'kv_heads')),
        'o': matrix(H * d, D, ('heads', 'embed'), residual),
    }
    attention |= _biases(attention, ('q', 'k', 'v') * config.qkv_bias + ('o',) * config.o_bias)
    if config.qk_norm == 'head':
        attention |= {'q_norm': norm(d), 'k_norm': norm(d)}
    if config.qk_norm == 'row':
        attention |= {'q_norm': norm(H * d, 'heads'), 'k_norm': norm(K * d, 'kv_heads')}
    mlp = {name: norm(D) for name in placed}
    if config.experts:
        mlp |= {'router': matrix(D, config.experts, ('embed', None))}
        mlp |= {name: bank(D, F, ('embed', 'mlp')) for name in ('up', 'gate')} | {
            'down': bank(F, D, ('mlp', 'embed'), residual)
        }
    else:
        mlp |= {
            'up': matrix(D, F, ('embed', 'mlp')),
            'down': matrix(F, D, ('mlp', 'embed'), residual),
        }
        if config.gated:
            mlp['gate'] = matrix(D, F, ('embed', 'mlp'))
        mlp |= _biases(
            mlp, ('up', 'down') * config.mlp_bias + ('gate',) * (config.mlp_bias and config.gated)
        )
    tree = {
        'embed': Spec((config.vocab_size, D), ('vocab', 'embed'), std=config.embed_std),
        'layers': {'attention': attention, 'mlp': mlp},
        'norm': Spec((D,), (None,), constant=1.0 - config.norm_offset),
    }
    if not config.tied:
        tree['head'] = Spec((D, config.vocab_size), ('embed', 'vocab'), std=1 / math.sqrt(D))
    return tree


def _biases(matrices: dict[str, Spec], names: tuple[str, ...]) -> dict[str, Spec]:
    return {
        f'{n}_bias': Spec(
            (matrices[n].shape[0], matrices[n].shape[-1]), ('layers', matrices[n].axes[-1])
        )
        for n in names
    }


def abstract(tree: Any, dtype: Any) -> Any:
    """Returns the shapes and dtypes of the parameters, without values."""
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, jnp.dtype(dtype)), tree, is_leaf=is_spec
    )


def initialise(tree: Any, key: jax.Array, dtype: Any) -> Any:
    """Draws fresh parameters. Call it under jit: eager and compiled draws differ in the last bit.

    Each leaf folds in its own name, so that adding a leaf leaves the others' draws alone.
    """

    def draw(path: Any, spec: Spec) -> jax.Array:
        if spec.std is None:
            return jnp.full(spec.shape, spec.constant, dtype)
        leaf_key = jax.random.fold_in(key, zlib.crc32(path_name(path).encode()))
        return (jax.random.normal(leaf_key, spec.shape, jnp.float32) * spec.std).astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, tree, is_leaf=is_spec)


def count(tree: Any) -> int:
    """Counts the parameters."""
    return sum(math.prod(s.shape) for s in jax.tree.leaves(tree, is_leaf=is_spec))
