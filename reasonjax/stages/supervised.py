"""Supervised training: batches come from a data source, as they are."""

from collections.abc import Callable
from typing import Any

from reasonjax import randomness
from reasonjax.data import pipeline
from reasonjax.metrics import Timers
from reasonjax.parallel import mesh as meshes
from reasonjax.stages.context import Place, Run, data_functions, settings
from reasonjax.stages.loop import Fed, Feed, Trained, train


def run(run: Run, place: Place, incoming: Any, evaluation: Callable | None) -> Trained:
    """Runs the stage; see `loop.train`."""
    stage = settings(run.config, place)
    source, transforms = data_functions(run, stage.data)
    data = pipeline.supervised(
        source,
        transforms,
        run.tokenizer,
        max_length=stage.data.max_length,
        batch_size=stage.batch_size,
        seed=randomness.host_seed(run.config.seed, place.number),
        overlong=stage.data.overlong,
        packing=stage.data.packing,
    )

    def feed(step: int, params: Any, timers: Timers) -> Fed:
        with timers('data'):
            batch = next(data)
            tokens = int((batch['segments'] > 0).sum())
            filled = {'data/fill': tokens / batch['segments'].size}
            return Fed([meshes.place_batch(batch, run.mesh)], filled, tokens)

    return train(run, place, incoming, Feed(feed, data, updates=1), evaluation)
