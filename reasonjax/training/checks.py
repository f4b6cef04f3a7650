"""What a run refuses, as early as it can be known: of the config alone, then of a run that is
opened and has no parameters yet."""

import pathlib

import ml_collections

from reasonjax import config as configs
from reasonjax.errors import UserError, check_choice, listing
from reasonjax.model.config import check_fields
from reasonjax.training import counters, evaluate, samplers
from reasonjax.training.batching import layout_of
from reasonjax.training.context import (
    Run,
    Stage,
    abstract_params,
    check_stages,
    stages_of,
)
from reasonjax.training.kinds import KINDS
from reasonjax.training.samplers import sampling_from_config


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError where a config cannot work, as far as it shows without data, a tokenizer, a
    model or a device."""
    check_stages(config)
    # Once more, for a config that was changed after it was loaded.
    configs.check(config)
    check_fields(config.model)
    _check_init(config.init)
    if config.evaluation.enabled:
        evaluate.check_settings(config.evaluation)
    for number, name in enumerate(config.stages):
        settings = config[name]
        if settings.get('iterations_per_call', 1) != 1 and not settings.on_device:
            raise UserError(
                f'config.{name}.iterations_per_call={settings.iterations_per_call}: needs '
                f'config.{name}.on_device=True.'
            )
        if 'max_completion_length' in settings:
            samplers.check(settings, name)
        if 'learning_rate' in settings:
            _check_decay(settings, name)
        _check_kind(config, name)
        if 'data' in settings:
            _check_collected(config, number)


def check_opened(run: Run) -> None:
    """Raises UserError where a stage cannot work with the run's tokenizer, mesh or weights: all
    that would else be an error once the stage starts, after the stages before it are done.
    """
    for stage in stages_of(run.config, run.workdir):
        settings = stage.config
        kind = KINDS[settings.kind]
        if kind.samples:
            sampling_from_config(settings, run.tokenizer, stage.name)
        if kind.samples and kind.trains:
            layout_of(settings, run.mesh, stage.name)
        if kind.trains:
            _check_training(run, stage, settings)


def _check_training(run: Run, stage: Stage, settings: ml_collections.ConfigDict) -> None:
    # In shapes alone: adapters and filters say which of their patterns match nothing.
    params, chosen = abstract_params(run, stage.number), configs.resolve(settings.filter, 'filter')
    if chosen.func.__module__.startswith('reasonjax.'):  # one of the user's own may look at values
        chosen(run.specs, params)
    configs.resolve(settings.optimizer, 'optimizer')(
        configs.resolve(settings.learning_rate, 'learning_rate')(settings.steps)
    )


def _check_decay(settings: ml_collections.ConfigDict, name: str) -> None:
    """Raises UserError where weight decay alone would turn the sign of weights round at every
    update."""
    peak, decay = (
        settings.learning_rate.get('peak', 0.0),
        settings.optimizer.get('weight_decay', 0.0),
    )
    if peak * decay >= 1:
        raise UserError(
            f'config.{name}.optimizer.weight_decay={decay:g}: with learning_rate.peak={peak:g} an '
            f'update takes {peak * decay:g} times each '
            f'weight away; must be below {1 / peak:g}.'
        )


def _check_kind(config: ml_collections.ConfigDict, name: str) -> None:
    settings = config[name]
    kind = KINDS[settings.kind]
    kind.load().check(config, name)
    if kind.trains:
        counters.check(settings, name, config.evaluation.enabled)
        if settings.keep_best:
            known = evaluate.metric_names(config.evaluation)
            check_choice(
                f'config.{name}.keep_best="{settings.keep_best}": the evaluation gives no such metric',
                settings.keep_best,
                known,
                'It gives',
            )


def _check_init(init: str) -> None:
    scheme, _, place = init.partition(':')
    if init and (scheme not in ('checkpoint', 'hf') or not place):
        raise UserError(
            f'config.init="{init}": expected "" (fresh), "hf:FOLDER" (a Hugging Face model), or '
            '"checkpoint:WORKDIR", '
            'with ":STAGE" behind it to take that stage.'
        )


def _check_collected(config: ml_collections.ConfigDict, number: int) -> None:
    """Raises UserError where a stage reads what no stage before it collects."""
    name, path = config.stages[number], config[config.stages[number]].data.source.get('path', '')
    if not str(path).startswith('stage:'):
        return
    wanted, every = path.removeprefix('stage:'), stages_of(config, pathlib.Path())
    names = [stage.name for stage in every]
    check_choice(
        f'config.{name}: data.source.path="{path}": no such stage', wanted, names, 'Stages'
    )
    if not KINDS[every[names.index(wanted)].config.kind].collects or names.index(wanted) >= number:
        earlier = [stage.name for stage in every[:number] if KINDS[stage.config.kind].collects]
        raise UserError(
            f'config.{name}: data.source.path="{path}": stage {wanted} collects nothing before '
            f'stage {names[number]} starts; stages that '
            f'do: {listing(earlier) or "none"}.'
        )
