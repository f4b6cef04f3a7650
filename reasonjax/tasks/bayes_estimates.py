"""Estimates of p(target = 1 | evidence) that a model of a Bayes net's strings gives, and how far
they are from the truth.

After Prystawski, Li, Goodman 2023 (arXiv 2304.03843). Problems are rows of the splits 'validation'
and 'test' of the task `bayes`. A model is two functions, whatever computes them:

    probability_of(texts) -> float array [N]    of '1' as the next character of each text, given
                                                that it is '0' or '1'
    sample(texts) -> N texts                    that follow each text, up to the answer and its '#'
                                                at least, where it comes to that
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from reasonjax.errors import UserError

ProbabilityOf = Callable[[Sequence[str]], Any]
Problems = Sequence[Mapping[str, Any]]


def direct(problems: Problems, probability_of: ProbabilityOf) -> np.ndarray:
    """Estimates the answers given at once, right after the prompts: float64 [N]."""
    return np.asarray(probability_of([f'{row["prompt"]}#' for row in problems]), np.float64)


def scaffolded(
    problems: Problems,
    probability_of: ProbabilityOf,
    rng: np.random.Generator,
    *,
    samples: int = 10,
    scaffold: str = 'scaffold',
) -> np.ndarray:
    """Estimates the answers given after other variables, whose values the model draws. The
    variables are named to the model one after the other.

    Args:
      problems: N rows.
      probability_of: the model.
      rng: of the values.
      samples: walks of each problem, over whose answers the mean is taken; 0 goes through all 2^n
        values of n variables and weighs each by its probability, which is the limit of many
        samples.
      scaffold: the column that names the variables: 'scaffold' or 'negative_scaffold'. Without
        variables this is `direct`.

    Returns:
      float64 [N].

    Raises:
      UserError: a negative number of samples, or a problem without this scaffold.
    """
    if samples < 0:
        raise UserError(f'scaffolded: samples must not be negative, got {samples}.')
    if any(row.get(scaffold) is None for row in problems):
        raise UserError(
            f'scaffolded: a problem has no {scaffold}: '
            f'{next(row for row in problems if row.get(scaffold) is None)}.'
        )
    # A walk is its problem, what it has said so far, and its share of the estimate.
    walks = [
        (i, row['prompt'], 1 / times)
        for i, row in enumerate(problems)
        for times in [max(samples, 1) if row[scaffold] else 1]
        for _ in range(times)
    ]
    for step in range(max((len(row[scaffold]) for row in problems), default=0)):
        going = [walk for walk in walks if step < len(problems[walk[0]][scaffold])]
        asked = [f'{text}{problems[i][scaffold][step]}=' for i, text, _ in going]
        one = np.asarray(probability_of(asked), np.float64)
        walks = [walk for walk in walks if step >= len(problems[walk[0]][scaffold])]
        if samples:
            values = (rng.random(len(going)) < one).astype(int)
            walks += [
                (i, f'{text}{value},', share)
                for (i, _, share), text, value in zip(going, asked, values)
            ]
        else:
            chances = np.stack([1 - one, one], axis=1)
            walks += [
                (i, f'{text}{value},', share * chances[k, value])
                for k, ((i, _, share), text) in enumerate(zip(going, asked))
                for value in (0, 1)
            ]
    answers = np.asarray(probability_of([f'{text}#' for _, text, _ in walks]), np.float64)
    return np.bincount(
        [i for i, _, _ in walks],
        [share for _, _, share in walks] * answers,
        minlength=len(problems),
    )


def free(
    problems: Problems,
    probability_of: ProbabilityOf,
    sample: Callable[[Sequence[str]], Sequence[str]],
    *,
    samples: int = 10,
) -> tuple[np.ndarray, float]:
    """Estimates the answers given after whatever the model says first, up to its '#'.

    Args:
      problems: N rows.
      probability_of: the model.
      sample: the same model, drawing.
      samples: completions of each problem, over whose answers the mean is taken.

    Returns:
      float64 [N], nan where no completion came to an answer; and the share of completions that did
      not.

    Raises:
      UserError: less than one sample.
    """
    if samples < 1:
        raise UserError(f'free: samples must be at least 1, got {samples}.')
    prompts = [row['prompt'] for row in problems for _ in range(samples)]
    parts = [completion.partition('#') for completion in sample(prompts)]
    ended = np.array([bool(mark) for _, mark, _ in parts])
    texts = [f'{prompt}{before}#' for prompt, (before, mark, _) in zip(prompts, parts) if mark]
    answers = np.full(len(prompts), np.nan)
    answers[ended] = probability_of(texts) if texts else []
    counts = ended.reshape(-1, samples).sum(1)
    totals = np.where(ended, answers, 0).reshape(-1, samples).sum(1)
    return np.divide(totals, counts, out=np.full(len(problems), np.nan), where=counts > 0), float(
        1 - ended.mean()
    )


def error(problems: Problems, estimates: np.ndarray) -> float:
    """Returns the mean squared error to the exact probability, over problems with an estimate."""
    return float(np.nanmean((estimates - np.array([row['probability'] for row in problems])) ** 2))


def score(
    problems: Problems,
    probability_of: ProbabilityOf,
    rng: np.random.Generator,
    *,
    sample: Callable[[Sequence[str]], Sequence[str]] | None = None,
    samples: int = 10,
) -> dict[str, float]:
    """Measures what a model gains by reasoning.

    Args:
      problems: rows of a held-out split.
      probability_of: the model.
      rng: of the values in scaffolds.
      sample: the same model, drawing; None leaves out what needs it.
      samples: of each problem; 0 takes the exact sum over all values of a scaffold (completions
        that the model draws: 10).

    Returns:
      `mse_direct`, `mse_scaffolded`, `mse_negative` (where every problem has a negative scaffold),
      `mse_marginal` (of the exact marginal, which a model that has not seen the pair falls back
      to); `gap_scaffolded`, `mse_direct - mse_scaffolded`; and with `sample` `mse_free`, `gap_free`
      and `unfinished`, the share of completions without an answer, which count for nothing.
    """
    scores = {
        'mse_marginal': error(problems, np.array([row['marginal'] for row in problems])),
        'mse_direct': error(problems, direct(problems, probability_of)),
        'mse_scaffolded': error(
            problems, scaffolded(problems, probability_of, rng, samples=samples)
        ),
    }
    scores['gap_scaffolded'] = scores['mse_direct'] - scores['mse_scaffolded']
    if all(row['negative_scaffold'] is not None for row in problems):
        estimates = scaffolded(
            problems, probability_of, rng, samples=samples, scaffold='negative_scaffold'
        )
        scores['mse_negative'] = error(problems, estimates)
    if sample is not None:
        estimates, scores['unfinished'] = free(
            problems, probability_of, sample, samples=samples or 10
        )
        scores['mse_free'] = error(problems, estimates)
        scores['gap_free'] = scores['mse_direct'] - scores['mse_free']
    return scores
