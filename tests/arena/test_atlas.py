"""The atlas: its cards are what was counted, its page is up to date, and a row says what the files
of a recipe say."""

import csv
import json
import pathlib
import re

import pytest

from reasonjax.arena import atlas
from reasonjax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
SMALL = """number,id,title,group,scope,slot
7,plain,"Plain, with a | in it",rewards,core,reward
3,rich,Rich,rewards,extended,reward
5,none,A survey,agents,outside,analysis
"""


@pytest.fixture
def root(tmp_path):
    """A checkout with three cards, one of them with a recipe and a verdict."""
    for folder in ('docs/claims', 'configs/recipes'):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / 'docs/atlas.csv').write_text(SMALL)
    (tmp_path / 'configs/recipes/rich.py').write_text(
        "NEUTRAL = dict(neutral={}, parent={})\nNOTES = '''Half of it:\n  a | b.'''\n"
    )
    (tmp_path / 'docs/claims/rich.json').write_text(json.dumps({'verdict': 'not seen'}))
    return tmp_path


def _row(page: str, name: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if f'| `{name}` |' in line]
    return [cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]]


def test_cards_are_those_that_were_counted():
    with (ROOT / 'docs' / 'atlas.csv').open(newline='') as file:
        cards = list(csv.DictReader(file))
    assert [
        int(card['number']) for card in sorted(cards, key=lambda card: int(card['number']))
    ] == list(range(1, 282))
    assert len({card['id'] for card in cards}) == 281
    assert len([card for card in cards if card['scope'] != 'outside']) == 268
    assert len({card['group'] for card in cards}) == 15


def test_every_recipe_is_of_a_card():
    with (ROOT / 'docs' / 'atlas.csv').open(newline='') as file:
        ids = {card['id'] for card in csv.DictReader(file)}
    assert {path.stem for path in (ROOT / 'configs' / 'recipes').glob('*.py')} <= ids


def test_page_is_up_to_date(capsys):
    status = atlas.main(['--check'])
    assert status == 0, capsys.readouterr().err


def test_links_of_the_page_lead_somewhere():
    text = (ROOT / 'docs' / 'ATLAS.md').read_text()
    headings = {f'#{name}' for name in re.findall(r'^## (\w+)$', text, re.M)}
    links = re.findall(r'\]\(([^)]+)\)', text)
    assert '../configs/recipes/masked_thought.py' in links
    assert not [
        link for link in links if link not in headings and not (ROOT / 'docs' / link).is_file()
    ]


def test_a_row_says_what_the_files_say(root):
    assert atlas.main([], root) == 0
    page = (root / 'docs' / 'ATLAS.md').read_text()
    assert _row(page, 'rich') == [
        '3',
        '`rich`',
        'Rich',
        'rewards',
        'extended',
        '[rich.py](../configs/recipes/rich.py)',
        'yes',
        '[not seen](claims/rich.json)',
        r'Half of it: a \| b.',
    ]
    assert _row(page, 'plain') == [
        '7',
        '`plain`',
        r'Plain, with a \| in it',
        'rewards',
        'core',
        '-',
        '-',
        '-',
        '',
    ]
    assert '3 published systems' in page and ' 2 can be' in page
    assert (
        'Recipes: 1, with a neutral test 1. Claims that hold: 0, not seen: 1, opposite: 0, failed: '
        '0.' in page
    )
    assert (
        '| [rewards](#rewards) | 2 | 2 | 1 | 1 | 0 | 1 | 0 | 0 |' in page
        and '| **all** | 3 | 2 | 1 | 1 | 0 | 1 | 0 | 0 |' in page
    )
    assert (
        page.index('## rewards')
        < page.index('| `plain` |')
        < page.index('| `rich` |')
        < page.index('## agents')
    )


@pytest.mark.parametrize(
    'file, text',
    [
        ('docs/claims/rich.json', '{"verdict": "holds"}'),
        ('docs/claims/plain.json', '{"verdict": "opposite"}'),
        ('configs/recipes/plain.py', ''),
        ('configs/recipes/rich.py', ''),
        ('docs/atlas.csv', SMALL.replace('A survey', 'The survey')),
    ],
)
def test_check_sees_what_has_changed(root, file, text, capsys):
    assert atlas.main(['--check'], root) == 1  # was never written
    atlas.main([], root)
    assert atlas.main(['--check'], root) == 0
    capsys.readouterr()
    before = (root / 'docs' / 'ATLAS.md').read_text()
    (root / file).write_text(text)
    assert atlas.main(['--check'], root) == 1
    assert 'python -m reasonjax.arena.atlas' in capsys.readouterr().err
    assert (root / 'docs' / 'ATLAS.md').read_text() == before
    atlas.main([], root)
    assert (root / 'docs' / 'ATLAS.md').read_text() != before


@pytest.mark.parametrize(
    'file, text, said',
    [
        ('configs/recipes/riche.py', '', ['riche', 'Did you mean "rich"?', 'configs/riche.py']),
        ('docs/claims/rich.json', '{"verdict": "hold"}', ['rich.json', 'Did you mean "holds"?']),
        ('docs/claims/rich.json', '{}', ['rich.json', 'not seen']),
        ('configs/recipes/rich.py', 'NOTES = 3', ['rich.py', 'NOTES', 'int']),
        ('docs/atlas.csv', SMALL + '3,other,Other,agents,core,agent\n', ['number 3']),
        ('docs/atlas.csv', SMALL + '9,rich,Other,agents,core,agent\n', ['id rich']),
        (
            'docs/atlas.csv',
            SMALL + '9,other,Other,agents,cores,agent\n',
            ['line 5', 'Did you mean "core"?'],
        ),
        ('docs/atlas.csv', SMALL + '9,other,Other,agents,core\n', ['line 5', '6 fields']),
        ('docs/atlas.csv', SMALL + 'x,other,Other,agents,core,agent\n', ['line 5', '"x"']),
        ('docs/atlas.csv', SMALL.replace('slot', 'slots', 1), ['columns', 'slots']),
    ],
)
def test_what_cannot_be_is_refused(root, file, text, said, capsys):
    (root / file).write_text(text)
    with pytest.raises(UserError) as raised:
        atlas.rows(root)
    assert all(part in str(raised.value) for part in said), raised.value
    assert atlas.main(['--check'], root) == 2 and str(raised.value) in capsys.readouterr().err


def test_claims_of_other_configs_are_not_the_atlas_s(root):
    before = atlas.text(atlas.rows(root))
    (root / 'docs' / 'claims' / 'mine.json').write_text('{"verdict": "holds"}')
    assert atlas.text(atlas.rows(root)) == before
