"""The model's shape: what is taken from the tokenizer, and what is refused."""

import dataclasses
import json

import pytest
import toys

from reasonjax.errors import UserError
from reasonjax.model.config import from_config, to_dict

FIELDS = {k: v for k, v in dataclasses.asdict(toys.TINY).items() if k != 'pad_id'}


def test_vocabulary_zero_takes_the_tokenizers():
    made = from_config(FIELDS | {'vocab_size': 0}, vocab_size=21, pad_id=3)
    assert (made.vocab_size, made.pad_id, made.dim) == (21, 3, 16)
    assert from_config(FIELDS | {'vocab_size': 64}, vocab_size=21, pad_id=3).vocab_size == 64


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'vocab_size': 20}, ['config.model.vocab_size=20', '21']),
        ({'kv_heads': 3}, ['config.model.kv_heads=3', 'heads=4', 'nearest: 2']),
        ({'head_dim': 5}, ['config.model.head_dim=5', 'even']),
        ({'layers': 0}, ['config.model.layers=0', 'from 1 to 131072; nearest: 1']),
        (
            {'activation': 'gelu_tan'},
            ['config.model.activation="gelu_tan"', 'Did you mean "gelu_tanh"?', 'silu'],
        ),
        ({'remat': 'dot'}, ['config.model.remat="dot"', 'Did you mean "dots"?']),
        (
            {'remat': 'save:attend'},
            ['config.model.remat="save:attend": no result "attend"', 'Did you mean "attended"?'],
        ),
        (
            {'remat': 'safe:q'},
            ['config.model.remat="safe:q"', 'Did you mean "save"?', 'offload:NAME,...'],
        ),
        ({'remat': 'save'}, ['config.model.remat="save"', 'save:NAME,...']),
        ({'attention_chunk': -1}, ['config.model.attention_chunk=-1', 'at least 0']),
        ({'rope_theta': 0.0}, ['config.model.rope_theta=0.0', 'above 0']),
        ({'logprob_chunk': -1}, ['config.model.logprob_chunk=-1', 'at least 0']),
        (
            {'compute_dtype': 'bfloat'},
            ['config.model.compute_dtype="bfloat"', 'Did you mean "bfloat16"?'],
        ),
        ({'head_dims': 8}, ['config.model.head_dims', 'Did you mean "head_dim"?']),
        ({'norms': 'befor'}, ['config.model.norms="befor"', 'Did you mean "before"?']),
        ({'qk_norm': 'heads'}, ['config.model.qk_norm="heads"', 'Did you mean "head"?']),
        ({'qk_norm': True}, ['config.model.qk_norm=True', 'one of head, none, row']),
        (
            {'attention_pattern': ('global', 'locale')},
            ["attention_pattern=('global', 'locale'): entry 1", 'Did you mean "local"?'],
        ),
        ({'attention_pattern': ()}, ['config.model.attention_pattern', 'names no kind']),
        ({'attention_pattern': ('global', 'local')}, ['config.model.window=0', 'local layers']),
        ({'attention_pattern': ('local_nope',)}, ['config.model.window=0', 'local layers']),
        ({'window': -1}, ['config.model.window=-1', 'at least 0']),
        ({'experts': 4, 'experts_per_token': 5}, ['config.model.experts_per_token=5', '4 experts']),
        (
            {'experts': 4, 'experts_per_token': 0},
            ['config.model.experts_per_token=0', 'at least 1'],
        ),
        ({'experts': 4, 'mlp_bias': True}, ['config.model.experts', 'without bias']),
        ({'experts': 4, 'gated': False}, ['config.model.experts', 'gated']),
        ({'experts': -1}, ['config.model.experts=-1', 'at least 0']),
        (
            {'router_balance_weight': -0.1},
            ['config.model.router_balance_weight=-0.1', 'at least 0'],
        ),
        ({'router_z_weight': -0.1}, ['config.model.router_z_weight=-0.1', 'at least 0']),
        ({'rope_fraction': 0.5}, ['config.model.head_dim=6, rope_fraction=0.5', 'even']),
        ({'rope_fraction': 0.1}, ['rope_fraction=0.1', 'even']),
        ({'rope_fraction': 0.0}, ['rope_fraction=0.0', 'above 0 and at most 1']),
        ({'rope_fraction': 1.5}, ['rope_fraction=1.5', 'at most 1; nearest: 1']),
        ({'attention_softcap': -1.0}, ['config.model.attention_softcap=-1.0', '0 or from 0.001']),
        ({'embed_scale': 3e38}, ['config.model.embed_scale=3e+38', 'above 0 and at most 1000000']),
        ({'query_scale': 1e38}, ['config.model.query_scale=1e+38', 'from 0 to 1000000']),
        (
            {'logit_softcap': 1e-37},
            ['config.model.logit_softcap=1e-37', '0 or from 0.001 to 1000000'],
        ),
        ({'dim': 16.0}, ['config.model.dim=16.0', 'a whole number, at least 1; nearest: 16']),
        ({'heads': True}, ['config.model.heads=True', 'a whole number']),
        ({'tied': 1}, ['config.model.tied=1', 'True or False']),
        ({'mlp_dim': 2**31}, ['config.model.mlp_dim=2147483648', 'what 32 bits hold']),
        ({'norm_offset': float('nan')}, ['config.model.norm_offset=nan', 'must be a number']),
        ({'embed_scale': 0.0}, ['config.model.embed_scale=0.0', 'above 0']),
        ({'norm_eps': 0.0}, ['config.model.norm_eps=0.0', 'above 0']),
        (
            {'rope_scaling': {'name': 'yarm', 'factor': 2.0}},
            ['rope_scaling', 'Did you mean "yarn"?'],
        ),
        (
            {'rope_scaling': {'name': 'linear', 'factors': 2.0}},
            ['rope_scaling', 'factors', 'Did you mean "factor"?'],
        ),
        ({'rope_scaling': {'name': 'linear'}}, ['rope_scaling', 'factor']),
        (
            {
                'rope_scaling': {
                    'name': 'longrope',
                    'short_factor': [1.0],
                    'long_factor': [1.0],
                    'original_max_position_embeddings': 8,
                }
            },
            ['config.model.rope_scaling', '1 divisors', 'need 3'],
        ),
    ],
)
def test_impossible_shapes_are_refused(changes, words):
    with pytest.raises(UserError) as error:
        from_config(FIELDS | {'vocab_size': 0} | changes, vocab_size=21, pad_id=0)
    assert all(word in str(error.value) for word in words)


def test_layers_are_told_apart():
    fields = dict(
        layers=5,
        attention_pattern=['local', 'global_nope', 'local_nope'],
        window=4,
        rope_local_theta=9.0,
    )
    made = from_config(FIELDS | fields, vocab_size=13, pad_id=0)
    assert made.kinds == ('local', 'global_nope', 'local_nope', 'local', 'global_nope')
    assert made.local == (True, False, True, True, False) and made.rope_of_layer == (
        'local',
        'nope',
        'nope',
        'local',
        'nope',
    )
    assert made.rope_tables == ('local', 'nope') and hash(made) == hash(
        from_config(FIELDS | fields, vocab_size=13, pad_id=0)
    )


@pytest.mark.parametrize(
    'scaling',
    [
        {'name': 'none'},
        {
            'name': 'longrope',
            'short_factor': [1.0, 2.0, 3.0],
            'long_factor': [4.0, 5.0, 6.0],
            'original_max_position_embeddings': 8,
        },
    ],
)
def test_a_dictionary_reads_back(scaling):
    """Also through JSON, where tuples are lists."""
    made = from_config(
        FIELDS | {'rope_scaling': scaling, 'attention_pattern': ['local'], 'window': 3},
        vocab_size=13,
        pad_id=0,
    )
    for back in (to_dict(made), json.loads(json.dumps(to_dict(made)))):
        assert from_config(back, vocab_size=13, pad_id=0) == made


def test_a_missing_field_is_named():
    with pytest.raises(UserError, match='config.model.mlp_dim: missing'):
        from_config({k: v for k, v in FIELDS.items() if k != 'mlp_dim'}, vocab_size=21, pad_id=0)
