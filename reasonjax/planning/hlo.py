"""What a compiled program sends between devices, read from the compiler's text.

The compiler's own counts take the body of a loop once. Here a loop counts as often as it runs, and
each collective for what one device puts on the wire by the usual ring algorithms, n being the
devices of its group and S the bytes of its operand on one device:

    all-gather            (n - 1) S        all-to-all, ragged-all-to-all   (n - 1) / n S
    reduce-scatter        (n - 1) / n S    collective-permute              S, times the share of
    all-reduce        2 (n - 1) / n S                                      devices that send
    collective-broadcast, send          S

Understood are synchronous operations, pairs of -start and -done, `async-start` around a
computation, operations inside fusions, an all-gather spread over several fusions (TPU: counted
once), and an all-reduce fused with the slice that follows it (TPU: a reduce-scatter).
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

KINDS = (
    'all-gather',
    'all-reduce',
    'reduce-scatter',
    'all-to-all',
    'ragged-all-to-all',
    'collective-permute',
    'collective-broadcast',
    'send',
)
WIDTHS = {'pred': 1, 'token': 0, 'opaque': 0, 'bf16': 2, 'tf32': 4}

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$')
_ARRAY = re.compile(r'\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]')
_CALLED = re.compile(
    r'\b(?:calls|to_apply|body|condition|true_computation|false_computation|called_computations)=\{?%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'\bbranch_computations=\{([^}]*)\}')
_MESH_GROUPS = re.compile(r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^)]*\))? \{([^}]*)\}')
_IOTA_GROUPS = re.compile(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?')
_LISTED_GROUPS = re.compile(r'replica_groups=\{((?:\{[\d,]*\},?)*)\}')
_PAIRS = re.compile(r'source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `name = type operation(operands), attributes`."""

    name: str
    type: str
    operation: str
    operands: tuple[str, ...]
    attributes: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """What one operation sends, with all its repetitions.

    Attributes:
      kind: one of `KINDS`.
      devices: in its group.
      across: whether the group reaches over more than one slice.
      times: how often it runs.
      bytes: that one device sends, all times together (the mean over devices).
      source: the operation of the traced program that it comes from, as the compiler noted it.
    """

    kind: str
    devices: int
    across: bool
    times: float
    bytes: float
    source: str = ''


class Module:
    """A compiled program's text, taken apart.

    Attributes:
      computations: name -> its instructions by name, in order.
      entry: name of the one that runs first.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ''
        inside: dict[str, Instruction] | None = None
        for line in text.splitlines():
            head = _COMPUTATION.match(line)
            if head:
                inside = self.computations.setdefault(head[2], {})
                self.entry = head[2] if head[1] else self.entry
            elif inside is not None and (match := _INSTRUCTION.match(line)):
                inside[match[1]] = _instruction(match[1], match[2])
        if not self.entry:
            raise ValueError('no ENTRY computation in the program text')

    def collectives(
        self, devices: int, *, slices: int = 1, open_loops: float = 1
    ) -> list[Collective]:
        """Lists every collective that sends something.

        Args:
          devices: that the program runs on.
          slices: number of slices; devices are ordered slice by slice.
          open_loops: how often a loop runs whose end is found only while it runs.
        """

        @functools.cache
        def of(name: str) -> tuple[Collective, ...]:
            sent, spread = [], set()
            for instruction in self.computations.get(name, {}).values():
                if instruction.operation == 'while':
                    known = self.trips(name, instruction)
                    trips = open_loops if known is None else known
                    sent += _repeated(of(_attribute(instruction, 'body')), trips)
                    sent += _repeated(of(_attribute(instruction, 'condition')), trips + 1)
                elif instruction.operation == 'conditional':
                    sent += max(
                        (of(branch) for branch in _branches(instruction)), key=total, default=()
                    )
                elif instruction.operation in ('fusion', 'call', 'async-start', 'custom-call'):
                    for called in _CALLED.findall(instruction.attributes):
                        channel = self._spread_channel(called)
                        if channel is None or channel not in spread:
                            sent += of(called)
                        spread.add(channel)
                else:
                    sent += self._sent(name, instruction, devices, slices)
            return tuple(sent)

        return [one for one in of(self.entry) if one.bytes]

    def trips(self, computation: str, loop: Instruction) -> int | None:
        """Returns how often a `while` runs, or None where the text does not tell. Reads what the
        compiler wrote down, or a counter that the condition compares with a constant."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations.get(_attribute(loop, 'condition'), {})
        compares = [i for i in self._inlined(condition) if i[0].operation == 'compare']
        if len(compares) != 1:
            return None
        compare, resolve = compares[0]
        sides = [resolve(operand) for operand in compare.operands]
        direction = _attribute(compare, 'direction')
        if direction == 'GT':
            sides, direction = sides[::-1], 'LT'
        if direction != 'LT' or len(sides) != 2:
            return None
        # The loop's own state: what the condition reads of it was put there before the loop.
        begin, end = (self._initial(computation, loop, side) for side in sides)
        return None if end is None else max(0, end - (begin or 0))

    def _inlined(self, computation: dict[str, Instruction]) -> Iterator[tuple[Instruction, object]]:
        """Yields the instructions of a condition, those of its fusions included. Each comes with a
        function that finds an operand's instruction in the condition."""
        for instruction in computation.values():
            yield instruction, computation.get
            if instruction.operation in ('fusion', 'call'):
                inner = self.computations.get(_CALLED.findall(instruction.attributes)[0], {})

                def resolve(
                    name: str, inner: dict = inner, outer: Instruction = instruction
                ) -> Instruction | None:
                    there = inner.get(name)
                    if there is not None and there.operation == 'parameter':
                        return computation.get(outer.operands[int(there.operands[0])])
                    return there

                for one in inner.values():
                    yield one, resolve

    def _initial(
        self, computation: str, loop: Instruction, value: Instruction | None
    ) -> int | None:
        """Returns the integer that a condition's value has when the loop begins, or None."""
        instructions = self.computations[computation]
        if value is not None and value.operation == 'get-tuple-element':
            state = instructions.get(loop.operands[0])
            if state is None or state.operation != 'tuple':
                return None
            value = instructions.get(state.operands[int(_attribute(value, 'index'))])
        while value is not None and value.operation in ('copy', 'bitcast', 'convert'):
            value = instructions.get(value.operands[0])
        if (
            value is None
            or value.operation != 'constant'
            or not re.fullmatch(r'-?\d+', value.operands[0] if value.operands else '')
        ):
            return None
        return int(value.operands[0])

    def _spread_channel(self, computation: str) -> str | None:
        """Returns the channel of a collective that is one piece of several in fusions, or None."""
        for instruction in self.computations.get(computation, {}).values():
            if (
                'async_collective_fusion_config' in instruction.attributes
                and instruction.operation.removesuffix('-start') in KINDS
            ):
                return _attribute(instruction, 'channel_id')
        return None

    def _sent(
        self, computation: str, instruction: Instruction, devices: int, slices: int
    ) -> list[Collective]:
        kind = instruction.operation.removesuffix('-start')
        if kind not in KINDS:
            return []
        there = self.computations[computation]
        size = sum(type_bytes(there[name].type) for name in instruction.operands if name in there)
        if kind == 'ragged-all-to-all':
            size = type_bytes(there[instruction.operands[0]].type)
        if kind == 'all-reduce' and computation.startswith('all-reduce-scatter'):
            kind = 'reduce-scatter'
        per_slice = max(1, devices // slices)
        noted = re.search(r'op_name="([^"]*)"', instruction.attributes)
        collective = functools.partial(Collective, source=noted[1] if noted else '')
        if kind == 'collective-permute':
            pairs = _pairs(instruction.attributes)
            moving = [(a, b) for a, b in pairs if a != b]
            across = any(a // per_slice != b // per_slice for a, b in moving)
            return [collective(kind, len(pairs), across, 1, size * len(moving) / devices)]
        if kind == 'send':
            return [collective(kind, 2, 'is_host_transfer=true' in instruction.attributes, 1, size)]
        groups = replica_groups(instruction.attributes, devices)
        n = groups.shape[1]
        across = bool((groups // per_slice != groups[:, :1] // per_slice).any())
        return [collective(kind, n, across, 1, size * _factor(kind, n))]


def total(collectives: Sequence[Collective]) -> float:
    """Sums the bytes of collectives."""
    return sum(one.bytes for one in collectives)


def by_kind(collectives: Sequence[Collective]) -> dict[str, dict[str, float]]:
    """Returns kind -> how often such operations run, and the bytes one device sends in them."""
    summed: dict[str, dict[str, float]] = {}
    for one in collectives:
        entry = summed.setdefault(one.kind, {'times': 0.0, 'bytes': 0.0})
        entry['times'] += one.times
        entry['bytes'] += one.bytes
    return dict(sorted(summed.items()))


def type_bytes(text: str) -> float:
    """Counts the bytes, without padding, of the arrays in a type. A type is
    'f32[8,256]{1,0:T(8,128)}' or a tuple of such."""
    return sum(
        _width(dtype) * math.prod(map(int, filter(None, shape.split(','))))
        for dtype, shape in _ARRAY.findall(text)
    )


def replica_groups(attributes: str, devices: int) -> np.ndarray:
    """Reads the groups of a collective as [groups, devices of each]. There are three ways to write
    them; empty means all devices together."""
    mesh, iota, listed = (
        pattern.search(attributes) for pattern in (_MESH_GROUPS, _IOTA_GROUPS, _LISTED_GROUPS)
    )
    if mesh:
        return _mesh_groups(mesh[1], mesh[2])
    if iota:
        shape, of = _integers(iota[1]), _integers(iota[2])
        numbers = np.arange(math.prod(of)).reshape(of)
        return numbers.transpose(_integers(iota[3]) if iota[3] else range(len(of))).reshape(shape)
    rows = [_integers(row) for row in re.findall(r'\{([\d,]+)\}', listed[1])] if listed else []
    return np.array(rows or [range(devices)])


def _mesh_groups(axes: str, over: str) -> np.ndarray:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    names = list(sizes)
    chosen = []
    # A part of an axis, 'name':(before)size, is cut out of it first.
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", over):
        at = names.index(name)
        if size:
            size_of_axis = numbers.shape[at]
            parts = (int(before), int(size), size_of_axis // int(before) // int(size))
            numbers = numbers.reshape(*numbers.shape[:at], *parts, *numbers.shape[at + 1 :])
            names[at : at + 1] = [f'{name}/outer', f'{name}/part', f'{name}/inner']
            name = f'{name}/part'
        chosen.append(name)
    kept = [name for name in names if name not in chosen]
    ordered = numbers.transpose([names.index(name) for name in kept + chosen])
    return ordered.reshape(-1, math.prod(numbers.shape[names.index(name)] for name in chosen))


def _instruction(name: str, rest: str) -> Instruction:
    end = _type_end(rest)
    operation = re.match(r'\s*([\w\-]+)\(', rest[end:])
    if not operation:
        return Instruction(name, rest, '', (), '')
    begin = end + operation.end()
    close = _closing(rest, begin)
    inside = rest[begin:close]
    operands = tuple(re.findall(r'%([\w.\-]+)', inside)) or tuple(
        filter(None, (part.split(' ')[-1] for part in inside.split(', ')))
    )
    return Instruction(name, rest[:end], operation[1], operands, rest[close + 1 :])


def _type_end(rest: str) -> int:
    """Finds where the type ends: after a tuple's closing bracket, or at the first blank."""
    if rest.startswith('('):
        return _closing(rest, 1) + 1
    return rest.find(' ') if ' ' in rest else len(rest)


def _closing(text: str, begin: int) -> int:
    depth = 1
    for at in range(begin, len(text)):
        depth += (text[at] == '(') - (text[at] == ')')
        if not depth:
            return at
    return len(text)


def _width(dtype: str) -> float:
    if dtype in WIDTHS:
        return WIDTHS[dtype]
    digits = re.search(r'\d+', dtype)
    return int(digits[0]) / 8 if digits else 0


def _attribute(instruction: Instruction, name: str) -> str:
    match = re.search(rf'\b{name}=%?([\w.\-]+)', instruction.attributes)
    return match[1] if match else ''


def _branches(instruction: Instruction) -> list[str]:
    match = _BRANCHES.search(instruction.attributes)
    return re.findall(r'[\w.\-]+', match[1]) if match else _CALLED.findall(instruction.attributes)


def _repeated(collectives: Sequence[Collective], times: float) -> list[Collective]:
    return [
        dataclasses.replace(one, times=one.times * times, bytes=one.bytes * times)
        for one in collectives
    ]


def _factor(kind: str, n: int) -> float:
    share = (n - 1) / n
    return {'all-gather': n - 1, 'all-reduce': 2 * share, 'collective-broadcast': float(n > 1)}.get(
        kind, share
    )


def _pairs(attributes: str) -> list[tuple[int, int]]:
    match = _PAIRS.search(attributes)
    return (
        [tuple(_integers(pair)) for pair in re.findall(r'\{([\d,]+)\}', match[1])] if match else []
    )


def _integers(text: str) -> list[int]:
    return json.loads(f'[{text}]')
