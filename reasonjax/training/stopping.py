"""Stopping when asked to: SIGTERM or Ctrl-C lets the step under way finish and be saved, and the
program ends with a status of its own.

The program listens (`listening`); the stages ask at points where stopping is safe (`asked`,
`point`). A second Ctrl-C ends the program at once; further SIGTERMs change nothing, because some
schedulers send several.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from reasonjax.errors import Stopped
from reasonjax.parallel import processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Request:
    """The signal that asked, if any; a process has one, as it has one set of handlers."""

    name: str = ''


_request = _Request()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Takes the first SIGTERM or SIGINT within the context as a request to stop. Does nothing
    outside the main thread, which alone receives signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _request.name = ''


def asked() -> bool:
    """Returns whether any process has been asked to stop. Every process calls this at the same
    point and gets the same answer."""
    return processes.agree(bool(_request.name))


def point(where: str) -> None:
    """Raises `Stopped` if a stop was asked for. All that was done before this point is on disk, or
    will be done again.

    Args:
      where: for the message: 'stage collect, step 3'.
    """
    if asked():
        raise Stopped(where)


def _handle(number: int, frame: FrameType | None) -> None:
    del frame
    first, _request.name = not _request.name, signal.Signals(number).name
    if number == signal.SIGINT:
        # From now on the system's own way, which also ends a process that is busy outside Python.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if first:
        more = '; Ctrl-C again ends it at once, without saving' if number == signal.SIGINT else ''
        # Not print: a handler may interrupt one, and standard error must not be entered twice.
        os.write(2, f'\n{_request.name}: finishing this step, then saving{more}\n'.encode())
