"""How a metric is combined over micro-batches, devices and steps: a mean keeps its total and its
count, so splits cannot bias it."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Mean:
    """A weighted mean, `total / count`; nan where nothing was counted."""

    total: jax.Array
    count: jax.Array

    def over(self) -> 'Mean':
        """Combines a leading axis of partial means."""
        return Mean(self.total.sum(0), self.count.sum(0))

    def value(self) -> jax.Array:
        return self.total / self.count


@flax.struct.dataclass
class Sum:
    """A sum over everything seen."""

    total: jax.Array

    def over(self) -> 'Sum':
        return Sum(self.total.sum(0))

    def value(self) -> jax.Array:
        return self.total


@flax.struct.dataclass
class Max:
    """The largest value; -inf where there was none."""

    largest: jax.Array

    def over(self) -> 'Max':
        return Max(self.largest.max(0))

    def value(self) -> jax.Array:
        return self.largest


@flax.struct.dataclass
class Min:
    """The smallest value; inf where there was none."""

    smallest: jax.Array

    def over(self) -> 'Min':
        return Min(self.smallest.min(0))

    def value(self) -> jax.Array:
        return self.smallest


def mean(x: jax.Array, weights: jax.Array | None = None) -> Mean:
    """Averages `x`, weighted by `weights` of the same shape where given."""
    if weights is None:
        return Mean(jnp.sum(x, dtype=jnp.float32), jnp.asarray(x.size, jnp.float32))
    return Mean(
        jnp.sum(jnp.where(weights > 0, x * weights, 0), dtype=jnp.float32),
        jnp.sum(weights, dtype=jnp.float32),
    )


def is_reduction(node: object) -> bool:
    return isinstance(node, Mean | Sum | Max | Min)


def check(metrics: dict) -> None:
    """Raises TypeError where a metric does not say how it is combined."""
    for name, metric in metrics.items():
        if not is_reduction(metric):
            raise TypeError(
                f'metric "{name}" is a {type(metric).__name__}; return a reduce.Mean, Sum, Max or '
                'Min (reduce.mean makes one).'
            )


def over(metrics: dict) -> dict:
    """Combines metrics whose leaves carry a leading axis (micro-batches)."""
    return jax.tree.map(lambda m: m.over(), metrics, is_leaf=is_reduction)


def values(metrics: dict) -> dict:
    """Turns reductions into their values."""
    return {name: m.value() for name, m in metrics.items()}
