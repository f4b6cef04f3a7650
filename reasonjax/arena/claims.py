"""Claims of recipes, put to the test: each against its baseline, with a verdict that is computed.

A recipe's file may hold

    CLAIM = dict(against='sft', task='chain', metric='test/greedy', direction='higher',
    min_effect=0.02, seeds=5)

`against` names a recipe as `--recipes` does, `metric` is one of the table's measures, `min_effect`
a difference of accuracies. The claim

* **holds** where the interval of the paired difference leaves 0 out on the side claimed, and its
  mean is at least `min_effect`;
* is **opposite** where the interval leaves 0 out on the other side;
* and otherwise is **not seen**, at this scale and with as many seeds.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from reasonjax import config_files, files
from reasonjax.arena import formats
from reasonjax.arena.results import Cell
from reasonjax.arena.table import MEASURES, Difference, Estimate, Table, build
from reasonjax.arena.tasks import ARENA
from reasonjax.errors import UserError, check_choice

FIELDS = ('against', 'task', 'metric', 'direction', 'min_effect', 'seeds')
DIRECTIONS = {'higher': 1, 'lower': -1}
HOLDS, NOT_SEEN, OPPOSITE, FAILED = 'holds', 'not seen', 'opposite', 'failed'


class Claim(NamedTuple):
    """What a recipe says of itself; see the top of this file."""

    recipe: str
    against: str
    task: str
    metric: str
    direction: str
    min_effect: float
    seeds: int

    @property
    def text(self) -> str:
        than = f' by {100 * self.min_effect:g} points or more' if self.min_effect else ''
        return f'{self.metric} on {self.task} is {self.direction} than that of {self.against}{than}'

    @property
    def command(self) -> str:
        return f'python -m reasonjax.compare --claims --recipes {self.recipe}'


def of_recipe(file: pathlib.Path) -> Claim | None:
    """Reads the claim in a recipe's file; returns None where the file has none.

    Raises:
      UserError: a claim that lacks something, has something unknown, or cannot be tested.
    """
    stated = getattr(config_files.execute(file), 'CLAIM', None)
    return None if stated is None else checked(file.stem, stated, str(file))


def checked(recipe: str, stated: Mapping[str, Any], where: str) -> Claim:
    """Builds a claim from a recipe's CLAIM; raises UserError if the claim cannot be tested."""
    for name in stated:
        check_choice(f'{where}: CLAIM has no "{name}"', name, FIELDS, 'It has')
    for name in FIELDS:
        if name not in stated:
            raise UserError(f'{where}: CLAIM lacks "{name}".')
    claim = Claim(recipe, **stated)
    for name, choices in (('task', ARENA), ('metric', MEASURES), ('direction', DIRECTIONS)):
        value = getattr(claim, name)
        check_choice(f'{where}: CLAIM {name}="{value}": unknown', value, choices)
    if claim.seeds < 2:
        raise UserError(
            f'{where}: CLAIM seeds={claim.seeds}: an interval over seeds needs at least 2.'
        )
    if not 0 <= claim.min_effect < 1:
        raise UserError(
            f'{where}: CLAIM min_effect={claim.min_effect}: expected a difference of accuracies, '
            'from 0 to below 1.'
        )
    return claim


def verdict(claim: Claim, difference: Difference | None) -> str:
    """Judges a claim by a paired difference, recipe minus baseline (None: a side has no result)."""
    if difference is None or difference.low is None or difference.high is None:
        return FAILED
    sign = DIRECTIONS[claim.direction]
    low, high = sorted((sign * difference.low, sign * difference.high))
    if high < 0:
        return OPPOSITE
    return HOLDS if low > 0 and sign * difference.mean >= claim.min_effect else NOT_SEEN


def judged(claim: Claim, cells: Sequence[Cell]) -> dict[str, Any]:
    """Builds the record of a claim and its verdict, as `docs/claims/ID.json` has it.

    Args:
      claim: see `Claim`.
      cells: of the recipe and of its baseline on the claim's task.
    """
    table: Table = build(cells, claim.against, measure=claim.metric)
    own, baseline = table.row(claim.task, claim.recipe), table.row(claim.task, claim.against)
    difference = own.differences.get(claim.metric)
    return {
        'claim': claim._asdict(),
        'verdict': verdict(claim, difference),
        'command': claim.command,
        'ours': own.accuracy.get(claim.metric) and own.accuracy[claim.metric]._asdict(),
        'baseline': baseline.accuracy.get(claim.metric)
        and baseline.accuracy[claim.metric]._asdict(),
        'difference': difference and difference._asdict(),
        'errors': [e for e in (own.error, baseline.error) if e],
        'problems': table.problems[claim.task],
        'hyperparameters': "the task's, the same for both; none was tuned",
    }


def write(folder: pathlib.Path, records: Sequence[Mapping[str, Any]]) -> list[pathlib.Path]:
    """Writes `claims/ID.json` for each record, and `CLAIMS.md` from all files in `claims/`."""
    (folder / 'claims').mkdir(parents=True, exist_ok=True)
    for record in records:
        path = folder / 'claims' / f'{record["claim"]["recipe"]}.json'
        path.write_text(json.dumps(record, indent=1, allow_nan=False) + '\n', encoding='utf-8')
    page = folder / 'CLAIMS.md'
    page.write_text(
        text([files.read_json(path) for path in sorted((folder / 'claims').glob('*.json'))]),
        encoding='utf-8',
    )
    return [page]


def text(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns the page of claims in Markdown: a table with a row per claim."""
    lines = [
        '# Claims',
        '',
        'The claims of recipes, tested on small tasks. Written by `python -m reasonjax.compare '
        '--claims`. A claim *holds* if the 95 % interval of the difference, over seeds and '
        'problems, lies on the claimed side of 0 and the mean is at least as large as claimed. It '
        'is *opposite* if the interval lies on the other side. Otherwise it was *not seen* at this '
        'scale, with this number of seeds. Recipe and baseline use the hyper-parameters of the '
        'task.',
        '',
        '| id | claim | baseline | ours | difference, points | seeds | verdict | command |',
        '| --- | --- | ---: | ---: | ---: | ---: | --- | --- |',
    ]
    for record in records:
        claim, difference = Claim(**record['claim']), record['difference']
        sides = [_share(record[name]) for name in ('baseline', 'ours')]
        change = (
            '-'
            if not difference
            else f'{100 * difference["mean"]:+.1f} [{100 * difference["low"]:+.1f}, '
            f'{100 * difference["high"]:+.1f}]'
        )
        lines.append(
            f'| {claim.recipe} | {claim.text} | {sides[0]} | {sides[1]} | {change} | {claim.seeds} '
            f'| **{record["verdict"]}** | '
            f'`{claim.command}` |'
        )
    return '\n'.join(lines) + '\n'


def _share(estimate: Mapping[str, float] | None) -> str:
    return formats.percent(None if not estimate else Estimate(**estimate))
