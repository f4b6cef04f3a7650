"""The model's shape: what is taken from the tokenizer, and what is refused."""

import dataclasses

import pytest
import toys

from reasonjax.errors import UserError
from reasonjax.model.config import from_config

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
        ({'layers': 0}, ['config.model.layers=0', 'at least 1']),
        ({'activation': 'gelu_tan'}, ['config.model.activation="gelu_tan"', 'Did you mean "gelu_tanh"?', 'silu']),
        ({'remat': 'dot'}, ['config.model.remat="dot"', 'Did you mean "dots"?']),
        ({'rope_theta': 0.0}, ['config.model.rope_theta=0.0', 'positive']),
        ({'logprob_chunk': -1}, ['config.model.logprob_chunk=-1', '0 or more']),
        ({'compute_dtype': 'bfloat'}, ['config.model.compute_dtype="bfloat"', 'Did you mean "bfloat16"?']),
        ({'head_dims': 8}, ['config.model.head_dims', 'Did you mean "head_dim"?']),
    ],
)
def test_impossible_shapes_are_refused(changes, words):
    with pytest.raises(UserError) as error:
        from_config(FIELDS | {'vocab_size': 0} | changes, vocab_size=21, pad_id=0)
    assert all(word in str(error.value) for word in words)


def test_a_missing_field_is_named():
    with pytest.raises(UserError, match='config.model.mlp_dim: missing'):
        from_config({k: v for k, v in FIELDS.items() if k != 'mlp_dim'}, vocab_size=21, pad_id=0)
