"""A config that starts from a model takes over its shape and its tokenizer: what `config.init`
names decides `config.model`."""

import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections

from reasonjax import config as configs
from reasonjax.config_names import model_source
from reasonjax.data.tokenizers.plain import trained_file
from reasonjax.errors import UserError
from reasonjax.model.config import CHOSEN
from reasonjax.training import saved_run

OWN = ('model.', 'tokenizer.')


def load(
    location: str, overrides: Sequence[tuple[str, str]] = (), trust: Sequence[str] = ()
) -> ml_collections.ConfigDict:
    """Loads a config file as `config.load` does, and adopts the model that its `init` names.

    Overrides of `model` and `tokenizer` are applied last: they change what was adopted. For `trust`
    see `saved_run.open_saved`.
    """
    config = configs.load(location, [pair for pair in overrides if not pair[0].startswith(OWN)])
    for key in saved_run.SHAPE:
        if key not in config:
            raise UserError(
                f'{location}: config.{key} is missing; configs/base.py has all that a config needs.'
            )
    return adopt(config, [pair for pair in overrides if pair[0].startswith(OWN)], trust)


def adopt(
    config: ml_collections.ConfigDict,
    overrides: Sequence[tuple[str, str]] = (),
    trust: Sequence[str] = (),
) -> ml_collections.ConfigDict:
    """Fills `config.model`, in place, with the shape of the model that `config.init` names, and
    `config.tokenizer` with its tokenizer.

    Of `config.model` the fields that are the run's to choose stay (dtypes, scan, remat,
    `model.config.CHOSEN`). A tokenizer that names a folder or file of its own stays. A fresh model
    (`init=''`) is left alone.

    Args:
      config: completed, as `config.load` returns it.
      overrides: pairs ('model.rope_scaling.length', '8192'), applied at the end.
      trust: see `saved_run.open_saved`, of a run that `init` names.

    Returns:
      The config.

    Raises:
      UserError: no such folder or run, or a tokenizer with more tokens than the model has embedding
        rows.
    """
    scheme, _, place = config.init.partition(':')
    with config.unlocked():
        if scheme == 'hf' and place:
            _adopt_folder(config, place)
        elif scheme == 'checkpoint' and place:
            _adopt_run(config, pathlib.Path(place.partition(':')[0]), trust)
        configs.apply(config, overrides)
        if scheme == 'hf' and place:
            config.model.vocab_size = _rows(config)
    return config


def _adopt_folder(config: ml_collections.ConfigDict, place: str) -> None:
    folder = model_source('hf').read_folder(place)
    config.model = ml_collections.ConfigDict(
        folder.fields | _chosen(config.model) | {'max_positions': folder.fields['max_positions']}
    )
    if not _own_tokenizer(config.tokenizer):
        config.tokenizer = ml_collections.ConfigDict(dict(name='huggingface', path=place))
    configs.complete(config)


def _adopt_run(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, trust: Sequence[str]
) -> None:
    try:
        saved_config = saved_run.read_model(workdir, trust)
    except UserError as error:
        raise UserError(f'config.init: {error}') from error
    config.model = ml_collections.ConfigDict(dict(saved_config.model) | _chosen(config.model))
    if not _own_tokenizer(config.tokenizer):
        config.tokenizer = saved_config.tokenizer
        if saved_config.tokenizer.name == 'sentencepiece' and not saved_config.tokenizer.path:
            config.tokenizer.path = str(trained_file(workdir, saved_config.tokenizer.vocab_size))
    configs.complete(config)


def _chosen(model: ml_collections.ConfigDict) -> dict[str, Any]:
    return {name: model[name] for name in CHOSEN if name in model and name != 'max_positions'}


def _own_tokenizer(tokenizer: ml_collections.ConfigDict) -> bool:
    return tokenizer.name in ('huggingface', 'sentencepiece') and bool(tokenizer.get('path'))


def _rows(config: ml_collections.ConfigDict) -> int:
    """Returns the number of rows of the embedding of a pretrained model. It is `vocab_size`, and
    one more each for PAD and the mask where the tokenizer gives them ids after all others."""
    rows = config.model.vocab_size
    if config.tokenizer.name == 'sentencepiece' and not config.tokenizer.path:
        raise UserError(
            'config.tokenizer: a pretrained model needs the tokenizer it was trained with; give '
            'tokenizer.path.'
        )
    tokenizer = configs.resolve(config.tokenizer, 'tokenizer')(None, None)
    size = max(tokenizer.vocab_size, (tokenizer.mask_id or 0) + 1)
    beyond = set(range(rows, size)) - {tokenizer.pad_id, tokenizer.mask_id}
    if beyond:
        raise UserError(
            f'config.tokenizer: {len(beyond)} tokens from id {min(beyond)} on '
            f'({tokenizer.decode([min(beyond)])!r}) have no embedding: '
            f'{config.init} has {rows} rows. It is the tokenizer of another model, or one that was '
            'extended after training.'
        )
    return max(rows, size)
