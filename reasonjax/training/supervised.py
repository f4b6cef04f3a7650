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
    Place,
    Run,
    check_data,
    data_functions,
    rows_per_example,
    settings,
)
from reasonjax.training.kinds import StageResult
from reasonjax.training.loop import train


def run(
    run: Run, place: Place, initial_params: Callable[[], Any], evaluation: Callable | None
) -> StageResult:
    """Runs the stage; see `loop.train`."""
    stage = settings(run.config, place)
    data = open_data(run, place)
    check_data(place, data)

    def next_batches(step: int, params: Any, timers: Timers) -> StepBatches:
        with timers('data'):
            batch = next(data)
            tokens = int((batch['segments'] > 0).sum())
            filled = {'data/fill': tokens / batch['segments'].size}
            return StepBatches([meshes.place_batch(batch, run.mesh)], filled, tokens)

    return train(
        run,
        place,
        initial_params,
        BatchSource(next_batches, data, updates=1, together=rows_per_example(stage)),
        evaluation,
    )


def open_data(run: Run, place: Place) -> pipeline.Batches:
    """The batches the stage trains on."""
    stage = settings(run.config, place)
    source, transforms = data_functions(run, stage.data)
    return pipeline.supervised(
        source,
        transforms,
        run.tokenizer,
        max_length=stage.data.max_length,
        batch_size=stage.batch_size,
        seed=randomness.host_seed(run.config.seed, place.number),
        overlong=stage.data.overlong,
        packing=stage.data.packing,
        form=stage.data.form,
        step_separator=stage.data.step_separator,
    )


def check(config: ml_collections.ConfigDict, name: str) -> None:
    """Raises UserError where the objective would misread the rows: learn a rejected answer, say."""
    stage = config[name]
    form, read = stage.data.form, forms(configs.resolve(stage.objective, 'objective'))
    if form not in read:
        raise UserError(
            f'config.{name}: data.form is "{form}", but the objective {stage.objective.name} reads '
            f'{listing(read)} only (its attribute '
            '`forms`); choose another objective, or a transform that makes demonstrations: '
            'chosen_only, desirable_only, correct_steps.'
        )
