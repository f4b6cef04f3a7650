"""Equal cost: every recipe of a comparison stops at as many tokens, operations or seconds."""

import math
import pathlib
from typing import NamedTuple

import ml_collections

from reasonjax import config as configs
from reasonjax.arena.cell import StageCost
from reasonjax.arena.recipes import EVALUATIONS, TRAINING
from reasonjax.errors import UserError, listing, nearest
from reasonjax.stages import supervised
from reasonjax.stages.context import Place, Run, open_run, places, settings

KINDS = ('tokens', 'flops', 'seconds')
# Steps of a stage that a clock ends: more than it will do.
MANY = 100_000


class Budget(NamedTuple):
    """`amount` of 'tokens' (read to train on, or drawn), 'flops' or 'seconds'."""

    kind: str
    amount: float


def parse(text: str) -> Budget | None:
    """Reads 'tokens=1e6', 'flops=1e13' or 'seconds=60'; '' is none.

    Raises:
      UserError: another kind, or no positive number.
    """
    if not text:
        return None
    kind, equals, amount = text.partition('=')
    if kind not in KINDS or not equals:
        raise UserError(f'--budget {text}: expected WHAT=N, WHAT one of {listing(KINDS)}.{nearest(kind, KINDS)}')
    try:
        number = float(amount)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise UserError(f'--budget {text}: "{amount}" is no positive number.')
    return Budget(kind, number)


def limited(config: ml_collections.ConfigDict, budget: Budget) -> ml_collections.ConfigDict:
    """A config whose training stages share a budget equally, each up to the end of the step that reaches its share.

    The steps of a supervised stage are counted on its data beforehand, so that its learning rate runs its course. What draws cannot be:
    its stage ends when it is time, at a constant learning rate or wherever its schedule is. With seconds all rates are constant.

    Raises:
      UserError: fewer steps than evaluations.
    """
    c = config.copy_and_resolve_references().unlock()
    training = [name for name in dict.fromkeys(c.stages) if c[name].kind in TRAINING]
    share = budget.amount / len(training)
    run = open_run(config, pathlib.Path(), active=False)
    for place in places(config, run.workdir):
        stage = c[place.name] if place.name in training else None
        if stage is None:
            continue
        if budget.kind == 'seconds':
            stage.time_limit, stage.steps = share, MANY
            stage.learning_rate = dict(name='constant', peak=stage.learning_rate.peak, warmup_steps=stage.learning_rate.warmup_steps)
            stage.eval_every = 0
            continue
        stage.token_limit = math.ceil(share if budget.kind == 'tokens' else share / StageCost(run, place).per_token)
        few, likely = _steps(run, place, stage.token_limit)
        if likely < EVALUATIONS:
            raise UserError(
                f'--budget {budget.kind}={budget.amount:g}: stage {place.name} of these {len(training)} would end after {likely} steps, '
                f'before its {EVALUATIONS} evaluations are over; it needs {EVALUATIONS / max(likely, 1):.0f} times as much.'
            )
        stage.steps, stage.eval_every = few, max(1, likely // EVALUATIONS)
        stage.learning_rate.warmup_steps = likely // 10
    configs.complete(c)
    c.lock()
    return c


def _steps(run: Run, place: Place, limit: int) -> tuple[int, int]:
    """Steps that are certainly enough for as many tokens, and how many it will likely be."""
    stage = settings(run.config, place)
    if stage.kind == 'supervised':
        data, tokens, steps = supervised.open_data(run, place), 0, 0
        while tokens < limit:
            tokens += int((next(data)['segments'] > 0).sum())
            steps += 1
        return steps, steps
    rows = stage.num_prompts * stage.num_generations
    return math.ceil(limit / rows), math.ceil(limit / (rows * stage.max_completion_length))
