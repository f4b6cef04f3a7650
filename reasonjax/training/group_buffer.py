"""What an online step trains on: its own rollout, one that was started a step ago, or those groups
of several that teach something."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from reasonjax.tracking.metrics import Timers
from reasonjax.training import rollout_state
from reasonjax.training.reward_spread import fill_batch, has_reward_spread
from reasonjax.training.rollouts import (
    PendingRollout,
    Rollouts,
    ScoredRollout,
    concat_groups,
    select_groups,
)


class StepGroups(NamedTuple):
    """What one step trains on.

    Attributes:
      scored: `num_prompts` groups.
      sampled: everything that was sampled for it, whatever became of it.
      metrics: where the groups come from; see `GroupBuffer`.
    """

    scored: ScoredRollout
    sampled: ScoredRollout
    metrics: dict[str, float]


class GroupBuffer:
    """Draws what each step trains on, ahead of time or selectively where the stage asks for it. A
    checkpoint holds its state.

    Neutral settings (`pipelined=False`, `dynamic_sampling=0`) give each step the one rollout that
    is drawn with its own parameters.

    Pipelined, the rollout of the next step is started with the parameters of this one before
    anything of this one is waited for: while the host fetches, decodes and scores, the devices are
    at work. Every rollout but the first is then one step stale. The draws are counted as without
    it, so a policy that does not move gives the same completions.

    With dynamic sampling of n > 0, groups without a spread of rewards are dropped, and up to n
    batches of prompts are sampled until there are `num_prompts` groups with one. Surplus ones wait
    for the next step, oldest first: none is older than one step (pipelined: two). If n batches do
    not give enough, uninformative groups fill the batch, whose shape is static: they count as rows,
    and their tokens in the normalisation, as they do without dynamic sampling. So n = 1 equals 0.

    Every group that is drawn is trained on, or dropped and counted, or carried. Metrics:
    `sampling/staleness` and `sampling/staleness_max`, in steps, over the groups trained on;
    `dynamic/batches` drawn for the step, and `dynamic/{dropped,filled,carried}_groups`.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        *,
        num_prompts: int,
        steps: int,
        pipelined: bool,
        dynamic_sampling: int,
    ):
        self._rollouts, self._number, self._steps = rollouts, num_prompts, steps
        self._pipelined, self._most = pipelined, dynamic_sampling
        self._pending: list[PendingRollout] = []
        self._carried: ScoredRollout | None = None

    @property
    def may_be_stale(self) -> bool:
        """Whether there can be groups of earlier steps."""
        return self._pipelined or self._most > 1

    def next(self, step: int, params: Any, timers: Timers) -> StepGroups:
        """Returns the groups that step number `step`, starting from `params`, trains on.

        Raises:
          UserError: a reward function fails, or no sample got a reward; rows that no checkpoint can
            hold.
        """
        labels = self._labels(step)
        sampled = [self._one(step, params, timers, labels)]
        while len(sampled) < self._most and self._short(sampled):
            sampled.append(self._one(step, params, timers, labels))
        everything = concat_groups(sampled)
        scored, metrics = self._select(sampled) if self._most else (everything, {})
        if self.may_be_stale:
            if step == 1:
                # refused now, not when the first checkpoint is due
                rollout_state.rows_to_json(everything.prompts['rows'])
            age_P = step - scored.steps
            metrics |= {
                'sampling/staleness': float(age_P.mean()),
                'sampling/staleness_max': float(age_P.max()),
            }
        return StepGroups(scored, everything, metrics)

    def get_state(self) -> dict[str, Any]:
        if not self.may_be_stale:
            return {}
        flying = [rollout_state.to_state(pending) for pending in self._pending]
        return {
            'flying': flying,
            'carried': self._carried and rollout_state.to_state(self._carried),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._pending = [
            rollout_state.from_state(pending, self._rollouts) for pending in state.get('flying', [])
        ]
        carried = state.get('carried')
        self._carried = carried and rollout_state.from_state(carried, self._rollouts)

    def _labels(self, step: int) -> Iterator[tuple[int, int]]:
        """Returns labels for the rollouts that a step starts, all unlike those of other steps."""
        if not self._pipelined:
            return ((step, number) for number in itertools.count())
        # Those started ahead are the next step's, and so was number 0 of this one, but for the
        # first.
        ahead = ((step + 1, number) for number in itertools.count())
        return ahead if self._pending else itertools.chain([(step, 0)], ahead)

    def _one(
        self, step: int, params: Any, timers: Timers, labels: Iterator[tuple[int, int]]
    ) -> ScoredRollout:
        """Returns the next scored rollout, on the host."""
        if not self._pipelined:
            return self._rollouts.draw(step, params, timers, next(labels)[1])
        wanted = 2 if step < self._steps else 1
        while len(self._pending) < wanted:
            self._pending.append(self._rollouts.start_sampling(step, params, timers, next(labels)))
        return self._rollouts.finish(self._pending.pop(0), timers)

    def _short(self, sampled: list[ScoredRollout]) -> bool:
        waiting = 0 if self._carried is None else len(self._carried.texts)
        return (
            waiting + sum(int(has_reward_spread(scored.total_PxG).sum()) for scored in sampled)
            < self._number
        )

    def _select(self, sampled: list[ScoredRollout]) -> tuple[ScoredRollout, dict[str, float]]:
        pool = concat_groups(([] if self._carried is None else [self._carried]) + sampled)
        choice = fill_batch(has_reward_spread(pool.total_PxG), self._number)
        self._carried = select_groups(pool, choice.carried) if len(choice.carried) else None
        counts = {
            'dropped': len(choice.dropped),
            'filled': choice.filled,
            'carried': len(choice.carried),
        }
        metrics = {f'dynamic/{name}_groups': float(number) for name, number in counts.items()}
        return select_groups(pool, choice.trained), metrics | {
            'dynamic/batches': float(len(sampled))
        }
