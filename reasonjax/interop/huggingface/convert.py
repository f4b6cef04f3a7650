"""From a run to a Hugging Face folder and back: what `reasonjax.convert` does."""

import argparse
import pathlib

import jax
import ml_collections

from reasonjax import __version__, config_files
from reasonjax import config as configs
from reasonjax.errors import UserError, listing, nearest
from reasonjax.files import expanded
from reasonjax.interop.huggingface import export
from reasonjax.interop.huggingface.pretrained import read_folder, read_json
from reasonjax.interop.peft.put import put_adapter
from reasonjax.interop.peft.read import CONFIG as ADAPTER_CONFIG
from reasonjax.interop.peft.read import read_adapter
from reasonjax.training import load_config
from reasonjax.training.context import abstract_params, open_run
from reasonjax.training.run import initial
from reasonjax.training.run import run as run_stages
from reasonjax.training.saved_run import open_saved, read_config

STAGE = 'base'
# What each kind of folder may be converted with.
OPTIONS = {
    'run': ('stage', 'dtype', 'base', 'adapter', 'merge'),
    'Hugging Face model': ('dtype', 'config'),
    'PEFT adapter': ('dtype', 'base', 'merge'),
}


def check(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> str:
    """Returns the kind of the folder to convert, a key of `OPTIONS`; touches no device.

    Raises:
      UserError: nothing that can be converted there, or options that do not fit it.
    """
    source = expanded(options.source)
    kind = kind_of(source)
    for name in ('stage', 'dtype', 'base', 'adapter', 'merge', 'config'):
        if getattr(options, name) and name not in OPTIONS[kind]:
            raise UserError(
                f'--{name}: {source} is a {kind}, which is converted with '
                f'{listing(f"--{n}" for n in OPTIONS[kind])} only.'
            )
    if overrides and kind != 'Hugging Face model':
        raise UserError(
            f'--config.{overrides[0][0]}: {source} is a {kind}; only the run made of a Hugging '
            'Face model takes settings.'
        )
    if kind == 'PEFT adapter' and not (options.merge and options.base):
        raise UserError(
            f'{source} is a PEFT adapter: give --merge and --base FOLDER, the Hugging Face model '
            'it is for, to merge the two. To continue '
            f"training it, set adapter=dict(name='peft', path='{source}') in a stage of a run with "
            'config.init=hf:FOLDER.'
        )
    if kind == 'run':
        read_config(source)
    return kind


def run(options: argparse.Namespace, overrides: list[tuple[str, str]], kind: str) -> None:
    """Converts a folder; `options` are those of `reasonjax.convert`, `kind` comes from `check`."""
    source, target = expanded(options.source), expanded(options.target)
    provenance = [
        f'Exported with `python -m reasonjax.convert {options.command}` (reasonjax {__version__}).'
    ]
    if kind != 'Hugging Face model':
        export.check_one_process()
    if kind == 'run':
        _export_run(options, source, target, provenance)
    elif kind == 'PEFT adapter':
        _merge_adapter(options, source, target, provenance)
    else:
        _import_model(options, overrides, source, target)


def kind_of(source: pathlib.Path) -> str:
    """Returns the kind of a folder, a key of `OPTIONS`.

    Raises:
      UserError: no folder, none of these, or two of them.
    """
    if not source.is_dir():
        siblings = (
            [p.name for p in source.parent.iterdir() if p.is_dir()]
            if source.parent.is_dir()
            else []
        )
        raise UserError(f'{source}: no such folder.{nearest(source.name, siblings)}')
    config = read_json(source / 'config.json') if (source / 'config.json').is_file() else {}
    kinds = ['run'] if 'stages' in config else []
    kinds += ['Hugging Face model'] if 'model_type' in config or 'architectures' in config else []
    kinds += ['PEFT adapter'] if (source / ADAPTER_CONFIG).is_file() else []
    if len(kinds) != 1:
        what = (
            f'holds both a {" and a ".join(kinds)}; keep them in folders of their own'
            if kinds
            else 'holds none of them'
        )
        raise UserError(
            f'{source}: expected the workdir of a run (config.json with stages), a Hugging Face '
            'model (config.json with model_type) or a '
            f'PEFT adapter ({ADAPTER_CONFIG}); it {what}.'
        )
    return kinds[0]


def _export_run(
    options: argparse.Namespace, source: pathlib.Path, target: pathlib.Path, provenance: list[str]
) -> None:
    base = expanded(options.base) if options.base else export.base_of(read_config(source))
    opened = open_saved(source, options.stage, base=base, trust=options.trust)
    adapted = export.has_adapters(opened.abstract)
    if adapted and not (options.adapter or options.merge):
        raise UserError(
            f'stage {opened.stage.name} of {source} has a LoRA adapter: give --merge for the whole '
            'model with it, or --adapter '
            'for the adapter alone, as PEFT keeps it.'
        )
    if options.adapter and not adapted:
        raise UserError(
            f'--adapter: stage {opened.stage.name} of {source} has no LoRA adapter: there are no '
            'low-rank weights to write.'
        )
    settings = dict(base=base, dtype=options.dtype, adapter=options.adapter)
    export.prepare(opened.run, target, **settings)
    loaded = opened.load()
    export.export(
        loaded.run,
        loaded.params,
        target,
        stage=loaded.stage.name,
        provenance=provenance,
        **settings,
    )
    print(
        f'{target}: {"PEFT adapter" if options.adapter else "Hugging Face model"} of {source}, '
        f'stage {loaded.stage.name}'
    )


def _merge_adapter(
    options: argparse.Namespace, source: pathlib.Path, target: pathlib.Path, provenance: list[str]
) -> None:
    export.check_new(target)
    adapter, base = read_adapter(source), expanded(options.base)
    # In float32, so that what is written is rounded once.
    of_run = open_run(_keeping(base, 'float32', [], ''), target, active=False)
    jax.eval_shape(lambda params: put_adapter(params, adapter), abstract_params(of_run, -1))
    export.prepare(of_run, target, base=base, dtype=options.dtype)
    params = put_adapter(initial(of_run), adapter)
    lines = [f'The PEFT adapter `{source.resolve().name}` merged into its base.', *provenance]
    export.export(of_run, params, target, base=base, dtype=options.dtype, provenance=lines)
    print(f'{target}: Hugging Face model, {base} with {source} merged')


def _import_model(
    options: argparse.Namespace,
    overrides: list[tuple[str, str]],
    source: pathlib.Path,
    target: pathlib.Path,
) -> None:
    config = _keeping(source, options.dtype, overrides, options.config)
    # A run that a kill left unfinished resumes; everything else that is there is left alone.
    begun = target / 'config.json'
    if not (
        begun.is_file()
        and begun.read_text() == configs.to_json(config) + '\n'
        and not any(target.glob('stages/*/done.json'))
    ):
        export.check_new(target)
    run_stages(config, target)
    print(
        f'{target}: a run with the parameters of {source}; give it as --workdir, or train on: '
        f'config.init=checkpoint:{target}'
    )


def _keeping(
    folder: pathlib.Path, dtype: str, overrides: list[tuple[str, str]], location: str
) -> ml_collections.ConfigDict:
    """Builds the config of a run whose only stage keeps a folder's parameters as they are. `dtype`
    is '' for the folder's own."""
    known = read_folder(folder).config
    dtype = dtype or str(known.get('dtype') or known.get('torch_dtype') or 'float32')
    # Found wherever the run is opened from.
    init = ('init', f'hf:{folder.resolve()}')
    own = [
        init,
        ('evaluation.enabled', 'False'),
        ('model.param_dtype', dtype),
        ('model.compute_dtype', dtype),
    ]
    config = load_config.load(location or str(config_files.shipped() / 'hf.py'), own + overrides)
    with config.unlocked():
        for name in [
            name
            for name, value in config.items()
            if isinstance(value, ml_collections.ConfigDict) and 'kind' in value
        ]:
            del config[name]
        config[STAGE] = dict(kind='keep')
        config.stages = (STAGE,)
        limit = config.model.max_positions
        if (
            limit
            and config.evaluation.max_prompt_length + config.evaluation.max_completion_length
            > limit
        ):
            config.evaluation.max_prompt_length = min(
                config.evaluation.max_prompt_length, limit // 2
            )
            config.evaluation.max_completion_length = limit - config.evaluation.max_prompt_length
    return config
