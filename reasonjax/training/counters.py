"""What a stage has counted so far: part of every checkpoint, so that a resumed stage counts, and
decides, as if nothing had been."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

from reasonjax.errors import UserError, check_choice
from reasonjax.parallel import processes


@dataclasses.dataclass
class Counters:
    """Counts of a stage.

    Attributes:
      num_tokens: read or produced.
      skipped_updates: because loss or gradient was not finite.
      skipped_spikes: updates skipped because the gradient norm stood out.
      applied_updates: of the line of weights there is now: the optimiser's own count, which a
        rollback turns back.
      nonfinite_in_a_row: steps up to now with an update that was not finite.
      spikes_in_a_row: steps up to now with a spike.
      rollbacks: times the weights went back to a checkpoint.
      newest: step of the newest checkpoint of this line of weights. One that was only saved because
        the run was asked to stop does not count: an undisturbed run has none there, and must decide
        the same.
      proven: step of the newest checkpoint from whose weights a step was finite; None means the
        weights as they came in.
      best: {'step', 'value'} of the best evaluation so far, where the stage keeps its best
        checkpoint.
    """

    num_tokens: float = 0.0
    skipped_updates: int = 0
    skipped_spikes: int = 0
    applied_updates: int = 0
    nonfinite_in_a_row: int = 0
    spikes_in_a_row: int = 0
    rollbacks: int = 0
    newest: int | None = None
    proven: int | None = None
    best: dict[str, Any] | None = None

    def count(self, updates: int, tokens: float, nonfinite: float, spike: float) -> None:
        """Counts one step.

        Args:
          updates: in it.
          tokens: in it.
          nonfinite: share of the updates skipped because they were not finite.
          spike: share skipped because their gradient norm stood out.
        """
        skipped, spiked = round(nonfinite * updates), round(spike * updates)
        self.num_tokens += tokens
        self.skipped_updates += skipped
        self.skipped_spikes += spiked
        self.applied_updates += updates - skipped - spiked
        self.nonfinite_in_a_row = self.nonfinite_in_a_row + 1 if skipped else 0
        self.spikes_in_a_row = self.spikes_in_a_row + 1 if spiked else 0
        if not skipped:
            self.proven = self.newest

    def retained(self, rolling_back: bool) -> set[int]:
        """Returns the steps whose checkpoints must stay: the best, and the target of a rollback."""
        return {
            step
            for step in (self.proven if rolling_back else None, self.best and self.best['step'])
            if step is not None
        }


def read_counts(
    meta: Mapping[str, Any], where: str | os.PathLike
) -> tuple[Counters, dict[str, Any]]:
    """Reads the counts of a checkpoint from its `meta`, and its clock: `seconds`, `steps` (seconds
    of steps) and `phases`.

    Raises:
      UserError: they are not those of this version; `where` is the checkpoint.
    """
    try:
        clock = meta['clock']
        seconds, steps, phases = (
            kind(clock[name])
            for name, kind in (('seconds', float), ('steps', float), ('phases', dict))
        )
        if any(type(meta.get(name, 0)) is not int for name in ('records', 'completions', 'steps')):
            raise TypeError('a number is none')
        return Counters(**meta['counted']), {'seconds': seconds, 'steps': steps, 'phases': phases}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f'checkpoint {where}: its counts are damaged, or those of another version of reasonjax '
            f'({type(error).__name__}: {error}).'
        ) from error


def limit_reached(stage: Any, tokens: float, seconds: float) -> bool:
    """Returns whether a stage has reached its limit of tokens or of seconds of its steps. All
    processes call this, and get the same answer."""
    late = 0 < stage.get('time_limit', 0) <= seconds
    # Clocks differ between processes; tokens do not.
    return (
        0 < stage.get('token_limit', 0) <= tokens
        or bool(stage.get('time_limit', 0))
        and processes.agree(late)
    )


def actions_due(step: int, stage: Any, last: int, *, evaluating: bool = True) -> set[str]:
    """Returns which of 'evaluate' and 'save' are due after a step. The last step is always saved,
    and evaluated when the stage is over."""
    every = {'evaluate': stage.eval_every, 'save': stage.checkpoint_every}
    due = {name for name, period in every.items() if period and step % period == 0}
    if step == last or not evaluating:
        due -= {'evaluate'}
    return due | ({'save'} if step == last else set())


def update_best(
    before: dict[str, Any] | None, step: int, measured: Mapping[str, Any], stage: Any, name: str
) -> dict[str, Any] | None:
    """Returns the best evaluation after one more at `step`, which has to be strictly better to win.

    Args:
      before: the best so far.
      step: of the evaluation.
      measured: its metrics, under the names of `metrics.jsonl`.
      stage: settings; `keep_best` names the metric, `keep_best_mode` says which way is better.
      name: of the stage, for the error message.

    Raises:
      UserError: there is no such metric.
    """
    if not stage.keep_best:
        return None
    check_choice(
        f'config.{name}.keep_best="{stage.keep_best}": the evaluation gives no such metric',
        stage.keep_best,
        measured,
        'It gives',
    )
    value = float(measured[stage.keep_best])
    sign = 1 if stage.keep_best_mode == 'max' else -1
    wins = math.isfinite(value) and (before is None or sign * value > sign * before['value'])
    return {'step': step, 'value': value} if wins else before


def check(stage: Any, name: str, evaluating: bool) -> None:
    """Raises UserError where the settings of these decisions cannot work."""
    if stage.keep_best and not (evaluating and stage.eval_every):
        missing = 'eval_every above 0' if evaluating else 'evaluation.enabled=True'
        raise UserError(
            f'config.{name}.keep_best="{stage.keep_best}": there is nothing to choose by; it needs '
            f'{missing}.'
        )
