"""A comparison as text: the columns people read, Markdown, CSV and JSON."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any

from reasonjax.arena.results import COSTS
from reasonjax.arena.table import MEASURES, Difference, Estimate, Row, Table

ERROR_LIMIT = 80
DASH = '–'


def results(table: Table) -> list[list[str]]:
    """Returns rows of accuracies in percent and differences in points, with 95 % intervals. The
    first row is the head.

    The measure of the verdicts comes first; measures that no recipe has are left out.
    """
    measures = [table.measure, *(measure for measure in MEASURES if measure != table.measure)]
    first, *others = [
        measure
        for measure in measures
        if measure == table.measure or any(measure in row.accuracy for row in table.rows)
    ]
    has_failures = any(row.failed for row in table.rows)
    head = [
        'task',
        'recipe',
        'verdict',
        first.replace('/', ' '),
        'difference',
        'p',
        'Holm p',
        'detectable',
        'before',
        *(measure.replace('/', ' ') for measure in others),
        'seeds',
        *(['first error'] if has_failures else []),
    ]
    rows = [head]
    for row in table.rows:
        difference = row.differences.get(first)
        p, p_holm, smallest = (
            (difference.p, difference.p_holm, difference.smallest)
            if difference
            else (None, None, None)
        )
        rows.append(
            [
                row.task,
                row.recipe,
                row.verdict,
                percent(row.accuracy.get(first)),
                points(difference),
                p_value(p),
                p_value(p_holm),
                DASH if smallest is None else f'{100 * smallest:.1f}',
                DASH if first not in row.before else f'{100 * row.before[first]:.1f}',
                *(percent(row.accuracy.get(measure)) for measure in others),
                f'{len(row.seeds)} and {len(row.failed)} failed'
                if row.failed
                else str(len(row.seeds)),
                *([shorten(row.error) or DASH] if has_failures else []),
            ]
        )
    return rows


def costs(table: Table) -> list[list[str]]:
    """Returns rows of the change on other tasks in points, response length and median costs. The
    first row is the head."""
    head = [
        'task',
        'recipe',
        'other tasks, after - before',
        'length',
        'generated tokens',
        'trained tokens',
        'FLOPs',
        'seconds',
        'peak GB',
    ]
    rows = [head]
    for row in table.rows:
        peak = row.cost['peak_bytes']
        rows.append(
            [
                row.task,
                row.recipe,
                points(row.forgetting),
                DASH if row.length is None else f'{row.length:.1f}',
                *(
                    amount(row.cost[name])
                    for name in ('generated_tokens', 'trained_tokens', 'flops')
                ),
                DASH if row.cost['seconds'] is None else f'{row.cost["seconds"]:,.0f}',
                DASH if peak is None else f'{peak / 1e9:.2f}',
            ]
        )
    return rows


def legend(table: Table) -> list[str]:
    """Explains the columns of `results` and `costs`, a line each."""
    split, mode = table.measure.split('/')
    return [
        'Accuracies are in percent, differences in percentage points; brackets are 95 % intervals '
        'over seeds and problems.',
        f'before: {split} {mode} accuracy of the checkpoint that training started from.',
        f'difference: {split} {mode} accuracy minus that of {table.baseline}, with the same seeds '
        'and problems. p: paired t-test over seeds; Holm p: corrected for all comparisons of this '
        'table.',
        'verdict: better or worse if Holm p is at most 0.05 and the interval of the difference '
        'excludes 0.',
        'detectable: the smallest true difference that these seeds detect with 80 % power, given '
        'their spread (p at most 0.05 before Holm).',
        "other tasks: mean change of greedy accuracy on other tasks' problems; below 0 something "
        'was forgotten.',
        'length: mean response length on test, in tokens. Costs are medians over seeds. '
        f'{DASH}: not measured, or nothing to compare.',
    ]


def markdown(table: Table) -> str:
    """Formats the two tables in Markdown, with their legend and what is missing in them."""
    parts = [
        _markdown(results(table)),
        _markdown(costs(table)),
        '\n'.join(f'* {line}' for line in legend(table)),
    ]
    if table.notes:
        parts.append('Missing:\n\n' + '\n'.join(f'* {note}' for note in table.notes))
    return '\n\n'.join(parts) + '\n'


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [[cell.replace('|', '\\|') for cell in row] for row in rows]
    lines.insert(1, ['---', '---'] + ['---:'] * (len(rows[0]) - 2))
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def to_csv(table: Table) -> str:
    """Returns CSV with a line per task and recipe. Accuracies and differences are fractions,
    missing values are empty."""
    lines = [_flat(row) for row in table.rows]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _flat(row: Row) -> dict[str, Any]:
    flat = {
        'task': row.task,
        'recipe': row.recipe,
        'verdict': row.verdict,
        'seeds': _joined(row.seeds),
        'failed': _joined(row.failed),
        'error': row.error,
    }
    for measure in MEASURES:
        name = measure.replace('/', '_')
        flat |= _prefixed(name, row.accuracy.get(measure), Estimate._fields) | {
            f'{name}_before': row.before.get(measure)
        }
        flat |= _prefixed(f'{name}_difference', row.differences.get(measure), Difference._fields)
    return (
        flat
        | _prefixed('forgetting', row.forgetting, Estimate._fields)
        | {'length': row.length}
        | {n: row.cost[n] for n in COSTS}
    )


def _prefixed(prefix: str, numbers: Any, fields: Sequence[str]) -> dict[str, Any]:
    values = [None] * len(fields) if numbers is None else numbers
    return {
        prefix if field == 'mean' else f'{prefix}_{field}': _joined(value)
        if isinstance(value, tuple)
        else value
        for field, value in zip(fields, values)
    }


def _joined(seeds: Sequence[int]) -> str:
    return ' '.join(map(str, seeds))


def to_json(table: Table) -> str:
    """Returns everything in the table as strict JSON: missing values are null."""
    content = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    content['rows'] = [
        {field.name: _plain(getattr(row, field.name)) for field in dataclasses.fields(row)}
        for row in table.rows
    ]
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + '\n'


def _plain(value: Any) -> Any:
    if hasattr(value, '_asdict'):
        return value._asdict()
    return (
        {key: _plain(inner) for key, inner in value.items()} if isinstance(value, dict) else value
    )


def percent(estimate: Estimate | None) -> str:
    """Formats an accuracy and its interval in percent: '91.2 [88.1, 94.0]'."""
    if estimate is None:
        return DASH
    interval = (
        '' if estimate.low is None else f' [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]'
    )
    return f'{100 * estimate.mean:.1f}{interval}'


def points(change: Estimate | Difference | None) -> str:
    """Formats a change and its interval in points: '+12.3 [+8.1, +16.5]'."""
    if change is None:
        return DASH
    interval = '' if change.low is None else f' [{signed(change.low)}, {signed(change.high)}]'
    return f'{signed(change.mean)}{interval}'


def signed(value: float) -> str:
    """Formats a fraction as signed points: '+12.3', and '0.0' without a sign."""
    text = f'{100 * value:+.1f}'
    return '0.0' if text in ('+0.0', '-0.0') else text


def p_value(p: float | None) -> str:
    """Formats a p-value with two decimals, three below 0.1, or as '<0.001'."""
    if p is None:
        return DASH
    return '<0.001' if p < 0.001 else f'{p:.3f}' if p < 0.1 else f'{p:.2f}'


def amount(value: float | None) -> str:
    """Formats a number with three digits and a prefix: 950, 12.3k, 1.23M, 4.50G, 12.0T."""
    if value is None:
        return DASH
    prefixes = ['', 'k', 'M', 'G', 'T', 'P', 'E']
    while value >= 999.5 and len(prefixes) > 1:
        prefixes.pop(0)
        value /= 1000
    prefix = prefixes[0]
    digits = (
        0 if not prefix and value == int(value) or value >= 99.95 else 1 if value >= 9.995 else 2
    )
    return f'{value:.{digits}f}{prefix}'


def shorten(error: str) -> str:
    """Returns the start of an error, on one line."""
    text = ' '.join(error.split())
    return text if len(text) <= ERROR_LIMIT else text[: ERROR_LIMIT - 1] + '…'
