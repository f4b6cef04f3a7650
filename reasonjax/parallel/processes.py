"""Many processes that run one program: how they are started, and how they divide host work and
agree on its outcome.

Devices compute together by themselves: a jitted program over a mesh is one program for all
processes. What is left is the host. Every process builds the same global batch; work that needs
doing once is divided (`divided`), files belong to the first process (`on_main`), and what follows
from something that only one process knows is told to all. Every function here is called by all
processes, in the same order, and does nothing but the work where there is one process.

A process that fails alone leaves the others waiting. The service that `jax.distributed` runs in the
first process ends them: `TIMEOUTS` says how soon. A `UserError` in `divided`, `on_main` or
`main_first` is raised in all of them instead.
"""

import functools
import os
import pathlib
import pickle
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from reasonjax.errors import UserError
from reasonjax.parallel import launch

# Seconds: for all to arrive; without a sign of life before a process counts as dead; for the others
# once one process has ended.
TIMEOUTS = dict(
    initialization_timeout=300, heartbeat_timeout_seconds=100, shutdown_timeout_seconds=30
)

# How long a file of the first process may take to be seen by the others: NFS clients look again
# after some seconds.
SHARED_WITHIN = 15.0


def start(flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes where flags or environment say that there are some
    (`launch.settings`). Before anything runs on a device.

    What processes other than the first print is then discarded; their errors are not.

    Raises:
      UserError: wrong settings, no cluster that jax knows, or processes that do not find each
        other.
    """
    settings = launch.settings(flags, environment)
    if settings is None:
        return
    try:
        jax.distributed.initialize(**settings, **TIMEOUTS)
    except ValueError as error:
        raise UserError(
            '--distributed: jax found no cluster that it knows (Cloud TPU, GKE, SLURM, Open MPI): '
            f'{error} '
            'Give --coordinator HOST:PORT --num_processes N --process_id I.'
        ) from error
    except RuntimeError as error:
        raise UserError(f'the processes did not find each other: {error}') from error
    if not is_main():
        sys.stdout = open(os.devnull, 'w', encoding='utf-8')  # noqa: SIM115, for as long as the process lives


def label() -> str:
    """Returns 'process 1 of 4', for messages; '' where there is one."""
    # Asked first, because the number of processes starts the backend.
    several = jax.distributed.is_initialized() and jax.process_count() > 1
    return f'process {jax.process_index()} of {jax.process_count()}' if several else ''


def is_main() -> bool:
    """Returns whether this process writes the files of the run."""
    return jax.process_index() == 0


def share(number: int) -> slice:
    """Returns this process's slice of `number` things: contiguous, in the order of the processes,
    sizes equal within one."""
    index, count = jax.process_index(), jax.process_count()
    return slice(number * index // count, number * (index + 1) // count)


def gather(value: Any) -> list[Any]:
    """Gathers a value from every process, in the order of the processes. Values have to pickle, and
    to be small, since every device holds all of them."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps((jax.process_index(), value)), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    # Powers of two, so that few programs are compiled.
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    pairs = [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
    # Rows come in the order of the devices.
    return [value for _, value in sorted(pairs, key=lambda pair: pair[0])]


def agree(flag: bool) -> bool:
    """Returns whether `flag` is true in any process."""
    return any(gather(bool(flag)))


def fetch(tree: Any) -> Any:
    """Copies device arrays to NumPy arrays, whole in every process.

    What other processes hold is gathered by a program of its own. Asking the program that computes
    it for whole results would let the compiler compute it whole, on every device: a rollout's loop,
    say.
    """

    def whole(x: Any) -> Any:
        there = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
        return x if there else multihost_utils.process_allgather(x, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))


def divided(number: int, work: Callable[[slice], Any]) -> list[Any]:
    """Divides host work: each process does its part, and all get everything.

    Args:
      number: of pieces of work.
      work: `(part) -> value that pickles`; a part may be empty.

    Returns:
      The values of all processes, in the order of the work.

    Raises:
      UserError: what one process raised, in all of them.
    """
    return _together(lambda: work(share(number)))


def on_main(work: Callable[[], Any]) -> Any:
    """Has the first process do `work`, and all wait for it and get its value, which pickles; a
    UserError is raised in all."""
    return _together(lambda: work() if is_main() else None)[0]


def main_first(work: Callable[[], Any]) -> Any:
    """Does `work` in the first process, then in the others, which find the files it wrote. A
    UserError of the first is raised in all."""
    results = []
    on_main(lambda: results.append(work()))
    return results[0] if results else work()


def _together(work: Callable[[], Any]) -> list[Any]:
    if jax.process_count() == 1:
        return [work()]
    value, raised = None, None
    try:
        value = work()
    except UserError as error:
        raised = error
    outcomes = gather((value, raised and str(raised)))
    for _, text in outcomes:
        if text is not None:
            raise UserError(text) from raised
    return [value for value, _ in outcomes]


def check_equal(value: Any, what: str, way: str) -> None:
    """Raises UserError, in all processes, where they do not have the same value.

    Args:
      value: pickles.
      what: it is, for the message.
      way: to mend it.
    """
    values = gather((value, socket.gethostname()))
    odd = [
        f'process {i} on {host}' for i, (other, host) in enumerate(values) if other != values[0][0]
    ]
    if odd:
        raise UserError(
            f'{what} of {", ".join(odd)} is not that of process 0 on {values[0][1]}. {way}'
        )


def check_shared(folder: pathlib.Path) -> None:
    """Raises UserError, in all processes, where they do not see one and the same folder. Makes
    it."""
    if jax.process_count() == 1:
        return
    file = folder / '.shared'

    def write() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex())
        return file.read_text()

    token = on_main(write)
    way = 'Several processes need a workdir on a file system that they share: they write checkpoints together.'
    try:
        check_equal(_seen(file, token), f'--workdir={folder}: the folder', way)
    finally:
        on_main(functools.partial(file.unlink, missing_ok=True))


def _seen(file: pathlib.Path, token: str) -> bool:
    end = time.monotonic() + SHARED_WITHIN
    while not (file.is_file() and file.read_text() == token):
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True
