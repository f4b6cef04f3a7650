"""What to change in a run that does not fit: candidates are compiled, smallest change first, until
one does."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import ml_collections

from reasonjax import config as configs
from reasonjax.errors import UserError
from reasonjax.model.config import ModelConfig
from reasonjax.parallel.layout import ROWS
from reasonjax.planning import shapes
from reasonjax.planning.plan import Compiled, compiled
from reasonjax.planning.programs import StagePrograms, plan_run, planned_stage
from reasonjax.planning.topology import Topology
from reasonjax.training.context import at_once

Overrides = tuple[tuple[str, str], ...]
SMALLEST_CHUNK, LARGEST_CHUNK = 128, 512
EVERYTHING = ('train', 'score', 'prefill', 'decode', 'iteration')


class Candidate(NamedTuple):
    """A change of the config.

    Attributes:
      what: in words.
      overrides: on the command line.
      programs: those it can make smaller.
    """

    what: str
    overrides: Overrides
    programs: tuple[str, ...]


class Trial(NamedTuple):
    """What came of a candidate: the programs compiled with it, and why it was not compiled if it
    was not."""

    candidate: Candidate
    programs: tuple[Compiled, ...]
    refused: str

    @property
    def fits(self) -> bool:
        return not self.refused and all(one.fits for one in self.programs)


def search(
    config: ml_collections.ConfigDict,
    where: Topology,
    devices: list,
    stage: str,
    names: Sequence[str],
    failing: Sequence[str],
    say: Callable[[str], None],
) -> list[Trial]:
    """Tries changes in order of how small they are; the last trial is the one that fits, if any
    does.

    Args:
      config: resolved.
      where, devices: what to compile for.
      stage: its name.
      names: programs that must fit.
      failing: those that do not.
      say: takes lines of progress.
    """
    trials = []
    planned = StagePrograms(plan_run(config, devices), planned_stage(config, stage))
    for candidate in candidates(planned):
        if not set(failing) <= set(candidate.programs):
            continue
        say(f'trying {command(candidate.overrides)}')
        trials.append(_tried(config, candidate, where, devices, stage, names, failing))
        if trials[-1].fits:
            break
    return trials


def command(overrides: Overrides) -> str:
    """Formats overrides as they are typed on the command line."""
    return ' '.join(f'--config.{key}={value}' for key, value in overrides)


def changed(config: ml_collections.ConfigDict, overrides: Overrides) -> ml_collections.ConfigDict:
    """Returns a copy of a config with overrides applied."""
    copy = config.copy_and_resolve_references().unlock()
    return configs.apply(copy, overrides)


def _tried(
    config: ml_collections.ConfigDict,
    candidate: Candidate,
    where: Topology,
    devices: list,
    stage: str,
    names: Sequence[str],
    failing: Sequence[str],
) -> Trial:
    try:
        other = changed(config, candidate.overrides)
        planned = StagePrograms(plan_run(other, devices), planned_stage(other, stage))
    except UserError as error:
        return Trial(candidate, (), str(error))
    # Those that failed come first: one that fails again says enough.
    ordered = [*failing, *(name for name in names if name not in failing)]
    programs: list[Compiled] = []
    for program in planned.programs(tuple(ordered)):
        resident = sum(
            shapes.bytes_of(tree)
            for kinds in (program.kinds, program.held)
            for tree in kinds.values()
        )
        if resident > where.chip.usable:
            return Trial(
                candidate,
                tuple(programs),
                f'{program.name}: {resident / 2**30:.1f} GiB of parameters, optimiser and batch '
                'alone',
            )
        programs.append(compiled(program, planned, where))
        if not programs[-1].fits:
            break
    return Trial(candidate, tuple(programs), '')


def candidates(planned: StagePrograms) -> Iterator[Candidate]:
    """Yields changes of a stage's config, smallest first. First come those that change no number,
    then other meshes, then other precision; each kind alone, then with all before it."""
    # Keys that a config leaves out cannot be set on the command line.
    there = planned.run.config.model
    free = [
        *_chunks(planned),
        *_accumulations(planned),
        *_prompts(planned),
        *_remat(planned.run.model),
    ]
    free = [
        one
        for one in free
        if all(
            key.partition('.')[0] != 'model' or key.partition('.')[2] in there
            for key, _ in one.overrides
        )
    ]
    meshes = list(_meshes(planned))
    coarse = list(_precision(planned))
    yield from free
    together = _joined('all of these together', [last for last in _last_of_each(free)])
    if len(together.overrides) > 1:
        yield together
    yield from meshes
    yield from (
        _joined(f'{mesh.what}, and all that changes no number', [together, mesh]) for mesh in meshes
    )
    yield from coarse
    widest = meshes[-1:]
    yield from (_joined(f'{one.what}, and all before', [together, *widest, one]) for one in coarse)


def _chunks(planned: StagePrograms) -> Iterator[Candidate]:
    for name, programs in (
        ('logprob_chunk', ('train', 'score', 'iteration')),
        ('attention_chunk', ('train', 'score', 'prefill', 'iteration')),
    ):
        if name == 'attention_chunk' and planned.run.model.attention_kernel != 'xla':
            continue  # the others never hold all scores
        now = getattr(planned.run.model, name) or planned.widest
        start = min(now, LARGEST_CHUNK)
        for smaller in (start, start // 2, start // 4):
            if SMALLEST_CHUNK <= smaller < now:
                yield Candidate(f'{name} {smaller}', ((f'model.{name}', str(smaller)),), programs)


def _accumulations(planned: StagePrograms) -> Iterator[Candidate]:
    c, name = planned.settings, planned.stage.name
    rows = planned.rows // (c.minibatches if planned.online else 1)
    ways = math.prod(planned.run.mesh.shape[axis] for axis in ROWS)
    for factor in (2, 4, 8, 16, 32, 64):
        more = c.accumulation * factor
        if rows % more == 0 and (rows // more) % ways == 0:
            yield Candidate(
                f'micro-batches of {rows // more} rows',
                ((f'{name}.accumulation', str(more)),),
                ('train', 'iteration'),
            )


def _prompts(planned: StagePrograms) -> Iterator[Candidate]:
    if not planned.online:
        return
    c, name, ways = (
        planned.settings,
        planned.stage.name,
        math.prod(planned.rollout_mesh.shape[axis] for axis in ROWS),
    )
    for factor in (2, 4, 8, 16, 32, 64):
        fewer, left = divmod(at_once(c), factor)
        if not left and fewer % ways == 0:
            yield Candidate(
                f'{fewer} prompts at once',
                ((f'{name}.prompts_at_once', str(fewer)),),
                ('prefill', 'decode', 'iteration'),
            )


def _remat(model: ModelConfig) -> Iterator[Candidate]:
    if model.remat != 'full':
        yield Candidate(
            'recompute all of a block', (('model.remat', 'full'),), ('train', 'iteration')
        )


def _meshes(planned: StagePrograms) -> Iterator[Candidate]:
    sizes, model = dict(planned.run.mesh.shape), planned.run.model
    data, fsdp, tensor = sizes['data'], sizes['fsdp'], sizes['tensor']
    for factor in (2, 4, 8, 16, 32, 64, 128, 256):
        if data % factor == 0:
            overrides = (('mesh.data', str(data // factor)), ('mesh.fsdp', str(fsdp * factor)))
            yield Candidate(f'fsdp {fsdp * factor}', overrides, EVERYTHING)
    for factor in (2, 4, 8, 16):
        wider = tensor * factor
        if (
            (data * fsdp) % factor
            or model.heads % wider
            or model.mlp_dim % wider
            or wider > max(model.kv_heads, tensor)
        ):
            continue
        from_fsdp = math.gcd(fsdp, factor)
        overrides = (
            ('mesh.data', str(data * from_fsdp // factor)),
            ('mesh.fsdp', str(fsdp // from_fsdp)),
            ('mesh.tensor', str(wider)),
        )
        yield Candidate(f'tensor {wider}', overrides, EVERYTHING)


def _precision(planned: StagePrograms) -> Iterator[Candidate]:
    if planned.run.model.param_dtype == 'float32':
        yield Candidate(
            'parameters and moments in bfloat16 (changes the result)',
            (('model.param_dtype', 'bfloat16'),),
            EVERYTHING,
        )


def _last_of_each(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Keeps the last candidate that sets each key: the one that changes it most."""
    return list({one.overrides[0][0]: one for one in candidates}.values())


def _joined(what: str, parts: Sequence[Candidate]) -> Candidate:
    """Joins several changes into one; where two set the same key, the later counts."""
    overrides: dict[str, str] = {}
    for part in parts:
        overrides |= dict(part.overrides)
    return Candidate(what, tuple(overrides.items()), EVERYTHING)
