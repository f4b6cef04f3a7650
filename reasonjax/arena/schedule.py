"""Cells handed to worker processes: each core has one, what is done stays done, and one that breaks
does not stop the others."""

import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence

from reasonjax.arena import results
from reasonjax.arena.cell import RESULT, Spec
from reasonjax.arena.results import Cell
from reasonjax.errors import Stopped

LAST_LINES = 5


class Broken(Exception):
    """A worker ended without an answer."""


class Worker:
    """A worker process on a core, started when it is first needed."""

    def __init__(
        self, folder: pathlib.Path, number: int, core: int | None, environment: Mapping[str, str]
    ):
        self._folder, self._number, self._core, self._environment = (
            folder,
            number,
            core,
            environment,
        )
        self._process: subprocess.Popen | None = None

    def run(self, spec: Spec) -> str:
        """Runs a cell in this worker's process; returns its status.

        Raises:
          Broken: the process ended; its last words are in the message.
        """
        process = self._process or self._start()
        try:
            process.stdin.write(json.dumps(spec._asdict()) + '\n')
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ''
        if not line:
            code = process.wait()
            self._process = None
            raise Broken(f'the worker ended with status {code}: {self._last_words()}')
        return json.loads(line)['status']

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def _log(self) -> pathlib.Path:
        return self._folder / f'worker{self._number}.log'

    def _start(self) -> subprocess.Popen:
        command = [
            sys.executable,
            '-m',
            'reasonjax.arena.worker',
            '--compiled',
            str(self._folder / 'compiled'),
        ]
        command += [] if self._core is None else ['--core', str(self._core)]
        with self._log.open('a') as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env=self._environment,
            )
        return self._process

    def _last_words(self) -> str:
        return ' / '.join(self._log.read_text(errors='replace').strip().splitlines()[-LAST_LINES:])


def cores() -> list[int]:
    """Lists the processors that this process may use."""
    return (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, 'sched_getaffinity')
        else list(range(os.cpu_count() or 1))
    )


def shared(workers: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the environment of one of several workers. Each gets its share of a GPU's memory, of
    which a process alone takes nearly all."""
    share = {'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{0.9 / workers:.3f}'} if workers > 1 else {}
    return share | dict(environment)


def run(
    specs: Sequence[Spec], folder: pathlib.Path, workers: int, done: Callable[[Spec, str], None]
) -> None:
    """Runs cells, each in one of the worker processes, in order.

    Args:
      specs: their configs lie in their folders.
      folder: for logs and compiled programs.
      workers: processes; each stays on a core where there are as many.
      done: called with each cell's spec and status ('done', 'failed'; of a warm start that failed,
        what the worker last said).

    Raises:
      Stopped: on Ctrl-C; workers are ended, what they were doing is lost.
    """
    waiting: queue.SimpleQueue[Spec] = queue.SimpleQueue()
    for spec in specs:
        waiting.put(spec)
    places = cores()
    pinned = workers > 1 and workers <= len(places)
    number = min(workers, len(specs))
    staff = [
        Worker(folder, i, places[i] if pinned else None, shared(number)) for i in range(number)
    ]
    finished: queue.SimpleQueue[tuple[Spec, str] | None] = queue.SimpleQueue()

    def work(worker: Worker) -> None:
        while True:
            try:
                spec = waiting.get_nowait()
            except queue.Empty:
                break
            try:
                status = worker.run(spec)
            except Broken as error:
                status = str(error)
                if spec.warm:
                    results.write(
                        pathlib.Path(spec.folder) / RESULT,
                        Cell(spec.recipe, spec.task, spec.seed, 'failed', status),
                    )
                    status = 'failed'
            finished.put((spec, status))
        finished.put(None)

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in staff]
    try:
        for thread in threads:
            thread.start()
        left = len(threads)
        while left:
            outcome = finished.get()
            if outcome is None:
                left -= 1
            else:
                done(*outcome)
    except KeyboardInterrupt:
        raise Stopped('cells that are done have their results') from None
    finally:
        for worker in staff:
            worker.stop()
