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
from reasonjax.training.context import Run, Stage, open_run, stages_of
from reasonjax.training.kinds import KINDS

# Steps of a stage that a clock ends: more than it will do.
MANY = 100_000


def limited(config: ml_collections.ConfigDict, budget: Budget) -> ml_collections.ConfigDict:
    """Returns a config whose stages that train or collect share a budget equally. Each ends with
    the step that reaches its share.

    The steps of a supervised stage are counted on its data beforehand, so that its learning rate
    runs its course. Completions cannot be counted before they are drawn: a stage that draws, or
    learns from what an earlier one has collected, ends once its share is spent, at a constant
    learning rate. With a budget of seconds all rates are constant.

    Raises:
      UserError: fewer steps than evaluations.
    """
    c = config.copy_and_resolve_references().unlock()
    # A stage that comes again is one group of the config, with one share each time.
    costly = [name for name in c.stages if KINDS[c[name].kind].works]
    share = budget.amount / len(costly)
    run = open_run(config, pathlib.Path(), active=False)
    for stage in stages_of(config, run.workdir):
        if stage.name not in costly:
            continue
        settings = c[stage.name]
        kind = KINDS[settings.kind]
        if budget.kind == 'seconds':
            settings.time_limit, settings.steps = share, MANY
            if kind.trains:
                settings.learning_rate, settings.eval_every = _constant(settings.learning_rate), 0
            continue
        settings.token_limit = math.ceil(
            share if budget.kind == 'tokens' else share / StageCost(run, stage).per_token
        )
        counted = not kind.samples and not reads_collected(settings)
        if counted:
            settings.steps = likely = _counted(run, stage, settings.token_limit)
        else:
            settings.steps, likely = _bounds(settings)
        if not kind.trains:
            continue
        if likely < EVALUATIONS:
            raise UserError(
                f'--budget {budget.kind}={budget.amount:g}: stage {stage.name} of these '
                f'{len(costly)} would end after {likely} steps, '
                f'before its {EVALUATIONS} evaluations are over; it needs '
                f'{EVALUATIONS / max(likely, 1):.0f} times as much.'
            )
        settings.eval_every = max(1, likely // EVALUATIONS)
        settings.learning_rate.warmup_steps = likely // 10
        if not counted:
            settings.learning_rate = _constant(settings.learning_rate)
    configs.complete(c)
    c.lock()
    return c


def _constant(rate: ml_collections.ConfigDict) -> dict:
    return dict(name='constant', peak=rate.peak, warmup_steps=rate.warmup_steps)


def _counted(run: Run, stage: Stage, limit: int) -> int:
    """Counts the steps that a supervised stage needs for `limit` tokens."""
    data, tokens, steps = supervised.open_data(run, stage), 0, 0
    while tokens < limit:
        tokens += int((next(data)['segments'] > 0).sum())
        steps += 1
    return steps


def _bounds(settings: ml_collections.ConfigDict) -> tuple[int, int]:
    """Returns a stage's steps under its token limit: the most, and those if every row is full."""
    if not KINDS[settings.kind].samples:
        rows, longest = settings.batch_size, settings.data.max_length
    else:
        rows, longest = (
            settings.num_prompts * settings.num_generations,
            settings.max_completion_length,
        )
    return math.ceil(settings.token_limit / rows), math.ceil(
        settings.token_limit / (rows * longest)
    )
