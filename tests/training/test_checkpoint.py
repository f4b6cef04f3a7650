"""Checkpoints: bit-exact round trips, clear refusals, and a kill at any moment leaves the previous
one usable."""

import dataclasses
import functools
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reasonjax.errors import UserError
from reasonjax.training import checkpoint


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=['base', 'a', 'b'], meta_fields=['block']
)
@dataclasses.dataclass(frozen=True)
class LowRank:
    base: object
    a: object
    b: object
    block: int = 32


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=['base', 'a', 'b'], meta_fields=['block']
)
@dataclasses.dataclass(frozen=True)
class Other:
    base: object
    a: object
    b: object
    block: int = 32


class Counter:
    """The least an iterator of examples has to be."""

    def __init__(self):
        self.state = {'next_index': 0, 'parent': {'order': [1, 2]}}

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def make(rank=2, width=6, kind=LowRank, block=32):
    key = jax.random.key(0)
    weight = kind(
        base=jax.random.normal(key, (3, width, 5), jnp.bfloat16),
        a=jax.random.normal(key, (3, width, rank)),
        b=None,
        block=block,
    )
    return {
        'embed': jax.random.normal(key, (7, width)),
        'layers': {'q': weight, 'norm': jnp.full((3, width), jnp.nan)},
        'head': None,
        'pair': (jnp.arange(3), jnp.float32(-0.0)),
    }


def make_train(params):
    floats = jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else None, params)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return {
        'optimizer': optimizer.init(floats),
        'step': jnp.int32(41),
        'key': jax.random.key(7),
        'seen': 12,
        'host': np.arange(4, dtype=np.int64),
        'keys': jax.random.split(jax.random.key(3), 2),
    }


def bits(leaf):
    leaf = (
        jax.random.key_data(leaf)
        if hasattr(leaf, 'dtype') and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
    )
    return np.asarray(leaf).tobytes()


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert getattr(one, 'dtype', type(one)) == getattr(other, 'dtype', type(other))
        assert bits(one) == bits(other)


def test_round_trip_is_bit_exact(tmp_path):
    params = make()
    train = make_train(params)
    data = Counter()
    meta = {'data': 'sha-1', 'model': {'layers': 3}, 'shape': (1, 2)}
    with checkpoint.Checkpoints(tmp_path / 'made' / 'here') as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.save(4, params=params, train=train, data=data, meta=meta)
        data.state['next_index'] = 99  # the position saved is the one at the call
        meta['model']['layers'] = 5
        assert not checkpoints.save(4, params=params)
        assert checkpoints.latest() == 4
    fresh = Counter()
    with checkpoint.Checkpoints(tmp_path / 'made' / 'here') as checkpoints:
        restored = checkpoints.restore(
            params=jax.eval_shape(lambda: make()),
            train=train,
            data=fresh,
            expect={'data': 'sha-1', 'shape': (1, 2)},
        )
        only_meta = checkpoints.restore(4)
    assert_same(restored.params, params)
    assert_same(restored.train, train)
    assert (
        restored.meta
        == {'data': 'sha-1', 'model': {'layers': 3}, 'shape': [1, 2]}
        == only_meta.meta
    )
    assert only_meta.params is None and only_meta.train is None
    assert fresh.get_state() == {'next_index': 0, 'parent': {'order': [1, 2]}}


def test_everything_may_change_as_soon_as_save_returns(tmp_path):
    # Large enough that the background write is still going on while the buffers are overwritten.
    params = {f'w{i}': jnp.full((512, 1024), i, jnp.float32) for i in range(8)}
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    shapes = jax.eval_shape(lambda x: x, params)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        meta, data = {'seen': {'rows': 1}}, Counter()
        checkpoints.save(1, params=params, data=data, meta=meta)
        meta['seen']['rows'] = data.state['next_index'] = 2
        for _ in range(20):
            params = overwrite(params)
        restored = checkpoints.restore(1, params=shapes, data=data)
    assert restored.meta == {'seen': {'rows': 1}} and data.state['next_index'] == 0
    for i in range(8):
        np.testing.assert_array_equal(restored.params[f'w{i}'], np.full((512, 1024), i, np.float32))


def test_the_background_writer_gets_its_own_record(tmp_path, monkeypatch):
    handed = []
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(
            checkpoints._manager, 'save', lambda step, args, force: handed.append(args['meta'].item)
        )
        meta, data = {'seen': {'rows': 1}}, Counter()
        checkpoints.save(1, params={'w': jnp.zeros(1)}, data=data, meta=meta)
    meta['seen']['rows'] = data.state['next_index'] = 2
    assert handed[0]['meta'] == {'seen': {'rows': 1}} and handed[0]['data']['next_index'] == 0


def test_keeps_the_newest(tmp_path):
    with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (0, 3, 20, 100):
            checkpoints.save(step, params={'w': jnp.full(2, step)})
        assert checkpoints.steps() == [20, 100]
        assert checkpoints.restore(20, params={'w': jnp.zeros(2, jnp.int32)}).params[
            'w'
        ].tolist() == [20, 20]
        with pytest.raises(UserError, match=r'no checkpoint of step 3 in .*there are: 20, 100'):
            checkpoints.restore(3)


def test_an_earlier_step_is_saved_too(tmp_path):
    with checkpoint.Checkpoints(tmp_path, keep=None) as checkpoints:
        assert checkpoints.save(20, params={'w': jnp.zeros(1)})
        assert checkpoints.save(15, params={'w': jnp.ones(1)})
        assert checkpoints.steps() == [15, 20]


def test_restores_onto_the_shardings_asked_for(tmp_path):
    mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, params={'w': jnp.arange(4.0)})
        restored = checkpoints.restore(
            1, params={'w': jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding)}
        )
    assert restored.params['w'].sharding == sharding


def test_load_params_reads_them_alone_and_casts(tmp_path):
    params = make()
    params['layers']['norm'] = jnp.full((3, 6), 1 / 3)  # the bits of a nan depend on how it is cast
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, params={'other': jnp.zeros(1)}, meta={'name': 'old'})
        checkpoints.save(2, params=params, train=make_train(params), meta={'name': 'new'})
        checkpoints.wait()
        temporary = tmp_path / '3.orbax-checkpoint-tmp'
        temporary.mkdir()  # what a run that is saving right now has
        wanted = jax.eval_shape(
            lambda: jax.tree.map(
                lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, make()
            )
        )
        found, meta, step = checkpoint.load_params(tmp_path, wanted)
        assert (meta, step) == ({'name': 'new'}, 2) and temporary.is_dir()
        assert_same(
            found,
            jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, params),
        )
        assert checkpoint.load_params(tmp_path, {'other': jnp.zeros(1)}, step=1)[1:] == (
            {'name': 'old'},
            1,
        )


@pytest.mark.parametrize(
    'other, lines',
    [
        (
            dict(width=8),
            [
                'params/embed: expected float32[7,8], found float32[7,6]',
                'params/layers/q/base: expected bfloat16[3,8,5], found bfloat16[3,6,5]',
            ],
        ),
        (dict(rank=3), ['params/layers/q/a: expected float32[3,6,3], found float32[3,6,2]']),
        (dict(block=16), ['params/layers/q.block: expected 16, found 32']),
        (dict(kind=Other), ["params/layers/q.kind: expected 'Other', found 'LowRank'"]),
    ],
)
def test_refuses_another_model(tmp_path, other, lines):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, params=make())
        wanted = jax.eval_shape(lambda: make(**other))
        for restore in (
            lambda: checkpoints.restore(params=wanted),
            lambda: checkpoint.load_params(tmp_path, wanted),
        ):
            with pytest.raises(UserError) as error:
                restore()
            assert f'checkpoint {tmp_path / "5"} is of another model' in str(error.value)
            assert [line for line in lines if line not in str(error.value)] == []
            assert 'missing' not in str(error.value)


def test_refuses_other_leaves_by_name(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, params=make(), train={'step': jnp.int32(1)})
        wanted = make()
        wanted['layers']['bias'] = jnp.zeros(3)
        wanted['layers']['q'] = wanted['layers']['q'].base
        wanted['head'] = jnp.zeros((2, 2))
        with pytest.raises(UserError) as error:
            checkpoints.restore(params=wanted)
        missing, extra = str(error.value).split('only in the checkpoint:')
        missing = missing.split('missing in the checkpoint:')[1]
        assert all(
            name in missing
            for name in ('layers/bias float32[3]', 'head float32[2,2]', 'layers/q bfloat16')
        )
        assert 'layers/q/a float32[3,6,2]' in extra
        with pytest.raises(UserError, match=r'train/step: expected float32\[\], found int32\[\]'):
            checkpoints.restore(train={'step': jnp.float32(1)})
        with pytest.raises(UserError, match='embed: expected bfloat16'):  # a resume never casts
            checkpoints.restore(params=make() | {'embed': jnp.zeros((7, 6), jnp.bfloat16)})


def test_refuses_other_data_and_missing_parts(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, params={'w': jnp.zeros(1)}, meta={'data': 'sha-1'})
        with pytest.raises(UserError, match=r"data: expected 'sha-2', the checkpoint has 'sha-1'"):
            checkpoints.restore(params={'w': jnp.zeros(1)}, expect={'data': 'sha-2'})
        with pytest.raises(UserError, match='no data position'):
            checkpoints.restore(data=Counter())
        with pytest.raises(UserError, match='has no part "train"'):
            checkpoints.restore(train={'w': jnp.zeros(1)})


def test_says_what_is_there_when_there_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match='absent'):
        checkpoint.load_params(tmp_path / 'absent', {})
    with pytest.raises(UserError, match='there is: nothing'):
        checkpoint.load_params(tmp_path, {})
    (tmp_path / 'stages').mkdir()
    with pytest.raises(UserError, match='there is: stages'):
        checkpoint.load_params(tmp_path, {})


def test_a_broken_copy_is_skipped_and_replaced(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, params={'w': jnp.zeros(1)})
    (tmp_path / '2' / 'params').mkdir(parents=True)
    assert checkpoint.load_params(tmp_path, {'w': jnp.zeros(1)})[2] == 1
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        assert checkpoints.save(2, params={'w': jnp.ones(1)})
        assert checkpoints.restore(params={'w': jnp.zeros(1)}).params['w'].tolist() == [1]


def test_static_fields_do_not_depend_on_the_process():
    node = LowRank(jnp.zeros(1), None, None, block=lambda x: x)
    assert checkpoint.static_fields([node]) == {
        '0': {
            'kind': 'LowRank',
            'block': f'<function {test_static_fields_do_not_depend_on_the_process.__name__}'
            '.<locals>.<lambda>>',
        }
    }


KILLED = """
import os, signal, sys
import jax.numpy as jnp
from orbax.checkpoint._src.path import async_path
from reasonjax.training import checkpoint

async def die(source, target):
    if os.path.basename(str(target)) == '2':
        os.kill(os.getpid(), signal.SIGKILL)
    os.rename(source, target)

async_path.rename = die
checkpoints = checkpoint.Checkpoints(sys.argv[1], keep=1)
checkpoints.save(1, params={'w': jnp.full(1000, 1.0)}, meta={'step': 1})
checkpoints.wait()
checkpoints.save(2, params={'w': jnp.full(1000, 2.0)}, meta={'step': 2})
checkpoints.wait()
"""


def test_killed_during_a_save_the_previous_one_is_usable(tmp_path):
    # The kill comes at the worst moment: everything of step 2 is written, the rename has not
    # happened, and keep=1.
    root = pathlib.Path(checkpoint.__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, '-c', KILLED, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONPATH': str(root)},
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(list(tmp_path.iterdir())) == 2, 'step 1 and what is left of step 2'
    assert checkpoint.load_params(tmp_path, {'w': jnp.zeros(1000)})[1:] == ({'step': 1}, 1)
    with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
        restored = checkpoints.restore(params={'w': jnp.zeros(1000)})
        np.testing.assert_array_equal(restored.params['w'], np.full(1000, 1.0, np.float32))
        checkpoints.save(2, params={'w': jnp.full(1000, 2.0)})
        assert checkpoints.steps() == [2]
    assert [path.name for path in tmp_path.iterdir()] == ['2']
