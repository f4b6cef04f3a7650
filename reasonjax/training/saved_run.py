"""Opening a run to read what it has trained. A workdir is data, whoever made it.

Read are its config's mesh, model, tokenizer and adapters (and for an evaluation the task), and a
checkpoint. The functions that these name have to be the package's own, or of modules that the user
trusts; all others are left out of the config, so nothing can call them. No data source is opened,
and nothing is written.
"""

import contextlib
import dataclasses
import os
import pathlib
import stat
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import ml_collections

from reasonjax import config as configs
from reasonjax import files
from reasonjax.config_bounds import check_leaves
from reasonjax.config_names import EXTRA, SLOTS
from reasonjax.errors import UserError, check_choice
from reasonjax.model.config import check_fields
from reasonjax.parallel import mesh as meshes
from reasonjax.parallel import processes
from reasonjax.training import checkpoint_files
from reasonjax.training.checkpoint import load_params, read_meta
from reasonjax.training.context import (
    Run,
    Stage,
    abstract_params,
    check_stages,
    open_run,
    stages_of,
)
from reasonjax.training.kinds import KINDS
from reasonjax.weights import finite

CONFIG = 'config.json'
SHOWN = 200  # characters of an error that is not ours
GROUP = (ml_collections.ConfigDict, 'a group of keys')
# What a config has to hold, and as what.
SHAPE = {
    'stages': (tuple, 'a list'),
    'model': GROUP,
    'tokenizer': GROUP,
    'mesh': GROUP,
    'evaluation': GROUP,
    'init': (str, 'text'),
    'seed': (int, 'a whole number'),
}
# The slots whose functions make a model of what a checkpoint holds.
READ = ('adapter', 'rope_scaling', 'tokenizer')
ASKED = ('task', 'transforms')  # those of an evaluation


class Saved(NamedTuple):
    """A run's parameters as one of its stages saved them."""

    run: Run
    stage: Stage
    step: int
    params: Any


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run that was opened to read it, and the stage whose parameters are wanted; `step` None is
    the newest checkpoint."""

    run: Run
    stage: Stage
    step: int | None

    @property
    def abstract(self) -> Any:
        """Shapes and shardings of the parameters."""
        return abstract_params(self.run, self.stage.number)

    def load(self) -> Saved:
        """Reads the parameters.

        Raises:
          UserError: a damaged checkpoint, or weights that are not finite numbers.
        """
        params, _, step = load_params(
            self.stage.folder / 'checkpoints', self.abstract, step=self.step
        )
        where = f'{self.run.workdir}: stage {self.stage.name}, checkpoint of step {step}'
        finite.check(params, where, dtype=self.run.model.compute_dtype)
        return Saved(self.run, self.stage, step, params)


def open_saved(
    workdir: str | os.PathLike,
    stage: str = '',
    *,
    base: pathlib.Path | None = None,
    trust: Sequence[str] = (),
    evaluating: bool = False,
) -> Opened:
    """Opens a run's workdir at its last stage that has a checkpoint; reads no parameters yet.

    Args:
      workdir: of the run.
      stage: take this stage's instead; 'STAGE@best' its best checkpoint (`keep_best`), '@best' that
        of the last stage.
      base: a Hugging Face folder in which the tokenizer is looked for, where its file has moved.
      trust: modules whose functions the config may name beside the package's own; what is below
        them is trusted too.
      evaluating: the task of the evaluation and its transforms are needed; otherwise they are left
        out where they are from elsewhere.

    Raises:
      UserError: no run or no checkpoint there, a damaged config, or one that names functions from
        elsewhere.
    """
    workdir = pathlib.Path(workdir)
    config = read_config(workdir)
    with blaming(workdir / CONFIG):
        config = configs.complete(_readable(config, evaluating, trust), trust)
        file = files.expanded(config.tokenizer.get('path') or '.')
        if base is not None and not file.exists():
            config.tokenizer.path = str(
                base if config.tokenizer.name == 'huggingface' else base / file.name
            )
        opened = open_run(
            _on_these_devices(config), workdir, active=False, texts=_no_texts, trust=trust
        )
        saving = [p for p in stages_of(config, workdir) if KINDS[p.config.kind].saves]
        for last in saving[-1:]:  # the adapters of all stages
            abstract_params(opened, last.number)
    names = [p.name for p in saving]
    stage, _, which = stage.partition('@')
    if which not in ('', 'best'):
        raise UserError(
            f'"{stage}@{which}": behind a stage only @best is known, the checkpoint that '
            '`keep_best` kept.'
        )
    if stage:
        check_choice(f'{workdir} has no training stage "{stage}"', stage, names, 'Stages')
    having = [
        p
        for p in processes.on_main(lambda: [p for p in saving if _has_checkpoint(p)])
        if stage in ('', p.name)
    ]
    if not having:
        raise UserError(f'{workdir} holds no checkpoint of {stage or "any stage"} yet.')
    return Opened(opened, having[-1], _best_step(having[-1]) if which else None)


def saved(workdir: str | os.PathLike, stage: str = '', trust: Sequence[str] = ()) -> Saved:
    """Opens a run's workdir and loads the parameters of a stage; see `open_saved`."""
    return open_saved(workdir, stage, trust=trust).load()


def trained(
    workdir: str | os.PathLike, stage: str = '', trust: Sequence[str] = ()
) -> tuple[Run, Any]:
    """Opens a run's workdir; returns the run and the parameters of a stage, see `saved`."""
    opened = saved(workdir, stage, trust=trust)
    return opened.run, opened.params


def read_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
    """Reads the config of a run; calls nothing that it names.

    Raises:
      UserError: no run there, or a config that is damaged.
    """
    workdir = pathlib.Path(workdir)
    path = workdir / CONFIG
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise UserError(f'{workdir} holds no run ({_why(workdir, error)}).') from error
    if not stat.S_ISREG(mode):
        raise UserError(f'{workdir} holds no run ({CONFIG} is not a file).')
    config = configs.from_json(files.read_text(path), str(path))
    if 'stages' not in config and ('model_type' in config or 'architectures' in config):
        raise UserError(
            f'{workdir} is a Hugging Face model folder, not the workdir of a run; `python -m '
            f'reasonjax.convert {workdir} RUN` makes a run '
            f'of it, and --config.init=hf:{workdir} trains from it.'
        )
    with blaming(path):
        check_shape(config)
    return config


def read_model(workdir: str | os.PathLike, trust: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Reads `model` and `tokenizer` of a run's config, whose functions have to be the package's own
    or trusted.

    Raises:
      UserError: as `read_config`, or a function from elsewhere.
    """
    config = read_config(workdir)
    with blaming(pathlib.Path(workdir) / CONFIG):
        return configs.complete(
            ml_collections.ConfigDict({'model': config.model, 'tokenizer': config.tokenizer}), trust
        )


def check_shape(config: ml_collections.ConfigDict) -> None:
    """Raises UserError where a config that was read from a file lacks what every run has, or has
    something else in its place."""
    for key, (kind, wanted) in SHAPE.items():
        if key not in config:
            raise UserError(f'config.{key} is missing; is this the config.json of a run?')
        value = config[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f'config.{key}: expected {wanted}, found {_kind(value)}.')
    check_leaves(config, SLOTS, EXTRA)
    check_fields(config.model)
    for name in config.stages:
        if (
            name in config
            and isinstance(config[name], GROUP[0])
            and not isinstance(config[name].get('kind', ''), str)
        ):
            raise UserError(f'config.{name}.kind: expected text, found {_kind(config[name].kind)}.')
    check_stages(config)


def _why(workdir: pathlib.Path, error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError) and workdir.is_dir():
        is_adapter = (workdir / 'adapter_config.json').is_file()
        return f'no {CONFIG}{"; it is a PEFT adapter, which `reasonjax.convert` merges into its base" if is_adapter else ""}'
    if isinstance(error, FileNotFoundError):
        if workdir.is_symlink():
            return 'a link to nowhere'
        return f'no such folder{files.nearest_name(workdir).rstrip(".").lower()}'
    if isinstance(error, NotADirectoryError):
        return 'it is not a folder'
    return files.reason(error) if isinstance(error, OSError) else str(error)


@contextlib.contextmanager
def blaming(path: pathlib.Path) -> Iterator[None]:
    """Has errors name the file that a config was read from; what a value of a wrong kind leads to
    is an error of the file too."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{path}: {" ".join(str(error).splitlines())}') from error
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        words = ' '.join(str(error).split())[:SHOWN]
        raise UserError(
            f'{path}: cannot be used, a value in it is of a wrong kind ({type(error).__name__}: '
            f'{words}).'
        ) from error


def _readable(
    config: ml_collections.ConfigDict, evaluating: bool, trust: Sequence[str]
) -> ml_collections.ConfigDict:
    """Returns a copy of a config without the functions that a reader does not call."""
    known = {*SHAPE, 'rollout', *config.stages}
    copy = ml_collections.ConfigDict({key: value for key, value in config.items() if key in known})
    evaluating = evaluating or _is_allowed(copy.evaluation, trust)
    for key, value in copy.items():
        if isinstance(value, ml_collections.ConfigDict):
            _drop(value, READ + ASKED * (evaluating and key == 'evaluation'))
    return copy


def _is_allowed(group: ml_collections.ConfigDict, trust: Sequence[str]) -> bool:
    """Returns whether a group of a config names only functions that may be called."""
    try:
        configs.complete(ml_collections.ConfigDict(group.to_dict()), trust)
    except (UserError, TypeError, ValueError, AttributeError, LookupError):
        return False
    return True


def _drop(group: ml_collections.ConfigDict, kept: Sequence[str]) -> None:
    """Takes out every function that is not in one of the slots kept."""
    for key in list(group.keys()):
        if key in SLOTS and key not in kept:
            del group[key]
        elif key not in SLOTS and isinstance(group[key], ml_collections.ConfigDict):
            _drop(group[key], kept)


def _no_texts() -> NoReturn:
    raise UserError(
        'config.tokenizer: the vocabulary that this run has learnt is not in its workdir (any '
        'more). Put its file back; a program that '
        'reads a run learns no new one, whose ids would mean other texts.'
    )


def _on_these_devices(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Makes the mesh of a config fit the devices, for a run that is only read. Where it does not
    fit, weights are split over all there are."""
    try:
        meshes.make_mesh(config.mesh)
    except UserError:
        config.mesh = dict.fromkeys(meshes.AXES, 1) | {'fsdp': -1}
        config.rollout = dict(mesh=dict.fromkeys(meshes.AXES, 0))
    return config


def _best_step(stage: Stage) -> int:
    """Returns the step of the checkpoint that is best so far by the stage's `keep_best`."""
    done = stage.folder / 'done.json'
    counted = (
        files.json_object(done)
        if done.is_file()
        else read_meta(stage.folder / 'checkpoints').get('counted', {})
    )
    best = counted.get('best')
    if not best:
        raise UserError(
            f'stage {stage.name} has no best checkpoint: its keep_best names no metric, or nothing '
            'has been evaluated yet.'
        )
    if not (isinstance(best, dict) and type(best.get('step')) is int):
        raise UserError(f'{done}: "best" is damaged: {best!r}.')
    return best['step']


def _has_checkpoint(stage: Stage) -> bool:
    folder = stage.folder / 'checkpoints'
    return folder.is_dir() and bool(checkpoint_files.steps(folder))


def _kind(value: Any) -> str:
    return GROUP[1] if isinstance(value, GROUP[0]) else type(value).__name__
