"""A comparison from its flags to its report: configs of all cells, warm starts, cells, table."""

import argparse
import datetime
import hashlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import ml_collections

from reasonjax import __version__, config_files, files
from reasonjax import config as configs
from reasonjax.arena import budget, claims, page, recipes, results, schedule, tasks
from reasonjax.arena.cell import CONFIG, EXAM, RESULT, RUN, Spec, read_answers
from reasonjax.arena.options import Budget, check, parse_budget, parse_pair
from reasonjax.arena.recipes import Recipe
from reasonjax.arena.results import Cell
from reasonjax.errors import UserError, nearest
from reasonjax.files import put_aside
from reasonjax.terminal import printable
from reasonjax.tracking.progress import Progress
from reasonjax.training import locks

WARM = 'warm'  # the folder of warm starts


class Asked(NamedTuple):
    """A cell that is wanted."""

    recipe: Recipe
    task: str
    seed: int


class Planned(NamedTuple):
    """A cell and its config."""

    spec: Spec
    config: ml_collections.ConfigDict

    @property
    def result(self) -> Cell | None:
        """The result, where this very cell has one."""
        folder = pathlib.Path(self.spec.folder)
        if not ((folder / RESULT).is_file() and (folder / CONFIG).is_file()):
            return None
        if _placeless(files.read_text(folder / CONFIG)) != _placeless(configs.to_json(self.config)):
            return None
        try:
            return results.read(folder / RESULT)
        except UserError as error:
            print(
                f'warning: {error} Renamed to {put_aside(folder / RESULT).name}; the cell is run '
                'again.',
                file=sys.stderr,
            )
            return None

    def write(self) -> None:
        """Writes the config into the cell's folder. What another config has left there, such as
        that of another place, is deleted."""
        folder, text = pathlib.Path(self.spec.folder), configs.to_json(self.config)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CONFIG).is_file() and files.read_bytes(folder / CONFIG) != text.encode():
            shutil.rmtree(folder / RUN, ignore_errors=True)
        files.write_text(folder / CONFIG, text)


def run(options: argparse.Namespace) -> list[pathlib.Path]:
    """Runs what is not done yet of a comparison, and writes its report; `options` are those of
    `reasonjax.compare`.

    Returns:
      The files written, the page first.

    Raises:
      UserError: an unknown recipe or task, one that does not fit the other, or options that cannot
        work.
    """
    check(options)
    # This process only reads configs and data; devices belong to the workers.
    jax.config.update('jax_platforms', 'cpu')
    workdir = pathlib.Path(options.workdir)
    chosen, names = recipes.find(options.recipes), tasks.find(options.tasks)
    baseline = options.baseline or chosen[0].name
    if baseline not in (known := [recipe.name for recipe in chosen]):
        raise UserError(f'--baseline={baseline}: not among the recipes.{nearest(baseline, known)}')
    limit = parse_budget(options.budget)
    overrides = [parse_pair(text) for text in options.override]
    workers = options.workers or _workers()
    asked = [
        Asked(recipe, name, seed)
        for seed in range(options.seeds)
        for name in names
        for recipe in chosen
    ]
    done = results_of(
        asked,
        workdir,
        workers=workers,
        overrides=overrides,
        limit=limit,
        problems=options.problems,
        init=options.init,
        trust=options.trust,
    )
    order = {
        (name, recipe.name): i
        for i, (name, recipe) in enumerate((n, r) for n in names for r in chosen)
    }
    finished = sorted(done, key=lambda cell: order[cell.task, cell.recipe])
    about = {
        'command': shlex.join(['python', '-m', 'reasonjax.compare', *sys.argv[1:]]),
        'measured': f'{datetime.date.today()}, reasonjax {__version__}, {workers} worker '
        f'processes on {os.cpu_count()} cores',
        'seeds': options.seeds,
        'budget': options.budget or 'the number of steps that each task states',
        'overrides': ', '.join(options.override) or 'none',
        'learning rates': "the task's, the same for all recipes; none was tuned",
    }
    paths = page.write(workdir, finished, baseline, about, measure=options.measure)
    if options.docs:
        paths += page.publish(
            pathlib.Path(options.docs), finished, baseline, about, measure=options.measure
        )
    print(printable((workdir / 'table.md').read_text(encoding='utf-8')))
    print(f'Table, figures and page: {paths[0]}')
    return paths


def run_claims(options: argparse.Namespace) -> list[pathlib.Path]:
    """Tests the claims of recipes (all that have one, or those named) and writes them down; returns
    the files.

    Raises:
      UserError: a claim that cannot be tested, or none.
    """
    jax.config.update('jax_platforms', 'cpu')
    wanted = [recipe.name for recipe in recipes.find(options.recipes)] if options.recipes else None
    stated = [
        claims.of_recipe(file)
        for file in config_files.recipes()
        if wanted is None or file.stem in wanted
    ]
    chosen = [claim for claim in stated if claim is not None]
    if not chosen:
        raise UserError(f'--claims: no recipe{" of these" if wanted else ""} has a CLAIM.')
    asked = []
    for claim in chosen:
        for name in (claim.recipe, claim.against):
            asked += [Asked(recipes.find(name)[0], claim.task, seed) for seed in range(claim.seeds)]
    asked = list(dict.fromkeys(asked))
    done = results_of(
        asked,
        pathlib.Path(options.workdir),
        workers=options.workers or _workers(),
        problems=options.problems,
    )
    records = []
    for claim in chosen:
        sides = (claim.against, claim.recipe)
        records.append(
            claims.judged(
                claim,
                [
                    c
                    for c in done
                    if c.task == claim.task and c.recipe in sides and c.seed < claim.seeds
                ],
            )
        )
        print(f'{claim.recipe}: {claim.text}: {records[-1]["verdict"]}')
    return claims.write(pathlib.Path(options.docs or 'docs'), records)


def results_of(
    asked: Sequence[Asked],
    workdir: pathlib.Path,
    *,
    workers: int,
    overrides: Sequence[tuple[str, str]] = (),
    limit: Budget | None = None,
    problems: int = 0,
    init: str = '',
    trust: Sequence[str] = (),
) -> list[Cell]:
    """Returns the results of cells, in order; runs missing ones after the warm starts they need.

    Args:
      asked: each cell once.
      workdir: for cells, warm starts, logs and compiled programs.
      workers: processes.
      overrides, problems: see `recipes.retargeted`.
      limit: see `budget.limited`; None for none.
      init: the model to start from, on tasks that need one.
      trust: see `saved_run.open_saved`, of the run that `init` names.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with locks.hold(workdir):
        return _results_of(asked, workdir, workers, overrides, limit, problems, init, trust)


def _results_of(
    asked: Sequence[Asked],
    workdir: pathlib.Path,
    workers: int,
    overrides: Sequence[tuple[str, str]],
    limit: Budget | None,
    problems: int,
    init: str,
    trust: Sequence[str],
) -> list[Cell]:
    """Does the work of `results_of`, in a workdir that this process has locked."""
    warm = {
        name: _warm(workdir, name, problems, init, trust)
        for name in dict.fromkeys(one.task for one in asked)
    }
    _warm_up(
        [one for one in warm.values() if not _answered(pathlib.Path(one.spec.folder) / EXAM)],
        workdir,
        workers,
    )
    cells = [
        _cell(workdir, one, warm[one.task], overrides, limit, problems, trust) for one in asked
    ]
    by_spec = _all(cells, workdir, workers)
    results.write_index(workdir, [pathlib.Path(cell.spec.folder) / RESULT for cell in cells])
    return by_spec


def _workers() -> int:
    """Returns how many worker processes to run: one per core, or one on an accelerator.

    Processes share an accelerator badly. A subprocess asks for the backend, so that this one holds
    no device.
    """
    command = [sys.executable, '-c', 'import jax; print(jax.default_backend())']
    backend = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    return len(schedule.cores()) if backend == 'cpu' else 1


def _named(text: str) -> str:
    """Turns a name into one that a folder may have."""
    return re.sub(r'[^A-Za-z0-9.]+', '_', text).strip('_')


def _placeless(text: str) -> str:
    """Reduces the warm start's path in a cell's config to its name: a comparison may be moved."""
    return re.sub(f'"checkpoint:[^"]*/{WARM}/', f'"checkpoint:{WARM}/', text)


def _digest(text: str) -> str:
    return hashlib.sha256(f'{__version__}\n{text}'.encode()).hexdigest()[:8]


def _warm(
    workdir: pathlib.Path, task: str, problems: int, init: str, trust: Sequence[str]
) -> Planned:
    config = recipes.warm_config(task, problems, init, trust)
    folder = workdir / WARM / f'{task}-{_digest(configs.to_json(config))}'
    return Planned(
        Spec(
            'warm start',
            task,
            recipes.WARM_SEED,
            str(folder),
            problems=problems,
            trust=tuple(trust),
        ),
        config,
    )


def _cell(
    workdir: pathlib.Path,
    asked: Asked,
    warm: Planned,
    overrides: Sequence[tuple[str, str]],
    limit: Budget | None,
    problems: int,
    trust: Sequence[str],
) -> Planned:
    recipe, task, seed = asked
    config = recipes.retargeted(
        recipe,
        task,
        seed,
        pathlib.Path(warm.spec.folder),
        overrides=overrides,
        problems=problems,
        trust=trust,
    )
    if limit is not None:
        config = budget.limited(config, limit)
    folder = (
        workdir
        / 'cells'
        / task
        / _named(recipe.name)
        / f'{seed}-{_digest(_placeless(configs.to_json(config)))}'
    )
    return Planned(
        Spec(recipe.name, task, seed, str(folder), warm.spec.folder, problems, tuple(trust)), config
    )


def _answered(exam: pathlib.Path) -> bool:
    """Checks whether a warm start has answered its exam; renames a damaged file out of the way."""
    if not exam.is_file():
        return False
    try:
        read_answers(exam)
    except UserError as error:
        print(f'warning: {error} Renamed to {put_aside(exam).name}.', file=sys.stderr)
        return False
    return True


def _warm_up(missing: Sequence[Planned], workdir: pathlib.Path, workers: int) -> None:
    if not missing:
        return
    for one in missing:
        one.write()
    failed = []
    with Progress('warm starts', len(missing), waiting='') as progress:
        number = 0

        def done(spec: Spec, status: str) -> None:
            nonlocal number
            number += 1
            progress.update(number, {})
            if status != 'done':
                failed.append(f'{spec.task}: {status}')

        schedule.run([one.spec for one in missing], workdir, workers, done)
    if failed:
        raise UserError('no warm start, so nothing can be compared on ' + '; '.join(failed))


def _all(cells: Sequence[Planned], workdir: pathlib.Path, workers: int) -> list[Cell]:
    """Returns the results of all cells; runs those that have none or failed."""
    by_spec = {cell.spec: cell.result for cell in cells}
    missing = [cell for cell in cells if by_spec[cell.spec] is None or not by_spec[cell.spec].done]
    for cell in missing:
        cell.write()
    with Progress('cells', len(cells), start=len(cells) - len(missing), waiting='') as progress:
        number = len(cells) - len(missing)
        progress.update(number, {})

        def done(spec: Spec, status: str) -> None:
            nonlocal number
            number += 1
            progress.update(number, {})
            if status == 'failed':
                print(
                    f'warning: {spec.recipe} on {spec.task}, seed {spec.seed}, failed: see '
                    f'{spec.folder}/{RESULT}',
                    file=sys.stderr,
                )

        schedule.run([cell.spec for cell in missing], workdir, workers, done)
    return [results.read(pathlib.Path(cell.spec.folder) / RESULT) for cell in cells]
