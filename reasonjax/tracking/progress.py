"""The progress of a stage, on the terminal."""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import rich.box
import rich.console
import rich.progress
import rich.table
import rich.text

from reasonjax.parallel import processes
from reasonjax.terminal import printable


class Progress:
    """One line for a stage: steps, reward or loss, tokens/s and the time left.

    A live bar on a terminal; elsewhere plain lines: the first and the last step, and one every
    `every` seconds between. Before the first step both say what is being done, and for how long.
    Processes other than the first show nothing.

    Args:
        stage, total: its name and its last step.
        start: the step it resumes from.
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
        self._start = start
        self._waiting = waiting
        self._begun = clock()
        self._over = threading.Event()
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
        """Returns the text beside the number of steps: what is waited for, or the metrics."""
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
            pace = float(metrics['tokens_per_second'])
            shown.append(f'{pace / 1000:.1f}k tokens/s' if pace >= 1000 else f'{pace:.0f} tokens/s')
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


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'
