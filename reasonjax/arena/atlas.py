"""python -m reasonjax.arena.atlas: writes docs/ATLAS.md, a row for each published system: can it be
run here, and what came of its claim?

The systems are in docs/atlas.csv. What a row says of one is read from its recipe
configs/recipes/ID.py (is it there, does it state NEUTRAL, which NOTES) and from
docs/claims/ID.json, the verdict that `python -m reasonjax.compare --claims` writes.
"""

import argparse
import csv
import pathlib
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from reasonjax import config_files
from reasonjax.errors import UserError, listing, nearest
from reasonjax.files import json_object

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA, PAGE, RECIPES, CLAIMS = 'docs/atlas.csv', 'docs/ATLAS.md', 'configs/recipes', 'docs/claims'
COMMAND = 'python -m reasonjax.arena.atlas'

FIELDS = ('number', 'id', 'title', 'group', 'scope', 'slot')
OUTSIDE = 'outside'
SCOPES = ('core', 'extended', 'multimodal', OUTSIDE)
VERDICTS = ('holds', 'not seen', 'opposite', 'failed')
COLUMNS = ('number', 'id', 'title', 'group', 'scope', 'recipe', 'neutral test', 'claim', 'notes')
OPENING = """# Atlas

{cards} published systems, findings and benchmarks around teaching language models to reason, and what is here of each. {buildable} can be
built; of the others (scope `outside`) there is nothing to build. Written from [atlas.csv](atlas.csv), the recipes and the verdicts by

```bash
{command}            # --check only says whether this page is up to date
```

* **scope**: `core` needs a text decoder and this library, `extended` more machinery but text only, `multimodal` images, sound or video.
* **recipe**: the config that runs it; an id is the name of its file.
* **neutral test**: the recipe states how its method is switched off, and tests/test_neutral.py says that it then equals its parent bit for
  bit.
* **claim**: what a comparison of the recipe with its baseline, on a small task and over several seeds, says of its claim: it *holds*, is
  *not seen* at this scale, or is *opposite*; *failed*: a run did not end; -: not tested. The numbers are behind the word.

Recipes: {recipes}, with a neutral test {neutral}. Claims that hold: {holds}, not seen: {not seen}, opposite: {opposite}, failed: {failed}.
"""


class Card(NamedTuple):
    """A published system, as docs/atlas.csv has it: its number, its id and what it is."""

    number: int
    id: str
    title: str
    group: str  # kinds of systems, such as 'rewards'
    scope: str  # of SCOPES
    slot: str  # where most of it goes: 'objective', 'reward', 'data_transform', ...


class Row(NamedTuple):
    """A card, and what is here of it."""

    card: Card
    recipe: bool
    neutral: bool
    verdict: str  # of VERDICTS; '' not tested
    notes: str


def cards(root: pathlib.Path = ROOT) -> list[Card]:
    """The systems of docs/atlas.csv, in its order.

    Raises:
      UserError: no such file, a row that lacks a field or has one that cannot be, or a number or an
        id that is there twice.
    """
    if not (root / DATA).is_file():
        raise UserError(
            f'{root / DATA}: no such file; the atlas is written in a checkout of the repository.'
        )
    with (root / DATA).open(encoding='utf-8', newline='') as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != FIELDS:
            raise UserError(
                f'{DATA}: expected the columns {", ".join(FIELDS)}; found '
                f'{", ".join(reader.fieldnames or ())}.'
            )
        found = [_card(row, f'{DATA}, line {reader.line_num}') for row in reader]
    for name in ('number', 'id'):
        twice = [
            value
            for value, times in Counter(getattr(card, name) for card in found).items()
            if times > 1
        ]
        if twice:
            raise UserError(f'{DATA}: {name} {twice[0]} is there more than once.')
    return found


def _card(row: dict[str, Any], where: str) -> Card:
    if None in row or not all(row.values()):
        raise UserError(f'{where}: expected {len(FIELDS)} fields with something in each.')
    if not row['number'].isdecimal():
        raise UserError(f'{where}: number is "{row["number"]}", expected an integer.')
    if row['scope'] not in SCOPES:
        raise UserError(
            f'{where}: unknown scope "{row["scope"]}".{nearest(row["scope"], SCOPES)} Known: '
            f'{listing(SCOPES)}.'
        )
    return Card(**row | {'number': int(row['number'])})


def rows(root: pathlib.Path = ROOT) -> list[Row]:
    """Every card with what is here of it.

    Args:
      root: a checkout.

    Raises:
      UserError: as `cards`; a recipe of a system that is no card; a verdict or NOTES that cannot
        be.
    """
    found = cards(root)
    ids = [card.id for card in found]
    for file in sorted((root / RECIPES).glob('*.py')):
        if file.stem not in ids:
            raise UserError(
                f'{file.relative_to(root)}: {DATA} has no system '
                f'"{file.stem}".{nearest(file.stem, ids)} '
                f'{RECIPES} is for those that it has; the recipe of another goes beside the '
                f'starting points: configs/{file.stem}.py.'
            )
    return [_row(root, card) for card in found]


def _row(root: pathlib.Path, card: Card) -> Row:
    file = root / RECIPES / f'{card.id}.py'
    recipe = config_files.execute(file) if file.is_file() else None
    notes = getattr(recipe, 'NOTES', '')
    if not isinstance(notes, str):
        raise UserError(
            f'{file.relative_to(root)}: NOTES is a {type(notes).__name__}, expected text.'
        )
    return Row(
        card,
        recipe is not None,
        hasattr(recipe, 'NEUTRAL'),
        _verdict(root, card.id),
        ' '.join(notes.split()),
    )


def _verdict(root: pathlib.Path, name: str) -> str:
    file = root / CLAIMS / f'{name}.json'
    if not file.is_file():
        return ''
    verdict = str(json_object(file).get('verdict'))
    if verdict not in VERDICTS:
        hint = nearest(verdict, VERDICTS)
        raise UserError(
            f'{file.relative_to(root)}: unknown verdict "{verdict}".{hint} Known: '
            f'{listing(VERDICTS)}.'
        )
    return verdict


def text(found: Sequence[Row]) -> str:
    """The page: what it is, how much there is, and a table for each group."""
    groups = {
        name: [row for row in found if row.card.group == name]
        for name in dict.fromkeys(row.card.group for row in found)
    }
    total = _counts(found)
    lines = [(f'[{name}](#{name})', *_counts(part).values()) for name, part in groups.items()]
    overview = _table(
        ('group', *total), [*lines, ('**all**', *total.values())], numbers=range(1, len(total) + 1)
    )
    tables = [
        f'## {name}\n\n{_table(COLUMNS, map(_cells, part), numbers=(0,))}'
        for name, part in groups.items()
    ]
    return '\n'.join([OPENING.format(command=COMMAND, **total), overview, *tables])


def _counts(found: Sequence[Row]) -> dict[str, int]:
    verdicts = Counter(row.verdict for row in found)
    return {
        'cards': len(found),
        'buildable': sum(row.card.scope != OUTSIDE for row in found),
        'recipes': sum(row.recipe for row in found),
        'neutral': sum(row.neutral for row in found),
        **{verdict: verdicts[verdict] for verdict in VERDICTS},
    }


def _cells(row: Row) -> tuple[str, ...]:
    card = row.card
    return (
        str(card.number),
        f'`{card.id}`',
        _plain(card.title),
        card.group,
        card.scope,
        f'[{card.id}.py](../{RECIPES}/{card.id}.py)' if row.recipe else '-',
        'yes' if row.neutral else '-',
        f'[{row.verdict}](claims/{card.id}.json)' if row.verdict else '-',
        _plain(row.notes),
    )


def _plain(written: str) -> str:
    """Text that a cell of a table shows as it is."""
    return written.replace('|', r'\|')


def _table(header: Sequence[str], lines: Iterable[Sequence[Any]], numbers: Iterable[int]) -> str:
    rules = ['---:' if i in set(numbers) else '---' for i in range(len(header))]
    return ''.join(f'| {" | ".join(map(str, line))} |\n' for line in [header, rules, *lines])


def main(arguments: list[str] | None = None, root: pathlib.Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        COMMAND, description='Write docs/ATLAS.md: published systems, and what is here of each.'
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing; exit with 1 where the page is out of date',
    )
    options = parser.parse_args(arguments)
    page = root / PAGE
    try:
        wanted = text(rows(root))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    if not options.check:
        page.write_text(wanted, encoding='utf-8')
        return 0
    if page.is_file() and page.read_text(encoding='utf-8') == wanted:
        return 0
    print(f'{PAGE} is out of date; write it anew: {COMMAND}', file=sys.stderr)
    return 1


if __name__ == '__main__':
    sys.exit(main())
