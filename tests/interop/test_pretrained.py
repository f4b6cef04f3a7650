"""Hugging Face folders: what is read is what was written, however it is cut up, and what cannot be
read says why."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from safetensors.numpy import load_file, save_file

from reasonjax.errors import UserError
from reasonjax.interop.huggingface import exported, families, pretrained
from reasonjax.model import config as model_config
from reasonjax.parallel import mesh as meshes

pytest.importorskip('transformers')

BASE = toys.changed(qk_norm='none', qkv_bias=False, pad_id=-1, head_dim=4, max_positions=64)
# Shape and family; between them every way a tensor is laid out: transposed, biased, tied, fused, a
# bank of experts.
FOLDERS = {
    'qwen2': (toys.changed(BASE, qkv_bias=True, tied=True), families.FAMILIES[1]),
    'phi3': (toys.changed(BASE, rope_fraction=0.5), families.FAMILIES[-1]),
    'qwen3_moe': (
        toys.changed(BASE, qk_norm='head', experts=3, experts_per_token=2, mlp_dim=8),
        families.FAMILIES[3],
    ),
}
MESH = meshes.make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp('folders')
    for name, (config, family) in FOLDERS.items():
        write(root / name, config, family)
    return root


@pytest.fixture
def folder(written, tmp_path):
    """A copy to spoil: of the Qwen2."""
    return shutil.copytree(written / 'qwen2', tmp_path / 'model')


def write(path, config, family, **options):
    path.mkdir()
    exported.save_tensors(
        path, family, config, toys.params(config), **{'dtype': 'float32'} | options
    )
    exported.transformers_config(family, config).save_pretrained(path)
    return path


def read(path, **fields):
    found = pretrained.read_folder(path)
    config = model_config.from_config(found.fields | fields, vocab_size=0, pad_id=-1)
    return config, pretrained.load(found, config, MESH)


def edit(path, **entries):
    """Changes entries of a JSON file; None removes one."""
    value = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def change_tensors(path, change):
    file = path / 'model.safetensors'
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize('name', FOLDERS)
def test_reads_what_was_written(written, name):
    config, _ = FOLDERS[name]
    # The spread of fresh embeddings is nothing that a folder knows.
    got, params = read(written / name, embed_std=config.embed_std)
    assert got == config
    toys.assert_trees_equal(params, toys.params(config))


@pytest.mark.parametrize('name', FOLDERS)
@pytest.mark.parametrize('chunk', [1, 200])
def test_pieces_make_no_difference(written, monkeypatch, name, chunk):
    monkeypatch.setattr(pretrained, 'CHUNK', chunk)
    seen = []
    found = pretrained.read_folder(written / name)
    params = pretrained.load(
        found, FOLDERS[name][0], MESH, report=lambda done, of: seen.append((done, of))
    )
    toys.assert_trees_equal(params, toys.params(FOLDERS[name][0]))
    total = sum(x.nbytes for x in load_file(written / name / 'model.safetensors').values())
    assert seen[-1] == (total, total) and [done for done, _ in seen] == sorted(
        {done for done, _ in seen}
    )
    # The widest row of a tensor has 24 numbers; less than a row is never read.
    assert np.diff([0, *(done for done, _ in seen)]).max() <= max(chunk, 4 * 24)


def test_shards_make_no_difference(tmp_path):
    config, family = FOLDERS['qwen3_moe']
    path = write(tmp_path / 'model', config, family, shard_bytes=3000)
    files = sorted(p.name for p in path.glob('*.safetensors'))
    assert len(files) > 3 and files[0] == f'model-00001-of-{len(files):05d}.safetensors'
    index = json.loads((path / 'model.safetensors.index.json').read_text())
    assert index['metadata']['total_size'] == sum(
        x.nbytes for f in files for x in load_file(path / f).values()
    )
    assert all(name in load_file(path / file) for name, file in index['weight_map'].items())
    toys.assert_trees_equal(read(path)[1], toys.params(config))
    # What the index does not name is not read.
    save_file({'other': np.zeros(3, np.float32)}, path / 'consolidated.safetensors')
    toys.assert_trees_equal(read(path)[1], toys.params(config))


@pytest.mark.parametrize('stored', ['float16', 'bfloat16', 'float64'])
@pytest.mark.parametrize('kept', ['float32', 'bfloat16'])
def test_dtypes(folder, stored, kept):
    change_tensors(
        folder,
        lambda tensors: tensors.update(
            {k: v.astype(jnp.dtype(stored)) for k, v in tensors.items()}
        ),
    )
    _, params = read(folder, param_dtype=kept)
    rounded = jax.tree.map(
        lambda x: np.asarray(x).astype(jnp.dtype(stored)).astype(jnp.dtype(kept)),
        toys.params(FOLDERS['qwen2'][0]),
    )
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(kept)}
    toys.assert_trees_equal(params, rounded)


@pytest.mark.parametrize('name', ['qwen2', 'phi3'])
def test_a_larger_vocabulary_has_new_rows_at_the_mean(written, name):
    config, _ = FOLDERS[name]
    got, params = read(written / name, vocab_size=config.vocab_size + 5)
    old = toys.params(config)
    assert got.vocab_size == 18 and ('head' in params) == (name == 'phi3')
    grown = {'embed': (params['embed'], old['embed'])} | (
        {'head': (params['head'].T, old['head'].T)} if name == 'phi3' else {}
    )
    for new_rows, old_rows in grown.values():
        np.testing.assert_array_equal(new_rows[:13], old_rows)
        np.testing.assert_allclose(
            new_rows[13:], np.tile(np.asarray(old_rows, np.float64).mean(0), (5, 1)), atol=1e-7
        )
    toys.assert_trees_equal(
        {k: v for k, v in params.items() if k not in grown},
        {k: v for k, v in old.items() if k not in grown},
    )


def test_files_beside_the_models_are_left_alone(folder):
    for name in ('adapter_model', 'consolidated'):
        save_file({'model.norm.weight': np.zeros(3, np.float32)}, folder / f'{name}.safetensors')
    toys.assert_trees_equal(read(folder)[1], toys.params(FOLDERS['qwen2'][0]))
    # A single file may have any name.
    (folder / 'model.safetensors').rename(folder / 'weights.safetensors')
    for name in ('adapter_model', 'consolidated'):
        (folder / f'{name}.safetensors').unlink()
    toys.assert_trees_equal(read(folder)[1], toys.params(FOLDERS['qwen2'][0]))


def test_what_follows_from_the_rest_is_not_missed(folder):
    """A tied model whose folder spells out its head, and buffers that old versions saved."""

    def change(tensors):
        tensors['lm_head.weight'] = tensors['model.embed_tokens.weight'].copy()
        tensors['model.layers.1.self_attn.rotary_emb.inv_freq'] = np.ones(2, np.float32)

    change_tensors(folder, change)
    toys.assert_trees_equal(read(folder)[1], toys.params(FOLDERS['qwen2'][0]))


def refused(path, *words, **fields):
    with pytest.raises(UserError) as error:
        read(path, **fields)
    text = str(error.value)
    assert all(word in text for word in words), text


def test_no_such_folder(folder):
    refused(folder.parent / 'modle', 'no such folder', 'Did you mean "model"?')
    refused(folder / 'config.json', 'no such folder')
    refused(folder.parent / 'no' / 'where', 'no such folder')


@pytest.mark.parametrize(
    'text, words',
    [
        (None, ['no config.json', 'safetensors']),
        ('{"architectures": ', ['config.json', 'not valid JSON']),
        ('["LlamaForCausalLM"]', ['config.json', 'expected a JSON object, found list']),
        (
            '{}',
            [
                'unknown architecture',
                'Known architectures: Gemma2ForCausalLM',
                'SmolLM3ForCausalLM',
            ],
        ),
    ],
)
def test_no_config(folder, text, words):
    (folder / 'config.json').unlink()
    if text:
        (folder / 'config.json').write_text(text)
    refused(folder, *words)


OWN = {'auto_map': {'AutoConfig': 'modeling.Own', 'AutoModelForCausalLM': 'modeling.Own'}}


@pytest.mark.parametrize(
    'entries, words',
    [
        (
            {'architectures': ['Qwen2ForCausalLM2']},
            [
                'unknown architecture "Qwen2ForCausalLM2"',
                'Did you mean "Qwen2ForCausalLM"?',
                'Known',
            ],
        ),
        (
            {'architectures': ['BertForMaskedLM']},
            ['unknown architecture "BertForMaskedLM"', 'Qwen3MoeForCausalLM'],
        ),
        (
            {'architectures': None, 'model_type': 'mamba'},
            ['unknown architecture "mamba"', 'MistralForCausalLM'],
        ),
        (
            OWN | {'architectures': ['OwnForCausalLM'], 'model_type': 'own'},
            ['brings its own code', 'trust_remote_code', 'Known'],
        ),
        (OWN | {'model_type': 'own'}, ['brings its own code', 'trust_remote_code']),
        (OWN | {'architectures': ['OwnForCausalLM']}, ['brings its own code', 'trust_remote_code']),
        (OWN | {'architectures': None}, ['brings its own code', 'trust_remote_code']),
        (
            {'quantization_config': {'quant_method': 'gptq', 'bits': 4}},
            ['quantised weights', 'quantization_config'],
        ),
        ({'hidden_act': 'relu'}, ['activation "relu" is not one of gelu, gelu_pytorch_tanh, silu']),
        (
            {'rope_parameters': {'rope_type': 'llama4', 'rope_theta': 1e4}},
            ['RoPE scaling "llama4" is not one of default, dynamic, linear'],
        ),
        (
            {'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 1e4}},
            ['rope_parameters', 'factor'],
        ),
        (
            {'layer_types': ['chunked_attention', 'full_attention']},
            ['config.json', 'chunked_attention'],
        ),
        ({'num_hidden_layers': 'two'}, ['config.json', 'num_hidden_layers']),
    ],
)
def test_configs_that_are_not_read(folder, entries, words):
    edit(folder / 'config.json', **entries)
    refused(folder, *words)


def test_the_model_type_stands_in_for_a_missing_architecture(folder):
    edit(folder / 'config.json', architectures=None)
    toys.assert_trees_equal(read(folder)[1], toys.params(FOLDERS['qwen2'][0]))


def test_code_that_is_not_needed_is_not_run(folder):
    """As in the folders of Phi-3: an architecture that transformers has, and the code it had
    before."""
    edit(folder / 'config.json', **OWN)
    (folder / 'modeling.py').write_text('raise AssertionError')
    toys.assert_trees_equal(read(folder)[1], toys.params(FOLDERS['qwen2'][0]))


def test_mixtures_in_some_layers_only_are_refused(written, tmp_path):
    path = shutil.copytree(written / 'qwen3_moe', tmp_path / 'model')
    for entries in ({'mlp_only_layers': [0]}, {'decoder_sparse_step': 2}):
        shutil.copy(written / 'qwen3_moe' / 'config.json', path)
        edit(path / 'config.json', **entries)
        refused(path, 'mixtures in some layers only')


def test_only_safetensors_are_read(folder):
    (folder / 'model.safetensors').unlink()
    refused(folder, 'safetensors files only', 'found none')
    (folder / 'pytorch_model.bin').write_bytes(b'\x80\x02.')
    refused(folder, 'safetensors files only', 'pickled weights (pytorch_model.bin)', 'can run code')


@pytest.mark.parametrize(
    'spoil',
    [
        'truncated',
        'header_cut',
        'empty',
        'no_header',
        'longer',
        'not_json',
        'not_text',
        'huge_header',
        'shape_lies',
    ],
)
def test_spoilt_files(folder, spoil):
    file = folder / 'model.safetensors'
    before = file.read_bytes()
    file.write_bytes(
        {
            'truncated': before[:-7],
            'header_cut': before[:100],
            'empty': b'',
            'no_header': before[:4],
            'longer': before + b'more',
            'not_json': before[:8] + b'[' + before[9:],
            'not_text': before[:8] + b'\xff' + before[9:],
            'huge_header': (10**15).to_bytes(8, 'little') + before[8:],
            'shape_lies': before.replace(b'"shape":[13,16]', b'"shape":[31,16]'),
        }[spoil]
    )
    assert file.read_bytes() != before
    refused(folder, file.name, 'is truncated or corrupt', 'download it again')


@pytest.mark.parametrize(
    'index, words',
    [
        (
            {'weight_map': {'a': 'model.safetensors', 'b': 'model-2.safetensors'}},
            [
                'model.safetensors.index.json names model-2.safetensors',
                'was the download complete?',
            ],
        ),
        ({'metadata': {}}, ['model.safetensors.index.json', 'weight_map']),
        ([], ['model.safetensors.index.json', 'expected a JSON object']),
        ('{', ['model.safetensors.index.json', 'not valid JSON']),
    ],
)
def test_spoilt_indices(folder, index, words):
    (folder / 'model.safetensors.index.json').write_text(
        index if isinstance(index, str) else json.dumps(index)
    )
    refused(folder, *words)


def test_names_and_shapes_are_listed(folder):
    def change(tensors):
        tensors['model.layers.0.self_attn.sinks'] = tensors.pop(
            'model.layers.0.self_attn.q_proj.bias'
        )
        tensors['model.norm.weight'] = np.zeros(15, np.float32)
        tensors['model.layers.1.mlp.up_proj.weight'] = tensors[
            'model.layers.1.mlp.up_proj.weight'
        ].T.copy()

    change_tensors(folder, change)
    refused(
        folder,
        'Qwen2ForCausalLM',
        'missing:\n    model.layers.0.self_attn.q_proj.bias\n',
        'not known to this architecture:\n    model.layers.0.self_attn.sinks\n',
        'of another shape:',
        'model.norm.weight: expected [16], found [15]',
        'model.layers.1.mlp.up_proj.weight: expected [24, 16], found [16, 24]',
    )


def test_long_lists_are_cut(folder):
    edit(folder / 'config.json', num_hidden_layers=5, layer_types=None)
    refused(folder, 'missing:', 'model.layers.2.input_layernorm.weight', 'and 24 more')


def test_tensors_that_are_not_floats(folder):
    change_tensors(
        folder, lambda tensors: tensors.update({'model.norm.weight': np.zeros(16, np.int8)})
    )
    refused(folder, 'tensor model.norm.weight is I8', 'BF16, F16, F32, F64')


def test_a_smaller_vocabulary_is_refused(folder):
    refused(folder, 'config.model.vocab_size=12', 'has 13 embedding rows', vocab_size=12)


def test_another_shape_than_the_folders_is_refused(folder):
    refused(
        folder,
        'not those of a Qwen2ForCausalLM of config.model',
        'gate_proj.weight: expected [40, 16], found [24, 16]',
        mlp_dim=40,
    )
