"""What is said of steps that fail: a loss or gradient that is not finite, a gradient norm that
stands out."""

from collections.abc import Mapping
from typing import Any

from reasonjax.training.counters import Counters


def describe_failure(
    name: str, step: int, metrics: Mapping[str, Any], counters: Counters, *, nonfinite: bool
) -> str:
    """Returns what ends a stage after more failing steps than it tolerates.

    Args:
      name: of the stage.
      step: the last of those steps.
      metrics: of that step.
      counters: of the stage.
      nonfinite: whether steps were not finite; else gradient norms stood out.
    """
    numbers = (
        f'(loss {metrics["loss"]}, grad_norm {metrics["grad_norm"]}); those updates were skipped'
    )
    if not nonfinite:
        return (
            f'stage {name}, step {step}: the gradient norm stood out '
            f'{counters.spikes_in_a_row} steps in a row {numbers}. That is its '
            f'new level: raise {name}.spike_zscore, or lower {name}.learning_rate.peak.'
        )
    back = f', after {counters.rollbacks} rollbacks' if counters.rollbacks else ''
    return (
        f'stage {name}, step {step}: loss or gradient was not finite '
        f'{counters.nonfinite_in_a_row} steps in a row{back} {numbers}. '
        f'Lower {name}.learning_rate.peak or set {name}.optimizer.clip_norm; max_nonfinite '
        'says how many are tolerated, max_rollbacks '
        'how often to go back to a checkpoint and continue with the next data.'
    )


def describe_rollback(
    name: str, step: int, bad: int, target: int | None, rollbacks: int, most: int
) -> str:
    """Returns the warning that a stage has gone back to earlier weights.

    Args:
      name: of the stage.
      step: the last that was done.
      bad: steps in a row that were not finite.
      target: step of the checkpoint; None for the start of the stage.
      rollbacks: how many there have been, this one included.
      most: how many there may be.
    """
    where = 'where the stage began' if target is None else f'the checkpoint of step {target}'
    return (
        f'warning: stage {name}, step {step}: loss or gradient was not finite {bad} steps in a '
        f'row; weights and optimiser go back to {where}, and training continues with step {step + 1} '
        f'and new data (rollback {rollbacks} of at most {most}). The learning rate is as it was '
        'then.'
    )
