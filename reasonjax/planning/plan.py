"""The plan of a run: its programs compiled for devices that need not be here, and what the compiler
says of each."""

import dataclasses
import math
import pathlib
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections

from reasonjax.errors import check_choice
from reasonjax.model import spec
from reasonjax.planning import hlo, shapes
from reasonjax.planning.programs import PROGRAMS, Program, StagePrograms, plan_run, planned_stage
from reasonjax.planning.roofline import roofline
from reasonjax.planning.topology import Topology

# The compiler's two ways of saying what it needs: before it has scheduled the program, and after.
OUT_OF_MEMORY = (
    re.compile(r'CompileTimeHbmOom.*?\(([\d.]+)([KMGT]?)\) exceeds available HBM', re.DOTALL),
    re.compile(r'CompileTimeHbmOom.*?Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm', re.DOTALL),
)
LARGEST = 5
UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What is known of a program. Bytes are of one device; None where a program that does not fit
    tells nothing.

    Attributes:
      name: of the program.
      seconds: that compiling took.
      fits: whether all of it fits the memory of a device, together with what stays there while it
        runs.
      peak: most bytes in use, what stays there included; of a program that does not fit, what the
        compiler says it needs.
      limit: bytes there are.
      memory: kind -> bytes. 'incoming' is the reference: what the stage started from, and changed;
        'temporaries' are activations, gradients and whatever else exists only while the program
        runs, the caches it makes ('of_which_cache') included.
      flops, useful_flops: operations on all devices; the second without what is computed twice or
        masked.
      memory_traffic: bytes read and written, by the rule of `model.flops`.
      collectives: kind -> `times` and `bytes` sent.
      largest: the operations that send most, with what they come from.
      sent, sent_across: bytes over the interconnect and between slices.
      tokens: read or made.
      time: seconds by resource, the least in all, and what bounds it.
      tokens_per_second_per_chip, mfu: at most, by that bound.
    """

    name: str
    seconds: float
    fits: bool
    peak: float
    limit: float
    memory: dict[str, float]
    flops: float
    useful_flops: float
    memory_traffic: float
    tokens: int
    collectives: dict[str, dict[str, float]] | None = None
    largest: list[dict] | None = None
    sent: float | None = None
    sent_across: float | None = None
    time: dict[str, Any] | None = None
    tokens_per_second_per_chip: float | None = None
    mfu: float | None = None


def plan(
    config: ml_collections.ConfigDict,
    where: Topology,
    devices: list,
    *,
    stage: str = '',
    programs: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """Compiles the programs of a stage.

    Args:
      config: resolved.
      where: what to compile for.
      devices: its devices.
      stage: name of the stage; by default the last that reinforces, or else the last that trains.
      programs: which; all by default.
      say: takes lines of progress.

    Returns:
      What `--json` prints: `topology`, `mesh`, `stage`, `model`, `programs` (see `Compiled`),
      `fits`, `compile_seconds` and `peak_host_bytes` of this process so far.

    Raises:
      UserError: no such stage or program, or settings that the run itself would refuse.
    """
    run = plan_run(config, devices)
    planned = StagePrograms(run, planned_stage(config, stage))
    known = PROGRAMS[planned.settings.kind]
    for name in programs:
        check_choice(
            f'--program {name}: stage {planned.stage.name} has no such program',
            name,
            known,
            'It has',
        )
    results = []
    for program in planned.programs(tuple(programs)):
        say(f'compiling {program.name} ...')
        results.append(compiled(program, planned, where))
        say(
            f'compiling {program.name}: {results[-1].seconds:.1f} s, {results[-1].peak / 2**30:.2f} GiB'
        )
    return {
        'topology': {
            'name': where.name,
            'generation': where.chip.kind,
            'chips': where.chips,
            'devices': where.size,
            'slices': where.slices,
            'usable_bytes_per_device': finite(where.chip.usable),
        },
        'mesh': dict(run.mesh.shape),
        'stage': {
            'name': planned.stage.name,
            'rows': planned.rows,
            'tokens_per_row': planned.length,
            'accumulation': planned.settings.accumulation,
        },
        'model': {
            'parameters': spec.count(run.specs),
            'trainable': sum(x.size for x in jax.tree.leaves(planned.state.trainable)),
        },
        'programs': {one.name: as_json(one) for one in results},
        'fits': all(one.fits for one in results),
        'compile_seconds': sum(one.seconds for one in results),
        'peak_host_bytes': peak_host_bytes(),
    }


def compiled(program: Program, planned: StagePrograms, where: Topology) -> Compiled:
    """Compiles one program and reads off what it needs."""
    run, chip = planned.run, where.chip
    kinds = {kind: float(shapes.bytes_of(tree)) for kind, tree in program.kinds.items()}
    held = {kind: float(shapes.bytes_of(tree)) for kind, tree in program.held.items()}
    work = program.work(run)
    common = dict(
        name=program.name,
        limit=chip.usable,
        flops=sum(w.flops for w in work) * run.mesh.size,
        useful_flops=program.useful,
        memory_traffic=sum(w.memory for w in work),
        tokens=program.tokens,
    )
    started = time.perf_counter()
    outcome = compile_text(program.function, program.arguments, chip.kind != 'cpu')
    seconds = time.perf_counter() - started
    if isinstance(outcome, float):
        return Compiled(
            seconds=seconds, fits=False, peak=outcome, memory=_kinds(kinds, held), **common
        )
    stats, text = outcome
    output = max(0, stats.output_size_in_bytes - stats.alias_size_in_bytes)
    needed = stats.argument_size_in_bytes + stats.temp_size_in_bytes + output
    # Of programs for CPU the compiler leaves temporaries out of its own figure.
    peak = float(max(stats.peak_memory_in_bytes, needed) + sum(held.values()))
    memory = _kinds(kinds, held) | {
        'padding': max(0.0, stats.argument_size_in_bytes - sum(kinds.values())),
        'output': float(output),
        'temporaries': float(stats.temp_size_in_bytes),
        'code': float(stats.generated_code_size_in_bytes),
        'of_which_cache': float(shapes.bytes_of(program.cache)),
    }
    return Compiled(
        seconds=seconds,
        fits=peak <= chip.usable,
        peak=peak,
        memory=memory,
        **common,
        **_bound(program, planned, where, text),
    )


def _kinds(kinds: dict, held: dict) -> dict:
    """Returns kind -> bytes, of arguments and of what is held besides."""
    return {
        kind: kinds.get(kind, 0.0) + held.get(kind, 0.0)
        for kind in ('parameters', 'optimiser', 'incoming', 'cache', 'batch')
    }


def _bound(program: Program, planned: StagePrograms, where: Topology, text: str) -> dict:
    run, chip = planned.run, where.chip
    # A loop whose end is found while it runs is that of the sampler, which may run to the limit.
    longest = planned.settings.get('max_completion_length', 1)
    collectives = hlo.Module(text).collectives(
        run.mesh.size, slices=where.slices, open_loops=longest
    )
    sent = hlo.total([one for one in collectives if not one.across])
    across = hlo.total([one for one in collectives if one.across])
    largest = sorted(collectives, key=lambda one: -one.bytes)[:LARGEST]
    bound = dict(
        collectives=hlo.by_kind(collectives),
        largest=[dataclasses.asdict(one) for one in largest],
        sent=sent,
        sent_across=across,
    )
    if not chip.flops:
        return bound
    line = roofline(chip, program.work(run), sent, across)
    peak = chip.flops * where.chips
    return bound | {
        'time': line._asdict(),
        'tokens_per_second_per_chip': program.tokens / line.seconds / where.chips,
        'mfu': program.useful / line.seconds / peak,
    }


def compile_text(function: Any, arguments: tuple, dump: bool) -> tuple[Any, str] | float:
    """Compiles a program; returns the compiler's memory statistics and the program's text. Where
    memory is too small, returns the bytes that the program needs.

    Args:
      function: jitted.
      arguments: shapes with shardings.
      dump: take the text from the compiler's own files: asked for in memory, that of some TPU
        programs cannot be printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {'xla_dump_to': folder, 'xla_dump_hlo_as_text': True} if dump else {}
        try:
            done = function.lower(*arguments).compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            needed = bytes_needed(str(error))
            if needed is None:
                raise
            return needed
        if not dump:
            return done.memory_analysis(), done.as_text()
        files = sorted(
            pathlib.Path(folder).glob('*.after_optimizations.txt'),
            key=lambda path: path.stat().st_size,
        )
        return done.memory_analysis(), files[-1].read_text()


def bytes_needed(message: str) -> float | None:
    """Reads the bytes that a program needs on one device from an out-of-memory message. None for
    other messages."""
    number = next((match for pattern in OUT_OF_MEMORY if (match := pattern.search(message))), None)
    return None if number is None else float(number[1]) * UNITS[number[2]]


def as_json(one: Compiled) -> dict:
    """Returns the fields of a program for JSON, infinities as null."""
    return {
        name: finite(value) for name, value in dataclasses.asdict(one).items() if name != 'name'
    }


def finite(value: Any) -> Any:
    """Replaces an infinite value by None, as JSON has no infinity."""
    return None if isinstance(value, float) and math.isinf(value) else value


def peak_host_bytes() -> int:
    """Returns the most memory, in bytes, that this process has used so far."""
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
