"""Equal cost: every recipe of a comparison stops at as many tokens, operations or seconds."""

import math
import pathlib

import ml_collections

from reasonjax import config as configs
from reasonjax.arena.cell import StageCost
from reasonjax.arena.options import Budget
from reasonjax.arena.recipes import EVALUATIONS, reads_collected
from reasonjax.errors import UserError
from reasonjax.training import supervised
from reasonjax.training.context import Place, Run, open_run, places
from reasonjax.training.kinds import KINDS

# Steps of a stage that a clock ends: more than it will do.
MANY = 100_000


def limited(config: ml_collections.ConfigDict, budget: Budget) -> ml_collections.ConfigDict:
    """A config whose stages that train or collect share a budget equally, each up to the end of the
    step that reaches its share.

    The steps of a supervised stage are counted on its data beforehand, so that its learning rate
    runs its course. What is drawn cannot be: a stage that draws, or learns from what an earlier one
    has collected, ends when it is time, at a constant learning rate. With seconds all rates are
    constant.

    Raises:
      UserError: fewer steps than evaluations.
    """
    c = config.copy_and_resolve_references().unlock()
    # A stage that comes again is one group of the config, with one share each time.
    costly = [name for name in c.stages if KINDS[c[name].kind].works]
    share = budget.amount / len(costly)
    run = open_run(config, pathlib.Path(), active=False)
    for place in places(config, run.workdir):
        if place.name not in costly:
            continue
        stage = c[place.name]
        kind = KINDS[stage.kind]
        if budget.kind == 'seconds':
            stage.time_limit, stage.steps = share, MANY
            if kind.trains:
                stage.learning_rate, stage.eval_every = _constant(stage.learning_rate), 0
            continue
        stage.token_limit = math.ceil(
            share if budget.kind == 'tokens' else share / StageCost(run, place).per_token
        )
        counted = not kind.samples and not reads_collected(stage)
        if counted:
            stage.steps = likely = _counted(run, place, stage.token_limit)
        else:
            stage.steps, likely = _bounds(stage)
        if not kind.trains:
            continue
        if likely < EVALUATIONS:
            raise UserError(
                f'--budget {budget.kind}={budget.amount:g}: stage {place.name} of these '
                f'{len(costly)} would end after {likely} steps, '
                f'before its {EVALUATIONS} evaluations are over; it needs '
                f'{EVALUATIONS / max(likely, 1):.0f} times as much.'
            )
        stage.eval_every = max(1, likely // EVALUATIONS)
        stage.learning_rate.warmup_steps = likely // 10
        if not counted:
            stage.learning_rate = _constant(stage.learning_rate)
    configs.complete(c)
    c.lock()
    return c


def _constant(rate: ml_collections.ConfigDict) -> dict:
    return dict(name='constant', peak=rate.peak, warmup_steps=rate.warmup_steps)


def _counted(run: Run, place: Place, limit: int) -> int:
    """Steps that a supervised stage needs for as many tokens."""
    data, tokens, steps = supervised.open_data(run, place), 0, 0
    while tokens < limit:
        tokens += int((next(data)['segments'] > 0).sum())
        steps += 1
    return steps


def _bounds(stage: ml_collections.ConfigDict) -> tuple[int, int]:
    """Steps that are certainly enough for a stage's tokens, and how many it will be if every row is
    full."""
    if not KINDS[stage.kind].samples:
        rows, longest = stage.batch_size, stage.data.max_length
    else:
        rows, longest = stage.num_prompts * stage.num_generations, stage.max_completion_length
    return math.ceil(stage.token_limit / rows), math.ceil(stage.token_limit / (rows * longest))
