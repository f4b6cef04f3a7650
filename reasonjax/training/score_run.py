"""Scoring a checkpoint for a person: all the usual numbers of one set of answers, each with its
interval."""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import rich.box
import rich.console
import rich.table

from reasonjax import bounds, files
from reasonjax import config as configs
from reasonjax.errors import UserError
from reasonjax.parallel import processes
from reasonjax.terminal import printable
from reasonjax.tracking.results import percent
from reasonjax.training import evaluate, statistics
from reasonjax.training.saved_run import CONFIG, Opened, blaming, open_saved


class Asked(NamedTuple):
    """An evaluation that is ready: its settings, the values of k, and `params -> Evaluation`."""

    settings: ml_collections.ConfigDict
    ks: list[int]
    evaluate: Callable[[Any], evaluate.Evaluation]


def run(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    """Prints the scores; `options` are those of `reasonjax.evaluate`."""
    trust = (*options.trust, *(value for key, value in overrides if key.endswith('.name')))
    opened = open_saved(options.workdir, options.stage, trust=trust, evaluating=True)
    samples = [] if options.samples is None else [('evaluation.samples', str(options.samples))]
    asked = prepare(opened, overrides + samples, options.k, trust)
    if options.output:
        processes.on_main(lambda: check_output(pathlib.Path(options.output)))
    evaluated = asked.evaluate(opened.load().params)
    result = results(asked, evaluated)
    if options.output:
        processes.on_main(lambda: write_answers(evaluated, pathlib.Path(options.output)))
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(result, asked.settings)


def prepare(
    opened: Opened, overrides: list[tuple[str, str]], ks: str, trust: Sequence[str]
) -> Asked:
    """Makes the evaluation of an opened run, with overrides of its config; `ks` is the text of --k.

    Raises:
      UserError: settings that cannot work.
    """
    with blaming(opened.run.workdir / CONFIG):
        config = configs.apply(opened.run.config.copy_and_resolve_references(), overrides, trust)
        numbers = wanted(ks, config.evaluation.samples)
        return Asked(
            config.evaluation,
            numbers,
            evaluate.make(dataclasses.replace(opened.run, config=config), progress=True),
        )


def results(asked: Asked, evaluated: evaluate.Evaluation) -> dict:
    """Returns all numbers of an evaluation."""
    return evaluate.summarise(evaluated) | scores(evaluated, asked.ks)


def wanted(text: str, samples: int) -> list[int]:
    """Reads the values of k from the text of --k; without any, they are 1 and `samples`.

    Raises:
      UserError: not numbers, or more than there are samples.
    """
    parts = [part.strip() for part in text.split(',') if part.strip()]
    ks = sorted(
        {bounds.read(part, bounds.AtLeast(1), '--k') for part in parts}
        or ({1, samples} if samples > 0 else ())
    )
    if ks and ks[-1] > samples:
        raise UserError(
            f'--k={text}: pass@{ks[-1]} needs --samples {ks[-1]} or more, there are {samples}.'
        )
    return ks


def scores(evaluation: evaluate.Evaluation, ks: list[int]) -> dict:
    """Computes pass@k (Chen et al. 2021, arXiv:2107.03374, unbiased) and maj@k (Wang et al. 2022,
    arXiv:2203.11171).

    Intervals are over problems (see `statistics.interval`). maj@k votes over the first k samples;
    answers that could not be read do not vote.
    """
    result = {}
    for k in ks:
        passed = [
            statistics.pass_at_k(len(a), sum(x.verdict['correct'] for x in a), k)
            for a in evaluation.sampled
        ]
        voted = [_majority_correct(answers[:k]) for answers in evaluation.sampled]
        for name, values in ((f'pass@{k}', passed), (f'maj@{k}', voted)):
            result[name] = float(np.mean(values))
            result[f'{name}_ci95'] = statistics.interval(values)
    return result


def _majority_correct(answers: list[evaluate.Answer]) -> float:
    winner = statistics.majority_vote([a.verdict['answer'] for a in answers])
    return float(
        any(
            a.verdict['correct']
            for a in answers
            if winner is not None and a.verdict['answer'] == winner
        )
    )


def check_output(path: pathlib.Path) -> None:
    """Raises UserError where a file cannot be written, before there is anything to write; an empty
    one is left."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open('a').close()
    except (OSError, ValueError) as error:
        raise UserError(
            f'--output={path}: cannot be written '
            f'({files.reason(error) if isinstance(error, OSError) else error}).'
        ) from error


def list_answers(evaluation: evaluate.Evaluation) -> list[dict]:
    """Returns one dict per answer: problem, prompt, solution, how it was drawn, completion,
    verdict."""
    drawn = [('greedy', answer) for answer in evaluation.greedy]
    drawn += [('sampled', answer) for answers in evaluation.sampled for answer in answers]
    return [
        {
            'problem': answer.problem,
            'prompt': evaluation.rows[answer.problem]['prompt'],
            'solution': evaluation.rows[answer.problem].get('solution'),
            'decoding': decoding,
            'completion': answer.completion.text,
            'length': answer.completion.length,
            'terminated': answer.completion.terminated,
        }
        | answer.verdict
        for decoding, answer in drawn
    ]


def write_answers(evaluation: evaluate.Evaluation, path: pathlib.Path) -> None:
    """Writes what `list_answers` returns as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', encoding='utf-8') as file:
        for answer in list_answers(evaluation):
            file.write(json.dumps(answer, ensure_ascii=False) + '\n')


def show(result: dict, settings: ml_collections.ConfigDict) -> None:
    """Prints the result as a table."""
    title = printable(f'{settings.task.name}, {result["problems"]} problems')
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, title=title)
    table.add_column('score')
    table.add_column('value [95 %]', justify='right')
    rows = {
        'greedy accuracy': ('accuracy', 'ci95'),
        'sampled accuracy': ('sampled_accuracy', 'sampled_ci95'),
    }
    rows |= {
        name: (name, f'{name}_ci95') for name in result if '@' in name and not name.endswith('ci95')
    }
    rows |= {name: (name, '') for name in ('strict', 'flexible') if name in result}
    for label, (name, interval) in rows.items():
        if name in result:
            table.add_row(label, percent(result[name], result.get(interval)))
    table.add_row('mean length', f'{result["mean_length"]:.1f} tokens')
    table.add_row('cut at the limit', percent(result['clipped_ratio']))
    if result['dropped_overlong']:
        table.add_row('prompts dropped as too long', str(result['dropped_overlong']))
    rich.console.Console(width=100, highlight=False, markup=False, emoji=False).print(table)
