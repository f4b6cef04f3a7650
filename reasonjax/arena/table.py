"""From cells to what a comparison can say: one row per task and recipe, with intervals, paired
differences and verdicts."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from reasonjax.arena import statistics as comparison_statistics
from reasonjax.arena.results import COSTS, MODES, Cell
from reasonjax.errors import UserError, listing, nearest
from reasonjax.training.statistics import wilson

SPLITS = ('test', 'ood')
MEASURES = tuple(f'{split}/{mode}' for split in SPLITS for mode in MODES)
LEVEL = 0.05  # of the verdicts, after Holm's adjustment; intervals cover the rest

BETTER, WORSE, SAME = 'better', 'worse', 'not significant'
BASELINE, UNTESTED, FAILED = 'baseline', 'not tested', 'failed'


class Estimate(NamedTuple):
    """A mean over seeds and its 95 % interval, None with one seed."""

    mean: float
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """A recipe minus the baseline over the seeds that both have.

    Attributes:
      mean, low, high: of accuracy, 0 to 1; no interval with one seed.
      p, p_holm: two-sided; Holm's covers the whole comparison and is there for its measure only.
      sd: standard deviation of the difference between seeds.
      smallest: the smallest true difference that this number of seeds detects with a power of 80 %;
        None where no spread was seen.
      seeds: those that were paired.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    sd: float | None
    smallest: float | None
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One recipe on one task.

    Attributes:
      task, recipe: names.
      seeds, failed: seeds of the cells that are done, and of those that failed.
      error: what the first failed cell said.
      accuracy: measure ('test/greedy', ...) -> accuracy over the seeds that are done.
      before: measure -> mean accuracy of the checkpoint that training started from.
      differences: measure -> difference to the baseline; empty for the baseline itself.
      verdict: 'better', 'worse' or 'not significant' for the comparison's measure; 'baseline',
        'not tested' or 'failed'.
      forgetting: mean over the splits 'other:<task>' of greedy accuracy after minus before; below 0
        something was lost.
      length: mean response length on 'test', tokens.
      cost: medians over the seeds that are done.
    """

    task: str
    recipe: str
    seeds: tuple[int, ...]
    failed: tuple[int, ...]
    error: str
    accuracy: dict[str, Estimate]
    before: dict[str, float]
    differences: dict[str, Difference]
    verdict: str
    forgetting: Estimate | None
    length: float | None
    cost: dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Table:
    """A comparison: rows by task, the baseline first; `problems` is task -> split -> number;
    `notes` say what is missing in it."""

    baseline: str
    measure: str
    rows: tuple[Row, ...]
    problems: dict[str, dict[str, int]]
    notes: tuple[str, ...]

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(row.task for row in self.rows))

    @property
    def recipes(self) -> list[str]:
        """The baseline, then the others as they first come."""
        return list(dict.fromkeys([self.baseline, *(row.recipe for row in self.rows)]))

    def row(self, task: str, recipe: str) -> Row | None:
        return next((row for row in self.rows if (row.task, row.recipe) == (task, recipe)), None)


def build(cells: Sequence[Cell], baseline: str, *, measure: str = 'test/greedy') -> Table:
    """Compares recipes.

    A recipe is better or worse than the baseline where both hold: its p-value, adjusted after Holm
    over every tested (task, recipe) of the measure, is at most 5 %, and the interval of the
    difference, which counts problems as a sample too, leaves 0 out.

    Args:
      cells: in the order in which tasks and recipes are to be shown; failed ones as well.
      baseline: the recipe that the others are compared with.
      measure: what verdicts are about: 'test/greedy', 'test/sampled', 'ood/greedy' or
        'ood/sampled'.

    Raises:
      UserError: no cells, an unknown baseline or measure, a cell that is given twice, or cells of
        one task that did not answer the same problems.
    """
    if not cells:
        raise UserError('cells: there is nothing to compare.')
    recipes = list(dict.fromkeys(cell.recipe for cell in cells))
    for name, value, choices in (('baseline', baseline, recipes), ('measure', measure, MEASURES)):
        if value not in choices:
            raise UserError(
                f'{name}="{value}": expected one of {listing(choices)}.{nearest(value, choices)}'
            )
    recipes = [baseline, *(recipe for recipe in recipes if recipe != baseline)]
    by_pair: dict[tuple[str, str], dict[int, Cell]] = {}
    for cell in cells:
        seeds = by_pair.setdefault((cell.task, cell.recipe), {})
        if cell.seed in seeds:
            raise UserError(
                f'cells: {cell.recipe} on {cell.task} with seed {cell.seed} is given twice.'
            )
        seeds[cell.seed] = cell
    rows, problems, notes = [], {}, []
    for task in dict.fromkeys(cell.task for cell in cells):
        problems[task] = _problems([cell for cell in cells if cell.task == task and cell.done])
        arms = {
            recipe: _Arm(by_pair[task, recipe]) for recipe in recipes if (task, recipe) in by_pair
        }
        rows += [
            _row(task, recipe, arm, arms.get(baseline), recipe == baseline)
            for recipe, arm in arms.items()
        ]
        notes += _gaps(task, arms, baseline)
    return Table(baseline, measure, tuple(_judged(rows, measure)), problems, tuple(notes))


class _Arm:
    """The cells of a task and a recipe, by seed."""

    def __init__(self, cells: Mapping[int, Cell]):
        self.done = {seed: cells[seed] for seed in sorted(cells) if cells[seed].done}
        self.failed = {seed: cells[seed] for seed in sorted(cells) if not cells[seed].done}

    def outcomes(
        self, measure: str, seeds: Sequence[int], part: str = 'correct'
    ) -> np.ndarray | None:
        """Returns the outcomes [S, N] of a measure, or None where a seed lacks the measure."""
        split, mode = measure.rsplit('/', 1)
        rows = [getattr(self.done[seed], part).get(split, {}).get(mode) for seed in seeds]
        return np.array(rows, np.float64) if rows and all(rows) else None


def _problems(cells: Sequence[Cell]) -> dict[str, int]:
    """Returns split -> number of problems; raises UserError unless all cells of a task agree."""
    sizes = [
        {
            (split, mode): len(outcomes)
            for split, modes in cell.correct.items()
            for mode, outcomes in modes.items()
            if outcomes
        }
        for cell in cells
    ]
    for cell, size in zip(cells[1:], sizes[1:]):
        odd = sorted(key for key in {*sizes[0], *size} if sizes[0].get(key) != size.get(key))
        if odd:
            there, here = sizes[0].get(odd[0], 0), size.get(odd[0], 0)
            raise UserError(
                f'cells: on {cell.task}, {cell.recipe} with seed {cell.seed} answered {here} '
                f'problems of {"/".join(odd[0])}, '
                f'{cells[0].recipe} with seed {cells[0].seed} {there}; only the same problems can '
                'be paired.'
            )
    return {split: size for (split, _), size in (sizes[0] if sizes else {}).items()}


def _row(task: str, recipe: str, arm: _Arm, base: _Arm | None, is_baseline: bool) -> Row:
    seeds = tuple(arm.done)
    accuracy, before, differences = {}, {}, {}
    for measure in MEASURES:
        outcome_SxN = arm.outcomes(measure, seeds)
        if outcome_SxN is None:
            continue
        accuracy[measure] = _estimate(outcome_SxN)
        start = arm.outcomes(measure, seeds, 'before')
        if start is not None:
            before[measure] = float(start.mean())
        common = [seed for seed in seeds if base is not None and seed in base.done]
        if not is_baseline and common:
            differences[measure] = _difference(
                arm.outcomes(measure, common), base.outcomes(measure, common), tuple(common)
            )
    lengths = [
        cell.length['test'] for cell in arm.done.values() if cell.length.get('test') is not None
    ]
    return Row(
        task,
        recipe,
        seeds,
        tuple(arm.failed),
        next((cell.error for cell in arm.failed.values()), ''),
        accuracy,
        before,
        differences,
        BASELINE if is_baseline else UNTESTED,
        _forgetting(arm),
        statistics.fmean(lengths) if lengths else None,
        {name: _median([cell.cost[name] for cell in arm.done.values()]) for name in COSTS},
    )


def _estimate(values_SxN: np.ndarray) -> Estimate:
    mean = float(values_SxN.mean())
    S, N = values_SxN.shape
    if S < 2 or N < 2:
        return Estimate(mean, None, None)
    if mean in (0, 1):  # nothing varies; what is known is that N problems gave no other answer
        return Estimate(mean, *wilson(round(mean * N), N))
    low, high = comparison_statistics.crossed_interval(values_SxN)
    return Estimate(mean, max(0.0, low), min(1.0, high))


def _difference(values_SxN: np.ndarray, base_SxN: np.ndarray, seeds: tuple[int, ...]) -> Difference:
    if min(values_SxN.shape) < 2:
        return Difference(
            float((values_SxN - base_SxN).mean()), None, None, None, None, None, None, seeds
        )
    paired = comparison_statistics.paired(values_SxN, base_SxN)
    low, high = paired.low, paired.high
    if (values_SxN == base_SxN).all():  # no problem told them apart; of N, this many could have
        high = wilson(0, values_SxN.shape[1])[1]
        low = -high
    smallest = comparison_statistics.smallest_effect(paired.sd, paired.seeds) if paired.sd else None
    return Difference(paired.mean, low, high, paired.p, None, paired.sd, smallest, seeds)


def _forgetting(arm: _Arm) -> Estimate | None:
    changes = []
    for split in dict.fromkeys(
        split for cell in arm.done.values() for split in cell.correct if split.startswith('other:')
    ):
        after, before = (
            arm.outcomes(f'{split}/greedy', tuple(arm.done), part) for part in ('correct', 'before')
        )
        if after is not None and before is not None:
            changes.append(after - before)
    if not changes:
        return None
    # Each split counts the same, however many problems it has.
    total = sum(change.shape[1] for change in changes)
    change_SxN = np.concatenate(
        [change * total / (len(changes) * change.shape[1]) for change in changes], 1
    )
    if min(change_SxN.shape) < 2:
        return Estimate(float(change_SxN.mean()), None, None)
    return Estimate(float(change_SxN.mean()), *comparison_statistics.crossed_interval(change_SxN))


def _median(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return float(statistics.median(measured)) if measured else None


def _gaps(task: str, arms: Mapping[str, _Arm], baseline: str) -> list[str]:
    """Lists what is missing in a task; recipes that miss the same are named together."""
    notes: dict[str, list[str]] = {}
    base = arms.get(baseline)
    if base is None or not base.done:
        notes[f'{task}: the baseline %s has no finished run, so nothing is compared with it.'] = [
            baseline
        ]
    for recipe, arm in arms.items():
        if len(arm.done) == 1:
            notes.setdefault(
                f'{task}: one seed of %s, so no interval over seeds and no test; at least two are '
                'needed.',
                [],
            ).append(recipe)
        if recipe == baseline or base is None or not base.done or not arm.done:
            continue
        common = [seed for seed in arm.done if seed in base.done]
        every = sorted({*arm.done, *arm.failed, *base.done, *base.failed})
        if len(common) < len(every):
            which = f' ({", ".join(map(str, common))})' if common else ''
            notes.setdefault(
                f'{task}: %s and {baseline} are paired on {len(common)} of {len(every)} '
                f'seeds{which}.',
                [],
            ).append(recipe)
    return [note.replace('%s', ', '.join(recipes), 1) for note, recipes in notes.items()]


def _judged(rows: Sequence[Row], measure: str) -> list[Row]:
    """Returns rows with verdicts and with Holm's p-values over all rows that were tested."""
    tested = [
        index
        for index, row in enumerate(rows)
        if measure in row.differences and row.differences[measure].p is not None
    ]
    adjusted = dict(
        zip(
            tested,
            comparison_statistics.holm([rows[index].differences[measure].p for index in tested]),
        )
    )
    judged = []
    for index, row in enumerate(rows):
        if not row.seeds:
            row = dataclasses.replace(row, verdict=FAILED)
        elif index in adjusted:
            difference = row.differences[measure]._replace(p_holm=adjusted[index])
            seen = difference.p_holm <= LEVEL and not difference.low <= 0 <= difference.high
            verdict = (BETTER if difference.mean > 0 else WORSE) if seen else SAME
            row = dataclasses.replace(
                row, differences=row.differences | {measure: difference}, verdict=verdict
            )
        judged.append(row)
    return judged
