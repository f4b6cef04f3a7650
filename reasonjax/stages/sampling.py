"""The compiled sampler of a run, on the mesh that the run samples on."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from reasonjax.parallel import mesh as meshes
from reasonjax.parallel import reshard
from reasonjax.rollout.sampler import Rollout, Sampling, generate
from reasonjax.stages.context import Run

Draw = Callable[[Any, Mapping[str, np.ndarray], jax.Array], Rollout]


def sampler(run: Run, sampling: Sampling) -> Draw:
    """Returns `(params, prompts, key) -> Rollout`, for any number of batches of one shape; see `rollout.sampler.generate`.

    Prompts are arrays on the host, a multiple of `meshes.rows(run.rollout_mesh)` of them; parameters live where training left them. What
    is returned is on the devices and still being computed.
    """
    program = jax.jit(on_rollout_mesh(run, lambda params, prompts, key: generate(params, run.model, prompts, key, sampling)))

    def draw(params: Any, prompts: Mapping[str, np.ndarray], key: jax.Array) -> Rollout:
        return program(params, meshes.place_batch(prompts, run.rollout_mesh), key)

    return draw


def on_rollout_mesh(run: Run, function: Callable) -> Callable:
    """A function whose first argument are the parameters, to be traced under the mesh for sampling; inside, they are moved there."""
    if run.rollout_mesh == run.mesh:
        return meshes.on(run.mesh, function)

    def moved(params: Any, *rest: Any) -> Any:
        params = reshard.moved(run.specs, params, run.rollout_mesh, run.model.compute_dtype)
        return meshes.on(run.rollout_mesh, function)(params, *rest)

    return moved
