"""One cell of a comparison, run in this process: train, answer the exam, count what it cost."""

import dataclasses
import json
import pathlib
import shutil
import statistics
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections

from reasonjax import config as configs
from reasonjax import files, programs
from reasonjax.arena import recipes, results
from reasonjax.arena.results import Cell
from reasonjax.errors import Stopped, UserError
from reasonjax.planning import flops
from reasonjax.protocols import needed
from reasonjax.reporting import report
from reasonjax.tracking import metrics
from reasonjax.training import evaluate, locks
from reasonjax.training import run as runs
from reasonjax.training.context import Run, Stage, abstract_params, open_run, stages_of
from reasonjax.training.kinds import KINDS
from reasonjax.training.saved_run import saved

CONFIG, RESULT, EXAM, RUN = 'cell.json', 'result.json', 'exam.json', 'run'


class Spec(NamedTuple):
    """What a worker is told of a cell: whose it is, and the folder that holds its config (`CONFIG`)
    and gets its result.

    `problems` bounds each evaluation, 0 for the task's own number; `warm` is the folder of the warm
    start, '' for a warm start itself; for `trust` see `saved_run.open_saved`.
    """

    recipe: str
    task: str
    seed: int
    folder: str
    warm: str = ''
    problems: int = 0
    trust: Sequence[str] = ()


class Answers(NamedTuple):
    """Of an exam: part -> {'greedy', 'sampled'} -> outcomes, as `results.Cell.correct` has them,
    and part -> mean length."""

    correct: dict[str, dict[str, list[float]]]
    length: dict[str, float]


def warm_up(spec: Spec) -> None:
    """Trains a warm start, answers its exam and writes the answers down."""
    folder = pathlib.Path(spec.folder)
    config = configs.from_json(files.read_text(folder / CONFIG), str(folder / CONFIG))
    config.lock()
    runs.run(config, folder, spec.trust, report.write)
    answers = _examined(folder, config, config.evaluation)
    files.write_text(folder / EXAM, json.dumps(answers._asdict()))


def run(spec: Spec) -> Cell:
    """Runs a cell or resumes it; writes and returns its result, also where the cell fails.

    Raises:
      Stopped: the program was asked to stop; the cell has no result then.
      UserError: another process runs it.
    """
    folder = pathlib.Path(spec.folder)
    with locks.hold(folder):
        return _run(spec, folder)


def _run(spec: Spec, folder: pathlib.Path) -> Cell:
    about = dict(recipe=spec.recipe, task=spec.task, seed=spec.seed)
    try:
        cell = Cell(**about, status='done', **_measured(spec, folder))
    except Stopped:
        raise
    except Exception as error:  # whatever it is: the others continue
        last = traceback.format_exc().strip().splitlines()[-3:]
        cell = Cell(
            **about, status='failed', error=f'{type(error).__name__}: {error}\n' + '\n'.join(last)
        )
    results.write(folder / RESULT, cell)
    # Parameters are of no use any more, and many.
    for path in _checkpoints(folder):
        shutil.rmtree(path)
    return cell


def _checkpoints(folder: pathlib.Path) -> list[pathlib.Path]:
    return list((folder / RUN).glob('stages/*/checkpoints'))


def _measured(spec: Spec, folder: pathlib.Path) -> dict[str, Any]:
    config = configs.from_json(files.read_text(folder / CONFIG), str(folder / CONFIG))
    config.lock()
    before = read_answers(pathlib.Path(spec.warm) / EXAM)
    if not _checkpoints(folder):
        # A cell that was done, and whose result is gone, begins again.
        shutil.rmtree(folder / RUN, ignore_errors=True)
    peak = Peak()
    runs.run(config, folder / RUN, spec.trust, report.write)
    peak_bytes = peak.bytes
    answers = _examined(
        folder / RUN, config, recipes.exam_settings(config, spec.task, spec.problems)
    )
    spent = Spent(
        open_run(config, folder / RUN, active=False), metrics.read(folder / RUN / 'metrics.jsonl')
    )
    return {
        'correct': answers.correct,
        'before': before.correct,
        'length': answers.length,
        'curve': spent.curve(),
        'cost': spent.total() | {'peak_bytes': peak_bytes},
    }


def read_answers(file: pathlib.Path) -> Answers:
    """Reads the answers of a warm start to its exam.

    Raises:
      UserError: the file is damaged.
    """
    content = files.json_object(file)
    if content.keys() != {*Answers._fields} or not all(
        isinstance(value, dict) for value in content.values()
    ):
        raise UserError(f'{file}: is not what a warm start has answered.')
    return Answers(**content)


def _examined(
    workdir: pathlib.Path,
    made_with: ml_collections.ConfigDict,
    evaluation: ml_collections.ConfigDict,
) -> Answers:
    """Has the model of a workdir answer an exam. Trusts functions that `made_with`, the model's
    config, names."""
    opened = saved(workdir, trust=configs.names(made_with))
    config = opened.run.config.copy_and_resolve_references().unlock()
    config.evaluation = evaluation
    # Draws depend on the run's seed: of one problem, all recipes with this seed get the same.
    return answers_of(evaluate.make(dataclasses.replace(opened.run, config=config))(opened.params))


def answers_of(evaluation: evaluate.Evaluation) -> Answers:
    """Sorts marked answers by the part of the exam that they belong to."""
    correct: dict[str, dict[str, list[float]]] = {}
    lengths: dict[str, list[int]] = {}
    sampled = evaluation.sampled or [[] for _ in evaluation.rows]
    greedy = evaluation.greedy or [None for _ in evaluation.rows]
    for row, one, drawn in zip(evaluation.rows, greedy, sampled, strict=True):
        part = correct.setdefault(row['part'], {'greedy': [], 'sampled': []})
        if one is not None:
            part['greedy'].append(float(one.verdict['correct']))
        if drawn:
            part['sampled'].append(sum(a.verdict['correct'] for a in drawn) / len(drawn))
        lengths.setdefault(row['part'], []).extend(a.completion.length for a in (drawn or [one]))
    return Answers(correct, {part: statistics.fmean(values) for part, values in lengths.items()})


class Spent:
    """What training cost, from the records of a run.

    Tokens are counted one by one: `trained_tokens` are those that gradients were taken of, as often
    as they were, `generated_tokens` those drawn, to train on or to collect. `flops` are the
    products with weights that they took (a prompt is read once to draw and once to train; attention
    between tokens, a few per cent at these lengths, is left out). `seconds` are those of steps,
    where a compilation counts as a usual step.
    """

    def __init__(self, run: Run, records: Sequence[Mapping[str, Any]]):
        self._records = records
        self._stages = {
            stage.name: StageCost(run, stage) for stage in stages_of(run.config, run.workdir)
        }

    def total(self) -> dict[str, float]:
        """Returns the cost of the whole run."""
        return _added(stage.spent(self._of(name)) for name, stage in self._stages.items())

    def curve(self) -> list[dict[str, float]]:
        """Returns the evaluations along training, each with the cost of training up to then."""
        points, before, steps = [], _added([]), 0
        for name, stage in self._stages.items():
            records = self._of(name)
            done = _steps(records)
            for r in records:
                if 'eval_accuracy' in r and done:
                    cost = _added(
                        [before, stage.spent([one for one in done if one['step'] <= r['step']])]
                    )
                    points.append(
                        {
                            'step': steps + r['step'],
                            'accuracy': r['eval_accuracy'],
                            'length': r['eval_mean_length'],
                        }
                        | cost
                    )
            before = _added([before, stage.spent(done)])
            steps += done[-1]['step'] if done else 0
        return points

    def _of(self, stage: str) -> list[Mapping[str, Any]]:
        return [r for r in self._records if r['stage'] == stage]


class StageCost:
    """What the tokens of one stage cost."""

    def __init__(self, run: Run, stage: Stage):
        self._stage = stage.config
        self._kind = KINDS[self._stage.kind]
        if not self._kind.works:
            return
        params = abstract_params(run, stage.number)
        chosen = configs.resolve(self._stage.get('filter', {'name': 'all'}), 'filter')(
            run.specs, params
        )
        products = flops.matrices(run.model, run.specs, params, chosen, 1)
        self._read = sum(product.flops * times for product, times in flops.forward(products))
        self._trained, self._refers, self._passes = 0.0, False, 0
        if self._kind.trains:
            self._trained = sum(
                product.flops * times for product, times in flops.training(run.model, products)
            )
            self._refers = 'logprob_ref' in needed(
                configs.resolve(self._stage.objective, 'objective')
            )
            self._passes = self._stage.get('num_iterations', 1)

    @property
    def per_token(self) -> float:
        """Operations of a token that the stage counts: one trained on, or one drawn with its share
        of its prompt, scored and trained on."""
        settings = self._stage
        if not self._kind.samples:
            return self._trained
        prompt = settings.data.max_prompt_length / (
            settings.num_generations * settings.max_completion_length
        )
        return (1 + prompt) * ((1 + self._refers) * self._read + self._passes * self._trained)

    def spent(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Returns the cost of the stage up to the last step in `records`."""
        steps = _steps(records)
        if not steps:
            return _added([])
        stage, tokens, number = self._stage, steps[-1]['num_tokens'], steps[-1]['step']
        times = [r['step_time'] for r in steps]
        seconds = sum(times) - times[0] + min(times[0], statistics.median(times))
        if not self._kind.samples:
            return {
                'generated_tokens': 0.0,
                'trained_tokens': tokens,
                'flops': tokens * self._trained,
                'seconds': seconds,
            }
        prompts = number * stage.num_prompts * stage.data.max_prompt_length
        read, trained = (tokens + prompts) * (1 + self._refers), (tokens + prompts) * self._passes
        work = read * self._read + trained * self._trained
        return {
            'generated_tokens': tokens,
            'trained_tokens': tokens * self._passes,
            'flops': work,
            'seconds': seconds,
        }


def _steps(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Keeps the records of steps, without those of evaluations."""
    return [r for r in records if 'step_time' in r]


def _added(costs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total = dict.fromkeys(('generated_tokens', 'trained_tokens', 'flops', 'seconds'), 0.0)
    for cost in costs:
        total = {name: value + cost[name] for name, value in total.items()}
    return total


class Peak:
    """The most memory held since this was made."""

    def __init__(self):
        programs.give_back_freed_memory()
        self._before = _device_peak()
        try:
            pathlib.Path('/proc/self/clear_refs').write_text('5')
        except OSError:
            pass

    @property
    def bytes(self) -> float | None:
        """Of the first device where it says, else of the process. None where neither is known, and
        where the device held as much before: its mark cannot be set back.
        """
        after = _device_peak()
        if after is not None:
            return after if after > self._before else None
        try:
            status = pathlib.Path('/proc/self/status').read_text()
        except OSError:
            return None
        return next(
            (
                float(line.split()[1]) * 1024
                for line in status.splitlines()
                if line.startswith('VmHWM')
            ),
            None,
        )


def _device_peak() -> float | None:
    peak = (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
    return None if peak is None else float(peak)
