"""What the stages of a run share, and how parameters come to be."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from reasonjax import config as configs
from reasonjax import randomness
from reasonjax.data import render
from reasonjax.data.pipeline import Batches
from reasonjax.data.sources import Source
from reasonjax.data.tokenizers import Tokenizer
from reasonjax.errors import UserError, check_choice, divisor
from reasonjax.model import config as model_config
from reasonjax.model import kernels, spec
from reasonjax.model.config import ModelConfig
from reasonjax.model.placement import check_divides, shardings
from reasonjax.model.rotary import longest
from reasonjax.parallel import mesh as meshes
from reasonjax.parallel import processes
from reasonjax.tracking.metrics import Writer
from reasonjax.training.kinds import KINDS

NAME = re.compile(r'(?!\.)[\w.-]{1,100}')


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that does not change during a run.

    Attributes:
      config: resolved.
      workdir: holds all that the run writes.
      mesh: of devices.
      tokenizer: see `data.tokenizers`.
      model: the shape of the model.
      specs: its spec tree.
      writer: of metrics.
      trust: modules whose functions a workdir that is read may name; see `config_names.find`.
    """

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    model: ModelConfig
    specs: Any
    writer: Writer
    trust: Sequence[str] = ()

    @property
    def rollout_mesh(self) -> jax.sharding.Mesh:
        """The mesh to sample on: the same devices in the same order."""
        sizes = self.config.get('rollout', {}).get('mesh', {})
        return meshes.reshaped(self.mesh, sizes, 'rollout.mesh')


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
      number: from 0.
      name: its group in the config, numbered where it comes again.
      folder: holds what the stage writes.
      config: its group in the config.
    """

    number: int
    name: str
    folder: pathlib.Path
    config: ml_collections.ConfigDict = dataclasses.field(compare=False, repr=False)


def stages_of(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> list[Stage]:
    """Returns the stages in order; a name that comes again is numbered ('collect', 'train',
    'collect_2', 'train_2')."""
    stages, seen = [], {}
    for number, name in enumerate(config.stages):
        seen[name] = seen.get(name, 0) + 1
        label = name if seen[name] == 1 else f'{name}_{seen[name]}'
        folder = workdir / 'stages' / f'{number:02d}_{label}'
        stages.append(Stage(number, label, folder, config.get(name)))
    return stages


def check_stages(config: ml_collections.ConfigDict) -> None:
    """Raises UserError where `stages` names what is not there, or what cannot be a stage."""
    if not config.stages:
        raise UserError('config.stages: no stage is named.')
    groups = [
        name
        for name, value in config.items()
        if isinstance(value, ml_collections.ConfigDict) and 'kind' in value
    ]
    for name in config.stages:
        check_choice(f'config.stages: no stage "{name}"', name, groups, 'Stages of this config')
        if not NAME.fullmatch(name):
            raise UserError(
                f'config.stages: "{name}" names a folder, so it is made of at most 100 letters, '
                'digits, "_", "-" and ".".'
            )
        kind = config[name].kind
        check_choice(f'config.{name}.kind: unknown kind "{kind}"', kind, KINDS)


def open_run(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    active: bool = True,
    texts: Callable[[], Iterator[str]] | None = None,
    trust: Sequence[str] = (),
) -> Run:
    """Builds what a run shares; draws nothing, writes nothing but a tokenizer that has to be
    trained first.

    Args:
      config: resolved.
      workdir: of the run.
      active: False for a program that only reads the workdir.
      texts: what a vocabulary is learnt from that has to be; by default `training_texts`.
      trust: see `Run`.
    """
    mesh = meshes.make_mesh(config.mesh)
    make_tokenizer = configs.resolve(config.tokenizer, 'tokenizer')
    texts = texts or functools.partial(training_texts, config)
    tokenizer = processes.main_first(lambda: make_tokenizer(texts, workdir))
    size = max(tokenizer.vocab_size, (tokenizer.mask_id or 0) + 1)
    model = model_config.from_config(config.model, vocab_size=size, pad_id=tokenizer.pad_id)
    check_lengths(config, model)
    writer = Writer(workdir, active=active and processes.is_main())
    run = Run(config, workdir, mesh, tokenizer, model, spec.specs(model), writer, tuple(trust))
    # The sampler reads prompts with it too.
    for used in (mesh, run.rollout_mesh):
        kernels.check(model, used.devices.flat[0], used.shape)
    if active:
        for stage in stages_of(config, workdir):
            check_mesh(run, stage)
    return run


def check_mesh(run: Run, stage: Stage) -> None:
    """Raises UserError where a mesh does not divide the model or the batches of a stage, with the
    nearest meshes that do."""
    settings, name = stage.config, stage.name
    if 'num_prompts' in settings:
        same = run.rollout_mesh == run.mesh
        if settings.num_prompts % at_once(settings):
            best = divisor(settings.num_prompts, settings.prompts_at_once)
            raise UserError(
                f'config.{name}.prompts_at_once={settings.prompts_at_once}: does not divide '
                f'num_prompts={settings.num_prompts}; nearest: {best}.'
            )
        prompts = {
            f'{name}.{"prompts_at_once" if settings.prompts_at_once else "num_prompts"}': at_once(
                settings
            )
        }
        check_divides(
            run.rollout_mesh.shape,
            run.model,
            rows=prompts,
            lengths={},
            key='mesh' if same else 'rollout.mesh',
        )
    if 'accumulation' not in settings:
        return
    if 'num_prompts' in settings:
        rows = settings.num_prompts * settings.num_generations // settings.minibatches
        text = 'num_prompts x num_generations / minibatches'
        length = settings.data.max_prompt_length + settings.max_completion_length
    else:
        rows = settings.batch_size * rows_per_example(settings)
        text = 'batch_size' if rows == settings.batch_size else 'batch_size x 2'
        length = settings.data.max_length
    if rows % settings.accumulation:
        best = divisor(rows, settings.accumulation)
        raise UserError(
            f'config.{name}.accumulation={settings.accumulation}: does not divide {rows} rows '
            f'({text}); nearest: {best}.'
        )
    of_micro = {f'{name}: {text} / accumulation': rows // settings.accumulation}
    check_divides(
        run.mesh.shape, run.model, rows=of_micro, lengths={f'{name}: tokens of a row': length}
    )


def at_once(settings: ml_collections.ConfigDict) -> int:
    """Returns how many prompts are sampled at the same time."""
    return settings.prompts_at_once or settings.num_prompts


def rows_per_example(settings: ml_collections.ConfigDict) -> int:
    """Returns how many adjacent rows of a supervised batch belong together. A preference has two,
    the chosen answer and the rejected one."""
    return 2 if settings.data.form == 'preference' else 1


def check_lengths(config: ml_collections.ConfigDict, model: ModelConfig) -> None:
    """Raises UserError where a stage has longer sequences than the model has positions for."""
    limit = longest(model)
    groups = {name: config[name] for name in config.stages if name in config} | {
        'evaluation': config.evaluation
    }
    for name, group in groups.items():
        data = group.get('data', group)
        length = data.get('max_length', 0)
        if 'max_completion_length' in group:
            length = data.max_prompt_length + group.max_completion_length
        if limit and length > limit:
            way = (
                'model.rope_scaling.length'
                if 'length' in dict(model.rope_scaling)
                else 'model.max_positions'
            )
            raise UserError(
                f'config.{name}: sequences of {length} tokens, but the positions of this model are '
                f'good for {limit}; '
                f'shorten them, or set config.{way}={length} if that is meant.'
            )


def training_texts(config: ml_collections.ConfigDict) -> Iterator[str]:
    """Yields every text that the first stage with data trains on, to learn a vocabulary from."""
    stage = next((config[name] for name in config.stages if 'data' in config[name]), None)
    if stage is None:
        raise UserError(
            'config.tokenizer: there is no stage with data to learn a vocabulary from; give '
            'tokenizer.path.'
        )
    source, transforms = _data_functions(stage.data)
    for i in range(len(source)):
        examples = [source[i]]
        for transform in transforms:
            examples = [
                out for example in examples for out in transform(example, np.random.default_rng(i))
            ]
        for example in examples:
            yield ''.join(render.texts(example))


def data_functions(run: Run, data: ml_collections.ConfigDict) -> tuple[Source, list]:
    """Returns the source and the transforms of a stage's `data`. Where that names a task, the
    source is the task's problems.

    A path 'stage:NAME' means the dataset that the stage of that name has written.
    """
    path = data.source.get('path', '')
    if not path.startswith('stage:'):
        return _data_functions(data)
    names = {
        stage.name: stage.folder / 'dataset.jsonl' for stage in stages_of(run.config, run.workdir)
    }
    name = path.removeprefix('stage:')
    check_choice(f'config: data.source.path="{path}": no such stage', name, names, 'Stages')
    resolved = data.copy_and_resolve_references().unlock()
    resolved.source.path = str(names[name])
    return _data_functions(resolved)


def _data_functions(data: ml_collections.ConfigDict) -> tuple[Source, list]:
    source = configs.resolve(data.source, 'source', 'data.source')()
    transforms = [
        configs.resolve(t, 'transforms', f'data.transforms[{i}]')
        for i, t in enumerate(data.transforms)
    ]
    return getattr(source, 'examples', source), transforms


def check_data(stage: Stage, data: Batches) -> None:
    """Raises UserError where processes read other data: each places its part of a batch that all
    must have made alike."""
    processes.check_equal(
        data.get_state()['fingerprint'],
        f'stage {stage.name}: the data',
        'Give all hosts the same files and settings.',
    )


def fresh_params(run: Run) -> Any:
    """Draws the parameters of a new model, in place on the mesh. The seed alone decides them."""
    return _drawer(run.model, run.mesh)(randomness.key(run.config.seed, 0, 0, 'init'))


@functools.lru_cache(maxsize=16)
def _drawer(model: ModelConfig, mesh: jax.sharding.Mesh) -> Callable[[jax.Array], Any]:
    specs = spec.specs(model)
    placed = shardings(specs, spec.abstract(specs, model.param_dtype), mesh)
    return jax.jit(lambda key: spec.initialise(specs, key, model.param_dtype), out_shardings=placed)


def adapt(run: Run, stage: Stage, params: Any) -> Any:
    """Puts the adapter of a stage over the parameters. Under `eval_shape` this gives the structure
    they have after it."""
    adapter = configs.resolve(stage.config.adapter, 'adapter')
    return adapter(params, randomness.key(run.config.seed, stage.number, 0, 'adapter'))


def abstract_params(run: Run, upto: int) -> Any:
    """Returns shapes and shardings of the parameters as stage `upto` leaves them. Adapters of all
    stages so far are included."""
    params = spec.abstract(run.specs, run.model.param_dtype)
    for stage in stages_of(run.config, run.workdir)[: upto + 1]:
        if 'adapter' in stage.config:
            params = jax.eval_shape(functools.partial(adapt, run, stage), params)
    placed = shardings(run.specs, params, run.mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, placed
    )
