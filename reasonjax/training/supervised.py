"""Supervised training: batches come from a data source, as they are."""

from collections.abc import Callable
from typing import Any

import ml_collections

from reasonjax import config as configs
from reasonjax import randomness
from reasonjax.data import pipeline
from reasonjax.errors import UserError, listing
from reasonjax.parallel import mesh as meshes
from reasonjax.protocols import forms
from reasonjax.tracking.metrics import Timers
from reasonjax.training.batch_source import BatchSource, StepBatches
from reasonjax.training.context import (
    Run,
    Stage,
    check_data,
    data_functions,
    rows_per_example,
)
from reasonjax.training.kinds import StageResult
from reasonjax.training.loop import train


def run(
    run: Run, stage: Stage, initial_params: Callable[[], Any], evaluation: Callable | None
) -> StageResult:
    """Runs the stage; see `loop.train`."""
    settings = stage.config
    data = open_data(run, stage)
    check_data(stage, data)

    def next_batches(step: int, params: Any, timers: Timers) -> StepBatches:
        with timers('data'):
            batch = next(data)
            tokens = int((batch['segments'] > 0).sum())
            filled = {'data/fill': tokens / batch['segments'].size}
            return StepBatches([meshes.place_batch(batch, run.mesh)], filled, tokens)

    return train(
        run,
        stage,
        initial_params,
        BatchSource(next_batches, data, updates=1, together=rows_per_example(settings)),
        evaluation,
    )


def open_data(run: Run, stage: Stage) -> pipeline.Batches:
    """Opens the iterator over the batches that a stage trains on."""
    settings = stage.config
    source, transforms = data_functions(run, settings.data)
    return pipeline.supervised(
        source,
        transforms,
        run.tokenizer,
        max_length=settings.data.max_length,
        batch_size=settings.batch_size,
        seed=randomness.host_seed(run.config.seed, stage.number),
        overlong=settings.data.overlong,
        packing=settings.data.packing,
        form=settings.data.form,
        step_separator=settings.data.step_separator,
    )


def check(config: ml_collections.ConfigDict, name: str) -> None:
    """Raises UserError where the objective would misread the rows: learn a rejected answer, say."""
    settings = config[name]
    form, read = settings.data.form, forms(configs.resolve(settings.objective, 'objective'))
    if form not in read:
        raise UserError(
            f'config.{name}: data.form is "{form}", but the objective {settings.objective.name} reads '
            f'{listing(read)} only (its attribute '
            '`forms`); choose another objective, or a transform that makes demonstrations: '
            'chosen_only, desirable_only, correct_steps.'
        )
