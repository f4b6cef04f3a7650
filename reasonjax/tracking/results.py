"""The results of a run, as its last words and reports show them."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import rich.box
import rich.console
import rich.progress
import rich.table
import rich.text

from reasonjax.terminal import printable


def percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """Formats an accuracy in [0, 1] with its interval, as '48.1 % [45.0, 51.2]'; None as '-'."""
    if value is None:
        return '-'
    text = f'{100 * value:.1f} %'
    return (
        text if interval is None else f'{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]'
    )


def table(rows: Sequence[Mapping[str, Any]], *, stream: TextIO | None = None) -> None:
    """Prints the final table from the `stages` of summary.json; what a row lacks is shown as '-'.

    Args:
        rows: dicts with name, accuracy, ci95, sampled_accuracy, sampled_ci95, mean_length,
          problems, seconds.
        stream: where to; None is standard output.
    """
    stream = sys.stdout if stream is None else stream
    printed = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    printed.add_column('stage')
    for name in ('greedy [95 %]', 'sampled [95 %]', 'mean length', 'problems', 'seconds'):
        printed.add_column(name, justify='right')
    for row in rows:
        length, problems, seconds = (
            row.get(name) for name in ('mean_length', 'problems', 'seconds')
        )
        printed.add_row(
            printable(str(row['name'])),
            percent(row.get('accuracy'), row.get('ci95')),
            percent(row.get('sampled_accuracy'), row.get('sampled_ci95')),
            '-' if length is None else f'{length:.1f}',
            '-' if problems is None else str(problems),
            '-' if seconds is None else f'{seconds:.1f}',
        )
    # A file or a pipe has no width to fit: a line may be as long as it needs to be.
    width = None if stream.isatty() else 120
    rich.console.Console(
        file=stream, width=width, highlight=False, markup=False, emoji=False
    ).print(printed)
