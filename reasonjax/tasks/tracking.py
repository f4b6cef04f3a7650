"""Tracking a state through a list of inputs: four machines, of which three are serial by nature.

After "Chain of Thought Empowers Transformers to Solve Inherently Serial Problems" (Li et al. 2024,
arXiv 2402.12875). A transformer of constant depth that answers at once can only do what shallow
circuits can; one that writes the states down can go as deep as it writes.

    machine       prompt                  states            answer         level n
    modular       R3,5,1=                 3,1,2             2              numbers; the running sum, mod 7
    permutation   G21345,13254=           21345,31254       31254          permutations; their running product
    squaring      Q05;83**=               25,44             44             squarings; r^2, r^4, ... mod p, of r;p
    circuit       C1,0,A0001,N02=         1,0,0,1           1              gates with inputs; their values in order

The states s of `permutation` list the image of each symbol, s(1) s(2) ...; the permutation that
comes first is applied first, so a permutation p takes s to x -> p(s(x)). In `circuit` gate 00 is
the first; `A` and `O` stand before two gates and `N` before one, all earlier; the answer is the
value of the last. `modular` is the control: a sum can be computed in parallel.

Granularity, for R3,5,1=:

    0  #2                             the answer alone
    1  3,1,2#2                        the states
    2  0+3=3,3+5=1,1+1=2#2            each state with what it is made of (in `squaring` also the square: 05*05=0025>25)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from reasonjax.bounds import AtLeast, Between, OneOf, Seed
from reasonjax.errors import UserError, check_choice
from reasonjax.protocols import Task
from reasonjax.tasks.exact import ON_TOKENS, verify
from reasonjax.tasks.generated import STREAMS, Generated

CHARACTERS = '0123456789ACGNOQR#=,;+*>'
GRAINS = (0, 1, 2)
MACHINES = ('modular', 'permutation', 'squaring', 'circuit')
SMALLEST_CIRCUIT = 2  # an input, and a gate that reads it


class Step(NamedTuple):
    """A state, and the same with what it was made of."""

    state: str
    whole: str


@dataclasses.dataclass(frozen=True)
class Machine:
    """How problems of n steps are drawn: `draw(rng, n) -> (prompt, steps)`, n from `shortest` to
    `longest`."""

    draw: Callable[[np.random.Generator, int], tuple[str, list[Step]]]
    shortest: int
    longest: int
    key: Callable[[str], str] = str


def _modular(rng: np.random.Generator, n: int, *, modulus: int) -> tuple[str, list[Step]]:
    width, total, steps = len(str(modulus - 1)), 0, []
    numbers = [f'{a:0{width}d}' for a in rng.integers(modulus, size=n).tolist()]
    for number in numbers:
        before, total = f'{total:0{width}d}', (total + int(number)) % modulus
        steps.append(Step(f'{total:0{width}d}', f'{before}+{number}={total:0{width}d}'))
    return f'R{",".join(numbers)}=', steps


def _permutation(rng: np.random.Generator, n: int, *, group: int) -> tuple[str, list[Step]]:
    state, steps = '123456789'[:group], []
    permutations = [''.join(str(x + 1) for x in rng.permutation(group).tolist()) for _ in range(n)]
    for permutation in permutations:
        before, state = state, ''.join(permutation[int(symbol) - 1] for symbol in state)
        steps.append(Step(state, f'{before}*{permutation}={state}'))
    return f'G{",".join(permutations)}=', steps


@functools.lru_cache
def _primes(largest: int) -> tuple[int, ...]:
    """Returns the primes p = 3 (mod 4) up to `largest` that have as many digits as `largest`.

    For them squaring permutes the squares, so that the states never run into 1, however many
    squarings follow.
    """
    smallest = 10 ** (len(str(largest)) - 1)
    return tuple(
        p
        for p in range(max(smallest, 7), largest + 1)
        if p % 4 == 3 and all(p % d for d in range(3, int(p**0.5) + 1, 2))
    )


def _squaring(
    rng: np.random.Generator, n: int, *, primes: tuple[int, ...]
) -> tuple[str, list[Step]]:
    p = primes[int(rng.integers(len(primes)))]
    state, width, steps = int(rng.integers(2, p - 1)), len(str(p)), []
    prompt = f'Q{state:0{width}d};{p}{"*" * n}='
    for _ in range(n):
        before, square = f'{state:0{width}d}', state * state
        state = square % p
        steps.append(
            Step(
                f'{state:0{width}d}', f'{before}*{before}={square:0{2 * width}d}>{state:0{width}d}'
            )
        )
    return prompt, steps


def _base_of(prompt: str) -> str:
    """Returns what identifies a problem of squaring: the modulus and the first square. Problems
    that differ only in the number of squarings share their states, and count as one."""
    r, p = prompt[1:].rstrip('=').rstrip('*').split(';')
    return f'{p}:{min(int(r), int(p) - int(r))}'


def _circuit(rng: np.random.Generator, n: int) -> tuple[str, list[Step]]:
    gates, values, steps = [], [], []
    for i in range(n):
        # The last gate always computes something. One gate alone can only be negated.
        kind = '01AON'[int(rng.integers(2 if i == n - 1 else 0, 5)) if i else int(rng.integers(2))]
        kind = 'N' if i == 1 and kind in 'AO' else kind
        if kind in '01':
            gate, value, gate_text = kind, int(kind), kind
        else:
            operands = rng.choice(i, size=1 if kind == 'N' else 2, replace=False).tolist()
            bits = [values[j] for j in operands]
            gate, gate_text = (
                kind + ''.join(form.format(x) for x in xs)
                for form, xs in (('{:02d}', operands), ('{}', bits))
            )
            value = {'A': min(bits), 'O': max(bits), 'N': 1 - bits[0]}[kind]
        gates.append(gate)
        values.append(value)
        steps.append(Step(str(value), f'{gate_text}={value}'))
    return f'C{",".join(gates)}=', steps


def _machines(modulus: int, group: int, prime: int) -> dict[str, Machine]:
    return {
        'modular': Machine(functools.partial(_modular, modulus=modulus), 1, 1000),
        'permutation': Machine(functools.partial(_permutation, group=group), 1, 1000),
        'squaring': Machine(functools.partial(_squaring, primes=_primes(prime)), 1, 1000, _base_of),
        'circuit': Machine(_circuit, SMALLEST_CIRCUIT, 100),  # names of gates have two digits
    }


def tracking(
    *,
    split: OneOf(*STREAMS) = 'train',
    size: AtLeast(1),
    levels: tuple[Between(1, 1000), ...] = (4, 6, 8),
    seed: Seed = 0,
    granularity: Between(0, 2) = 1,
    machine: OneOf(*MACHINES) = 'permutation',
    every: AtLeast(1) = 1,
    modulus: Between(2, 1000) = 7,
    group: Between(2, 9) = 5,
    prime: Between(7, 9999) = 997,
) -> Task:
    """Builds the task of giving the state of a machine after n inputs. Prompts, states and answers
    of each machine stand at the top of this file.

    A problem is its whole prompt, with the modulus or the size of the group. In `squaring` it is r
    and p alone, where r and p - r count as one: two problems that differ in the number of squarings
    share their states, and are of one split.

    Args:
      split: 'train' (demonstrations), 'prompts' (problems for reinforcement), 'validation' or
        'test'.
      size: number of problems.
      levels: numbers of steps n, drawn evenly: 1 to 1000, for `circuit` 2 to 100 gates.
      seed: not negative.
      granularity: of demonstrations: 0 the answer alone, 1 the states, 2 each state with what it is
        made of.
      machine: 'modular', 'permutation', 'squaring' or 'circuit'.
      every: a demonstration shows every nth step only; 1 shows all.
      modulus: of `modular`; 2 to 1000.
      group: symbols that `permutation` permutes; 2 to 9. At 5 and more the group is not solvable,
        and the problem complete for NC1.
      prime: largest modulus of `squaring`, 7 to 9999. Drawn are the primes p = 3 (mod 4) up to it
        that have as many digits as it has.

    Raises:
      UserError: a value out of range.
    """
    check_choice(f'tracking: unknown machine "{machine}"', machine, MACHINES)
    for knob, value, low, high in (
        ('modulus', modulus, 2, 1000),
        ('group', group, 2, 9),
        ('prime', prime, 7, 9999),
    ):
        if not low <= value <= high:
            raise UserError(
                f'tracking: {knob} must be from {low} to {high}, got {value}; nearest: '
                f'{min(max(value, low), high)}.'
            )
    if not _primes(prime):
        raise UserError(
            f'tracking: there is no prime p = 3 (mod 4) up to prime={prime} with as many digits; '
            f'nearest: {_next_prime(prime)}.'
        )
    if granularity not in GRAINS:
        raise UserError(
            'tracking: granularity must be 0 (the answer alone), 1 (states) or 2 (states and '
            f'operands), got {granularity}.'
        )
    if every < 1:
        raise UserError(f'tracking: every must be at least 1, got {every}.')
    chosen = _machines(modulus, group, prime)[machine]
    if not all(isinstance(n, int) and chosen.shortest <= n <= chosen.longest for n in levels):
        raise UserError(
            f'tracking: levels of {machine} must be from {chosen.shortest} to {chosen.longest}, '
            f'got {levels!r}.'
        )

    def draw(rng: np.random.Generator, n: int) -> dict:
        prompt, steps = chosen.draw(rng, n)
        shown = [step[granularity - 1] for step in steps[every - 1 :: every]] if granularity else []
        solution = steps[-1].state
        return {
            'prompt': prompt,
            'completion': f'{",".join(shown)}#{solution}',
            'solution': solution,
        }

    kind = {'modular': f'modular{modulus}', 'permutation': f'permutation{group}'}.get(
        machine, machine
    )
    settings = dict(
        machine=machine,
        granularity=granularity,
        every=every,
        modulus=modulus,
        group=group,
        prime=prime,
    )
    problems = Generated(
        'tracking',
        split,
        size,
        seed,
        tuple(levels),
        draw,
        lambda row: f'{kind}:{chosen.key(row["prompt"])}',
        settings,
    )
    return Task(f'tracking/{machine}/{split}', problems, verify, ON_TOKENS)


def _next_prime(largest: int) -> int:
    return next(p for p in range(largest, 10_000) if _primes(p))
