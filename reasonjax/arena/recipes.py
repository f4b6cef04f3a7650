"""A recipe put on a task: what it does stays, what it learns from and how long becomes the
comparison's.

Of a recipe's stages stay objective, corruption, advantage, adapter, filter, optimizer, transforms
and group sizes: all that makes it a method. Data, rewards, lengths, steps, batch sizes, learning
rates and evaluation are the task's, the same for all; so is the warm start.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from reasonjax import config as configs
from reasonjax import config_files
from reasonjax.arena.tasks import ALPHABET, ARENA, MODEL, ArenaTask
from reasonjax.errors import UserError, check_choice, listing, nearest
from reasonjax.training import load_config
from reasonjax.training.kinds import KINDS

WARM_SEED, WARM_DEMONSTRATIONS = 0, 8000
EVALUATIONS = 4  # along a stage
SAMPLES = 1  # answers drawn per problem at the end, beside the greedy one
EXAM_BATCH = 125
# What rows of a form have that a task's have not.
COLUMNS = {
    'preference': ('chosen', 'rejected'),
    'unpaired': ('label',),
    'stepwise': ('completions', 'labels'),
}


class Recipe(NamedTuple):
    """A recipe of a comparison: what it is called, its config file with its argument, and which of
    its stages run (all where none)."""

    name: str
    location: str
    stages: tuple[str, ...]


def find(names: str) -> list[Recipe]:
    """Reads a list of recipes such as 'sft,masked_thought,grpo@grpo,my/own.py:variant'.

    Each is an id (`configs/recipes/ID.py`, or a starting point `configs/ID.py`) or a path;
    ':ARGUMENT' goes to its `get_config`, and '@STAGE+STAGE' keeps only these of its stages.

    Raises:
      UserError: no such recipe, or one that is named twice.
    """
    recipes: list[Recipe] = []
    for text in filter(None, (part.strip() for part in names.split(','))):
        rest, _, stages = text.partition('@')
        name, colon, argument = rest.partition(':')
        recipe = Recipe(
            text, f'{_file(name)}{colon}{argument}', tuple(filter(None, stages.split('+')))
        )
        if any(other.name == recipe.name for other in recipes):
            raise UserError(f'--recipes: "{text}" is given twice.')
        recipes.append(recipe)
    if not recipes:
        raise UserError(
            f'--recipes: no recipe is named. Known: {listing(config_files.names())}, or paths of '
            'config files.'
        )
    return recipes


def _file(name: str) -> pathlib.Path:
    if name.endswith('.py'):
        if not pathlib.Path(name).is_file():
            raise UserError(f'--recipes: no file {name}.')
        return pathlib.Path(name)
    file = config_files.by_name(name)
    if file is None:
        known = config_files.names()
        raise UserError(
            f'--recipes: no recipe "{name}".{nearest(name, known)} Known: {listing(known)}, or a '
            'path.'
        )
    return file


def warm_config(
    task: str, problems: int = 0, init: str = '', trust: Sequence[str] = ()
) -> ml_collections.ConfigDict:
    """Builds the config of a task's warm start. It trains one, or for a task that needs a model
    keeps the one that `init` names.

    Raises:
      UserError: the task needs a model, and none is given.
    """
    c = configs.load(str(config_files.shipped() / 'sft.py')).copy_and_resolve_references().unlock()
    arena = ARENA[task]
    c.seed = WARM_SEED
    if arena.needs_model:
        if not init:
            raise UserError(
                f'--tasks: {task} needs a model to start from; give --init=hf:FOLDER or '
                '--init=checkpoint:WORKDIR.'
            )
        c.init, c.stages, c.keep = init, ('keep',), dict(kind='keep')
    else:
        both = _with_beside(arena)
        length = sum(
            max(getattr(one, f'max_{part}_length') for one in both)
            for part in ('prompt', 'completion')
        )
        sources = tuple({'name': one.task} | dict(one.knobs) | dict(one.warm) for one in both)
        c.model.update(MODEL)
        c.tokenizer = dict(name='characters', alphabet=ALPHABET, pad='_', eos='$', mask='M')
        c.train.data.source = dict(
            name='reasonjax.arena.tasks.mixture',
            sources=sources,
            size=WARM_DEMONSTRATIONS,
            seed=WARM_SEED,
        )
        c.train.data.update(max_length=length, packing=True)
        c.train.update(steps=arena.warm_steps, batch_size=_rows(length))
    c.evaluation = exam_settings(c, task, problems)
    c.evaluation.enabled = False  # what it answers is written down when it is done
    return _closed(c, trust)


def _with_beside(arena: ArenaTask) -> tuple[ArenaTask, ...]:
    return (arena, ARENA[arena.beside]) if arena.beside else (arena,)


def retargeted(
    recipe: Recipe,
    task: str,
    seed: int,
    warm: pathlib.Path,
    *,
    overrides: Sequence[tuple[str, str]] = (),
    problems: int = 0,
    trust: Sequence[str] = (),
) -> ml_collections.ConfigDict:
    """Builds the config that runs a recipe on a task.

    Args:
      recipe: see `find`.
      task: of `tasks.ARENA`.
      seed: of data order, draws and adapters; and of which demonstrations and prompts there are.
      warm: workdir of the task's warm start.
      overrides: of the result, as on the command line.
      problems: of each evaluation at most; 0 for the task's.
      trust: see `saved_run.open_saved`.

    Raises:
      UserError: a stage that the recipe does not have, or a recipe that cannot run on the task; the
        message says what is missing.
    """
    c = configs.load(recipe.location).copy_and_resolve_references().unlock()
    arena = ARENA[task]
    for name in recipe.stages:
        check_choice(f'--recipes: {recipe.name}: no stage "{name}"', name, c.stages, 'Stages')
    c.stages = tuple(
        name
        for name in c.stages
        if (name in recipe.stages if recipe.stages else KINDS[c[name].kind].works)
    )
    if not any(KINDS[c[name].kind].trains for name in c.stages):
        raise UserError(f'--recipes: {recipe.name} has no stage that trains.')
    c.seed, c.init = seed, f'checkpoint:{warm}'
    for name in c.stages:
        _stage(c[name], arena, name, recipe, seed)
    c.evaluation = exam_settings(c, task, problems, validation=True)
    c = _closed(c, trust)
    if overrides:
        c = configs.apply(c.copy_and_resolve_references().unlock(), overrides)
        c.lock()
    return c


def _stage(
    stage: ml_collections.ConfigDict, arena: ArenaTask, name: str, recipe: Recipe, seed: int
) -> None:
    kind = KINDS[stage.kind]
    if not kind.works:
        return
    length = arena.max_prompt_length + arena.max_completion_length
    if not kind.samples:
        if reads_collected(stage):
            stage.data.update(max_length=length, packing=False)
        else:
            if stage.data.form != 'demonstration' and not stage.data.transforms:
                raise UserError(
                    f'--recipes: {recipe.name} cannot run on the task "{arena.task}": its stage '
                    f'{name} reads rows of the form '
                    f'"{stage.data.form}", and the task lacks {listing(COLUMNS[stage.data.form])}; '
                    'it has prompt, completion, solution.'
                )
            stage.data.source = arena.node('train', arena.demonstrations, seed, **arena.train)
            stage.data.update(max_length=length, packing=True)
        stage.data.overlong = arena.overlong
        stage.batch_size = _rows(length)
        stage.steps = arena.supervised_steps
        ours = arena.peaks[0]
    else:
        stage.data.source = arena.node('prompts', arena.prompts, seed, **arena.asked)
        stage.data.update(max_prompt_length=arena.max_prompt_length, overlong=arena.overlong)
        stage.max_completion_length = arena.max_completion_length
        stage.rewards = {'accuracy': dict(_rule(arena))}
        stage.reward_workers = 0
        stage.steps = arena.online_steps
        ours = arena.peaks[1]
    if kind.trains:
        rate = dict(name='constant') if kind.samples else dict(name='cosine', final_fraction=0.05)
        stage.learning_rate = rate | {'peak': ours, 'warmup_steps': stage.steps // 10}
        stage.eval_every = max(1, stage.steps // EVALUATIONS)
        stage.checkpoint_every, stage.keep_best = 0, ''
    if 'log_completions_every' in stage:
        stage.log_completions_every = 0


def reads_collected(stage: ml_collections.ConfigDict) -> bool:
    """Checks whether a supervised stage reads what an earlier stage of the recipe has collected."""
    return str(stage.data.source.get('path', '')).startswith('stage:')


def _rule(arena: ArenaTask) -> Mapping[str, Any]:
    if arena.reward is not None:
        return arena.reward
    return configs.resolve(arena.node('prompts', 1, **dict(arena.train)), 'task')().on_tokens.reward


def _rows(length: int) -> int:
    """Returns the rows of a packed batch of about 2,000 tokens."""
    return max(4, 2000 // length)


def exam_settings(
    c: ml_collections.ConfigDict, task: str, problems: int = 0, *, validation: bool = False
) -> ml_collections.ConfigDict:
    """Builds `config.evaluation` for a task's exam, or for the evaluations along training.

    Args:
      c: a config.
      task: of `tasks.ARENA`.
      problems: of each part at most; 0 for as many as the task says.
      validation: the split 'validation' alone, greedily.
    """
    both = _with_beside(ARENA[task])
    settings = c.evaluation.copy_and_resolve_references().unlock()
    settings.task = dict(
        name='reasonjax.arena.tasks.exam', arena=task, validation=validation, problems=problems
    )
    settings.update(
        enabled=True,
        batch_size=EXAM_BATCH,
        transforms=(),
        overlong=both[0].overlong,
        greedy=True,
        samples=0 if validation else SAMPLES,
        max_prompt_length=max(one.max_prompt_length for one in both),
        max_completion_length=max(one.max_completion_length for one in both),
    )
    return settings


def _closed(c: ml_collections.ConfigDict, trust: Sequence[str]) -> ml_collections.ConfigDict:
    """Keeps only the stages that run, completes the config and adopts the warm start's model."""
    groups = [
        key
        for key, value in c.items()
        if isinstance(value, ml_collections.ConfigDict) and 'kind' in value
    ]
    for key in {*groups} - {*c.stages}:
        del c[key]
    configs.complete(c)
    load_config.adopt(c, trust=trust)
    c.lock()
    return c
