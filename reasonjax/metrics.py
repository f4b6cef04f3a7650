"""What a run writes down: `metrics.jsonl`, TensorBoard events, completions, phase times, progress, the final table.

A value that is not finite is written as null, because JSON has no nan (pandas reads null as nan); the record then also
holds `nonfinite`, a text such as "grad_norm=inf, loss=nan", so that nothing is lost and a search finds every such step.
"""

import contextlib
import datetime
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shlex
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TextIO

import jax
import rich.box
import rich.console
import rich.progress
import rich.table

from reasonjax import completion_files, files
from reasonjax.errors import UserError
from reasonjax.parallel import processes
from reasonjax.terminal import printable

PACKAGES = ('reasonjax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'transformers', 'sentencepiece',
            'numpy')


class Writer:
    """Writes the records of a run into its workdir; each is on disk when the call returns.

    Args:
        workdir: made if it does not exist.
        tensorboard: also writes event files, one TensorBoard run per stage (`tensorboard/<stage>`), so that the names
            of the metrics stay what they are elsewhere.
        active: False makes every call do nothing: all processes but the first of a multi-process run.
    """

    def __init__(self, workdir: str | os.PathLike, *, tensorboard: bool = True, active: bool = True):
        self._workdir = pathlib.Path(workdir)
        self._tensorboard = tensorboard
        self._active = active
        self._events: dict[str, BinaryIO] = {}
        self._resumed: dict[str, int] = {}
        self._file: TextIO | None = None
        if active:
            self._workdir.mkdir(parents=True, exist_ok=True)

    @property
    def path(self) -> pathlib.Path:
        return self._workdir / 'metrics.jsonl'

    def resume(self, stage: str, step: int | None) -> None:
        """Drops what a killed run wrote after its last checkpoint, so that the files equal an undisturbed run's.

        Call it when a stage starts. A record belongs to the checkpoint of its step, so write the records of a step
        before its checkpoint is saved.

        Args:
            stage: the stage that starts.
            step: the step of the checkpoint it goes on from; None where it starts anew, which drops step 0 as well.
        """
        last = -1 if step is None else step
        self._resumed[stage] = last
        if not self._active or not self.path.is_file():
            return
        self.close()
        kept = [line for line, record in _lines(self.path) if record['stage'] != stage or record['step'] <= last]
        temporary = self.path.with_suffix('.tmp')
        temporary.write_text(''.join(kept), encoding='utf-8')
        temporary.replace(self.path)

    def write(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one record, `{"stage", "step", **metrics}`; metrics are numbers (or arrays of one), text or None."""
        if not self._active:
            return
        plain = {name: _scalar(value) for name, value in metrics.items()}
        odd = {name: value for name, value in plain.items() if isinstance(value, float) and not math.isfinite(value)}
        record = {'stage': stage, 'step': int(step)} | plain | dict.fromkeys(odd)
        if odd:
            record['nonfinite'] = ', '.join(f'{name}={value}' for name, value in sorted(odd.items()))
        if self._file is None:
            self._file = self.path.open('a', encoding='utf-8')
        self._file.write(json.dumps(record, allow_nan=False, ensure_ascii=False) + '\n')
        self._file.flush()
        if self._tensorboard:
            # TensorBoard holds float32: what is larger, infinite or nan stays out.
            scalars = {name: value for name, value in plain.items()
                       if isinstance(value, int | float) and abs(value) < 3.4e38}
            self._event_file(stage).write(_record(_event(int(step), 5, _summary(scalars))))
            self._event_file(stage).flush()

    def completions(self, stage: str, step: int, rows: Sequence[Mapping[str, Any]]) -> pathlib.Path | None:
        """Writes the completions of a step to `completions/completions_{step:05d}.parquet`.

        Columns: `step`, `prompt`, `completion`, then the other keys of the rows in order (rewards, extra columns),
        `advantage`, `stage`. What is neither text nor a number (messages) is stored as JSON text. Rows that another
        stage wrote at the same step are kept.

        Returns:
            The file, or None where there is nothing to write.
        """
        if not self._active or not rows:
            return None
        path = self._workdir / 'completions' / f'completions_{step:05d}.parquet'
        completion_files.write(path, stage, step, rows)
        return path

    def environment(self) -> dict[str, Any]:
        """Writes what `environment` returns to `environment.json`, and returns it."""
        found = environment()
        if self._active:
            (self._workdir / 'environment.json').write_text(json.dumps(found, indent=2) + '\n', encoding='utf-8')
        return found

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
        """The open TensorBoard file of a stage; a resumed stage tells it to drop what comes later."""
        if stage not in self._events:
            folder = self._workdir / 'tensorboard' / stage
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / f'events.out.tfevents.{time.time():.6f}.{os.getpid()}').open('wb')
            file.write(_record(_event(0, 3, b'brain.Event:2')))
            if self._resumed.get(stage, -1) >= 0:
                file.write(_record(_event(self._resumed[stage] + 1, 7, b'\x08\x01')))  # session_log.status = START
            self._events[stage] = file
        return self._events[stage]


# TensorBoard's event files: length-delimited protocol buffers, each with its checksum. Written here because the
# libraries that write them import torch or tensorflow wherever these are installed, seconds before the first step.


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _event(step: int, field: int, content: bytes) -> bytes:
    """An Event: wall_time (field 1, a double), step (field 2), and `content` as `field`."""
    return struct.pack('<Bd', 1 << 3 | 1, time.time()) + _varint(2 << 3) + _varint(step) + _message(field, content)


def _summary(scalars: Mapping[str, float]) -> bytes:
    """A Summary: one Value of tag (field 1) and simple_value (field 2, a float) for each scalar."""
    return b''.join(_message(1, _message(1, tag.encode()) + struct.pack('<Bf', 2 << 3 | 5, value))
                    for tag, value in scalars.items())


@functools.cache
def _crc_table() -> tuple[int, ...]:
    """CRC-32C (Castagnoli), reflected polynomial 0x82F63B78, by byte."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


def _checksum(data: bytes) -> bytes:
    crc, table = 0xFFFFFFFF, _crc_table()
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    # The format masks it, so that a checksum of data that holds checksums stays sound.
    return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _record(data: bytes) -> bytes:
    length = struct.pack('<Q', len(data))
    return length + _checksum(length) + data + _checksum(data)


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, in order; a last line that was cut off by a kill is left out."""
    return [record for _, record in _lines(pathlib.Path(path))]


def _lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with files.open_file(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.endswith(b'\n'):
                where = f'{path}:{number}'
                text = files.decode(line, where)
                record = files.parse_json(text, where)
                if not isinstance(record, dict) or not {'stage', 'step'} <= record.keys():
                    raise UserError(f'{where}: expected a record with stage and step.')
                yield text, record


def _scalar(value: Any) -> Any:
    """A number of any library as a Python number; booleans become 0 or 1, text and None stay."""
    if value is None or isinstance(value, str):
        return value
    if hasattr(value, 'item'):
        value = value.item()
    return int(value) if isinstance(value, bool) else value


def environment() -> dict[str, Any]:
    """Versions, devices and cores: what is needed to make sense of a timing. Touches the devices."""
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
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'machine': platform.machine(),
        'system': platform.system(),
        'python': platform.python_version(),
        'versions': versions,
    }


class Timers:
    """Adds up how long the phases of a step take: `with timers('generate'): ...`, then `timers.take()`.

    Device work is launched, not run, by a call: fetch or block inside the phase. A checkpoint holds `seconds`, what is not taken yet.
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

    A live bar on a terminal; elsewhere plain lines: the first and the last step, and one every `every` seconds between.
    Processes other than the first show nothing.

    Args:
        stage, total: its name and its last step.
        start: the step it goes on from.
        stream: where to; None is standard output.
        every, clock: seconds between plain lines, and what tells the time.
    """

    def __init__(self, stage: str, total: int, *, start: int = 0, stream: TextIO | None = None, every: float = 10.0,
                 clock: Callable[[], float] = time.monotonic):
        self._stage, self._total, self._every, self._clock = printable(stage), total, every, clock
        self._stream = sys.stdout if stream is None else stream
        self._first: tuple[int, float] | None = None
        self._printed = -math.inf
        self._text = ''
        self._bar: rich.progress.Progress | None = None
        self._shown = processes.is_main()
        if self._shown and self._stream.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn('{task.description}', markup=False), rich.progress.BarColumn(bar_width=None),
                rich.progress.MofNCompleteColumn(), rich.progress.TextColumn('{task.fields[text]}', markup=False),
                console=rich.console.Console(file=self._stream, emoji=False), refresh_per_second=4)
            self._task = self._bar.add_task(self._stage, total=total, completed=start, text='compiling')

    def __enter__(self) -> 'Progress':
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows that `step` is done, with `reward` or else `loss` and `tokens_per_second`, where they are there."""
        if not self._shown:
            return
        now = self._clock()
        # The first step holds the compilation, so the pace is measured from its end.
        self._first = self._first or (step, now)
        shown = [f'{name} {float(metrics[name]):.4g}' for name in ('reward', 'loss') if name in metrics][:1]
        if 'tokens_per_second' in metrics:
            shown.append(f'{_thousands(float(metrics["tokens_per_second"]))} tokens/s')
        done, since = step - self._first[0], now - self._first[1]
        left = f'{_duration(since / done * (self._total - step))} left' if done > 0 else ''
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text='  '.join([*shown, left] if left else shown))
        elif step >= self._total or now - self._printed >= self._every:
            self._printed = now
            if left and step < self._total:
                shown.append(left)
            print('  '.join([f'{self._stage} {step}/{self._total}', *shown]), file=self._stream, flush=True)


def _thousands(number: float) -> str:
    return f'{number / 1000:.1f}k' if number >= 1000 else f'{number:.0f}'


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'


def percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """An accuracy between 0 and 1 with its interval as '48.1 % [45.0, 51.2]'; '-' where there is none."""
    if value is None:
        return '-'
    text = f'{100 * value:.1f} %'
    return text if interval is None else f'{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]'


def table(rows: Sequence[Mapping[str, Any]], *, stream: TextIO | None = None) -> None:
    """Prints the final table from the `stages` of summary.json; what a row lacks is shown as '-'.

    Args:
        rows: dicts with name, accuracy, ci95, sampled_accuracy, sampled_ci95, mean_length, problems, seconds.
        stream: where to; None is standard output.
    """
    stream = sys.stdout if stream is None else stream
    printed = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    printed.add_column('stage')
    for name in ('greedy [95 %]', 'sampled [95 %]', 'mean length', 'problems', 'seconds'):
        printed.add_column(name, justify='right')
    for row in rows:
        length, problems, seconds = (row.get(name) for name in ('mean_length', 'problems', 'seconds'))
        printed.add_row(printable(str(row['name'])), percent(row.get('accuracy'), row.get('ci95')),
                        percent(row.get('sampled_accuracy'), row.get('sampled_ci95')),
                        '-' if length is None else f'{length:.1f}', '-' if problems is None else str(problems),
                        '-' if seconds is None else f'{seconds:.1f}')
    # A file or a pipe has no width to fit: a line may be as long as it needs to be.
    width = None if stream.isatty() else 120
    rich.console.Console(file=stream, width=width, highlight=False, markup=False, emoji=False).print(printed)
