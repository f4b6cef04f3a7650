"""What a reward function is, which columns of a row it is given, and what is wrong with a row
before anything is sampled for it.

A function is called with what was sampled (`SAMPLED`), with the row's other columns by name, and
with its knobs. No column of a row takes the place of any of these: the names are `RESERVED`, and a
row that has one is refused. A row's own `prompt` and `completion` (its demonstration) are not
passed.

A function may say more about itself in two attributes, which are called with its knobs:

* `needs(**knobs) -> names`: columns that it cannot do without, beside the parameters that have no
  default.
* `check_row(row, **knobs)`: raises UserError where it could never say anything sensible of a row.
"""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from reasonjax.errors import UserError, listing, nearest, show
from reasonjax.sampling import reward_worker

SAMPLED = ('prompts', 'completions', 'completion_ids', 'terminated', 'rendered_prompts')
# what TRL passes beside columns, and reasonjax does not
TRL_ONLY = ('trainer_state', 'log_extra', 'log_metric')
RESERVED = (*SAMPLED, *TRL_ONLY)
WITHHELD = ('prompt', 'completion')


@dataclasses.dataclass(frozen=True)
class RewardSpec:
    """One reward function of a run.

    Attributes:
      target: a name from `reasonjax.methods.rewards`, 'pkg.module:function', 'pkg.module.function',
        or the function itself, also with its knobs bound by `functools.partial` as config
        resolution returns it. Workers must be able to import it.
      knobs: keyword arguments of every call.
      weight: factor in the total.
    """

    target: str | Callable
    knobs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weight: float = 1.0


def load(spec: RewardSpec, key: str) -> RewardSpec:
    """Imports the target; moves knobs out of a partial, so that workers can import the function and
    bind them again.

    Raises:
      UserError: there is no such function, or its parameters are none that it can be called with.
    """
    if isinstance(spec.target, str):
        spec = dataclasses.replace(spec, target=reward_worker.load(spec.target, key))
    elif isinstance(spec.target, functools.partial) and not spec.target.args:
        spec = dataclasses.replace(
            spec, target=spec.target.func, knobs={**spec.target.keywords, **spec.knobs}
        )
    is_async = inspect.iscoroutinefunction(spec.target) or inspect.isasyncgenfunction(spec.target)
    if is_async or inspect.isgeneratorfunction(spec.target):
        kind = 'async' if is_async else 'a generator'
        raise UserError(
            f'{key}: {describe(spec.target)} is {kind}, and has to be a function that returns a '
            'list of numbers.'
        )
    for parameter in _read_parameters(spec, key):
        name = parameter.name
        gathers = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if gathers or parameter.default is not parameter.empty or name in spec.knobs:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise UserError(
                f'{key}: {describe(spec.target)} takes "{name}" by position only, and all is '
                'passed by name; drop "/".'
            )
        if name in TRL_ONLY:
            raise UserError(
                f'{key}: {describe(spec.target)} takes "{name}", which is not passed here; give it '
                'a default.'
            )
        if name in WITHHELD:
            raise UserError(
                f'{key}: {describe(spec.target)} takes "{name}", which is not passed; what was '
                f'sampled is "{name}s".'
            )
    return spec


def describe(function: Callable) -> str:
    """Returns the name of a function as messages show it."""
    return f'{getattr(function, "__module__", "?")}.{getattr(function, "__qualname__", None) or show(function)}'


def find_address(function: Callable, key: str) -> str:
    """Returns 'module:qualified name' of a function that another process can import.

    Raises:
      UserError: no other process can.
    """
    module, name = getattr(function, '__module__', None), getattr(function, '__qualname__', '')
    if module and module != '__main__' and name:
        if reward_worker.member(importlib.import_module(module), name) is function:
            return f'{module}:{name}'
    raise UserError(
        f'{key}: worker processes cannot import {describe(function)}, which is defined in a '
        'notebook, in the main script '
        'or inside another function. Put it at the top level of a module and name that, or set '
        'workers=0 to run it in '
        'this process, without limits of time and memory.'
    )


def _read_parameters(spec: RewardSpec, key: str) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(spec.target).parameters.values())
    except (TypeError, ValueError) as error:
        raise UserError(
            f'{key}: {describe(spec.target)} does not tell its parameters ({error}); wrap it in a '
            'function.'
        ) from error


def list_parameters(spec: RewardSpec, key: str) -> set[str]:
    """Lists the parameters that a function has by name, knobs included."""
    return {
        p.name
        for p in _read_parameters(spec, key)
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def list_required(spec: RewardSpec, key: str) -> set[str]:
    """Lists the columns that a function cannot do without."""
    needs = set(spec.target.needs(**spec.knobs)) if hasattr(spec.target, 'needs') else set()
    without = {
        p.name
        for p in _read_parameters(spec, key)
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    return (needs | without) - set(spec.knobs) - set(SAMPLED)


def _list_knobs(spec: RewardSpec, key: str) -> set[str]:
    keyword_only = {
        p.name
        for p in _read_parameters(spec, key)
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    }
    # what was sampled takes the place of a default
    return (keyword_only | set(spec.knobs)) - set(SAMPLED)


def select_columns(spec: RewardSpec, data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Selects the columns of `data` that a function takes.

    Raises:
      UserError: a needed column is missing, or a column has the name of a knob.
    """
    for name in sorted(_list_knobs(spec, key) & set(data)):
        raise _clash(spec, key, name)
    for name in sorted(list_required(spec, key) - set(data)):
        raise missing_column(spec, key, name, data)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in _read_parameters(spec, key))
    return tuple(column for column in data if takes_all or column in list_parameters(spec, key))


def _clash(spec: RewardSpec, key: str, name: str) -> UserError:
    meant = 'Where the parameter is meant to be the column, put it before the "*".'
    return UserError(
        f'{key}: "{name}" is a knob of {describe(spec.target)} and a column of the data; '
        f'{_rename(name)} {meant}'
    )


def missing_column(
    spec: RewardSpec, key: str, name: str, names: Iterable[str], where: str = ''
) -> UserError:
    """Builds the error for a column that a function needs and the data lack."""
    names = list(map(str, names))
    hint = '' if name in names else nearest(name, names)
    return UserError(
        f'{key}: {describe(spec.target)} needs a column "{name}"{where}.{hint} There are: '
        f'{listing(names)}.'
    )


def _rename(name: str) -> str:
    return f'rename the column, by the transform dict(name="rename", columns={{"{name}": "NEW"}}) for one.'


def make_row_check(functions: Mapping[str, RewardSpec]) -> Callable[[Mapping[str, Any]], None]:
    """Returns what raises UserError for a row that reward functions cannot be given, or cannot say
    anything sensible of.

    Args:
      functions: reward key -> what to run; loaded.
    """
    knobs = {
        knob: key for key, spec in functions.items() for knob in _list_knobs(spec, f'rewards.{key}')
    }
    checks = [
        functools.partial(
            spec.target.check_row, **{**_list_defaults(spec, f'rewards.{key}'), **spec.knobs}
        )
        for key, spec in functions.items()
        if hasattr(spec.target, 'check_row')
    ]

    def check(row: Mapping[str, Any]) -> None:
        for name in row:
            if not isinstance(name, str):
                raise UserError(
                    f'column {show(name)}: columns are passed by name, and this one is of type '
                    f'{type(name).__name__}.'
                )
            if name in RESERVED:
                given = f'what reward functions are given beside columns ({", ".join(RESERVED)})'
                raise UserError(f'column "{name}" has the name of {given}; {_rename(name)}')
            if name in knobs:
                raise _clash(functions[knobs[name]], f'rewards.{knobs[name]}', name)
        for check_row in checks:
            check_row(row)

    return check


def _list_defaults(spec: RewardSpec, key: str) -> dict[str, Any]:
    return {
        p.name: p.default
        for p in _read_parameters(spec, key)
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    }
