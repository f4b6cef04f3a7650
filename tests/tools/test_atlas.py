"""The atlas and the roadmap: the list is complete, both pages are up to date, and a row says what
the files of a recipe say."""

import csv
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from reasonjax.errors import UserError
from tools import atlas

ROOT = pathlib.Path(__file__).parents[2]
SMALL = """number,id,title,group,scope,slot
7,plain,"Plain, with a | in it",rewards,core,reward
3,rich,Rich,rewards,extended,reward
5,none,A survey,agents,outside,analysis
"""
CLAIM = "dict(against='sft', task='chain', metric='test/greedy', direction='higher', min_effect=0.02, seeds=5)"
RICH = f"NEUTRAL = dict(neutral={{}}, parent={{}})\nNOTES = '''Half of it:\n  a | b.'''\nCLAIM = {CLAIM}\n"


@pytest.fixture
def root(tmp_path):
    """A checkout with three cards, one of them with a recipe and a verdict."""
    for folder in ('docs/claims', 'configs/recipes'):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / 'docs/atlas.csv').write_text(SMALL)
    (tmp_path / 'configs/recipes/rich.py').write_text(RICH)
    (tmp_path / 'docs/claims/rich.json').write_text(json.dumps({'verdict': 'not seen'}))
    return tmp_path


def _pages(root: pathlib.Path) -> tuple[str, str]:
    return (root / atlas.ATLAS).read_text(), (root / atlas.ROADMAP).read_text()


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]]


def _row(page: str, start: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if start in line]
    return _cells(line)


def test_every_counted_card_is_listed():
    with (ROOT / 'docs' / 'atlas.csv').open(newline='') as file:
        cards = list(csv.DictReader(file))
    assert sorted(int(card['number']) for card in cards) == list(range(1, 282))
    assert len({card['id'] for card in cards}) == 281
    assert len([card for card in cards if card['scope'] != 'outside']) == 268
    assert len({card['group'] for card in cards}) == 15


def test_every_recipe_is_of_a_card():
    with (ROOT / 'docs' / 'atlas.csv').open(newline='') as file:
        ids = {card['id'] for card in csv.DictReader(file)}
    assert {path.stem for path in (ROOT / 'configs' / 'recipes').glob('*.py')} <= ids


def test_pages_are_up_to_date(capsys):
    status = atlas.main(['--check'])
    assert status == 0, capsys.readouterr().err


@pytest.mark.parametrize('command', [['-m', 'tools.atlas'], ['tools/atlas.py']])
def test_runs_from_the_root_of_the_repository(command):
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    ran = subprocess.run([sys.executable, *command, '--check'], cwd=ROOT, env=environment)
    assert ran.returncode == 0


def test_every_card_is_on_exactly_one_page():
    here, todo = _pages(ROOT)
    with_recipe = set(re.findall(r'\]\(\.\./configs/recipes/(\w+)\.py\)', here))
    without = re.findall(r'^\| \d+ \| `(\w+)` \|', todo, re.M)
    assert with_recipe == {path.stem for path in (ROOT / 'configs/recipes').glob('*.py')}
    assert len(without) == len(set(without)) and not with_recipe & set(without)
    assert with_recipe | set(without) == {card.id for card in atlas.read_cards()}


@pytest.mark.parametrize('name', [atlas.ATLAS, atlas.ROADMAP])
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text()
    headings = {f'#{title}' for title in re.findall(r'^## (\w+)$', text, re.M)}
    links = re.findall(r'\]\(([^)]+)\)', text)
    assert links
    assert not [x for x in links if x not in headings and not (ROOT / 'docs' / x).is_file()]


def test_a_row_says_what_the_files_say(root):
    assert atlas.main([], root) == 0
    here, todo = _pages(root)
    assert _row(here, 'recipes/rich.py') == [
        '[rich](../configs/recipes/rich.py)',
        'Rich',
        'rewards',
        'test/greedy on chain is higher than that of sft by 2 points or more',
        '[not seen](claims/rich.json)',
        'yes',
        r'Half of it: a \| b.',
    ]
    assert 'plain' not in here and '`rich`' not in todo
    assert _row(todo, '`plain`') == ['7', '`plain`', r'Plain, with a \| in it', 'core', 'reward']
    assert '| [rewards](#rewards) | 1 | 1 |' in todo and '| agents | 0 | 0 |' in todo
    assert '| **all** | 1 | 1 |' in todo
    assert todo.index('## rewards') < todo.index('## Nothing to build') < todo.index('`none`')


def test_a_checkout_without_recipes_has_an_empty_atlas(root):
    (root / 'configs/recipes/rich.py').unlink()
    (root / 'docs/claims/rich.json').unlink()
    assert atlas.main([], root) == 0
    here, todo = _pages(root)
    assert 'None yet.' in here and '`rich`' in todo


@pytest.mark.parametrize(
    'file, text',
    [
        ('docs/claims/rich.json', '{"verdict": "holds"}'),
        ('configs/recipes/plain.py', ''),
        ('configs/recipes/rich.py', ''),
        ('configs/recipes/rich.py', RICH.replace('0.02', '0.03')),
        ('docs/atlas.csv', SMALL.replace('A survey', 'The survey')),
        ('docs/atlas.csv', SMALL.replace('Rich', 'Richer')),
        ('docs/ATLAS.md', ''),
        ('docs/roadmap.md', ''),
    ],
)
def test_check_notices_a_change(root, file, text, capsys):
    assert atlas.main(['--check'], root) == 1  # was never written
    atlas.main([], root)
    assert atlas.main(['--check'], root) == 0
    capsys.readouterr()
    written = _pages(root)
    (root / file).write_text(text)
    changed = _pages(root)
    assert atlas.main(['--check'], root) == 1
    assert 'python -m tools.atlas' in capsys.readouterr().err
    assert _pages(root) == changed  # a check writes nothing
    atlas.main([], root)
    assert (_pages(root) != written) == (file not in (atlas.ATLAS, atlas.ROADMAP))
    assert atlas.main(['--check'], root) == 0


@pytest.mark.parametrize(
    'file, text, parts',
    [
        ('configs/recipes/riche.py', '', ['riche', 'Did you mean "rich"?', 'configs/riche.py']),
        ('docs/claims/rich.json', '{"verdict": "hold"}', ['rich.json', 'Did you mean "holds"?']),
        ('docs/claims/rich.json', '{}', ['rich.json', 'not seen']),
        ('configs/recipes/rich.py', 'NOTES = 3', ['rich.py', 'NOTES', 'int']),
        (
            'configs/recipes/rich.py',
            RICH.replace("'chain'", "'chains'"),
            ['rich.py', 'CLAIM', '"chain"'],
        ),
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
def test_an_impossible_entry_is_refused(root, file, text, parts, capsys):
    (root / file).write_text(text)
    with pytest.raises(UserError) as raised:
        atlas.read_rows(root)
    assert all(part in str(raised.value) for part in parts), raised.value
    assert atlas.main(['--check'], root) == 2 and str(raised.value) in capsys.readouterr().err


def test_claims_of_other_configs_change_no_page(root):
    atlas.main([], root)
    (root / 'docs' / 'claims' / 'mine.json').write_text('{"verdict": "holds"}')
    assert atlas.main(['--check'], root) == 0
