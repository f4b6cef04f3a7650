"""Runs one training stage of a config as `reasonjax.train` does, and notes when its steps were
recorded."""

import contextlib
import dataclasses
import functools
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from benchmarks import workload
from reasonjax.tracking.metrics import Writer
from reasonjax.training.context import Run, Stage, fresh_params, open_run, stages_of
from reasonjax.training.kinds import KINDS


class Enough(Exception):
    """The last step has been recorded."""


class Noted(Writer):
    """Also keeps what it writes, with the second since the process started; ends the run behind the
    last step, before a checkpoint."""

    def __init__(self, workdir: pathlib.Path, steps: int):
        super().__init__(workdir)
        self.notes: list[tuple[float, dict]] = []
        self._steps = steps

    def write(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        super().write(stage, step, metrics)
        self.notes.append((workload.since_start(), dict(metrics)))
        if step == self._steps:
            raise Enough


def opened(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> tuple[Run, Stage]:
    """A run of a config, and the first of its stages."""
    return open_run(config, workdir), stages_of(config, workdir)[0]


def without_end(run: Run) -> Run:
    """A run whose end-of-sequence has an id outside the vocabulary, so that it is never drawn."""
    return dataclasses.replace(
        run, tokenizer=dataclasses.replace(run.tokenizer, eos_ids=(run.model.vocab_size + 5,))
    )


def train(
    run: Run, stage: Stage, initial_params: Callable[[], Any] | None = None
) -> list[tuple[float, dict]]:
    """Runs a stage to its last step.

    Args:
      run: what stages share.
      stage: of the stage.
      initial_params: returns the parameters it starts from; fresh ones by default.

    Returns:
      For each step the seconds from the start of the process until it was recorded, and its
      metrics.
    """
    settings = stage.config
    noted = Noted(run.workdir, settings.steps)
    with contextlib.suppress(Enough), noted:
        start = initial_params or functools.partial(fresh_params, run)
        KINDS[settings.kind].load().run(dataclasses.replace(run, writer=noted), stage, start, None)
    return noted.notes


def phases(notes: Sequence[tuple[float, dict]]) -> dict[str, float]:
    """Phase -> median seconds a step, without the first step, which compiles, and the last: a
    record may have the phases in which the next step was begun while its own was still running. A
    phase that a step did not have took no time.
    """
    later = [record for _, record in notes[1:-1] or notes[1:]]
    names = dict.fromkeys(name for record in later for name in record if name.startswith('time/'))
    return {
        name.removeprefix('time/'): statistics.median(record.get(name, 0.0) for record in later)
        for name in names
    }
