"""The sampler's settings as a config states them, and the compiled sampler of a run, on the mesh
that the run samples on."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from reasonjax.data.tokenizers import Tokenizer
from reasonjax.errors import UserError, divisor
from reasonjax.model import reshard, spec
from reasonjax.model.config import ModelConfig
from reasonjax.parallel import mesh as meshes
from reasonjax.sampling.forcing import Forcing, Span, Thinking
from reasonjax.sampling.sampler import Rollout, Sampling, generate
from reasonjax.training.context import Run

Draw = Callable[[Any, Mapping[str, np.ndarray], jax.Array], Rollout]
SAME = (
    'temperature',
    'top_k',
    'top_p',
    'min_p',
    'min_tokens',
    'no_repeat_ngram_size',
    'repetition_penalty',
)


def sampling_from_config(
    group: Mapping[str, Any], tokenizer: Tokenizer, name: str, **changes: Any
) -> Sampling:
    """Returns the sampler's settings of a group of the config that has them; what the group leaves out is
    off.

    Args:
      group: of the config.
      tokenizer: encodes the texts among the settings; its EOS ids end completions.
      name: of the group, for messages.
      changes: settings to use instead.

    Raises:
      UserError: an impossible setting.
    """
    settings = {setting: group[setting] for setting in SAME if setting in group}
    settings |= {'max_tokens': group['max_completion_length'], 'eos_ids': tokenizer.eos_ids}
    if 'num_generations' in group:
        settings['num_generations'] = group['num_generations']
    settings['stop'] = tuple(
        _ids(tokenizer, text, f'{name}.stop') for text in group.get('stop', ())
    )
    settings['forcing'] = tuple(_forcing(group, tokenizer, name))
    return Sampling(**(settings | dict(group.get('sampler', {})) | changes))


def check(group: Mapping[str, Any], name: str) -> None:
    """Raises UserError where settings of a group that samples are within their bounds, and mean
    nothing together."""
    longest = group['max_completion_length']
    for key, value in (
        ('min_tokens', group.get('min_tokens', 0)),
        ('thinking.budget', group.get('thinking', {}).get('budget', 0)),
    ):
        if value >= longest:
            raise UserError(
                f'config.{name}.{key}={value}: must be below max_completion_length={longest}, '
                'where every completion ends; '
                f'nearest: {longest - 1}.'
            )
    if group['temperature'] == 0 and group.get('samples', 1) > 1:
        raise UserError(
            f'config.{name}.samples={group["samples"]}: with temperature=0 they would be '
            f'{group["samples"]} times the same answer; set '
            f'{name}.temperature above 0, or samples=0 with greedy=True.'
        )
    if 'rewards' in group:
        _check_scored(group, name)
    if 'advantage' in group:
        _check_counts(group, name)


def _check_scored(settings: Mapping[str, Any], name: str) -> None:
    """Raises UserError where several samples of a prompt would be the same, or nothing scores
    them."""
    if settings['temperature'] <= 0:
        raise UserError(
            f'config.{name}.temperature={settings["temperature"]}: several samples of a prompt need a '
            'positive temperature.'
        )
    if not settings['rewards']:
        raise UserError(f'config.{name}.rewards: no reward function is named.')


def _check_counts(settings: Mapping[str, Any], name: str) -> None:
    """Raises UserError where the counts of a stage that trains on groups of samples cannot work."""
    if settings['num_generations'] < 2:
        raise UserError(
            f'config.{name}.num_generations={settings["num_generations"]}: advantages compare the '
            'completions of a prompt, so at least 2 are '
            'needed (8 is usual).'
        )
    if settings['num_prompts'] % settings['minibatches']:
        prompts, number = settings['num_prompts'], settings['minibatches']
        best = divisor(prompts, number)
        raise UserError(
            f'config.{name}.minibatches={number}: must divide num_prompts={prompts}; nearest: '
            f'{best}.'
        )


def _forcing(settings: Mapping[str, Any], tokenizer: Tokenizer, name: str) -> Iterator[Forcing]:
    if prefix := settings.get('forced_prefix', ''):
        yield Span(_ids(tokenizer, prefix, f'{name}.forced_prefix'), place=0)
    thinking = settings.get('thinking', {})
    if not thinking.get('end', ''):
        if thinking.get('budget', 0) or thinking.get('times', 0):
            raise UserError(
                f'config.{name}.thinking: budget and times need the token that ends the thinking; '
                f'set {name}.thinking.end.'
            )
        return
    end, closing, extension = (
        _ids(tokenizer, thinking[key], f'{name}.thinking.{key}') if thinking[key] else ()
        for key in ('end', 'closing', 'extension')
    )
    if len(end) != 1:
        raise UserError(
            f'config.{name}.thinking.end={thinking["end"]!r}: must be one token, these are '
            f'{len(end)}.'
        )
    yield Thinking(end, closing or end, thinking['budget'], extension, thinking['times'])


def _ids(tokenizer: Tokenizer, text: str, name: str) -> tuple[int, ...]:
    try:
        ids = tuple(tokenizer.encode_more(text))
    except UserError as error:
        raise UserError(f'config.{name}: {error}') from error
    if not ids:
        raise UserError(f'config.{name}: the text {text!r} has no tokens.')
    return ids


def sampler(run: Run, sampling: Sampling) -> Draw:
    """Returns `(params, prompts, key) -> Rollout`, for any number of batches of one shape; see
    `sampling.sampler.generate`.

    Prompts are arrays on the host, a multiple of `meshes.rows(run.rollout_mesh)` of them;
    parameters live where training left them. What is returned is on the devices and still being
    computed.
    """
    program = _compiled(run.model, sampling, run.mesh, run.rollout_mesh)

    def draw(params: Any, prompts: Mapping[str, np.ndarray], key: jax.Array) -> Rollout:
        return program(params, meshes.place_batch(prompts, run.rollout_mesh), key)

    return draw


@functools.lru_cache(maxsize=64)
def _compiled(
    model: ModelConfig, sampling: Sampling, mesh: jax.sharding.Mesh, rollout_mesh: jax.sharding.Mesh
) -> Callable:
    # One for all stages and runs of a process that sample alike: tracing and lowering the sampler
    # takes seconds.
    return jax.jit(
        _moving(
            model,
            mesh,
            rollout_mesh,
            lambda params, prompts, key: generate(params, model, prompts, key, sampling),
        )
    )


def on_rollout_mesh(run: Run, function: Callable) -> Callable:
    """Wraps a function of parameters so that it is traced under the mesh for sampling. The
    parameters are its first argument; inside, they are moved there."""
    return _moving(run.model, run.mesh, run.rollout_mesh, function)


def _moving(
    model: ModelConfig, mesh: jax.sharding.Mesh, rollout_mesh: jax.sharding.Mesh, function: Callable
) -> Callable:
    if rollout_mesh == mesh:
        return meshes.on(mesh, function)

    def moved(params: Any, *rest: Any) -> Any:
        params = reshard.moved(spec.specs(model), params, rollout_mesh, model.compute_dtype)
        return meshes.on(rollout_mesh, function)(params, *rest)

    return moved
