"""Programs compiled ahead are those that the stage calls: none is compiled twice, and the run is
the same."""

import logging
import re
from collections import Counter

import jax
import pytest
from small_runs import install_rewards, quiet, records

from reasonjax import programs
from reasonjax.config import load
from reasonjax.training import compile_ahead
from reasonjax.training.run import run

COMMON = dict(
    stages="('grpo',)",
    grpo__steps=2,
    grpo__num_prompts=4,
    grpo__num_generations=4,
    grpo__accumulation=2,
    grpo__reward_workers=0,
    grpo__rewards__accuracy__name='toy_rewards.digits',
    grpo__max_completion_length=24,
)
FORMS = {
    'reference': dict(grpo__objective__beta=0.1),
    'old': dict(grpo__num_iterations=2, grpo__share_prompts=False),
    'adapter': dict(
        grpo__objective__beta=0.1, grpo__adapter__name='lora', grpo__filter__name='lora'
    ),
}


@pytest.fixture
def compiled(caplog):
    """Counts the programs of a stage that XLA compiles from here on, by name."""

    def count() -> Counter:
        found = (
            re.match(r'Finished XLA compilation of jit\((update|logprob)\)', r.message)
            for r in caplog.records
        )
        return Counter(match[1] for match in found if match)

    # Of every thread: `jax.log_compiles` speaks of one.
    caplog.set_level(logging.DEBUG, logger='jax._src.dispatch')
    return count


@pytest.mark.parametrize('form', FORMS)
def test_nothing_is_compiled_twice(form, tmp_path, monkeypatch, own_programs, compiled):
    install_rewards(tmp_path, monkeypatch)
    started = []
    start = compile_ahead.Ahead.start
    monkeypatch.setattr(
        compile_ahead.Ahead,
        'start',
        lambda self, *given: (started.append(given[0]), start(self, *given)),
    )
    run(quiet('configs/grpo.py', **COMMON | FORMS[form]), tmp_path / 'ahead')
    expected = {'update': 1} | ({'logprob': 1} if 'grpo__objective__beta' in FORMS[form] else {})
    assert compiled() == expected and len(started) == len(expected)
    if form == 'reference':
        monkeypatch.setattr(compile_ahead.Ahead, 'start', lambda self, *given: None)
        run(quiet('configs/grpo.py', **COMMON | FORMS[form]), tmp_path / 'plain')
        assert records(tmp_path / 'ahead') == records(tmp_path / 'plain')


def test_what_compiling_raises_is_raised_where_the_program_is_needed():
    def fails(x):
        raise ValueError('no such program')

    programs_ = compile_ahead.Ahead()
    programs_.start(jax.jit(fails), jax.ShapeDtypeStruct((), 'float32'))
    with pytest.raises(ValueError, match='no such program'):
        programs_.finish()


def test_one_arena_is_for_runs_that_only_train():
    assert programs.has_large_steps(load('configs/sft.py'))
    assert not programs.has_large_steps(load('configs/quickstart.py'))
    assert not programs.has_large_steps(load('configs/grpo.py'))
