"""Knights and Knaves: generator, solver, search and perturbations, against brute force and a public
data set."""

import ast
import itertools
import math
import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from reasonjax.errors import UserError
from reasonjax.tasks import knights
from reasonjax.tasks import knights_logic as logic
from reasonjax.tasks.knights import (
    KINDS,
    Puzzle,
    key,
    limem,
    parsed,
    perturbed,
    row_of,
    verify,
    working,
    written,
)

EXAMPLE = 'KN,1:3K>2N,2:1K,3:1N+3K:'


def rows(**settings):
    examples = knights(**settings).examples
    return [examples[i] for i in range(len(examples))]


def is_true(statement, roles):
    """A statement's truth for one assignment of roles, read off its words."""
    kind, *parts = statement
    if kind in ('telling-truth', 'lying'):
        return roles[parts[0]] == (kind == 'telling-truth')
    values = [is_true(part, roles) for part in parts]
    return {
        'not': not values[0],
        'and': all(values),
        'or': any(values),
        '->': values[-1] if values[0] else True,
        '<=>': values[0] == values[-1],
    }[kind]


def by_trying(statements):
    """All solutions, by trying all assignments of roles."""
    everyone = itertools.product((False, True), repeat=len(statements))
    return [
        roles
        for roles in everyone
        if all(is_true(s, roles) == role for s, role in zip(statements, roles))
    ]


def depth(statement):
    return 1 if statement[0] in logic.LEAVES else 1 + max(map(depth, statement[1:]))


def test_thousand_puzzles_are_of_the_grammar_with_one_solution_that_the_search_finds():
    for row in rows(size=1000, levels=tuple(range(2, 9)), seed=3):
        roles, order, statements = parsed(row['prompt'])
        assert (
            roles == 'KN'
            and order == tuple(range(row['level']))
            and len(statements) == row['level']
        )
        (solution,) = by_trying(statements)
        assert row['solution'] == ''.join('NK'[role] for role in solution)
        assert logic.solutions(statements) == [solution] and logic.reasoning(statements)[-1] == (
            'success',
            solution,
        )
        for person, statement in enumerate(statements):
            assert depth(statement) <= 2 and logic.distinct(statement)
            assert len(statement) == {'and': 3, 'or': 3, '->': 3, '<=>': 3}.get(statement[0], 2)
            # 'I am lying' is a leaf that nobody says, not even within something longer.
            assert f"('lying', {person})" not in str(statement)


def test_the_die():
    """Of statements without any condition: one sixth each leaf, not, and, or, ->, <=>; more depth
    and width where asked for."""
    rng, N = np.random.default_rng(0), 6000
    said = [logic.sample_statement(rng, 0, 4) for _ in range(N)]
    kinds = [s[0] if s[0] not in logic.LEAVES else 'leaf' for s in said]
    for kind in ('leaf', 'not', 'and', 'or', '->', '<=>'):
        assert abs(kinds.count(kind) - N / 6) < 5 * math.sqrt(N * 5 / 36)
    wide = [logic.sample_statement(rng, 0, 4, depth=3, width=4) for _ in range(2000)]
    assert {len(s) - 1 for s in wide if s[0] in ('and', 'or')} == {2, 3, 4} and {
        len(s) - 1 for s in wide if s[0] == '->'
    } == {2}
    assert {depth(s) for s in wide} == {1, 2, 3} and all(logic.distinct(s) for s in wide)
    for statements in ([s, t] for s, t in zip(wide[::2], wide[1::2])):
        four = (*statements, ('telling-truth', 0), ('lying', 1))
        assert sorted(logic.solutions(four)) == by_trying(four)


def test_search_without_a_solution_fails():
    paradox = (('<=>', ('telling-truth', 0), ('lying', 0)), ('lying', 1))
    assert by_trying(paradox) == logic.solutions(paradox) == [] and logic.reasoning(paradox)[
        -1
    ] == ('failure',)


@pytest.mark.parametrize(
    'granularity,wanted',
    [
        (0, ''),
        (1, '1K+,3K+,2K-,2N-,>3,3N+,2K+'),
        (2, '1K+3K>2N,3K+1N+3K,2K-1:3K>2N,2N-2:1K,>3,3N+1N+3K,2K+1K'),
        (3, '1K+3K>2N,3K+1N+3K:0+1:1,2K-1:3K>2N:1>0:0,2N-2:1K:1,>3,3N+1N+3K:0+0:0,2K+1K:1'),
    ],
)
def test_working(granularity, wanted):
    """By hand: with 1 a knight, 3 as a knight makes 2 a knave, whose claim is true then. So 3 is a
    knave, and 2 may be a knight."""
    statements = parsed(EXAMPLE).statements
    assert statements == (
        ('->', ('telling-truth', 2), ('lying', 1)),
        ('telling-truth', 0),
        ('or', ('lying', 0), ('telling-truth', 2)),
    )
    assert working(statements, 'KN', granularity) == wanted
    row = row_of(parsed(EXAMPLE), (True, True, False), granularity)
    assert row == {'prompt': EXAMPLE, 'completion': f'{wanted}#KKN', 'solution': 'KKN'}


def test_steps_hold_by_brute_force():
    """A step with '-' contradicts the claim it names whatever the others are; one with '+'
    contradicts none; values are what they say."""
    for row in rows(size=60, levels=(2, 3, 4), granularity=3, seed=4):
        _, _, statements = parsed(row['prompt'])
        known = {}
        for step in row['completion'].split('#')[0].split(','):
            if step[0] == '>':
                # Those who come after are undecided again; the trace names the one, so replay: all
                # decided later than them.
                last = list(known).index(int(step[1]) - 1)
                known = dict(list(known.items())[:last])
                continue
            person, role, sign = int(step[0]) - 1, step[1] == 'K', step[2]
            trial = known | {person: role}
            worlds = [
                w
                for w in itertools.product((False, True), repeat=len(statements))
                if all(w[i] == r for i, r in trial.items())
            ]
            contradicted = [
                i for i, r in trial.items() if all(is_true(statements[i], w) != r for w in worlds)
            ]
            speaker, text = (int(step[3]) - 1, step[5:]) if sign == '-' else (person, step[3:])
            assert (speaker in contradicted) if sign == '-' else not contradicted
            claim, *more = text.split(':')
            assert claim == written(statements[speaker], 'KN')
            outcomes = {is_true(statements[speaker], w) for w in worlds}
            assert (
                (more[-1:] == [str(int(outcomes.pop()))])
                if len(outcomes) == 1
                else not more or not more[-1].isdigit()
            )
            if sign == '+':
                known = trial
            else:
                known = {i: r for i, r in known.items() if i != person}
        assert row['solution'] == ''.join('NK'[known[i]] for i in range(len(statements)))


def read_hint(text, names):
    """The steps that the data set's sentences tell."""
    steps, number = [], {name: i for i, name in enumerate(names)}
    for line in text.split('\n'):
        if found := re.match(r'Assume (\w+) is a (\w+)\. No contradiction', line):
            steps.append(('ok', number[found[1]], found[2] == 'knight'))
        elif found := re.match(
            r'(\w+) cannot be a (\w+), because this would contradict the (?:false )?claim of (their own|\w+) that',
            line,
        ):
            person = number[found[1]]
            steps.append(('conflict', person, found[2] == 'knight', number.get(found[3], person)))
        elif found := re.match(
            r'We have exhausted all possibilities for (.*), so let us go back and reconsider (\w+)\.',
            line,
        ):
            exhausted = re.findall(r'\w+', found[1].replace(' and ', ' '))
            steps.append(
                ('reconsider', number[found[2]], tuple(number[name] for name in exhausted))
            )
    return steps


def test_rows_of_the_public_data(data_dir):
    """Solver, verifier and search against the 5000 puzzles of a data set: its solutions, and its
    reasoning step by step."""
    table = [
        row
        for split in ('train', 'test')
        for row in pq.read_table(
            data_dir / 'knights_knaves' / f'{split}.parquet', columns=['reward_model', 'hint']
        ).to_pylist()
    ]
    rng = np.random.default_rng(0)
    for row in table:
        truth = row['reward_model']['ground_truth']
        statements, solution = ast.literal_eval(truth['statements']), tuple(truth['solution'])
        assert logic.solutions(statements) == [solution]
        assert logic.reasoning(statements) == [
            *read_hint(''.join(row['hint']), truth['names']),
            ('success', solution),
        ]
        answer = ''.join('NK'[role] for role in solution)
        ours = row_of(Puzzle('KN', tuple(range(len(solution))), statements), solution, 1)
        assert parsed(ours['prompt']).statements == statements
        assert (
            verify(f'#{answer}', ours, True)['correct']
            and verify(ours['completion'], ours, True)['correct']
        )
        place = int(rng.integers(len(answer)))
        wrong = answer[:place] + {'K': 'N', 'N': 'K'}[answer[place]] + answer[place + 1 :]
        assert not verify(f'#{wrong}', ours, True)['correct']
    assert len(table) == 5000


@pytest.mark.parametrize(
    'completion,terminated,correct',
    [
        ('#KKN', True, True),
        ('1K+,3K-#KKN', True, True),
        ('#KKN', False, False),
        ('#KNK', True, False),
        ('#KK', True, False),
        ('#KKNN', True, False),
        ('#KKN,', True, False),
        ('#kkn', True, False),
        ('#K K N', True, False),
        ('#\u041aKN', True, False),  # a Cyrillic K
        ('#1K2K3N', True, False),
        ('#NNK#KKN', True, False),
        ('KKN', True, False),
        ('#', True, False),
        ('', True, False),
    ],
)
def test_verification(completion, terminated, correct):
    assert knights(size=1).verify(completion, {'solution': 'KKN'}, terminated)['correct'] is correct


@pytest.mark.parametrize('kind', KINDS)
def test_perturbations(kind):
    rng, none = np.random.default_rng(0), 0
    for row in rows(size=300, levels=(3, 4, 6, 8), granularity=0):
        new = perturbed(row, kind, rng, granularity=0)
        if new is None:
            none += 1
            continue
        old_puzzle, puzzle = parsed(row['prompt']), parsed(new['prompt'])
        assert new['level'] == row['level'] and new['prompt'] != row['prompt']
        assert by_trying(puzzle.statements) == [
            tuple(letter == puzzle.roles[0] for letter in new['solution'])
        ]
        assert (
            new['completion'] == f'#{new["solution"]}'
            and verify(new['completion'], new, True)['correct']
        )
        if kind in ('statement', 'leaf'):
            assert (
                new['solution'] != row['solution']
                and not verify(row['completion'], new, True)['correct']
            )
            assert (puzzle.roles, puzzle.order) == (old_puzzle.roles, old_puzzle.order)
            ((before, after),) = [
                (a, b) for a, b in zip(old_puzzle.statements, puzzle.statements) if a != b
            ]
            if kind == 'leaf':
                leaves = [
                    re.findall(r"\('(?:telling-truth|lying)', \d\)", str(s))
                    for s in (before, after)
                ]
                assert re.sub(r"\('(telling-truth|lying)', \d\)", '', str(before)) == re.sub(
                    r"\('(telling-truth|lying)', \d\)", '', str(after)
                )
                assert sum(a != b for a, b in zip(*leaves)) == 1
        else:
            assert key(new) == key(row)
            same = {
                'reorder': new['solution'] == row['solution'] and puzzle.order != old_puzzle.order,
                'roles': set(new['solution']).isdisjoint('KN')
                and new['prompt'][:2] in ('AB', 'CD'),
                'flip': new['prompt'][:2] == 'NK'
                and all(a != b for a, b in zip(new['solution'], row['solution'])),
            }
            assert same[kind]
    assert none < 40 and (none == 0 or kind == 'leaf')


def test_perturbations_are_drawn_by_the_generator_and_can_follow_each_other():
    row = rows(size=1, levels=(5,), granularity=0)[0]
    assert perturbed(row, 'statement', np.random.default_rng(1)) == perturbed(
        row, 'statement', np.random.default_rng(1)
    )
    assert (
        len(
            {
                perturbed(row, 'statement', np.random.default_rng(seed))['prompt']
                for seed in range(8)
            }
        )
        > 4
    )
    rng, now = np.random.default_rng(2), row
    for kind in KINDS * 3:
        now = perturbed(now, kind, rng, granularity=2) or now
        assert by_trying(parsed(now['prompt']).statements) == [
            tuple(letter == now['prompt'][0] for letter in now['solution'])
        ]
    assert set(now['prompt']) - set(row['prompt']) and '+' in now['completion']


def test_a_puzzle_without_another_leaf_has_no_such_perturbation():
    """None iff brute force over all leaves finds none."""
    rng, found = np.random.default_rng(0), []
    for row in rows(size=60, levels=(2,)):
        statements = parsed(row['prompt']).statements
        changed = []
        for person, said in enumerate(statements):
            for place in range(len(list(logic.mentioned(said)))):
                for leaf in itertools.product(logic.LEAVES, range(2)):
                    new = logic.replace_leaf(said, place, leaf)
                    if leaf != ('lying', person) and logic.distinct(new):
                        changed.append((*statements[:person], new, *statements[person + 1 :]))
        possible = [
            by_trying(s)
            for s in changed
            if len(by_trying(s)) == 1 and by_trying(s) != by_trying(statements)
        ]
        found.append(bool(possible))
        assert (perturbed(row, 'leaf', rng) is not None) is found[-1]
    assert 10 < sum(found) < 50


def test_statements_deeper_than_the_notation():
    with pytest.raises(UserError, match='knights: .*lying'):
        written(('not', ('not', ('lying', 0))), 'KN')


@pytest.mark.parametrize(
    'prompt',
    [
        '',
        'KN:',
        'KN,1:2K',
        'KN,1:2K:',
        'KK,1:2K,2:1K:',
        'KN,1:2K,1:2K:',
        'KN,1:2K,3:1K:',
        'KN,1:2A,2:1K:',
        'KN,1:3K,2:1K:',
        'KN,1:,2:1K:',
        'KN,1:2K*,2:1K:',
        'KN,1:2K*1K+2N,2:1K:',
        'KN,1:--2K,2:1K:',
        'KN,1:2K=1K=1N,2:1K:',
        'KN,1:-2K*1N,2:1K:',
        'KN,1:2K,2:1K',
        'kn,1:2k,2:1k:',
    ],
)
def test_what_is_no_prompt(prompt):
    with pytest.raises(UserError, match='knights: .*"KN,1:2N,2:1K'):
        parsed(prompt)


def test_bad_perturbations():
    row = rows(size=1)[0]
    with pytest.raises(
        UserError, match='unknown perturbation "leaves".*Did you mean "leaf".*reorder'
    ):
        perturbed(row, 'leaves', np.random.default_rng(0))
    with pytest.raises(UserError, match='knights: .*"KN,1:2N,2:1K'):
        perturbed({'prompt': '1+1=', 'solution': '2'}, 'leaf', np.random.default_rng(0))


def test_memorisation_score():
    """A perfect reasoner has none; a look-up table of the problems has as much as it solves; who
    solves nothing has none."""
    problems = rows(size=200, levels=(4,))
    rng = np.random.default_rng(0)
    pairs = [(row, new) for row in problems if (new := perturbed(row, 'leaf', rng)) is not None]
    table = {row['prompt']: row['solution'] for row in problems}

    def oracle(prompt):
        puzzle = parsed(prompt)
        return ''.join(puzzle.roles[not role] for role in logic.solutions(puzzle.statements)[0])

    def score(model):
        flags = [[model(row['prompt']) == row['solution'] for row in side] for side in zip(*pairs)]
        return limem(*flags)

    assert score(oracle) == {'accuracy': 1.0, 'consistency': 1.0, 'limem': 0.0}
    looked_up = score(lambda prompt: table.get(prompt, ''))
    assert (
        looked_up['accuracy'] == 1.0
        and looked_up['consistency'] < 0.02
        and looked_up['limem'] > 0.98
    )
    assert (
        math.isnan(score(lambda prompt: '')['consistency'])
        and score(lambda prompt: '')['limem'] == 0.0
    )
    some = limem([True, True, True, False], [True, False, False, True])
    assert some == {
        'accuracy': 0.75,
        'consistency': pytest.approx(1 / 3),
        'limem': pytest.approx(0.75 * (1 - 1 / 3)),
    }
    for wrong in (([], []), ([True], [True, False])):
        with pytest.raises(UserError, match='limem'):
            limem(*wrong)
