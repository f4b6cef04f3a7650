"""Bounds: every number that can be set has one, and what is not within it is refused in one
line."""

import argparse
import importlib
import inspect
import math
import numbers
import pathlib
import re
import typing

import jax
import ml_collections
import numpy as np
import pytest

from configs import base
from reasonjax import (
    bounds,
    config_bounds,
    config_names,
    evaluate,
    programs,
    randomness,
    sample,
    train,
)
from reasonjax import config as configs
from reasonjax.bounds import (
    AtLeast,
    BelowOne,
    Between,
    Fraction,
    OneOf,
    Positive,
    PositiveOrInfinite,
    Seed,
)
from reasonjax.errors import UserError
from reasonjax.model.config import ModelConfig
from reasonjax.sampling.settings import Sampling

ROOT = pathlib.Path(__file__).parents[1]
NAN, INF = math.nan, math.inf


def public_functions():
    for slot, modules in configs.SLOTS.items():
        for module in modules:
            for name, function in config_names.functions(importlib.import_module(module)).items():
                yield f'{slot}.{name}', function


def marks(kind) -> list:
    """Every bound in a type."""
    inner = [mark for part in typing.get_args(kind) for mark in marks(part)]
    return inner + [kind] * isinstance(kind, bounds.Range | bounds.Choice)


def speaks_of_numbers(kind, default) -> bool:
    if isinstance(kind, bounds.Range | bounds.Choice) or kind is bool or isinstance(default, bool):
        return False
    numeric = kind in (int, float) or isinstance(default, numbers.Number)
    return numeric or any(speaks_of_numbers(part, None) for part in typing.get_args(kind))


def unbounded(kind, default) -> bool:
    return speaks_of_numbers(kind, default) and not any(
        isinstance(mark, bounds.Range) for mark in marks(kind)
    )


def test_every_numeric_knob_has_a_bound():
    knobs = [
        (f'{of}.{name}', *knob)
        for of, function in public_functions()
        for name, knob in bounds.kinds(function).items()
    ]
    assert len(knobs) > 150
    assert [name for name, kind, default in knobs if unbounded(kind, default)] == []
    fields = [
        (f.name, f.type, f.default)
        for kind in (ModelConfig, Sampling)
        for f in kind.__dataclass_fields__.values()
    ]
    ids = ('eos_ids', 'stop')  # made by the tokenizer
    assert [
        name for name, kind, default in fields if unbounded(kind, default) and name not in ids
    ] == []


def test_a_knob_without_a_bound_would_be_noticed():
    def bare(
        *,
        a: int,
        b: float | None = None,
        c: tuple[float, ...] = (),
        d=0.5,
        e: AtLeast(1) = 1,
        f: bool = True,
        g: str = '',
    ): ...

    assert [name for name, knob in bounds.kinds(bare).items() if unbounded(*knob)] == [
        'a',
        'b',
        'c',
        'd',
    ]


def tree() -> ml_collections.ConfigDict:
    """The default tree with a stage of each kind."""
    c = base.get_config()
    c.online, c.collect, c.evaluate, c.keep = (
        base.online(c),
        base.collect(c),
        base.evaluate(),
        base.keep(),
    )
    return configs.complete(c)


def test_every_numeric_leaf_of_a_stage_has_a_bound():
    leaves = list(config_bounds.leaves(tree(), configs.SLOTS, configs.EXTRA))
    plain = [(key, name) for key, name, value in leaves if isinstance(value, numbers.Number)]
    assert len(plain) > 100
    assert [key for key, name in plain if name not in config_bounds.LEAVES] == []
    assert {
        'config.online.rewards.accuracy.weight',
        'config.rollout.mesh.data',
        'config.seed',
        'config.evaluation.thinking.budget',
        'config.collect.sampler.burst',
        'config.train.data.max_length',
    } <= {key for key, _ in plain}
    assert set(config_bounds.LEAVES) == {name for _, name, _ in leaves} & set(
        config_bounds.LEAVES
    ), 'a bound of what is not there'


def test_every_default_is_within_its_own_bound():
    tree()
    for of, function in public_functions():
        for name, (kind, default) in bounds.kinds(function).items():
            assert default is inspect.Parameter.empty or not bounds.fault(default, kind, default), (
                f'{of}.{name}'
            )


@pytest.mark.parametrize(
    ('value', 'kind', 'default', 'words'),
    [
        (0, AtLeast(1), 3, 'must be at least 1; nearest: 1.'),
        (2.5, AtLeast(1), 3, 'must be a whole number, at least 1; nearest: 2.'),
        (2.0, AtLeast(1), 3, 'must be a whole number, at least 1; nearest: 2.'),
        (True, AtLeast(1), 3, 'must be a whole number, at least 1; nearest: 1.'),
        ('5', AtLeast(1), 3, 'must be a whole number, at least 1; nearest: 5.'),
        ('many', AtLeast(1), 3, 'must be a whole number, at least 1; default: 3.'),
        (None, AtLeast(1), 3, 'must be a whole number, at least 1; default: 3.'),
        (NAN, AtLeast(1), 3, 'must be a whole number, at least 1; default: 3.'),
        (INF, AtLeast(1), 3, 'must be a whole number, at least 1; nearest: 2147483647.'),
        (
            2**31,
            AtLeast(1),
            3,
            'must be at most 2147483647, which is what 32 bits hold; nearest: 2147483647.',
        ),
        (
            10**5000,
            AtLeast(1),
            3,
            'must be at most 2147483647, which is what 32 bits hold; nearest: 2147483647.',
        ),
        (7, Between(1, 6), 3, 'must be from 1 to 6; nearest: 6.'),
        (0, AtLeast(1) | None, None, 'must be at least 1 or None; nearest: 1.'),
        (2**32, Seed, 0, 'must be from 0 to 4294967295; nearest: 4294967295.'),
        (-1, Seed, 0, 'must be from 0 to 4294967295; nearest: 0.'),
        (NAN, Positive, inspect.Parameter.empty, 'must be a number, above 0.'),
        (INF, Positive, 0.1, 'must be finite, above 0; default: 0.1.'),
        (1e400, Positive, 0.1, 'must be finite, above 0; default: 0.1.'),
        (10**400, Positive, 0.1, 'must be finite, above 0; default: 0.1.'),
        (-0.5, Positive, 0.1, 'must be above 0; nearest: 0.5.'),
        (0.0, Positive, 0.1, 'must be above 0; default: 0.1.'),
        (1e-50, Positive, 0.1, 'must be above 0, also in float32; default: 0.1.'),
        (1e-40, Positive, 0.1, 'must be above 0, also in float32; default: 0.1.'),
        (
            1e39,
            Positive,
            0.1,
            'must be at most 3.4028235e+38, which is what float32 holds; default: 0.1.',
        ),
        (
            -1e39,
            bounds.Finite,
            0.1,
            'must be at least -3.4028235e+38, which is what float32 holds; default: 0.1.',
        ),
        (-1, PositiveOrInfinite, INF, 'must be above 0 or infinity; nearest: 1.0.'),
        (NAN, PositiveOrInfinite, INF, 'must be a number, above 0 or infinity; default: inf.'),
        (2, BelowOne, 0.9, 'must be at least 0 and below 1; default: 0.9.'),
        (
            0.99999999,
            BelowOne,
            0.9,
            'must be at least 0 and below 1, also in float32; default: 0.9.',
        ),
        (1.5, Fraction, 0.5, 'must be from 0 to 1; nearest: 1.'),
        ('0.5', Fraction, 0.1, 'must be a number, from 0 to 1; nearest: 0.5.'),
        (-1, bounds.TemperatureOrGreedy, 1.0, 'must be 0 or from 0.0001 to 10000; nearest: 0.'),
        (1e-30, bounds.Penalty, 1.0, 'must be from 0.0001 to 10000; nearest: 0.0001.'),
        ((0.5, NAN), tuple[Fraction, ...], (), 'entry 1, nan, must be a number, from 0 to 1.'),
        ('0.5', tuple[Fraction, ...], (), 'must be a list, in brackets.'),
        ('mx', OneOf('max', 'min'), 'max', 'unknown. Did you mean "max"? Known: max, min.'),
        ('x', OneOf('', 'int8'), '', 'unknown. Known: "", int8.'),
        (1, OneOf('max', 'min'), 'max', 'must be a text, one of max, min.'),
        (1, bool, True, 'must be True or False.'),
        (1.0, str, '', 'must be a text.'),
        (NAN, float, 0.5, 'must be a number; default: 0.5.'),
        (True, float, 0.5, 'must be a number; nearest: 1.0.'),
        (1.5, int, 2, 'must be a whole number; nearest: 2.'),
    ],
    ids=bounds.shown,
)
def test_what_is_not_within_its_bound(value, kind, default, words):
    assert bounds.fault(value, kind, default) == words


@pytest.mark.parametrize(
    ('value', 'kind'),
    [
        (1, AtLeast(1)),
        (2**31 - 1, AtLeast(1)),
        (np.int64(3), AtLeast(1)),
        (None, AtLeast(1) | None),
        (0, Seed),
        (2**32 - 1, Seed),
        (1, Positive),
        (1e-37, Positive),
        (3.4e38, Positive),
        (np.float32(0.5), Positive),
        (INF, PositiveOrInfinite),
        (0, BelowOne),
        (0.999999, BelowOne),
        (0, Fraction),
        (1, Fraction),
        (0, bounds.TemperatureOrGreedy),
        (1e-4, bounds.TemperatureOrGreedy),
        (-INF, config_bounds.LEAVES['min_reward']),
        ((), tuple[Fraction, ...]),
        ([0.5], tuple[Fraction, ...]),
        ('', OneOf('', 'int8')),
        (True, bool),
        ('', str),
        (INF, float),
        (10**400, int),
        ({'any': 1}, dict),
        (Ellipsis, inspect.Parameter.empty),
        ((('a', 1), ('b', 'c')), tuple[tuple[str, typing.Any], ...]),
    ],
    ids=bounds.shown,
)
def test_what_is_within_its_bound(value, kind):
    assert bounds.fault(value, kind) == ''


OWN = """
from typing import Annotated

from reasonjax.bounds import Fraction

def bounded(score, batch, key, *, share: Fraction = 0.5, number: int = 2, rate: float = 0.1, on: bool = True, limit: int | None = None):
    ...

def written(score, batch, key, *, share: 'Fraction' = 0.5, other: 'Unknown' = 1): ...

def known(score, batch, key, *, share: 'Fraction' = 0.5): ...

def noted(score, batch, key, *, rate: Annotated[float, 'nats'] = 0.5, way: Annotated[str, 'of going'] = 'up'): ...
"""


@pytest.mark.parametrize(
    ('node', 'words'),
    [
        (
            dict(name='bounded', share=1.5),
            'config.objective.share=1.5: must be from 0 to 1; nearest: 1.',
        ),
        (
            dict(name='bounded', number=2.5),
            'config.objective.number=2.5: must be a whole number; nearest: 2.',
        ),
        (
            dict(name='bounded', number=True),
            'config.objective.number=True: must be a whole number; nearest: 1.',
        ),
        (
            dict(name='bounded', rate=NAN),
            'config.objective.rate=nan: must be a number; default: 0.1.',
        ),
        (
            dict(name='bounded', rate='1e-3'),
            'config.objective.rate="1e-3": must be a number; nearest: 0.001.',
        ),
        (dict(name='bounded', on=0), 'config.objective.on=0: must be True or False.'),
        (
            dict(name='bounded', limit='x'),
            'config.objective.limit="x": must be a whole number or None.',
        ),
        (
            dict(name='noted', rate=NAN),
            'config.objective.rate=nan: must be a number; default: 0.5.',
        ),
        (dict(name='noted', way=1), 'config.objective.way=1: must be a text.'),
        (
            dict(name='known', share=-1),
            'config.objective.share=-1: must be from 0 to 1; nearest: 0.',
        ),
    ],
)
def test_functions_of_a_users_own(node, words, tmp_path, monkeypatch):
    (tmp_path / 'own_bounds.py').write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = {'name': f'own_bounds.{node["name"]}'}
    with pytest.raises(UserError) as error:
        configs.resolve(node | own, 'objective')
    assert str(error.value) == words
    assert configs.resolve(own, 'objective').func.__module__ == 'own_bounds'
    # Types that exist for type checkers only say nothing.
    assert configs.resolve({'name': 'own_bounds.written', 'share': 7}, 'objective').keywords == {
        'share': 7
    }


def test_other_groups_of_a_config_are_the_users_own():
    c = base.get_config()
    c.mine = dict(steps='as many as it takes', seed=-1.5)
    assert configs.complete(c).mine.seed == -1.5


def test_no_flag_of_a_program_is_a_bare_number():
    files = [*ROOT.glob('reasonjax/**/*.py'), *ROOT.glob('benchmarks/*.py')]
    bare = [
        f'{file}: {text}'
        for file in files
        for text in re.findall(r'add_argument\([^#]*?type=(?:int|float)\b', file.read_text())
    ]
    # Processes that a program starts for itself.
    assert [text for text in bare if '/arena/worker.py' not in text] == [] and len(files) > 100


@pytest.mark.parametrize(
    ('program', 'arguments', 'words'),
    [
        (
            sample,
            ['--temperature', 'nan'],
            '--temperature: nan: must be a number, 0 or from 0.0001 to 10000.',
        ),
        (
            sample,
            ['--temperature', '1e400'],
            '--temperature: 1e400: must be finite, 0 or from 0.0001 to 10000',
        ),
        (
            sample,
            ['--temperature=-1'],
            '--temperature: -1: must be 0 or from 0.0001 to 10000; nearest: 0.',
        ),
        (sample, ['--top_p', '2'], '--top_p: 2: must be above 0 and at most 1; nearest: 1.'),
        (sample, ['--min_p', '1'], '--min_p: 1: must be at least 0 and below 1.'),
        (sample, ['--top_k', '-1'], '--top_k: -1: must be at least 0; nearest: 0.'),
        (sample, ['--samples', '-1'], '--samples: -1: must be at least 1; nearest: 1.'),
        (sample, ['--samples', '1.5'], '--samples: 1.5: must be a whole number, at least 1.'),
        (sample, ['--batch_size', '0'], '--batch_size: 0: must be at least 1; nearest: 1.'),
        (sample, ['--seed', str(10**30)], 'must be from 0 to 4294967295; nearest: 4294967295.'),
        (
            sample,
            ['--seed', '9' * 5000],
            '(5002 characters): must be a whole number, from 0 to 4294967295.',
        ),
        (sample, ['--max_tokens', '-1'], '--max_tokens: -1: must be at least 0; nearest: 0.'),
        (evaluate, ['--samples', '-1'], '--samples: -1: must be at least 0; nearest: 0.'),
        (evaluate, ['--samples', 'many'], '--samples: many: must be a whole number, at least 0.'),
        (
            train,
            ['--config', 'configs/base.py', '--cpu_devices', '-1'],
            '--cpu_devices: -1: must be from 0 to 4096; nearest: 0.',
        ),
    ],
)
def test_flags_are_refused_in_one_line(program, arguments, words, capsys):
    with pytest.raises(SystemExit) as leaving:
        program.main([*([] if program is train else ['--workdir', 'nowhere']), *arguments])
    error = capsys.readouterr().err
    assert (
        leaving.value.code == 2
        and error.startswith('error: argument ')
        and words in error
        and error.count('\n') == 1
    )


def test_flags_read_numbers():
    parser = programs.Parser()
    parser.add_argument('--rate', type=bounds.flag(Positive), default=1.0)
    parser.add_argument('--number', type=bounds.flag(AtLeast(0)), default=0)
    assert parser.parse_args(['--rate', '1e-3', '--number', '7']) == argparse.Namespace(
        rate=1e-3, number=7
    )
    assert bounds.read('7', AtLeast(1), '--k') == 7 and bounds.read(7, AtLeast(1), '--k') == 7


def test_seeds_are_those_that_draw_differently():
    drawn = [
        tuple(jax.random.key_data(randomness.key(seed, 0, 0, 'init')).tolist())
        for seed in (0, 1, 2**31 - 1, 2**31, 2**32 - 1)
    ]
    assert len(set(drawn)) == len(drawn)
    # Why the rest is refused: another seed by its name, and the same draws.
    again = jax.random.key_data(jax.random.key(2**32))
    assert (again == jax.random.key_data(jax.random.key(0))).all() and bounds.fault(
        2**32, config_bounds.LEAVES['seed']
    )
    # As `on_device` hands the seed to its program.
    traced = jax.jit(lambda seed: randomness.key(seed, 0, 0, 'init'))
    for seed, wanted in zip((0, 1, 2**31 - 1, 2**31, 2**32 - 1), drawn):
        assert tuple(jax.random.key_data(traced(np.uint32(seed))).tolist()) == wanted
