"""One step of reinforcement, from a rollout and its rewards to the batch that it trains on.

There is one such function: the host calls it with arrays that it has fetched, the program on the
device traces it, and a plan compiles it for devices that are not here.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from reasonjax import config as configs
from reasonjax import reduce
from reasonjax.parallel import mesh as meshes
from reasonjax.protocols import needed
from reasonjax.sampling import sampler
from reasonjax.sampling.sampler import Rollout
from reasonjax.training.batch import Batch, Prompts
from reasonjax.training.batching import assemble, layout_of
from reasonjax.training.context import Run, at_once
from reasonjax.training.samplers import on_rollout_mesh, sampling_from_config
from reasonjax.training.step import make_score


class RolloutStep(NamedTuple):
    """How a stage makes batches of its rollouts.

    Attributes:
      advantage: `(total_PxG) -> (advantage_PxG, metrics)`; totals are nan where a sample has no
        reward.
      lay_out: `(prompts, rollout, advantage_PxG, extra) -> (batch, metrics)`: a batch on the mesh
        for training, with the fields of `extra`.
      logprob: `(params, batch) -> [B, C]` float32, log-probs of the tokens of a batch.
      updates: of a step, more than one compares the policy with itself at the start of the step.
      recompute_old: those log-probs are computed for all rows, because the objective tells sampler
        and policy apart.
    """

    advantage: Callable[[Any], tuple[Any, dict]]
    lay_out: Callable[[Prompts, Rollout, Any, dict], tuple[Batch, dict]]
    logprob: Callable[[Any, Batch], jax.Array]
    updates: int
    recompute_old: bool


def rollout_step(
    how: RolloutStep,
    params: Any,
    reference: Any,
    prompts: Prompts,
    rollout: Rollout,
    total_PxG: Any,
    age_B: np.ndarray | None = None,
) -> tuple[Batch, Any, dict]:
    """Makes the batch of a step.

    Args:
      how: see `RolloutStep`.
      params: the policy's, at the start of the step.
      reference: parameters of the reference model; None where the objective reads none.
      prompts: `tokens`, `segments`, `positions` [P, Tp] int32, padded on the left.
      rollout: of G completions each, up to C tokens.
      total_PxG: total rewards, nan where there is none.
      age_B: steps since each row was drawn, where rows may be older than the parameters; on the
        host.

    Returns:
      The batch, see `batching.assemble`; the advantages [P, G]; metrics of the advantage and of the
      layout.
    """
    advantage_PxG, metrics = how.advantage(total_PxG)
    extra = {} if age_B is None else {'staleness': age_B.astype(np.float32)}
    batch, measured = how.lay_out(prompts, rollout, advantage_PxG, extra)
    if reference is not None:
        batch['logprob_ref'] = how.logprob(reference, batch)
    if how.updates > 1:
        batch['logprob_old'] = _old_logprob(how, params, batch, age_B)
    return batch, advantage_PxG, metrics | measured


def _old_logprob(
    how: RolloutStep, params: Any, batch: Batch, age_B: np.ndarray | None
) -> jax.Array:
    """Returns log-probs [B, C] of the policy at the start of the step."""
    if how.recompute_old:
        return how.logprob(params, batch)
    # The sampler's are the policy's own where it sampled (one forward, a test holds them together):
    # no second pass.
    if age_B is None or not age_B.any():
        return batch['logprob_sampled']
    return jnp.where(
        batch['staleness'][:, None] > 0, how.logprob(params, batch), batch['logprob_sampled']
    )


def trace_rollout_step(run: Run, settings: ml_collections.ConfigDict, name: str) -> RolloutStep:
    """Returns how a program makes batches, to be traced.

    Args:
      run: what stages share.
      settings: config of an online stage.
      name: of the stage, for messages.
    """
    advantage = configs.resolve(settings.advantage, 'advantage')
    layout = layout_of(settings, run.mesh, name)

    def weigh(total_PxG: jax.Array) -> tuple[jax.Array, dict]:
        valid_PxG = ~jnp.isnan(total_PxG)
        advantage_PxG, metrics = advantage(jnp.where(valid_PxG, total_PxG, 0), valid_PxG)
        return advantage_PxG, reduce.values(metrics)

    def lay_out(
        prompts: Prompts, rollout: Rollout, advantage_PxG: jax.Array, extra: dict
    ) -> tuple[Batch, dict]:
        return assemble(
            prompts,
            rollout,
            advantage_PxG,
            layout,
            mask_truncated=settings.mask_truncated_completions,
        ) | extra, {}

    logprob = make_score(
        run.model,
        micro=settings.minibatches * settings.accumulation,
        temperature=settings.temperature,
    )
    return RolloutStep(
        weigh,
        lay_out,
        logprob,
        settings.num_iterations * settings.minibatches,
        recomputes_old(settings),
    )


def recomputes_old(settings: ml_collections.ConfigDict) -> bool:
    """Returns whether a stage's objective tells the policy that sampled from the one at the start
    of the step."""
    return 'logprob_old' in needed(configs.resolve(settings.objective, 'objective'))


def wants_reference(settings: ml_collections.ConfigDict) -> bool:
    """Returns whether a stage's objective reads a reference model."""
    return 'logprob_ref' in needed(configs.resolve(settings.objective, 'objective'))


def make_generate(
    run: Run, settings: ml_collections.ConfigDict, name: str
) -> Callable[[Any, Mapping[str, jax.Array], jax.Array], Rollout]:
    """Returns the sampler within a program: prompts on the mesh for training to a rollout there, as
    many at a time as the stage takes."""
    sampling = sampling_from_config(settings, run.tokenizer, name)
    drawn = on_rollout_mesh(
        run,
        lambda params, prompts, key: sampler.generate(params, run.model, prompts, key, sampling),
    )
    parts, back = settings.num_prompts // at_once(settings), meshes.replicated(run.mesh)

    def part(params: Any, prompts: dict, key: jax.Array) -> Rollout:
        if run.rollout_mesh == run.mesh:
            return drawn(params, prompts, key)
        there = {
            name: meshes.placed(('batch', None)[: x.ndim], x.shape, run.rollout_mesh)
            for name, x in prompts.items()
        }
        prompts, key = jax.lax.with_sharding_constraint(
            (prompts, key), (there, meshes.replicated(run.rollout_mesh))
        )
        return jax.lax.with_sharding_constraint(drawn(params, prompts, key), back)

    def generate(params: Any, prompts: Mapping[str, jax.Array], key: jax.Array) -> Rollout:
        if parts == 1:
            return part(params, prompts, key)
        split = {name: x.reshape(parts, -1, *x.shape[1:]) for name, x in prompts.items()}
        rollouts = jax.lax.map(lambda some: part(params, some, key), split)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollouts)

    return generate
