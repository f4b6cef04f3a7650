"""Bayes nets of binary variables: random ones, draws from them, and exact probabilities by variable
elimination."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from reasonjax.errors import UserError
from reasonjax.tasks import bayes_graph

MAX_PARENTS = 12
MAX_FACTOR = 20  # variables of the largest factor that elimination may make: 2^20 float64 are 8 MB
FLOOR = 2.0**-20  # no probability is nearer to 0 or 1, so that there is no evidence that cannot be


@dataclasses.dataclass(frozen=True, eq=False)
class Net:
    """A distribution over N binary variables.

    Attributes:
      parents: of each variable.
      tables: for each variable float64 [2, ..., 2], an axis for each parent: the probability of 1.
    """

    parents: tuple[tuple[int, ...], ...]
    tables: tuple[np.ndarray, ...]

    @functools.cached_property
    def order(self) -> list[int]:
        return bayes_graph.order(self.parents)

    def draw(self, rng: np.random.Generator) -> list[int]:
        """Draws the values of all variables together."""
        uniform, values = rng.random(len(self.parents)).tolist(), [0] * len(self.parents)
        for i in self.order:
            values[i] = int(uniform[i] < self.tables[i][tuple(values[j] for j in self.parents[i])])
        return values

    def probability(self, query: Sequence[int], evidence: Mapping[int, int]) -> np.ndarray:
        """Computes p(query | evidence), exactly.

        Args:
          query: n variables.
          evidence: value of each variable that is known; none of the query.

        Returns:
          float64 [2, ..., 2], an axis for each variable of the query; the sum is 1.

        Raises:
          UserError: a factor would have more than 20 variables.
        """
        # the other variables sum to 1
        needed = bayes_graph.ancestors(self.parents, [*query, *evidence])
        factors = [self._factor(i, evidence) for i in needed]
        hidden = needed - set(query) - set(evidence)
        while hidden:
            # The variable whose elimination leaves the smallest factor goes first.
            scopes = {
                i: set().union(*(scope for scope, _ in factors if i in scope)) for i in hidden
            }
            gone = min(hidden, key=lambda i: (len(scopes[i]), i))
            touched = [factor for factor in factors if gone in factor[0]]
            factors = [factor for factor in factors if gone not in factor[0]]
            factors.append(_product(touched, tuple(sorted(scopes[gone] - {gone}))))
            hidden.discard(gone)
        _, joint = _product(factors, tuple(query))
        return joint / joint.sum()

    def _factor(self, i: int, evidence: Mapping[int, int]) -> tuple[tuple[int, ...], np.ndarray]:
        """Returns p(i | its parents) given evidence: variables left, and a table with their
        axes."""
        family = (*self.parents[i], i)
        table = np.stack([1 - self.tables[i], self.tables[i]], axis=-1)
        return tuple(j for j in family if j not in evidence), table[
            tuple(evidence.get(j, slice(None)) for j in family)
        ]


def _product(
    factors: Sequence[tuple[tuple[int, ...], np.ndarray]], kept: tuple[int, ...]
) -> tuple[tuple[int, ...], np.ndarray]:
    """Multiplies factors and sums over all variables but those in `kept`. Returns `kept`, and the
    table with an axis for each of these, in their order."""
    scope = (*kept, *sorted(set().union(*(variables for variables, _ in factors)) - set(kept)))
    if len(scope) > MAX_FACTOR:
        raise UserError(
            f'bayes: exact inference would need a factor of {len(scope)} variables, above '
            f'{MAX_FACTOR}; take fewer edges.'
        )
    product = np.ones((2,) * len(scope))
    for variables, values in factors:
        places = [scope.index(i) for i in variables]
        aligned = values.transpose(np.argsort(places))
        product *= aligned.reshape([2 if place in places else 1 for place in range(len(scope))])
    return kept, product.sum(tuple(range(len(kept), len(scope))))


def random_net(rng: np.random.Generator, nodes: int, edges: int) -> Net:
    """Draws a net with random edges in a random order of the variables. p(root) ~ U(0, 1), every
    other entry of a table ~ Beta(0.2, 0.2).

    Raises:
      UserError: more edges than pairs, or a variable with more than 12 parents.
    """
    pairs = [(a, b) for a in range(nodes) for b in range(a)]
    if not 0 <= edges <= len(pairs):
        raise UserError(
            f'bayes: edges must be from 0 to {len(pairs)} for {nodes} nodes, got {edges}.'
        )
    place, parents = rng.permutation(nodes), [[] for _ in range(nodes)]
    for k in rng.choice(len(pairs), size=edges, replace=False).tolist():
        first, second = sorted(pairs[k], key=lambda i: place[i])
        parents[second].append(first)
    most = max(len(above) for above in parents)
    if most > MAX_PARENTS:
        raise UserError(
            f'bayes: a variable of this net has {most} parents, above {MAX_PARENTS}; take fewer '
            'edges, or another net_seed.'
        )
    return _with_tables(rng, parents)


def chain_net(rng: np.random.Generator, nodes: int) -> Net:
    """Draws a chain: variable 0 is a root, and i - 1 the parent of i; tables as in `random_net`."""
    return _with_tables(rng, [[i - 1] if i else [] for i in range(nodes)])


def _with_tables(rng: np.random.Generator, parents: Sequence[Sequence[int]]) -> Net:
    tables = [
        rng.beta(0.2, 0.2, size=(2,) * len(above)) if above else rng.random(()) for above in parents
    ]
    return Net(
        tuple(tuple(sorted(above)) for above in parents),
        tuple(np.clip(table, FLOOR, 1 - FLOOR) for table in tables),
    )


def mutual_information(joint: np.ndarray) -> float:
    """Returns the mutual information, in nats, of two binary variables from p(a, b) [2, 2]."""
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    return float((joint * np.log(joint / independent)).sum())
