"""Attention kernels against the formulas in float64; they are compiled for TPUs, and run on a GPU
where there is one."""

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
from reasonjax.model import kernels
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

    monkeypatch.setattr(kernels, 'CUDNN', 'xla')
    monkeypatch.setattr(kernels, 'FLASH', 'xla_chunked')
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
    'splash': ('capped rows of a local layer', 'bins'),
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


@pytest.mark.parametrize('name', ['cudnn', 'splash'])
def test_layers_of_both_kinds_in_one_loop(name, here):
    config, given = changed(CONFIG, attention_kernel=name), attentions.rows(CONFIG)
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
        in_bfloat16 = given._replace(arrays=tuple(x.astype(jnp.bfloat16) for x in given.arrays))
        computed = functools.partial(attentions.computed, config, in_bfloat16, True)
        out, *_ = jax.eval_shape(computed)
        assert out == jax.ShapeDtypeStruct(given.arrays[0].shape, jnp.bfloat16)


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
    used = []

    def counted(*given, **how):
        used.append(how.pop('implementation'))
        return attend(*given, **how)

    attend = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, 'dot_product_attention', counted)
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
    # Of rows; and of prompts and of bins.
    assert used == ['xla'] * (2 if 'prompt_tokens' in batch else 1)
    np.testing.assert_allclose(value_of_kernel, value, rtol=1e-5)
    toys.assert_trees_close(grads_of_kernel, grads, atol=1e-4)


@pytest.mark.parametrize(
    'length, block',
    [(1, 128), (100, 128), (300, 128), (450, 512), (520, 128), (1000, 512), (700, 256), (512, 512)],
)
def test_blocks_are_large_but_not_mostly_filling(length, block):
    assert kernels._block(length) == block


def test_a_batch_that_splash_cannot_follow_is_refused():
    config = changed(CONFIG, attention_kernel='splash')
    for given in (
        attentions.rows(config, hide=True),
        attentions.bins(config, packed=False, hide=True),
        attentions.bins(config, packed=True),
    ):
        with pytest.raises(UserError) as error:
            attentions.computed(config, given, False)
        assert 'attention_kernel="splash"' in str(error.value) and given.beyond in str(error.value)


@pytest.mark.parametrize('form', ['hidden', 'packed'])
def test_a_model_whose_batch_splash_cannot_follow_is_refused(form):
    config = toys.changed(layers=1, attention_kernel='splash')
    batch = in_groups(packed=True) if form == 'packed' else toys.random_batch()
    if form == 'hidden':
        batch['attend'] = np.ones(batch['segments'].shape, bool)
    with pytest.raises(UserError, match='attend' if form == 'hidden' else 'packing'):
        toys.weighted_score(toys.params(config), config, batch)


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


GPU, TPU, CPU = (types.SimpleNamespace(platform=platform) for platform in ('gpu', 'tpu', 'cpu'))


@pytest.mark.parametrize(
    'where, changes, sizes, words',
    [
        (CPU, dict(attention_kernel='cudnn'), {}, ['runs on GPUs, not on "cpu"', 'use one of xla']),
        (TPU, dict(attention_kernel='flash'), {}, ['runs on GPUs, not on "tpu"', 'splash, xla']),
        (
            GPU,
            dict(attention_kernel='splash'),
            {},
            ['runs on TPUs, not on "gpu"', 'cudnn, flash, xla'],
        ),
        (
            GPU,
            dict(attention_kernel='cudnn', compute_dtype='float32'),
            {},
            ['bfloat16, float16', 'compute_dtype="float32"'],
        ),
        (
            TPU,
            dict(attention_kernel='splash', compute_dtype='float16'),
            {},
            ['bfloat16, float32', 'compute_dtype="float16"'],
        ),
        (
            GPU,
            dict(attention_kernel='cudnn', attention_softcap=3.0),
            {},
            ['cannot cap', 'attention_softcap=3.0'],
        ),
        (TPU, dict(attention_kernel='splash', attention_chunk=64), {}, ['attention_chunk=0']),
        (GPU, dict(attention_kernel='flash'), dict(sequence=2), ['mesh.sequence=1']),
    ],
)
def test_what_a_kernel_cannot_do_is_refused(where, changes, sizes, words):
    with pytest.raises(UserError) as error:
        kernels.check(changed(CONFIG, **(dict(compute_dtype='bfloat16') | changes)), where, sizes)
    message = str(error.value)
    assert message.startswith(f'config.model.attention_kernel="{changes["attention_kernel"]}": ')
    assert all(word in message for word in words) and '\n' not in message


@pytest.mark.parametrize('kind', [NotImplementedError, ValueError, RuntimeError])
def test_what_a_library_refuses_is_refused_before_a_run(kind, monkeypatch):
    def attend(*given, **how):
        raise kind('the head\nis too wide')

    monkeypatch.setattr(jax.nn, 'dot_product_attention', attend)
    config = changed(CONFIG, attention_kernel='cudnn', compute_dtype='bfloat16')
    with pytest.raises(UserError, match=r'="cudnn": .*the head is too wide.* use "xla"'):
        kernels.check(config, GPU, {})


def test_flash_asks_for_its_library(monkeypatch):
    config = changed(CONFIG, compute_dtype='bfloat16', attention_kernel='flash')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'pip install reasonjax\[kernels\]'):
        kernels.check(config, GPU, {})


def test_every_reason_of_a_library_with_several_kernels_is_told(tokamax):
    config = changed(CONFIG, compute_dtype='bfloat16', attention_kernel='flash')
    with pytest.raises(UserError, match='.+; .+'):
        kernels.check(config, GPU, {})


def test_what_they_can_do_is_not_refused(here):
    for where, changes in (
        (CPU, dict(attention_chunk=5)),
        (GPU, dict(attention_kernel='cudnn', head_dim=256, compute_dtype='bfloat16')),
        (TPU, dict(attention_kernel='splash', attention_softcap=3.0, head_dim=6)),
    ):
        kernels.check(changed(CONFIG, **changes), where, dict(sequence=2) if where is TPU else {})


@pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='no TPU compiler here (pip install libtpu)'
)
@pytest.mark.parametrize(
    'where, sizes', [('v5e:2x2', {}), ('v5e:2x4', dict(fsdp=2, tensor=2, sequence=2))]
)
def test_compiles_for_tpus(where, sizes):
    """Forward and backward, for one chip and for meshes; 'splash' was not run on one."""
    config = changed(CONFIG, attention_kernel='splash', compute_dtype='bfloat16', head_dim=64)
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
        ((4, 2048), jnp.int32, 'batch', 'time'),
        ((4, 3000), jnp.int32, 'batch', None),
    )

    def loss(q, k, v, segments, segments_of_keys):
        of_rows = kernels.weigher(config, None, segments, segments)
        of_bins = kernels.weigher(config, None, segments, segments_of_keys)
        return jnp.vdot(of_rows(q, k[:, 952:], v[:, 952:], True), of_bins(q, k, v, False))

    compiled = jax.jit(layout.on(mesh, jax.grad(loss, (0, 1, 2)))).lower(*given).compile()
    # A call of the kernel for each of two pieces of attention: forward, for queries, for keys.
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 6
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
