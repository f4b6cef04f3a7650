"""One self-contained page about a run: what it reached, answers before and after, curves, samples,
settings.

`report.html` needs nothing but itself: curves are inline SVG that take their text colour from the
page, so it reads in a dark and in a light browser, on a phone, and from an e-mail. It is built from
what the workdir holds, so a run in progress or a run of one stage gives a shorter page, not an
error.
"""

import html
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reasonjax import files
from reasonjax.errors import one_line
from reasonjax.reporting import pages
from reasonjax.tracking import metrics
from reasonjax.tracking.completion_files import TABLE
from reasonjax.tracking.results import percent

POINTS = 400  # a curve is thinned to about this many points, each the mean of its neighbours
COMPLETION_FILES, COMPLETION_ROWS = 3, 8
TEXT_LIMIT = 2000


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


def write(workdir: str | os.PathLike) -> pathlib.Path:
    """Builds `report.html` from metrics.jsonl, summary.json, config.json, environment.json and
    completions/.

    Args:
        workdir: the folder of a run; whatever of these files is there is used.

    Returns:
        The file written.
    """
    workdir = pathlib.Path(workdir)
    path = workdir / 'metrics.jsonl'
    records = metrics.read(path) if path.is_file() else []
    summary = (
        files.json_object(workdir / 'summary.json') if (workdir / 'summary.json').is_file() else {}
    )
    parts = [
        _headline(workdir.resolve().name, summary, records),
        _results(summary.get('stages') or []),
        _examples(summary.get('examples') or []),
        _curves(records),
        _completions(
            sorted(
                p for p in (workdir / 'completions').glob('*.parquet') if TABLE.fullmatch(p.name)
            )
        ),
        _settings('Config', _json(workdir / 'config.json')),
        _settings('Environment', _json(workdir / 'environment.json')),
    ]
    return pages.write(workdir / 'report.html', f'reasonjax: {workdir.resolve().name}', parts)


def _json(path: pathlib.Path) -> Any:
    return files.read_json(path) if path.is_file() else None


def _headline(name: str, summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    stages = [stage for stage in summary.get('stages') or [] if stage.get('accuracy') is not None]
    if stages:
        steps = ' → '.join(
            f'<b>{100 * stage["accuracy"]:.1f} %</b> <span '
            f'class="quiet">{html.escape(stage["name"])}'
            '</span>'
            for stage in stages
        )
        status = f'Greedy accuracy on held-out problems: {steps}'
    elif records:
        status = f'In progress: stage {html.escape(str(records[-1]["stage"]))}, step {html.escape(str(records[-1]["step"]))}.'
    else:
        status = 'Nothing is recorded yet.'
    return f'<header><h1>{html.escape(name)}</h1><p class="lead">{status}</p></header>'


def _results(stages: Sequence[Mapping[str, Any]]) -> str:
    if not stages:
        return ''
    rows = []
    for stage in stages:
        cells = [
            html.escape(str(stage['name'])),
            _accuracy(stage, 'accuracy', 'ci95'),
            _accuracy(stage, 'sampled_accuracy', 'sampled_ci95'),
            pages.number(stage.get('mean_length'), 1),
            pages.number(stage.get('problems'), 0),
            pages.number(stage.get('seconds'), 1),
        ]
        rows.append(cells)
    head = ('stage', 'greedy', 'sampled', 'mean length', 'problems', 'seconds')
    return pages.section(
        'Results',
        pages.table(head, rows, numeric=True)
        + '<p class="quiet">Intervals are 95 %. Length is in tokens.</p>',
    )


def _accuracy(stage: Mapping[str, Any], key: str, interval: str) -> str:
    text = html.escape(percent(stage.get(key), stage.get(interval)))
    return re.sub(r'( \[.*\])', r'<span class="quiet">\1</span>', text)


def _examples(examples: Sequence[Mapping[str, Any]]) -> str:
    cards = []
    for example in examples:
        answers = ''.join(
            f'<dt>{html.escape(str(stage))}</dt><dd><pre>{_text(answer)}</pre></dd>'
            for stage, answer in (example.get('answers') or {}).items()
        )
        solution = ''
        if example.get('solution') is not None:
            solution = f'<dt>solution</dt><dd><pre>{_text(example["solution"])}</pre></dd>'
        cards.append(
            f'<article><pre class="prompt">{_text(example.get("prompt"))}</pre>'
            f'<dl>{solution}{answers}</dl></article>'
        )
    return pages.section('The same problem, before and after', ''.join(cards)) if cards else ''


def _completions(paths: Sequence[pathlib.Path]) -> str:
    if not paths:
        return ''
    picked = sorted(
        {
            round(i * (len(paths) - 1) / max(1, COMPLETION_FILES - 1))
            for i in range(COMPLETION_FILES)
        }
    )
    blocks = []
    for index in picked:
        try:
            table = pq.read_table(paths[index])
        except (pa.ArrowException, OSError) as error:
            blocks.append(
                f'<p>{html.escape(paths[index].name)} cannot be read: '
                f'{html.escape(one_line(str(error)))}</p>'
            )
            continue
        rows = table.slice(0, COMPLETION_ROWS).to_pylist()
        if not rows:
            continue
        names = [name for name in table.column_names if name not in ('step', 'stage')]
        cells = [[_value(row[name]) for name in names] for row in rows]
        stage = f'{html.escape(str(rows[0]["stage"]))}, ' if 'stage' in rows[0] else ''
        is_last = index == picked[-1]
        blocks.append(
            f'<details{" open" if is_last else ""}><summary>{stage}step '
            f'{html.escape(str(rows[0].get("step")))} '
            f'<span class="quiet">{len(rows)} of {table.num_rows} completions</span></summary>'
            + pages.table([html.escape(name) for name in names], cells)
            + '</details>'
        )
    return pages.section('Sampled completions', ''.join(blocks))


def _settings(title: str, tree: Any) -> str:
    if not tree:
        return ''
    rows = [
        [
            f'<code>{html.escape(text)}</code>'
            for text in (path, json.dumps(value, ensure_ascii=False))
        ]
        for path, value in _flat('', tree)
    ]
    return pages.section(
        title,
        f'<details><summary>{len(rows)} '
        f'settings</summary>{pages.table(("key", "value"), rows)}</details>',
    )


def _flat(path: str, tree: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _flat(f'{path}.{key}' if path else str(key), value)
    elif isinstance(tree, list) and any(isinstance(value, Mapping) for value in tree):
        for index, value in enumerate(tree):
            yield from _flat(f'{path}[{index}]', value)
    else:
        yield path, tree


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    more = f' … ({len(text) - TEXT_LIMIT} more characters)' if len(text) > TEXT_LIMIT else ''
    return html.escape(text[:TEXT_LIMIT] + more)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return f'<pre>{_text(value)}</pre>'
    if isinstance(value, float):
        return f'{value:.3g}'
    return '–' if value is None else html.escape(str(value))


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
        """[N, 1 + len(keys)]: position and values of the records that have the first key; nan where
        one lacks another."""
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
        """Positions and labels: the first, middle and last step of a stage; of many stages only the
        last."""
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


def _curves(records: Sequence[Mapping[str, Any]]) -> str:
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
    """The chart as an SVG element in a figure, or '' where no record has its metrics."""
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
