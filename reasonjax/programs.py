"""What the command-line programs share: arguments, errors, start of the backend."""

import argparse
import ctypes
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from reasonjax import config as configs
from reasonjax.errors import UserError


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Parses a program's own options, and `--config.a.b=c` overrides beside them."""
    try:
        rest, overrides = configs.split_arguments(arguments)
    except UserError as error:
        parser.error(str(error))
    return parser.parse_args(rest), overrides


def run_program(program: Callable[[], None]) -> int:
    """Runs a program; what the user can mend is printed without a traceback. Returns the exit status."""
    try:
        program()
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def load_config(location: str, overrides: Sequence[tuple[str, str]], smoke: bool) -> tuple[Any, str]:
    """Loads a config, shrunk where it is only to be tried. Returns it with the name its workdir gets."""
    from reasonjax.smoke import shrink
    from reasonjax.stages import adopt

    config = adopt.load(location, overrides)
    if smoke:
        # Loaded with the overrides, so that functions named there bring their knobs and what is shared stays shared; applied once
        # more to the small config, where they have the last word.
        config = shrink(config, [(key, value) for key, value in overrides if key.rpartition('.')[2] != 'name'])
    path, _, argument = location.partition(':')
    name = pathlib.Path(path).stem + (f'_{argument}' if argument else '') + ('_smoke' if smoke else '')
    return config, name


def _keep_freed_memory() -> None:
    """Has glibc keep what a step frees for the next one.

    XLA on CPU takes fresh memory for every execution; given back to the system and faulted in again page by page, it cost 15 % of the
    quickstart's processor time (two cores, November 2026). Threads share one arena because theirs cannot hold blocks of this size.
    """
    libc = ctypes.CDLL(None)
    if sys.platform == 'linux' and hasattr(libc, 'mallopt'):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1)):
            libc.mallopt(option, value)


def start(skip_selfcheck: bool) -> None:
    """Prepares the process, and checks that the backend computes what it is told to (see `selfcheck`). Nothing may run on it before."""
    from reasonjax import selfcheck

    _keep_freed_memory()
    if not skip_selfcheck:
        try:
            selfcheck.check()
        except selfcheck.BackendError as error:
            raise UserError(str(error)) from error
