"""Claims: read from recipes, refused where they cannot be tested, judged by their interval."""

import json
import pathlib

import pytest
from arena_cells import cell

from reasonjax.arena import claims
from reasonjax.arena.table import Difference
from reasonjax.errors import UserError

STATED = dict(
    against='sft', task='chain', metric='test/greedy', direction='higher', min_effect=0.02, seeds=5
)
ROOT = pathlib.Path(__file__).parents[2]


def difference(mean, half):
    return Difference(mean, mean - half, mean + half, 0.01, 0.01, 0.01, 0.02, (0, 1))


@pytest.mark.parametrize(
    'direction, mean, half, expected',
    [
        ('higher', 0.10, 0.05, claims.HOLDS),
        ('higher', 0.015, 0.01, claims.NOT_SEEN),  # seen, but smaller than claimed
        ('higher', 0.03, 0.05, claims.NOT_SEEN),
        ('higher', -0.10, 0.05, claims.OPPOSITE),
        ('lower', -0.10, 0.05, claims.HOLDS),
        ('lower', 0.10, 0.05, claims.OPPOSITE),
        ('lower', 0.0, 0.0, claims.NOT_SEEN),
    ],
)
def test_verdicts(direction, mean, half, expected):
    claim = claims.checked('recipe', STATED | {'direction': direction}, 'recipe.py')
    assert claims.verdict(claim, difference(mean, half)) == expected
    assert claims.verdict(claim, None) == claims.FAILED


@pytest.mark.parametrize(
    'changes, said',
    [
        (dict(tsak='chain'), 'CLAIM has no "tsak".*Did you mean "task"'),
        (dict(task='chian'), 'task="chian": unknown.*Did you mean "chain"'),
        (dict(metric='test/greed'), 'Did you mean "test/greedy"'),
        (dict(direction='up'), 'direction="up": unknown'),
        (dict(seeds=1), 'seeds=1: an interval over seeds needs at least 2'),
        (dict(min_effect=2), 'expected a difference of accuracies'),
    ],
)
def test_claims_that_cannot_be_tested(changes, said):
    with pytest.raises(UserError, match=said):
        claims.checked('recipe', STATED | changes, 'recipe.py')
    with pytest.raises(UserError, match='lacks "seeds"'):
        claims.checked(
            'recipe',
            {name: value for name, value in STATED.items() if name != 'seeds'},
            'recipe.py',
        )


def test_a_claim_becomes_a_page(tmp_path):
    cells = [
        cell(recipe, 'chain', seed, skill)
        for recipe, skill in (('sft', 0.4), ('better', 0.7), ('worse', 0.2))
        for seed in range(5)
    ]
    records = []
    for name in ('better', 'worse'):
        claim = claims.checked(name, STATED, 'recipe.py')
        records.append(claims.judged(claim, [one for one in cells if one.recipe in ('sft', name)]))
    claims.write(tmp_path, records[:1])
    claims.write(tmp_path, records[1:])  # what was written before stays
    assert [
        json.loads((tmp_path / 'claims' / f'{n}.json').read_text())['verdict']
        for n in ('better', 'worse')
    ] == ['holds', 'opposite']
    rows = [
        line
        for line in (tmp_path / 'CLAIMS.md').read_text().splitlines()
        if line.startswith(('| better', '| worse'))
    ]
    assert (
        len(rows) == 2
        and '**holds**' in rows[0]
        and '**opposite**' in rows[1]
        and '--recipes better' in rows[0]
    )


def test_recipes_state_claims_that_can_be_tested():
    found = [claims.of_recipe(file) for file in sorted((ROOT / 'configs' / 'recipes').glob('*.py'))]
    assert any(claim is not None for claim in found)
