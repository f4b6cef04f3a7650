"""The Python interface: load a config, run it, read what it wrote, sample from the model that it
left, score it. `import reasonjax` has its names."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from reasonjax import programs
from reasonjax.data.tokenizers import Tokenizer
from reasonjax.errors import UserError, listing, nearest
from reasonjax.model.logprobs import Scored
from reasonjax.model.score import score
from reasonjax.reporting import report
from reasonjax.tracking import completion_files, metrics
from reasonjax.training import answer_prompts as sampling
from reasonjax.training import run as stages
from reasonjax.training import saved_run, score_run
from reasonjax.training.lay_out import lay_out

__all__ = [
    'Model',
    'UserError',
    'load_config',
    'load_model',
    'read_completions',
    'read_metrics',
    'run',
    'show',
]

Overrides = Mapping[str, Any]


def load_config(
    config: str,
    overrides: Overrides | None = None,
    *,
    smoke: bool = False,
    trust: Sequence[str] = (),
) -> ml_collections.ConfigDict:
    """Loads a config, as `python -m reasonjax.train --config` does.

    Args:
      config: a file, or the name of a config that comes with reasonjax ('quickstart'), with
        ':VARIANT' behind it where it has some.
      overrides: {'grpo.steps': 20, 'grpo.objective.name': 'clipped_policy_gradient'}: what
        `--config.KEY=VALUE` sets.
      smoke: shrink the model to one layer and each stage to two steps, to see whether it runs.
      trust: see `load_model`, of a run that `init` names.

    Returns:
      The completed config, locked.

    Raises:
      UserError: no such file or name, an unknown key, or a value of another type.
    """
    return programs.load_config(config, _texts(overrides), smoke, trust)[0]


def run(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike, *, trust: Sequence[str] = ()
) -> dict:
    """Runs the stages of a config that are not finished yet; a run that was stopped resumes.

    Args:
      config: what `load_config` returned.
      workdir: where the run writes all that it leaves; one that holds a run of another config is
        refused.
      trust: see `load_model`, of a run that `config.init` names.

    Returns:
      What `summary.json` holds: `stages`, the results of each, and `examples`, problems with each
        stage's answer.

    Raises:
      UserError: anything wrong with config, data, workdir or backend.
    """
    _prepare()
    return stages.run(config, workdir, trust, report.write)


def show(summary: Mapping[str, Any]) -> None:
    """Prints what `run` returned: the table of results, and problems with each stage's answer."""
    stages.show(summary)


def read_metrics(workdir: str | os.PathLike, stage: str = '') -> list[dict[str, Any]]:
    """Reads the records of `metrics.jsonl`: one per step that was logged, one per evaluation.

    Args:
      workdir: of the run.
      stage: only this stage's; by default those of all.

    Returns:
      Records in order, each with `stage`, `step` and what was measured there.

    Raises:
      UserError: no run there, no such stage, or a damaged line.
    """
    workdir = _run_with(workdir, stage)
    records = metrics.read(workdir / 'metrics.jsonl')
    return [record for record in records if stage in ('', record['stage'])]


def read_completions(workdir: str | os.PathLike, stage: str = '') -> list[dict[str, Any]]:
    """Reads the completions that online and collecting stages have written down.

    Args:
      workdir: of the run.
      stage: only this stage's; by default those of all.

    Returns:
      One row per completion, steps in order and the completions of a prompt together: `stage`,
      `step`, `prompt`, `completion`, each reward under its name, `advantage`, `length` and more.

    Raises:
      UserError: no run there, no such stage, or a file that cannot be read.
    """
    return completion_files.read(_run_with(workdir, stage) / 'completions', stage)


def _run_with(workdir: str | os.PathLike, stage: str) -> pathlib.Path:
    """Returns the workdir as a path; raises UserError where it has no run with this stage."""
    names = saved_run.read_config(workdir).stages
    if stage and stage not in names:
        raise UserError(
            f'{workdir} has no stage "{stage}".{nearest(stage, names)} Stages: {listing(names)}.'
        )
    return pathlib.Path(workdir)


@dataclasses.dataclass(frozen=True)
class Model:
    """The model that a stage of a run left.

    Attributes:
      run: what its stages share: `config`, `workdir`, `tokenizer`, `model` (the shape), `mesh`.
      stage: the name of the stage.
      step: of the checkpoint.
      params: the parameters, on the mesh.
      trust: see `load_model`.
    """

    run: saved_run.Run
    stage: str
    step: int
    params: Any
    trust: tuple[str, ...] = ()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer: `encode(text)`, `decode(ids)`, `eos_ids`, `pad_id`."""
        return self.run.tokenizer

    def sample(
        self,
        prompts: Sequence[str | list[dict]],
        *,
        chat: bool = False,
        samples: int = 1,
        max_tokens: int = 0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> list[tuple[Any, list[dict]]]:
        """Draws completions.

        Args:
          prompts: texts, or conversations (lists of messages) for the chat template.
          chat: put each text through the chat template, as a user message.
          samples: completions per prompt.
          max_tokens: longest completion; 0: that of `config.evaluation`.
          temperature: 0 is greedy.
          top_k: keep the k most likely tokens; 0 keeps all.
          top_p: keep the likeliest tokens up to this mass; 1 keeps all.
          min_p: drop tokens below this share of the most likely; 0 keeps all.
          seed: of the draws.
          batch_size: prompts at once.

        Returns:
          (prompt, completions) in the order of the prompts. A completion is a dict of `text`,
          `terminated`, `tokens` (their texts), `ids`, `logprobs` (nats) and `logprob`, their sum.

        Raises:
          UserError: no prompts, one that is empty, too long or cannot be rendered, or settings out
            of bounds.
        """
        if isinstance(prompts, str):
            raise UserError('prompts: give a list of prompts; this is a text.')
        if not prompts:
            raise UserError('prompts: the list is empty.')
        settings = sampling.settings(
            self.run,
            samples=samples,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
        )
        given = sampling.as_messages(prompts) if chat else list(prompts)
        drawn = sampling.sample(self.run, self.params, given, settings, seed, batch_size)
        return [
            (prompt, completions) for prompt, (_, completions) in zip(prompts, drawn, strict=True)
        ]

    def evaluate(self, overrides: Overrides | None = None, *, k: Sequence[int] = ()) -> dict:
        """Scores the model on the task of its run's `config.evaluation`, as `python -m
        reasonjax.evaluate` does.

        Args:
          overrides: of `config.evaluation`: {'samples': 16, 'task.limit': 500}.
          k: of pass@k and maj@k; by default 1 and the number of samples.

        Returns:
          `accuracy` (greedy), `sampled_accuracy`, `pass@k`, `maj@k`, each with its 95 % interval
          under NAME_ci95, and lengths.

        Raises:
          UserError: a task that the workdir takes from elsewhere and that is not trusted, or
            settings that cannot work.
        """
        asked = self._asked(overrides, ','.join(map(str, k)))
        return score_run.results(asked, asked.evaluate(self.params))

    def answer_task(self, overrides: Overrides | None = None) -> list[dict[str, Any]]:
        """Answers the problems of its run's `config.evaluation`, one by one.

        Args:
          overrides: of `config.evaluation`: {'samples': 4, 'greedy': False, 'task.size': 100}.

        Returns:
          One dict per answer, greedy ones first: `problem` (its number), `prompt`, `solution`,
          `decoding` ('greedy' or 'sampled'), `completion`, `length` in tokens, `terminated`, and
          the verdict, of which `correct` is always there.

        Raises:
          UserError: as `evaluate`.
        """
        return score_run.list_answers(self._asked(overrides, '').evaluate(self.params))

    def _asked(self, overrides: Overrides | None, ks: str) -> score_run.Asked:
        opened = saved_run.open_saved(
            self.run.workdir, self.stage, trust=self.trust, evaluating=True
        )
        changes = [(f'evaluation.{key}', value) for key, value in _texts(overrides)]
        return score_run.prepare(opened, changes, ks, self.trust)

    def batch(
        self, prompts: Sequence[str | list[dict]], completions: Sequence[str | Sequence[int]]
    ) -> dict[str, jax.Array]:
        """Lays out prompts and their completions as a batch that `score` and objectives read.

        Args:
          prompts: texts, or conversations (lists of messages) for the chat template.
          completions: one per prompt: a text, which gets its end-of-sequence token, or token ids,
            which are taken as they are.

        Returns:
          `tokens`, `segments`, `positions` [B, T] int32 and `weights` [B, T] float32, which is 1 on
          the tokens of the completions and 0 elsewhere; rows are padded on the right. And the
          totals that losses divide by, as if the batch were a whole step: `step_weight`,
          `step_tokens`, `step_rows`, `step_micro`.

        Raises:
          UserError: none, not as many of one as of the other, or one that is empty, too long or
            cannot be rendered.
        """
        return lay_out(self.run, prompts, completions)

    def score(
        self, batch: Mapping[str, jax.Array], params: Any = None, *, temperature: float = 1.0
    ) -> Scored:
        """Scores every token of a batch given those before it; can be jitted and differentiated.

        Args:
          batch: what `batch` returned.
          params: in place of the model's own.
          temperature: logits are divided by it.

        Returns:
          `logprob` (nats), `entropy` (nats) and `correct`, whether the token is the likeliest, each
          [B, T] and aligned with `batch['tokens']`.
        """
        params = self.params if params is None else params
        return score(params, self.run.model, batch, temperature=temperature)


def load_model(workdir: str | os.PathLike, stage: str = '', *, trust: Sequence[str] = ()) -> Model:
    """Loads the model of a run.

    Args:
      workdir: of the run.
      stage: take this stage's ('sft', 'grpo@best'); by default the last that has a checkpoint.
      trust: modules whose functions the run's config may name beside the package's own: a workdir
        is data, and nothing else is imported.

    Raises:
      UserError: no run or no checkpoint there, or a damaged one.
    """
    _prepare()
    saved = saved_run.saved(workdir, stage, trust=trust)
    return Model(saved.run, saved.stage.name, saved.step, saved.params, tuple(trust))


@functools.cache
def _prepare() -> None:
    programs.start(skip_selfcheck=False)


def _texts(overrides: Overrides | None) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in (overrides or {}).items()]
