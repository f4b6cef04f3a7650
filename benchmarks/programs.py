"""The compiled programs of a stage, one by one: how long each takes, how much of that is which kind
of operation."""

import glob
import math
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reasonjax.planning.programs import Program

# Kind -> opcodes; the first kind with one of them names a fusion.
KINDS = {
    'matrix products': ('dot', 'convolution'),
    'sorting, search': ('sort', 'topk'),
    'look-up, scatter': ('gather', 'scatter'),
    'random numbers': ('rng-bit-generator', 'rng'),
    'reductions': ('reduce', 'reduce-window'),
    'exponentials, roots': (
        'exponential',
        'tanh',
        'log',
        'logistic',
        'rsqrt',
        'sqrt',
        'power',
        'sine',
        'cosine',
        'erf',
        'log-plus-one',
    ),
    'arithmetic': (
        'add',
        'subtract',
        'multiply',
        'divide',
        'maximum',
        'minimum',
        'select',
        'compare',
        'and',
        'or',
        'negate',
        'xor',
    ),
}
COPIES = 'copies, transposes, slices'
AROUND = ('while', 'call', 'conditional')
# Where products of one program run.
LIBRARY = {'custom-call': re.compile(r'gemm|matmul|dot|onednn|cublas|cudnn', re.IGNORECASE)}


class Ceilings(NamedTuple):
    """What the machine can do: FLOP/s of a matrix product, bytes/s read and written by a copy."""

    matmul: float
    copy: float


def ceilings(dtype: str, size: int, megabytes: int, repeats: int = 20) -> Ceilings:
    """Measures them, the best of several.

    Args:
      dtype: of the product.
      size: of its square matrices.
      megabytes: of the array that is copied.
      repeats: of each.
    """
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product = jax.jit(lambda a, b: a @ b)
    x = jnp.zeros(megabytes * 2**20 // 4, jnp.float32)
    # Adds something, because a copy of the same bits might be none.
    copy = jax.jit(lambda x: x + 1)
    return Ceilings(
        2 * size**3 / min(times(lambda: product(a, a), repeats)),
        2 * x.nbytes / min(times(lambda: copy(x), repeats)),
    )


def times(call: Any, repeats: int, warm: int = 1) -> list[float]:
    """Seconds of each of several calls, after some that are not counted."""
    seconds = []
    for i in range(warm + repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        if i >= warm:
            seconds.append(time.perf_counter() - start)
    return seconds


def concrete(shapes: Any) -> Any:
    """Arrays of these shapes where their shardings say: ones as integers and a small number
    elsewhere, so that nothing is masked away."""

    def filled(x: jax.ShapeDtypeStruct) -> jax.Array:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return jnp.full(x.shape, 0.01 if jnp.issubdtype(x.dtype, jnp.inexact) else 1, x.dtype)

    # One program: there may be a hundred arrays.
    return jax.jit(
        lambda: jax.tree.map(filled, shapes),
        out_shardings=jax.tree.map(lambda x: x.sharding, shapes),
    )()


def calls(function: Any, arguments: tuple, trains: bool) -> Iterator[Any]:
    """Calls a program over and over; one that trains goes on from the state it has made, because
    the one before was given away."""
    while True:
        out = function(*arguments)
        if trains:
            arguments = (out[0], *arguments[1:])
        yield out


class Timed(NamedTuple):
    """A program as it ran.

    Attributes:
      seconds: median of several runs.
      flops: that its result needs.
      tokens: that it read or made.
      kinds: kind of operation -> share of the time of all operations.
    """

    seconds: float
    flops: float
    tokens: int
    kinds: dict[str, float]


def timed(program: Program, repeats: int = 3, traced: bool = True) -> Timed:
    """Runs a program with made-up arguments."""
    compiled = program.function.lower(*program.arguments).compile()
    run = calls(compiled, concrete(program.arguments), trains=program.name == 'train')
    seconds = statistics.median(times(lambda: next(run), repeats))
    kinds = {}
    if traced:
        kinds = by_kind(
            operations(lambda: jax.block_until_ready(next(run))), kinds_of(compiled.as_text())
        )
    return Timed(seconds, program.useful, program.tokens, kinds)


def operations(call: Any) -> dict[str, float]:
    """Seconds of each operation of what a call runs, summed over its runs."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        for file in glob.glob(f'{folder}/**/*.xplane.pb', recursive=True):
            for plane in jax.profiler.ProfileData.from_file(file).planes:
                for event in (event for line in plane.lines for event in line.events):
                    name = dict(event.stats or ()).get('hlo_op')
                    if name:
                        found[name] = found.get(name, 0.0) + event.duration_ns / 1e9
    return found


def kinds_of(text: str) -> dict[str, str]:
    """Operation -> kind, from the text of an optimised program; '' where an operation contains
    others, which are counted."""
    inside: dict[str, set[str]] = {}
    lines: list[tuple[str, str, str]] = []
    computation = ''
    for line in text.splitlines():
        head = re.match(r'\s*(?:ENTRY )?%?([\w.\-]+) (?:\(.*)?->.*{', line)
        if head:
            computation = head[1]
            continue
        found = re.match(r'\s*(?:ROOT )?%?([\w.\-]+) = .*?[\s)]([a-z][\w\-]*)\(', line)
        if found:
            inside.setdefault(computation, set()).add(found[2])
            lines.append((found[1], found[2], line))
    return {name: _kind(opcode, line, inside) for name, opcode, line in lines}


def _kind(opcode: str, line: str, inside: Mapping[str, set[str]]) -> str:
    called = re.search(r'(?:calls|to_apply)=%?([\w.\-]+)', line)
    if opcode in AROUND:
        return ''
    if opcode in LIBRARY:
        return 'matrix products' if LIBRARY[opcode].search(line) else 'library calls'
    opcodes = {opcode} | (inside.get(called[1], set()) if opcode == 'fusion' and called else set())
    return next((kind for kind, known in KINDS.items() if opcodes & set(known)), COPIES)


def by_kind(seconds: Mapping[str, float], kinds: Mapping[str, str]) -> dict[str, float]:
    """Kind -> share of the time of all operations, the largest first. Operations that the text does
    not have count as 'other'."""
    sums: dict[str, float] = {}
    for name, spent in seconds.items():
        if kind := kinds.get(name, 'other'):
            sums[kind] = sums.get(kind, 0.0) + spent
    total = math.fsum(sums.values())
    return (
        {kind: spent / total for kind, spent in sorted(sums.items(), key=lambda pair: -pair[1])}
        if total
        else {}
    )
