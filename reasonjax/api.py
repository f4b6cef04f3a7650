"""The Python interface: load a config, run it, sample from the model that it left, score it.
`import reasonjax` has its names."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from reasonjax import programs
from reasonjax.errors import UserError
from reasonjax.reporting import report
from reasonjax.training import answer_prompts as sampling
from reasonjax.training import run as stages
from reasonjax.training import saved_run, score_run

__all__ = ['Model', 'UserError', 'load_config', 'load_model', 'run']

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
    """Runs the stages of a config that are not finished yet; a run that was broken off goes on.

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
            raise UserError('prompts: there are none.')
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
        opened = saved_run.open_saved(
            self.run.workdir, self.stage, trust=self.trust, evaluating=True
        )
        changes = [(f'evaluation.{key}', value) for key, value in _texts(overrides)]
        asked = score_run.prepare(opened, changes, ','.join(map(str, k)), self.trust)
        return score_run.results(asked, asked.evaluate(self.params))


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
    return Model(saved.run, saved.place.name, saved.step, saved.params, tuple(trust))


@functools.cache
def _prepare() -> None:
    programs.start(skip_selfcheck=False)


def _texts(overrides: Overrides | None) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in (overrides or {}).items()]
