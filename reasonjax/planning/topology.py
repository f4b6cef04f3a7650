"""Pods by name: what their chips can do, and devices to compile for without having them."""

import contextlib
import dataclasses
import importlib.util
import itertools
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from reasonjax.errors import UserError, listing, nearest

GB, GIB = 10**9, 2**30
GBIT = 10**9 / 8


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks of one chip.

    Attributes:
      kind: the generation's name in topologies.
      flops: bfloat16 operations per second.
      hbm: bytes of memory.
      hbm_bandwidth: bytes per second.
      ici: bytes per second a chip can send to its neighbours over all its links together (half of
        what is published as bidirectional).
      dcn: bytes per second of the data-centre network, between slices.
      devices: as JAX sees one chip; its peaks are shared between them.
      usable: bytes that the compiler lets one device use.
      axes: dimensions of the torus.
      pod: chips of the largest slice.
    """

    kind: str
    flops: float
    hbm: float
    hbm_bandwidth: float
    ici: float
    dcn: float
    devices: int
    usable: float
    axes: int
    pod: int


# Peaks: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, "key specifications", read November
# 2026. Bidirectional interconnect there: 400, 1200, 800 and 1200 GB/s for v5e, v5p, v6e and TPU7x;
#       v4 is given as 2400 Gbit/s one way. Network per chip: v5p, v6e and TPU7x in the
# table of TPU7x; v5e as 6.4 Tbit/s per 256 chips; v4 was not found and is taken to be v5e's.
# `usable`: what the compiler (libtpu 0.0.51) named as available in its out-of-memory message; on v4
# it compiles for single cores.
CHIPS = {
    'v4': Chip('v4', 275e12, 32 * GIB, 1228 * GB, 300 * GB, 25 * GBIT, 2, 15.25 * GIB, 3, 4096),
    'v5e': Chip('v5e', 197e12, 16 * GIB, 819 * GB, 200 * GB, 25 * GBIT, 1, 15.75 * GIB, 2, 256),
    'v5p': Chip('v5p', 459e12, 95 * GIB, 2765 * GB, 600 * GB, 50 * GBIT, 1, 95.73 * GIB, 3, 8960),
    'v6e': Chip('v6e', 918e12, 32 * GIB, 1638 * GB, 400 * GB, 100 * GBIT, 1, 31.24 * GIB, 2, 256),
    'tpu7x': Chip(
        'tpu7x', 2307e12, 192 * GIB, 7380 * GB, 600 * GB, 100 * GBIT, 2, 94.74 * GIB, 3, 9216
    ),
}
# Simulated devices have no peaks, and share the host's memory.
HOST = Chip('cpu', 0, 0, 0, 0, 0, 1, math.inf, 1, 4096)

PATTERN = re.compile(r'(?:(\d{1,6})\*)?([a-z0-9]+):(\d{1,6}(?:x\d{1,6})*)')
SMALL = (1, 2, 4, 8, 16, 32)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of a pod.

    Attributes:
      name: as it was given.
      chip: what it is made of.
      shape: chips along each axis of a slice.
      slices: how many, joined by the data-centre network.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int

    @property
    def chips(self) -> int:
        """All chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def size(self) -> int:
        """Devices, as JAX counts them."""
        return self.chips * self.chip.devices


def parse(name: str) -> Topology:
    """Reads 'v5e:16x16', '2*v5p:4x4x4' (two slices) or 'cpu:8' (as many simulated devices).

    Raises:
      UserError: an unknown generation, or a shape that it does not come in; offers the nearest.
    """
    match = PATTERN.fullmatch(name.strip())
    kinds = (*CHIPS, 'cpu')
    if match is None:
        raise UserError(
            f'--topology {name}: expected GENERATION:SHAPE such as v5e:16x16, 2*v5p:4x4x4 (two '
            'slices) or cpu:8.'
        )
    slices, kind, shape = int(match[1] or 1), match[2], tuple(map(int, match[3].split('x')))
    if kind not in kinds:
        hint = nearest(kind, kinds) or (' TPU7x is called tpu7x.' if '7' in kind else '')
        raise UserError(
            f'--topology {name}: unknown generation "{kind}".{hint} Known: {listing(kinds)}.'
        )
    chip = HOST if kind == 'cpu' else CHIPS[kind]
    topology = Topology(name.strip(), chip, shape, slices)
    _check(topology)
    return topology


def _check(topology: Topology) -> None:
    chip, shape = topology.chip, topology.shape
    if chip.kind == 'cpu':
        if len(shape) != 1 or not 1 <= shape[0] <= chip.pod or topology.slices != 1:
            raise UserError(
                f'--topology {topology.name}: simulated devices are written cpu:N, N from 1 to '
                f'{chip.pod}.'
            )
        return
    if topology.slices < 1 or shape not in shapes(chip):
        wanted = sorted(shapes(chip), key=lambda other: _distance(shape, other))[:3]
        near = listing(f'{chip.kind}:{"x".join(map(str, other))}' for other in wanted)
        more = (
            ' Larger runs take several slices: 2*v5e:16x16.' if math.prod(shape) > chip.pod else ''
        )
        raise UserError(
            f'--topology {topology.name}: no slice of {chip.kind} has this shape; nearest: '
            f'{near}.{more}'
        )


def shapes(chip: Chip) -> list[tuple[int, ...]]:
    """Lists the shapes a slice comes in. They are powers of two up to 16x16, or in three dimensions
    multiples of four (below that 1 and 2)."""
    if chip.axes == 2:
        return [
            (a, b)
            for a, b in itertools.product(SMALL, SMALL)
            if a <= b <= 2 * a and a * b <= chip.pod
        ]
    long = range(4, chip.pod // 16 + 1, 4)
    small = [(1, 1, 1), (1, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]
    cubes = [
        (a, b, c) for a in long for b in long for c in long if a <= b <= c and a * b * c <= chip.pod
    ]
    return small + cubes


def _distance(shape: tuple[int, ...], other: tuple[int, ...]) -> float:
    size = abs(math.log(max(1, math.prod(shape)) / math.prod(other)))
    return size + 0.1 * sum(
        abs(a - b) / (a + b)
        for a, b in itertools.zip_longest(sorted(shape), sorted(other), fillvalue=1)
    )


def devices(topology: Topology) -> list[Any]:
    """Returns devices to compile for; they cannot run anything, unless they are the host's own.

    Raises:
      UserError: the TPU compiler is not installed, it knows no such slice, or this process has
        fewer simulated devices already.
    """
    if topology.chip.kind == 'cpu':
        return _host_devices(topology.size)
    if importlib.util.find_spec('libtpu') is None:
        raise UserError(
            f'--topology {topology.name}: compiling for TPUs needs their compiler: pip install '
            'libtpu.'
        )
    _quiet()
    shape = 'x'.join(map(str, topology.shape))
    slices = {'num_slices': topology.slices} if topology.slices > 1 else {}
    try:
        described = topologies.get_topology_desc(
            platform='tpu', topology_name=f'{topology.chip.kind}:{shape}', **slices
        )
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f'--topology {topology.name}: the TPU compiler refuses it: {str(error).splitlines()[0]}'
        ) from error
    return list(described.devices)


def _host_devices(number: int) -> list[Any]:
    # Refused once something has asked for the host's devices: from then on there are as many as
    # there are.
    with contextlib.suppress(RuntimeError):
        jax.config.update('jax_num_cpu_devices', number)
    there = jax.devices('cpu')
    if len(there) < number:
        raise UserError(
            f'--topology cpu:{number}: this process has {len(there)} simulated devices already; '
            'start a new one.'
        )
    return there[:number]


def _quiet() -> None:
    """Keeps the compiler from looking for a TPU and from locking out other processes. It would
    report a missing TPU at length, and stop processes that only compile."""
    defaults = {
        'TPU_SKIP_MDS_QUERY': '1',
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'TPU_WORKER_ID': '0',
        'TPU_ACCELERATOR_TYPE': 'v5p-8',
        'TPU_STDERR_LOG_LEVEL': '3',
        'TPU_MIN_LOG_LEVEL': '3',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true',
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
