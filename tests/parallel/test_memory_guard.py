"""What the compiled train and score steps hold, against bounds from shapes: logits, scores or
activations kept by mistake break them."""

import functools
import importlib.util

import jax
import pytest

from reasonjax import config as configs
from reasonjax.planning import shapes, topology
from reasonjax.planning.programs import StagePrograms, plan_run, planned_stage

B, T, D, L, H, F, V, CHUNK = 8, 512, 128, 6, 4, 512, 4096, 64
F32 = 4
MODEL = dict(
    dim=D,
    layers=L,
    heads=H,
    kv_heads=H,
    head_dim=D // H,
    mlp_dim=F,
    vocab_size=V,
    scan=True,
    remat='full',
    logprob_chunk=CHUNK,
    attention_chunk=CHUNK,
)
# Bytes of single arrays.
HIDDEN, WIDE, LOGITS = B * T * D * F32, B * T * F * F32, B * T * V * F32
LOGIT_CHUNK, SCORE_CHUNK = B * CHUNK * V * F32, B * H * CHUNK * T * F32
SAVED = L * HIDDEN
PARAMETERS = (L * (4 * D * D + 2 * D * F + 2 * D) + 2 * V * D + D) * F32
# Of each array there may be some at once: its value, its gradient, and what is computed from
# either.
SCORE = 3 * LOGIT_CHUNK + 2 * SCORE_CHUNK + 2 * WIDE + 4 * HIDDEN
TRAIN = 3 * LOGIT_CHUNK + 3 * SCORE_CHUNK + 3 * WIDE + 6 * HIDDEN + SAVED + 2 * PARAMETERS


@functools.cache
def compiled(name, where='cpu:1', length=T, accumulation=1, **changes):
    """The compiler's memory statistics of a program of configs/sft.py at this size, and the bytes
    of its state."""
    config = configs.load('configs/sft.py').unlock()
    config.model.update(MODEL | changes)
    config.train.update(batch_size=B, accumulation=accumulation)
    config.train.data.max_length = length
    devices = (
        jax.devices('cpu')[:1] if where == 'cpu:1' else topology.devices(topology.parse(where))
    )
    stage = StagePrograms(plan_run(config, devices), planned_stage(config))
    program = next(stage.programs((name,)))
    # Memory is planned before machine code is made, which may be as slow as it likes.
    options = {'xla_backend_optimization_level': 0} if where == 'cpu:1' else {}
    statistics = (
        program.function.lower(*program.arguments)
        .compile(compiler_options=options)
        .memory_analysis()
    )
    return statistics, shapes.bytes_of(stage.state)


def temporaries(name, **how):
    return compiled(name, **how)[0].temp_size_in_bytes


def test_the_score_step_holds_a_chunk_of_logits():
    assert temporaries('score') < SCORE < LOGITS
    assert temporaries('score', logprob_chunk=0) > SCORE


def test_the_train_step_holds_chunks_and_block_inputs():
    assert temporaries('train') < TRAIN < 2 * LOGITS
    # Each of the three settings that the bound is made for matters.
    assert temporaries('train', attention_chunk=0) > TRAIN
    assert temporaries('train', logprob_chunk=0) > TRAIN
    assert temporaries('train', remat='none') > 3 * temporaries('train')


def test_memory_grows_with_length_not_with_its_square():
    # Of what is chunked, only the width of a score grows.
    assert temporaries('train', length=2 * T) < 2.2 * temporaries('train')


def test_accumulation_halves_what_rows_take():
    of_rows = TRAIN - 2 * PARAMETERS
    # One sum of gradients more.
    assert temporaries('train', accumulation=2) < of_rows / 2 + 3 * PARAMETERS
    assert temporaries('train', accumulation=2) < 0.75 * temporaries('train')


def test_the_state_is_updated_in_place():
    statistics, state = compiled('train')
    assert state == pytest.approx(3 * PARAMETERS, rel=0.01)
    assert statistics.alias_size_in_bytes >= state
    assert statistics.output_size_in_bytes - statistics.alias_size_in_bytes < 1000
    # Nothing is read besides state, batch (tokens, segments, positions, weights) and key.
    assert statistics.argument_size_in_bytes < state + 4 * B * T * F32 + 1000


@pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='no TPU compiler here (pip install libtpu)'
)
def test_the_same_on_a_tpu():
    statistics, state = compiled('train', where='v5e:1x1')
    assert statistics.temp_size_in_bytes < TRAIN
    assert statistics.alias_size_in_bytes >= state
