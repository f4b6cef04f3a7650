"""Parameters of a run as a folder that transformers, PEFT and vLLM read as they read any other."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from reasonjax.data.tokenizers import SentencePiece
from reasonjax.errors import UserError, check_choice, listing
from reasonjax.files import copy_own, expanded
from reasonjax.interop.huggingface import card, exported
from reasonjax.interop.huggingface.families import Family
from reasonjax.interop.huggingface.pretrained import Folder, read_folder
from reasonjax.interop.huggingface.tokenizers import folder_checks, saved
from reasonjax.interop.peft import write
from reasonjax.model import spec
from reasonjax.model.config import ModelConfig, frozen
from reasonjax.model.dtypes import DTYPES
from reasonjax.tracking.progress import Progress
from reasonjax.training import locks
from reasonjax.training.context import Run
from reasonjax.training.saved_run import read_config
from reasonjax.weights.linear import LowRank, is_weight
from reasonjax.weights.partition import path_name

LISTED = 12
NOTICES = ('LICENSE*', 'NOTICE*')


def export(
    run: Run,
    params: Any,
    output: pathlib.Path,
    *,
    base: pathlib.Path | None = None,
    dtype: str = '',
    adapter: bool = False,
    stage: str = '',
    provenance: Sequence[str] = (),
    shard_bytes: int = 4 * 2**30,
) -> None:
    """Writes a Hugging Face model folder, adapters merged, or the PEFT folder of the adapters
    alone.

    The folder appears under its name when it is complete; until then it is `NAME.unfinished` beside
    it.

    What differs from our sampler: rows that the embedding was grown by for PAD and the mask are
    left out (the base has no such tokens); where PAD is a token of the model,
    `generation_config.json` suppresses it, because our sampler never draws it.

    Args:
      run: whose config and tokenizer are written.
      params: parameter tree, with or without adapters.
      output: folder, which does not exist or is empty.
      base: Hugging Face folder that the parameters started from: its family, the entries of its
        configs and its tokenizer files are kept.
      dtype: of the tensors; '' for the base's, else that of the parameters; of an adapter alone
        float32, as it was trained.
      adapter: write the low-rank pairs alone, for the base.
      stage: after which the parameters are, for the model card.
      provenance: lines for the model card: how the export was called for.
      shard_bytes: most bytes of a file.

    Raises:
      UserError: as `prepare`; a weight is not finite in `dtype`, or the adapters are not all that
        the run changed.
    """
    output = pathlib.Path(output)
    folder, model, left_out, dtype, family = prepare(
        run, output, base=base, dtype=dtype, adapter=adapter
    )
    _say_what_is_lost('float32' if adapter else run.model.param_dtype, dtype, left_out)
    with (
        unfinished(output) as path,
        Progress('export', 100, waiting='', stream=sys.stderr) as progress,
    ):

        def report(done: int, of: int) -> None:
            progress.update(100 * done // of, {})

        if adapter:
            pairs = write.pairs_of(params, family, model)
            _check_only_adapted(folder, model, params, report)
            write.save_adapter(
                path,
                pairs,
                base=card.hub_name(folder) or str(folder.path),
                layers=model.layers,
                dtype=dtype,
            )
            _save_tokenizer(run, folder, path)
        else:
            written = exported.transformers_config(family, model, folder.config if folder else None)
            written.dtype = dtype
            if folder is None:
                written.bos_token_id, written.pad_token_id = (
                    run.tokenizer.bos_id,
                    run.tokenizer.pad_id,
                )
                written.eos_token_id = _one_or_more(run.tokenizer.eos_ids)
            written.save_pretrained(path)
            _save_tokenizer(run, folder, path)
            _save_generation(run, folder, model, path)
            exported.save_tensors(
                path, family, model, params, dtype=dtype, shard_bytes=shard_bytes, report=report
            )
        _copy_notices(folder, path)
        text = card.render(
            output.name,
            run,
            folder,
            architecture=family.architecture,
            adapter=adapter,
            stage=stage,
            provenance=provenance,
        )
        (path / 'README.md').write_text(text, encoding='utf-8')


class Prepared(NamedTuple):
    """What an export is going to be: from which folder, of what shape, without which rows, in which
    dtype ('' for the pairs' own)."""

    folder: Folder | None
    model: ModelConfig
    left_out: list[str]
    dtype: str
    family: Family


def prepare(
    run: Run,
    output: pathlib.Path,
    *,
    base: pathlib.Path | None = None,
    dtype: str = '',
    adapter: bool = False,
) -> Prepared:
    """Decides all that can be decided without parameters; for the arguments see `export`.

    Raises:
      UserError: several processes, the folder is there already, `base` is of another shape, or no
        architecture can hold the model.
    """
    check_one_process()
    folder = read_folder(base) if base is not None else None
    check_new(output)
    if adapter and folder is None:
        raise UserError(
            'an adapter alone needs the Hugging Face folder it is for: this run started from fresh '
            'parameters. Export the stage before the '
            'adapter (--stage) and give that folder as --base, or merge the adapter (--merge).'
        )
    model, left_out = _without_grown_rows(run, folder)
    if folder is not None:
        _check_base(folder, model)
    dtype = dtype or ('' if adapter else _dtype_of(folder) or run.model.param_dtype)
    if dtype:
        check_choice(f'--dtype={dtype}: unknown', dtype, DTYPES)
    return Prepared(
        folder, model, left_out, dtype, folder.family if folder else exported.family_of(model)
    )


def check_one_process() -> None:
    """Raises UserError where there are several processes."""
    if jax.process_count() > 1:
        raise UserError(
            'an export is written by one process: leave out --distributed or --coordinator, and '
            'give it a host with memory for the whole '
            'model (JAX_PLATFORMS=cpu does without its accelerators).'
        )


def check_new(output: pathlib.Path) -> None:
    """Raises UserError where a folder holds anything."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(
            f'{output} is there already; nothing is overwritten: give the name of a new folder.'
        )


@contextlib.contextmanager
def unfinished(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder that is renamed to `output` on success. One that a killed process
    left is removed."""
    path = output.with_name(f'{output.name}.unfinished')
    output.parent.mkdir(parents=True, exist_ok=True)
    with locks.hold(output, path.with_name(f'{path.name}{locks.NAME}')):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        try:
            yield path
            path.replace(output)
        finally:
            shutil.rmtree(path, ignore_errors=True)


def base_of(config: ml_collections.ConfigDict) -> pathlib.Path | None:
    """Returns the Hugging Face folder that a chain of runs began with; None for fresh parameters.

    Raises:
      UserError: the folder, or a run on the way to it, is gone, or the runs form a circle.
    """
    passed: list[pathlib.Path] = []
    while config.init:
        scheme, _, place = config.init.partition(':')
        path = expanded(place) if scheme == 'hf' else pathlib.Path(place.partition(':')[0])
        if not (path / 'config.json').is_file():
            raise UserError(
                f'config.init={config.init}: {path} is not there (any more); give the Hugging Face '
                'folder as --base FOLDER.'
            )
        if scheme == 'hf':
            return path
        if path.resolve() in passed:
            raise UserError(
                f'config.init={config.init} leads back to where it came from; give the Hugging '
                'Face folder as --base FOLDER.'
            )
        passed.append(path.resolve())
        config = read_config(path)
    return None


def has_adapters(params: Any) -> bool:
    """Checks whether any leaf has a low-rank pair over it."""
    return any(isinstance(leaf, LowRank) for leaf in jax.tree.leaves(params, is_leaf=is_weight))


def _dtype_of(folder: Folder | None) -> str:
    return (
        ''
        if folder is None
        else str(folder.config.get('dtype') or folder.config.get('torch_dtype') or '')
    )


def _one_or_more(ids: Sequence[int]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)


def _without_grown_rows(run: Run, folder: Folder | None) -> tuple[ModelConfig, list[str]]:
    """Returns the model's shape without rows that only training has, and what those stand for."""
    rows = folder.fields['vocab_size'] if folder else run.model.vocab_size
    special = {run.tokenizer.pad_id: 'PAD', run.tokenizer.mask_id: 'mask'}
    grown = range(rows, max(rows, run.model.vocab_size))
    if any(i not in special for i in grown):
        return run.model, []
    return dataclasses.replace(run.model, vocab_size=run.model.vocab_size - len(grown)), [
        f'{special[i]} (id {i})' for i in grown
    ]


def _check_base(folder: Folder, model: ModelConfig) -> None:
    """Raises UserError where a folder's parameters are not those of the model, as far as shapes
    tell."""
    of_folder = ModelConfig(
        **folder.fields | {'rope_scaling': frozen(folder.fields['rope_scaling'])}
    )
    have, want = (
        {
            path_name(path): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                spec.specs(c), is_leaf=spec.is_spec
            )
        }
        for c in (of_folder, model)
    )
    wrong = [
        f'{n}: {have.get(n, "nothing")}, here {want.get(n, "nothing")}'
        for n in {**have, **want}
        if have.get(n) != want.get(n)
    ]
    if wrong:
        raise UserError(
            f'{folder.path} is not what this model started from; its parameters are others:\n  '
            + '\n  '.join(wrong[:LISTED])
        )


def _say_what_is_lost(kept: str, dtype: str, left_out: list[str]) -> None:
    if left_out:
        print(
            f'Left out: the embedding rows of {" and ".join(left_out)}, tokens that only training '
            'has.',
            file=sys.stderr,
        )
    if dtype and jnp.promote_types(dtype, kept) != jnp.dtype(dtype):
        print(
            f'Weights are rounded from {kept} to {dtype}; --dtype {kept} keeps them.',
            file=sys.stderr,
        )


def _check_only_adapted(folder: Folder, model: ModelConfig, params: Any, report: Any) -> None:
    """Raises UserError unless the weights under the adapters are the base's: else the adapters
    alone are not what was trained."""

    def innermost(leaf: Any) -> Any:
        return innermost(leaf.base) if isinstance(leaf, LowRank) else leaf

    under = jax.tree.map(innermost, params, is_leaf=is_weight)
    differing = exported.differing(folder, model, under, report)
    if differing:
        shown = listing(differing[:LISTED]) + (
            f' and {len(differing) - LISTED} more' if len(differing) > LISTED else ''
        )
        raise UserError(
            'the adapter alone is not what was trained: under it, these weights are not those of '
            f'{folder.path}: {shown}. Give the folder '
            'it was put over as --base, or merge it (--merge).'
        )


def _save_tokenizer(run: Run, folder: Folder | None, path: pathlib.Path) -> None:
    """Saves the run's tokenizer, or copies the base's own files. These are copied where the run
    reads the SentencePiece model that they were made of."""
    model = folder.path / 'tokenizer.model' if folder else None
    known = hashlib.sha256(model.read_bytes()).hexdigest() if model and model.is_file() else None
    if isinstance(run.tokenizer, SentencePiece) and run.tokenizer.digest == known:
        saved.copy_files(folder.path, path)
    else:
        saved.save_tokenizer(run.tokenizer, path)


def _save_generation(
    run: Run, folder: Folder | None, model: ModelConfig, path: pathlib.Path
) -> None:
    file = folder.path / 'generation_config.json' if folder else None
    ours = {'bos_token_id': run.tokenizer.bos_id, 'pad_token_id': run.tokenizer.pad_id}
    known = {name: i for name, i in ours.items() if i is not None and i < model.vocab_size}
    written = known | (folder_checks.settings(file) if file else {})
    written['eos_token_id'] = _one_or_more(run.tokenizer.eos_ids)
    if run.tokenizer.pad_id < model.vocab_size:
        written['suppress_tokens'] = sorted(
            {*(written.get('suppress_tokens') or ()), run.tokenizer.pad_id}
        )
    (path / 'generation_config.json').write_text(
        json.dumps(written, indent=2, sort_keys=True) + '\n', encoding='utf-8'
    )


def _copy_notices(folder: Folder | None, path: pathlib.Path) -> None:
    for pattern in NOTICES if folder else ():
        for file in folder.path.glob(pattern):
            if file.is_file():
                copy_own(folder.path, file, path / file.name)
