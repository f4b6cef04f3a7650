"""Knights always tell the truth and knaves always lie: statements, their solution, and the
reasoning that finds it.

After Xie et al. 2024, "On Memorization of Large Language Models in Logical Reasoning" (arXiv
2410.23123), and the code released with it (AlphaPav/mem-kk-logic). A statement is a tuple in the
form of that code:

    ('telling-truth', i)  ('lying', i)  ('not', s)  ('and', s, ...)  ('or', s, ...)  ('->', s, s)
    ('<=>', s, s)

where i is a person, from 0. A puzzle is a tuple of statements: number i is what person i says. A
set of assignments of roles to n people is an integer of 2^n bits: bit b stands for the assignment
in which person i is a knight iff bit i of b is set. So connectives are single operations on
integers, and every question about a puzzle is asked of all assignments at once.
"""

import functools
from collections.abc import Iterator, Sequence

import numpy as np

LEAVES = ('telling-truth', 'lying')
DEPTH, WIDTH = 2, 2
TRIES = 1000


@functools.cache
def tables(people: int) -> tuple[tuple[int, ...], int]:
    """Returns for each person the assignments that make them a knight, and all assignments."""
    knight = tuple(sum(1 << b for b in range(1 << people) if b >> i & 1) for i in range(people))
    return knight, (1 << (1 << people)) - 1


def truth(statement: tuple, people: int) -> int:
    """Returns the set of assignments in which a statement is true."""
    knight, everything = tables(people)
    kind, *parts = statement
    if kind == 'telling-truth':
        return knight[parts[0]]
    if kind == 'lying':
        return everything ^ knight[parts[0]]
    first, *others = (truth(part, people) for part in parts)
    if kind == 'not':
        return everything ^ first
    if kind == '->':
        return (everything ^ first) | others[0]
    if kind == '<=>':
        return everything ^ first ^ others[0]
    return functools.reduce({'and': int.__and__, 'or': int.__or__}[kind], others, first)


def solutions(puzzle: Sequence[tuple]) -> list[tuple[bool, ...]]:
    """Lists the assignments (True: knight) in which people's statements are true iff they are
    knights."""
    people = len(puzzle)
    knight, everything = tables(people)
    possible = everything
    for person, statement in zip(knight, puzzle):
        possible &= everything ^ person ^ truth(statement, people)
    return [
        tuple(bool(b >> i & 1) for i in range(people))
        for b in range(1 << people)
        if possible >> b & 1
    ]


def sample_leaf(rng: np.random.Generator, person: int, people: int) -> tuple:
    """Draws a claim about one person's role; never 'I am lying'."""
    while True:
        leaf = (LEAVES[rng.integers(2)], int(rng.integers(people)))
        if leaf != ('lying', person):
            return leaf


def sample_statement(
    rng: np.random.Generator, person: int, people: int, depth: int = DEPTH, width: int = WIDTH
) -> tuple:
    """Draws a statement of a person: a leaf at depth 1, else as a die of six decides (0 leaf, 1
    not, 2 and, 3 or, 4 ->, 5 <=>).

    The parts of a connective differ from each other; 'and' and 'or' have from two to `width` of
    them.
    """
    die = int(rng.integers(6))
    if depth == 1 or die == 0:
        return sample_leaf(rng, person, people)
    if die == 1:
        return ('not', sample_statement(rng, person, people, depth - 1, width))
    count = int(rng.integers(2, width + 1)) if die < 4 else 2
    parts = []
    while len(parts) < count:
        part = sample_statement(rng, person, people, depth - 1, width)
        if part not in parts:
            parts.append(part)
    return (('and', 'or', '->', '<=>')[die - 2], *parts)


def sample_puzzle(rng: np.random.Generator, people: int) -> tuple[tuple, tuple[bool, ...]]:
    """Draws a puzzle with exactly one solution; returns the puzzle and the solution."""
    for _ in range(TRIES):
        puzzle = tuple(sample_statement(rng, person, people) for person in range(people))
        if len(answers := solutions(puzzle)) == 1:
            return puzzle, answers[0]
    raise RuntimeError(
        f'{TRIES} puzzles of {people} people were drawn, and none has exactly one solution.'
    )


def mentioned(statement: tuple) -> Iterator[int]:
    """Yields the people that a statement speaks of, from the left, as often as it does."""
    if statement[0] in LEAVES:
        yield statement[1]
    else:
        for part in statement[1:]:
            yield from mentioned(part)


def reasoning(puzzle: Sequence[tuple]) -> list[tuple]:
    """Solves a puzzle as the released code does: a depth-first search, written as steps.

    People are looked at from person 0 on; whom a claim mentions is next, once its speaker has a
    role. Each is a knight if that contradicts no claim, else a knave; if that does too, the search
    goes back to the last person who may still be a knave. A role contradicts the claim of a speaker
    whose role is known where the claim is false of a knight, or true of a knave, whatever those
    without a role are.

    Returns:
      Steps, people from 0 and roles as bool (True: knight): `('ok', person, role)`, `('conflict',
        person, role, speaker)` with the first
      speaker whose claim is contradicted, `('reconsider', person, exhausted)` with those who have
      no role left, from the last on; at the end `('success', roles)`, or `('failure',)` where there
      is no solution.
    """
    people = len(puzzle)
    knight, everything = tables(people)
    claims = [truth(statement, people) for statement in puzzle]
    roles, untried = [None] * people, [[False, True] for _ in range(people)]
    order, at, steps = list(range(people)), 0, []
    while at < people:
        person = order[at]
        if not untried[person]:
            exhausted = []
            while at >= 0 and not untried[order[at]]:
                untried[order[at]], roles[order[at]] = [False, True], None
                exhausted.append(order[at])
                at -= 1
            if at < 0:
                return [*steps, ('failure',)]
            roles[order[at]] = None
            steps.append(('reconsider', order[at], tuple(exhausted)))
            continue
        roles[person] = role = untried[person].pop()
        known = [i for i in range(people) if roles[i] is not None]
        possible = functools.reduce(
            lambda worlds, i: worlds & (knight[i] if roles[i] else everything ^ knight[i]),
            known,
            everything,
        )
        speaker = next(
            (
                i
                for i in known
                if not possible & (claims[i] if roles[i] else everything ^ claims[i])
            ),
            None,
        )
        if speaker is not None:
            steps.append(('conflict', person, role, speaker))
            roles[person] = None
            continue
        steps.append(('ok', person, role))
        at += 1
        waiting = order[at:]
        following = [i for i in dict.fromkeys(mentioned(puzzle[person])) if i in waiting]
        order[at:] = following + [i for i in waiting if i not in following]
    return [*steps, ('success', tuple(roles))]


def replace_leaf(statement: tuple, place: int, leaf: tuple) -> tuple:
    """Replaces the leaf number `place`, from the left, of a statement."""
    if statement[0] in LEAVES:
        return leaf if place == 0 else statement
    parts = []
    for part in statement[1:]:
        parts.append(replace_leaf(part, place, leaf))
        place -= sum(1 for _ in mentioned(part))
    return (statement[0], *parts)


def distinct(statement: tuple) -> bool:
    """Returns whether the parts of every connective in a statement differ from each other."""
    parts = statement[1:]
    return statement[0] in LEAVES or (
        len(set(parts)) == len(parts) and all(distinct(part) for part in parts)
    )


def resample(
    rng: np.random.Generator, puzzle: tuple, kind: str
) -> tuple[tuple, tuple[bool, ...]] | None:
    """Draws one part of a puzzle anew; returns the puzzle and its only solution, which is new.

    Args:
      rng: of the draws.
      puzzle: one with exactly one solution.
      kind: 'statement': all that one person says; 'leaf': one leaf of it.

    Returns:
      Puzzle and solution; None where no other leaf does (often so with two people, seldom with
      five), or 1000 statements gave none.
    """
    before = solutions(puzzle)
    for person, new in (
        _other_leaves(rng, puzzle) if kind == 'leaf' else _other_statements(rng, puzzle)
    ):
        changed = (*puzzle[:person], new, *puzzle[person + 1 :])
        if distinct(new) and len(after := solutions(changed)) == 1 and after != before:
            return changed, after[0]
    return None


def _other_statements(rng: np.random.Generator, puzzle: tuple) -> Iterator[tuple[int, tuple]]:
    for _ in range(TRIES):
        person = int(rng.integers(len(puzzle)))
        yield person, sample_statement(rng, person, len(puzzle))


def _other_leaves(rng: np.random.Generator, puzzle: tuple) -> Iterator[tuple[int, tuple]]:
    """Yields every change of one leaf of a puzzle, in random order."""
    people = range(len(puzzle))
    leaves = [(kind, about) for kind in LEAVES for about in people]
    changes = [
        (person, place, leaf)
        for person in people
        for place, _ in enumerate(mentioned(puzzle[person]))
        for leaf in leaves
        if leaf != ('lying', person)
    ]
    for i in rng.permutation(len(changes)).tolist():
        person, place, leaf = changes[i]
        yield person, replace_leaf(puzzle[person], place, leaf)
