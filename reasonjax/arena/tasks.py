"""What a comparison is run on: small problems, the model that learns them, the checkpoint that
methods start from, and what is asked.

Each task has a warm start, a model that was trained on easy problems of it and on another task, so
that a method has something to build on and something to forget. It is trained once, from one seed;
methods differ from there on, and answer the same problems. Sizes are those of a small decoder on
one core for less than a minute.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from reasonjax import config as configs
from reasonjax import tasks
from reasonjax.bounds import AtLeast, Seed
from reasonjax.errors import UserError, listing, nearest

ALPHABET = '_.$M' + ''.join(sorted(set('#=,0123456789+-*/>:;|&!~%<@ABCDEFGHIJKLNOPQRSTUVWXYZ()?')))
PROBLEMS = ('levels', 'operations')
MODEL = dict(dim=96, layers=3, heads=4, kv_heads=4, head_dim=24, mlp_dim=384)


@dataclasses.dataclass(frozen=True)
class ArenaTask:
    """A task of a comparison.

    Attributes:
      task: a function of `reasonjax.tasks`.
      knobs: of it, for everything below.
      train: knobs of what methods are trained on.
      warm: knobs of what the warm start has learned.
      ood: knobs of problems out of distribution; None for none.
      beside: another task of the comparison, with prompts that look different, which the warm start
        has learned too: what a method may forget.
      max_prompt_length, max_completion_length: tokens.
      problems, validation_problems: of each part of the exam, and of the evaluations along
        training.
      demonstrations, prompts: that a supervised stage and an online one have.
      supervised_steps, online_steps: of a method without a budget.
      warm_steps: of the warm start.
      peaks: learning rates of supervised and of online stages.
      reward: of online stages; None for the task's rule, which then runs on tokens too.
      needs_model: there is no warm start to be trained: the checkpoint is a model of the user's.
      overlong: what becomes of a problem with more tokens: 'error', or 'drop' (and count) where the
        tokenizer is not known here.
    """

    task: str
    train: Mapping[str, Any]
    warm: Mapping[str, Any]
    max_prompt_length: int
    max_completion_length: int
    beside: str = ''
    knobs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ood: Mapping[str, Any] | None = None
    problems: int = 500
    validation_problems: int = 200
    demonstrations: int = 2000
    prompts: int = 20_000
    supervised_steps: int = 200
    online_steps: int = 40
    warm_steps: int = 1200
    peaks: tuple[float, float] = (1e-3, 2e-4)
    reward: Mapping[str, Any] | None = None
    needs_model: bool = False
    overlong: str = 'error'

    def node(self, split: str, size: int, seed: Any = 0, **more: Any) -> dict[str, Any]:
        """Returns the task as a config names it, with split, size and seed."""
        return (
            {'name': self.task}
            | dict(self.knobs)
            | more
            | {'split': split, 'size': size, 'seed': seed}
        )

    @property
    def asked(self) -> dict[str, Any]:
        """The knobs of `train` that say which problems there are, without those of
        demonstrations."""
        return {name: value for name, value in self.train.items() if name in PROBLEMS}

    def exam(self, of: str) -> dict[str, Any]:
        """Returns the problems of one kind: 'test', 'ood', 'validation' or 'warm'. The last are
        easy ones of the test split, for the exams of other tasks."""
        if of == 'validation':
            return self.node('validation', self.validation_problems, **self.asked)
        warm = {name: value for name, value in self.warm.items() if name in PROBLEMS}
        return self.node(
            'test',
            self.problems,
            **{'test': self.asked, 'ood': dict(self.ood or {}), 'warm': warm}[of],
        )


# Levels that are named several times are drawn as often.
ARENA = {
    # Arena A of the calibration: half of the demonstrations do not work the sum out, and are nearly
    # always wrong when imitated.
    'addition': ArenaTask(
        'addition',
        knobs=dict(disjoint=True),
        warm=dict(levels=(1, 2, 3, 4), answer_only=0.6),
        train=dict(levels=(2, 3, 4), answer_only=0.5),
        ood=dict(levels=(5,)),
        beside='tracking',
        max_prompt_length=12,
        max_completion_length=38,
    ),
    # Arena B: the hard levels are rare in the warm start, which ends before they are known; and
    # arena C: few demonstrations of them.
    'chain': ArenaTask(
        'chain',
        warm=dict(levels=(1, 2, 3) * 8 + (4, 5)),
        train=dict(levels=(4, 5)),
        ood=dict(levels=(6,)),
        demonstrations=300,
        beside='tracking',
        max_prompt_length=14,
        max_completion_length=50,
        warm_steps=700,
    ),
    # The same with every step written twice: what is masked can be read elsewhere.
    'chain_restated': ArenaTask(
        'chain',
        knobs=dict(restate=True, granularity=2),
        warm=dict(levels=(1, 2, 3) * 8 + (4, 5)),
        train=dict(levels=(4, 5)),
        ood=dict(levels=(6,)),
        demonstrations=300,
        beside='tracking',
        max_prompt_length=14,
        max_completion_length=76,
        warm_steps=1000,
    ),
    'countdown': ArenaTask(
        'countdown',
        knobs=dict(granularity=1),
        warm=dict(levels=(3,), operations='+*'),
        train=dict(levels=(3,), operations='+-*'),
        ood=dict(levels=(4,), operations='+-*'),
        beside='addition',
        max_prompt_length=10,
        max_completion_length=56,
        problems=180,
    ),
    'knights': ArenaTask(
        'knights',
        warm=dict(levels=(2,) * 8 + (3,)),
        train=dict(levels=(2, 3)),
        ood=dict(levels=(4,)),
        beside='addition',
        max_prompt_length=100,
        max_completion_length=80,
    ),
    'tracking': ArenaTask(
        'tracking',
        knobs=dict(machine='permutation', group=3),
        warm=dict(levels=(2, 3) * 8 + (4,)),
        train=dict(levels=(4, 6)),
        ood=dict(levels=(8,)),
        beside='addition',
        max_prompt_length=36,
        max_completion_length=38,
    ),
    'bayes': ArenaTask(
        'bayes',
        knobs=dict(net_seed=17, pairs=16, scaffold='stepwise'),
        warm=dict(),
        train=dict(),
        beside='addition',
        max_prompt_length=10,
        max_completion_length=120,
        problems=48,
        validation_problems=16,
        demonstrations=4000,
    ),
    # Half of the demonstrations go wrong somewhere and on from there.
    'noise': ArenaTask(
        'traces',
        knobs=dict(program='sum', digits=1),
        warm=dict(levels=(2, 3) * 8 + (4,)),
        train=dict(levels=(4, 5), contamination=0.5, intensity=0.3),
        ood=dict(levels=(7,)),
        beside='addition',
        max_prompt_length=18,
        max_completion_length=72,
    ),
    # From the folder that REASONJAX_DATA names, for a model that is given.
    'gsm8k': ArenaTask(
        'reasonjax.arena.gsm8k.gsm8k',
        warm=dict(),
        train=dict(),
        max_prompt_length=256,
        max_completion_length=256,
        problems=200,
        demonstrations=7500,
        prompts=7500,
        peaks=(1e-5, 1e-6),
        reward=dict(name='accuracy', extract='flexible', equality='number'),
        needs_model=True,
        overlong='drop',
    ),
}
GROUPS = {'arena': tuple(name for name, task in ARENA.items() if not task.needs_model)}


def find(names: str) -> list[str]:
    """Reads a list of tasks such as 'arena' or 'chain,knights'.

    Raises:
      UserError: no such task.
    """
    chosen: list[str] = []
    for name in filter(None, (part.strip() for part in names.split(','))):
        known = {*ARENA, *GROUPS}
        if name not in known:
            raise UserError(
                f'--tasks: no task "{name}".{nearest(name, known)} Known: {listing(GROUPS)}, '
                f'{listing(ARENA)}.'
            )
        chosen += [task for task in GROUPS.get(name, (name,)) if task not in chosen]
    if not chosen:
        raise UserError(f'--tasks: no task is named. Known: {listing(GROUPS)}, {listing(ARENA)}.')
    return chosen


class Exam:
    """Problems of several tasks one after the other, as one source: their rows, each with the
    `part` that it belongs to."""

    def __init__(self, parts: Mapping[str, Any]):
        self._parts = parts
        self._rows = [(name, i) for name, task in parts.items() for i in range(len(task.examples))]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> dict:
        name, at = self._rows[i]
        return self._parts[name].examples[at] | {'part': name}

    def where(self, i: int) -> str:
        name, at = self._rows[i]
        return self._parts[name].examples.where(at)

    def fingerprint(self) -> str:
        return ','.join(
            f'{name}:{task.examples.fingerprint()}' for name, task in self._parts.items()
        )


def exam(*, arena: str, validation: bool = False, problems: AtLeast(0) = 0) -> tasks.Task:
    """Builds the exam of one task: 'test', 'ood' and 'other:TASK', as the column `part` says.

    Args:
      arena: name of the task.
      validation: the split 'validation' alone.
      problems: of each part at most; 0 for as many as the task says.
    """
    task = ARENA[arena]
    nodes = {'validation': task.exam('validation')} if validation else {'test': task.exam('test')}
    if not validation:
        if task.ood is not None:
            nodes['ood'] = task.exam('ood')
        if task.beside:
            nodes[f'other:{task.beside}'] = ARENA[task.beside].exam('warm')
    parts = {
        name: _made(node | ({'size': min(problems, node['size'])} if problems else {}))
        for name, node in nodes.items()
    }

    def verify(completion: str, row: dict, terminated: bool) -> dict:
        return parts[row['part']].verify(completion, row, terminated)

    return tasks.Task(f'arena/{arena}', Exam(parts), verify)


def mixture(
    *, sources: tuple, split: str = 'train', size: AtLeast(1), seed: Seed = 0
) -> tasks.Task:
    """Interleaves problems of several tasks: problem i is number i // n of task i % n.

    Args:
      sources: n tasks, each `{'name': ..., **knobs}` without split, size and seed.
      split, size, seed: see `tasks.generated.Generated`.
    """
    number = -(-size // len(sources))
    parts = [_made(dict(node) | {'split': split, 'size': number, 'seed': seed}) for node in sources]
    return tasks.Task(
        'mixture', Interleaved(tuple(part.examples for part in parts), size), _unmarked
    )


@dataclasses.dataclass(frozen=True)
class Interleaved:
    """Rows of several sources in turn."""

    sources: tuple
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < self.size:
            raise IndexError(f'{self!r} has no row {i}')
        row = self.sources[i % len(self.sources)][i // len(self.sources)]
        return {name: row[name] for name in ('prompt', 'completion', 'solution')}

    def where(self, i: int) -> str:
        return self.sources[i % len(self.sources)].where(i // len(self.sources))

    def fingerprint(self) -> str:
        return ','.join(source.fingerprint() for source in self.sources)


def _made(node: Mapping[str, Any]) -> tasks.Task:
    return configs.resolve(node, 'task')()


def _unmarked(completion: str, row: dict, terminated: bool) -> dict:
    raise UserError('mixture: problems of several tasks are trained on, not marked; name one task.')
