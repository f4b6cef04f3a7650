"""Mixtures of experts: every token goes through the few MLPs that a router picks for it (Shazeer et al. 2017, arXiv:1701.06538).

No token is dropped and no expert has a capacity: tokens are sorted by expert, and one ragged product per matrix does the rest.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from reasonjax import reduce
from reasonjax.model.config import ModelConfig
from reasonjax.weights.linear import grouped, linear


class Routing(NamedTuple):
    """How one layer's router treated the tokens of each row that count; stacked over layers in front, as `forward` returns it.

    Attributes:
      picks: [B, E] float32, times an expert was picked; a constant.
      shares: [B, E] float32, sum over tokens of the router's probabilities.
      z: [B] float32, sum over tokens of its squared log-normaliser.
    """

    picks: jax.Array
    shares: jax.Array
    z: jax.Array


def mixture(w: dict, config: ModelConfig, x_BxTxD: jax.Array, activate: Callable, counted_BxT: jax.Array | None) -> tuple:
    """The mixture of one layer.

    Args:
      w: `router` [D, E], `up` and `gate` [E, D, F], `down` [E, F, D].
      config: the model's shape.
      x_BxTxD: normalised input.
      activate: the activation function.
      counted_BxT: bool, tokens that enter `Routing`; None leaves it out.

    Returns:
      [B, T, D] in the dtype of x, and `Routing` or None.
    """
    B, T, D = x_BxTxD.shape
    E, k = config.experts, config.experts_per_token
    x_NxD = x_BxTxD.reshape(-1, D)
    router_NxE = linear(x_NxD, w['router'], jnp.float32)
    probability_NxE = jax.nn.softmax(router_NxE, axis=-1)
    share_NxK, pick_NxK = jax.lax.top_k(probability_NxE, k)
    if config.normalise_router:
        share_NxK = share_NxK / jnp.sum(share_NxK, axis=-1, keepdims=True)

    order = jnp.argsort(pick_NxK.reshape(-1))  # stable: tokens of an expert keep their order
    back = jnp.argsort(order)
    sizes_E = jnp.bincount(pick_NxK.reshape(-1), length=E).astype(jnp.int32)
    sorted_MxD = jnp.repeat(x_NxD, k, axis=0).at[order].get(unique_indices=True)
    hidden_MxF = activate(grouped(sorted_MxD, w['gate'], sizes_E)) * grouped(sorted_MxD, w['up'], sizes_E)
    out_NxKxD = grouped(hidden_MxF, w['down'], sizes_E).at[back].get(unique_indices=True).reshape(-1, k, D)
    mixed_NxD = jnp.sum(out_NxKxD * share_NxK[..., None].astype(out_NxKxD.dtype), axis=1)

    routing = None
    if counted_BxT is not None:
        counted = counted_BxT.astype(jnp.float32)
        rows = jnp.broadcast_to(jnp.arange(B)[:, None, None], (B, T, k))
        picks = jnp.zeros((B, E)).at[rows, pick_NxK.reshape(B, T, k)].add(counted[..., None])
        z_BxT = jnp.square(jax.nn.logsumexp(router_NxE, axis=-1)).reshape(B, T)
        shares = jnp.einsum('bte,bt->be', probability_NxE.reshape(B, T, E), counted)
        routing = Routing(jax.lax.stop_gradient(picks), shares, jnp.sum(z_BxT * counted, axis=1))
    return mixed_NxD.reshape(B, T, D), routing


def penalty(config: ModelConfig, routing: Routing, tokens_B: jax.Array, step_tokens: jax.Array) -> tuple[jax.Array, dict]:
    """What the router adds to a step's loss, and its metrics; each a mean over layers.

      balance  of a row of n tokens: E sum_e (picks_e / n) (shares_e / n), which is k at best and E k at worst (Fedus et al. 2021,
               arXiv:2101.03961, equation 4, for k picks); the mean over rows, weighted by n. Per row, so that it does not depend on how
               a step is split; transformers takes the product over a whole batch and all layers.
      z        log(sum_e exp(router_e))^2, mean over tokens (Zoph et al. 2022, arXiv:2202.08906, equation 5).

    Args:
      config: the model's shape.
      routing: stacked over L layers.
      tokens_B: tokens counted per row.
      step_tokens: [] tokens counted in the whole optimiser step.

    Returns:
      The contribution of this micro-batch to the loss (0 where both weights are 0), and metrics `router/balance_loss`, `router/z_loss`,
      and `router/max_load`, the picks of the busiest expert of any layer over an equal share.
    """
    at_least_one = jnp.maximum(tokens_B, 1.0)
    balance_B = config.experts * jnp.mean(jnp.sum(routing.picks * routing.shares, axis=-1), axis=0) / at_least_one
    z_B = jnp.mean(routing.z, axis=0)
    loss = (config.router_balance_weight * jnp.sum(balance_B) + config.router_z_weight * jnp.sum(z_B)) / step_tokens
    load_LxE = jnp.sum(routing.picks, axis=1)
    equal = jnp.maximum(jnp.sum(load_LxE, axis=-1, keepdims=True) / config.experts, 1e-9)
    tokens = jnp.sum(tokens_B)
    metrics = {
        'router/balance_loss': reduce.Mean(jnp.sum(balance_B), tokens),
        'router/z_loss': reduce.Mean(jnp.sum(z_B), tokens),
        'router/max_load': reduce.Max(jnp.max(load_LxE / equal)),
    }
    return loss, metrics
