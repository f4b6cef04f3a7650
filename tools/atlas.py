"""Write docs/ATLAS.md (the recipes that are here) and docs/roadmap.md (the published systems that
are not).

    python -m tools.atlas            # from the root of the repository
    python -m tools.atlas --check    # write nothing; exit with 1 where a page is out of date

The systems are listed in docs/atlas.csv. What ATLAS.md says of one is read from its recipe
configs/recipes/ID.py (CLAIM, NEUTRAL, NOTES) and from docs/claims/ID.json, the verdict that
`python -m reasonjax.compare --claims` writes.
"""

import argparse
import csv
import pathlib
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from reasonjax import config_files
from reasonjax.arena import claims
from reasonjax.errors import UserError, listing, nearest
from reasonjax.files import json_object, write_text

ROOT = pathlib.Path(__file__).resolve().parents[1]
DATA, RECIPES, CLAIMS = 'docs/atlas.csv', 'configs/recipes', 'docs/claims'
ATLAS, ROADMAP = 'docs/ATLAS.md', 'docs/roadmap.md'
COMMAND = 'python -m tools.atlas'

FIELDS = ('number', 'id', 'title', 'group', 'scope', 'slot')
OUTSIDE = 'outside'
SCOPES = ('core', 'extended', 'multimodal', OUTSIDE)
VERDICTS = (claims.HOLDS, claims.NOT_SEEN, claims.OPPOSITE, claims.FAILED)

ATLAS_HEADER = ('recipe', 'system', 'group', 'claim', 'verdict', 'neutral test', 'notes')
ATLAS_PAGE = """# Atlas

Published systems that have a recipe in `{recipes}`. Systems still to be written are in the
[roadmap](roadmap.md). `{command}` writes both pages.

* **claim**: what the recipe says of itself (`CLAIM`), stated so that a comparison with its
  baseline on a small task can decide it.
* **verdict**: the result of that comparison, over several seeds: *holds*, *not seen* at this scale,
  or *opposite*; *failed* if a run did not finish; - if it has not been tested. The numbers are
  behind the link and in [CLAIMS.md](CLAIMS.md).
* **neutral test**: the recipe states how to switch its method off (`NEUTRAL`), and
  `tests/test_neutral.py` checks that it then equals its parent bit for bit.

{table}"""

ROADMAP_HEADER = ('number', 'id', 'title', 'scope', 'slot')
ROADMAP_PAGE = """# Roadmap

Published systems, findings and benchmarks around teaching language models to reason that have no
recipe yet: {todo} to build, of {total} listed in [atlas.csv](atlas.csv). Those that have one are in
the [atlas](ATLAS.md). `{command}` writes both pages.

* **id**: the recipe will be `{recipes}/ID.py`.
* **scope**: `core` needs a text decoder and this library, `extended` needs more machinery but text
  only, `multimodal` needs images, sound or video.
* **slot**: where most of the method goes; [METHODS.md](METHODS.md) explains the slots.

{overview}
{tables}"""
OUTSIDE_SECTION = """## Nothing to build

Listed for completeness: this library has nothing to run for them.

{table}"""


class Card(NamedTuple):
    """A published system: a row of docs/atlas.csv."""

    number: int
    id: str
    title: str
    group: str  # kinds of systems, such as 'rewards'
    scope: str  # one of SCOPES
    slot: str  # where most of the method goes: 'objective', 'reward', 'data_transform', ...


class Row(NamedTuple):
    """A card and what the repository has of it."""

    card: Card
    recipe: bool
    neutral: bool
    claim: str  # '' where the recipe states none
    verdict: str  # one of VERDICTS; '' where the claim has not been tested
    notes: str


def read_cards(root: pathlib.Path = ROOT) -> list[Card]:
    """Read the systems of docs/atlas.csv, in its order.

    Raises:
      UserError: no such file, a row with a missing or impossible field, or a number or id that
        occurs twice.
    """
    if not (root / DATA).is_file():
        raise UserError(f'{root / DATA}: no such file; run this in a checkout of the repository.')
    with (root / DATA).open(encoding='utf-8', newline='') as file:
        reader = csv.DictReader(file)
        columns = tuple(reader.fieldnames or ())
        if columns != FIELDS:
            raise UserError(
                f'{DATA}: expected the columns {", ".join(FIELDS)}; found {", ".join(columns)}.'
            )
        cards = [_parse_card(row, f'{DATA}, line {reader.line_num}') for row in reader]
    for name in ('number', 'id'):
        counts = Counter(getattr(card, name) for card in cards)
        for value, times in counts.items():
            if times > 1:
                raise UserError(f'{DATA}: {name} {value} is there more than once.')
    return cards


def _parse_card(row: dict[str, Any], where: str) -> Card:
    if None in row or not all(row.values()):
        raise UserError(f'{where}: expected {len(FIELDS)} fields with something in each.')
    if not row['number'].isdecimal():
        raise UserError(f'{where}: number is "{row["number"]}", expected an integer.')
    if row['scope'] not in SCOPES:
        raise UserError(
            f'{where}: unknown scope "{row["scope"]}".{nearest(row["scope"], SCOPES)} '
            f'Known: {listing(SCOPES)}.'
        )
    return Card(**row | {'number': int(row['number'])})


def read_rows(root: pathlib.Path = ROOT) -> list[Row]:
    """Read every card and what a checkout has of it.

    Raises:
      UserError: as `read_cards`; a recipe without a card; an impossible CLAIM, verdict or NOTES.
    """
    cards = read_cards(root)
    ids = [card.id for card in cards]
    for file in sorted((root / RECIPES).glob('*.py')):
        if file.stem not in ids:
            raise UserError(
                f'{file.relative_to(root)}: {DATA} has no system "{file.stem}".'
                f'{nearest(file.stem, ids)} {RECIPES} is for systems in that list; any other '
                'recipe '
                f'goes into configs/{file.stem}.py.'
            )
    return [_read_row(root, card) for card in cards]


def _read_row(root: pathlib.Path, card: Card) -> Row:
    file = root / RECIPES / f'{card.id}.py'
    recipe = config_files.execute(file) if file.is_file() else None
    where = str(file.relative_to(root))
    notes = getattr(recipe, 'NOTES', '')
    if not isinstance(notes, str):
        raise UserError(f'{where}: NOTES is a {type(notes).__name__}, expected text.')
    stated = getattr(recipe, 'CLAIM', None)
    claim = '' if stated is None else claims.checked(card.id, stated, where).text
    neutral = hasattr(recipe, 'NEUTRAL')
    verdict = _read_verdict(root, card.id)
    return Row(card, recipe is not None, neutral, claim, verdict, ' '.join(notes.split()))


def _read_verdict(root: pathlib.Path, name: str) -> str:
    file = root / CLAIMS / f'{name}.json'
    if not file.is_file():
        return ''
    verdict = str(json_object(file).get('verdict'))
    if verdict not in VERDICTS:
        hint = nearest(verdict, VERDICTS)
        raise UserError(
            f'{file.relative_to(root)}: unknown verdict "{verdict}".{hint} '
            f'Known: {listing(VERDICTS)}.'
        )
    return verdict


def render_atlas(rows: Sequence[Row]) -> str:
    """Return the page of the systems that have a recipe."""
    lines = [_atlas_cells(row) for row in rows if row.recipe]
    table = _table(ATLAS_HEADER, lines) if lines else 'None yet.\n'
    return ATLAS_PAGE.format(recipes=RECIPES, command=COMMAND, table=table)


def render_roadmap(rows: Sequence[Row]) -> str:
    """Return the page of the systems that have no recipe, by group."""
    todo = [row.card for row in rows if not row.recipe and row.card.scope != OUTSIDE]
    outside = [row.card for row in rows if not row.recipe and row.card.scope == OUTSIDE]
    groups = dict.fromkeys(row.card.group for row in rows)
    sections, overview = [], []
    for group in groups:
        cards = [card for card in todo if card.group == group]
        done = sum(row.recipe for row in rows if row.card.group == group)
        overview.append((f'[{group}](#{group})' if cards else group, len(cards), done))
        if cards:
            sections.append(f'## {group}\n\n{_roadmap_table(cards)}')
    overview.append(('**all**', len(todo), sum(row.recipe for row in rows)))
    if outside:
        sections.append(OUTSIDE_SECTION.format(table=_roadmap_table(outside)))
    return ROADMAP_PAGE.format(
        todo=len(todo),
        total=len(rows),
        command=COMMAND,
        recipes=RECIPES,
        overview=_table(('group', 'to build', 'with a recipe'), overview, numbers=(1, 2)),
        tables='\n'.join(sections),
    )


def _atlas_cells(row: Row) -> tuple[str, ...]:
    card = row.card
    return (
        f'[{card.id}](../{RECIPES}/{card.id}.py)',
        _escape(card.title),
        card.group,
        row.claim or '-',
        f'[{row.verdict}](claims/{card.id}.json)' if row.verdict else '-',
        'yes' if row.neutral else '-',
        _escape(row.notes),
    )


def _roadmap_table(cards: Iterable[Card]) -> str:
    lines = [(c.number, f'`{c.id}`', _escape(c.title), c.scope, c.slot) for c in cards]
    return _table(ROADMAP_HEADER, lines, numbers=(0,))


def _escape(text: str) -> str:
    return text.replace('|', r'\|')


def _table(
    header: Sequence[str], lines: Iterable[Sequence[Any]], numbers: Sequence[int] = ()
) -> str:
    rules = ['---:' if i in numbers else '---' for i in range(len(header))]
    return ''.join(f'| {" | ".join(map(str, line))} |\n' for line in [header, rules, *lines])


def main(arguments: list[str] | None = None, root: pathlib.Path = ROOT) -> int:
    """Write or check the two pages; return the exit status."""
    parser = argparse.ArgumentParser(
        COMMAND, description='Write docs/ATLAS.md and docs/roadmap.md from docs/atlas.csv.'
    )
    parser.add_argument(
        '--check', action='store_true', help='write nothing; exit with 1 if a page is out of date'
    )
    options = parser.parse_args(arguments)
    try:
        rows = read_rows(root)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    pages = {ATLAS: render_atlas(rows), ROADMAP: render_roadmap(rows)}
    if not options.check:
        for name, text in pages.items():
            write_text(root / name, text)
        return 0
    stale = [name for name, text in pages.items() if not _holds(root / name, text)]
    if stale:
        print(f'{" and ".join(stale)} out of date; write them again: {COMMAND}', file=sys.stderr)
    return int(bool(stale))


def _holds(file: pathlib.Path, text: str) -> bool:
    return file.is_file() and file.read_text(encoding='utf-8') == text


if __name__ == '__main__':
    sys.exit(main())
