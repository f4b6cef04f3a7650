"""What runs inside a reward worker: load functions by name, call them, and turn whatever they do
wrong into data.

Imported by every worker process, so it stays light: the standard library and NumPy, never jax.
"""

import functools
import gc
import importlib
import inspect
import itertools
import math
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import parent_process
from typing import Any, NamedTuple

from reasonjax.errors import UserError, nearest, show
from reasonjax.terminal import printable

OWN = 'reasonjax.methods.rewards'
# exit statuses of a worker that was refused memory: by a sample alone, or with what others have
# left
OUT_OF_MEMORY, WORN_OUT = 71, 72
LARGEST = 1e18  # a reward; squares of larger ones, which deviations need, have no place in float32
PRINTED = 2_000  # characters of a call's output that are shown
LONGEST = 2000  # characters of an exception's text, or of a line of its traceback, that are


class Failure(NamedTuple):
    """Why there is no number.

    Attributes:
      kind: 'errors' (raised, died, or returned something else), 'timeouts', 'nan' (nan, infinite,
        or beyond `LARGEST`), or 'config' where no sample is to blame.
      text: what happened, to follow the function's name.
      trace: the end of the traceback, if there is one.
    """

    kind: str
    text: str
    trace: str = ''


# of a call: per sample a float, None or Failure; or the failure of the whole call
Outcome = list | Failure
_functions: dict[str, Callable] = {}  # filled once, when the worker process starts
# bytes from which on a worker holds more than it did then, by so much that a sample may suffer from
# it
_worn = float('inf')


def load(target: str, key: str) -> Callable:
    """Imports a reward function.

    Args:
      target: 'pkg.module:function', 'pkg.module.function', or the bare name of one in
        `reasonjax.methods.rewards`.
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
        known = [
            n
            for n, value in vars(module).items()
            if inspect.isfunction(value) and not n.startswith('_')
        ]
        has = f'{nearest(name, known)} It has: {", ".join(known) or "none"}.'
        raise UserError(f'{key}: module {module_name} has no function "{name}".{has}')
    return function


def member(module: Any, name: str) -> Any:
    """Follows a dotted name from a module; None where it leads nowhere."""
    return functools.reduce(lambda node, part: getattr(node, part, None), name.split('.'), module)


def start(names: Mapping[str, str], knobs: bytes, memory_limit: float) -> None:
    """Prepares a fresh worker: reward key -> target, the pickled knobs of each key, and the GiB it
    may take."""
    # The pool's own handler needs the interpreter: a loop in C would outlive its time limit. There
    # is nothing to tidy.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    bound = pickle.loads(knobs)
    for name, target in names.items():
        _functions[name] = functools.partial(load(target, f'rewards.{name}'), **bound[name])
    os._exit = _exit  # type: ignore[assignment]
    if sys.platform == 'linux':
        _limit_memory(int(memory_limit * 2**30))


def _limit_memory(size: int) -> None:
    import resource  # not on every system

    global _worn
    _worn = _measure_memory() + size // 16
    # Of data rather than of addresses, which some libraries reserve by the terabyte and never
    # touch.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    size = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def _measure_memory() -> int:
    """Measures the memory that the limit counts, in bytes; 0 where the system is not Linux."""
    if sys.platform != 'linux':
        return 0
    with open('/proc/self/statm') as file:
        return int(file.read().split()[5]) * os.sysconf('SC_PAGE_SIZE')


def _exit(status: int, exit_: Callable = os._exit) -> None:
    # The pool waits for a worker that ends in the middle of a job with status 0 as if it were at
    # work.
    exit_(status or 1)


class _Limited:
    """A text stream whose first characters are shown, on the standard error of the
    run, and the rest is counted."""

    encoding, errors = 'utf-8', 'backslashreplace'

    def __init__(self, file: Any):
        self._file, self._written = file, 0

    def write(self, text: str) -> int:
        left = max(0, PRINTED - self._written)
        self._written += len(text)
        if left:
            self._file.write(printable(text[:left]))  # of what a model wrote, perhaps
        return len(text)

    def flush(self) -> None:
        self._file.flush()

    def isatty(self) -> bool:
        return False

    def end(self, name: str) -> None:
        """Says how much was left out, and begins to count anew."""
        if self._written > PRINTED:
            self._file.write(
                f'\n[{self._written - PRINTED} more characters that rewards.{name} has printed are '
                'not shown]\n'
            )
        self._file.flush()
        self._written = 0


def _end_with_parent() -> None:
    # A parent that was killed cannot stop its workers, and one in an endless loop never finds the
    # pipe closed.
    parent_process().join()
    os._exit(1)


def ready() -> None:
    """Does nothing: a task that starts the workers early."""


def work(name: str, samples: int, columns: bytes) -> Outcome:
    """Calls one function on a few samples; their columns are pickled."""
    process, streams, printed = os.getpid(), (sys.stdout, sys.stderr), _Limited(sys.stderr)
    sys.stdout = sys.stderr = printed
    held = _measure_memory()
    try:
        outcome = call(_functions[name], samples, pickle.loads(columns), leave=False)
        if os.getpid() != process:
            # a copy of the worker that the function has made, which would answer a second time
            os._exit(1)
        # what fills the memory may stay there, and later samples are not to be blamed for it
        if outcome == _NO_MEMORY:
            os._exit(OUT_OF_MEMORY if held <= _worn else WORN_OUT)
        return outcome
    finally:
        printed.end(name)
        sys.stdout, sys.stderr = streams


def call(
    function: Callable, samples: int, columns: Mapping[str, list], leave: bool = True
) -> Outcome:
    """Calls a reward function on a few samples.

    Args:
      function: knobs bound.
      samples: how many there are.
      columns: what it is given.
      leave: whether an interruption by the user passes, as in the process of the run; in a worker
        nothing does.
    """
    try:
        returned = function(**columns)
        sized = hasattr(returned, '__len__') and hasattr(returned, '__getitem__')
        if not sized or isinstance(returned, str | bytes | bytearray | type | Mapping):
            return Failure('errors', f'returned {_show(returned)}, not a list of {samples} numbers')
        values = list(itertools.islice(returned, samples + 1))
        if len(values) != samples:
            number = f'more than {samples}' if len(values) > samples else len(values)
            return Failure('errors', f'returned {number} rewards for {samples} completions')
        return [_read_value(value) for value in values]
    except UserError as error:
        return Failure('config', describe(error))
    except MemoryError:
        gc.collect()
        return _NO_MEMORY
    except BaseException as error:  # others' code raises anything; all of it is reported
        if leave and isinstance(error, KeyboardInterrupt):
            raise
        return Failure(
            'errors', f'raised {type(error).__name__}: {describe(error)}', _format_trace(error)
        )


_NO_MEMORY = Failure('errors', 'ran out of memory')


def describe(error: BaseException) -> str:
    """Returns the text of an exception, whatever its own `__str__` does."""
    try:
        text = str(error)
    except BaseException as second:  # noqa: B036, of others' code
        return f'(its text cannot be shown: {type(second).__name__})'
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}... ({len(text)} characters)'


def _format_trace(error: BaseException) -> str:
    try:
        lines = ''.join(
            part[:LONGEST] for part in traceback.format_exception(error)[-6:]
        ).splitlines()
    except BaseException:  # noqa: B036, of others' code
        return ''
    return ''.join(f'    {line}\n' for line in lines)


def _read_value(value: Any) -> float | None | Failure:
    if value is None:
        return None
    # of NumPy: a complex number or a date has a float too
    kind = getattr(getattr(value, 'dtype', None), 'kind', 'f')
    if (
        isinstance(value, str | bytes | type)
        or not hasattr(value, '__float__')
        or getattr(value, 'shape', ())
        or kind not in 'biuf'
    ):
        return Failure('errors', f'returned {_show(value)}, not a number')
    try:
        number = float(value)
    except MemoryError:
        raise
    except Exception as error:  # of others' code
        return Failure(
            'errors',
            f'returned {_show(value)}, which cannot be made a float ({type(error).__name__}: '
            f'{describe(error)})',
        )
    if abs(number) > LARGEST and math.isfinite(number):
        return Failure('nan', f'returned {number:g}; rewards are at most {LARGEST:g} in size')
    return number if math.isfinite(number) else Failure('nan', f'returned {number}')


def _show(value: Any) -> str:
    return 'None' if value is None else f'{show(value)} ({type(value).__name__})'
