"""LoRA folders against PEFT itself, both ways, over random torch models."""

import copy
import dataclasses
import functools
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import toys
import transformers
from safetensors.numpy import load_file, save_file

from reasonjax.errors import UserError
from reasonjax.interop.huggingface import pretrained
from reasonjax.interop.peft.put import put_adapter
from reasonjax.interop.peft.read import read_adapter
from reasonjax.interop.peft.write import pairs_of, save_adapter
from reasonjax.methods.adapters import lora
from reasonjax.model.config import ModelConfig, frozen
from reasonjax.parallel.mesh import make_mesh
from reasonjax.weights.linear import LowRank, merge_tree
from reasonjax.weights.partition import path_name

SIZES = dict(
    vocab_size=29,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    max_position_embeddings=64,
    pad_token_id=0,
    tie_word_embeddings=False,
)
KINDS = {
    'llama': ('LlamaForCausalLM', 'LlamaConfig', {}),
    'tied': ('LlamaForCausalLM', 'LlamaConfig', dict(tie_word_embeddings=True)),
    'qwen3': ('Qwen3ForCausalLM', 'Qwen3Config', {}),
    'gemma2': ('Gemma2ForCausalLM', 'Gemma2Config', dict(query_pre_attn_scalar=4)),
    'phi3': ('Phi3ForCausalLM', 'Phi3Config', {}),
    'mixtral': (
        'MixtralForCausalLM',
        'MixtralConfig',
        dict(num_local_experts=2, num_experts_per_tok=1),
    ),
}
ATTENTION = ('layers/attention/*',)
EVERYTHING = ('layers/*', 'head', 'embed')
TOKENS = np.random.default_rng(0).integers(1, 29, (2, 11))


@functools.cache
def base(kind: str):
    """(torch model, its shape here, its parameters here)."""
    torch.manual_seed(0)
    model_class, config_class, fields = KINDS[kind]
    model = getattr(transformers, model_class)(
        getattr(transformers, config_class)(**SIZES | fields)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    with tempfile.TemporaryDirectory() as path:
        model.save_pretrained(path)
        folder = pretrained.read_folder(path)
        config = ModelConfig(
            **folder.fields | {'rope_scaling': frozen(folder.fields['rope_scaling']), 'scan': True}
        )
        return model, config, pretrained.load(folder, config, make_mesh({}))


def ours(params, config):
    batch = {
        'tokens': TOKENS,
        'segments': np.ones_like(TOKENS),
        'positions': np.tile(np.arange(TOKENS.shape[1]), (2, 1)),
    }
    return np.asarray(toys.all_logits(config)(params, batch))


def theirs(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def shaken(params, seed=0):
    """Random B, so that an adapter does something."""
    rng = np.random.default_rng(seed)

    def move(path, x):
        return (
            jnp.asarray(0.2 * rng.standard_normal(x.shape), x.dtype)
            if path_name(path).endswith('/b')
            else x
        )

    return jax.tree_util.tree_map_with_path(move, params)


def adapted(kind, targets=ATTENTION, seed=0, **knobs):
    return shaken(
        lora(
            base(kind)[2],
            jax.random.key(seed),
            **dict(r=3, lora_alpha=6.0) | knobs,
            target_modules=targets,
        ),
        seed,
    )


def written(path: pathlib.Path, params, kind: str, **options) -> dict:
    _, config, _ = base(kind)
    path.mkdir(exist_ok=True)
    family = next(f for f in pretrained.FAMILIES if f.architecture == KINDS[kind][0])
    save_adapter(path, pairs_of(params, family, config), base=kind, layers=config.layers, **options)
    return json.loads((path / 'adapter_config.json').read_text())


def in_peft(path, kind):
    """PEFT's model, which must find every tensor it looks for and look for every tensor there
    is."""
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base(kind)[0]), str(path))
    found = {
        name.replace('.default', '') for name, _ in model.named_parameters() if 'lora_' in name
    }
    assert found == set(load_file(path / 'adapter_model.safetensors'))
    return model.eval()


@pytest.mark.parametrize(
    'kind, targets, knobs',
    [
        ('llama', EVERYTHING, {}),
        ('llama', ('head',), dict(r=5, lora_alpha=2.5)),
        ('tied', ('layers/*',), {}),
        ('qwen3', ('layers/*',), dict(use_rslora=True, lora_alpha=7.0)),
        ('gemma2', EVERYTHING, {}),
        ('phi3', ('layers/*',), {}),
        ('phi3', ('layers/attention/q', 'layers/attention/v', 'layers/mlp/up'), {}),
        ('mixtral', ('layers/attention/*',), {}),
    ],
)
def test_peft_computes_what_we_do_and_merges_to_what_we_merge_to(tmp_path, kind, targets, knobs):
    model, config, params = base(kind)
    targets = [name for name in targets if kind != 'tied' or name != 'head']
    tree = adapted(kind, targets, **knobs)
    settings = written(tmp_path / 'adapter', tree, kind)
    loaded = in_peft(tmp_path / 'adapter', kind)
    wanted = ours(tree, config)
    assert np.abs(wanted - ours(params, config)).max() > 0.05
    np.testing.assert_allclose(theirs(loaded), wanted, atol=1e-5)
    assert settings['use_rslora'] == knobs.get('use_rslora', False)
    if not settings['alpha_pattern']:
        assert (settings['r'], settings['lora_alpha']) == (
            knobs.get('r', 3),
            knobs.get('lora_alpha', 6.0),
        )
    merged = loaded.merge_and_unload()
    np.testing.assert_allclose(ours(merge_tree(tree), config), theirs(merged), atol=1e-5)
    # Read back here, the folder is the tree that was written, bit for bit (fused parts share a
    # wider A).
    again = put_adapter(params, read_adapter(tmp_path / 'adapter'))
    np.testing.assert_allclose(ours(again, config), wanted, atol=1e-5)
    if kind != 'phi3':
        toys.assert_trees_equal(again, tree)


@pytest.mark.parametrize(
    'kind, settings',
    [
        (
            'llama',
            dict(
                r=4,
                lora_alpha=8,
                target_modules=['q_proj', 'v_proj', 'down_proj', 'lm_head', 'embed_tokens'],
            ),
        ),
        (
            'llama',
            dict(
                r=4, lora_alpha=3, target_modules=['k_proj', 'up_proj'], layers_to_transform=[2, 0]
            ),
        ),
        ('tied', dict(r=2, lora_alpha=5, target_modules='all-linear')),
        ('qwen3', dict(r=5, lora_alpha=9, use_rslora=True, target_modules=['q_proj', 'o_proj'])),
        (
            'gemma2',
            dict(
                r=2,
                lora_alpha=8,
                target_modules=['q_proj', 'gate_proj', 'o_proj'],
                rank_pattern={'layers.1.mlp.gate_proj': 4, 'q_proj': 1},
                alpha_pattern={'layers.1': 5, r'^model\.layers\.[02]\..*proj': 3},
            ),
        ),
        ('phi3', dict(r=4, lora_alpha=8, target_modules=['qkv_proj', 'gate_up_proj', 'o_proj'])),
    ],
)
def test_we_compute_what_peft_does_and_write_back_what_it_wrote(tmp_path, kind, settings):
    torch.manual_seed(1)
    model, config, params = base(kind)
    wrapped = peft.get_peft_model(
        copy.deepcopy(model),
        peft.LoraConfig(**settings, task_type='CAUSAL_LM', init_lora_weights=False),
    )
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if 'lora_' in name:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    wrapped.save_pretrained(tmp_path / 'theirs')
    tree = put_adapter(params, read_adapter(tmp_path / 'theirs'))
    wanted = theirs(wrapped.eval())
    assert np.abs(wanted - theirs(model)).max() > 0.05
    np.testing.assert_allclose(ours(tree, config), wanted, atol=1e-5)
    written(tmp_path / 'ours', tree, kind)
    before, after = (
        load_file(tmp_path / name / 'adapter_model.safetensors') for name in ('theirs', 'ours')
    )
    before = {name: value for name, value in before.items() if 'base_layer' not in name}
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)
    np.testing.assert_allclose(theirs(in_peft(tmp_path / 'ours', kind)), wanted, atol=1e-6)
    merged = theirs(wrapped.merge_and_unload())
    np.testing.assert_allclose(ours(merge_tree(tree), config), merged, atol=1e-5)


def test_layers_and_ranks_that_are_not_there_are_zeros_that_no_gradient_reaches(tmp_path):
    _, config, params = base('llama')
    tree = adapted('llama', ('layers/attention/q',))
    node = tree['layers']['attention']['q']
    pairs = pairs_of(tree, pretrained.FAMILIES[0], config)
    del pairs['model.layers.1.self_attn.q_proj']
    pairs['model.layers.2.self_attn.q_proj'] = pairs['model.layers.2.self_attn.q_proj']._replace(
        a=node.a[2].T[:1], b=node.b[2].T[:, :1], scale=0.5
    )
    save_adapter(tmp_path, pairs, base='', layers=config.layers)
    read = put_adapter(params, read_adapter(tmp_path))
    got = read['layers']['attention']['q']
    assert (
        np.all(got.a[1] == 0)
        and np.all(got.b[1] == 0)
        and np.all(got.a[2, :, 1:] == 0)
        and np.all(got.b[2, 1:] == 0)
    )
    np.testing.assert_array_equal(got.scale, [2.0, 0.0, 0.5])
    batch = toys.batch([[1, 2, 3, 4]], rows=1, length=4)
    grads = toys.weighted_score_and_grad(config)(read, batch)[1]['layers']['attention']['q']
    assert (
        np.all(grads.a[1] == 0)
        and np.all(grads.b[1] == 0)
        and np.all(grads.a[2, :, 1:] == 0)
        and np.all(grads.b[2, 1:] == 0)
    )
    assert np.abs(grads.a[0]).max() > 0 and np.abs(grads.b[2, 0]).max() > 0
    # What is not adapted is the base's own array.
    assert read['layers']['attention']['k'] is params['layers']['attention']['k']


def test_pairs_over_pairs_become_one_of_their_summed_rank(tmp_path):
    _, config, _ = base('llama')
    tree = adapted('llama', ('layers/attention/q', 'head'))
    tree = shaken(
        lora(tree, jax.random.key(3), r=2, lora_alpha=5.0, target_modules=('layers/attention/q',))
    )
    settings = written(tmp_path, tree, 'llama')
    assert settings['r'] == 5 and settings['rank_pattern'] == {'lm_head': 3}
    np.testing.assert_allclose(theirs(in_peft(tmp_path, 'llama')), ours(tree, config), atol=1e-5)


def test_fused_parts_that_share_a_are_written_with_it_once(tmp_path):
    tree = adapted('phi3', ('layers/attention/q', 'layers/attention/k'))
    nodes = tree['layers']['attention']
    nodes['k'] = LowRank(nodes['k'].base, nodes['q'].a, nodes['k'].b, nodes['k'].scale)
    settings = written(tmp_path, tree, 'phi3')
    content = load_file(tmp_path / 'adapter_model.safetensors')
    assert settings['r'] == 3 and settings['target_modules'] == ['qkv_proj']
    b = content['base_model.model.model.layers.0.self_attn.qkv_proj.lora_B.weight']
    assert b.shape == (32, 3) and np.all(b[24:] == 0) and np.all(b[:24] != 0)
    np.testing.assert_allclose(
        theirs(in_peft(tmp_path, 'phi3')), ours(tree, base('phi3')[1]), atol=1e-5
    )
    # With another scale they have to be two.
    nodes['k'] = LowRank(nodes['k'].base, nodes['q'].a, nodes['k'].b, nodes['k'].scale * 3)
    assert written(tmp_path, tree, 'phi3')['r'] == 6
    np.testing.assert_allclose(
        theirs(in_peft(tmp_path, 'phi3')), ours(tree, base('phi3')[1]), atol=1e-5
    )


def test_tokens_that_only_training_has_are_zeros_here_and_left_out_there(tmp_path):
    _, config, params = base('llama')
    written(tmp_path, adapted('llama', ('head', 'embed')), 'llama')
    grown = dict(
        params,
        embed=jnp.pad(params['embed'], ((0, 2), (0, 0))),
        head=jnp.pad(params['head'], ((0, 0), (0, 2))),
    )
    tree = put_adapter(grown, read_adapter(tmp_path))
    assert (
        tree['embed'].a.shape == (31, 3)
        and np.all(tree['embed'].a[29:] == 0)
        and np.all(tree['head'].b[:, 29:] == 0)
    )
    toys.assert_trees_equal(
        put_adapter(params, read_adapter(tmp_path))['embed'].a, tree['embed'].a[:29]
    )
    before = load_file(tmp_path / 'adapter_model.safetensors')
    written(tmp_path, tree, 'llama')
    after = load_file(tmp_path / 'adapter_model.safetensors')
    assert before.keys() == after.keys() and all(
        np.array_equal(before[name], after[name]) for name in before
    )


def test_dtypes(tmp_path):
    _, config, params = base('llama')
    written(tmp_path, adapted('llama', ATTENTION), 'llama', dtype='bfloat16')
    assert {str(x.dtype) for x in load_file(tmp_path / 'adapter_model.safetensors').values()} == {
        'bfloat16'
    }
    # Unless asked for, that of the pairs, which is PEFT's own whatever the base is.
    written(
        tmp_path / 'own',
        shaken(
            lora(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), jax.random.key(0), r=2)
        ),
        'llama',
    )
    assert {
        str(x.dtype) for x in load_file(tmp_path / 'own' / 'adapter_model.safetensors').values()
    } == {'float32'}
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    node = put_adapter(half, read_adapter(tmp_path))['layers']['attention']['q']
    assert (
        node.a.dtype == node.b.dtype == node.scale.dtype == jnp.float32
        and node.base.dtype == jnp.bfloat16
    )
    shapes = jax.eval_shape(lambda p: put_adapter(p, read_adapter(tmp_path)), half)
    assert jax.tree.structure(shapes['layers']['attention']['q']) == jax.tree.structure(node)


SETTINGS = [
    (dict(peft_type='IA3'), 'type IA3; only LORA'),
    (dict(use_dora=True), 'use_dora=True'),
    (dict(lora_bias=True), 'lora_bias=True'),
    (dict(modules_to_save=['lm_head']), r"modules_to_save=\['lm_head'\]"),
    (dict(bias='all'), 'bias=all'),
    (dict(init_lora_weights='pissa'), 'init_lora_weights=pissa'),
    (dict(trainable_token_indices=[3]), 'trainable_token_indices'),
    (dict(something_new=1), 'something_new=1'),
    (dict(r=7), r'factors \[3, 16\] and \[16, 3\] are not of rank r=7'),
    (dict(rank_pattern={'(': 3}), 'rank_pattern: "\\(" is not a regular expression'),
]


@pytest.mark.parametrize('change, message', SETTINGS)
def test_what_a_pair_cannot_express_is_refused_by_name(tmp_path, change, message):
    settings = written(tmp_path, adapted('llama', ('layers/attention/q',)), 'llama')
    (tmp_path / 'adapter_config.json').write_text(json.dumps(settings | change))
    with pytest.raises(UserError, match=message):
        read_adapter(tmp_path)


def test_broken_folders(tmp_path):
    settings = written(tmp_path / 'adapter', adapted('llama', ('layers/attention/q',)), 'llama')
    with pytest.raises(UserError, match='no PEFT adapter there.*Did you mean "adapter"'):
        read_adapter(tmp_path / 'adaptor')
    weights = tmp_path / 'adapter' / 'adapter_model.safetensors'
    content = load_file(weights)
    name = 'base_model.model.model.layers.0.self_attn.q_proj.lora_'
    magnitude = {f'{name}magnitude_vector': np.ones(16, np.float32)}
    save_file(content | magnitude, weights)
    with pytest.raises(
        UserError,
        match='found base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector',
    ):
        read_adapter(tmp_path / 'adapter')
    save_file({k: v for k, v in content.items() if k != f'{name}B.weight'}, weights)
    with pytest.raises(UserError, match='layers.0.self_attn.q_proj without its other factor'):
        read_adapter(tmp_path / 'adapter')
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(UserError, match=r'adapter_model\.safetensors'):
        read_adapter(tmp_path / 'adapter')
    weights.rename(tmp_path / 'adapter' / 'adapter_model.bin')
    with pytest.raises(UserError, match='found adapter_model.bin, which is pickled'):
        read_adapter(tmp_path / 'adapter')
    (tmp_path / 'adapter' / 'adapter_config.json').write_text(json.dumps(settings)[:-5])
    with pytest.raises(UserError, match=r'adapter_config\.json'):
        read_adapter(tmp_path / 'adapter')


def test_an_adapter_of_another_base_is_refused_with_all_that_does_not_fit(tmp_path):
    _, config, params = base('llama')
    written(
        tmp_path / 'adapter',
        adapted('llama', ('layers/attention/q', 'layers/mlp/up', 'head')),
        'llama',
    )
    adapter = read_adapter(tmp_path / 'adapter')
    wide = dict(
        params,
        layers=dict(params['layers'], mlp=dict(params['layers']['mlp'], up=jnp.zeros((2, 16, 30)))),
    )
    wide = jax.tree_util.tree_map_with_path(
        lambda path, x: x[:2] if path_name(path).startswith('layers/') else x, wide
    )
    with pytest.raises(UserError) as error:
        put_adapter(wide, adapter)
    text = str(error.value)
    assert (
        'It was made for "llama"' in text
        and 'model.layers.2.self_attn.q_proj: there are 2 layers' in text
    )
    assert (
        'model.layers.0.mlp.up_proj: expected [30, 16], found [24, 16]' in text
        and 'layers.0.self_attn' not in text
    )
    with pytest.raises(UserError, match='lm_head: the head of this model is its embedding'):
        put_adapter(base('tied')[2], adapter)
    elsewhere = {name.replace('layers.', 'blocks.'): pair for name, pair in adapter.pairs.items()}
    with pytest.raises(UserError, match='model.blocks.0.self_attn.q_proj: no such module'):
        put_adapter(params, adapter._replace(pairs=elsewhere))
    expert = {'model.layers.0.mlp.experts.1.up_proj': adapter.pairs['lm_head']}
    with pytest.raises(UserError, match=r'experts\.1\.up_proj'):
        put_adapter(base('mixtral')[2], adapter._replace(pairs=expert))
    norm = {'model.layers.0.input_layernorm': adapter.pairs['lm_head']}
    with pytest.raises(UserError, match='input_layernorm'):
        put_adapter(params, adapter._replace(pairs=norm))


def test_embeddings_that_an_adapter_brings_along_must_be_the_bases(tmp_path):
    model, _, params = base('llama')
    settings = dict(r=2, target_modules=['embed_tokens', 'lm_head'], init_lora_weights=False)
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**settings))
    wrapped.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    assert adapter.copies.keys() == {'model.embed_tokens', 'lm_head'}
    put_adapter(params, adapter)
    for module in adapter.copies:
        trained = adapter.copies | {module: adapter.copies[module] + 1e-3}
        with pytest.raises(
            UserError, match=f'{module}.base_layer.weight is not the weight of this model'
        ):
            put_adapter(params, adapter._replace(copies=trained))


def test_what_peft_cannot_express_is_not_written(tmp_path):
    with pytest.raises(UserError, match='no low-rank weights'):
        written(tmp_path, base('llama')[2], 'llama')
    with pytest.raises(UserError, match='embedding.*--merge'):
        written(tmp_path, adapted('tied', ('embed',)), 'tied')
    with pytest.raises(UserError, match='router.*--merge'):
        written(tmp_path, adapted('mixtral', ('layers/mlp/router',)), 'mixtral')
    tree = adapted('llama', ('layers/attention/q',))
    node = tree['layers']['attention']['q']
    for nothing in (
        dataclasses.replace(node, scale=0 * node.scale),
        dataclasses.replace(node, a=0 * node.a, b=0 * node.b),
    ):
        tree['layers']['attention']['q'] = nothing
        with pytest.raises(UserError, match='all zero'):
            written(tmp_path, tree, 'llama')
