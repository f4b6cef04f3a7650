"""Configs of published models, as their folders spell them: read to a shape with the published
number of parameters, and written back."""

import json

import pytest

from reasonjax.interop.huggingface import exported, pretrained
from reasonjax.model import config as model_config
from reasonjax.model import spec

pytest.importorskip('transformers')


def shape(
    vocab_size,
    hidden_size,
    intermediate_size,
    layers,
    heads,
    kv_heads,
    eps=1e-5,
    positions=4096,
    **more,
):
    return (
        dict(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            rms_norm_eps=eps,
            max_position_embeddings=positions,
        )
        | more
    )


LLAMA3 = dict(
    rope_type='llama3',
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
QWEN2 = dict(rope_theta=1e6, sliding_window=32768, use_sliding_window=False)
AUTO = dict(
    auto_map={
        'AutoConfig': 'configuration_phi3.Phi3Config',
        'AutoModelForCausalLM': 'modeling_phi3.Phi3ForCausalLM',
    }
)
LONG = dict(
    type='longrope', short_factor=[1.0] * 24 + [1.05] * 24, long_factor=[1.0] * 10 + [3.0] * 38
)
# Architecture, entries of config.json, parameters, and fields of ours.
PUBLISHED = {
    'Llama-2-7b': (
        'LlamaForCausalLM',
        shape(
            32000,
            4096,
            11008,
            32,
            32,
            32,
            hidden_act='silu',
            rope_scaling=None,
            tie_word_embeddings=False,
        ),
        6_738_415_616,
        dict(kv_heads=32, rope_theta=1e4, head_dim=128, tied=False),
    ),
    'Llama-3.1-8B': (
        'LlamaForCausalLM',
        shape(
            128256,
            4096,
            14336,
            32,
            32,
            8,
            positions=131072,
            rope_theta=5e5,
            rope_scaling=LLAMA3 | {'factor': 8.0},
        ),
        8_030_261_248,
        dict(rope_theta=5e5, max_positions=131072, attention_pattern=('global',), norm_eps=1e-5),
    ),
    'Llama-3.2-1B': (
        'LlamaForCausalLM',
        shape(
            128256,
            2048,
            8192,
            16,
            32,
            8,
            head_dim=64,
            tie_word_embeddings=True,
            rope_theta=5e5,
            rope_scaling=LLAMA3 | {'factor': 32.0},
        ),
        1_235_814_400,
        dict(tied=True, head_dim=64),
    ),
    'Mistral-7B-v0.1': (
        'MistralForCausalLM',
        shape(32000, 4096, 14336, 32, 32, 8, positions=32768, sliding_window=4096),
        7_241_732_096,
        dict(window=4096, attention_pattern=('local',), qkv_bias=False),
    ),
    'Mixtral-8x7B': (
        'MixtralForCausalLM',
        shape(
            32000,
            4096,
            14336,
            32,
            32,
            8,
            positions=32768,
            rope_theta=1e6,
            sliding_window=None,
            num_local_experts=8,
            num_experts_per_tok=2,
        ),
        46_702_792_704,
        dict(experts=8, experts_per_token=2, window=0, normalise_router=True),
    ),
    'Qwen2.5-0.5B': (
        'Qwen2ForCausalLM',
        shape(
            151936,
            896,
            4864,
            24,
            14,
            2,
            1e-6,
            32768,
            max_window_layers=24,
            tie_word_embeddings=True,
            **QWEN2,
        ),
        494_032_768,
        dict(qkv_bias=True, o_bias=False, tied=True, head_dim=64, window=0, rope_theta=1e6),
    ),
    'Qwen2.5-7B-long': (
        'Qwen2ForCausalLM',
        shape(
            152064,
            3584,
            18944,
            28,
            28,
            4,
            1e-6,
            32768,
            rope_scaling=dict(type='yarn', factor=4.0, original_max_position_embeddings=32768),
            **QWEN2,
        ),
        7_615_616_512,
        dict(head_dim=128),
    ),
    'Qwen3-0.6B': (
        'Qwen3ForCausalLM',
        shape(
            151936,
            1024,
            3072,
            28,
            16,
            8,
            1e-6,
            40960,
            head_dim=128,
            tie_word_embeddings=True,
            rope_theta=1e6,
            attention_bias=False,
            use_sliding_window=False,
            sliding_window=None,
            max_window_layers=28,
        ),
        596_049_920,
        dict(qk_norm='head', head_dim=128, qkv_bias=False),
    ),
    'Qwen3-30B-A3B': (
        'Qwen3MoeForCausalLM',
        shape(
            151936,
            2048,
            6144,
            48,
            32,
            4,
            1e-6,
            40960,
            head_dim=128,
            moe_intermediate_size=768,
            num_experts=128,
            num_experts_per_tok=8,
            norm_topk_prob=True,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            rope_theta=1e6,
        ),
        30_532_122_624,
        dict(experts=128, experts_per_token=8, mlp_dim=768, normalise_router=True, qk_norm='head'),
    ),
    'gemma-2-2b': (
        'Gemma2ForCausalLM',
        shape(
            256000,
            2304,
            9216,
            26,
            8,
            4,
            1e-6,
            8192,
            head_dim=256,
            hidden_act='gelu_pytorch_tanh',
            sliding_window=4096,
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
            query_pre_attn_scalar=256,
        ),
        2_614_341_888,
        dict(
            attention_pattern=('local', 'global'),
            window=4096,
            attention_softcap=50.0,
            logit_softcap=30.0,
            query_scale=1 / 16,
            embed_scale=48.0,
            norm_offset=1.0,
            norms='around',
            activation='gelu_tanh',
            tied=True,
        ),
    ),
    'gemma-3-1b': (
        'Gemma3ForCausalLM',
        shape(
            262144,
            1152,
            6912,
            26,
            4,
            1,
            1e-6,
            32768,
            head_dim=256,
            hidden_activation='gelu_pytorch_tanh',
            sliding_window=512,
            sliding_window_pattern=6,
            rope_theta=1e6,
            rope_local_base_freq=1e4,
            query_pre_attn_scalar=256,
            rope_scaling=None,
            model_type='gemma3_text',
        ),
        999_885_952,
        dict(
            kinds=('local', 'local', 'local', 'local', 'local', 'global') * 4 + ('local', 'local'),
            window=512,
            rope_theta=1e6,
            rope_local_theta=1e4,
            attention_softcap=0.0,
            qk_norm='head',
        ),
    ),
    'OLMo-2-1B': (
        'Olmo2ForCausalLM',
        shape(100352, 2048, 8192, 16, 16, 16, 1e-6, rope_theta=5e5),
        1_484_916_736,
        dict(norms='after', qk_norm='row', tied=False),
    ),
    'Phi-3-mini-128k': (
        'Phi3ForCausalLM',
        shape(
            32064,
            3072,
            8192,
            32,
            32,
            32,
            positions=131072,
            original_max_position_embeddings=4096,
            sliding_window=262144,
            rope_scaling=LONG,
            **AUTO,
        ),
        3_821_079_552,
        dict(window=262144, rope_fraction=1.0),
    ),
    'Phi-4-mini': (
        'Phi3ForCausalLM',
        shape(
            200064,
            3072,
            8192,
            32,
            24,
            8,
            positions=131072,
            original_max_position_embeddings=4096,
            partial_rotary_factor=0.75,
            tie_word_embeddings=True,
            sliding_window=None,
            rope_scaling=LONG,
            **AUTO,
        ),
        3_836_021_760,
        dict(rope_fraction=0.75, tied=True, rotated=96),
    ),
    'SmolLM3-3B': (
        'SmolLM3ForCausalLM',
        shape(
            128256,
            2048,
            11008,
            36,
            16,
            4,
            1e-6,
            65536,
            rope_theta=5e6,
            no_rope_layer_interval=4,
            no_rope_layers=[1, 1, 1, 0] * 9,
            use_sliding_window=False,
            sliding_window=None,
        ),
        3_075_098_624,
        dict(
            attention_pattern=('global', 'global', 'global', 'global_nope'),
            tied=True,
            window=0,
            rope_theta=5e6,
        ),
    ),
}
SCALINGS = {
    'Llama-2-7b': dict(name='none'),
    'Llama-3.1-8B': dict(
        name='llama3',
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    'Qwen2.5-7B-long': dict(
        name='yarn',
        factor=4.0,
        original_max_position_embeddings=32768,
        attention_factor=None,
        truncate=True,
    ),
    'Phi-3-mini-128k': dict(
        name='longrope', factor=32.0, original_max_position_embeddings=4096, length=0
    ),
}


@pytest.fixture(params=PUBLISHED)
def read(request, tmp_path):
    architecture, entries, number, fields = PUBLISHED[request.param]
    kind = entries.get(
        'model_type', architecture.removesuffix('ForCausalLM').lower().replace('moe', '_moe')
    )
    (tmp_path / 'config.json').write_text(
        json.dumps({'architectures': [architecture], 'model_type': kind} | entries)
    )
    folder = pretrained.read_folder(tmp_path)
    return (
        request.param,
        folder,
        model_config.from_config(folder.fields, vocab_size=0, pad_id=-1),
        number,
        fields,
    )


def test_read(read):
    name, _, config, number, fields = read
    assert spec.count(spec.specs(config)) == number
    assert {field: getattr(config, field) for field in fields} == fields
    wanted = SCALINGS.get(name, {})
    assert dict(config.rope_scaling) | wanted == dict(config.rope_scaling)


def test_written_and_read_again(read, tmp_path):
    _, folder, config, _, _ = read
    for like in (folder.config, None):
        exported.transformers_config(folder.family, config, like).save_pretrained(
            tmp_path / 'written'
        )
        again = pretrained.read_folder(tmp_path / 'written')
        assert model_config.from_config(again.fields, vocab_size=0, pad_id=-1) == config
        assert again.family == folder.family and 'auto_map' not in again.config


def test_names_are_unique_and_complete(read):
    """Every parameter of ours is in exactly one tensor of the folder."""
    _, folder, config, number, _ = read
    wanted = pretrained.wanted_tensors(folder.family, config)
    sizes = {
        name: tensor.shape[0] * (tensor.shape[1] if len(tensor.shape) > 1 else 1)
        for name, (tensor, _) in wanted.items()
    }
    assert sum(sizes.values()) == number
