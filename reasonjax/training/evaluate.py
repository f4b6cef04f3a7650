"""Evaluation: generate answers to every problem of a task and mark them. Used between steps, as a
stage, and by the program."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from reasonjax import config as configs
from reasonjax import randomness
from reasonjax.data import pipeline
from reasonjax.errors import UserError
from reasonjax.parallel import mesh as meshes
from reasonjax.parallel import processes
from reasonjax.sampling.text import Completion, completions
from reasonjax.tracking.progress import Progress
from reasonjax.training import samplers, statistics, stopping
from reasonjax.training.batch import PROMPTS
from reasonjax.training.context import Run, Stage
from reasonjax.training.kinds import StageResult
from reasonjax.training.samplers import sampler, sampling_from_config
from reasonjax.weights import finite

SHOWN = 3


class Answer(NamedTuple):
    """One marked completion: which problem (its place in the task), what was produced, what the
    verifier said."""

    problem: int
    completion: Completion
    verdict: dict


class Evaluation(NamedTuple):
    """Marked answers of one model: `greedy[i]` one per problem (empty where not asked for),
    `sampled[i]` k per problem.

    `dropped` problems had too long a prompt and are not among them.
    """

    rows: list[dict]
    greedy: list[Answer]
    sampled: list[list[Answer]]
    dropped: int = 0


def make(run: Run, progress: bool = False) -> Callable[[Any], Evaluation]:
    """Prepares an evaluation as `config.evaluation` states it; the result is called with
    parameters, as often as wanted.

    Draws depend on the seed and the problem, not on when the evaluation is made: two evaluations of
    one model are equal, and models are compared on the same random numbers.

    Args:
      run: what stages share.
      progress: show how many batches are done, on standard error.

    Raises:
      UserError: settings that draw no answer; the result raises it too, where a parameter is not a
        finite number.
    """
    c = run.config.evaluation
    check_settings(c)
    task = configs.resolve(c.task, 'task', 'evaluation.task')()
    processes.check_equal(
        task.examples.fingerprint(),
        'config.evaluation: the problems',
        'Give all hosts the same files.',
    )
    transforms = [
        configs.resolve(t, 'transforms', f'evaluation.transforms[{i}]')
        for i, t in enumerate(c.transforms)
    ]
    # of the last batch, what no problem fills is not marked
    batch_size = meshes.filled(c.batch_size, run.rollout_mesh)
    batches = pipeline.evaluation(
        task.examples,
        transforms,
        run.tokenizer,
        max_prompt_length=c.max_prompt_length,
        batch_size=batch_size,
        overlong=c.overlong,
    )
    key = randomness.key(run.config.seed, 0, 0, 'evaluate')
    ways = {}
    if c.greedy:
        ways['greedy'] = sampling_from_config(
            c, run.tokenizer, 'evaluation', temperature=0.0, top_k=0, top_p=1.0, min_p=0.0
        )
    if c.samples:
        ways['sampled'] = sampling_from_config(
            c, run.tokenizer, 'evaluation', num_generations=c.samples
        )
    programs = {name: sampler(run, settings) for name, settings in ways.items()}

    def evaluate(params: Any) -> Evaluation:
        finite.check(params, 'evaluation: this model says nothing', dtype=run.model.compute_dtype)
        if not progress:
            return over(params, lambda done: None)
        with Progress('evaluate', len(batches), stream=sys.stderr) as bar:
            return over(params, lambda done: bar.update(done, {}))

    def over(params: Any, report: Callable[[int], None]) -> Evaluation:
        rows, marked = [], {'greedy': [], 'sampled': []}
        for done, batch in enumerate(batches, 1):
            stopping.point(
                f'evaluation: {done - 1} of {len(batches)} batches were done, and will be done '
                'again'
            )
            prompts = {name: batch[name] for name in PROMPTS}
            prompts['index'] = prompts['index'].astype(np.uint32)
            results = {name: program(params, prompts, key) for name, program in programs.items()}
            for name, rollout in results.items():
                marked[name] += mark(batch, completions(processes.fetch(rollout), run.tokenizer))
            rows += [batch['rows'][i] for i in np.flatnonzero(batch['valid'])]
            report(done)
        greedy = [answers[0] for answers in marked['greedy']]
        return Evaluation(rows, greedy, marked['sampled'], batches.counters['dropped_overlong'])

    def mark(batch: dict, texts: list[list[Completion]]) -> list[list[Answer]]:
        """Verifies the answers to a batch; each process those to its share of the problems."""
        valid = np.flatnonzero(batch['valid'])

        def of(part: slice) -> list[list[dict]]:
            return [
                [task.verify(t.text, batch['rows'][i], t.terminated) for t in texts[i]]
                for i in valid[part]
            ]

        verdicts = [verdict for part in processes.divided(len(valid), of) for verdict in part]
        return [
            [
                Answer(int(batch['index'][i]), t, verdict)
                for t, verdict in zip(texts[i], of_problem, strict=True)
            ]
            for i, of_problem in zip(valid, verdicts, strict=True)
        ]

    return evaluate


def run(
    run: Run, stage: Stage, initial_params: Callable[[], Any], evaluation: Callable | None
) -> StageResult:
    """Leaves the model as it is; the evaluation follows, as after every stage."""
    del evaluation
    run.writer.resume(stage.name, None)
    return StageResult(initial_params())


def check(config: ml_collections.ConfigDict, name: str) -> None:
    """Raises UserError where a stage is to evaluate, and evaluations are off."""
    if not config.evaluation.enabled:
        raise UserError(f'config.{name}: an evaluate stage needs config.evaluation.enabled=True.')


def check_settings(c: ml_collections.ConfigDict) -> None:
    """Raises UserError where the settings of an evaluation cannot work."""
    if not (c.greedy or c.samples):
        raise UserError(
            f'config.evaluation: greedy={c.greedy} with samples={c.samples} draws no answer; set '
            'greedy, or samples above 0.'
        )
    samplers.check(c, 'evaluation')


def metric_names(c: ml_collections.ConfigDict) -> set[str]:
    """Returns the names of the metrics that an evaluation with these settings gives. `eval_strict`
    and `eval_flexible` are among them, which only some tasks have."""
    answer = Answer(
        0, Completion('', [], 0, True), {'correct': True, 'strict': True, 'flexible': True}
    )
    return set(
        as_metrics(
            summarise(Evaluation([{}], [answer] * bool(c.greedy), [[answer]] * bool(c.samples)))
        )
    )


def summarise(evaluation: Evaluation) -> dict:
    """Computes accuracies with 95 % intervals, and lengths.

    `accuracy` is greedy, `sampled_accuracy` the mean over samples; intervals are over problems (see
    `statistics.interval`). `mean_length` is in tokens, of the samples where there are any: greedy
    answers follow whichever habit is in the majority, so their length says less.
    """
    result = {'problems': len(evaluation.rows), 'dropped_overlong': evaluation.dropped}
    if evaluation.greedy:
        correct = [a.verdict['correct'] for a in evaluation.greedy]
        result |= {
            'accuracy': float(np.mean(correct)),
            'ci95': statistics.wilson(sum(correct), len(correct)),
        }
        result |= {
            'greedy_length': float(np.mean([a.completion.length for a in evaluation.greedy]))
        }
    if evaluation.sampled:
        shares = [
            float(np.mean([a.verdict['correct'] for a in answers]))
            for answers in evaluation.sampled
        ]
        result |= {
            'sampled_accuracy': float(np.mean(shares)),
            'sampled_ci95': statistics.interval(shares),
        }
    every = [a for answers in evaluation.sampled for a in answers] or evaluation.greedy
    result['mean_length'] = float(np.mean([a.completion.length for a in every]))
    result['clipped_ratio'] = float(np.mean([not a.completion.terminated for a in every]))
    for reading in ('strict', 'flexible'):
        if reading in every[0].verdict:
            result[reading] = float(
                np.mean([a.verdict[reading] for a in (evaluation.greedy or every)])
            )
    return result


def as_metrics(summary: dict) -> dict:
    """Returns a summary as metrics, under the names that metrics have."""
    metrics = {
        f'eval_{name}': value for name, value in summary.items() if not name.endswith('ci95')
    }
    for prefix in ('', 'sampled_'):
        if f'{prefix}ci95' in summary:
            low, high = summary[f'{prefix}ci95']
            metrics |= {f'eval_{prefix}accuracy_lo': low, f'eval_{prefix}accuracy_hi': high}
    return metrics


def examples(evaluation: Evaluation) -> list[dict]:
    """Returns the first few problems with their greedy (else first sampled) answers, to show."""
    answers = evaluation.greedy or [a[0] for a in evaluation.sampled]
    return [
        {
            'prompt': row['prompt'],
            'solution': row.get('solution'),
            'answer': a.completion.text,
            'correct': bool(a.verdict['correct']),
        }
        for row, a in list(zip(evaluation.rows, answers, strict=True))[:SHOWN]
    ]
