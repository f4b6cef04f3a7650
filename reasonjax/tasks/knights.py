"""Knights and Knaves: who tells the truth? Puzzles with exactly one solution, perturbations of
them, and a score of memorisation.

After Xie et al. 2024 (arXiv 2410.23123); `knights_logic` holds statements, solver and search.

Format. People are digits from 1, roles are letters; the prompt opens with the role of those who
tell the truth and of those who lie, then has what each person says. Connectives: `-` not, `*` and,
`+` or, `>` if-then, `=` if and only if. The answer is the role of each person, in the order of
their numbers:

    prompt        KN,1:3K>2N,2:1K,3:1N+3K:      1 says: if 3 is a knight then 2 is a knave; ...
    0  answer     #KKN
    1  verdicts   1K+,3K+,2K-,2N-,>3,3N+,2K+#KKN
    2  claims     1K+3K>2N,3K+1N+3K,2K-1:3K>2N,2N-2:1K,>3,3N+1N+3K,2K+1K#KKN
    3  values     1K+3K>2N,3K+1N+3K:0+1:1,2K-1:3K>2N:1>0:0,2N-2:1K:1,>3,3N+1N+3K:0+0:0,2K+1K:1#KKN

Working, in steps: a person, the role proposed, and `+` where that contradicts no claim, `-` where
it does; `>3` goes back to person 3. Claims add what the person says (`+`), or who is contradicted
and what they say (`-`). Values add that claim with 1 and 0 in place of what is known by then, and
its own value where that settles it.
"""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reasonjax.bounds import AtLeast, Between, OneOf, Seed
from reasonjax.errors import UserError, check_choice
from reasonjax.protocols import Task
from reasonjax.tasks.checks import levels as checked_levels
from reasonjax.tasks.checks import whole
from reasonjax.tasks.exact import ON_TOKENS, verify
from reasonjax.tasks.generated import STREAMS, Generated
from reasonjax.tasks.knights_logic import LEAVES, reasoning, resample, sample_puzzle, tables, truth

__all__ = ['CHARACTERS', 'knights', 'limem', 'perturbed', 'verify']

CHARACTERS = '#,:=*+->012345678KNABCD'
SIGNS = {'and': '*', 'or': '+', '->': '>', '<=>': '='}
ROLES = ('KN', 'AB', 'CD')  # pairs of letters: those who tell the truth, those who lie
KINDS = ('statement', 'leaf', 'reorder', 'roles', 'flip')
PROMPT = re.compile(r'([A-Z]{2})((?:,[1-8]:[-*+>=1-8A-Z]+)+):')
STATEMENT = re.compile(
    r'-?[1-8][A-Z]|[1-8][A-Z](?:\*[1-8][A-Z])+|[1-8][A-Z](?:\+[1-8][A-Z])+|[1-8][A-Z][>=][1-8][A-Z]'
)
MIN_PEOPLE, MAX_PEOPLE = 2, 8


class Puzzle(NamedTuple):
    """A puzzle as a prompt words it.

    Attributes:
      roles: two letters, for those who tell the truth and those who lie.
      order: the people, from 0, in the order in which the prompt has their statements.
      statements: what person i says, in the form of `knights_logic`.
    """

    roles: str
    order: tuple[int, ...]
    statements: tuple[tuple, ...]


def written(
    statement: tuple, roles: str, known: Sequence[bool | None] = (None,) * MAX_PEOPLE
) -> str:
    """Writes a statement in characters; 1 or 0 for claims about people whose role is known. A known
    role is True for those who tell the truth.

    Raises:
      UserError: a connective within a connective, for which there is no notation.
    """
    kind, *parts = statement
    if kind in LEAVES:
        role = known[parts[0]]
        return (
            f'{parts[0] + 1}{roles[LEAVES.index(kind)]}'
            if role is None
            else str(int(role == (kind == LEAVES[0])))
        )
    if any(part[0] not in LEAVES for part in parts):
        raise UserError(
            f'knights: only claims about roles are written under a connective, got {statement!r}.'
        )
    texts = [written(part, roles, known) for part in parts]
    return f'-{texts[0]}' if kind == 'not' else SIGNS[kind].join(texts)


def _read(text: str, roles: str) -> tuple:
    if text[0] == '-':
        return ('not', _read(text[1:], roles))
    for kind, sign in SIGNS.items():
        if sign in text:
            return (kind, *(_read(part, roles) for part in text.split(sign)))
    return (LEAVES[roles.index(text[1])], int(text[0]) - 1)


def parsed(prompt: str) -> Puzzle:
    """Reads the puzzle in a prompt.

    Raises:
      UserError: it is not one of this task.
    """
    match = PROMPT.fullmatch(prompt)
    statements_of = [text.split(':') for text in match[2][1:].split(',')] if match else []
    order = tuple(int(person) - 1 for person, _ in statements_of)
    fine = (
        match is not None
        and match[1][0] != match[1][1]
        and sorted(order) == list(range(len(order)))
        and all(STATEMENT.fullmatch(text) for _, text in statements_of)
        and set(re.findall('[A-Z]', match[2])) <= set(match[1])
        and all(int(person) <= len(order) for person in re.findall('[1-8]', match[2]))
    )
    if not fine:
        raise UserError(f'knights: expected a prompt such as "KN,1:2N,2:1K*2K:", got {prompt!r}.')
    statements = dict(zip(order, (_read(text, match[1]) for _, text in statements_of)))
    return Puzzle(match[1], order, tuple(statements[person] for person in range(len(order))))


def working(statements: Sequence[tuple], roles: str, granularity: int) -> str:
    """Writes the steps of `reasoning`: 1 verdicts, 2 with claims, 3 with their values; '' for 0."""
    known, texts = [None] * len(statements), []
    for kind, *step in reasoning(statements) if granularity else ():
        if kind == 'reconsider':
            person, exhausted = step
            texts.append(f'>{person + 1}')
            for i in (person, *exhausted):
                known[i] = None
        elif kind in ('ok', 'conflict'):
            person, role, *speaker = step
            known[person] = role
            text = f'{person + 1}{roles[not role]}{"-" if speaker else "+"}'
            if granularity > 1:
                claimant = speaker[0] if speaker else person
                text += f'{claimant + 1}:' * len(speaker) + _claim(
                    statements[claimant], roles, known, granularity
                )
            texts.append(text)
            if speaker:
                known[person] = None
    return ','.join(texts)


def _claim(statement: tuple, roles: str, known: Sequence[bool | None], granularity: int) -> str:
    texts = [written(statement, roles)]
    if granularity > 2:
        texts += [written(statement, roles, known), _value(statement, known)]
    return ':'.join(text for text in dict.fromkeys(texts) if text)


def _value(statement: tuple, known: Sequence[bool | None]) -> str:
    """Returns '1' or '0' where the known roles settle the value of a statement, else ''."""
    people = len(known)
    knight, everything = tables(people)
    possible = everything
    for i, role in enumerate(known):
        if role is not None:
            possible &= knight[i] if role else everything ^ knight[i]
    true = truth(statement, people) & possible
    return '1' if true == possible else '' if true else '0'


def row_of(puzzle: Puzzle, solution: Sequence[bool], granularity: int) -> dict:
    """Builds the row of a puzzle with its only solution (True: tells the truth)."""
    statements = ''.join(
        f',{i + 1}:{written(puzzle.statements[i], puzzle.roles)}' for i in puzzle.order
    )
    answer = ''.join(puzzle.roles[not role] for role in solution)
    work = working(puzzle.statements, puzzle.roles, granularity)
    return {
        'prompt': f'{puzzle.roles}{statements}:',
        'completion': f'{work}#{answer}',
        'solution': answer,
    }


def draw(rng: np.random.Generator, level: int, *, granularity: int) -> dict:
    """Draws a puzzle of `level` people."""
    statements, solution = sample_puzzle(rng, level)
    return row_of(Puzzle(ROLES[0], tuple(range(level)), statements), solution, granularity)


def key(row: dict) -> str:
    """Returns what identifies a problem: each person's statement, whatever the order and
    letters."""
    return str(parsed(row['prompt']).statements)


def perturbed(
    row: dict, kind: str, rng: np.random.Generator, *, granularity: int = 1
) -> dict | None:
    """Draws a row that differs a little from a given one.

    Args:
      row: of `knights`, or of this function.
      kind: 'statement' (one person says something else) and 'leaf' (one claim about a role is
        another) have a single solution too, and not the same. 'reorder' (statements in another
        order), 'roles' (other letters) and 'flip' (the two letters change places, also in what the
        prompt opens with) change nothing but the words.
      rng: of the draws.
      granularity: of the new demonstration; see `knights`.

    Returns:
      The row, with the other columns of the old one; None where the puzzle has no such
      perturbation, as nearly half of those of two people, one in seven of those of three and hardly
      any of six have for 'leaf'. Leave its problem out of both sides of `limem`.

    Raises:
      UserError: an unknown kind, or a row that is not of this task.
    """
    check_choice(f'knights: unknown perturbation "{kind}"', kind, KINDS)
    puzzle = parsed(row['prompt'])
    solution = [letter == puzzle.roles[0] for letter in row['solution']]
    if kind in ('statement', 'leaf'):
        resampled = resample(rng, puzzle.statements, kind)
        if resampled is None:
            return None
        puzzle, solution = puzzle._replace(statements=resampled[0]), resampled[1]
    elif kind == 'reorder':
        order = puzzle.order
        while order == puzzle.order:
            order = tuple(rng.permutation(len(order)).tolist())
        puzzle = puzzle._replace(order=order)
    elif kind == 'roles':
        others = [pair for pair in ROLES if set(pair) != set(puzzle.roles)]
        puzzle = puzzle._replace(roles=others[rng.integers(len(others))])
    else:
        puzzle = puzzle._replace(roles=puzzle.roles[::-1])
    return row | row_of(puzzle, solution, granularity)


def limem(solved: Sequence[bool], solved_perturbed: Sequence[bool]) -> dict[str, float]:
    """Measures memorisation: what is solved, but not where the problem is a little different.

    With accuracy Acc the share solved, and consistency CR the share of those whose perturbed
    problem is solved too: LiMem = Acc (1 - CR), Xie et al. 2024.

    Args:
      solved: N flags, one for each problem.
      solved_perturbed: N flags, for the problems' perturbations, in the same order.

    Returns:
      `accuracy`, `consistency` (nan where nothing is solved) and `limem` (0 there).

    Raises:
      UserError: no problem, or not as many flags of one kind as of the other.
    """
    if not len(solved) or len(solved) != len(solved_perturbed):
        raise UserError(
            f'limem: takes one flag per problem and one per perturbed problem, got {len(solved)} '
            f'and {len(solved_perturbed)}.'
        )
    once = sum(map(bool, solved))
    both = sum(bool(a) and bool(b) for a, b in zip(solved, solved_perturbed))
    return {
        'accuracy': once / len(solved),
        'consistency': both / once if once else float('nan'),
        'limem': (once - both) / len(solved),
    }


def knights(
    *,
    split: OneOf(*STREAMS) = 'train',
    size: AtLeast(1),
    levels: tuple[Between(MIN_PEOPLE, MAX_PEOPLE), ...] = (2, 3),
    seed: Seed = 0,
    granularity: Between(0, 3) = 1,
) -> Task:
    """Builds the task Knights and Knaves, of puzzles with exactly one solution. There are 399
    puzzles of two people, and very many of three and more.

    Args:
      split: 'train' (demonstrations), 'prompts' (problems for reinforcement), 'validation' or
        'test'.
      size: number of problems; a longer split starts with the problems of a shorter one.
      levels: numbers of people, drawn evenly, from 2 to 8.
      seed: not negative.
      granularity: of the demonstrations: 0 the answer, 1 verdicts, 2 claims, 3 their values. The
        problems do not depend on it.

    Raises:
      UserError: a value out of range.
    """
    settings = {'granularity': whole('knights', 'granularity', granularity, 0, 3)}
    levels = checked_levels('knights', levels, MIN_PEOPLE, MAX_PEOPLE)
    source = Generated(
        'knights', split, size, seed, levels, functools.partial(draw, **settings), key, settings
    )
    return Task(f'knights/{split}', source, verify, ON_TOKENS)
