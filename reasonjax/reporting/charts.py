"""The curves of a run as charts, each an SVG: accuracy, length, reward, loss, seconds per phase."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np

from reasonjax.reporting import pages

POINTS = 400  # a curve is thinned to about this many points, each the mean of its neighbours


class Curve(NamedTuple):
    """A line of a chart: the metric, its name in the legend, and the metrics of its 95 % band."""

    key: str
    label: str
    low: str = ''
    high: str = ''


class Chart(NamedTuple):
    """A chart: its title, its lines, and how its values are shown."""

    title: str
    curves: tuple[Curve, ...]
    percent: bool = False
    stacked: bool = False


CHARTS = (
    Chart(
        'Accuracy on held-out problems',
        (
            Curve('eval_accuracy', 'greedy', 'eval_accuracy_lo', 'eval_accuracy_hi'),
            Curve(
                'eval_sampled_accuracy',
                'sampled',
                'eval_sampled_accuracy_lo',
                'eval_sampled_accuracy_hi',
            ),
        ),
        percent=True,
    ),
    Chart(
        'Response length, tokens',
        (
            Curve('eval_mean_length', 'held-out'),
            Curve('completions/mean_length', 'training, sampled'),
        ),
    ),
    Chart('Reward', (Curve('reward', 'mean reward'),)),
    Chart('Loss', (Curve('loss', 'loss'),)),
    Chart('Entropy, nats per token', (Curve('entropy', 'entropy'),)),
    Chart('KL to the reference', (Curve('kl', 'KL'),)),
    Chart('Tokens per second', (Curve('tokens_per_second', 'tokens/s'),)),
)


class _Axis:
    """The stages side by side, each as wide as the next: sixty steps of one must be as readable as
    a thousand of another.

    A stage spans the positions `start` (its step 0) to `start + 1` (its last step). One that has
    only step 0, such as an evaluation before any training, takes no room. Only stages with one of
    `keys` are there.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], keys: Sequence[str]):
        shown = {
            record['stage'] for record in records if any(_finite(record.get(key)) for key in keys)
        }
        self.steps: dict[str, int] = {}
        for record in records:
            if record['stage'] in shown:
                self.steps[record['stage']] = max(
                    self.steps.get(record['stage'], 0), record['step']
                )
        self.start: dict[str, int] = {}
        self.width = 0
        for stage, steps in self.steps.items():
            self.start[stage] = self.width
            self.width += min(steps, 1)
        self._records = records

    def series(self, keys: Sequence[str], stage: str | None = None) -> np.ndarray:
        """Returns position and values of records, [N, 1 + len(keys)]. These are the records that
        have the first key; nan where one lacks another."""
        rows = [
            (
                self.start[r['stage']] + r['step'] / max(self.steps[r['stage']], 1),
                *(r.get(key) for key in keys),
            )
            for r in self._records
            if _finite(r.get(keys[0])) and stage in (None, r['stage'])
        ]
        return np.array([[x if _finite(x) else math.nan for x in row] for row in rows]).reshape(
            -1, 1 + len(keys)
        )

    def ticks(self) -> tuple[list[float], list[str]]:
        """Returns positions and labels of ticks: the first, middle and last step of a stage. Of
        many stages only the last step."""
        positions, labels = [0.0], ['0']
        for stage, steps in self.steps.items():
            if not steps:
                continue
            if self.width <= 3 and steps > 1:
                positions.append(self.start[stage] + steps // 2 / steps)
                labels.append(str(steps // 2))
            positions.append(self.start[stage] + 1.0)
            labels.append(
                f'{steps} | 0'
                if self.width <= 3 and self.start[stage] + 1 < self.width
                else str(steps)
            )
        return positions, labels


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _thin(series: np.ndarray) -> np.ndarray:
    if len(series) <= POINTS:
        return series
    return np.array([chunk.mean(0) for chunk in np.array_split(series, POINTS)])


def draw_curves(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns the section of curves as HTML; '' where no record has any."""
    phases = list(
        dict.fromkeys(name for record in records for name in record if name.startswith('time/'))
    )
    times = Chart(
        'Time per step, seconds',
        tuple(Curve(name, name[len('time/') :]) for name in phases),
        stacked=True,
    )
    drawn = [svg for chart in (*CHARTS, times) if (svg := _draw(chart, records))]
    return (
        pages.section('Curves', '<div class="charts">' + ''.join(drawn) + '</div>') if drawn else ''
    )


def _draw(chart: Chart, records: Sequence[Mapping[str, Any]]) -> str:
    """Draws a chart as an SVG element in a figure; returns '' where no record has its metrics."""
    axis = _Axis(records, [curve.key for curve in chart.curves])
    present = [curve for curve in chart.curves if len(axis.series([curve.key]))]
    if not present:
        return ''
    with pages.style(chart.title):
        figure = matplotlib.figure.Figure(figsize=(5, 2.6), layout='constrained')
        plot = figure.add_subplot()
        (_stack if chart.stacked else _lines)(plot, present, axis)
        _frame(plot, chart, axis)
        if len(present) > 1:
            plot.legend(
                frameon=False,
                fontsize=9,
                ncols=min(len(present), 5),
                loc='lower left',
                bbox_to_anchor=(0, 1.0),
                borderpad=0,
                handlelength=1.2,
                handletextpad=0.5,
                columnspacing=1.2,
            )
        return pages.figure(chart.title, figure)


def _lines(plot: Any, curves: Sequence[Curve], axis: _Axis) -> None:
    for curve, colour in zip(curves, pages.COLOURS):
        keys = [key for key in (curve.key, curve.low, curve.high) if key]
        # Evaluations are one story through all stages; what is measured in training is another
        # quantity in each.
        pieces = [
            axis.series(keys, stage)
            for stage in ([None] if curve.key.startswith('eval_') else axis.steps)
        ]
        label = curve.label
        for piece in (_thin(piece) for piece in pieces if len(piece)):
            marker = 'o' if len(piece) <= 30 else None
            plot.plot(
                piece[:, 0],
                piece[:, 1],
                color=colour,
                marker=marker,
                markersize=3,
                linewidth=1.5,
                label=label,
            )
            label = None  # one entry in the legend for all pieces
            if curve.low:
                plot.fill_between(
                    piece[:, 0], piece[:, 2], piece[:, 3], color=colour, alpha=0.2, linewidth=0
                )


def _stack(plot: Any, curves: Sequence[Curve], axis: _Axis) -> None:
    labelled = False
    for stage in axis.steps:
        phases = [axis.series([curve.key], stage) for curve in curves]
        positions = np.unique(np.concatenate([phase[:, 0] for phase in phases]))
        seconds = np.zeros((len(positions), len(curves)))
        for number, phase in enumerate(phases):
            seconds[np.searchsorted(positions, phase[:, 0]), number] = phase[:, 1]
        values = _thin(np.column_stack([positions, seconds]))
        plot.stackplot(
            values[:, 0],
            values[:, 1:].T,
            labels=[] if labelled else [curve.label for curve in curves],
            colors=pages.COLOURS[: len(curves)],
            alpha=0.75,
            linewidth=0,
        )
        labelled = True


def _frame(plot: Any, chart: Chart, axis: _Axis) -> None:
    pages.frame(plot, 'y')
    plot.set_xlim(-0.02 * max(axis.width, 1), 1.02 * max(axis.width, 1))
    positions, labels = axis.ticks()
    plot.set_xticks(positions, labels)
    if chart.percent:
        plot.yaxis.set_major_formatter(lambda value, _: f'{100 * value:.0f} %')
        plot.set_ylim(-0.03, 1.03)
    elif chart.stacked:
        plot.set_ylim(bottom=0)
    for stage, start in axis.start.items():
        if start:
            plot.axvline(start, color=pages.INK, linewidth=0.8, linestyle=(0, (3, 3)))
        if axis.steps[stage]:
            plot.annotate(
                f'{stage} step' if axis.width <= 3 else stage,
                (start + 0.5, 0),
                (0, -20),
                ha='center',
                va='top',
                xycoords=('data', 'axes fraction'),
                textcoords='offset points',
                fontsize=9,
            )
