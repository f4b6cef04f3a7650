"""The state and the update of a stage: what its config names, bound, placed and compiled."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from reasonjax import config as configs
from reasonjax.model.placement import shardings
from reasonjax.parallel import mesh as meshes
from reasonjax.protocols import Context
from reasonjax.training.batch_source import BatchSource
from reasonjax.training.context import Run, Stage
from reasonjax.training.iteration import make_iterations
from reasonjax.training.step import State, create, make_update
from reasonjax.weights.partition import partition


def create_state(run: Run, settings: Any, optimizer: Any, params: Any) -> tuple[State, Any, Any]:
    """Places the parameters that a stage starts from.

    Returns:
      The state before the first step, the part that does not train, and which weights train.
    """
    placed = shardings(run.specs, params, run.mesh)
    params = jax.device_put(params, placed)
    chosen = configs.resolve(settings.filter, 'filter')(run.specs, params)
    trainable, frozen = partition(params, chosen)
    window = settings.spike_window if settings.spike_zscore else 0
    homes = partition(placed, chosen)[0]
    everywhere = meshes.replicated(run.mesh)
    return create(trainable, optimizer, homes, everywhere, spike_window=window), frozen, chosen


def build_update(
    run: Run, settings: Any, source: BatchSource, optimizer: Any, updates: int
) -> Callable:
    """Builds the update of a stage as its config says; see `step.make_update`. `updates` is how
    many the stage has in all."""
    context = Context(
        updates, run.tokenizer.pad_id, run.tokenizer.mask_id, run.tokenizer.vocab_size
    )
    corruption = (
        configs.resolve(settings.corruption, 'corruption')
        if settings.corruption.name != 'none'
        else None
    )
    return make_update(
        run.model,
        configs.resolve(settings.objective, 'objective'),
        optimizer,
        corruption=corruption,
        context=context,
        accumulation=settings.accumulation,
        together=source.together,
        temperature=source.temperature,
        spike_zscore=settings.spike_zscore,
    )


def compile_update(
    run: Run, stage: Stage, source: BatchSource, optimizer: Any, state: State, updates: int
) -> Callable:
    """Compiles the update of a stage, or with `source.on_device` its whole steps.

    Of `state` (arrays, or shapes with shardings) only the shardings are read.
    """
    update = build_update(run, stage.config, source, optimizer, updates)
    if source.on_device is not None:
        steps = make_iterations(
            source.on_device.produce, update, updates=source.updates, stage=stage.number
        )

        def update(now, frozen, fixed, given, first):
            return steps(now, frozen, fixed, given, np.uint32(run.config.seed), first)

    # Pinned, or the compiler may choose other shardings for the output and compile once more.
    # Metrics are whole everywhere, because every process reads them.
    placed = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(
        meshes.on(run.mesh, update),
        out_shardings=(placed, meshes.replicated(run.mesh)),
        donate_argnums=0,
    )
