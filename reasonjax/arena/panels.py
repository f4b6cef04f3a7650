"""What the panels of the figures show: accuracy against cost, differences, forgetting."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.ticker
import numpy as np

from reasonjax.arena.results import Cell
from reasonjax.arena.table import BETTER, FAILED, WORSE, Difference, Estimate, Row, Table
from reasonjax.reporting import pages


class Key(NamedTuple):
    """An entry of a legend; an empty marker is a line."""

    label: str
    colour: str
    marker: str
    filled: bool = True


def rows_of(table: Table, task: str) -> list[Row]:
    """Returns the rows of a task."""
    return [row for row in table.rows if row.task == task]


def _points(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f'{100 * value:+.3g}' if abs(value) > 1e-9 else '0')


def band(runs: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean, lowest and highest y of runs, at every x of a run that all runs reach.

    A run is [n, 2] points (x, y) in order of x, interpolated linearly. Runs that share no x
    give empty arrays.

    Returns:
      x, mean, low, high; each [M].
    """
    low, high = max(run[0, 0] for run in runs), min(run[-1, 0] for run in runs)
    x = np.unique(np.concatenate([run[:, 0] for run in runs]))
    x = x[(x >= low) & (x <= high)]
    y_RxM = np.array([np.interp(x, run[:, 0], run[:, 1]) for run in runs])
    return x, y_RxM.mean(0), y_RxM.min(0), y_RxM.max(0)


def cost_unit(table: Table) -> tuple[str, str]:
    """Chooses the unit of cost: FLOPs if every finished row has them, else tokens, else seconds."""
    rows = [row for row in table.rows if row.seeds]
    for cost, unit in (('flops', 'training FLOPs'), ('tokens', 'tokens generated and trained on')):
        if rows and all(_spent(row.cost, cost) is not None for row in rows):
            return cost, unit
    return 'seconds', 'seconds'


def _spent(cost: Mapping[str, float | None], name: str) -> float | None:
    if name != 'tokens':
        return cost.get(name)
    parts = [cost.get('generated_tokens'), cost.get('trained_tokens')]
    return None if None in parts else sum(parts)


def has_cost(row: Row, measure: str, cost: str) -> bool:
    """Checks whether a row has both an accuracy and a cost."""
    return measure in row.accuracy and _spent(row.cost, cost) is not None


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the Pareto front of (cost, accuracy) points. No other point is cheaper and at least
    as accurate, or as cheap and more accurate."""
    best: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((cost, accuracy))
    return best


def draw_pareto(
    plot: Any,
    table: Table,
    cells: Sequence[Cell],
    task: str,
    cost: str,
    keys: Mapping[str, Key],
    ink: str,
) -> None:
    """Draws accuracy against cost, with the front."""
    pages.frame(plot, 'both', ink)
    reached, every = [], []
    for row in rows_of(table, task):
        if not has_cost(row, table.measure, cost):
            continue
        accuracy, key = row.accuracy[table.measure], keys[row.recipe]
        spent = [
            _spent(cell.cost, cost)
            for cell in cells
            if (cell.task, cell.recipe) == (task, row.recipe) and cell.done
        ]
        spent = [value for value in spent if value is not None]
        x = float(np.median(spent))
        reached.append((x, accuracy.mean))
        every += spent
        across = [[x - min(spent)], [max(spent) - x]] if len(spent) > 1 else None
        plot.errorbar(
            x,
            accuracy.mean,
            yerr=_errors(accuracy),
            xerr=across,
            color=key.colour,
            marker=key.marker,
            markersize=6,
            elinewidth=1.2,
        )
    if min(every) > 0 and max(every) > 10 * min(every):
        plot.set_xscale('log')
        plot.xaxis.set_major_locator(
            matplotlib.ticker.LogLocator(subs=(1, 3) if max(every) < 300 * min(every) else (1,))
        )
        plot.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        plot.set_xlim(min(every) / 1.5, max(every) * 1.5)
    else:
        plot.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6))
        plot.set_xlim(0, max(every) * 1.08 or 1)
    plot.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=''))
    plot.yaxis.set_major_formatter(lambda value, _: f'{100 * value:.3g} %')
    edge = front(reached)
    plot.step(
        [x for x, _ in edge] + [plot.get_xlim()[1]],
        [y for _, y in edge] + [edge[-1][1]],
        where='post',
        color=ink,
        linewidth=1,
        alpha=0.7,
        linestyle='--',
        zorder=1,
    )
    starts = [
        row.before[table.measure] for row in rows_of(table, task) if table.measure in row.before
    ]
    if starts:
        plot.axhline(float(np.mean(starts)), color=ink, linewidth=1, linestyle=':', zorder=1)


def _errors(estimate: Estimate | Difference) -> list[list[float]] | None:
    if estimate.low is None:
        return None
    # Where all or none is right, Wilson's interval begins at the mean; rounding must not put the
    # end beyond it.
    return [[max(0.0, estimate.mean - estimate.low)], [max(0.0, estimate.high - estimate.mean)]]


def draw_differences(
    plot: Any,
    table: Table,
    task: str,
    recipes: Sequence[str],
    keys: Mapping[str, Key],
    splits: Sequence[str],
    ink: str,
) -> None:
    """Draws differences to the baseline, a lane per recipe."""
    mode = table.measure.split('/')[1]
    _lanes(plot, recipes, ink)
    for y, recipe in enumerate(recipes):
        row = table.row(task, recipe)
        if row is None or not row.differences:
            _say(
                plot,
                y,
                'not run' if row is None else FAILED if not row.seeds else 'nothing to pair',
                ink,
            )
            continue
        for split, shift, size in zip(splits, (-0.14, 0.2), (6, 4)):
            difference = row.differences.get(f'{split}/{mode}')
            if difference is None:
                continue
            is_first = split == splits[0]
            filled = is_first and row.verdict in (BETTER, WORSE)
            plot.errorbar(
                difference.mean,
                y + shift,
                xerr=_errors(difference),
                color=keys[recipe].colour,
                marker='o' if is_first else 'D',
                markersize=size,
                elinewidth=1.6 if is_first else 0.9,
                alpha=1 if is_first else 0.75,
                markerfacecolor=keys[recipe].colour if filled else 'none',
            )


def draw_forgetting(plot: Any, table: Table, task: str, keys: Mapping[str, Key], ink: str) -> None:
    """Draws what other tasks lost, a lane per recipe."""
    _lanes(plot, list(keys), ink)
    for y, (recipe, key) in enumerate(keys.items()):
        row = table.row(task, recipe)
        if row is None or row.forgetting is None:
            _say(
                plot,
                y,
                'not run' if row is None else FAILED if not row.seeds else 'not measured',
                ink,
            )
            continue
        plot.errorbar(
            row.forgetting.mean,
            y,
            xerr=_errors(row.forgetting),
            color=key.colour,
            marker=key.marker,
            markersize=6,
            elinewidth=1.6,
        )


def _lanes(plot: Any, recipes: Sequence[str], ink: str) -> None:
    """Gives each recipe a lane, from the top down, and draws the line of no change."""
    pages.frame(plot, 'x', ink)
    plot.set_yticks(range(len(recipes)), recipes)
    plot.set_ylim(len(recipes) - 0.5, -0.5)
    plot.tick_params(axis='y', length=0)
    plot.axvline(0, color=ink, linewidth=1, zorder=1)
    plot.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6))
    _points(plot.xaxis)


def _say(plot: Any, y: float, text: str, ink: str) -> None:
    plot.text(
        0.02,
        y,
        text,
        transform=plot.get_yaxis_transform(),
        va='center',
        fontsize=8.5,
        color=ink,
        alpha=0.8,
    )
