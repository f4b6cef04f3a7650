"""Reinforcement with nothing on the host but prompts: sampling, the task's rule, advantages and
updates are one compiled program.

`on_device` of an online stage asks for it, where the answers of the stage's task can be checked on
tokens. What comes out is what `online` gives, to rounding; `iterations_per_call` steps are
dispatched together.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from reasonjax import config as configs
from reasonjax.errors import UserError, divisor
from reasonjax.parallel import mesh as meshes
from reasonjax.protocols import Task, TokenRule
from reasonjax.sampling import reward_functions
from reasonjax.sampling.reward_pool import Rewards, RewardSpec
from reasonjax.sampling.sampler import Rollout
from reasonjax.sampling.text import completions
from reasonjax.tracking.metrics import Timers
from reasonjax.training import rollout_metrics, rollouts, samplers
from reasonjax.training.batch import TEXT
from reasonjax.training.batch_source import BatchSource, dropped
from reasonjax.training.batching import minibatches
from reasonjax.training.context import Run, Stage, check_data
from reasonjax.training.iteration import OnDeviceSource, StepInputs
from reasonjax.training.kinds import StageResult
from reasonjax.training.loop import train
from reasonjax.training.rollout_step import (
    make_generate,
    rollout_step,
    trace_rollout_step,
    wants_reference,
)

PERIODS = ('steps', 'eval_every', 'checkpoint_every')
# What needs the host within a step, and why.
WITHOUT = {
    'packing': 'whose rows are as long whatever is in them',
    'pipelined': 'where the host does nothing that could be overlapped',
    'dynamic_sampling': 'whose program draws as many batches as it is compiled for',
}


class Reward(NamedTuple):
    """The reward of a stage: its name in the metrics, its weight in the total, how it is computed,
    and the columns it cannot do without."""

    name: str
    weight: float
    rule: TokenRule
    required: frozenset[str]


def run(
    run: Run, stage: Stage, initial_params: Callable[[], Any], evaluation: Callable | None
) -> StageResult:
    """Runs the stage; see `loop.train`, and `online.run`, whose results these are.

    Raises:
      UserError: settings that need the host within a step, or that cannot work at all.
    """
    settings = stage.config
    samplers.check(settings, stage.name)
    check(settings, stage.name)
    reward = reward_of(run, stage)
    reference = None
    if wants_reference(settings):
        # The reference is the model as this stage found it, adapters of earlier stages included; it
        # stays in memory.
        reference = initial_params()
        initial_params = lambda: reference  # noqa: E731
    data = rollouts.open_data(run, stage, reward.rule.columns)
    watch = rollout_metrics.Watcher(stage.name)
    check_data(stage, data)

    def next_batches(step: int, params: Any, timers: Timers) -> StepInputs:
        with timers('data'):
            drawn, host = [], []
            for _ in range(settings.iterations_per_call):
                drawn.append(next(data))
                host.append({'rows': drawn[-1]['rows'], 'dropped': dropped(data)})
            return StepInputs(arrays(drawn, reward.rule, run.mesh), host)

    report_step = functools.partial(report, run, stage, reward, watch)
    on_device = OnDeviceSource(
        make_produce(run, stage, reward), reference, report_step, settings.iterations_per_call
    )
    updates = settings.num_iterations * settings.minibatches
    source = BatchSource(
        next_batches, data, updates, settings.temperature, memory=watch, on_device=on_device
    )
    return train(run, stage, initial_params, source, evaluation)


def make_produce(run: Run, stage: Stage, reward: Reward) -> Callable:
    """Builds the `produce` of `iteration.OnDeviceSource` for an online stage. It is
    `(params, reference, given, key) -> (batches, seen, kept)`."""
    settings, name = stage.config, stage.name
    generate, how = make_generate(run, settings, name), trace_rollout_step(run, settings, name)

    def produce(
        params: Any, reference: Any, given: Mapping, key: jax.Array
    ) -> tuple[list[dict], dict, dict]:
        rollout = generate(params, given['prompts'], key)
        of_group = {name: x[:, None] for name, x in given['columns'].items()}
        reward_PxG = reward.rule.reward(
            rollout.tokens, rollout.length, rollout.terminated, of_group
        )
        total_PxG = reward.weight * reward_PxG
        batch, advantage_PxG, metrics = rollout_step(
            how, params, reference, given['prompts'], rollout, total_PxG
        )
        seen = {
            'reward': reward_PxG,
            'length': rollout.length,
            'terminated': rollout.terminated,
            'metrics': metrics,
        }
        kept = (
            {'tokens': rollout.tokens, 'advantage': advantage_PxG}
            if settings.log_completions_every
            else {}
        )
        return minibatches(batch, settings)[: settings.minibatches], seen, kept

    return produce


def arrays(
    drawn: Sequence[Mapping], rule: TokenRule, mesh: jax.sharding.Mesh
) -> dict[str, dict[str, jax.Array]]:
    """Stacks batches of prompts, one a step, as `produce` takes them. The first axis is over steps,
    the second over prompts."""
    prompts = [
        {name: x[name] for name in TEXT} | {'index': np.arange(len(x['rows']))} for x in drawn
    ]
    columns = [_stacked([rule.columns(row) for row in x['rows']]) for x in drawn]
    return {'prompts': _put(_stacked(prompts), mesh), 'columns': _put(_stacked(columns), mesh)}


def _stacked(dicts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([x[name] for x in dicts]) for name in dicts[0]}


def _put(given: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    homes = {
        name: meshes.placed((None, 'batch', *(None,) * x.ndim)[: x.ndim], x.shape, mesh)
        for name, x in given.items()
    }
    if mesh.is_multi_process:
        return {
            name: jax.make_array_from_callback(x.shape, homes[name], lambda index, x=x: x[index])
            for name, x in given.items()
        }
    return jax.device_put(dict(given), homes)


def report(
    run: Run,
    stage: Stage,
    reward: Reward,
    watch: Callable[[dict], None],
    step: int,
    host: dict,
    seen: dict,
    kept: Callable[[], dict],
) -> tuple[dict[str, float], int]:
    """Returns the metrics of a step, those of `online`, and its number of tokens. Writes the table
    of completions where it is due."""
    settings, values = stage.config, seen['reward'].reshape(-1, 1).astype(np.float64)
    none = np.isnan(values)
    counts = {f'rewards/{reward.name}/{kind}': 0 for kind in ('errors', 'timeouts', 'nan')}
    rewards = Rewards(
        (reward.name,),
        values,
        reward.weight * values[:, 0],
        counts | {f'rewards/{reward.name}/dropped': int(none.sum())},
    )
    if none.all() and not all(
        any(rollouts.is_unknown(row, name) for name in reward.required) for row in host['rows']
    ):
        raise UserError(
            f'stage {stage.name}, step {step}: no sample has a reward ({rewards.counts}).'
        )
    rollout = Rollout(None, None, None, seen['length'], seen['terminated'])
    metrics = {name: float(value) for name, value in seen['metrics'].items()}
    metrics |= rollout_metrics.rollout_metrics(rollout) | rollout_metrics.reward_metrics(rewards)
    watch(metrics)
    if settings.log_completions_every and step % settings.log_completions_every == 0:
        rollout = rollout.replace(tokens=kept()['tokens'])
        drawn = rollouts.ScoredRollout(
            host,
            rollout,
            completions(rollout, run.tokenizer),
            rewards,
            np.full(len(host['rows']), step),
        )
        run.writer.completions(
            stage.name, step, rollout_metrics.rows_of(drawn, kept()['advantage'])
        )
    return metrics | host['dropped'], int(seen['length'].sum())


def reward_of(run: Run, stage: Stage) -> Reward:
    """Returns the reward of a stage as its task checks it on tokens.

    Raises:
      UserError: the problems are of no task with such a rule, the stage has other rewards, or the
        tokenizer does not fit.
    """
    settings, key = stage.config, f'config.{stage.name}.on_device'
    source = settings.data.source
    task = (
        None
        if str(source.get('path', '')).startswith('stage:')
        else configs.resolve(source, 'source', 'data.source')()
    )
    if not isinstance(task, Task) or task.on_tokens is None:
        raise UserError(
            f'{key}: the prompts come from "{source.name}", and on the device only a task checks '
            'answers whose rule runs on tokens (it has '
            '`on_tokens`, as addition does). Take such a task, or on_device=False.'
        )
    wanted = task.on_tokens.reward
    others = {
        name: node for name, node in settings.rewards.items() if _bound(node) != _bound(wanted)
    }
    if others or len(settings.rewards) > 1:
        raise UserError(
            f'{key}: reward functions are Python and cannot run on the device. There, {task.name} '
            'has one that equals its rule, '
            f'{_shown(wanted)}; config.{stage.name}.rewards has '
            f'{", ".join(_shown(node) for node in (others or settings.rewards).values())}. '
            'Take only the former, or on_device=False.'
        )
    ((name, node),) = settings.rewards.items()
    required = frozenset(
        reward_functions.list_required(RewardSpec(*_bound(node)), f'rewards.{name}')
    )
    try:
        return Reward(
            name,
            node.get('weight', 1.0),
            task.on_tokens.build(run.tokenizer, settings.max_completion_length),
            required,
        )
    except UserError as error:
        raise UserError(f'{key}: {error} Or set on_device=False.') from error


def _bound(node: Mapping) -> tuple[Callable, dict]:
    """Returns a reward function and all its knobs."""
    function = configs.resolve({name: x for name, x in node.items() if name != 'weight'}, 'rewards')
    return function.func, configs.knobs(function.func) | function.keywords


def _shown(node: Mapping) -> str:
    return 'dict({})'.format(', '.join(f'{name}={value!r}' for name, value in node.items()))


def check(settings: Mapping[str, Any], name: str) -> None:
    """Raises UserError where a stage asks for what one program cannot do, or its periods do not fit
    its calls."""
    together = settings.iterations_per_call
    if together < 1:
        raise UserError(f'config.{name}.iterations_per_call={together}: must be at least 1.')
    for period in PERIODS:
        if settings[period] % together:
            best = divisor(settings[period], together)
            raise UserError(
                f'config.{name}.iterations_per_call={together}: does not divide '
                f'{name}.{period}={settings[period]}, and between two calls '
                f'only is there something to evaluate or to save; nearest: {best}.'
            )
    for key, why in WITHOUT.items():
        if settings.get(key):
            raise UserError(
                f'config.{name}.{key}={settings[key]}: not with on_device, {why}; set one of the two '
                'to its neutral value.'
            )
