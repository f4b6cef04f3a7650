"""One self-contained page about a run: what it reached, answers before and after, curves, samples,
settings.

`report.html` needs nothing but itself: curves are inline SVG that take their text colour from the
page, so it reads in a dark and in a light browser, on a phone, and from an e-mail. It is built from
what the workdir holds, so a run in progress or a run of one stage gives a shorter page, not an
error.
"""

import html
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reasonjax import files
from reasonjax.errors import one_line
from reasonjax.reporting import pages
from reasonjax.reporting.charts import draw_curves
from reasonjax.tracking import metrics
from reasonjax.tracking.completion_files import TABLE
from reasonjax.tracking.results import percent

COMPLETION_FILES, COMPLETION_ROWS = 3, 8
TEXT_LIMIT = 2000


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
        draw_curves(records),
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
