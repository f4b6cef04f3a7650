"""Programs over integers that write down what they compute, with noise in the computation if that
is wanted.

After "Understanding the Effect of Noise in LLM Training Data with Algorithmic Chains of Thought"
(Havrilla, Iyer 2024, arXiv 2402.04004). A program is plain Python over `Traced` integers: each
operation appends a line to the trace.

    program    prompt        level                answer
    addition   A697+559=     digits               01256, a digit more than the numbers have
    sum        S12,35,7=     numbers              54
    maximum    X12,35,7=     numbers              35
    sorting    T12,35,7=     numbers              7,12,35
    median     D12,35,7=     numbers, odd         12

Operations: + sum; / and % quotient and remainder; < and > the smaller and the greater of two.
Addition goes through the columns from the right, each with two sums, a carry and a digit; sorting
and median exchange neighbours (bubble sort).

Granularity, for S12,35,7=:

    0  #54                              the answer alone
    1  12,47,54#54                      the result of each operation
    2  0+12=12,12+35=47,47+7=54#54      the operation too
    3  S:0+12=12,S:12+35=47,S:...#54    and the variable that takes the result (of a list, the place: 0, 1, ...)

**Dynamic noise** replaces the result of an operation by another number and goes on from that: the
trace hangs together, and later lines and perhaps the answer are wrong. With `dynamic=False` results
are misprinted in the same way, but the computation goes on from the right one: the answer stays
right. Noise that knows nothing of the computation is the transform `static_noise`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from reasonjax.bounds import AtLeast, Between, Fraction, OneOf, Seed
from reasonjax.errors import UserError, check_choice
from reasonjax.protocols import Task
from reasonjax.tasks.exact import ON_TOKENS, verify
from reasonjax.tasks.generated import STREAMS, Generated

CHARACTERS = '0123456789ACDSTX#=,:+/%<>'
GRAINS = (0, 1, 2, 3)
MAX_DIGITS = 15  # of a number; 10^15 is drawn from int64


@dataclasses.dataclass
class Tape:
    """Where operations write their lines, and the noise that comes over their results.

    Attributes:
      noise: draws the noise; None for none.
      intensity: probability with which a result is replaced.
      dynamic: computation continues from what was put in its place.
      lines: [result, expression with result, changed variable] of each operation.
      replaced: how many results were replaced.
    """

    noise: np.random.Generator | None = None
    intensity: float = 0.0
    dynamic: bool = True
    lines: list[list[str]] = dataclasses.field(default_factory=list)
    replaced: int = 0

    def write(self, expression: str, result: int) -> 'Traced':
        """Appends a line; returns the integer with which the program continues."""
        printed = result
        if self.noise is not None and self.noise.random() < self.intensity:
            printed = perturbed(result, self.noise)
            self.replaced += 1
        self.lines.append([str(printed), f'{expression}={printed}', ''])
        return Traced(printed if self.dynamic else result, self)


@dataclasses.dataclass(frozen=True)
class Traced:
    """An integer whose operations write lines on a tape; operations that write none are errors, not
    silent."""

    value: int
    tape: Tape = dataclasses.field(repr=False, compare=False)

    def __add__(self, other: 'Traced') -> 'Traced':
        return self.tape.write(f'{self}+{other}', self.value + other.value)

    def __floordiv__(self, other: int) -> 'Traced':
        return self.tape.write(f'{self}/{other}', self.value // other)

    def __mod__(self, other: int) -> 'Traced':
        return self.tape.write(f'{self}%{other}', self.value % other)

    def smaller(self, other: 'Traced') -> 'Traced':
        return self.tape.write(f'{self}<{other}', min(self.value, other.value))

    def greater(self, other: 'Traced') -> 'Traced':
        return self.tape.write(f'{self}>{other}', max(self.value, other.value))

    def into(self, variable: str) -> 'Traced':
        """Records which variable takes this result; to be called on the last result."""
        self.tape.lines[-1][2] = variable
        return self

    def __str__(self) -> str:
        return str(self.value)


def perturbed(value: int, rng: np.random.Generator) -> int:
    """Changes one random digit of a whole number, not negative."""
    digits = str(value)
    place = int(rng.integers(len(digits)))
    other = (int(digits[place]) + int(rng.integers(1, 10))) % 10
    return int(f'{digits[:place]}{other}{digits[place + 1 :]}')


def _addition(numbers: Sequence[Traced], tape: Tape, k: int) -> str:
    columns = [reversed(f'{number.value:0{k}d}') for number in numbers]
    carry, digits = Traced(0, tape), []
    for x, y in zip(*columns):
        total = (Traced(int(x), tape) + Traced(int(y), tape)).into('S')
        total = (total + carry).into('S')
        carry = (total // 10).into('C')
        digits.append((total % 10).into('D'))
    return ''.join(map(str, [carry, *reversed(digits)]))


def _sum(numbers: Sequence[Traced], tape: Tape, k: int) -> str:
    total = Traced(0, tape)
    for number in numbers:
        total = (total + number).into('S')
    return str(total)


def _maximum(numbers: Sequence[Traced], tape: Tape, k: int) -> str:
    best = numbers[0]
    for number in numbers[1:]:
        best = best.greater(number).into('X')
    return str(best)


def _sorted(numbers: Sequence[Traced]) -> list[Traced]:
    items = list(numbers)
    for end in range(len(items) - 1, 0, -1):
        for j in range(end):
            low = items[j].smaller(items[j + 1]).into(str(j))
            items[j], items[j + 1] = low, items[j].greater(items[j + 1]).into(str(j + 1))
    return items


def _sorting(numbers: Sequence[Traced], tape: Tape, k: int) -> str:
    return ','.join(map(str, _sorted(numbers)))


def _median(numbers: Sequence[Traced], tape: Tape, k: int) -> str:
    return str(_sorted(numbers)[k // 2])


@dataclasses.dataclass(frozen=True)
class Program:
    """`run(numbers, tape, level) -> answer`; the letter that prompts begin with; the levels there
    are."""

    run: Callable[[Sequence[Traced], Tape, int], str]
    letter: str
    levels: range


PROGRAMS = {
    'addition': Program(_addition, 'A', range(1, MAX_DIGITS + 1)),
    'sum': Program(_sum, 'S', range(2, 51)),
    'maximum': Program(_maximum, 'X', range(2, 51)),
    'sorting': Program(_sorting, 'T', range(2, 51)),
    'median': Program(_median, 'D', range(3, 51, 2)),
}
INPUTS = ('magnitude', 'length')


def _number(rng: np.random.Generator, digits: int, inputs: str) -> int:
    if inputs == 'magnitude':
        return int(rng.integers(10**digits))
    length = int(rng.integers(1, digits + 1))
    return int(rng.integers(10 ** (length - 1) if length > 1 else 0, 10**length))


def traces(
    *,
    split: OneOf(*STREAMS) = 'train',
    size: AtLeast(1),
    levels: tuple[AtLeast(1), ...] = (3,),
    seed: Seed = 0,
    granularity: Between(0, 3) = 2,
    program: OneOf(*PROGRAMS) = 'addition',
    contamination: Fraction = 0.0,
    intensity: Fraction = 0.0,
    dynamic: bool = True,
    digits: Between(1, MAX_DIGITS) = 2,
    inputs: OneOf(*INPUTS) = 'magnitude',
) -> Task:
    """Builds the task of running a program over integers and writing its trace. Programs, prompts
    and traces stand at the top of this file.

    Noise changes completions only: prompts and `solution` are those of the task without it, row by
    row, and rows with `contamination` or `intensity` 0 are equal to it. `noised` says how many
    results were replaced in the row's trace.

    Args:
      split: 'train' (demonstrations), 'prompts' (problems for reinforcement), 'validation' or
        'test'.
      size: number of problems.
      levels: drawn evenly: digits of both numbers of 'addition', 1 to 15; else how many numbers, 2
        to 50, of 'median' odd ones.
      seed: not negative.
      granularity: of demonstrations: 0 the answer alone, 1 results, 2 operations, 3 operations and
        variables.
      program: 'addition', 'sum', 'maximum', 'sorting' or 'median'.
      contamination: share of demonstrations that noise comes over; neutral 0.
      intensity: probability with which each result of those is replaced, by itself with one digit
        changed; neutral 0.
      dynamic: the computation continues from the replaced result; False only misprints it.
      digits: most digits of a number in a list, 1 to 15 (of 'addition' the level says).
      inputs: 'magnitude' draws numbers evenly below 10^digits; 'length' first draws how many
        digits.

    Raises:
      UserError: a value out of range.
    """
    for knob, value, choices in (('program', program, PROGRAMS), ('inputs', inputs, INPUTS)):
        check_choice(f'traces: unknown {knob} "{value}"', value, choices)
    chosen = PROGRAMS[program]
    wrong = [k for k in levels if not isinstance(k, int) or k not in chosen.levels]
    if wrong:
        near = (
            min(chosen.levels, key=lambda k: abs(k - wrong[0]))
            if isinstance(wrong[0], int | float)
            else chosen.levels[0]
        )
        odd = 'odd ' if chosen.levels.step == 2 else ''
        raise UserError(
            f'traces: levels of {program} must be {odd}numbers from {chosen.levels[0]} to '
            f'{chosen.levels[-1]}, '
            f'got {wrong[0]!r}; nearest: {near}.'
        )
    if granularity not in GRAINS:
        raise UserError(
            f'traces: granularity must be 0, 1, 2 or 3, got {granularity}; nearest: '
            f'{min(max(granularity, 0), 3)}.'
        )
    for knob, share in (('contamination', contamination), ('intensity', intensity)):
        if not 0 <= share <= 1:
            raise UserError(f'traces: {knob} is a share from 0 to 1, got {share}.')
    if not 1 <= digits <= MAX_DIGITS:
        raise UserError(
            f'traces: digits must be from 1 to {MAX_DIGITS}, got {digits}; nearest: '
            f'{min(max(digits, 1), MAX_DIGITS)}.'
        )

    def draw(rng: np.random.Generator, level: int) -> dict:
        if program == 'addition':
            values = [_number(rng, level, inputs) for _ in range(2)]
            prompt = '+'.join(f'{value:0{level}d}' for value in values)
        else:
            values = [_number(rng, digits, inputs) for _ in range(level)]
            prompt = ','.join(map(str, values))
        # The noise has a generator of its own: with noise or without, the problems are the same.
        word, noised = int(rng.integers(2**63)), rng.random() < contamination
        clean, tape = (
            Tape(),
            Tape(
                np.random.Generator(np.random.Philox(key=word)) if noised else None,
                intensity,
                dynamic,
            ),
        )
        solution, answer = (
            chosen.run([Traced(value, t) for value in values], t, level) for t in (clean, tape)
        )
        return {
            'prompt': f'{chosen.letter}{prompt}=',
            'completion': f'{",".join(_line(line, granularity) for line in tape.lines if granularity)}#{answer}',
            'solution': solution,
            'noised': tape.replaced,
        }

    settings = dict(
        program=program,
        granularity=granularity,
        contamination=contamination,
        intensity=intensity,
        dynamic=dynamic,
        digits=digits,
        inputs=inputs,
    )
    problems = Generated(
        'traces', split, size, seed, tuple(levels), draw, lambda row: row['prompt'], settings
    )
    return Task(f'traces/{program}/{split}', problems, verify, ON_TOKENS)


def _line(line: Sequence[str], granularity: int) -> str:
    """Writes a line of a trace as a granularity from 1 shows it."""
    result, expression, variable = line
    return (result, expression, f'{variable}:{expression}')[granularity - 1]
