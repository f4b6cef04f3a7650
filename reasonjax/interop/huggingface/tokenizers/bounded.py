"""Bounds on chat templates, which are programs of whoever made the folder: how long one may run,
and how much it may make.

transformers renders, in jinja's sandbox. What a template may touch is decided there; here, each
operation whose result may be far larger than what goes in is measured first, and a thread that
renders for too long is stopped. Both are needed: a thread can be stopped between two operations,
not within one.
"""

import ctypes
import functools
import itertools
import re
import string
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jinja2.compiler
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

LARGEST = 2**24  # characters, or entries, of one value; the text that is rendered is one
TOTAL = 2**30  # characters that one rendering puts together, thrown away or not
SMALL = 2**12  # what two texts that are put together may have without being counted
BITS = 2**14  # of an integer
NODE = 16  # what an entry of a list counts for, beside its text
CONTAINERS = (list, tuple, dict, set)
SECONDS = 10.0  # of processor time
POLL = 0.25


class TooMuch(Exception):
    """A template went beyond a bound."""


class _TimeUp(BaseException):
    """Thrown into a thread that renders for too long; no handler of the template's own functions
    catches it."""


def render(template: Callable[[], str]) -> str:
    """Calls what renders a template, within the bounds.

    Raises:
      TooMuch: it ran for too long, or made too much.
    """
    from transformers.utils import chat_template_utils

    # transformers compiles every template in an environment of this class, and of no other.
    chat_template_utils.ImmutableSandboxedEnvironment = Environment
    _state.size, _state.weights = 0, {}
    try:
        return _within_time(template)
    except _TimeUp as error:
        _running.pop(threading.get_ident(), None)  # in case it arrived while that was being done
        raise TooMuch(f'is not done after {SECONDS:g} s of processor time') from error
    except MemoryError as error:
        raise TooMuch('needs more memory than there is') from error
    finally:
        _state.weights = None


class _State(threading.local):
    """What the rendering in progress has put together: how much, and its lists with their weights;
    None outside of `render`."""

    size, weights = 0, None


_state = _State()


def _admit(size: int) -> None:
    if size > LARGEST and _state.weights is not None:
        raise TooMuch(f'makes a text or list of more than {LARGEST:,} characters')


def _count(size: int) -> None:
    _admit(size)
    _state.size += size
    if _state.size > TOTAL and _state.weights is not None:
        raise TooMuch(f'puts together more than {TOTAL:,} characters')


def _weight(value: Any) -> int:
    """Estimates how long a value is as text. A list is weighed once: it may hold others many times
    over, and the sandbox lets none change."""
    if isinstance(value, str | bytes):
        return NODE + len(value)
    if not isinstance(value, CONTAINERS):
        return LARGEST + 1 if isinstance(value, jinja2.utils.Namespace) else NODE
    known = _state.weights.get(id(value))
    if known is None:
        parts = itertools.chain(value, value.values()) if isinstance(value, dict) else value
        known = _state.weights[id(value)] = value, NODE + sum(map(_weight, parts))
    return known[1]


def _weighed(value: Any) -> Any:
    """Returns a value that a template has made, once it is known not to be too large."""
    if isinstance(value, CONTAINERS) and _state.weights is not None:
        _count(_weight(value))
    return value


def _joined(separator: Any, values: Any) -> int:
    number = len(values) if hasattr(values, '__len__') else 2**12
    return len(str(separator)) * number + _weight(values)


def _replaced(text: Any, old: Any, new: Any, *_: Any, **__: Any) -> int:
    text, old = str(text), str(old)
    return len(text) + text.count(old) * len(str(new))


def _percent(text: Any, *values: Any, **named: Any) -> int:
    return _filled(
        str(text),
        re.findall(r'%(?:\([^()]*\))?([-+ #0-9.*]*)', str(text)),
        (*values, *named.values()),
    )


def _braces(text: str, *values: Any, **named: Any) -> int:
    specs = [spec for _, name, spec, _ in string.Formatter().parse(text) if name is not None]
    return _filled(text, specs, (*values, *named.values()))


def _filled(text: str, specs: Sequence[str], values: Sequence[Any]) -> int:
    """Bounds the length of a formatted text. A field is as wide as its spec says, or one of the
    values where it says so ("*", "{}"), or as long as the longest value."""
    widths = sum(int(number) for spec in specs for number in re.findall(r'\d{1,18}', spec))
    variable = sum('*' in spec or '{' in spec for spec in specs)
    numbers = max((abs(value) for value in values if isinstance(value, int)), default=0)
    return (
        len(text) + widths + variable * numbers + len(specs) * max(map(_weight, values), default=0)
    )


def _wide(text: Any, width: int = 80, *_: Any, **__: Any) -> int:
    return len(text) + width


def _indented(text: Any, width: Any = 4, *_: Any, **__: Any) -> int:
    text = str(text)
    return len(text) + (text.count('\n') + 1) * (len(width) if isinstance(width, str) else width)


def _as_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, **_: Any
) -> int:
    step = len(indent) if isinstance(indent, str) else indent or 0
    return _weight(value) * (1 + step + sum(map(len, separators or ())))


# Size of the result (or more), by the arguments; of methods the object is the first.
METHODS = {
    'center': _wide,
    'ljust': _wide,
    'rjust': _wide,
    'zfill': _wide,
    'replace': _replaced,
    'join': _joined,
    'format': _braces,
    'format_map': lambda text, values: _braces(text, *values.values()),
    'expandtabs': lambda text, tabsize=8: len(text) + text.count('\t') * tabsize,
    'translate': lambda text, table: (
        len(text) * max((len(str(to)) for to in table.values()), default=1)
    ),
    'to_bytes': lambda _, length=1, *__, **___: length,
}
FILTERS = {
    'center': _wide,
    'indent': _indented,
    'replace': _replaced,
    'format': _percent,
    'tojson': _as_json,
    'join': lambda values, d='', attribute=None: _joined(d, values),
    'batch': lambda values, linecount, fill_with=None: linecount,
    'wordwrap': lambda text, width=79, break_long_words=True, wrapstring='', **_: (
        len(text) * (1 + len(wrapstring or ''))
    ),
    'sum': lambda values, attribute=None, start=0: (
        len(values) * _weight(values) if isinstance(start, list | tuple) else 0
    ),
    'int': lambda value, default=0, base=10: (
        len(value) * (LARGEST // BITS) if isinstance(value, str) else 0
    ),
    'round': lambda value, precision=0, method='': 1000 * abs(precision),
    'slice': lambda value, slices, fill_with=None: NODE * slices,
    'sort': lambda value, *_, **__: NODE * len(value),
}
# Of transformers; a field of a date may be made up to 256 times as long as its format.
FUNCTIONS = {'strftime_now': lambda pattern: 256 * len(pattern)}


def _measure(size: Callable[..., int], *arguments: Any, **named: Any) -> None:
    if _state.weights is None:
        return
    try:
        result = size(*arguments, **named)
    except (TypeError, ValueError, AttributeError):
        return  # not what the function takes: it says so itself
    _count(result)


class _Filters(dict):
    """Filters by name, each with the bounds; transformers puts in some of its own."""

    def __setitem__(self, name: str, function: Callable) -> None:
        size = FILTERS.get(name)
        # Some are given the environment first.
        first = hasattr(function, 'jinja_pass_arg')

        @functools.wraps(function)
        def bounded(*arguments: Any, **named: Any) -> Any:
            if size is not None:
                _measure(size, *arguments[first:], **named)
            return _weighed(function(*arguments, **named))

        super().__setitem__(name, bounded)


class _Generator(jinja2.compiler.CodeGenerator):
    """Has `~`, and lists that are spelt out, made by the environment."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:
        self.write('environment.concat(map(str, (')
        for part in node.nodes:
            self.visit(part, frame)
            self.write(', ')
        self.write(')))')

    def visit_List(self, node: jinja2.nodes.List, frame: jinja2.compiler.Frame) -> None:
        self._weighed(super().visit_List, node, frame)

    def visit_Dict(self, node: jinja2.nodes.Dict, frame: jinja2.compiler.Frame) -> None:
        self._weighed(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: jinja2.nodes.Tuple, frame: jinja2.compiler.Frame) -> None:
        self._weighed(super().visit_Tuple, node, frame)

    def _weighed(self, visit: Callable, node: Any, frame: jinja2.compiler.Frame) -> None:
        known = getattr(node, 'ctx', 'load') != 'load' or all(
            isinstance(item, jinja2.nodes.Const) for item in node.items
        )
        if not known:
            self.write('environment.weighed(')
        visit(node, frame)
        if not known:
            self.write(')')


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox of transformers, with the bounds."""

    intercepted_binops = frozenset(('+', '*', '**', '%'))
    code_generator_class = _Generator

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        filters = _Filters()
        for name, function in self.filters.items():
            filters[name] = function
        self.filters = filters
        self.weighed = _weighed

    def concat(self, pieces: Iterable[str]) -> str:
        kept, size = [], 0
        for piece in pieces:
            size += len(piece)
            _admit(size)
            if piece:
                kept.append(piece)
        _count(size)
        return ''.join(kept)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        kinds = type(left), type(right)
        if operator == '+' and kinds == (list, list):
            return _extended(left, right)
        if operator == '+' and hasattr(left, '__len__') and hasattr(right, '__len__'):
            if len(left) + len(right) > SMALL:
                _count(len(left) + len(right))
            return _weighed(left + right)
        if operator == '%' and isinstance(left, str):
            _measure(_percent, left, *(right if isinstance(right, tuple) else [right]))
        elif operator == '*' and (hasattr(left, '__len__') or hasattr(right, '__len__')):
            _measure(lambda: len(left) * right if hasattr(left, '__len__') else len(right) * left)
        elif (
            operator in ('*', '**')
            and kinds == (int, int)
            and (
                left.bit_length() + right.bit_length()
                if operator == '*'
                else left.bit_length() * max(right, 0)
            )
            > BITS
            and _state.weights is not None
        ):
            raise TooMuch(f'makes an integer of more than {BITS:,} bits')
        return _weighed(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __function: Any, *arguments: Any, **named: Any) -> Any:  # noqa: B902, N805
        name = getattr(__function, '__name__', '')
        if name in FUNCTIONS:
            _measure(FUNCTIONS[name], *arguments, **named)
        size = METHODS.get(name)
        if size is not None:
            # `format` comes wrapped by the sandbox.
            owner = getattr(getattr(__function, '__wrapped__', __function), '__self__', None)
            if isinstance(owner, str | int):
                arguments = tuple(map(list, arguments)) if size is _joined else arguments
                _measure(size, owner, *arguments, **named)
        result = super().call(__context, __function, *arguments, **named)
        if isinstance(result, jinja2.utils.Namespace):
            result.__class__ = _namespace(type(result))
        return _weighed(result)


@functools.cache
def _namespace(kind: type) -> type:
    """Derives a namespace class that is written out only where it holds no other namespace. These
    can change, so they cannot be weighed once."""

    def written(namespace: Any) -> str:
        _weighed(dict(namespace._Namespace__attrs))
        return kind.__repr__(namespace)

    return type(kind.__name__, (kind,), {'__repr__': written})


def _extended(left: list, right: list) -> list:
    """Returns left + right; a list that grows by entries is not weighed or kept anew each time."""
    extended = left + right
    if _state.weights is not None:
        weight = _weight(left) + _weight(right)
        _admit(weight)
        _count(_weight(right))
        _state.weights.pop(id(left))
        _state.weights[id(extended)] = extended, weight
    return extended


# Renderings in progress: thread -> (its processor clock, what that said when it began).
_running: dict[int, tuple[int | None, float]] = {}
_watcher: threading.Thread | None = None


def _within_time(work: Callable[[], str]) -> str:
    global _watcher
    if _watcher is None or not _watcher.is_alive():
        _watcher = threading.Thread(target=_watch, name='template watcher', daemon=True)
        _watcher.start()
    thread = threading.get_ident()
    # Where threads have no such clock, the time of day.
    clock = time.pthread_getcpuclockid(thread) if hasattr(time, 'pthread_getcpuclockid') else None
    began = _now(clock)
    try:
        _running[thread] = clock, began
        return work()
    finally:
        _leave(thread, clock, began)


def _leave(thread: int, clock: int | None, began: float) -> None:
    """Ends a rendering; what the watcher has thrown, or is about to, arrives here and nowhere
    later."""
    late = False
    while True:
        try:
            _running.pop(thread, None)
            if late or _now(clock) - began > SECONDS:
                time.sleep(2 * POLL)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)
            return
        except _TimeUp:
            late = True


def _watch() -> None:
    while True:
        time.sleep(POLL)
        for thread, (clock, began) in list(_running.items()):
            try:
                late = _now(clock) - began > SECONDS
            except OSError:  # the thread has ended
                continue
            if late and _running.get(thread, (None, None))[1] == began:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread), ctypes.py_object(_TimeUp)
                )


def _now(clock: int | None) -> float:
    return time.monotonic() if clock is None else time.clock_gettime(clock)
