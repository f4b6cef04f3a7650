"""What runs inside a reward worker: load functions by name, call them, and turn whatever they do wrong into data.

Imported by every worker process, so it stays light: the standard library and NumPy, never jax.
"""

import functools
import importlib
import inspect
import math
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import parent_process
from typing import Any, NamedTuple

from reasonjax.errors import UserError, nearest

OWN = 'reasonjax.methods.rewards'


class Failure(NamedTuple):
    """Why there is no number.

    Attributes:
      kind: 'errors' (raised, died, or returned something else), 'timeouts', 'nan' (nan or infinite), or 'config' where
        no sample is to blame.
      text: what happened, to follow the function's name.
      trace: the end of the traceback, if there is one.
    """

    kind: str
    text: str
    trace: str = ''


Outcome = list | Failure  # of a call: per sample a float, None or Failure; or the failure of the whole call
_functions: dict[str, Callable] = {}  # filled once, when the worker process starts


def load(target: str, key: str) -> Callable:
    """Imports a reward function.

    Args:
      target: 'pkg.module:function', 'pkg.module.function', or the bare name of one in `reasonjax.methods.rewards`.
      key: the config key, for error messages.

    Raises:
      UserError: there is no such module or function.
    """
    module_name, _, name = target.partition(':') if ':' in target else target.rpartition('.')
    module_name = module_name or OWN
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f'{key}: cannot import "{module_name}": {error}.') from error
    function = member(module, name)
    if not callable(function):
        known = [n for n, value in vars(module).items() if inspect.isfunction(value) and not n.startswith('_')]
        has = f'{nearest(name, known)} It has: {", ".join(known) or "none"}.'
        raise UserError(f'{key}: module {module_name} has no function "{name}".{has}')
    return function


def member(module: Any, name: str) -> Any:
    """Follows a dotted name from a module; None where it leads nowhere."""
    return functools.reduce(lambda node, part: getattr(node, part, None), name.split('.'), module)


def start(names: Mapping[str, str], knobs: bytes) -> None:
    """Prepares a fresh worker: reward key -> target, and the pickled knobs of each key."""
    # The pool's own handler needs the interpreter: a loop in C would outlive its time limit. There is nothing to tidy.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    bound = pickle.loads(knobs)
    for name, target in names.items():
        _functions[name] = functools.partial(load(target, f'rewards.{name}'), **bound[name])


def _end_with_parent() -> None:
    # A parent that was killed cannot stop its workers, and one in an endless loop never finds the pipe closed.
    parent_process().join()
    os._exit(1)


def ready() -> None:
    """A task that does nothing, to start the workers early."""


def work(name: str, calls: bytes) -> tuple[list[Outcome], float]:
    """Makes the calls of one job, pickled (samples, columns) pairs.

    Returns:
      Their outcomes, and the seconds per sample of the slowest call.
    """
    pace, outcomes = 0.0, []
    for samples, columns in pickle.loads(calls):
        begin = time.perf_counter()
        outcomes.append(call(_functions[name], samples, columns))
        pace = max(pace, (time.perf_counter() - begin) / samples)
    return outcomes, pace


def call(function: Callable, samples: int, columns: Mapping[str, list]) -> Outcome:
    """Calls a reward function on a few samples."""
    try:
        returned = function(**columns)
        sized = hasattr(returned, '__len__') and hasattr(returned, '__iter__')
        if not sized or isinstance(returned, str | bytes | Mapping):
            return Failure('errors', f'returned {_shown(returned)}, not a list of {samples} numbers')
        if len(returned) != samples:
            return Failure('errors', f'returned {len(returned)} rewards for {samples} completions')
        return [_value(value) for value in returned]
    except UserError as error:
        return Failure('config', str(error))
    except (Exception, SystemExit) as error:  # others' code raises anything; all of it is reported
        lines = ''.join(traceback.format_exception(error)[-6:]).splitlines()
        return Failure('errors', f'raised {type(error).__name__}: {error}', ''.join(f'    {line}\n' for line in lines))


def _value(value: Any) -> float | None | Failure:
    if value is None:
        return None
    if isinstance(value, str | bytes) or not hasattr(value, '__float__'):
        return Failure('errors', f'returned {_shown(value)}, not a number')
    number = float(value)
    return number if math.isfinite(number) else Failure('nan', f'returned {number}')


def _shown(value: Any) -> str:
    return 'None' if value is None else f'{value!r:.80} ({type(value).__name__})'
