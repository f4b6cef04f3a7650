"""What a run writes down: `metrics.jsonl`, TensorBoard events, completions, phase times.

A value that is not finite is written as null, because JSON has no nan (pandas reads null as nan);
the record then also holds `nonfinite`, a text such as "grad_norm=inf, loss=nan", so that nothing is
lost and a search finds every such step.
"""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TextIO

from reasonjax import files
from reasonjax.tracking import completion_files, records, tensorboard
from reasonjax.tracking.environment import environment


class Writer:
    """Writes the records of a run into its workdir; each is on disk when the call returns.

    Args:
        workdir: made if it does not exist.
        tensorboard: also writes event files, one TensorBoard run per stage (`tensorboard/<stage>`),
            so that the names of the metrics stay what they are elsewhere.
        active: False makes every call do nothing: all processes but the first of a multi-process
          run.
    """

    def __init__(
        self, workdir: str | os.PathLike, *, tensorboard: bool = True, active: bool = True
    ):
        self._workdir = pathlib.Path(workdir)
        self._tensorboard = tensorboard
        self._active = active
        self._events: dict[str, BinaryIO] = {}
        self._resumed: dict[str, int] = {}
        self._file: TextIO | None = None
        self._written: dict[str, dict[str, int]] = {}
        if active:
            self._workdir.mkdir(parents=True, exist_ok=True)

    @property
    def path(self) -> pathlib.Path:
        return self._workdir / 'metrics.jsonl'

    def resume(self, stage: str, step: int | None, known: Mapping[str, int] | None = None) -> None:
        """Drops what a killed run wrote after its last checkpoint, so that the files equal an
        undisturbed run's.

        Call it when a stage starts. A record belongs to the checkpoint of its step, so write the
        records of a step before its checkpoint is saved.

        Args:
            stage: the stage that starts.
            step: the step of the checkpoint it resumes from; None where it starts anew, which drops
              step 0 as well.
            known: what `written` was when that checkpoint was saved. What is missing is said on
                standard error and in a record.
        """
        last = -1 if step is None else step
        self._resumed[stage] = last
        if not self._active:
            return
        self.close()
        lines = records.mend(self.path)
        kept = [
            line for line in lines if line.record['stage'] != stage or line.record['step'] <= last
        ]
        if len(kept) < len(lines):
            records.write(self.path, kept)
        self._compare(stage, last, known, kept)

    def confirm(self, stage: str, step: int, known: Mapping[str, int]) -> None:
        """Compares the records of a finished stage with what `written` was at its last step.
        Reports what is missing as `resume` does."""
        if self._active:
            self._compare(stage, step, known, records.mend(self.path))

    def _compare(
        self, stage: str, step: int, known: Mapping[str, int] | None, lines: Sequence[records.Line]
    ) -> None:
        own = [line for line in lines if line.record['stage'] == stage]
        tables = completion_files.count_files(self._workdir / 'completions', stage, step)
        self._written[stage] = {
            'records': sum(records.weight(line.record) for line in own),
            'completions': tables + sum(line.record.get(records.TABLES_LOST, 0) for line in own),
        }
        wrong = records.missing(own, tables, stage, step, known or {})
        if wrong:
            records.complain(self.path, stage, step, wrong)
            self.write(stage, max(step, 0), wrong)
            self._written[stage]['completions'] += wrong.get(records.TABLES_LOST, 0)

    def written(self, stage: str) -> dict[str, int]:
        """Returns the numbers of records and completion tables that a stage has written so far."""
        return dict(self._written.get(stage, {}))

    def write(
        self, stage: str, step: int, metrics: Mapping[str, Any], *, once: bool = False
    ) -> None:
        """Appends one record, `{"stage", "step", **metrics}`; metrics are numbers (or arrays of
        one), text or None.

        With `once`, a record that is there already is not written again: the run may have been
        killed right after writing it.
        """
        if not self._active:
            return
        plain = {name: records.scalar(value) for name, value in metrics.items()}
        odd = {
            name: value
            for name, value in plain.items()
            if isinstance(value, float) and not math.isfinite(value)
        }
        record = {'stage': stage, 'step': int(step)} | plain | dict.fromkeys(odd)
        if odd:
            record['nonfinite'] = ', '.join(
                f'{name}={value}' for name, value in sorted(odd.items())
            )
        if once and self.path.is_file() and record in read(self.path):
            return
        if self._file is None:
            self._file = self.path.open('a', encoding='utf-8')
        self._file.write(json.dumps(record, allow_nan=False, ensure_ascii=False) + '\n')
        self._file.flush()
        counts = self._written.setdefault(stage, {'records': 0, 'completions': 0})
        counts['records'] += records.weight(record)
        if self._tensorboard:
            # TensorBoard holds float32: what is larger, infinite or nan stays out.
            scalars = {
                name: value
                for name, value in plain.items()
                if isinstance(value, int | float) and abs(value) < 3.4e38
            }
            self._event_file(stage).write(
                tensorboard.record(tensorboard.event(int(step), 5, tensorboard.summary(scalars)))
            )
            self._event_file(stage).flush()

    def sync(self) -> None:
        """Has the system put what is written on the disk, so that a checkpoint never knows of more
        than is there."""
        for file in (self._file, *self._events.values()):
            if file is not None:
                file.flush()
                os.fsync(file.fileno())

    def completions(
        self, stage: str, step: int, rows: Sequence[Mapping[str, Any]]
    ) -> pathlib.Path | None:
        """Writes the completions of a step to `completions/completions_{step:05d}.parquet`.

        Columns: `step`, `prompt`, `completion`, then the other keys of the rows in order (rewards,
        extra columns), `advantage`, `stage`. What is neither text nor a number (messages) is stored
        as JSON text. Rows that another stage wrote at the same step are kept.

        Returns:
            The file, or None where there is nothing to write.
        """
        if not self._active or not rows:
            return None
        path = completion_files.write(self._workdir / 'completions', stage, step, rows)
        self._written.setdefault(stage, {'records': 0, 'completions': 0})['completions'] += 1
        return path

    def environment(self) -> dict[str, Any]:
        """Writes what `environment` returns to `environment.json`, and returns it.

        Other environments in which the run was started or resumed are kept under `earlier`.
        """
        now, path = environment(), self._workdir / 'environment.json'
        if self._active:
            earlier = records.environments(path)
            unlike = [one for one in earlier if {**one, 'started': ''} != {**now, 'started': ''}]
            files.write_text(
                path, json.dumps(now | ({'earlier': unlike} if unlike else {}), indent=2) + '\n'
            )
        return now

    def close(self) -> None:
        """Closes the files; a later write opens them again."""
        if self._file is not None:
            self._file.close()
            self._file = None
        for events in self._events.values():
            events.close()
        self._events = {}

    def __enter__(self) -> 'Writer':
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _event_file(self, stage: str) -> BinaryIO:
        """Returns the open TensorBoard file of a stage. That of a resumed stage begins with an
        event that has TensorBoard drop later steps."""
        if stage not in self._events:
            folder = self._workdir / 'tensorboard' / stage
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / f'events.out.tfevents.{time.time():.6f}.{os.getpid()}').open('wb')
            file.write(tensorboard.record(tensorboard.event(0, 3, b'brain.Event:2')))
            if self._resumed.get(stage, -1) >= 0:
                # session_log.status = START
                file.write(
                    tensorboard.record(tensorboard.event(self._resumed[stage] + 1, 7, b'\x08\x01'))
                )
            self._events[stage] = file
        return self._events[stage]


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the records of a `metrics.jsonl`; see `records.read`."""
    return records.read(pathlib.Path(path))


class Timers:
    """Adds up how long the phases of a step take: `with timers('generate'): ...`, then
    `timers.take()`.

    Device work is launched, not run, by a call: fetch or block inside the phase. A checkpoint holds
    `seconds`, what is not taken yet.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = self._clock()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + self._clock() - start

    def take(self) -> dict[str, float]:
        """Returns {'time/<phase>': seconds} since the last call, and starts again from nothing."""
        seconds_of_phases = {f'time/{phase}': seconds for phase, seconds in self.seconds.items()}
        self.seconds = {}
        return seconds_of_phases
