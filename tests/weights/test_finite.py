"""Weights that are not finite numbers: in parameters, in the files they come from, and in the
dtypes they are cast to."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from safetensors.numpy import load_file, save_file

from reasonjax.errors import UserError
from reasonjax.interop.huggingface import exported, families, pretrained
from reasonjax.interop.peft import read, write
from reasonjax.methods.adapters import lora, quantise
from reasonjax.model import config as model_config
from reasonjax.model import spec
from reasonjax.parallel import mesh as meshes
from reasonjax.weights import finite

NAN, INF = np.nan, np.inf
CONFIG = toys.changed(qk_norm='none', qkv_bias=True, pad_id=-1, head_dim=4, max_positions=64)
FAMILY = families.FAMILIES[1]
MESH = meshes.make_mesh({}, jax.devices()[:1])


def test_finite_parameters_pass():
    finite.check(toys.params(CONFIG), 'here', dtype='float16')
    finite.check({}, 'here')
    finite.check({'codes': jnp.arange(3), 'key': jnp.zeros(0)}, 'here')


@pytest.mark.parametrize(
    ('spoil', 'words'),
    [
        (
            lambda p: p | {'embed': p['embed'].at[2, 1].set(NAN)},
            ['here: 1 of ', 'not finite numbers: embed (1 of 208).'],
        ),
        (
            lambda p: p | {'embed': p['embed'].at[2].set(-INF)},
            ['here: 16 of ', 'embed (16 of 208)'],
        ),
        (lambda p: p | {'norm': p['norm'].at[0].set(INF)}, ['here: 1 of ', 'norm (1 of 16)']),
        (lambda p: p | {'scalar': jnp.asarray(NAN)}, ['here: 1 of ', 'scalar (1 of 1)']),
        (
            lambda p: jax.tree.map(lambda x: x * NAN, p),
            ['here: 4,400 of 4,400 parameters', ' and 9 more.'],
        ),
        (
            lambda p: jax.tree.map(lambda x: (x * NAN).astype(jnp.bfloat16), p),
            ['here: 4,400 of 4,400 parameters'],
        ),
    ],
)
def test_tensors_and_elements_are_named(spoil, words):
    params = toys.params(CONFIG)
    assert sum(x.size for x in jax.tree.leaves(params)) == 4400 and 'norm' in params
    with pytest.raises(UserError) as error:
        finite.check(spoil(params), 'here')
    assert all(word in str(error.value) for word in words) and '\n' not in str(error.value), str(
        error.value
    )


def test_parts_of_nodes_are_named():
    params = lora(toys.params(CONFIG), jax.random.key(0), r=2, quantise='int8', quantise_block=4)
    node = params['layers']['attention']['q']
    spoilt = params | {
        'layers': params['layers']
        | {
            'attention': params['layers']['attention']
            | {'q': type(node)(node.base, node.a.at[0, 0].set(NAN), node.b, node.scale)}
        }
    }
    with pytest.raises(UserError, match=r'here: 2 of .*: layers/attention/q/a \(2 of 64\)\.'):
        finite.check(spoilt, 'here')
    finite.check(quantise(toys.params(CONFIG), jax.random.key(0), quantise_block=4), 'here')


def test_what_overflows_in_the_dtype_of_products_is_not_finite():
    params = toys.params(CONFIG) | {'embed': toys.params(CONFIG)['embed'].at[0, 0].set(7e4)}
    finite.check(params, 'here', dtype='bfloat16')
    with pytest.raises(
        UserError,
        match=r'1 of 4,400 parameters are not finite numbers \(in float16, in which .*embed \(1 of 208\)',
    ):
        finite.check(params, 'here', dtype='float16')
    # The largest float32 numbers are beyond bfloat16.
    params = toys.params(CONFIG) | {'embed': toys.params(CONFIG)['embed'].at[0, 0].set(3.4e38)}
    finite.check(params, 'here', dtype='float32')
    with pytest.raises(UserError, match='in bfloat16'):
        finite.check(params, 'here', dtype='bfloat16')


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / 'model'
    path.mkdir()
    exported.save_tensors(path, FAMILY, CONFIG, toys.params(CONFIG), dtype='float32')
    exported.transformers_config(FAMILY, CONFIG).save_pretrained(path)
    return path


def load(path, **fields):
    found = pretrained.read_folder(path)
    config = model_config.from_config(found.fields | fields, vocab_size=0, pad_id=-1)
    return pretrained.load(found, config, MESH)


def change(file, name, value, dtype=None, at=0):
    tensors = load_file(file)
    tensors[name] = tensors[name].astype(dtype or tensors[name].dtype)
    tensors[name].reshape(-1)[at] = value
    save_file(tensors, file, metadata={'format': 'pt'})


Q, EMBED, NORM = (
    'model.layers.1.self_attn.q_proj.weight',
    'model.embed_tokens.weight',
    'model.norm.weight',
)
HALF = dict(param_dtype='float16', compute_dtype='float16')


@pytest.mark.parametrize(
    ('name', 'value', 'dtype', 'fields', 'words'),
    [
        (Q, NAN, None, {}, f'{Q} in model.safetensors (1 of 256 elements are nan or infinite)'),
        (Q, -INF, None, {}, f'{Q} in model.safetensors (1 of 256 elements are nan or infinite)'),
        (
            EMBED,
            NAN,
            np.float16,
            {},
            f'{EMBED} in model.safetensors (1 of 208 elements are nan or infinite)',
        ),
        (
            NORM,
            INF,
            jnp.bfloat16,
            {},
            f'{NORM} in model.safetensors (1 of 16 elements are nan or infinite)',
        ),
        (
            Q,
            7e4,
            None,
            HALF,
            f'{Q} (1 of 256 elements are beyond config.model.param_dtype=float16)',
        ),
        (
            Q,
            7e4,
            None,
            dict(compute_dtype='float16'),
            f'{Q} (1 of 256 elements are beyond config.model.compute_dtype=float16)',
        ),
        (
            EMBED,
            3.4e38,
            None,
            dict(param_dtype='bfloat16'),
            f'{EMBED} (1 of 208 elements are beyond config.model.param_dtype=bfloat16)',
        ),
        (
            EMBED,
            1e300,
            np.float64,
            {},
            f'{EMBED} (1 of 208 elements are beyond config.model.param_dtype=float32)',
        ),
    ],
)
@pytest.mark.filterwarnings('ignore:overflow encountered in cast')
def test_tensors_of_a_folder_are_named(folder, name, value, dtype, fields, words):
    change(folder / 'model.safetensors', name, value, dtype)
    with pytest.raises(UserError) as error:
        load(folder, **fields)
    assert str(error.value) == f'{folder}: weights that are not finite numbers: {words}.'


def test_large_weights_that_fit_are_read(folder):
    change(folder / 'model.safetensors', Q, 6e4)
    load(folder, **HALF)
    change(folder / 'model.safetensors', Q, 7e4)
    load(folder, param_dtype='bfloat16', compute_dtype='bfloat16')


@pytest.mark.parametrize(
    ('entries', 'words'),
    [
        (dict(rms_norm_eps=NAN), 'rms_norm_eps: expected a number, found nan'),
        (dict(rms_norm_eps=-1.0), 'norm_eps=-1.0: must be above 0'),
        (
            dict(rope_parameters=dict(rope_type='default', rope_theta=NAN)),
            'rope_theta: expected a number, found nan',
        ),
        (
            dict(rope_parameters=dict(rope_type='linear', rope_theta=1e4, factor=INF)),
            'factor: expected a number, found inf',
        ),
        (
            dict(
                rope_parameters=dict(
                    rope_type='yarn',
                    rope_theta=1e4,
                    factor=2.0,
                    original_max_position_embeddings=8,
                    beta_fast=NAN,
                )
            ),
            'beta_fast: expected a number, found nan',
        ),
    ],
)
def test_numbers_of_a_config_are_named_with_their_file(folder, entries, words):
    file = folder / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    with pytest.raises(UserError) as error:
        load(folder)
    assert str(error.value).startswith(f'{file}: ') and words in str(error.value), str(error.value)


ORIGINAL = dict(original_max_position_embeddings=8)


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        (
            dict(rope_theta=1.0, rope_scaling=dict(name='yarn', factor=2.0, **ORIGINAL)),
            'global rotary table of base 1 and',
        ),
        (
            dict(head_dim=2, rope_scaling=dict(name='dynamic', factor=2.0, **ORIGINAL)),
            'cannot be worked out',
        ),
        (
            dict(
                rope_scaling=dict(
                    name='longrope',
                    short_factor=(1.0,) * 3,
                    long_factor=(1.0,) * 3,
                    factor=2.0,
                    original_max_position_embeddings=1,
                )
            ),
            'cannot be worked out',
        ),
        (
            dict(
                rope_scaling=dict(
                    name='llama3', factor=8.0, low_freq_factor=4.0, high_freq_factor=1.0
                )
            ),
            'low_freq_factor of at most',
        ),
        (
            dict(
                rope_scaling=dict(
                    name='yarn', factor=8.0, beta_fast=1.0, beta_slow=32.0, **ORIGINAL
                )
            ),
            'beta_slow of at most beta_fast',
        ),
        (
            dict(rope_scaling=dict(name='own_rope.broken', value=NAN)),
            '1 of 3 frequencies (first: dimension 1) are not finite',
        ),
        (
            dict(rope_scaling=dict(name='own_rope.broken', value=-1.0)),
            '1 of 3 frequencies (first: dimension 1) are not finite',
        ),
        (
            dict(rope_scaling=dict(name='own_rope.broken', value=1e39)),
            '1 of 3 frequencies (first: dimension 1) are not finite',
        ),
        (dict(rope_scaling=dict(name='own_rope.broken', factor=NAN)), 'has the factor nan'),
        (dict(rope_scaling=dict(name='own_rope.broken', factor=0.0)), 'has the factor 0'),
    ],
)
def test_rotary_tables_are_finite_or_refused_by_name(fields, words, tmp_path, monkeypatch):
    (tmp_path / 'own_rope.py').write_text(
        'def broken(theta, width, *, value=1.0, factor=1.0):\n    return [1.0, value, 0.1], '
        'factor\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = {
        f: getattr(toys.TINY, f)
        for f in ('dim', 'layers', 'heads', 'kv_heads', 'head_dim', 'mlp_dim')
    }
    with pytest.raises(UserError) as error:
        model_config.from_config(given | fields, vocab_size=13, pad_id=0)
    assert (
        words in str(error.value)
        and 'config.model.rope' in str(error.value)
        and '\n' not in str(error.value)
    ), str(error.value)


@pytest.fixture
def adapter(tmp_path):
    path = tmp_path / 'adapter'
    path.mkdir()
    params = lora(toys.params(CONFIG), jax.random.key(0), r=2)
    params = jax.tree.map(lambda x: x + 0.5 * (x == 0), params)
    pairs = write.pairs_of(params, FAMILY, CONFIG)
    write.save_adapter(path, pairs, base='x', layers=CONFIG.layers)
    return path


@pytest.mark.parametrize('factor', ['A', 'B'])
@pytest.mark.parametrize(('value', 'dtype'), [(NAN, None), (INF, np.float16), (1e300, np.float64)])
@pytest.mark.filterwarnings('ignore:overflow encountered in cast')
def test_tensors_of_an_adapter_are_named(adapter, factor, value, dtype):
    file = adapter / 'adapter_model.safetensors'
    change(
        file, f'base_model.model.model.layers.1.self_attn.v_proj.lora_{factor}.weight', value, dtype
    )
    with pytest.raises(UserError) as error:
        read.read_adapter(adapter)
    wanted = f'{file}: elements that are not finite numbers: model.layers.1.self_attn.v_proj.lora_{factor} (1 of '
    assert str(error.value).startswith(wanted)


@pytest.mark.parametrize('alpha', [NAN, INF, 'two', True, 1e39])
def test_an_adapters_alpha_is_a_number(adapter, alpha):
    file = adapter / 'adapter_config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | {'lora_alpha': alpha}))
    with pytest.raises(
        UserError,
        match='adapter_config.json: lora_alpha(: expected a number, found |=1e[+]39 of .*: must be '
        ')',
    ):
        read.read_adapter(adapter)


def test_what_overflows_in_the_dtype_of_an_export_is_named(tmp_path):
    params = lora(toys.params(CONFIG), jax.random.key(0), r=2)
    params = jax.tree.map(lambda x: x + 0.5 * (x == 0), params)
    node = params['layers']['attention']['o']
    large = type(node)(node.base, node.a, node.b.at[1, 0, 0].set(7e4), node.scale)
    params = params | {
        'layers': params['layers'] | {'attention': params['layers']['attention'] | {'o': large}}
    }
    pairs = write.pairs_of(params, FAMILY, CONFIG)
    with pytest.raises(
        UserError,
        match=r'layers\.1\.self_attn\.o_proj\.lora_B\.weight: values that are not finite numbers in float16',
    ):
        write.save_adapter(tmp_path, pairs, base='x', layers=2, dtype='float16')
    write.save_adapter(tmp_path, pairs, base='x', layers=2, dtype='bfloat16')


def test_fresh_parameters_of_every_dtype_are_finite():
    for dtype in model_config.DTYPES:
        params = spec.initialise(spec.specs(CONFIG), jax.random.key(0), dtype)
        finite.check(params, 'here', dtype=dtype)
