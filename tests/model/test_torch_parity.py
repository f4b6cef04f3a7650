"""The forward pass against transformers' torch models: random weights, copied by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from reasonjax.model.config import ModelConfig

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

SHAPE = dict(vocab_size=29, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40)
OURS = dict(vocab_size=29, dim=32, layers=2, heads=4, kv_heads=2, mlp_dim=40, pad_id=-1)

# Ours, transformers' config, and whether the family has qk-norm and qkv biases. Qwen3's heads are wider than its residual stream.
FAMILIES = {
    'qwen3': (
        ModelConfig(**OURS, head_dim=12, qk_norm=True, norm_eps=1e-6, rope_theta=1e6),
        lambda: transformers.Qwen3Config(**SHAPE, head_dim=12, rms_norm_eps=1e-6, **rope(1e6), tie_word_embeddings=False),
    ),
    'qwen3_tied': (
        ModelConfig(**OURS, head_dim=12, qk_norm=True, norm_eps=1e-6, rope_theta=1e6, tied=True),
        lambda: transformers.Qwen3Config(**SHAPE, head_dim=12, rms_norm_eps=1e-6, **rope(1e6), tie_word_embeddings=True),
    ),
    'qwen2': (
        ModelConfig(**OURS, head_dim=8, qkv_bias=True, norm_eps=1e-5, rope_theta=1e4, tied=True, scan=True),
        lambda: transformers.Qwen2Config(**SHAPE, rms_norm_eps=1e-5, **rope(1e4), tie_word_embeddings=True),
    ),
    'llama': (
        ModelConfig(**OURS, head_dim=8, norm_eps=1e-5, rope_theta=5e5),
        lambda: transformers.LlamaConfig(**SHAPE, rms_norm_eps=1e-5, **rope(5e5), tie_word_embeddings=False),
    ),
}


def rope(theta):
    return {'rope_parameters': {'rope_type': 'default', 'rope_theta': theta}, 'attn_implementation': 'eager'}


@functools.cache
def torch_model(family):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family][1]()).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(0, 0.2)
            if 'norm' in name:
                weight.add_(1)
    return model


def ours(config, named):
    """Our tree from transformers' names; `named` maps a name to an array (a weight, or its gradient)."""
    def stack(name, transpose=True):
        layers = [np.asarray(named[f'model.layers.{i}.{name}']) for i in range(config.layers)]
        return jnp.stack([x.T if transpose else x for x in layers])

    attention = {name: stack(f'self_attn.{name}_proj.weight') for name in 'qkvo'}
    attention['norm'] = stack('input_layernorm.weight')
    if config.qk_norm:
        attention |= {f'{name}_norm': stack(f'self_attn.{name}_norm.weight') for name in 'qk'}
    if config.qkv_bias:
        attention |= {f'{name}_bias': stack(f'self_attn.{name}_proj.bias') for name in 'qkv'}
    mlp = {name: stack(f'mlp.{name}_proj.weight') for name in ('gate', 'up', 'down')}
    mlp['norm'] = stack('post_attention_layernorm.weight')
    tree = {
        'embed': jnp.asarray(named['model.embed_tokens.weight']),
        'layers': {'attention': attention, 'mlp': mlp},
        'norm': jnp.asarray(named['model.norm.weight']),
    }
    if not config.tied:
        tree['head'] = jnp.asarray(named['lm_head.weight']).T
    return tree


def padded_batch():
    """Rows padded on the left and on the right."""
    rng = np.random.default_rng(0)
    batch = toys.batch(*([rng.integers(0, 29, n).tolist()] for n in (11, 6, 8, 3)))
    for row, left in ((1, 5), (2, 2)):
        for name in batch:
            batch[name][row] = np.roll(batch[name][row], left)
    return batch


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_and_gradients_equal_torch(family):
    config, model = FAMILIES[family][0], torch_model(family)
    batch = padded_batch()
    params = ours(config, {name: weight.detach().numpy() for name, weight in model.named_parameters()})
    torch_batch = {name: torch.from_numpy(np.asarray(batch[name], np.int64)) for name in ('tokens', 'positions', 'segments')}
    model.zero_grad()
    theirs = model(
        input_ids=torch_batch['tokens'], attention_mask=torch_batch['segments'], position_ids=torch_batch['positions']
    ).logits
    real = batch['segments'] > 0
    (value, got), grads = run(config)(params, batch)
    got = np.asarray(got)
    np.testing.assert_allclose(got[real], theirs.detach().numpy()[real], atol=1e-5)
    assert np.abs(got[real]).max() > 1

    logprob = torch.log_softmax(theirs, -1)[:, :-1].gather(-1, torch_batch['tokens'][:, 1:, None])[..., 0]
    counted = torch.from_numpy(batch['weights'][:, 1:])
    loss = -(logprob * counted).sum() / counted.sum()
    loss.backward()
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    wanted = ours(config, {name: weight.grad.numpy() for name, weight in model.named_parameters()})
    assert jax.tree.structure(wanted) == jax.tree.structure(grads)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(grads)):
        assert np.abs(a).max() > 1e-4
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max(), err_msg=jax.tree_util.keystr(path))


def run(config):
    """Compiled `(params, batch) -> ((mean NLL, logits), gradient)`."""

    def loss(params, batch):
        scored = toys.score(params, config, batch)
        return -jnp.sum(batch['weights'] * scored.logprob) / jnp.sum(batch['weights']), toys.all_logits(config)(params, batch)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))
