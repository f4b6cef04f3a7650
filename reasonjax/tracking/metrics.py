"""What a run writes down: `metrics.jsonl`, TensorBoard events, completions, phase times, progress,
the final table.

A value that is not finite is written as null, because JSON has no nan (pandas reads null as nan);
the record then also holds `nonfinite`, a text such as "grad_norm=inf, loss=nan", so that nothing is
lost and a search finds every such step.
"""

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TextIO

import jax
import rich.box
import rich.console
import rich.progress
import rich.table
import rich.text

from reasonjax import files
from reasonjax.parallel import processes
from reasonjax.terminal import printable
from reasonjax.tracking import completion_files, records, tensorboard

PACKAGES = (
    'reasonjax',
    'jax',
    'jaxlib',
    'flax',
    'optax',
    'orbax-checkpoint',
    'grain',
    'transformers',
    'sentencepiece',
    'numpy',
)


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
            step: the step of the checkpoint it goes on from; None where it starts anew, which drops
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
        """Holds the records of a stage that is done, with its last step, against what `written` was
        then; as `resume`."""
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
        """How many records and tables of completions a stage has written so far, which its
        checkpoint is to know."""
        return dict(self._written.get(stage, {}))

    def write(
        self, stage: str, step: int, metrics: Mapping[str, Any], *, once: bool = False
    ) -> None:
        """Appends one record, `{"stage", "step", **metrics}`; metrics are numbers (or arrays of
        one), text or None.

        With `once` it is left out where just this record is there: a run that was killed right
        after it goes on here.
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

        Where the run was begun, or went on, in others, they are kept under `earlier`.
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
        """The open TensorBoard file of a stage; a resumed stage tells it to drop what comes
        later."""
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
    """The records of a `metrics.jsonl`; see `records.read`."""
    return records.read(pathlib.Path(path))


def environment() -> dict[str, Any]:
    """Versions, devices and cores: what is needed to make sense of a timing. Touches the
    devices."""
    devices = jax.devices()
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        'command': shlex.join(['python', *sys.orig_argv[1:]]),
        'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'platform': devices[0].platform,
        'device_kind': devices[0].device_kind,
        'device_count': len(devices),
        'process_count': jax.process_count(),
        'cores': len(os.sched_getaffinity(0))
        if hasattr(os, 'sched_getaffinity')
        else os.cpu_count(),
        'machine': platform.machine(),
        'system': platform.system(),
        'python': platform.python_version(),
        'versions': versions,
    }


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
        taken = {f'time/{phase}': seconds for phase, seconds in self.seconds.items()}
        self.seconds = {}
        return taken


class Progress:
    """One line for a stage: steps, reward or loss, tokens/s and the time left.

    A live bar on a terminal; elsewhere plain lines: the first and the last step, and one every
    `every` seconds between. Before the first step both say what is being done, and for how long.
    Processes other than the first show nothing.

    Args:
        stage, total: its name and its last step.
        start: the step it goes on from.
        waiting: for what, before the first step.
        stream: where to; None is standard output.
        every, clock: seconds between plain lines, and what tells the time.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        *,
        start: int = 0,
        waiting: str = 'compiling',
        stream: TextIO | None = None,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stage, self._total, self._every, self._clock = printable(stage), total, every, clock
        self._start, self._waiting, self._begun, self._over = (
            start,
            waiting,
            clock(),
            threading.Event(),
        )
        self._stream = sys.stdout if stream is None else stream
        self._first: tuple[int, float] | None = None
        self._printed = -math.inf
        self._text = ''
        self._bar: rich.progress.Progress | None = None
        self._shown = processes.is_main()
        if self._shown and self._stream.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn('{task.description}', markup=False),
                rich.progress.BarColumn(bar_width=None),
                rich.progress.MofNCompleteColumn(),
                _Live(self.text),
                console=rich.console.Console(file=self._stream, emoji=False),
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(self._stage, total=total, completed=start)

    def __enter__(self) -> 'Progress':
        self._begun = self._clock()
        if self._bar is not None:
            self._bar.start()
        elif self._shown and self._waiting:
            threading.Thread(target=self._wait, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._bar is not None:
            self._bar.stop()

    def text(self) -> str:
        """What stands behind the number of steps now."""
        if self._first is None and self._waiting:
            return f'{self._waiting} {_duration(self._clock() - self._begun)}'
        return self._text

    def wait(self) -> None:
        """Prints a plain line that says what is waited for."""
        print(
            f'{self._stage} {self._start}/{self._total}  {self.text()}',
            file=self._stream,
            flush=True,
        )

    def _wait(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # the next line of the main thread meets it too
            while not self._over.wait(self._every) and self._first is None:
                self.wait()

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows that `step` is done, with `reward` or else `loss` and `tokens_per_second`, where
        they are there."""
        if not self._shown:
            return
        now = self._clock()
        # The first step holds the compilation, so the pace is measured from its end.
        self._first = self._first or (step, now)
        self._over.set()
        shown = [
            f'{name} {float(metrics[name]):.4g}' for name in ('reward', 'loss') if name in metrics
        ][:1]
        if 'tokens_per_second' in metrics:
            shown.append(f'{_thousands(float(metrics["tokens_per_second"]))} tokens/s')
        done, since = step - self._first[0], now - self._first[1]
        left = f'{_duration(since / done * (self._total - step))} left' if done > 0 else ''
        self._text = '  '.join([*shown, left] if left else shown)
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
        elif step >= self._total or now - self._printed >= self._every:
            self._printed = now
            if left and step < self._total:
                shown.append(left)
            print(
                '  '.join([f'{self._stage} {step}/{self._total}', *shown]),
                file=self._stream,
                flush=True,
            )


class _Live(rich.progress.ProgressColumn):
    """A text that is asked for at each refresh."""

    def __init__(self, text: Callable[[], str]):
        super().__init__()
        self._text = text

    def render(self, task: rich.progress.Task) -> rich.text.Text:
        return rich.text.Text(self._text())


def _thousands(number: float) -> str:
    return f'{number / 1000:.1f}k' if number >= 1000 else f'{number:.0f}'


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'


def percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """An accuracy between 0 and 1 with its interval as '48.1 % [45.0, 51.2]'; '-' where there is
    none."""
    if value is None:
        return '-'
    text = f'{100 * value:.1f} %'
    return (
        text if interval is None else f'{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]'
    )


def table(rows: Sequence[Mapping[str, Any]], *, stream: TextIO | None = None) -> None:
    """Prints the final table from the `stages` of summary.json; what a row lacks is shown as '-'.

    Args:
        rows: dicts with name, accuracy, ci95, sampled_accuracy, sampled_ci95, mean_length,
          problems, seconds.
        stream: where to; None is standard output.
    """
    stream = sys.stdout if stream is None else stream
    printed = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    printed.add_column('stage')
    for name in ('greedy [95 %]', 'sampled [95 %]', 'mean length', 'problems', 'seconds'):
        printed.add_column(name, justify='right')
    for row in rows:
        length, problems, seconds = (
            row.get(name) for name in ('mean_length', 'problems', 'seconds')
        )
        printed.add_row(
            printable(str(row['name'])),
            percent(row.get('accuracy'), row.get('ci95')),
            percent(row.get('sampled_accuracy'), row.get('sampled_ci95')),
            '-' if length is None else f'{length:.1f}',
            '-' if problems is None else str(problems),
            '-' if seconds is None else f'{seconds:.1f}',
        )
    # A file or a pipe has no width to fit: a line may be as long as it needs to be.
    width = None if stream.isatty() else 120
    rich.console.Console(
        file=stream, width=width, highlight=False, markup=False, emoji=False
    ).print(printed)
