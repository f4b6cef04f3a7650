"""Asking a Bayes net: what is the value of one variable, given that of another?

After "Why think step by step? Reasoning emerges from the locality of experience" (Prystawski, Li,
Goodman 2023, arXiv 2304.03843). A model is trained on strings that show a few variables that lie
near each other, and asked about pairs that no string holds. Answering at once, it can only give the
marginal; through the variables between, it can get there.

A string names the target, then the values of some variables, the target's last:

    prompt      B07:03=1,          target 07; 03 is 1. Without evidence, where a string shows the target alone: B07:
    completion  12=0,05=1,#1       the other variables that are shown, and after # the value of the target

There are problems only in the splits 'validation' and 'test': pairs of variables that are no
neighbours, held out of every string. The pairs of the two splits are different ones, and no string
of 'train' or 'prompts' holds both variables of any of them: so the splits are disjoint by
construction, whatever the seed. Rows of 'train' and 'prompts' are draws from the net, and
`solution` is the value that was drawn; a string may come up twice, as it must if frequencies are to
be those of the net.

Granularity: 0 the answer alone, #1; 1 the variables between. Estimates of probabilities, and their
score, are in `bayes_estimates`.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from reasonjax.bounds import AtLeast, BelowOne, Between, OneOf, Seed
from reasonjax.errors import UserError, check_choice
from reasonjax.protocols import Task
from reasonjax.tasks import bayes_graph
from reasonjax.tasks.bayes_net import Net, chain_net, mutual_information, random_net
from reasonjax.tasks.exact import ON_TOKENS, verify
from reasonjax.tasks.generated import STREAMS, Generated

CHARACTERS = '0123456789B#=,:'
CHOICES = {
    'shape': ('random', 'chain'),
    'strings': ('local', 'wrong', 'full'),
    'radius': ('geometric', 'zipf'),
    'scaffold': ('minimal', 'stepwise'),
}
TRIES = 100


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """A net, what is near in it, and what is held out.

    Attributes:
      net: N variables.
      distance: [N, N] int, edges between two variables, whichever way they point; N where there is
        no path.
      other: the same of a net that has nothing to do with this one.
      pairs: of variables that no string shows together; the first are tested, the rest validated
        on.
      tested: how many are tested.
    """

    net: Net
    distance: np.ndarray
    other: np.ndarray
    pairs: tuple[tuple[int, int], ...]
    tested: int


@functools.lru_cache(maxsize=16)
def world(*, nodes: int, edges: int, net_seed: int, shape: str, pairs: int) -> World:
    """Builds the world of a `bayes` task from the knobs of the task."""
    nets = []
    for stream in (0, 1):
        rng = np.random.Generator(np.random.Philox(key=[net_seed, stream]))
        chain = shape == 'chain'
        nets.append(
            chain_net(rng, nodes)
            if chain and not stream
            else random_net(rng, nodes, nodes - 1 if chain else edges)
        )
    net, distance = nets[0], bayes_graph.distances(nets[0].parents)
    parents = net.parents
    apart = [
        (a, b)
        for b in range(nodes)
        for a in range(b)
        if distance[a, b] > 1 and not bayes_graph.separated(parents, a, b, ())
    ]
    if pairs > len(apart):
        raise UserError(
            f'bayes: pairs must be at most {len(apart)}: so many dependent variables are no '
            f'neighbours; got {pairs}.'
        )
    known = {pair: mutual_information(net.probability(pair, {})) for pair in apart} if pairs else {}
    best = sorted(known, key=lambda pair: (-known[pair], pair))[: 2 * pairs]
    rng = np.random.Generator(np.random.Philox(key=[net_seed, 2]))
    held = tuple(best[i] for i in rng.permutation(len(best))[:pairs].tolist())
    return World(net, distance, bayes_graph.distances(nets[1].parents), held, pairs - pairs // 4)


def name(i: int) -> str:
    """Returns the name of variable i in the strings: two digits."""
    return f'{i:02d}'


def show(values: dict[int, int] | list[int], variables: list[int]) -> str:
    """Writes variables and their values in the form of the strings."""
    return ''.join(f'{name(i)}={values[i]},' for i in variables)


@dataclasses.dataclass(frozen=True)
class Strings:
    """Draws of a few variables; see `bayes`."""

    world: World
    strings: str
    dropout: float
    radius: str
    granularity: int

    def __call__(self, rng: np.random.Generator, level: int) -> dict:
        N = len(self.world.net.parents)
        near = self.world.other if self.strings == 'wrong' else self.world.distance
        while True:
            centre = int(rng.integers(N))
            drawn = int(rng.geometric(0.5) if self.radius == 'geometric' else rng.zipf(2))
            kept, coins = (
                rng.random(N) >= self.dropout,
                (rng.random(len(self.world.pairs)) < 0.5).tolist(),
            )
            inside = kept & (near[centre] <= min(level or drawn, N - 1))
            chosen = (
                set(range(N)) if self.strings == 'full' else set(np.flatnonzero(inside).tolist())
            )
            for pair, coin in zip(self.world.pairs, coins):
                if chosen.issuperset(pair):
                    chosen.discard(pair[coin])
            if chosen:
                break
        *before, target = rng.permutation(sorted(chosen)).tolist()
        values = self.world.net.draw(rng)
        between = before[1:] if self.granularity else []
        return {
            'prompt': f'B{name(target)}:{show(values, before[:1])}',
            'completion': f'{show(values, between)}#{values[target]}',
            'solution': str(values[target]),
        }


@dataclasses.dataclass(frozen=True)
class Pairs(Generated):
    """Problems about pairs that are held out, each once: (target, evidence, value of the evidence),
    from `problems`."""

    world: World | None = dataclasses.field(default=None, repr=False)
    problems: tuple[tuple[int, int, int], ...] = ()
    scaffold: str = 'minimal'
    granularity: int = 1

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < self.size:
            raise IndexError(f'{self.where(i)}: there is no such problem')
        target, given, value = self.problems[i]
        rng = np.random.Generator(
            np.random.Philox(key=[self.seed, STREAMS[self.split]], counter=[0, 0, 0, i])
        )
        net, distance = self.world.net, self.world.distance
        probability, marginal = (
            float(net.probability((target,), evidence)[1]) for evidence in ({given: value}, {})
        )
        sets = bayes_graph.separators(net.parents, given, target)
        sets = sets[:1] if self.scaffold == 'minimal' else sets
        between = [
            j for near in sets for j in sorted(near, key=lambda j: (int(distance[given, j]), j))
        ]
        values, solution = {given: value}, str(int(probability >= 0.5))
        for j in between:
            values[j] = int(rng.random() < net.probability((j,), values)[1])
        return {
            'prompt': f'B{name(target)}:{show(values, [given])}',
            'completion': f'{show(values, between if self.granularity else [])}#{solution}',
            'solution': solution,
            'level': int(distance[target, given]),
            'probability': probability,
            'marginal': marginal,
            'scaffold': [name(j) for j in between],
            'negative_scaffold': self._negative(rng, target, given, len(between)),
        }

    def _negative(
        self, rng: np.random.Generator, target: int, given: int, size: int
    ) -> list[str] | None:
        """Draws `size` other variables that do not d-separate the two; None where this fails."""
        parents, distance = self.world.net.parents, self.world.distance
        others = [j for j in range(len(parents)) if j not in (target, given)]
        for _ in range(TRIES if size else 0):
            chosen = rng.choice(others, size=size, replace=False).tolist()
            if not bayes_graph.separated(parents, given, target, chosen):
                return [name(j) for j in sorted(chosen, key=lambda j: (int(distance[given, j]), j))]
        return None if size else []


def bayes(
    *,
    split: OneOf(*STREAMS) = 'train',
    size: AtLeast(1),
    levels: tuple[AtLeast(0), ...] = (0,),
    seed: Seed = 0,
    granularity: Between(0, 1) = 1,
    nodes: Between(2, 100) = 20,
    edges: AtLeast(0) = 20,
    net_seed: Seed = 0,
    shape: OneOf(*CHOICES['shape']) = 'random',
    strings: OneOf(*CHOICES['strings']) = 'local',
    pairs: AtLeast(0) = 8,
    dropout: BelowOne = 0.2,
    radius: OneOf(*CHOICES['radius']) = 'geometric',
    scaffold: OneOf(*CHOICES['scaffold']) = 'minimal',
) -> Task:
    """Builds the task of giving the value of a variable of a Bayes net, given that of another.
    Prompts and completions stand at the top of this file.

    Rows of 'validation' and 'test' ask for each variable of each held-out pair, given each value of
    the other. They hold `solution`, the likelier value; `probability` of 1 given the evidence, and
    its `marginal`, exactly; `level`, the distance of the two variables; `scaffold`, names of
    variables in order that d-separate them, and `negative_scaffold`, as many that do not (None
    where there are none). The completion walks the scaffold with values drawn from the net.

    Args:
      split: 'train' and 'prompts' are strings, 'validation' and 'test' are problems about held-out
        pairs.
      size: number of rows; of problems there are 4 for each pair at most.
      levels: of strings, radii of the neighbourhoods that are shown, drawn evenly, where 0 stands
        for one drawn by `radius`; of problems, the distances of pairs that are asked about, where 0
        stands for all.
      seed: not negative; of the draws, not of the net.
      granularity: of completions: 0 the answer alone, 1 the variables between.
      nodes: variables, 2 to 100.
      edges: of a random net; those of a chain are given.
      net_seed: not negative; of the net and the held-out pairs.
      shape: 'random', or 'chain' (variable 0, its child 1, its child 2, ...).
      strings: 'local' shows variables at most a radius away from a random one; 'wrong' those that
        are near it in another net; 'full' all.
      pairs: held out, drawn from the 2 * pairs with most mutual information among dependent
        variables that are no neighbours (from all, where there are not as many); of every string
        that would hold both variables of one, one is left out. A quarter of them, rounded down, are
        for validation.
      dropout: probability with which each variable near enough is left out; not of 'full'.
      radius: 'geometric', P(r) = 2^-r, or 'zipf', P(r) ~ r^-2.
      scaffold: 'minimal', the smallest set that d-separates the two variables; 'stepwise', several,
        until the target is near (on a chain, all variables between).

    Raises:
      UserError: a value out of range; a split without problems; or a net too dense for exact
        probabilities.
    """
    for knob, value in (
        ('shape', shape),
        ('strings', strings),
        ('radius', radius),
        ('scaffold', scaffold),
    ):
        check_choice(f'bayes: unknown {knob} "{value}"', value, CHOICES[knob])
    if not 2 <= nodes <= 100:
        raise UserError(
            f'bayes: nodes must be from 2 to 100, got {nodes}; nearest: {min(max(nodes, 2), 100)}.'
        )
    if not 0 <= dropout < 1:
        raise UserError(f'bayes: dropout is a probability from 0 to below 1, got {dropout}.')
    if granularity not in (0, 1):
        raise UserError(
            'bayes: granularity must be 0 (the answer alone) or 1 (the variables between), got '
            f'{granularity}.'
        )
    if pairs < 0 or net_seed < 0:
        raise UserError(
            f'bayes: pairs and net_seed must not be negative, got {pairs} and {net_seed}.'
        )
    if not all(isinstance(r, int) and r >= 0 for r in levels):
        raise UserError(f'bayes: levels must be radii or distances, or 0 for any, got {levels!r}.')
    net = world(nodes=nodes, edges=edges, net_seed=net_seed, shape=shape, pairs=pairs)
    settings: dict[str, Any] = dict(
        granularity=granularity,
        nodes=nodes,
        edges=edges,
        net_seed=net_seed,
        shape=shape,
        strings=strings,
        pairs=pairs,
        dropout=dropout,
        radius=radius,
        scaffold=scaffold,
    )
    draw = Strings(net, strings, dropout, radius, granularity)
    common = dict(
        name='bayes',
        split=split,
        size=size,
        seed=seed,
        levels=tuple(levels),
        draw=draw,
        key=None,
        settings=settings,
    )
    if split in ('validation', 'test'):
        chosen = net.pairs[: net.tested] if split == 'test' else net.pairs[net.tested :]
        problems = tuple(
            (*ends, value)
            for a, b in chosen
            for ends in ((a, b), (b, a))
            for value in (0, 1)
            if 0 in levels or int(net.distance[a, b]) in levels
        )
        if size > len(problems):
            raise UserError(
                f'bayes: size is {size}, but there are {len(problems)} problems of split "{split}" '
                f'and levels {levels!r}.'
            )
        source = Pairs(
            **common, world=net, problems=problems, scaffold=scaffold, granularity=granularity
        )
    else:
        source = Generated(**common)
    return Task(f'bayes/{split}', source, verify, ON_TOKENS)
