"""One process at a time writes a folder: a lock of the operating system, which the death of its
holder frees, however it dies."""

import contextlib
import datetime
import errno
import json
import os
import pathlib
import shlex
import socket
import stat
import sys
import time
from collections.abc import Iterator

from reasonjax import files
from reasonjax.errors import UserError
from reasonjax.parallel import processes

try:
    import fcntl
except ImportError:  # a system without it
    fcntl = None

NAME = '.lock'
SHOWN = 120  # characters of the holder's command
_HELD = (errno.EAGAIN, errno.EACCES)


@contextlib.contextmanager
def hold(folder: str | os.PathLike, file: str | os.PathLike = '') -> Iterator[None]:
    """Holds the lock of a folder within the context. In a run of several processes the first one
    does, for all.

    Where the file system has no locks, says so on standard error and continues.

    Args:
      folder: that is going to be written; exists, unless `file` is given.
      file: the lock; by default `NAME` in the folder. It is gone when the lock is given back.

    Raises:
      UserError: another process holds it (named with its host and command), or the file cannot be
        written.
    """
    path, held = pathlib.Path(file or pathlib.Path(folder) / NAME), []
    processes.on_main(lambda: held.append(_take(path, folder)))
    try:
        yield
    finally:
        for descriptor in held:
            # Before it is given back: whoever opened the file meanwhile sees that it is gone, and
            # makes a new one.
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _take(path: pathlib.Path, folder: str | os.PathLike) -> int:
    while True:
        try:
            # Not what a link leads to: the folder may be a stranger's, and the file is overwritten.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0), 0o666)
        except OSError as error:
            reason = 'it is a link' if error.errno == errno.ELOOP else files.reason(error)
            raise UserError(f'{path}: cannot be written ({reason}).') from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UserError(f'{path}: cannot be written (a pipe or a device, not a file).')
        try:
            _lock(descriptor)
        except OSError as error:
            if error.errno in _HELD:
                holder = _holder(descriptor)
                os.close(descriptor)
                raise UserError(
                    f'{folder} is in use by {holder}. Wait until it has ended, or give another '
                    'folder.'
                ) from error
            print(
                f'note: {folder}: this file system has no locks ({files.reason(error)}), so '
                'nothing keeps a second process from writing '
                'there at the same time; see to it that there is none.',
                file=sys.stderr,
            )
        if _same(descriptor, path):
            break
        os.close(descriptor)  # its holder has given it back and deleted it since
    me = {
        'pid': os.getpid(),
        'host': socket.gethostname(),
        'since': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'command': shlex.join(['python', *sys.orig_argv[1:]]),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(me).encode(), 0)
    return descriptor


def _lock(descriptor: int) -> None:
    if fcntl is None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _same(descriptor: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    """Returns who holds a lock, as its file says; the file may be empty yet."""
    for _ in range(10):
        try:
            holder = json.loads(os.pread(descriptor, 2**16, 0))
            command = ' '.join(holder['command'].split())
            short = command if len(command) <= SHOWN else f'{command[:SHOWN]}...'
            return f'process {holder["pid"]} on {holder["host"]} (since {holder["since"]}: {short})'
        except (AttributeError, KeyError, TypeError, ValueError):
            time.sleep(0.05)  # it may be writing
    return 'another process'
