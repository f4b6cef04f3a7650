"""Moments of the optimiser in the host's memory between updates: `offload_optimizer` of a stage.

An update streams them through the device, those of the layers one layer at a time, and back: for two float32 moments 16 bytes per trainable
parameter over the host's link, at every update. Worth it where they do not fit, with large batches or much accumulation.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reasonjax.errors import UserError
from reasonjax.training.optimizers import Separable
from reasonjax.weights.partition import combine

HOST = 'pinned_host'
LAYER, REST, SHARED = 'layer', 'rest', 'shared'


def check(device: jax.Device, optimizer: Any, key: str) -> None:
    """Raises UserError where moments cannot leave the device.

    Args:
      device: one of those of the run.
      optimizer: of the stage.
      key: the config key that asks for it.
    """
    kinds = {memory.kind for memory in device.addressable_memories()}
    if HOST not in kinds:
        raise UserError(f'{key}: {device.device_kind} devices cannot use the memory of their host; set it to False.')
    if not isinstance(optimizer, Separable):
        raise UserError(f'{key}: the optimizer does not say which part of it works weight by weight; return an optimizers.Separable.')


def in_host(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """The same placement, in the memory of each device's host."""
    return sharding.with_memory_kind(HOST)


def streamed(optimizer: Separable, *, moving: bool) -> Callable[[Any, Any, Any, jax.Array], tuple[Any, Any]]:
    """An optimiser's update of parameters whose `layers` are stacked, with moments that come from the host's memory and go back to it.

    Args:
      optimizer: its state is that of the whole, with or without offloading.
      moving: False leaves the moments where they are, and only goes layer by layer.

    Returns:
      `(grads, state, params, applied) -> (params, state)`; where the bool `applied` is False nothing changes.
    """
    whole, each = optimizer.whole, optimizer.each
    fetch, store = (_move(jax.memory.Space.Device), _move(jax.memory.Space.Host)) if moving else (lambda x: x, lambda x: x)

    def apply(grads: Any, state: Any, params: Any, applied: jax.Array) -> tuple[Any, Any]:
        first = ()
        if whole is not None:
            grads, kept = whole.update(grads, state[0], params)
            first, state = (kept,), state[1]
        kinds = jax.tree_util.tree_map_with_path(lambda path, _: LAYER if path[:1] == (jax.tree_util.DictKey('layers'),) else REST, params)
        kinds_of_state = optax.tree_map_params(each, lambda _, kind: kind, state, kinds, transform_non_params=lambda _: SHARED)

        def part(*wanted: str) -> tuple[Any, Any, Any]:
            return _only(grads, kinds, wanted), _only(state, kinds_of_state, wanted), _only(params, kinds, wanted)

        (_, shared, _), rest, layers = part(SHARED), part(REST), part(LAYER)

        def one(grads: Any, moments: Any, weights: Any) -> tuple[Any, Any]:
            moments = combine(fetch(moments), shared)
            changes, new = each.update(grads, moments, weights)
            return _where(applied, optax.apply_updates(weights, changes), weights), _where(applied, new, moments)

        def body(stacked: Any, layer: tuple[Any, Any, jax.Array]) -> tuple[Any, Any]:
            *of_layer, i = layer
            weights, moments = one(*of_layer, jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, i, keepdims=False), stacked))
            stacked = jax.tree.map(lambda w, new: jax.lax.dynamic_update_index_in_dim(w, new, i, 0), stacked, weights)
            return stacked, store(_only(moments, kinds_of_state, (LAYER,)))

        weights, moments = one(*rest)
        if jax.tree.leaves(layers):
            *slices, stacked = layers
            number = len(jax.tree.leaves(stacked)[0])
            # Weights are carried, to be changed in place.
            stacked, streamed = jax.lax.scan(body, stacked, (*slices, jnp.arange(number)))
            weights, moments = combine(weights, stacked), combine(moments, streamed)
        return weights, ((*first, moments) if first else moments)

    return apply


def _move(space: jax.memory.Space) -> Callable[[Any], Any]:
    return lambda tree: jax.tree.map(lambda x: jax.device_put(x, space), tree)


def _only(tree: Any, kinds: Any, wanted: tuple[str, ...]) -> Any:
    return jax.tree.map(lambda kind, x: x if kind in wanted else None, kinds, tree)


def _where(applied: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(applied, a, b), new, old)


def placing(function: Callable, shardings: Any, **options: Any) -> Callable:
    """`jax.jit(function, out_shardings=shardings)`, where arguments and results may be in the host's memory on every backend."""
    leaves = [s for s in jax.tree.leaves(shardings) if s.memory_kind == HOST]
    if not leaves or next(iter(leaves[0].device_set)).platform != 'cpu':
        return jax.jit(function, out_shardings=shardings, **options)
    # On CPU, where both are the same memory, XLA has programs read and write one kind only: arrays change their kind before and after.
    plain = jax.tree.map(_on_device, shardings)
    compiled = jax.jit(function, out_shardings=plain, **options)

    def run(*arguments: Any) -> Any:
        near = jax.tree.map(lambda x: jax.device_put(x, _on_device(x.sharding)) if isinstance(x, jax.Array) else x, arguments)
        return jax.device_put(compiled(*near), shardings)

    return run


def _on_device(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    return sharding.with_memory_kind('device') if sharding.memory_kind == HOST else sharding
