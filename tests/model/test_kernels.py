"""Attention kernels against the formulas in float64; they are compiled for TPUs, and run on a GPU
where there is one."""

import dataclasses
import functools
import importlib.util
import math
import pathlib
import types

import attentions
import devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from absl import flags
from attentions import CONFIG
from jax.sharding import NamedSharding
from toys import changed

from reasonjax.errors import UserError
from reasonjax.model import kernels, kernels_tpu
from reasonjax.model.config import ATTENTION_KERNELS, CHOSEN, from_config
from reasonjax.parallel import layout
from reasonjax.parallel import mesh as meshes
from reasonjax.planning import topology

GLOBAL = dict(window=0, attention_pattern=('global',))


@pytest.fixture
def here(monkeypatch):
    """Kernels as they can be run on a CPU: the libraries' own plain forms, called with the same
    arguments, and Pallas interpreted."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    monkeypatch.setitem(kernels.KERNELS, 'cudnn', attentions.through('cudnn', 'xla'))
    monkeypatch.setitem(kernels.KERNELS, 'flash', attentions.through('flash', 'xla_chunked'))
    interpreted = functools.partial(splash_attention_kernel.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, 'make_splash_mha', interpreted)


CASES = {
    'rows': (lambda c: attentions.rows(c), {}, False),
    'capped rows of a local layer': (
        lambda c: attentions.rows(c),
        dict(attention_softcap=2.0),
        True,
    ),
    'rows of a local layer': (lambda c: attentions.rows(c), {}, True),
    'rows with hidden keys': (lambda c: attentions.rows(c, hide=True), {}, False),
    'bins': (lambda c: attentions.bins(c, packed=False), dict(attention_softcap=2.0), False),
    'bins of a local layer': (lambda c: attentions.bins(c, packed=False), {}, True),
    'packed bins': (lambda c: attentions.bins(c, packed=True), GLOBAL, False),
    'packed bins of a local layer': (lambda c: attentions.bins(c, packed=True), {}, True),
    'packed bins with hidden keys': (
        lambda c: attentions.bins(c, packed=True, hide=True),
        GLOBAL,
        False,
    ),
}
DONE = {
    'xla': (
        'rows',
        'capped rows of a local layer',
        'packed bins of a local layer',
        'packed bins with hidden keys',
    ),
    'cudnn': [
        name for name, (_, changes, _) in CASES.items() if 'attention_softcap' not in changes
    ],
    'flash': CASES,
    'splash': ('rows', 'capped rows of a local layer', 'bins of a local layer', 'packed bins'),
}


@functools.cache
def solved(case):
    make, changes, local = CASES[case]
    config = changed(CONFIG, **changes)
    given = make(config)
    return config, given, local, attentions.answer(config, given, local)


@pytest.fixture
def tokamax():
    """The library, in a process whose command line is not absl's, as tokamax takes it to be."""
    pytest.importorskip('tokamax')
    parsed = flags.FLAGS.is_parsed()
    flags.FLAGS.mark_as_parsed()
    yield
    if not parsed:
        flags.FLAGS.unparse_flags()


@pytest.mark.parametrize(
    'name, case', [(name, case) for name, cases in DONE.items() for case in cases]
)
def test_outputs_and_gradients_are_those_of_the_formulas(name, case, here, request):
    if name == 'flash':
        request.getfixturevalue('tokamax')
    config, given, local, wanted = solved(case)
    config = changed(config, attention_kernel=name)
    attentions.agree(attentions.computed(config, given, local), given, wanted)


def test_layers_of_both_kinds_in_one_loop(here):
    config, given = changed(CONFIG, attention_kernel='cudnn'), attentions.rows(CONFIG)
    for local in (True, False):
        attentions.agree(
            attentions.computed(config, given, jnp.array(local)),
            given,
            attentions.answer(config, given, local),
        )


@pytest.mark.parametrize('name', ['cudnn', 'splash'])
def test_dtype_is_that_of_the_queries(name, here):
    config = changed(CONFIG, attention_kernel=name, attention_softcap=0.0)
    for given in (attentions.rows(config), attentions.bins(config, packed=False)):
        arrays = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in given.arrays[:3]]
        assert (
            jax.eval_shape(
                lambda *qkv, given=given: given.build(config, **given.of_rows)(*qkv, True), *arrays
            )
            == arrays[0]
        )


def test_on_eight_devices():
    devices.on_eight(pathlib.Path(__file__).parent / 'kernels_on_eight.py')


def in_groups(packed):
    """Two prompts with two full completions each, each in a bin, or the two of a prompt in one."""
    rng = np.random.default_rng(0)
    rows = toys.random_batch()
    rows['segments'] = np.ones_like(rows['segments'])
    B, C = rows['segments'].shape
    shown = np.arange(6) >= np.array([[0], [4]])
    prompts = {
        'tokens': rng.integers(1, 13, (2, 6)) * shown,
        'segments': shown * 1,
        'positions': np.maximum(shown.cumsum(1) - 1, 0),
    }
    rows['positions'] = np.arange(C) + np.repeat(shown.sum(1), 2)[:, None]
    rows |= {f'prompt_{name}': x.astype(np.int32) for name, x in prompts.items()}
    places = {
        'packed_from': np.tile(np.arange(2 * C), (2, 1, 1)),
        'packed_at': np.arange(B)[:, None] % 2 * C + np.arange(C),
    }
    return rows | (places if packed else {})


@pytest.mark.parametrize('form', ['rows', 'hidden', 'bins', 'packed'])
def test_a_model_scores_as_with_xla(form, here, monkeypatch):
    used, kernel = set(), kernels.KERNELS['cudnn']

    def seen(name):
        return lambda *given: used.add(name) or getattr(kernel, name)(*given)

    monkeypatch.setitem(
        kernels.KERNELS,
        'cudnn',
        dataclasses.replace(kernel, weigh=seen('weigh'), weigh_bins=seen('weigh_bins')),
    )
    config = toys.changed(layers=1, attention_pattern=('local',), window=4)
    params, batch = (
        toys.params(config),
        toys.random_batch() if form in ('rows', 'hidden') else in_groups(form == 'packed'),
    )
    if form == 'hidden':
        batch['attend'] = np.random.default_rng(1).random(batch['segments'].shape) > 0.3
    value, grads = toys.weighted_score_and_grad(config)(params, batch)
    by_kernel = functools.partial(
        toys.weighted_score, config=changed(config, attention_kernel='cudnn')
    )
    value_of_kernel, grads_of_kernel = jax.jit(
        jax.value_and_grad(lambda params, batch: by_kernel(params, batch=batch))
    )(params, batch)
    assert used == ({'weigh', 'weigh_bins'} if 'prompt_tokens' in batch else {'weigh'})
    np.testing.assert_allclose(value_of_kernel, value, rtol=1e-5)
    toys.assert_trees_close(grads_of_kernel, grads, atol=1e-4)


@pytest.mark.parametrize(
    'length, block',
    [(1, 128), (100, 128), (300, 128), (450, 512), (520, 128), (1000, 512), (700, 256), (512, 512)],
)
def test_blocks_are_large_but_not_mostly_filling(length, block):
    assert kernels_tpu.block_of(length) == block


def test_a_batch_that_splash_cannot_follow_is_refused():
    config = changed(CONFIG, attention_kernel='splash')
    for make in (
        lambda: attentions.rows(config, hide=True),
        lambda: attentions.bins(config, packed=False, hide=True),
        lambda: attentions.bins(config, packed=True),
    ):
        with pytest.raises(UserError) as error:
            given = make()
            given.build(config, **given.of_rows)
        assert 'attention_kernel="splash"' in str(
            error.value
        ) and 'use one of cudnn, flash, xla' in str(error.value)


def test_names():
    assert (
        {'xla', *kernels.KERNELS} == set(ATTENTION_KERNELS)
        and CONFIG.attention_kernel == 'xla'
        and 'attention_kernel' in CHOSEN
    )
    fields = {
        name: getattr(toys.TINY, name)
        for name in ('dim', 'layers', 'heads', 'kv_heads', 'head_dim', 'mlp_dim')
    }
    with pytest.raises(UserError) as error:
        from_config(fields | {'attention_kernel': 'splah'}, vocab_size=21, pad_id=0)
    assert all(
        word in str(error.value)
        for word in ('config.model.attention_kernel="splah"', 'Did you mean "splash"?', 'cudnn')
    )


def device(platform, capability='9.0'):
    return types.SimpleNamespace(platform=platform, compute_capability=capability)


HOPPER, AMPERE, TURING, TPU, CPU = (
    device('gpu'),
    device('gpu', '8.0'),
    device('gpu', '7.5'),
    device('tpu'),
    device('cpu'),
)
WIDE = dict(head_dim=256, compute_dtype='bfloat16')


@pytest.mark.parametrize(
    'where, changes, sizes, words',
    [
        (
            CPU,
            dict(attention_kernel='cudnn'),
            {},
            ['"cudnn": runs on GPUs, not on "cpu"', 'use one of xla.'],
        ),
        (
            TPU,
            dict(attention_kernel='flash'),
            {},
            ['"flash": runs on GPUs, not on "tpu"', 'splash, xla'],
        ),
        (
            HOPPER,
            dict(attention_kernel='splash'),
            {},
            ['"splash": runs on TPUs, not on "gpu"', 'cudnn, flash, xla'],
        ),
        (
            HOPPER,
            dict(attention_kernel='cudnn', compute_dtype='float32'),
            {},
            ['bfloat16, float16', 'compute_dtype="float32"'],
        ),
        (
            HOPPER,
            dict(attention_kernel='cudnn', attention_softcap=3.0),
            {},
            ['cannot cap', 'attention_softcap=3.0', 'flash, xla'],
        ),
        (HOPPER, dict(attention_kernel='cudnn', attention_chunk=64), {}, ['attention_chunk=0']),
        (
            HOPPER,
            dict(attention_kernel='cudnn', head_dim=20),
            {},
            ['head_dim=20', 'multiple of 8', 'nearest: 24'],
        ),
        (
            HOPPER,
            dict(attention_kernel='cudnn', head_dim=300),
            {},
            ['head_dim=300', 'at most 256', 'nearest: 256'],
        ),
        (HOPPER, dict(attention_kernel='cudnn'), dict(sequence=2), ['mesh.sequence=1']),
        (AMPERE, dict(attention_kernel='cudnn', head_dim=256), {}, ['wider than 128', '8.0']),
        (TURING, dict(attention_kernel='cudnn'), {}, ['7.5', 'use "xla"']),
    ],
)
def test_what_a_kernel_cannot_do_is_refused(where, changes, sizes, words):
    with pytest.raises(UserError) as error:
        kernels.check(changed(CONFIG, **(dict(compute_dtype='bfloat16') | changes)), where, sizes)
    assert all(word in str(error.value) for word in words)


def test_flash_asks_for_its_library(monkeypatch):
    config = changed(CONFIG, compute_dtype='bfloat16', attention_kernel='flash')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'pip install reasonjax\[kernels\]'):
        kernels.check(config, HOPPER, {})
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
    kernels.check(config, HOPPER, {})
    with pytest.raises(UserError, match='attention_softcap=3.0'):
        kernels.check(changed(config, attention_softcap=3.0), AMPERE, {})


def test_what_they_can_do_is_not_refused():
    for where, config in (
        (CPU, changed(CONFIG, attention_chunk=5)),
        (HOPPER, changed(CONFIG, attention_kernel='cudnn', **WIDE)),
        (TPU, changed(CONFIG, attention_kernel='splash', attention_softcap=3.0, head_dim=6)),
    ):
        kernels.check(config, where, dict(sequence=2) if where is TPU else {})


@pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='no TPU compiler here (pip install libtpu)'
)
@pytest.mark.parametrize(
    'where, sizes', [('v5e:1x1', {}), ('v5e:2x4', dict(fsdp=2, tensor=2, sequence=2))]
)
def test_compiles_for_tpus(where, sizes):
    """Forward and backward, for one chip and for meshes; 'splash' was not run on one."""
    config = changed(
        CONFIG, attention_kernel='splash', compute_dtype='bfloat16', head_dim=64, **GLOBAL
    )
    chips = topology.devices(topology.parse(where))[: math.prod(sizes.values())]
    mesh = meshes.make_mesh(dict(data=1) | sizes, chips)

    def shapes(*arrays_and_axes):
        for x, dtype, *axes in arrays_and_axes:
            yield jax.ShapeDtypeStruct(
                x,
                dtype,
                sharding=NamedSharding(mesh, layout.partition_spec(tuple(axes), x, mesh.shape)),
            )

    heads, keys = ('batch', 'time', 'heads', None), ('batch', None, 'kv_heads', None)
    queries, of_keys = (4, 2048, 4, 64), (4, 3000, 2, 64)
    given = shapes(
        (queries, jnp.bfloat16, *heads),
        (of_keys, jnp.bfloat16, *keys),
        (of_keys, jnp.bfloat16, *keys),
        ((4, 952), bool, 'batch', None),
        ((4, 2048), jnp.int32, 'batch', 'time'),
    )

    def loss(q, k, v, shown, segments):
        of_rows = kernels.causal(config, segments)(q, k[:, 952:], v[:, 952:], False)
        of_bins = kernels.in_bins(config, shown, segments, None, jnp.zeros(()), packed=True)(
            q, k, v, False
        )
        return jnp.vdot(of_rows, of_bins)

    compiled = jax.jit(layout.on(mesh, jax.grad(loss, (0, 1, 2)))).lower(*given).compile()
    # A call of the kernel for each of three pieces of attention: forward, for queries, for keys.
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 9
    # Of scores, one [B, H, S, T] in float32 would be kept at least.
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 4 * 2048 * 3000 * 4 / math.prod(
        sizes.values()
    )


@pytest.mark.skipif(jax.default_backend() != 'gpu', reason='no GPU here')
@pytest.mark.parametrize('name', ['cudnn', 'flash'])
@pytest.mark.parametrize(
    'case',
    [
        'rows',
        'rows of a local layer',
        'rows with hidden keys',
        'packed bins',
        'packed bins of a local layer',
    ],
)
def test_on_a_gpu(name, case, request):
    if name == 'flash':
        request.getfixturevalue('tokamax')
    config, given, local, _ = solved(case)
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in given.arrays]
    given = given._replace(arrays=tuple(rounded))
    wanted = attentions.answer(config, given, local)
    in_bfloat16 = given._replace(arrays=tuple(jnp.asarray(x, jnp.bfloat16) for x in rounded))
    got = attentions.computed(changed(config, attention_kernel=name), in_bfloat16, local)
    attentions.agree(got, given, wanted, tolerance=0.02)
