"""Exact probabilities and d-separation, against the whole joint distribution."""

import itertools

import nets
import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.tasks import bayes_graph
from reasonjax.tasks.bayes_net import Net, chain_net, mutual_information, random_net


def test_order_and_distances():
    parents = [(1, 2), (), (1,), (), (0,)]
    placed = bayes_graph.order(parents)
    assert sorted(placed) == [0, 1, 2, 3, 4] and all(
        placed.index(p) < placed.index(i) for i in range(5) for p in parents[i]
    )
    expected = [[0, 1, 1, 5, 1], [1, 0, 1, 5, 2], [1, 1, 0, 5, 2], [5, 5, 5, 0, 5], [1, 2, 2, 5, 0]]
    assert bayes_graph.distances(parents).tolist() == expected


@pytest.mark.parametrize('seed', range(4))
def test_probabilities_are_those_of_the_joint_distribution(seed):
    rng = np.random.default_rng(seed)
    net = random_net(rng, 8, 11) if seed else chain_net(rng, 8)
    assert sum(map(len, net.parents)) == (11 if seed else 7)
    whole = nets.joint(net)
    assert whole.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(nets.joint_of_many(net), whole, rtol=1e-12)
    for _ in range(60):
        chosen = rng.permutation(8).tolist()
        n, m = int(rng.integers(1, 4)), int(rng.integers(0, 4))
        query, evidence = chosen[:n], {i: int(rng.integers(2)) for i in chosen[n : n + m]}
        found = net.probability(query, evidence)
        assert found.shape == (2,) * n
        np.testing.assert_allclose(
            found, nets.conditional(whole, query, evidence), rtol=1e-9, atol=1e-12
        )


def test_probabilities_of_a_larger_net():
    rng = np.random.default_rng(0)
    net = random_net(rng, 18, 20)
    whole = nets.joint_of_many(net)
    for _ in range(20):
        a, b, c = rng.permutation(18)[:3].tolist()
        np.testing.assert_allclose(
            net.probability([a], {b: 1, c: 0}),
            nets.conditional(whole, [a], {b: 1, c: 0}),
            rtol=1e-9,
        )


def test_draws_have_the_probabilities_of_the_net():
    rng = np.random.default_rng(0)
    net = nets.spread_net(rng, nets.random_parents(rng, 5, 0.5))
    draws = np.array([net.draw(rng) for _ in range(20_000)])
    counts = np.bincount(draws @ (1 << np.arange(4, -1, -1)), minlength=32)
    expected = nets.joint(net).ravel() * 20_000
    # chi square with 31 degrees of freedom; 61 has p = 0.001
    assert (((counts - expected) ** 2 / expected).sum()) < 70


def test_mutual_information():
    assert mutual_information(np.outer([0.3, 0.7], [0.6, 0.4])) == pytest.approx(0, abs=1e-12)
    p = np.array([[0.5 - 1e-9, 1e-9], [1e-9, 0.5 - 1e-9]])
    assert mutual_information(p) == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.parametrize('seed', range(4))
def test_separation_is_conditional_independence(seed):
    """All pairs of 6 variables, given all sets of up to two others: independent exactly where the
    graph says so."""
    rng = np.random.default_rng(seed)
    net = nets.spread_net(rng, nets.random_parents(rng, 6, 0.4))
    whole, answers = nets.joint(net), []
    for x, y in itertools.combinations(range(6), 2):
        for n in (0, 1, 2):
            for by in itertools.combinations(set(range(6)) - {x, y}, n):
                gap = 0
                for values in itertools.product((0, 1), repeat=n):
                    p = nets.conditional(whole, [x, y], dict(zip(by, values)))
                    gap = max(gap, abs(p - np.outer(p.sum(1), p.sum(0))).max())
                assert bayes_graph.separated(net.parents, x, y, by) == (gap < 1e-12), (
                    x,
                    y,
                    by,
                    gap,
                )
                answers.append(gap < 1e-12)
    assert 20 < sum(answers) < len(answers) - 20


def side(adjacent, x, without):
    """What x reaches."""
    seen, waiting = {x}, [x]
    while waiting:
        fresh = adjacent[waiting.pop()] - seen - set(without)
        seen |= fresh
        waiting += fresh
    return seen


def test_the_cut_is_the_smallest_and_the_nearest():
    """Against all sets of nodes, over random graphs."""
    sizes = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        parents = nets.random_parents(rng, 8, 0.3)
        near = bayes_graph.skeleton(parents)
        for x, y in itertools.permutations(range(8), 2):
            if y in near[x]:
                continue
            others = sorted(set(range(8)) - {x, y})
            size = next(
                n
                for n in range(7)
                if any(
                    bayes_graph.separated(parents, x, y, by)
                    for by in itertools.combinations(others, n)
                )
            )
            sets = bayes_graph.separators(parents, x, y)
            assert len(sets[0] if sets else ()) == size
            sizes.append(size)
            assert all(bayes_graph.separated(parents, x, y, by) for by in sets)
            if not sets:
                continue
            adjacent = bayes_graph.moral(parents, bayes_graph.ancestors(parents, {x, y}))
            smallest = [
                by
                for by in itertools.combinations(set(adjacent) - {x, y}, size)
                if y not in side(adjacent, x, by)
            ]
            assert all(side(adjacent, x, sets[0]) <= side(adjacent, x, by) for by in smallest)
            # The walk goes from x to y, and stops where y is a neighbour.
            assert all(
                side(adjacent, x, a) < side(adjacent, x, b) for a, b in itertools.pairwise(sets)
            )
            assert sets[-1] & adjacent[y] and not any(
                near_by & adjacent[y] for near_by in sets[:-1]
            )
    assert set(sizes) >= {0, 1, 2, 3}


def test_steps_along_a_chain_are_all_that_lies_between():
    parents = chain_net(np.random.default_rng(0), 7).parents
    assert bayes_graph.separators(parents, 1, 5) == [{2}, {3}, {4}] and bayes_graph.separators(
        parents, 5, 1
    ) == [{4}, {3}, {2}]


def test_what_is_too_dense_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match='edges must be from 0 to 6 for 4 nodes, got 7'):
        random_net(rng, 4, 7)
    with pytest.raises(UserError, match='parents, above 12'):
        random_net(rng, 40, 700)
    # 26 variables, all pairs of which have a child that is known.
    pairs = list(itertools.combinations(range(26), 2))
    net = Net((*[()] * 26, *pairs), (*[np.float64(0.5)] * 26, *[np.full((2, 2), 0.3)] * len(pairs)))
    with pytest.raises(UserError, match='factor of .* variables, above 20; take fewer edges'):
        net.probability([0], {26 + i: 1 for i in range(len(pairs))})
