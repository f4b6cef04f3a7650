"""Strings and held-out problems of a Bayes net."""

import functools
import itertools
import re

import nets
import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.tasks import bayes, bayes_graph
from reasonjax.tasks.bayes import world

WORLD = dict(nodes=12, edges=13, net_seed=2, pairs=5)


@functools.cache
def made(**settings):
    return world(**{**dict(nodes=20, edges=20, net_seed=0, shape='random', pairs=8), **settings})


@functools.cache
def whole():
    return nets.joint_of_many(made(**WORLD).net)


def rows_of(size, **settings):
    source = bayes(size=size, **settings).examples
    return [source[i] for i in range(size)]


def values(row):
    """What a string shows, in order: [(variable, value)], the target last."""
    target, evidence = re.fullmatch(r'B(\d\d):((?:\d\d=[01],)?)', row['prompt']).groups()
    between, answer = re.fullmatch(r'((?:\d\d=[01],)*)#([01])', row['completion']).groups()
    assert answer == row['solution'] and (evidence or not between)
    return [(int(i), int(v)) for i, v in re.findall(r'(\d\d)=([01])', evidence + between)] + [
        (int(target), int(answer))
    ]


def variables(row):
    return [i for i, _ in values(row)]


@pytest.mark.parametrize('strings', ['local', 'wrong', 'full'])
def test_no_string_holds_a_pair_that_is_asked_about(strings):
    pairs, together = made(**WORLD).pairs, 0
    assert len(set(pairs)) == 5
    for split in ('train', 'prompts'):
        for row in rows_of(1500, split=split, strings=strings, seed=1, **WORLD):
            shown = set(variables(row))
            assert len(shown) == len(variables(row))
            assert not any(shown.issuperset(pair) for pair in pairs)
            together += any(shown & {a} or shown & {b} for a, b in pairs)
    assert together > 500
    # With nothing held out they come up together.
    free = rows_of(1500, strings=strings, seed=1, **WORLD | dict(pairs=0))
    assert any(set(variables(row)).issuperset(pair) for row in free for pair in pairs)


def test_splits_ask_about_different_pairs():
    sources = {
        split: bayes(split=split, size=n, **WORLD).examples
        for split, n in (('test', 16), ('validation', 4))
    }
    asked = {
        split: [values(row) for row in map(source.__getitem__, range(len(source)))]
        for split, source in sources.items()
    }
    ends = {split: [(told[0], told[-1][0]) for told in rows] for split, rows in asked.items()}
    # Each problem once: both variables of each pair, given both values of the other.
    assert all(len(set(x)) == len(x) for x in ends.values())
    pairs = {
        split: {frozenset((given, target)) for (given, _), target in x} for split, x in ends.items()
    }
    assert not pairs['test'] & pairs['validation']
    assert pairs['test'] | pairs['validation'] == set(map(frozenset, made(**WORLD).pairs))
    for seed in (0, 1):  # the seed draws strings, never pairs
        assert [row['prompt'] for row in rows_of(16, split='test', seed=seed, **WORLD)] == [
            sources['test'][i]['prompt'] for i in range(16)
        ]


def test_held_out_are_dependent_pairs_that_are_no_neighbours():
    net, pairs = made(**WORLD).net, made(**WORLD).pairs

    def information(a, b):
        p = nets.conditional(whole(), [a, b], {})
        return (p * np.log(p / np.outer(p.sum(1), p.sum(0)))).sum()

    apart = [
        (a, b)
        for a, b in itertools.combinations(range(12), 2)
        if a not in net.parents[b] and b not in net.parents[a]
    ]
    best = sorted(apart, key=lambda pair: -information(*pair))[:10]
    assert {tuple(sorted(pair)) for pair in pairs} < set(best) and information(*best[9]) > 1e-6


def test_problems_hold_the_exact_answer():
    for row in rows_of(16, split='test', **WORLD):
        (given, value), *_, (target, answer) = values(row)
        p = nets.conditional(whole(), [target], {given: value})[1]
        assert row['probability'] == pytest.approx(p, rel=1e-9) and answer == (p >= 0.5)
        assert row['marginal'] == pytest.approx(
            nets.conditional(whole(), [target], {})[1], rel=1e-9
        )
        distance = bayes_graph.distances(made(**WORLD).net.parents)
        assert row['level'] == distance[given, target] >= 2
        between, others = ([int(i) for i in row[c]] for c in ('scaffold', 'negative_scaffold'))
        assert variables(row)[1:-1] == between and len(others) == len(between) > 0
        assert [distance[given, i] for i in between] == sorted(distance[given, i] for i in between)
        # The scaffold parts the two; the other one does not.
        for chosen, parts in ((between, True), (others, False)):
            gaps = []
            for told in itertools.product((0, 1), repeat=len(chosen)):
                p = nets.conditional(whole(), [given, target], dict(zip(chosen, told)))
                gaps.append(abs(p - np.outer(p.sum(1), p.sum(0))).max())
            assert (max(gaps) < 1e-10) == parts


def test_the_scaffold_is_walked_with_values_of_the_net():
    knobs = dict(
        split='test', size=1, nodes=6, shape='chain', net_seed=1, pairs=4, scaffold='stepwise'
    )
    rows = [bayes(seed=seed, **knobs).examples[0] for seed in range(800)]
    net = made(nodes=6, shape='chain', net_seed=1, pairs=4).net
    (given, value), *between, (target, _) = values(rows[0])
    assert (
        variables(rows[0])[1:-1]
        == list(range(min(given, target) + 1, max(given, target)))[:: 1 if given < target else -1]
    )
    seen = np.mean([[v for _, v in values(row)[1:-1]] for row in rows], axis=0)
    exact = [nets.conditional(nets.joint(net), [i], {given: value})[1] for i, _ in between]
    assert (abs(seen - exact) < 5 * np.sqrt(0.25 / 800)).all()


def test_local_strings_are_near_and_wrong_ones_are_near_elsewhere():
    for strings, distance in (('local', made(**WORLD).distance), ('wrong', made(**WORLD).other)):
        balls = [set(np.flatnonzero(distance[centre] <= 1).tolist()) for centre in range(12)]
        shown = [set(variables(row)) for row in rows_of(600, strings=strings, levels=(1,), **WORLD)]
        assert all(any(chosen <= ball for ball in balls) for chosen in shown)
        assert any(len(chosen) > 2 for chosen in shown)
    own = [
        set(np.flatnonzero(made(**WORLD).distance[centre] <= 1).tolist()) for centre in range(12)
    ]
    assert not all(any(chosen <= ball for ball in own) for chosen in shown)


def test_radii_and_dropout():
    """On a chain with nothing held out: the size of a neighbourhood in the middle says its
    radius."""
    knobs = dict(nodes=80, shape='chain', pairs=0, dropout=0.0, seed=2)
    for radius, ratio in (('geometric', 2), ('zipf', 4)):  # of P(1) to P(2)
        chosen = [sorted(variables(row)) for row in rows_of(3000, radius=radius, **knobs)]
        inner = [c for c in chosen if c[0] > 0 and c[-1] < 79]
        assert all(c == list(range(c[0], c[-1] + 1)) for c in inner)
        one, two = (sum(len(c) == 2 * r + 1 for c in inner) for r in (1, 2))
        assert (
            abs(one / (one + two) - ratio / (ratio + 1)) < 5 * np.sqrt(0.25 / (one + two))
            and one + two > 1500
        )
    kept = [len(variables(row)) for row in rows_of(3000, levels=(2,), **knobs | dict(dropout=0.2))]
    assert abs(np.mean(kept) - 0.8 * (5 - 6 / 80)) < 0.08


def test_values_are_those_of_the_net_whatever_is_shown():
    net = made(**WORLD).net
    counts = {}
    for row in rows_of(6000, levels=(1,), seed=5, **WORLD):
        told = dict(values(row))
        for a, b in itertools.combinations(sorted(told), 2):
            counts.setdefault((a, b), np.zeros((2, 2)))[told[a], told[b]] += 1
    checked = 0
    for (a, b), seen in counts.items():
        if seen.sum() > 300:
            p = nets.conditional(whole(), [a, b], {})
            assert (abs(seen / seen.sum() - p) < 5 * np.sqrt(p * (1 - p) / seen.sum()) + 1e-3).all()
            checked += 1
    assert checked > len(net.parents) // 2


def test_all_is_shown_where_everything_is_near():
    """Neutral: a radius of the whole net, nothing left out and nothing held out is 'full', bit for
    bit."""
    knobs = dict(nodes=9, shape='chain', pairs=0, levels=(9,))
    assert rows_of(100, dropout=0.0, **knobs) == rows_of(100, strings='full', **knobs)
    assert all(
        sorted(variables(row)) == list(range(9)) for row in rows_of(20, strings='full', **knobs)
    )
    # Of every pair that is held out one is missing, and no other variable.
    for row in rows_of(200, strings='full', **WORLD):
        missing = set(range(12)) - set(variables(row))
        assert missing <= set().union(*made(**WORLD).pairs)


def test_a_bare_answer_has_the_same_evidence():
    long, short = (rows_of(50, granularity=g, **WORLD) for g in (1, 0))
    for a, b in zip(long, short):
        assert b['prompt'] == a['prompt'] and b['completion'] == f'#{a["solution"]}'
    assert {row['completion'] for row in rows_of(8, split='test', granularity=0)} <= {'#0', '#1'}


def test_levels_choose_distances():
    distances = {row['level'] for row in rows_of(24, split='test')}
    assert len(distances) > 1
    near = bayes(split='test', size=4, levels=(min(distances),)).examples
    assert {near[i]['level'] for i in range(4)} == {min(distances)}


@pytest.mark.parametrize(
    'settings,message',
    [
        (dict(shape='ring'), 'unknown shape "ring".* Known: chain, random'),
        (dict(strings='locl'), 'unknown strings "locl".*Did you mean "local"'),
        (dict(radius='zip'), 'unknown radius "zip".*Did you mean "zipf"'),
        (dict(scaffold='minimum'), 'unknown scaffold "minimum".*Did you mean "minimal"'),
        (dict(nodes=1), 'nodes must be from 2 to 100, got 1; nearest: 2'),
        (dict(edges=191), 'edges must be from 0 to 190 for 20 nodes'),
        (dict(pairs=180), 'pairs must be at most [0-9]+: .* got 180'),
        (dict(pairs=-1), 'must not be negative'),
        (dict(net_seed=-1), 'must not be negative'),
        (dict(dropout=1.0), 'dropout is a probability'),
        (dict(granularity=2), 'granularity must be 0'),
        (dict(levels=(-1,)), 'levels must be radii or distances'),
        (dict(split='test', size=25), 'size is 25, but there are 24 problems of split "test"'),
        (
            dict(split='validation', pairs=3),
            'size is 1, but there are 0 problems of split "validation"',
        ),
        (dict(split='test', levels=(15,)), 'there are 0 problems'),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=f'^bayes: .*{message}'):
        bayes(**dict(size=1) | settings)
