"""What a name in a config means: a function of the slot that its key names, or any importable one
by its dotted name."""

import importlib
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

from reasonjax.errors import UserError, listing, nearest

# The key under which a function is named decides where its name is looked up.
SLOTS = {
    'adapter': ('reasonjax.methods.adapters', 'reasonjax.interop.peft.adapter'),
    'advantage': ('reasonjax.methods.advantages',),
    'corruption': ('reasonjax.methods.corruptions',),
    'filter': ('reasonjax.methods.filters',),
    'learning_rate': ('reasonjax.training.schedules',),
    'objective': ('reasonjax.methods.objectives',),
    'optimizer': ('reasonjax.training.optimizers',),
    'rewards': ('reasonjax.methods.rewards',),
    'rope_scaling': ('reasonjax.model.rope',),
    'source': ('reasonjax.data.sources', 'reasonjax.tasks'),
    'task': ('reasonjax.tasks',),
    'tokenizer': ('reasonjax.data.tokenizers', 'reasonjax.interop.huggingface.tokenizers'),
    'transforms': ('reasonjax.methods.transforms',),
}
# What reads the models that `init` names as SCHEME:PLACE. They stand around the core, so it knows
# them by name alone.
MODEL_SOURCES = {'hf': 'reasonjax.interop.huggingface.pretrained'}
# Read by whoever calls the function, so not among its knobs: (slot, key, default).
EXTRA = {'rewards': {'weight': 1.0}}
# Functions outside a slot's modules that configs of the package name; a workdir may name them too.
OWN = {'task': ('reasonjax.arena.tasks.exam',)}
# The default of a knob that has none.
REQUIRED = inspect.Parameter.empty


def find(name: str, slot: str, key: str, trust: Sequence[str] | None = None) -> Callable:
    """Returns the function that `name` means in `slot`; a dotted name reaches any importable
    module.

    Args:
      name: 'nll', or 'my_package.losses.fancy'.
      slot: a key of `SLOTS`.
      key: the config key, for the error message.
      trust: None where the config is the user's own. Of a workdir's config, which is data, the
        modules that the user trusts: any other dotted name has to mean a function of the slot, and
        is not imported.

    Raises:
      UserError: no such function (lists those there are), or a dotted name that is not trusted.
    """
    if not isinstance(name, str):
        raise UserError(
            f'config.{key}.name: expected the name of a function, found {type(name).__name__}.'
        )
    if '.' in name:
        module_name, _, attribute = name.rpartition('.')
        if not all(name.split('.')):
            raise UserError(
                f'config.{key}.name: "{name}" is not a dotted name; write package.module.function.'
            )
        if (
            trust is not None
            and name not in OWN.get(slot, ())
            and not any(name == t or name.startswith(f'{t}.') for t in trust)
        ):
            return _own(name, slot, key)
        try:
            function = getattr(importlib.import_module(module_name), attribute, None)
        except ModuleNotFoundError as error:
            raise UserError(f'config.{key}.name: cannot import "{name}": {error}') from error
        except Exception as error:
            raise UserError(
                f'config.{key}.name: importing "{module_name}" raised {type(error).__name__}: '
                f'{error}'
            ) from error
        if not callable(function):
            raise UserError(
                f'config.{key}.name: module {module_name} has no function "{attribute}".'
            )
        try:
            inspect.signature(function)
        except (TypeError, ValueError) as error:
            raise UserError(
                f'config.{key}.name: "{name}" does not say what arguments it takes ({error}).'
            ) from error
        return function
    choices = _choices(slot)
    if name not in choices:
        raise UserError(
            f'config.{key}.name: unknown {slot} "{name}".{nearest(name, choices)} Known: '
            f'{listing(choices)}; '
            'or a dotted name of your own (my_package.module.function).'
        )
    return choices[name]


def _choices(slot: str) -> dict[str, Callable]:
    """Returns the functions of a slot, by name."""
    choices = {}
    for module_name in SLOTS[slot]:
        choices |= functions(importlib.import_module(module_name))
    return choices


def _own(name: str, slot: str, key: str) -> Callable:
    """Returns the function of the slot that a dotted name means; imports nothing for it."""
    for short, function in _choices(slot).items():
        if name in (
            f'{function.__module__}.{function.__name__}',
            *(f'{module}.{short}' for module in SLOTS[slot]),
        ):
            return function
    raise UserError(
        f'config.{key}.name: "{name}" of this workdir is no {slot} of reasonjax, and is not '
        'imported: a workdir is data. If you know what '
        f'it does, give --trust {name.rpartition(".")[0]}.'
    )


def model_source(scheme: str) -> types.ModuleType:
    """Returns the module that reads models of `init='SCHEME:PLACE'`, with functions `read_folder`
    and `load`."""
    return importlib.import_module(MODEL_SOURCES[scheme])


def functions(module: Any) -> dict[str, Callable]:
    """Returns the public functions of a slot's module, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and not name.startswith('_')
        and value.__module__.startswith(module.__name__)
    }


def knobs(function: Callable) -> dict[str, Any]:
    """Returns a function's keyword-only parameters with their defaults (`REQUIRED` for none)."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
