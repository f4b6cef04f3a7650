"""Small models and batches that the tests share, so that they compile the same programs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from reasonjax import reduce
from reasonjax.model import spec
from reasonjax.model.attention import causal
from reasonjax.model.config import ModelConfig
from reasonjax.model.forward import forward, logits
from reasonjax.model.score import score

PAD = 0

TINY = ModelConfig(
    vocab_size=13,
    dim=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=6,
    mlp_dim=24,
    qk_norm='head',
    qkv_bias=True,
    embed_std=0.5,
    pad_id=PAD,
)

# The model of configs/quickstart.py.
QUICKSTART = ModelConfig(
    vocab_size=18,
    dim=96,
    layers=3,
    heads=4,
    kv_heads=4,
    head_dim=24,
    mlp_dim=384,
    activation='gelu',
    gated=False,
    embed_std=0.5,
    pad_id=PAD,
)


def changed(config: ModelConfig = TINY, **fields) -> ModelConfig:
    return dataclasses.replace(config, **fields)


@functools.cache
def params(config: ModelConfig = TINY, seed: int = 0) -> dict:
    """Parameters of the right scale, with noise on norms and biases too, whose constants would hide
    mistakes.

    Drawn in NumPy: compiling the real initialiser takes seconds.
    """
    rng = np.random.default_rng(seed)

    def draw(node):
        std = 0.2 if node.std is None else node.std
        return jnp.asarray(
            node.constant + std * rng.standard_normal(node.shape), config.param_dtype
        )

    return jax.tree.map(draw, spec.specs(config), is_leaf=spec.is_spec)


def batch(
    *documents: list[list[int]], rows: int = 4, length: int = 11, weights: np.ndarray | None = None
) -> dict:
    """A right-padded batch; a row is a list of documents, a document a list of ids. Rows without
    any are padding."""
    shape = (rows, length)
    out = {name: np.zeros(shape, np.int32) for name in ('tokens', 'positions', 'segments')}
    out['tokens'] += PAD
    out['weights'] = np.zeros(shape, np.float32)
    for b, row in enumerate(documents):
        at = 0
        for number, document in enumerate(row, 1):
            span = slice(at, at + len(document))
            out['tokens'][b, span] = document
            out['positions'][b, span] = np.arange(len(document))
            out['segments'][b, span] = number
            out['weights'][b, at + 1 : at + len(document)] = 1
            at += len(document)
    if weights is not None:
        out['weights'] *= np.asarray(weights, np.float32)
    return out


def random_batch(
    rows: int = 4, length: int = 11, seed: int = 0, config: ModelConfig = TINY
) -> dict:
    """Rows of one to three documents, some padding, and uneven weights."""
    rng = np.random.default_rng(seed)
    made = []
    for b in range(rows):
        cuts = sorted(rng.choice(np.arange(2, length - 1), size=b % 3, replace=False))
        sizes = np.diff([0, *cuts, length - b % 2])
        made.append([rng.integers(1, config.vocab_size, size).tolist() for size in sizes])
    return batch(*made, rows=rows, length=length, weights=rng.uniform(0.2, 2, (rows, length)))


def compiled(function):
    """The function as one program, with its results on the host: there, to look at a piece of them
    compiles nothing."""
    program = jax.jit(function)
    return lambda *arguments: jax.device_get(program(*arguments))


@functools.cache
def scorer(config: ModelConfig, temperature: float = 1.0):
    """Compiled `(params, batch) -> Scored`."""
    return compiled(lambda params, batch: score(params, config, batch, temperature=temperature))


@functools.cache
def all_logits(config: ModelConfig):
    """Compiled `(params, batch) -> [B, T, V]`."""

    def run(params, batch):
        attention = causal(config, batch['segments'], batch.get('attend'))
        inputs = batch.get('inputs', batch['tokens'])
        return logits(
            params, config, forward(params, config, inputs, batch['positions'], attention).hidden
        )

    return compiled(run)


def weighted_score(params, config: ModelConfig, batch: dict) -> jax.Array:
    """A scalar whose gradient reaches log-probs and entropies alike."""
    scored = score(params, config, batch)
    return jnp.sum(batch['weights'] * (scored.logprob + 0.3 * scored.entropy))


@functools.cache
def weighted_score_and_grad(config: ModelConfig):
    """Compiled `(params, batch) -> (value, gradient)` of `weighted_score`."""
    return compiled(jax.value_and_grad(lambda params, batch: weighted_score(params, config, batch)))


def nll(score, batch, key):
    """An objective: negative log-likelihood per unit of weight over the step."""
    del key
    scored = score(batch)
    loss = -jnp.sum(batch['weights'] * scored.logprob) / batch['step_weight']
    return loss, {'entropy': reduce.mean(scored.entropy, batch['weights'])}


def assert_trees_close(a, b, atol: float = 1e-5, rtol: float = 0.0) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)):
        np.testing.assert_allclose(x, y, atol=atol, rtol=rtol, err_msg=jax.tree_util.keystr(path))


def assert_trees_equal(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def uneven(prompts: list[str], completions: list[str], **kwargs) -> list[float]:
    """Rewards that differ among what an untrained model says, so that group advantages are not
    zero."""
    return [sum(map(str.isdigit, text)) + 0.1 * len(text) for text in completions]
