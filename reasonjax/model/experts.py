"""Mixtures of experts: every token goes through the few MLPs that a router picks for it (Shazeer et
al. 2017, arXiv:1701.06538).

No token is dropped and no expert has a capacity: tokens are sorted by expert, and one ragged
product per matrix does the rest.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from reasonjax import reduce
from reasonjax.errors import UserError
from reasonjax.model.config import ModelConfig
from reasonjax.model.remat import named
from reasonjax.parallel import layout
from reasonjax.weights.linear import grouped, linear


class Routing(NamedTuple):
    """How one layer's router treated the tokens of each row that count; stacked over layers in
    front, as `forward` returns it.

    Attributes:
      picks: [B, E] float32, times an expert was picked; a constant.
      shares: [B, E] float32, sum over tokens of the router's probabilities.
      z: [B] float32, sum over tokens of its squared log-normaliser.
    """

    picks: jax.Array
    shares: jax.Array
    z: jax.Array


def mixture(
    w: dict,
    config: ModelConfig,
    x_BxTxD: jax.Array,
    activate: Callable,
    counted_BxT: jax.Array | None,
) -> tuple:
    """Computes the mixture of experts of one layer.

    Args:
      w: `router` [D, E], `up` and `gate` [E, D, F], `down` [E, F, D].
      config: the model's shape.
      x_BxTxD: normalised input.
      activate: the activation function.
      counted_BxT: bool, tokens that enter `Routing`; None leaves it out. [B, R, T] counts each
        row's tokens R times over, as R rows.

    Returns:
      [B, T, D] in the dtype of x, and `Routing` or None.
    """
    E, k = config.experts, config.experts_per_token
    router_BxTxE = linear(x_BxTxD, w['router'], jnp.float32)
    probability_BxTxE = jax.nn.softmax(router_BxTxE, axis=-1)
    share_BxTxK, pick_BxTxK = jax.lax.top_k(probability_BxTxE, k)
    if config.normalise_router:
        share_BxTxK = share_BxTxK / jnp.sum(share_BxTxK, axis=-1, keepdims=True)
    mixed_BxTxD = named(_spread(w, activate, x_BxTxD, share_BxTxK, pick_BxTxK), 'down')

    routing = None
    if counted_BxT is not None:
        counted = counted_BxT.astype(jnp.float32)
        picks_BxTxE = jnp.sum(jax.nn.one_hot(pick_BxTxK, E), axis=2)
        z_BxT = jnp.square(jax.nn.logsumexp(router_BxTxE, axis=-1))
        picks_BxE, shares_BxE = (
            jnp.einsum('bte,b...t->b...e', x, counted) for x in (picks_BxTxE, probability_BxTxE)
        )
        routing = Routing(
            jax.lax.stop_gradient(picks_BxE),
            shares_BxE,
            jnp.einsum('bt,b...t->b...', z_BxT, counted),
        )
    return mixed_BxTxD, routing


def _spread(
    w: dict, activate: Callable, x_BxTxD: jax.Array, share_BxTxK: jax.Array, pick_BxTxK: jax.Array
) -> jax.Array:
    """Runs the picked experts where their weights live: [B, T, D].

    Sorting tokens is a local affair, so on several devices this is written for one of them: the
    devices of `expert` show each other their tokens, each runs its own experts on all of them, and
    the sums go back to where the tokens came from. Nothing is dropped, whatever the router picks;
    what travels does not depend on it.
    """
    banks = [w[name] for name in ('gate', 'up', 'down')]
    if layout.size(*layout.AXES) == 1:
        return _run(activate, x_BxTxD, share_BxTxK, pick_BxTxK, *banks)
    sizes = jax.sharding.get_abstract_mesh().shape
    if len(banks[0]) % sizes['expert']:
        raise UserError(
            f'config.mesh.expert={sizes["expert"]}: does not divide model.experts={len(banks[0])}.'
        )
    of_tokens = layout.partition_spec(('batch', 'time', None), x_BxTxD.shape, sizes)
    axes = (('expert', None, 'mlp'), ('expert', None, 'mlp'), ('expert', 'mlp', None))
    of_banks = [layout.partition_spec(its, bank.shape, sizes) for its, bank in zip(axes, banks)]
    rows_split, mlp_split = 'expert' in (of_tokens[0] or ()), of_banks[0][2] == 'tensor'

    def local(x: jax.Array, share: jax.Array, pick: jax.Array, *banks: jax.Array) -> jax.Array:
        if rows_split:
            x, share, pick = (
                jax.lax.all_gather(t, 'expert', axis=0, tiled=True) for t in (x, share, pick)
            )
        if mlp_split:
            # Said here, or the backward pass would add up the gradients of the repeated and sorted
            # rows.
            x, share = (jax.lax.pcast(t, 'tensor', to='varying') for t in (x, share))
        out = _run(activate, x, share, pick - jax.lax.axis_index('expert') * len(banks[0]), *banks)
        out = (
            jax.lax.psum_scatter(out, 'expert', scatter_dimension=0, tiled=True)
            if rows_split
            else jax.lax.psum(out, 'expert')
        )
        return jax.lax.psum(out, 'tensor') if mlp_split else out

    spread = jax.shard_map(
        local, in_specs=(of_tokens, of_tokens, of_tokens, *of_banks), out_specs=of_tokens
    )
    return spread(x_BxTxD, share_BxTxK, pick_BxTxK, *banks)


def _run(
    activate: Callable,
    x_BxTxD: jax.Array,
    share_BxTxK: jax.Array,
    pick_BxTxK: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
) -> jax.Array:
    """Computes the weighted sum [B, T, D] of the picked experts among those given. A pick outside 0
    .. len(gate) - 1 is elsewhere and adds nothing."""
    B, T, D = x_BxTxD.shape
    k = pick_BxTxK.shape[-1]
    pick_M = pick_BxTxK.reshape(-1)
    here_M = (pick_M >= 0) & (pick_M < len(gate))
    pick_M = jnp.where(here_M, pick_M, len(gate))
    order = jnp.argsort(pick_M)  # stable: tokens of an expert keep their order
    back = jnp.argsort(order)
    sizes_E = jnp.bincount(pick_M, length=len(gate)).astype(jnp.int32)
    sorted_MxD = jnp.repeat(x_BxTxD.reshape(-1, D), k, axis=0).at[order].get(unique_indices=True)
    hidden_MxF = activate(grouped(sorted_MxD, gate, sizes_E)) * grouped(sorted_MxD, up, sizes_E)
    out_MxD = grouped(hidden_MxF, down, sizes_E).at[back].get(unique_indices=True)
    # Rows that belong to no expert come last, and what a ragged product leaves there is not
    # defined.
    out_NxKxD = jnp.where(here_M[:, None], out_MxD, 0).reshape(-1, k, D)
    return jnp.sum(
        out_NxKxD * share_BxTxK.reshape(-1, k, 1).astype(out_NxKxD.dtype), axis=1
    ).reshape(B, T, D)


def penalty(
    config: ModelConfig, routing: Routing, tokens_B: jax.Array, step_tokens: jax.Array
) -> tuple[jax.Array, dict]:
    """Computes the router's terms of a step's loss, and its metrics; each is a mean over layers.

      balance  of a row of n tokens: E sum_e (picks_e / n) (shares_e / n), which is k at best and
               E k at worst (Fedus et al. 2021, arXiv:2101.03961, equation 4, for k picks); the mean
               over rows, weighted by n. Per row, so that it does not depend on how a step is split;
               transformers takes the product over a whole batch and all layers.
      z        log(sum_e exp(router_e))^2, mean over tokens (Zoph et al. 2022, arXiv:2202.08906,
               equation 5).

    Args:
      config: the model's shape.
      routing: stacked over L layers.
      tokens_B: tokens counted per row.
      step_tokens: [] tokens counted in the whole optimiser step.

    Returns:
      The contribution of this micro-batch to the loss (0 where both weights are 0), and metrics
      `router/balance_loss`, `router/z_loss`, and `router/max_load`, the picks of the busiest expert
      of any layer over an equal share.
    """
    at_least_one = jnp.maximum(tokens_B, 1.0)
    balance_B = (
        config.experts
        * jnp.mean(jnp.sum(routing.picks * routing.shares, axis=-1), axis=0)
        / at_least_one
    )
    z_B = jnp.mean(routing.z, axis=0)
    loss = (
        config.router_balance_weight * jnp.sum(balance_B) + config.router_z_weight * jnp.sum(z_B)
    ) / step_tokens
    load_LxE = jnp.sum(routing.picks, axis=1)
    equal = jnp.maximum(jnp.sum(load_LxE, axis=-1, keepdims=True) / config.experts, 1e-9)
    tokens = jnp.sum(tokens_B)
    metrics = {
        'router/balance_loss': reduce.Mean(jnp.sum(balance_B), tokens),
        'router/z_loss': reduce.Mean(jnp.sum(z_B), tokens),
        'router/max_load': reduce.Max(jnp.max(load_LxE / equal)),
    }
    return loss, metrics
