"""The figures of a comparison, a panel per task: each an SVG for a page, or all of them in one
PNG."""

import html
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.backends.backend_agg
import matplotlib.figure
import matplotlib.lines
import matplotlib.ticker
import numpy as np

from reasonjax.arena.results import Cell
from reasonjax.arena.table import BETTER, FAILED, WORSE, Difference, Estimate, Row, Table
from reasonjax.reporting import pages

PAPER = '#333333'  # ink of the PNGs, on white
# and what a page shows for them
MARKERS = {'o': '●', 's': '■', 'D': '◆', '^': '▲', 'v': '▼', 'P': '✚', 'X': '✖', '*': '★'}
PANEL_INCHES = (3.5, 2.5)
PAGE_INCHES = (5.0, 2.8)


class Key(NamedTuple):
    """An entry of a legend; an empty marker is a line."""

    label: str
    colour: str
    marker: str
    filled: bool = True


class Drawing(NamedTuple):
    """A figure of one panel per task.

    Attributes:
      name: of its file, without an ending.
      title, explanation: what it shows, and how to read it.
      axis: what the horizontal axis is.
      tasks: those with something to draw.
      panel: draws a task, `(axes, task, ink)`.
      keys: its legend.
      lines: rows of a panel with a name each, 0 where the vertical axis is a number.
    """

    name: str
    title: str
    explanation: str
    axis: str
    tasks: list[str]
    panel: Callable[[Any, str, str], None]
    keys: list[Key]
    lines: int = 0


def drawings(table: Table, cells: Sequence[Cell]) -> list[Drawing]:
    """The figures for which there is data: learning curves, accuracy against cost, differences,
    response length, forgetting."""
    # After eight recipes the colours come round; the markers are then shifted by one, so that 64
    # recipes differ.
    keys = {
        recipe: Key(recipe, pages.COLOURS[index % 8], list(MARKERS)[(index + index // 8) % 8])
        for index, recipe in enumerate(table.recipes)
    }
    cost, unit = _cost(table)
    split, mode = table.measure.split('/')
    other = 'ood' if split == 'test' else 'test'
    others = [recipe for recipe in table.recipes if recipe != table.baseline]
    panels = [
        _curves(
            table,
            cells,
            keys,
            'learning',
            'accuracy',
            'Learning curves: accuracy on validation problems',
        ),
        Drawing(
            'cost',
            f'Accuracy against cost: {split}, {mode}',
            'Upright bars are 95 % intervals, level ones the range of cost over seeds. The dashed '
            'line is the Pareto front: no recipe '
            'reached more for less. The dotted line is the accuracy before training.',
            f'{unit} (median over seeds)',
            [
                task
                for task in table.tasks
                if any(_has_cost(row, table.measure, cost) for row in _rows(table, task))
            ],
            lambda plot, task, ink: _pareto(plot, table, cells, task, cost, keys, ink),
            list(keys.values()),
        ),
        Drawing(
            'differences',
            f'Difference to {table.baseline}: {mode} accuracy',
            'Paired over seeds, with 95 % intervals over seeds and problems. Filled: better or '
            f'worse on {split} after correction by Holm.',
            'points',
            [task for task in table.tasks if any(row.differences for row in _rows(table, task))],
            lambda plot, task, ink: _forest(plot, table, task, others, keys, (split, other), ink),
            [
                Key(f'{split}, a difference', PAPER, 'o'),
                Key(f'{split}, none seen or not tested', PAPER, 'o', False),
                Key(other, PAPER, 'D', False),
            ],
            len(others),
        ),
        _curves(
            table, cells, keys, 'length', 'length', 'Response length on validation problems, tokens'
        ),
        Drawing(
            'forgetting',
            'Forgetting: greedy accuracy on other tasks, after minus before',
            'Mean of the other tasks with its 95 % interval; left of 0 something was lost.',
            'points',
            [task for task in table.tasks if any(row.forgetting for row in _rows(table, task))],
            lambda plot, task, ink: _changes(plot, table, task, keys, ink),
            [],
            len(table.recipes),
        ),
    ]
    return [drawing for drawing in panels if drawing.tasks]


def png(drawing: Drawing, path: str | os.PathLike) -> pathlib.Path:
    """Writes all panels as one PNG on white."""
    count = len(drawing.tasks)
    columns = count if count <= 3 else 2 if count == 4 else 3 if count <= 6 else 4
    rows = -(-count // columns)
    width, height = PANEL_INCHES
    if drawing.lines:
        height = 0.8 + 0.34 * drawing.lines
    with pages.style(drawing.name, PAPER):
        inches = max(7.0, width * columns)
        longest = max((len(key.label) for key in drawing.keys), default=0)
        # entries of the legend that fit in a row, about
        across = max(1, int(inches / (0.7 + 0.08 * longest)))
        size = (inches, height * rows + 0.8 + 0.22 * -(-len(drawing.keys) // across))
        figure = matplotlib.figure.Figure(size, dpi=150, layout='constrained', facecolor='white')
        figure.get_layout_engine().set(h_pad=0.09)
        matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
        figure.suptitle(drawing.title, x=0.01, ha='left', fontsize=12, fontweight='bold')
        for index, task in enumerate(drawing.tasks):
            plot = figure.add_subplot(rows, columns, index + 1)
            drawing.panel(plot, task, PAPER)
            plot.set_title(task, loc='left', fontsize=10)
            if index + columns >= count:
                plot.set_xlabel(drawing.axis)
            if drawing.lines and index % columns:
                plot.tick_params(labelleft=False)
        handles = [
            matplotlib.lines.Line2D(
                [],
                [],
                color=key.colour,
                marker=key.marker,
                markersize=6,
                linewidth=1.5,
                label=key.label,
                markerfacecolor=key.colour if key.filled else 'white',
            )
            for key in drawing.keys
        ]
        if handles:
            figure.legend(
                handles=handles,
                loc='outside lower center',
                ncols=min(len(handles), across),
                frameon=False,
            )
        path = pathlib.Path(path)
        figure.savefig(path, format='png')
    return path


def svgs(drawing: Drawing) -> str:
    """The panels as HTML figures, under one legend."""
    figures = []
    for task in drawing.tasks:
        # Names inside an SVG must differ from those of the next on the page.
        with pages.style(f'{drawing.name} {task}'):
            size = (PAGE_INCHES[0], 0.8 + 0.3 * drawing.lines) if drawing.lines else PAGE_INCHES
            figure = matplotlib.figure.Figure(size, layout='constrained')
            plot = figure.add_subplot()
            drawing.panel(plot, task, pages.INK)
            plot.set_xlabel(drawing.axis)
            figures.append(pages.figure(task, figure))
    entries = ''.join(
        '<span class="key"><span '
        f'style="color:{"currentColor" if key.colour == PAPER else key.colour}">'
        f'{MARKERS[key.marker] if key.filled else {"o": "○", "D": "◇"}[key.marker]}</span> '
        f'{html.escape(key.label)}</span>'
        for key in drawing.keys
    )
    legend = f'<p class="keys">{entries}</p>' if entries else ''
    return f'{legend}<div class="charts">{"".join(figures)}</div>'


def _rows(table: Table, task: str) -> list[Row]:
    return [row for row in table.rows if row.task == task]


def _points(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f'{100 * value:+.3g}' if abs(value) > 1e-9 else '0')


# ---- Curves
# ------------------------------------------------------------------------------------------


def _curves(
    table: Table,
    cells: Sequence[Cell],
    keys: Mapping[str, Key],
    name: str,
    quantity: str,
    title: str,
) -> Drawing:
    runs: dict[tuple[str, str], list[np.ndarray]] = {}
    for cell in cells:
        points = [
            (point['trained_tokens'] + point['generated_tokens'], point[quantity])
            for point in cell.curve
            if None not in (point['trained_tokens'], point['generated_tokens'], point[quantity])
        ]
        if cell.done and points:
            runs.setdefault((cell.task, cell.recipe), []).append(
                np.array(sorted(points), np.float64)
            )

    def panel(plot: Any, task: str, ink: str) -> None:
        pages.frame(plot, 'y', ink)
        ends: list[float] = []
        for recipe, key in keys.items():
            if (task, recipe) not in runs:
                continue
            x, mean, low, high = band(runs[task, recipe])
            plot.plot(x, mean, color=key.colour, linewidth=1.6)
            # tells lines apart without colour
            plot.plot(x[-1:], mean[-1:], color=key.colour, marker=key.marker, markersize=5.5)
            if len(runs[task, recipe]) > 1:
                plot.fill_between(x, low, high, color=key.colour, alpha=0.18, linewidth=0)
            ends += x[-1:].tolist()
        plot.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6))
        # or the short ones would be upright lines at the left
        if ends and max(ends) > 20 * min(ends) > 0:
            start = 10 ** math.floor(math.log10(min(ends) / 5))
            plot.set_xscale('symlog', linthresh=start, linscale=0.6)
            plot.set_xlim(0, 1.3 * max(ends))
            plot.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        plot.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=''))
        if quantity == 'accuracy':
            plot.yaxis.set_major_formatter(lambda value, _: f'{100 * value:.3g} %')
        else:
            plot.set_ylim(bottom=0)

    tasks = [task for task in table.tasks if any((task, recipe) in runs for recipe in keys)]
    shown = [key for recipe, key in keys.items() if any((task, recipe) in runs for task in tasks)]
    explanation = 'Mean over seeds; the band spans the lowest and the highest seed. A line ends where its first seed does.'
    return Drawing(name, title, explanation, 'tokens generated and trained on', tasks, panel, shown)


def band(runs: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lowest and highest over runs, each [n, 2] points (x, y) in order of x, at every x of
    any run that all of them reach.

    Between its points a run goes straight. Runs that share no x give empty arrays.

    Returns:
      x, mean, low, high; each [M].
    """
    low, high = max(run[0, 0] for run in runs), min(run[-1, 0] for run in runs)
    x = np.unique(np.concatenate([run[:, 0] for run in runs]))
    x = x[(x >= low) & (x <= high)]
    y_RxM = np.array([np.interp(x, run[:, 0], run[:, 1]) for run in runs])
    return x, y_RxM.mean(0), y_RxM.min(0), y_RxM.max(0)


# ---- Cost
# ------------------------------------------------------------------------------------------


def _cost(table: Table) -> tuple[str, str]:
    """What cost is counted in: FLOPs where every finished row has them, else tokens, else
    seconds."""
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


def _has_cost(row: Row, measure: str, cost: str) -> bool:
    return measure in row.accuracy and _spent(row.cost, cost) is not None


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, accuracy) points that no other beats: none is cheaper and at least as accurate, or
    as cheap and more accurate."""
    best: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((cost, accuracy))
    return best


def _pareto(
    plot: Any,
    table: Table,
    cells: Sequence[Cell],
    task: str,
    cost: str,
    keys: Mapping[str, Key],
    ink: str,
) -> None:
    pages.frame(plot, 'both', ink)
    reached, every = [], []
    for row in _rows(table, task):
        if not _has_cost(row, table.measure, cost):
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
        row.before[table.measure] for row in _rows(table, task) if table.measure in row.before
    ]
    if starts:
        plot.axhline(float(np.mean(starts)), color=ink, linewidth=1, linestyle=':', zorder=1)


def _errors(estimate: Estimate | Difference) -> list[list[float]] | None:
    if estimate.low is None:
        return None
    # Where all or none is right, Wilson's interval begins at the mean; rounding must not put the
    # end beyond it.
    return [[max(0.0, estimate.mean - estimate.low)], [max(0.0, estimate.high - estimate.mean)]]


# ---- Differences
# ------------------------------------------------------------------------------------------


def _forest(
    plot: Any,
    table: Table,
    task: str,
    recipes: Sequence[str],
    keys: Mapping[str, Key],
    splits: Sequence[str],
    ink: str,
) -> None:
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


def _changes(plot: Any, table: Table, task: str, keys: Mapping[str, Key], ink: str) -> None:
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
    """A lane per recipe from the top down, and the line of no change."""
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
