"""Generating from a checkpoint for a person or a pipe."""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from reasonjax import files, randomness
from reasonjax.data import pipeline, render, source_files, sources
from reasonjax.errors import UserError
from reasonjax.model.rotary import longest as positions
from reasonjax.parallel import mesh as meshes
from reasonjax.parallel import processes
from reasonjax.sampling.sampler import Rollout, Sampling
from reasonjax.sampling.text import completions
from reasonjax.terminal import printable, printable_json
from reasonjax.training.batch import TEXT
from reasonjax.training.context import Run
from reasonjax.training.samplers import sampler
from reasonjax.training.saved_run import open_saved, read_config

ROUND = 16


def check(options: argparse.Namespace) -> None:
    """Raises UserError where there is no run, or no file of prompts; touches no device."""
    read_config(options.workdir)
    if options.file and '.jsonl' not in options.file.lower() and not os.path.lexists(options.file):
        raise UserError(
            f'--file: no file {options.file}.{files.nearest_name(pathlib.Path(options.file))}'
        )


def run(options: argparse.Namespace) -> None:
    """Prints completions of the prompts; `options` are those of `reasonjax.sample`."""
    prompts = processes.on_main(lambda: list(read_prompts(options)))
    if not prompts:
        raise UserError('no prompts: give them as arguments, in --file, or on standard input.')
    if options.chat:
        prompts = as_messages(prompts)
    opened = open_saved(options.workdir, options.stage, trust=options.trust)
    of_run = opened.run
    names = ('samples', 'max_tokens', 'temperature', 'top_k', 'top_p', 'min_p')
    sampling = settings(of_run, **{name: getattr(options, name) for name in names})
    batches = open_prompts(of_run, prompts, options.batch_size)
    for prompt, group in draw(of_run, opened.load().params, batches, sampling, options.seed):
        for answer in group:
            _show(prompt, answer, options)


def settings(
    of_run: Run,
    *,
    samples: int,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
) -> Sampling:
    """Returns the sampler's settings for a run's model; `max_tokens` 0 is the longest completion of
    its evaluation."""
    return Sampling(
        num_generations=samples,
        max_tokens=max_tokens or of_run.config.evaluation.max_completion_length,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        eos_ids=of_run.tokenizer.eos_ids,
    )


def as_messages(prompts: Sequence[str | list]) -> list[list]:
    """Returns conversations: a text is a user's message."""
    return [[{'role': 'user', 'content': p}] if isinstance(p, str) else p for p in prompts]


def read_prompts(options: argparse.Namespace) -> Iterator[str | list]:
    """Yields prompts from the arguments, else the file, else standard input; skips blank lines."""
    if options.prompts and options.file:
        raise UserError('prompts as arguments and in --file: give one of them.')
    if options.prompts:
        yield from options.prompts
    elif options.file:
        yield from _in_file(pathlib.Path(options.file))
    elif sys.stdin is not None:
        yield from _lines(files.decode(sys.stdin.buffer.read(), 'standard input'))


def _in_file(path: pathlib.Path) -> Iterator[str | list]:
    if not os.path.lexists(path):
        raise UserError(f'--file: no file {path}.{files.nearest_name(path)}')
    name = path.name.lower()
    kind = next(
        (kind for kind, endings in source_files.ENDINGS.items() if name.endswith(endings)), ''
    )
    if not kind:
        if other := source_files.advice(path, kind):  # its header, or its bytes, would be a prompt
            raise UserError(f'--file: {path}{other}.')
        yield from _lines(files.decode(source_files.content(path), str(path)))
        return
    rows = {'jsonl': sources.jsonl, 'parquet': sources.parquet}[kind](path=str(path))
    for i in range(len(rows)):
        if 'prompt' not in rows[i]:
            raise UserError(f'{rows.where(i)}: no column "prompt".')
        yield rows[i]['prompt']


def _lines(text: str) -> Iterator[str]:
    """Yields the lines of a text that are not blank, split as an editor does. Other characters that
    Python splits at are part of a prompt."""
    return (
        line for line in text.replace('\r\n', '\n').replace('\r', '\n').split('\n') if line.strip()
    )


def sample(
    of_run: Run, params: Any, prompts: list, sampling: Sampling, seed: int, batch_size: int
) -> Iterator[tuple[Any, list[dict]]]:
    """Yields (prompt, completions); a completion is a dict of `text`, `terminated`, `tokens`,
    `ids`, `logprobs` and `logprob`, their sum.

    Log-probabilities are in nats, under the temperature-scaled distribution (at temperature 1 where
    decoding is greedy).

    Raises:
      UserError: a prompt that is empty, cannot be rendered or is longer than the positions of the
        model, or more than memory holds.
    """
    yield from draw(of_run, params, open_prompts(of_run, prompts, batch_size), sampling, seed)


def open_prompts(of_run: Run, prompts: list, batch_size: int) -> pipeline.Evaluation:
    """Encodes prompts and groups them into batches.

    Raises:
      UserError: a prompt that the tokenizer or its chat template refuses.
    """
    rows = sources.memory(rows=[{'prompt': prompt} for prompt in prompts], label='prompts')
    size = meshes.filled(min(batch_size, len(prompts)), of_run.rollout_mesh)
    longest = max(_length(number, prompt, of_run) for number, prompt in enumerate(prompts, start=1))
    # Rounded up, so that prompts of about one length share a compiled program.
    length = -(-longest // ROUND) * ROUND
    return pipeline.evaluation(
        rows, (), of_run.tokenizer, max_prompt_length=length, batch_size=size
    )


def draw(
    of_run: Run, params: Any, batches: pipeline.Evaluation, sampling: Sampling, seed: int
) -> Iterator[tuple[Any, list[dict]]]:
    """Yields what `sample` does, for batches made by `open_prompts`."""
    program = sampler(of_run, sampling)
    key = randomness.key(seed, 0, 0, 'rollout')
    for batch in batches:
        arrays = {name: batch[name] for name in TEXT} | {'index': batch['index'].astype(np.uint32)}
        try:
            rollout = processes.fetch(program(params, arrays, key))
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            (size, length), more = (
                batch['tokens'].shape,
                f'{sampling.num_generations} times {sampling.max_tokens}',
            )
            what = f'{size} prompts of up to {length} tokens, with {more} more each'
            raise UserError(
                f'{what}, need more memory than there is; give a smaller --batch_size or shorter '
                'prompts.'
            ) from error
        texts = completions(rollout, of_run.tokenizer)
        for i in np.flatnonzero(batch['valid']):
            yield (
                batch['rows'][i]['prompt'],
                [_completion(c, rollout, i, g, of_run) for g, c in enumerate(texts[i])],
            )


def _length(number: int, prompt: Any, of_run: Run) -> int:
    """Counts the tokens of a prompt; raises UserError as `sample` does."""
    try:
        tokens = len(render.prompt({'prompt': prompt}, of_run.tokenizer))
    except UserError as error:
        raise UserError(f'prompt {number}: {error}') from error
    limit = positions(of_run.model)
    if limit and tokens >= limit:
        raise UserError(
            f'prompt {number} has {tokens} tokens, but the positions of this model are good for '
            f'{limit}.'
        )
    return tokens


def _completion(c: Any, rollout: Rollout, i: int, g: int, of_run: Run) -> dict:
    logprobs = np.asarray(rollout.logprob)[i, g, : c.length].astype(float).round(6).tolist()
    tokens = [of_run.tokenizer.decode([token]) for token in c.ids]
    return {
        'text': c.text,
        'terminated': c.terminated,
        'tokens': tokens,
        'ids': c.ids,
        'logprobs': logprobs,
        'logprob': sum(logprobs),
    }


def _show(prompt: Any, answer: dict, options: argparse.Namespace) -> None:
    if options.jsonl:
        kept = (
            answer if options.logprobs else {name: answer[name] for name in ('text', 'terminated')}
        )
        print(printable_json(json.dumps({'prompt': prompt} | kept, ensure_ascii=False)), flush=True)
        return
    cut = '' if answer['terminated'] else '  [cut at the limit]'
    print(
        printable(
            f'{prompt}{answer["text"]}{cut}'
            if isinstance(prompt, str)
            else f'{answer["text"]}{cut}'
        ),
        flush=True,
    )
    if options.logprobs:
        tokens = zip(answer['tokens'], answer['logprobs'], strict=True)
        print(
            '  ' + ' '.join(f'{printable(token) or "<end>"}:{value:.3f}' for token, value in tokens)
        )
        print(f'  log p = {answer["logprob"]:.4f}')
