"""The batch of a step as the host makes it, of rollouts that it has fetched: the counterpart of
`rollout_step.trace_rollout_step`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from reasonjax import config as configs
from reasonjax import reduce
from reasonjax.errors import UserError
from reasonjax.model.config import ModelConfig
from reasonjax.model.score import READ
from reasonjax.parallel import mesh as meshes
from reasonjax.sampling.sampler import Rollout
from reasonjax.training.batch import Batch, Prompts
from reasonjax.training.batching import BatchLayout, Packer, assemble
from reasonjax.training.compile_ahead import Ahead
from reasonjax.training.context import Run, Stage
from reasonjax.training.rollout_step import RolloutStep, recomputes_old
from reasonjax.training.step import make_score

LARGEST_REWARD = 1e37  # differences of two are finite in float32


def host_rollout_step(
    run: Run, stage: Stage, layout: BatchLayout, score: Callable, ahead: Ahead
) -> RolloutStep:
    """Returns how the host makes batches.

    Args:
      run: what stages share.
      stage: an online one.
      layout: of its rows.
      score: `(params, batch) -> logprob [B, C]` float32, see `compile_score`.
      ahead: may still be compiling it.
    """
    settings = stage.config
    pack = Packer(layout)

    def lay_out(
        prompts: Prompts, rollout: Rollout, advantage_PxG: np.ndarray, extra: dict
    ) -> tuple[Batch, dict]:
        batch = assemble(
            prompts,
            rollout,
            advantage_PxG,
            layout,
            mask_truncated=settings.mask_truncated_completions,
        )
        batch, packing = pack(batch)
        return meshes.place_batch(batch | extra, run.mesh), packing

    def logprob(params: Any, batch: Batch) -> jax.Array:
        ahead.finish()
        return score(params, {name: batch[name] for name in READ if name in batch})

    advantage = _on_host(configs.resolve(settings.advantage, 'advantage'), stage.name)
    updates = settings.num_iterations * settings.minibatches
    return RolloutStep(advantage, lay_out, logprob, updates, recomputes_old(settings))


def compile_score(
    run: Run, settings: ml_collections.ConfigDict, layout: BatchLayout
) -> Callable[[Any, Batch], jax.Array]:
    """Returns the jitted `step.make_score` of a stage, one for stages of the same shapes."""
    rows = settings.num_prompts * settings.num_generations
    width = settings.max_completion_length + (
        0 if layout.share_prompts else settings.data.max_prompt_length
    )
    micro = settings.minibatches * settings.accumulation
    return _compiled_score(run.model, run.mesh, (rows, width), micro, settings.temperature)


@functools.lru_cache(maxsize=16)
def _compiled_score(
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    shape: tuple[int, int],
    micro: int,
    temperature: float,
) -> Callable:
    score = meshes.on(mesh, make_score(model, micro=micro, temperature=temperature))
    return jax.jit(score, out_shardings=meshes.batch_sharding(shape, mesh))


def _on_host(
    advantage: Callable, name: str
) -> Callable[[np.ndarray], tuple[np.ndarray, dict[str, float]]]:
    """Returns `(total_PxG, nan where there is none) -> (advantage_PxG, metrics)`, computed by the
    host's own device where it has one.

    An accelerator does one thing after the other: the few numbers there are here would wait for a
    rollout in flight. What is returned raises UserError where a reward is too large for float32;
    `name` is that of the stage.
    """

    def compute(rewards_PxG: jax.Array, valid_PxG: jax.Array) -> tuple[jax.Array, dict]:
        advantage_PxG, metrics = advantage(rewards_PxG, valid_PxG)
        return advantage_PxG, reduce.values(metrics)

    compiled, device = jax.jit(compute), meshes.host_device()

    def of(total_PxG: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        valid_PxG = ~np.isnan(total_PxG)
        if len(large := total_PxG[np.abs(total_PxG) > LARGEST_REWARD]):
            raise UserError(
                f'stage {name}: a total reward of {large[0]:g}; advantages are worked out in '
                'float32, for rewards of at most '
                f'{LARGEST_REWARD:g} either way. Scale the reward function, or '
                f'config.{name}.rewards.NAME.weight.'
            )
        with jax.default_device(device):
            advantage_PxG, metrics = jax.device_get(
                compiled(np.where(valid_PxG, total_PxG, 0.0), valid_PxG)
            )
        return advantage_PxG, {name: float(value) for name, value in metrics.items()}

    return of
