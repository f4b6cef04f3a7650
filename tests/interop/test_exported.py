"""Which family holds a model, what it would change, and what its config keeps of the one it came
from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from safetensors.numpy import load_file

from reasonjax.errors import UserError
from reasonjax.interop.huggingface import exported
from reasonjax.interop.huggingface.families import FAMILIES
from reasonjax.methods import adapters
from reasonjax.weights.linear import merge_tree

pytest.importorskip('transformers')

PLAIN = toys.changed(qk_norm='none', qkv_bias=False, pad_id=-1, head_dim=4)
BY_TYPE = {family.model_type: family for family in FAMILIES}


@pytest.mark.parametrize(
    'changes, wanted',
    [
        (dict(), 'llama'),
        (dict(tied=True, rope_scaling=(('factor', 2.0), ('name', 'linear'))), 'llama'),
        (dict(qkv_bias=True, o_bias=True, mlp_bias=True), 'llama'),
        (dict(qkv_bias=True), 'qwen2'),
        (dict(attention_pattern=('global', 'local'), window=4, qkv_bias=True), 'qwen2'),
        (dict(qk_norm='head'), 'qwen3'),
        (dict(qk_norm='head', qkv_bias=True, o_bias=True), 'qwen3'),
        (dict(qk_norm='head', experts=3, normalise_router=False), 'qwen3_moe'),
        (dict(experts=3), 'mixtral'),
        (dict(attention_pattern=('local',), window=4), 'mistral'),
        (dict(attention_pattern=('global', 'global_nope')), 'smollm3'),
        (dict(attention_pattern=('global', 'local_nope'), window=4), 'smollm3'),
        (dict(norms='after', qk_norm='row'), 'olmo2'),
        (dict(rope_fraction=0.5), 'phi3'),
        # Llama's class wants the heads to divide the width, whatever their own width.
        (dict(dim=18), 'mistral'),
        (
            dict(
                norms='around',
                norm_offset=1.0,
                embed_scale=4.0,
                tied=True,
                activation='gelu_tanh',
                attention_softcap=9.0,
                attention_pattern=('local', 'global'),
                window=4,
                query_scale=0.5,
            ),
            'gemma2',
        ),
        (
            dict(
                norms='around',
                norm_offset=1.0,
                embed_scale=4.0,
                tied=True,
                qk_norm='head',
                rope_local_theta=9.0,
                attention_pattern=('local', 'global'),
                window=4,
                query_scale=0.5,
            ),
            'gemma3_text',
        ),
    ],
)
def test_the_family_that_holds_a_model(changes, wanted):
    config = toys.changed(PLAIN, **changes)
    assert exported.family_of(config).model_type == wanted


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(gated=False, activation='gelu'), ['gated=False would become True']),
        (dict(norm_offset=1.0), ['norm_offset=1.0 would become 0.0']),
        (
            dict(attention_pattern=('local', 'global_nope'), window=4, qkv_bias=True),
            ['attention_pattern', 'qkv_bias=True would become False'],
        ),
        (
            dict(rope_scaling=(('factor', 2.0), ('name', 'linear')), experts=2, qkv_bias=True),
            ['experts=2 would become 0'],
        ),
        (dict(logit_softcap=3.0), ['logit_softcap=3.0 would become 0.0']),
    ],
)
def test_a_model_that_none_holds(changes, words):
    with pytest.raises(UserError) as error:
        exported.family_of(toys.changed(PLAIN, **changes))
    text = str(error.value)
    assert 'no Hugging Face architecture can hold this model' in text and all(
        word in text for word in words
    ), text
    assert all(f'{family.architecture} cannot hold this model' in text for family in FAMILIES)


def test_what_a_family_would_change_is_listed():
    with pytest.raises(
        UserError,
        match="LlamaForCausalLM cannot hold this model: .*qk_norm='head' would become 'none'",
    ):
        exported.transformers_config(BY_TYPE['llama'], toys.changed(PLAIN, qk_norm='head'))


def test_what_a_run_chose_is_no_difference():
    run = dict(
        param_dtype='bfloat16',
        compute_dtype='bfloat16',
        scan=True,
        remat='full',
        logprob_chunk=7,
        embed_std=3.0,
        max_positions=99,
    )
    written = exported.transformers_config(BY_TYPE['llama'], toys.changed(PLAIN, pad_id=2, **run))
    assert written.max_position_embeddings == 99 and written.architectures == ['LlamaForCausalLM']
    assert written.bos_token_id is written.eos_token_id is written.pad_token_id is None


def test_further_entries_of_the_config_are_kept():
    like = dict(
        architectures=['Old'],
        model_type='llama',
        vocab_size=99,
        bos_token_id=3,
        eos_token_id=[4, 5],
        initializer_range=0.5,
        rope_scaling={'type': 'linear', 'factor': 9.0},
        rope_theta=123.0,
        torch_dtype='float16',
        transformers_version='4.1',
    )
    written = exported.transformers_config(BY_TYPE['llama'], PLAIN, like).to_dict()
    assert (written['bos_token_id'], written['eos_token_id'], written['initializer_range']) == (
        3,
        [4, 5],
        0.5,
    )
    assert written['rope_parameters'] == {'rope_type': 'default', 'rope_theta': 1e4}
    assert (
        written['vocab_size'] == 13
        and written['architectures'] == ['LlamaForCausalLM']
        and written['dtype'] is None
    )
    assert not {'rope_scaling', 'rope_theta', 'torch_dtype'} & {
        name for name, value in written.items() if value is not None
    }


def test_adapters_are_merged(tmp_path):
    params = adapters.lora(
        toys.params(PLAIN), jax.random.key(0), r=2, target_modules=('layers/attention/*', 'embed')
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: x if np.any(x) else x + 0.1 * rng.standard_normal(x.shape).astype(np.float32),
        params,
    )
    for name, tree in {
        'adapted': params,
        'merged': merge_tree(params),
        'base': toys.params(PLAIN),
    }.items():
        (tmp_path / name).mkdir()
        exported.save_tensors(tmp_path / name, BY_TYPE['llama'], PLAIN, tree, dtype='float32')
    adapted, merged, base = (
        load_file(tmp_path / name / 'model.safetensors') for name in ('adapted', 'merged', 'base')
    )
    assert adapted.keys() == merged.keys() == base.keys()
    for name, x in adapted.items():
        np.testing.assert_allclose(x, merged[name], atol=1e-6)
        assert np.array_equal(x, base[name]) == ('self_attn' not in name and 'embed' not in name), (
            name
        )


@pytest.mark.parametrize('value', [np.nan, np.inf, 1e39])
def test_values_that_a_file_could_not_hold(tmp_path, value):
    params = toys.params(PLAIN)
    params = params | {'norm': params['norm'].at[3].set(value)}
    with pytest.raises(UserError, match='model.norm.weight holds values that are not finite'):
        exported.save_tensors(tmp_path, BY_TYPE['llama'], PLAIN, params, dtype='float16')


def test_rows_are_written_as_they_are_counted(tmp_path):
    """What is reported adds up to the file, and shards hold no more than they may, but for tensors
    that are larger."""
    seen = []
    exported.save_tensors(
        tmp_path,
        BY_TYPE['llama'],
        PLAIN,
        jax.tree.map(jnp.float32, toys.params(PLAIN)),
        dtype='bfloat16',
        shard_bytes=1000,
        report=lambda done, of: seen.append((done, of)),
    )
    sizes = [
        sum(x.nbytes for x in load_file(file).values())
        for file in sorted(tmp_path.glob('*.safetensors'))
    ]
    assert seen[-1] == (sum(sizes), sum(sizes)) and len(sizes) > 3 and max(sizes) <= 1000
    assert all(
        x.dtype == jnp.bfloat16
        for file in tmp_path.glob('*.safetensors')
        for x in load_file(file).values()
    )
