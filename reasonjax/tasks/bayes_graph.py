"""Directed acyclic graphs: distances, ancestors, and which nodes part two others.

A graph is the parents of each node: `parents[i]` is a tuple of nodes. Two sets of nodes are
d-separated by a third exactly where that third parts them in the moral graph of the ancestors of
all three (Lauritzen et al. 1990); so the smallest set that d-separates two nodes is a smallest node
cut of that graph, and that is a maximal flow (Menger).
"""

import collections
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

Parents = Sequence[Sequence[int]]
Adjacent = Mapping[int, set[int]]


def skeleton(parents: Parents) -> dict[int, set[int]]:
    """Returns the neighbours of each node, whichever way the edge points."""
    adjacent = {i: set() for i in range(len(parents))}
    for child, above in enumerate(parents):
        for parent in above:
            adjacent[child].add(parent)
            adjacent[parent].add(child)
    return adjacent


def distances(parents: Parents) -> np.ndarray:
    """Counts edges between any two nodes, whichever way they point: [N, N] int, N for no path."""
    adjacent, N = skeleton(parents), len(parents)
    distance_NxN = np.full((N, N), N)
    for start in range(N):
        distance_NxN[start, start], queue = 0, collections.deque([start])
        while queue:
            node = queue.popleft()
            for other in adjacent[node]:
                if distance_NxN[start, other] == N:
                    distance_NxN[start, other] = distance_NxN[start, node] + 1
                    queue.append(other)
    return distance_NxN


def order(parents: Parents) -> list[int]:
    """Sorts the nodes so that each comes after its parents."""
    placed, done = [], set()
    while len(placed) < len(parents):
        ready = [i for i in range(len(parents)) if i not in done and done.issuperset(parents[i])]
        placed += ready
        done.update(ready)
    return placed


def ancestors(parents: Parents, nodes: Iterable[int]) -> set[int]:
    """Returns the given nodes and all their ancestors."""
    above, waiting = set(), list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in above:
            above.add(node)
            waiting += parents[node]
    return above


def moral(parents: Parents, nodes: Collection[int]) -> dict[int, set[int]]:
    """Builds the moral graph of nodes, whose ancestors must be among them. Edges lose their
    direction, parents of one child are joined."""
    adjacent = {i: set() for i in nodes}
    for child in nodes:
        family = (child, *parents[child])
        for a in family:
            adjacent[a].update(b for b in family if b != a)
    return adjacent


def separated(parents: Parents, x: int, y: int, by: Collection[int]) -> bool:
    """Returns whether the nodes `by` d-separate x and y."""
    adjacent = moral(parents, ancestors(parents, {x, y, *by}))
    seen, waiting = {x, *by}, [x]
    while waiting:
        fresh = adjacent[waiting.pop()] - seen
        seen |= fresh
        waiting += fresh
    return y not in seen


def cut(adjacent: Adjacent, sources: Collection[int], sink: int) -> set[int]:
    """Returns the smallest set of other nodes that separates all sources from the sink. Of several,
    the one nearest the sources.

    Unit flow through each node (Menger). No source may be a neighbour of the sink.
    """
    # Each node is an entrance (node, 0) and an exit (node, 1), with room for one path between them.
    room = collections.defaultdict(dict)
    for node, others in adjacent.items():
        room[node, 0][node, 1] = len(adjacent) if node in sources or node == sink else 1
        room[node, 1].setdefault((node, 0), 0)
        for other in others:
            room[node, 1][other, 0] = len(adjacent)
            room[other, 0].setdefault((node, 1), 0)
    while True:
        came = {(source, 0): None for source in sources}
        queue = collections.deque(came)
        while queue and (sink, 0) not in came:
            place = queue.popleft()
            for following, left in room[place].items():
                if left > 0 and following not in came:
                    came[following] = place
                    queue.append(following)
        if (sink, 0) not in came:
            return {node for node in adjacent if (node, 0) in came and (node, 1) not in came}
        place = (sink, 0)
        while came[place] is not None:
            before = came[place]
            room[before][place] -= 1
            room[place][before] += 1
            place = before


def separators(parents: Parents, x: int, y: int) -> list[set[int]]:
    """Finds sets of nodes, from x to y, each of which d-separates what lies before it from y. The
    two may not be neighbours.

    The first is the smallest that d-separates x and y, the nearest to x of its size. Each further
    one is the smallest that separates the one before it from y; the last holds a neighbour of y in
    the moral graph. No set where x and y are d-separated already.
    """
    adjacent, separating, sources = moral(parents, ancestors(parents, {x, y})), [], {x}
    while not any(y in adjacent[source] for source in sources):
        smallest = cut(adjacent, sources, y)
        if not smallest:
            break
        separating.append(smallest)
        sources = smallest
    return separating
