"""Other processes that hold a folder, for tests of locks: each is a fork of one that has imported
what they need."""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import sys

import pytest

from reasonjax.training import locks

_FORKING = multiprocessing.get_context('forkserver')
_FORKING.set_forkserver_preload([__name__])


@contextlib.contextmanager
def holder(folder):
    """Another process, which holds a folder until the context is left or it dies."""
    with pytest.MonkeyPatch.context() as patch:  # until Python 3.13 it searches no other path
        patch.setenv('PYTHONPATH', os.pathsep.join(sys.path))
        multiprocessing.forkserver.ensure_running()
    here, there = _FORKING.Pipe()
    process = _FORKING.Process(target=_hold, args=(str(folder), there))
    process.start()
    there.close()  # else its death would not be the end of the pipe
    try:
        assert here.recv() == 'held'
        yield process
    finally:
        here.close()
        process.join()


def _hold(folder: str, pipe) -> None:
    with locks.hold(folder):
        pipe.send('held')
        with contextlib.suppress(EOFError):
            pipe.recv()
