"""What a training stage hands to the loop: where its batches come from."""

from collections.abc import Callable
from typing import Any, NamedTuple

from reasonjax.tracking.metrics import Timers
from reasonjax.training.batch import Batch
from reasonjax.training.checkpoint import Remembers
from reasonjax.training.iteration import OnDeviceSource, StepInputs


class StepBatches(NamedTuple):
    """What one step of a stage trains on.

    Attributes:
      batches: of the updates of this step, in order, on the mesh.
      metrics: what was measured to make them, numbers on the host.
      tokens: how many were produced or read to make them, for tokens per second.
    """

    batches: list[Batch]
    metrics: dict[str, float]
    tokens: int


class BatchSource(NamedTuple):
    """Where batches come from.

    Attributes:
      next: `(step, params, timers) -> StepBatches`, or with `on_device` `-> StepInputs` for the
        steps from this one on.
      data: the iterator whose position is saved; it has `counters`.
      updates: optimiser updates per step.
      temperature: of the log-probs that the objective sees.
      record: `(step) -> None`, writes what is worth keeping of the last step besides its metrics.
      together: adjacent rows that the objective compares.
      memory: what the method remembers from step to step, if anything; saved and restored with
        everything else.
      on_device: what makes the batches, where that is in one program with the updates.
      shapes: of the batches, where they are known before there is one: the update is compiled while
        the first is made.
    """

    next: Callable[[int, Any, Timers], StepBatches | StepInputs]
    data: Any
    updates: int
    temperature: float = 1.0
    record: Callable[[int], None] | None = None
    together: int = 1
    memory: Remembers | None = None
    on_device: OnDeviceSource | None = None
    shapes: dict | None = None

    @property
    def steps(self) -> int:
        """Steps that are dispatched together."""
        return self.on_device.iterations if self.on_device else 1


def dropped(data: Any) -> dict[str, int]:
    """Returns how many rows an iterator has dropped so far, by reason."""
    return {
        f'data/{name}': value for name, value in data.counters.items() if name.startswith('dropped')
    }
