"""Config files: Python that defines `get_config()`. What is wrong with one is said in one line,
with the place in the file."""

import importlib.machinery
import importlib.util
import inspect
import os
import pathlib
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from reasonjax.errors import UserError, listing, nearest


def shipped() -> pathlib.Path:
    """Returns the folder of the configs that come with the package: beside it in a checkout, in it
    where a wheel was installed."""
    package = pathlib.Path(__file__).resolve().parent
    inside = package / 'shipped' / 'configs'
    return inside if inside.is_dir() else package.parent / 'configs'


def folders() -> tuple[pathlib.Path, ...]:
    """Returns where configs are looked for by name: `configs` in the working directory, then
    `shipped`."""
    here = pathlib.Path('configs')
    return (here,) if here.resolve() == shipped() else (here, shipped())


def names() -> list[str]:
    """Returns the names of the configs and recipes there are, without folder and ending."""
    return sorted(
        {path.stem for folder in folders() for path in folder.glob('*.py')}
        | {path.stem for path in recipes()}
    )


def recipes() -> list[pathlib.Path]:
    """Returns the files of all recipes, in the order of their names."""
    files = {
        path.stem: path for folder in reversed(folders()) for path in folder.glob('recipes/*.py')
    }
    return [files[name] for name in sorted(files)]


def by_name(name: str) -> pathlib.Path | None:
    """Returns the file of a config or recipe that is given by name ('grpo'), or None; a recipe goes
    before a config of its name."""
    if not name or name != pathlib.PurePath(name).name:
        return None
    candidates = (folder / part / f'{name}.py' for folder in folders() for part in ('recipes', '.'))
    return next((path for path in candidates if path.is_file()), None)


def execute(path: str | os.PathLike) -> types.ModuleType:
    """Runs a config file and returns it as a module, with all that it states beside its
    `get_config` (VARIANTS, NEUTRAL, ...).

    Args:
      path: of the file, or the name of one that `by_name` finds.

    Raises:
      UserError: no such file, one that is not Python, or one that raises; names the line.
    """
    path = pathlib.Path(path)
    file = path if path.is_file() else by_name(str(path))
    if file is None:
        there = sorted(str(p) for p in pathlib.Path('configs').glob('*.py'))
        known = names()
        raise UserError(
            f'--config: no file {path}.{nearest(str(path), there) or nearest(path.stem, known)} '
            f'Configs here: {listing(there) or "none"}. '
            f'By name: {listing(known)}.'
        )
    path = file
    # Configs build on one another by `from configs import base`: make the folder importable
    # wherever the file and the caller are.
    roots = [p.parent for p in path.resolve().parents if p.name == 'configs'] + [shipped().parent]
    for root in map(str, roots):
        if root not in sys.path:
            sys.path.append(root)
    name = f'reasonjax_config_{path.stem}'
    # Named, because the loader is otherwise chosen by the suffix, and there may be none.
    spec = importlib.util.spec_from_loader(
        name, importlib.machinery.SourceFileLoader(name, str(path))
    )
    module = importlib.util.module_from_spec(spec)
    _guarded(path, f'{path}', lambda: spec.loader.exec_module(module))
    return module


def get_config(path: str | os.PathLike, argument: str = '') -> ml_collections.ConfigDict:
    """Returns the config of a file, not completed.

    Args:
      path: of the file.
      argument: for its `get_config`; '' calls it without.

    Raises:
      UserError: as `execute`; no `get_config`, one that cannot be called so or raises, an unknown
        variant, or a result that is no config.
    """
    module = execute(path)
    function = getattr(module, 'get_config', None)
    if not callable(function):
        what = (
            'this one does not'
            if function is None
            else f'get_config of this one is a {type(function).__name__}'
        )
        raise UserError(f'{path}: a config file defines get_config(); {what}.')
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise UserError(
            f'{path}: get_config does not say what arguments it takes; define it as a function.'
        ) from error
    must = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(must) > 1 or any(p.name in must and p.kind is p.KEYWORD_ONLY for p in parameters):
        raise UserError(
            f'{path}: get_config() is called with one argument at most, a text; this one needs '
            f'{listing(must)}.'
        )
    if not argument and must:
        raise UserError(
            f'{path}: get_config() of this file needs an argument; write {path}:ARGUMENT.'
        )
    variants = getattr(module, 'VARIANTS', None)
    if argument and variants is not None and argument not in variants:
        raise UserError(
            f'{path}:{argument}: no such variant.{nearest(argument, variants)} Variants: '
            f'{listing(filter(None, variants))}.'
        )
    if argument and not any(
        p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) for p in parameters
    ):
        raise UserError(f'{path}:{argument}: get_config() of this file takes no argument.')
    config = _guarded(
        path, f'{path}: get_config()', lambda: function(argument) if argument else function()
    )
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f'{path}: get_config() returned {_kind(config)}; expected an ml_collections.ConfigDict.'
        )
    if isinstance(config, ml_collections.FrozenConfigDict):
        config = ml_collections.ConfigDict(config)
    try:
        _check_plain(config, str(path), 'config')
    except RecursionError as error:
        raise UserError(f'{path}: get_config() returned a config that holds itself.') from error
    return config.unlock()  # what is left out is filled in, and overrides are applied


def _guarded(path: str | os.PathLike, what: str, work: Callable[[], Any]) -> Any:
    """Does `work`, which runs a user's file; what it raises becomes one line that names the place
    in the file."""
    try:
        return work()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(
            f'{error.filename or path}:{error.lineno or 1}: not valid Python ({error.msg}).'
        ) from error
    except (Exception, SystemExit) as error:
        line, trace = 0, error.__traceback__
        while trace is not None:
            line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == str(path) else line
            trace = trace.tb_next
        try:
            text = str(error)
        except Exception:  # of an error of the user's own
            text = ''
        words = ' '.join([type(error).__name__, *text.split()])
        raise UserError(f'{what} raised {words}{f" (line {line})" if line else ""}.') from error


def _check_plain(value: Any, where: str, key: str) -> None:
    """Raises UserError where a config holds what `config.json` cannot: keys that are not text, or a
    value of another kind."""
    if isinstance(value, Mapping | ml_collections.ConfigDict):
        # A ConfigDict sorts its keys wherever it lists them, which keys of several kinds do not
        # bear.
        for name in value._fields if isinstance(value, ml_collections.ConfigDict) else value:
            if not isinstance(name, str):
                raise UserError(
                    f'{where}: {key} has the key {name!r} ({type(name).__name__}); keys are text.'
                )
        for name in value:
            _check_plain(_read(lambda: value[name], where, f'{key}.{name}'), where, f'{key}.{name}')  # noqa: B023, called at once
    elif isinstance(value, list | tuple):
        for i, entry in enumerate(value):
            _check_plain(entry, where, f'{key}[{i}]')
    # within a tuple, where a ConfigDict does not look it up
    elif isinstance(value, config_dict.FieldReference):
        _check_plain(_read(value.get, where, key), where, key)
    elif not (value is None or isinstance(value, bool | int | float | str)):
        raise UserError(
            f'{where}: {key} is {_kind(value)}; a config holds text, numbers, True and False, '
            'None, and lists and groups of them.'
        )


def _read(get: Callable[[], Any], where: str, key: str) -> Any:
    try:
        return get()
    except config_dict.RequiredValueError as error:
        raise UserError(
            f'{where}: {key} is a required placeholder, which overrides cannot fill; give it a '
            'value.'
        ) from error


def _kind(value: Any) -> str:
    kind = type(value)
    return (
        'None'
        if value is None
        else f'a {kind.__name__}'
        if kind.__module__ == 'builtins'
        else f'a {kind.__module__}.{kind.__name__}'
    )
