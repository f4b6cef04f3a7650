"""The least time a program can take on a chip, and what sets it."""

from collections.abc import Sequence
from typing import NamedTuple

from reasonjax.planning.topology import Chip


class Work(NamedTuple):
    """What one device does in a phase of a program.

    Attributes:
      flops: operations.
      memory: bytes read from and written to its own memory.
    """

    flops: float
    memory: float


class Roofline(NamedTuple):
    """Seconds that each resource would take alone, were it always busy.

    Attributes:
      compute, memory, interconnect, network: see `roofline`.
      seconds: the least that the program can take.
      bound: the resource that sets it.
    """

    compute: float
    memory: float
    interconnect: float
    network: float
    seconds: float
    bound: str


def roofline(chip: Chip, phases: Sequence[Work], sent: float, sent_across: float) -> Roofline:
    """Returns the bound of a program whose phases run in turn, with full overlap within a phase.

    Args:
      chip: its peaks, shared by its devices.
      phases: work of one device; a rollout and the update after it are two, since neither can use
        what the other leaves idle.
      sent: bytes that a device sends over the interconnect, all links of the chip at full speed.
      sent_across: bytes that a device sends to other slices.
    """
    share = 1 / chip.devices
    compute = [work.flops / (chip.flops * share) for work in phases]
    memory = [work.memory / (chip.hbm_bandwidth * share) for work in phases]
    wire, network = sent / (chip.ici * share), sent_across / (chip.dcn * share)
    of_phases = {
        'compute': sum(c for c, m in zip(compute, memory, strict=True) if c >= m),
        'memory': sum(m for c, m in zip(compute, memory, strict=True) if m > c),
    }
    candidates = {
        max(of_phases, key=of_phases.get): sum(of_phases.values()),
        'interconnect': wire,
        'network': network,
    }
    bound = max(candidates, key=candidates.get)
    return Roofline(sum(compute), sum(memory), wire, network, candidates[bound], bound)
