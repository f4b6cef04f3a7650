"""Model folders and adapters of strangers: one line that names file and entry, before anything
large is made; nothing outside is read."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
import toys
from safetensors.numpy import load_file, save_file

from reasonjax.errors import UserError
from reasonjax.interop.huggingface import exported, families, pretrained
from reasonjax.interop.peft import read as peft
from reasonjax.interop.peft import write as peft_saving
from reasonjax.interop.peft.put import put_adapter
from reasonjax.methods.adapters import lora
from reasonjax.model import config as model_config
from reasonjax.parallel import mesh as meshes

pytest.importorskip('transformers')

QWEN2, QWEN3_MOE = families.FAMILIES[1], families.FAMILIES[3]
SHAPE = toys.changed(
    qk_norm='none', qkv_bias=True, tied=True, pad_id=-1, head_dim=4, max_positions=64
)
INDEX, WEIGHTS, NORM = 'model.safetensors.index.json', 'model.safetensors', 'model.norm.weight'


def write(path, family, config):
    path.mkdir()
    exported.save_tensors(path, family, config, toys.params(config), dtype='float32')
    exported.transformers_config(family, config).save_pretrained(path)
    return path


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp('folders') / 'model', QWEN2, SHAPE)


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / 'model')


def read(path):
    opened = pretrained.read_folder(path)
    config = model_config.from_config(opened.fields, vocab_size=0, pad_id=-1)
    return pretrained.load(opened, config, meshes.make_mesh({}, jax.devices()[:1]))


def refusal(work, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        work(*arguments)
    message = str(caught.value)
    assert '\n' not in message and len(message) < 1000, message
    return message


def put(file, content):
    file.unlink(missing_ok=True)
    file.write_bytes(
        content
        if isinstance(content, bytes)
        else (content if isinstance(content, str) else json.dumps(content)).encode()
    )


def edit(file, **entries):
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


# Where an index and links lead.


@pytest.mark.parametrize(
    'name',
    [
        '../../x',
        '/etc/passwd',
        '../model/model.safetensors',
        'sub/../../x',
        '..',
        '.',
        '',
        '..\\x',
        'a/../../b',
        'out/x',
        'a\0b',
    ],
)
def test_an_index_stays_in_its_folder(folder, name):
    put(folder.parent / 'x', (folder / WEIGHTS).read_bytes())
    (folder / 'out').symlink_to(folder.parent)
    put(folder / INDEX, {'weight_map': {NORM: name}})
    assert f'{INDEX}: weight_map: {NORM}: {name!r} leads out of the folder' in refusal(read, folder)


@pytest.mark.parametrize('sharded', [False, True])
def test_a_snapshot_of_the_hub_is_links_to_blobs(folder, tmp_path, sharded):
    """As in the cache of huggingface_hub: the files of a snapshot are links that lead out of it."""
    blobs, snapshot = (
        tmp_path / 'models--org--name' / 'blobs',
        tmp_path / 'models--org--name' / 'snapshots' / '0123abcd',
    )
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    if sharded:
        tensors = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        names = dict.fromkeys(tensors, 'model-00001-of-00002.safetensors') | {
            NORM: 'model-00002-of-00002.safetensors'
        }
        for file in set(names.values()):
            save_file(
                {name: tensors[name] for name in tensors if names[name] == file}, folder / file
            )
        put(folder / INDEX, {'weight_map': names})
    for number, file in enumerate(sorted(folder.iterdir())):
        (blobs / f'{number:040x}').write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f'../../blobs/{number:040x}')
    toys.assert_trees_equal(read(snapshot), toys.params(SHAPE))
    # A download that broke off leaves links to what is not there.
    (blobs / f'{0:040x}').unlink()
    assert 'config.json: no such file (it is a link to what is not there)' in refusal(
        read, snapshot
    )


# What index and weights hold.


@pytest.mark.parametrize(
    'index, words',
    [
        ({'weight_map': {NORM: 5}}, f'weight_map: {NORM}: expected the name of a file, found 5'),
        ({'weight_map': {NORM: None}}, 'found null'),
        ({'weight_map': {NORM: [WEIGHTS]}}, 'found ["model.safetensors"]'),
        ({'weight_map': {NORM: 'x' * 5000}}, 'which is not there'),
    ],
)
def test_indices(folder, index, words):
    put(folder / INDEX, index)
    message = refusal(read, folder)
    assert INDEX in message and words in message


@pytest.mark.parametrize('name', ['config.json', INDEX, WEIGHTS, 'shard.safetensors'])
@pytest.mark.parametrize('kind', ['pipe', 'folder', 'device', 'link to nothing', 'link to itself'])
def test_what_is_no_file_does_not_hang(folder, name, kind):
    file = folder / name
    file.unlink(missing_ok=True)
    if kind == 'pipe':
        os.mkfifo(file)
    elif kind == 'folder':
        file.mkdir()
    else:
        file.symlink_to(
            {'device': '/dev/zero', 'link to nothing': 'blob', 'link to itself': file.name}[kind]
        )
    if name == 'shard.safetensors':
        put(folder / INDEX, {'weight_map': {NORM: name}})
    message = refusal(read, folder)
    assert f'{file}: ' in message and (
        'cannot be read (' in message or 'a link to what is not there' in message
    )


def test_a_clone_without_its_large_files(folder, adapter):
    pointer = 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n'
    put(folder / WEIGHTS, pointer)
    put(adapter / TENSORS, pointer)
    for work, file in ((read, folder / WEIGHTS), (load, adapter / TENSORS)):
        assert (
            f'{file} is what Git LFS keeps in place of a file; get the file itself (git lfs pull)'
            in refusal(work, file.parent)
        )


def change_header(file, change):
    """Changes the header of a safetensors file; the tensors stay."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], 'little')
    header = json.loads(content[8 : 8 + size])
    header = change(header) or json.dumps(header)
    file.write_bytes(len(header).to_bytes(8, 'little') + header.encode() + content[8 + size :])


def test_a_name_twice_in_a_header(folder):
    """The library checks one of the two entries; what another reader takes may lie anywhere."""

    def twice(header):
        text = json.dumps(header)
        entry = json.dumps({NORM: header[NORM]})[1:-1]
        return f'{text[:-1]}, {entry}}}'

    change_header(folder / WEIGHTS, twice)
    assert f'{WEIGHTS} is truncated or corrupt (' in refusal(read, folder)


def test_a_tensor_in_two_files(folder):
    shutil.copy(folder / WEIGHTS, folder / 'b.safetensors')
    put(folder / INDEX, {'weight_map': {NORM: WEIGHTS, 'lm_head.weight': 'b.safetensors'}})
    assert 'is in b.safetensors too; which of the two is meant?' in refusal(read, folder)
    (folder / INDEX).unlink()
    (folder / WEIGHTS).rename(folder / 'a.safetensors')
    assert 'is in a.safetensors too' in refusal(read, folder)


def test_names_of_tensors_are_shown_on_a_line_each(folder):
    names = ['\x1b[2J\nnext', 'x' * 100_000, '', 'model.layers.' + '9' * 5000 + '.x']
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {name: np.zeros(1, np.float32) for name in names}, folder / WEIGHTS)
    with pytest.raises(UserError) as caught:
        read(folder)
    lines = str(caught.value).split('\n')
    assert len(lines) == 2 + len(names) and max(map(len, lines)) < 400


# What config.json holds.

SIZES = (
    'hidden_size',
    'num_hidden_layers',
    'num_attention_heads',
    'num_key_value_heads',
    'head_dim',
    'intermediate_size',
    'vocab_size',
    'max_position_embeddings',
)


@pytest.mark.parametrize('name', SIZES)
@pytest.mark.parametrize('value', ['4', 4.0, 0, -1, True, [], {}, 10**15, 2**70, float('nan')])
def test_sizes(folder, name, value):
    edit(folder / 'config.json', **{name: value})
    assert f'{folder}/config.json: {name}: expected an integer from 1 to ' in refusal(read, folder)


@pytest.mark.parametrize(
    'entries, words',
    [
        (
            {'num_hidden_layers': 10**6},
            'num_hidden_layers: expected an integer from 1 to 10000, found 1000000',
        ),
        (
            {'num_hidden_layers': 9999},
            'num_hidden_layers: 9999, but the folder holds the tensors of 2 layers',
        ),
        (
            {'layer_types': ['full_attention'] * 10**6},
            'layer_types: expected a list with an entry for each layer, found a list of 1000000',
        ),
        ({'layer_types': 5}, 'layer_types: expected a list'),
        ({'layer_types': [5, 5]}, 'config.json: '),
        ({'num_labels': 10**12}, 'num_labels: expected an integer from 1 to'),
        ({'vocab_size': 10**12}, 'vocab_size: expected an integer from 1 to'),
        ({'num_attention_heads': 3}, 'config.json: '),
        ({'num_attention_heads': 4, 'num_key_value_heads': 3}, 'must divide heads=4'),
        ({'rms_norm_eps': 'small'}, "rms_norm_eps: expected a number, found 'small'"),
        ({'rms_norm_eps': float('nan')}, 'rms_norm_eps: expected a number, found nan'),
        ({'rms_norm_eps': 0.0}, 'norm_eps=0.0: must be above 0'),
        ({'rms_norm_eps': 10**400}, 'rms_norm_eps: expected a number'),
        ({'rope_parameters': 5}, 'rope_parameters: expected an object, found 5'),
        (
            {'rope_parameters': {'rope_type': 'default', 'rope_theta': 'x'}},
            "rope_parameters.rope_theta: expected a number, found 'x'",
        ),
        (
            {'rope_parameters': {'rope_type': 'yarn', 'factor': [1, 'x']}},
            "rope_parameters.factor: expected a number, found 'x'",
        ),
        (
            {'rope_parameters': {'rope_type': 'linear', 'rope_theta': -1, 'factor': 2}},
            'config.json: ',
        ),
        ({'tie_word_embeddings': 'no'}, 'config.json: '),
        ({'hidden_act': 5}, 'config.json: '),
        ({'hidden_act': []}, 'config.json: '),
        (
            {'architectures': 'Qwen2ForCausalLM'},
            "architectures: expected a list of names, found 'Qwen2ForCausalLM'",
        ),
        ({'architectures': [5]}, 'architectures: expected a list of names'),
        ({'architectures': ['\x1b[2J\n' * 99]}, 'unknown architecture'),
        ({'sliding_window': 'wide'}, 'sliding_window: expected an integer'),
    ],
)
def test_entries(folder, entries, words):
    edit(folder / 'config.json', **entries)
    message = refusal(read, folder)
    assert f'{folder}/config.json: ' in message and words in message


def test_more_experts_and_layers_than_there_are_tensors(tmp_path):
    """Neither a list of millions of names is made, nor a parameter."""
    sizes = dict(head_dim=4, max_positions=64, experts=3, experts_per_token=2, mlp_dim=8)
    shape = toys.changed(qk_norm='head', qkv_bias=False, pad_id=-1, **sizes)
    folder = pretrained.read_folder(write(tmp_path / 'model', QWEN3_MOE, shape))
    huge = toys.changed(shape, layers=400, experts=60_000)
    stored = pretrained.stored_tensors(folder.path)
    message = refusal(pretrained.check_tensors, folder, huge, stored)
    assert (
        'config.model has 72,' in message
        and '(400 layers), the folder' in message
        and '(2 layers)' in message
    )


# Adapters.


@pytest.fixture
def adapter(tmp_path):
    path = tmp_path / 'adapter'
    path.mkdir()
    params = lora(
        toys.params(SHAPE),
        jax.random.key(0),
        r=3,
        lora_alpha=6.0,
        target_modules=('layers/attention/q',),
    )
    peft_saving.save_adapter(
        path, peft_saving.pairs_of(params, QWEN2, SHAPE), base='x', layers=SHAPE.layers
    )
    return path


def load(path):
    return put_adapter(toys.params(SHAPE), peft.read_adapter(path))


SETTINGS, TENSORS = 'adapter_config.json', 'adapter_model.safetensors'


@pytest.mark.parametrize(
    'name, value',
    [
        *(('r', value) for value in (0, -1, '8', 8.0, True, [], {'a': 1}, float('nan'))),
        *(('lora_alpha', value) for value in ('16', float('nan'), float('inf'), [], True, 10**400)),
        *(('target_modules', value) for value in (5, {'a': 1}, [5], [['q_proj']], True)),
        *(('exclude_modules', value) for value in (5, [None])),
        *(
            ('rank_pattern', value)
            for value in ([], 5, 'q_proj', {'q_proj': 0}, {'q_proj': '8'}, {'q_proj': None})
        ),
        *(('alpha_pattern', value) for value in ([], {'q_proj': 'x'}, {'q_proj': float('nan')})),
        ('use_rslora', 'false'),
        ('base_model_name_or_path', 5),
        ('bias', 5),
    ],
)
def test_settings_of_adapters(adapter, name, value):
    edit(adapter / SETTINGS, **{name: value})
    assert f'{adapter}/{SETTINGS}: {name}: ' in refusal(load, adapter)


@pytest.mark.parametrize(
    'entries, words',
    [
        ({'unheard_of': ['x' * 10**6]}, 'not supported'),
        ({'init_lora_weights': ['x' * 10**6]}, 'init_lora_weights='),
        ({'peft_type': ['x' * 10**6]}, 'an adapter of type '),
        ({'bias': 'x' * 10**6}, 'bias=xxx'),
    ],
)
def test_other_settings_of_adapters(adapter, entries, words):
    edit(adapter / SETTINGS, **entries)
    assert words in refusal(load, adapter)


def test_patterns_that_never_end(adapter):
    edit(adapter / SETTINGS, rank_pattern={'(a|aa)+!': 3})
    tensors = {
        PAIR.format(factor).replace('q_proj', 'a' * 60): value
        for factor, value in zip('AB', np.zeros((2, 3, 3), np.float32))
    }
    save_file(load_file(adapter / TENSORS) | tensors, adapter / TENSORS)
    assert (
        f'{adapter}/{SETTINGS}: rank_pattern: "(a|aa)+!" takes more than 1 s to compare'
        in refusal(load, adapter)
    )


@pytest.mark.parametrize(
    'pattern',
    [
        'a{100001}',
        '((a{1000}){1000}){1000}',
        '(a{1,999}){1,999}',
        '(a{,999}){999}',
        'a{' + '9' * 5000 + '}',
    ],
)
@pytest.mark.parametrize('name', ['rank_pattern', 'alpha_pattern'])
def test_patterns_that_would_fill_the_memory(adapter, pattern, name):
    """A pattern is compiled with a copy of what it repeats for every time."""
    edit(adapter / SETTINGS, **{name: {pattern: 3}})
    assert f'{adapter}/{SETTINGS}: {name}: "{pattern[:80]}' in refusal(load, adapter)


def test_patterns_that_count(adapter):
    edit(
        adapter / SETTINGS,
        alpha_pattern={r'layers\.[0-9]{1,3}\.self_attn\.q_proj': 12},
        rank_pattern={r'.{3}_attn\.q_pro[j]{1}': 3},
    )
    assert {pair.scale for pair in peft.read_adapter(adapter).pairs.values()} == {4.0}


@pytest.mark.parametrize('name', [SETTINGS, TENSORS])
def test_files_of_adapters(adapter, name):
    for content in (
        '[' * 100_000,
        '{"r": ' + '9' * 5000 + '}',
        b'\xff',
        '',
        '[]',
        b'\x00' * 7 + b'\x10' + b'{}',
    ):
        put(adapter / name, content)
        assert f'{adapter}/{name}' in refusal(load, adapter)
    (adapter / name).unlink()
    os.mkfifo(adapter / name)
    assert f'{adapter}/{name}: cannot be read (a pipe' in refusal(load, adapter)
    (adapter / name).unlink()
    (adapter / name).mkdir()
    assert f'{adapter}/{name}: cannot be read (Is a directory' in refusal(load, adapter)


PAIR = 'base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight'


@pytest.mark.parametrize(
    'changes, words',
    [
        ({PAIR.format('A'): np.zeros((3, 16), np.int8)}, 'is I8; expected one of'),
        ({PAIR.format('A'): np.zeros((3, 16), bool)}, 'is BOOL; expected one of'),
        (
            {PAIR.format('A').removeprefix('base_model.model.'): np.zeros((3, 16), np.float32)},
            'for the second time',
        ),
        ({'x' * 100_000: np.zeros(1, np.float32)}, 'expected pairs of lora_A and lora_B'),
        ({'\x1b[2J\n': np.zeros(1, np.float32)}, 'expected pairs of lora_A and lora_B'),
    ],
)
def test_tensors_of_adapters(adapter, changes, words):
    save_file(load_file(adapter / TENSORS) | changes, adapter / TENSORS)
    with pytest.raises(UserError) as caught:
        load(adapter)
    message = str(caught.value)
    assert words in message and max(map(len, message.split('\n'))) < 1000
    assert message.count('\n') == (1 if 'does not fit' in message else 0)


def test_layers_of_adapters(adapter):
    number = '9' * 5000
    tensors = load_file(adapter / TENSORS)
    for factor in 'AB':
        tensors[PAIR.format(factor).replace('.0.', f'.{number}.')] = tensors[PAIR.format(factor)]
    save_file(tensors, adapter / TENSORS)
    with pytest.raises(UserError, match='the adapter does not fit this model'):
        load(adapter)


@pytest.mark.parametrize('number', ['00', '01', '\u0660', '-0', '+0', '0_0', ' 0'])
def test_a_layer_by_another_name_is_none(adapter, number):
    """Two modules of one place: one of the two pairs would be lost."""
    tensors = load_file(adapter / TENSORS)
    for factor in 'AB':
        tensors[PAIR.format(factor).replace('.0.', f'.{number}.')] = (
            tensors[PAIR.format(factor)] + 1
        )
    save_file(tensors, adapter / TENSORS)
    with pytest.raises(UserError, match='the adapter does not fit this model(.|\n)*no such module'):
        load(adapter)
