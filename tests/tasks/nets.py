"""Bayes nets by brute force: the whole joint distribution, entry by entry."""

import itertools
import re

import numpy as np

from reasonjax.tasks.bayes_net import Net


def joint(net):
    """p of every assignment: float64 [2, ..., 2], an axis for each variable, in order."""
    N = len(net.parents)
    whole = np.zeros((2,) * N)
    for values in itertools.product((0, 1), repeat=N):
        chances = [net.tables[i][tuple(values[j] for j in net.parents[i])] for i in range(N)]
        whole[values] = np.prod([p if value else 1 - p for p, value in zip(chances, values)])
    return whole


def joint_of_many(net):
    """The same for nets too large to go through in Python: axes of a broadcast product."""
    N = len(net.parents)
    whole = np.ones((2,) * N)
    for i in range(N):
        scope = (*net.parents[i], i)
        assert list(net.parents[i]) == sorted(net.parents[i])
        order = np.argsort(scope)
        table = np.stack([1 - net.tables[i], net.tables[i]], -1).transpose(order)
        whole *= table.reshape([2 if j in scope else 1 for j in range(N)])
    return whole


def conditional(whole, query, evidence):
    """p(query | evidence) by summing entries of the joint distribution."""
    part = whole[
        tuple(
            slice(evidence[i], evidence[i] + 1) if i in evidence else slice(None)
            for i in range(whole.ndim)
        )
    ]
    part = part.sum(tuple(i for i in range(whole.ndim) if i not in query), keepdims=True)
    axes = [*query, *(i for i in range(whole.ndim) if i not in query)]
    part = part.transpose(axes).reshape([2] * len(query))
    return part / part.sum()


def spread_net(rng, parents):
    """A net whose probabilities stay away from 0 and 1, so that what depends is seen to depend."""
    return Net(
        tuple(map(tuple, parents)),
        tuple(rng.uniform(0.15, 0.85, (2,) * len(above)) for above in parents),
    )


def random_parents(rng, nodes, chance):
    order = rng.permutation(nodes)
    return [
        tuple(sorted(int(order[k]) for k in range(place) if rng.random() < chance))
        for place in np.argsort(order)
    ]


def read(text):
    """The variable that a text asks about, and the values it tells: (variable, {variable:
    value})."""
    target, told, asked = re.fullmatch(r'B(\d\d):((?:\d\d=[01],)*)(#|\d\d=)', text).groups()
    return int(target if asked == '#' else asked[:2]), {
        int(i): int(v) for i, v in re.findall(r'(\d\d)=([01]),', told)
    }


def oracle(whole):
    """The model that gives the exact probability of what a text asks, given all that it tells."""

    def probability_of(texts):
        return np.array([conditional(whole, [asked], told)[1] for asked, told in map(read, texts)])

    return probability_of
