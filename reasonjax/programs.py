"""What the command-line programs share: arguments, errors, start of the backend."""

import argparse
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

    config = shrink(configs.load(location), overrides) if smoke else configs.load(location, overrides)
    path, _, argument = location.partition(':')
    name = pathlib.Path(path).stem + (f'_{argument}' if argument else '') + ('_smoke' if smoke else '')
    return config, name


def start(skip_selfcheck: bool) -> None:
    """Checks that the backend computes what it is told to (see `selfcheck`)."""
    from reasonjax import selfcheck

    if not skip_selfcheck:
        try:
            selfcheck.check()
        except selfcheck.BackendError as error:
            raise UserError(str(error)) from error
