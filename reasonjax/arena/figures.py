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

from reasonjax.arena.panels import (
    Key,
    band,
    cost_unit,
    draw_differences,
    draw_forgetting,
    draw_pareto,
    has_cost,
    rows_of,
)
from reasonjax.arena.results import Cell
from reasonjax.arena.table import Table
from reasonjax.reporting import pages

PAPER = '#333333'  # ink of the PNGs, on white
# and what a page shows for them
MARKERS = {'o': '●', 's': '■', 'D': '◆', '^': '▲', 'v': '▼', 'P': '✚', 'X': '✖', '*': '★'}
PANEL_INCHES = (3.5, 2.5)
PAGE_INCHES = (5.0, 2.8)


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
    """Builds the figures for which there is data. They show learning curves, accuracy against cost,
    differences, response length and forgetting."""
    # After eight recipes the colours come round; the markers are then shifted by one, so that 64
    # recipes differ.
    keys = {
        recipe: Key(recipe, pages.COLOURS[index % 8], list(MARKERS)[(index + index // 8) % 8])
        for index, recipe in enumerate(table.recipes)
    }
    cost, unit = cost_unit(table)
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
                if any(has_cost(row, table.measure, cost) for row in rows_of(table, task))
            ],
            lambda plot, task, ink: draw_pareto(plot, table, cells, task, cost, keys, ink),
            list(keys.values()),
        ),
        Drawing(
            'differences',
            f'Difference to {table.baseline}: {mode} accuracy',
            'Paired over seeds, with 95 % intervals over seeds and problems. Filled: better or '
            f'worse on {split} after correction by Holm.',
            'points',
            [task for task in table.tasks if any(row.differences for row in rows_of(table, task))],
            lambda plot, task, ink: draw_differences(
                plot, table, task, others, keys, (split, other), ink
            ),
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
            [task for task in table.tasks if any(row.forgetting for row in rows_of(table, task))],
            lambda plot, task, ink: draw_forgetting(plot, table, task, keys, ink),
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
    """Draws the panels as HTML figures, under one legend."""
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
