"""The description of a batch against what is really assembled, sampled, loaded and trained on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reasonjax.data import pipeline, sources
from reasonjax.data.tokenizers.plain import characters
from reasonjax.errors import UserError
from reasonjax.parallel import mesh as meshes
from reasonjax.sampling.sampler import Rollout, Sampling, generate
from reasonjax.training import rollout_state
from reasonjax.training.batch import (
    BATCH,
    PROMPTS,
    ROLLOUT,
    TEXT,
    cast,
    fields_of_rollout,
    fields_of_rows,
    misfit,
    shape_fields,
)
from reasonjax.training.batching import BatchLayout, Packer, assemble
from reasonjax.training.step import fresh, make_update
from tests import toys

P, G, C, Q = 2, 3, 4, 5
MESH = meshes.make_mesh(dict.fromkeys(('data', 'fsdp', 'tensor', 'sequence', 'expert'), 1))


def prompts():
    rng = np.random.default_rng(0)
    text = np.broadcast_to(np.arange(Q), (P, Q))
    return {
        'tokens': rng.integers(1, 13, (P, Q)),
        'segments': np.ones((P, Q), int),
        'positions': text.copy(),
        'index': np.arange(P),
    }


@functools.cache
def sampled():
    settings = Sampling(num_generations=G, max_tokens=C, eos_ids=(1,))
    draw = jax.jit(lambda params, given, key: generate(params, toys.TINY, given, key, settings))
    return jax.device_get(draw(toys.params(), cast(prompts(), PROMPTS), jax.random.key(0)))


@pytest.mark.parametrize('share_prompts', [True, False])
@pytest.mark.parametrize('traced', [False, True])
def test_assembled_batches_are_as_described(share_prompts, traced):
    layout = BatchLayout(share_prompts=share_prompts, copies=3 if share_prompts else 1)
    lay_out = functools.partial(assemble, layout=layout)
    advantage = np.linspace(-1, 1, P * G).reshape(P, G)
    batch = (jax.jit(lay_out) if traced else lay_out)(prompts(), sampled(), advantage)
    assert not misfit(batch, BATCH)
    names = fields_of_rollout(
        share_prompts=share_prompts, packing=False, stale=False, old=False, reference=False
    )
    assert {*batch} == {*names} - {'max_completion_length'}
    sizes = {'B': P * G, 'T': C if share_prompts else Q + C, 'P': P * layout.copies, 'Q': Q}
    shapes = shape_fields(names, sizes, MESH)
    for name, x in batch.items():
        assert (x.shape, x.dtype) == (shapes[name].shape, shapes[name].dtype), name


def test_packed_batches_are_as_described():
    batch = assemble(prompts(), sampled(), np.zeros((P, G)))
    packed, _ = Packer(BatchLayout(packing=True))(batch)
    assert not misfit(packed, BATCH)
    names = fields_of_rollout(
        share_prompts=True, packing=True, stale=True, old=True, reference=True
    )
    later = {'staleness', 'logprob_old', 'logprob_ref', 'max_completion_length'}
    assert {*packed} == {*names} - later


def test_rollouts_are_as_described():
    assert {field.name for field in dataclasses.fields(Rollout)} == {*ROLLOUT}
    held = {name: getattr(sampled(), name) for name in ROLLOUT if name != 'forced'}
    assert not misfit(held, ROLLOUT)


ROWS = {
    'demonstration': {'prompt': '12', 'completion': '34'},
    'preference': {'prompt': '12', 'chosen': '3', 'rejected': '45'},
    'unpaired': {'prompt': '12', 'completion': '34', 'label': True},
    'stepwise': {'prompt': '12', 'completions': ['3', '4'], 'labels': [True, False]},
}


@pytest.mark.parametrize('form', ROWS)
def test_rows_are_as_described(form):
    data = pipeline.supervised(
        sources.memory(rows=[ROWS[form]] * 4, label='train'),
        [],
        characters(None, None, alphabet='_$M0123456789\n'),
        max_length=16,
        batch_size=2,
        seed=0,
        form=form,
    )
    batch = next(data)
    assert {*batch} == {*fields_of_rows(form)} and not misfit(batch, BATCH)


def test_the_step_reads_what_is_described():
    read = []

    def objective(score, batch, key):
        read.append(dict(batch))
        return toys.nll(score, batch, key)

    params, optimizer = toys.params(), optax.sgd(0.1)
    batch = assemble(prompts(), sampled(), np.zeros((P, G)))
    update = make_update(toys.TINY, objective, optimizer)
    jax.eval_shape(update, fresh(params, optimizer, 0), params, batch, jax.random.key(0))
    assert not misfit(read[0], BATCH)
    within = {name for name, field in BATCH.items() if field.filled_by == 'step'}
    assert {*read[0]} == {*batch} | within


def test_a_waiting_rollout_that_is_not_as_described_is_refused():
    rollout = {name: getattr(sampled(), name) for name in ROLLOUT}
    state = {
        'rows': rollout_state.rows_to_json([{'prompt': '1'}] * P),
        'prompts': cast({name: prompts()[name] for name in TEXT}, PROMPTS),
        'rewards': None,
        'steps': np.ones(P, int),
    }

    class Restored:
        def restored(self, *parts):
            return parts

    assert rollout_state.from_state(state | {'rollout': rollout}, Restored())[1].tokens.shape == (
        P,
        G,
        C,
    )
    for damage, message in {
        'tokens': r'"tokens" is float32\[2, 3, 4\], not int32\[P, G, C\]',
        'length': '"length" has 1 along P where others have 2',
    }.items():
        wrong = rollout[damage][:1] if damage == 'length' else rollout[damage].astype(np.float32)
        with pytest.raises(UserError, match=message):
            rollout_state.from_state(state | {'rollout': rollout | {damage: wrong}}, Restored())


def test_a_field_nobody_described_does_not_fit():
    batch = {'tokens': jnp.zeros((2, 3), jnp.int32), 'surprise': jnp.zeros(2)}
    assert misfit(batch, BATCH).startswith('"surprise" is none of tokens, segments')
