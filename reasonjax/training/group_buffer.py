"""What an online step trains on: its own rollout, one that was started a step ago, or those groups of several that teach something."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from reasonjax.tracking.metrics import Timers
from reasonjax.training import rollout_state
from reasonjax.training.informative import choose, informative
from reasonjax.training.rollouts import Drawn, Flight, Rollouts, taken, together


class Supplied(NamedTuple):
    """What one step trains on.

    Attributes:
      drawn: `num_prompts` groups.
      landed: everything that was sampled for it, whatever became of it.
      metrics: where the groups come from; see `Supply`.
    """

    drawn: Drawn
    landed: Drawn
    metrics: dict[str, float]


class Supply:
    """Draws what each step trains on, ahead of time or selectively where the stage asks for it. A checkpoint holds its state.

    Neutral settings (`pipelined=False`, `dynamic_sampling=0`) give each step the one rollout that is drawn with its own parameters.

    Pipelined, the rollout of the next step is started with the parameters of this one before anything of this one is waited for: while the
    host fetches, decodes and scores, the devices are at work. Every rollout but the first is then one step stale. The draws are counted as
    without it, so a policy that does not move gives the same completions.

    With dynamic sampling of n > 0, groups that teach nothing (`informative`) are dropped, and up to n batches of prompts are drawn until
    there are `num_prompts` that do. Surplus ones wait for the next step, oldest first, so none is older than one step (pipelined: two). If
    n batches do not give enough, uninformative groups fill the batch, whose shape is static: they count as rows, and their tokens in the
    normalisation, as they do without dynamic sampling. So n = 1 equals 0.

    Every group that is drawn is trained on, or dropped and counted, or carried. Metrics: `sampling/staleness` and `sampling/staleness_max`,
    in steps, over the groups trained on; `dynamic/batches` drawn for the step, and `dynamic/{dropped,filled,carried}_groups`.
    """

    def __init__(self, rollouts: Rollouts, *, num_prompts: int, steps: int, pipelined: bool, dynamic_sampling: int):
        self._rollouts, self._number, self._steps = rollouts, num_prompts, steps
        self._pipelined, self._most = pipelined, dynamic_sampling
        self._flying: list[Flight] = []
        self._carried: Drawn | None = None

    @property
    def may_be_stale(self) -> bool:
        """Whether there can be groups of earlier steps."""
        return self._pipelined or self._most > 1

    def next(self, step: int, params: Any, timers: Timers) -> Supplied:
        """What step number `step`, which starts from `params`, trains on.

        Raises:
          UserError: a reward function fails, or no sample got a reward; rows that no checkpoint can hold.
        """
        labels = self._labels(step)
        landed = [self._one(step, params, timers, labels)]
        while len(landed) < self._most and self._short(landed):
            landed.append(self._one(step, params, timers, labels))
        everything = together(landed)
        drawn, metrics = self._select(landed) if self._most else (everything, {})
        if self.may_be_stale:
            if step == 1:
                rollout_state.as_text(everything.prompts['rows'])  # refused now, not when the first checkpoint is due
            age_P = step - drawn.steps
            metrics |= {'sampling/staleness': float(age_P.mean()), 'sampling/staleness_max': float(age_P.max())}
        return Supplied(drawn, everything, metrics)

    def get_state(self) -> dict[str, Any]:
        if not self.may_be_stale:
            return {}
        flying = [rollout_state.as_state(flight) for flight in self._flying]
        return {'flying': flying, 'carried': self._carried and rollout_state.as_state(self._carried)}

    def set_state(self, state: dict[str, Any]) -> None:
        self._flying = [rollout_state.from_state(flight, self._rollouts) for flight in state.get('flying', [])]
        carried = state.get('carried')
        self._carried = carried and rollout_state.from_state(carried, self._rollouts)

    def _labels(self, step: int) -> Iterator[tuple[int, int]]:
        """What the rollouts that this step starts are counted by: each differs from those of every other step."""
        if not self._pipelined:
            return ((step, number) for number in itertools.count())
        # Those started ahead are the next step's, and so was number 0 of this one, but for the first.
        ahead = ((step + 1, number) for number in itertools.count())
        return ahead if self._flying else itertools.chain([(step, 0)], ahead)

    def _one(self, step: int, params: Any, timers: Timers, labels: Iterator[tuple[int, int]]) -> Drawn:
        """The next rollout on the host."""
        if not self._pipelined:
            return self._rollouts.draw(step, params, timers, next(labels)[1])
        wanted = 2 if step < self._steps else 1
        while len(self._flying) < wanted:
            self._flying.append(self._rollouts.launch(step, params, timers, next(labels)))
        return self._rollouts.land(self._flying.pop(0), timers)

    def _short(self, landed: list[Drawn]) -> bool:
        waiting = 0 if self._carried is None else len(self._carried.texts)
        return waiting + sum(int(informative(drawn.total_PxG).sum()) for drawn in landed) < self._number

    def _select(self, landed: list[Drawn]) -> tuple[Drawn, dict[str, float]]:
        pool = together(([] if self._carried is None else [self._carried]) + landed)
        choice = choose(informative(pool.total_PxG), self._number)
        self._carried = taken(pool, choice.carried) if len(choice.carried) else None
        counts = {'dropped': len(choice.dropped), 'filled': choice.filled, 'carried': len(choice.carried)}
        metrics = {f'dynamic/{name}_groups': float(number) for name, number in counts.items()}
        return taken(pool, choice.trained), metrics | {'dynamic/batches': float(len(landed))}
