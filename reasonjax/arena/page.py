"""The report of a comparison: one self-contained page, its tables as files, and its figures as
PNGs."""

import html
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from reasonjax.arena import figures, formats, statistics
from reasonjax.arena import table as tables
from reasonjax.arena.results import Cell
from reasonjax.arena.table import BETTER, FAILED, SAME, UNTESTED, WORSE, Row, Table
from reasonjax.errors import UserError
from reasonjax.reporting import pages

ERROR_LIMIT = 2000
VERDICTS = (BETTER, WORSE, SAME, UNTESTED, FAILED)
PUBLISHED = ('differences', 'learning')  # figures of ARENA.md
EFFECTS = (0.05, 0.02)  # differences for which the page says how many seeds would find them


def write(
    folder: str | os.PathLike,
    cells: Sequence[Cell],
    baseline: str,
    description: Mapping[str, Any],
    **options: str,
) -> list[pathlib.Path]:
    """Writes report.html, table.md, table.csv, table.json and a PNG for each figure.

    Args:
      folder: made if it does not exist; files of these names are replaced.
      cells: finished and failed ones; tasks and recipes are shown in their order.
      baseline: the recipe that the others are compared with.
      description: how it was measured, for the page: title -> text, a number, a list (of commands,
        say) or a mapping.
      **options: `measure`, `test` and `interval` of `table.build`.

    Returns:
      The files, report.html first.

    Raises:
      UserError: as `table.build`.
    """
    table = tables.build(cells, baseline, **options)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawings = figures.drawings(table, cells)
    paths = [
        pages.write(
            folder / 'report.html',
            f'Comparison with {baseline}',
            _parts(table, cells, drawings, description),
        )
    ]
    for name, text in (
        ('table.md', formats.markdown(table)),
        ('table.csv', formats.to_csv(table)),
        ('table.json', formats.to_json(table)),
    ):
        (folder / name).write_text(text, encoding='utf-8')
        paths.append(folder / name)
    return paths + [figures.png(drawing, folder / f'{drawing.name}.png') for drawing in drawings]


def publish(
    folder: pathlib.Path,
    cells: Sequence[Cell],
    baseline: str,
    description: Mapping[str, Any],
    **options: str,
) -> list[pathlib.Path]:
    """Writes ARENA.md, the tables with a figure or two, for readers of the project: see `write`;
    `description` has a 'command'."""
    table = tables.build(cells, baseline, **options)
    folder.mkdir(parents=True, exist_ok=True)
    parts = ['# Methods compared', f'Written by `{description["command"]}`.', _headline(table)]
    paths = [folder / 'ARENA.md']
    for drawing in figures.drawings(table, cells):
        if drawing.name in PUBLISHED:
            paths.append(figures.png(drawing, folder / f'arena_{drawing.name}.png'))
            parts.append(f'![{drawing.title}]({paths[-1].name})\n\n{drawing.explanation}')
    parts += [
        '\n'.join(f'* {sentence(table, task)}' for task in table.tasks),
        formats.markdown(table).strip(),
    ]
    parts.append(
        '\n'.join(
            f'* {title}: {value}' for title, value in description.items() if title != 'command'
        )
    )
    paths[0].write_text('\n\n'.join(parts) + '\n', encoding='utf-8')
    return paths


def _parts(
    table: Table,
    cells: Sequence[Cell],
    drawings: Sequence[figures.Drawing],
    description: Mapping[str, Any],
) -> list[str]:
    drawn = ''.join(
        pages.section(
            drawing.title,
            f'<p class="quiet">{html.escape(drawing.explanation)}</p>{figures.svgs(drawing)}',
        )
        for drawing in drawings
    )
    return [
        f'<header><h1>Comparison with {html.escape(table.baseline)}</h1><p '
        f'class="lead">{html.escape(_headline(table))}</p></header>',
        pages.section('Results', _results(table)),
        pages.section(
            'Task by task',
            ''.join(f'<p>{html.escape(sentence(table, task))}</p>' for task in table.tasks),
        ),
        pages.section('Forgetting, length and cost', _html_table(formats.costs(table))),
        drawn,
        _seeds(table),
        _failures(cells),
        pages.section('How it was measured', _measured(table, cells, description)),
    ]


def _headline(table: Table) -> str:
    counts_of = []
    for recipe in table.recipes[1:]:
        verdicts = [row.verdict for row in table.rows if row.recipe == recipe]
        counts = ', '.join(
            f'{verdict} on {verdicts.count(verdict)}' for verdict in VERDICTS if verdict in verdicts
        )
        counts_of.append(f'{recipe}: {counts}')
    tasks = f'{len(table.tasks)} task{"s" if len(table.tasks) > 1 else ""}'
    return f'{tasks}. {"; ".join(counts_of)}.' if counts_of else f'{tasks}, one recipe.'


def sentence(table: Table, task: str) -> str:
    """Sums up in plain text what the numbers show about a task."""
    base = table.row(task, table.baseline)
    rows = [row for row in table.rows if row.task == task and row.recipe != table.baseline]
    reached = base and base.accuracy.get(table.measure)
    opening = (
        f'{task}: {table.baseline} reached {formats.percent(reached)} %'
        if reached
        else f'{task}: {table.baseline} has no result'
    )
    parts = [opening]
    for verdict in VERDICTS:
        named = [_named(table, row) for row in rows if row.verdict == verdict]
        if named:
            parts.append(f'{verdict}: {", ".join(named)}')
    return f'{"; ".join(parts)}.'


def _named(table: Table, row: Row) -> str:
    difference, reached = row.differences.get(table.measure), row.accuracy.get(table.measure)
    parts = []
    if difference:
        parts.append(f'{formats.points(difference)} points')
    elif reached:
        parts.append(f'{formats.percent(reached)} %')
    if row.verdict == SAME and difference.smallest is not None:
        parts.append(f'80 % power to detect {100 * difference.smallest:.1f} points')
    return f'{row.recipe} ({"; ".join(parts)})' if parts else row.recipe


def _results(table: Table) -> str:
    legend = ''.join(f'<li>{html.escape(line)}</li>' for line in formats.legend(table))
    missing = ''.join(f'<li>{html.escape(note)}</li>' for note in table.notes)
    return (
        _html_table(formats.results(table))
        + (f'<p>Missing:</p><ul>{missing}</ul>' if missing else '')
        + f'<details><summary>What the columns mean</summary><ul>{legend}</ul></details>'
    )


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    """Builds an HTML table: each task named once, intervals faint, better and worse in bold."""
    body, last = [], None
    for row in rows[1:]:
        cells = [
            re.sub(r'( \[[-+\d., ]*\])$', r'<span class="quiet">\1</span>', html.escape(cell))
            for cell in row
        ]
        if row[2] in (BETTER, WORSE):
            cells[2] = f'<b>{cells[2]}</b>'
        cells[0] = '' if row[0] == last else f'<b>{cells[0]}</b>'
        last = row[0]
        body.append(cells)
    return pages.table([html.escape(name) for name in rows[0]], body, numeric=True)


def _seeds(table: Table) -> str:
    head = [
        'task',
        'recipe',
        'spread, points',
        'detectable, points',
        *(f'seeds for {100 * effect:g} points' for effect in EFFECTS),
    ]
    rows = [head]
    for row in table.rows:
        difference = row.differences.get(table.measure)
        if difference and difference.sd:
            needed = [_needed(effect, difference.sd) for effect in EFFECTS]
            rows.append(
                [
                    row.task,
                    row.recipe,
                    f'{100 * difference.sd:.1f}',
                    f'{100 * difference.smallest:.1f}',
                    *needed,
                ]
            )
    if len(rows) == 1:
        return ''
    explanation = (
        'Spread is the standard deviation, between seeds, of the difference to the baseline. The '
        'other columns are the number of seeds with which a paired t-test at 5 % has 80 % power to '
        'detect a true difference of that many points. Correcting for many comparisons (Holm) '
        'takes more.'
    )
    body = f'<details><summary>{len(rows) - 1} differences</summary><p>{explanation}</p>{_html_table(rows)}</details>'
    return pages.section('How many seeds', body)


def _needed(effect: float, sd: float) -> str:
    try:
        return f'{statistics.seeds_needed(effect, sd):,}'
    except UserError:
        return f'over {statistics.MOST_SEEDS:,}'


def _failures(cells: Sequence[Cell]) -> str:
    rows = [
        [
            html.escape(cell.task),
            html.escape(cell.recipe),
            str(cell.seed),
            f'<pre>{html.escape(cell.error[:ERROR_LIMIT])}</pre>',
        ]
        for cell in cells
        if not cell.done
    ]
    return (
        pages.section(
            f'Failed: {len(rows)}', pages.table(('task', 'recipe', 'seed', 'error'), rows)
        )
        if rows
        else ''
    )


def _measured(table: Table, cells: Sequence[Cell], description: Mapping[str, Any]) -> str:
    seeds = sorted({cell.seed for cell in cells})
    rows = [
        [
            'cells',
            f'{sum(cell.done for cell in cells)} finished, {sum(not cell.done for cell in cells)} '
            'failed',
        ],
        ['seeds', ', '.join(map(str, seeds))],
        *(
            [
                f'problems of {task}',
                ', '.join(f'{split} {size}' for split, size in table.problems[task].items()),
            ]
            for task in table.tasks
            if table.problems[task]
        ),
    ]
    facts = [[html.escape(title), _value(value)] for title, value in description.items()]
    return pages.table(
        ('what', 'how'), [[html.escape(cell) for cell in row] for row in rows] + facts
    )


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return '<br>'.join(
            f'{html.escape(str(key))}: {_value(inner)}' for key, inner in value.items()
        )
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ''.join(f'<pre>{html.escape(str(inner))}</pre>' for inner in value)
    return html.escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
