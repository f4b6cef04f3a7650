"""Shared prompts and packed completions against the same sequences in rows of their own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from reasonjax.errors import UserError
from reasonjax.methods import adapters
from reasonjax.methods.objectives import clipped_policy_gradient
from reasonjax.model import groups
from reasonjax.model.score import score
from reasonjax.sampling.sampler import Rollout
from reasonjax.training import step
from reasonjax.training.batching import BatchLayout, Packer, assemble

P, G, C, TP = 4, 4, 9, 5
PADDED = BatchLayout(share_prompts=False)
FORMS = {
    'shared': BatchLayout(),
    'copies': BatchLayout(copies=2),
    'packed': BatchLayout(packing=True),
    'packed apart': BatchLayout(packing=True, shards=2),
    'packed by copies': BatchLayout(packing=True, copies=2, shards=8),
}
ONE = toys.changed(layers=1)
LOSSES = (
    dict(loss_type='grpo', beta=0.1),
    dict(loss_type='dapo', epsilon_high=0.3),
    dict(loss_type='dr_grpo'),
    dict(loss_type='grpo', importance_sampling_level='sequence'),
)


@functools.cache
def drawn():
    """Prompts of different lengths; completions of 1 to C tokens, half of them cut."""
    rng = np.random.default_rng(0)
    segments = (np.arange(TP) >= np.array([[0], [3], [1], [4]])).astype(np.int32)
    prompts = {
        'tokens': rng.integers(1, 13, (P, TP)) * segments,
        'segments': segments,
        'positions': np.maximum(segments.cumsum(1) - 1, 0),
    }
    length = np.array([[1, 2, 9, 3], [1, 1, 1, 1], [9, 9, 4, 5], [2, 7, 2, 3]])
    alive = np.arange(C) < length[..., None]
    rollout = Rollout(
        tokens=rng.integers(1, 13, (P, G, C)) * alive,
        logprob=rng.normal(-2.5, 0.3, (P, G, C)) * alive,
        entropy=alive * 1.0,
        length=length,
        terminated=rng.random((P, G)) < 0.5,
    )
    return prompts, rollout, rng.standard_normal((P, G))


def batch_of(layout, mask_truncated=True):
    batch, _ = Packer(layout)(assemble(*drawn(), layout, mask_truncated=mask_truncated))
    near = {
        'logprob_old': 0.98 * batch['logprob_sampled'],
        'logprob_ref': 1.05 * batch['logprob_sampled'],
    }
    return batch | near | {'max_completion_length': np.float32(C)}


def losses_of(scored, batch):
    """Each loss; and their sum by uneven weights, whose gradient is that of all."""
    with_all = step.with_totals(batch, 1)
    found = jnp.stack(
        [
            clipped_policy_gradient(lambda _: scored, with_all, jax.random.key(0), **knobs)[0]
            for knobs in LOSSES
        ]
    )
    of_entropy = jnp.sum(batch['weights'] * scored.entropy) / with_all['step_weight']
    return found @ jnp.array([1.0, -0.7, 0.4, 1.3]) + 0.3 * of_entropy, found


@jax.jit
def losses_and_slopes(scored, batch):
    """The losses, and the derivatives of their sum by log-probs and entropies."""

    def loss(differentiable):
        logprob, entropy = differentiable
        return losses_of(scored._replace(logprob=logprob, entropy=entropy), batch)

    slopes, found = jax.grad(loss, has_aux=True)((scored.logprob, scored.entropy))
    return found, slopes


@functools.cache
def scored_and_pulled(config):
    """Compiled `(params, batch, slopes) -> (Scored, gradient)`."""

    def run(params, batch, slopes):
        def pair(params):
            scored = score(params, config, batch, temperature=0.7)
            return (scored.logprob, scored.entropy), scored

        _, pull, scored = jax.vjp(pair, params, has_aux=True)
        return scored, pull(slopes)[0]

    return jax.jit(run)


def losses_and_gradient(config, params, batch):
    """Each loss, the scores, and the gradient of the sum of losses, by the chain rule: a program
    for the model and one for all losses, which is the same for every model."""
    run, none = scored_and_pulled(config), np.zeros(batch['tokens'].shape, np.float32)
    scored, _ = run(params, batch, (none, none))
    found, slopes = losses_and_slopes(scored, batch)
    return jax.device_get((found, *run(params, batch, slopes)))


CASES = {
    'plain': dict(layers=1),
    'local, scanned, in chunks, recomputed': dict(
        attention_pattern=('local', 'global'),
        window=4,
        rope_local_theta=500.0,
        scan=True,
        remat='full',
        attention_chunk=2,
        logprob_chunk=4,
    ),
    'softly capped, tied, kept': dict(
        attention_chunk=7,
        remat='save:attended',
        attention_softcap=20.0,
        norms='around',
        tied=True,
        layers=1,
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_losses_and_gradients_equal_those_of_padded_rows(case):
    config = toys.changed(**CASES[case])
    check(
        config,
        toys.params(config),
        ('copies', 'packed') if case == 'plain' else ('shared', 'packed apart'),
    )


def test_low_rank_pairs_get_the_gradients_of_padded_rows():
    params = toys.compiled(functools.partial(adapters.lora, r=2))(
        toys.params(ONE), jax.random.key(1)
    )
    check(ONE, jax.tree.map(lambda x: x + np.float32(0.01), params), ('packed',))


def check(config, params, forms):
    given = batch_of(PADDED)
    wanted, of_rows, gradient = losses_and_gradient(config, params, given)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(gradient))
    assert scale > 0.1 and np.abs(wanted).min() > 1e-3
    counts = given['segments'][:, TP:] > 0
    assert 0 < given['weights'].sum() < counts.sum()
    for name in forms:
        found, scored, found_gradient = losses_and_gradient(config, params, batch_of(FORMS[name]))
        np.testing.assert_allclose(found, wanted, atol=1e-5, err_msg=name)
        toys.assert_trees_close(found_gradient, gradient, atol=1e-5 * max(1, scale))
        for field in ('logprob', 'entropy', 'correct'):
            expected = np.where(counts, getattr(of_rows, field)[:, TP:], 0)
            np.testing.assert_allclose(
                getattr(scored, field), expected, atol=1e-5, err_msg=f'{name}: {field}'
            )


def test_what_a_corruption_changed_is_read():
    rng = np.random.default_rng(3)
    padded, params = batch_of(PADDED), toys.params(ONE)
    inputs = np.where(rng.random(padded['tokens'].shape) < 0.4, 7, padded['tokens'])
    inputs[:, :TP] = padded['tokens'][:, :TP]
    attend = rng.random(inputs.shape) < 0.6
    attend[:, :TP] = True
    wanted = toys.scorer(ONE)(params, padded | {'inputs': inputs, 'attend': attend}).logprob
    plain = toys.scorer(ONE)(params, padded).logprob
    assert np.abs((wanted - plain) * padded['weights']).max() > 0.1
    for name in ('shared', 'packed apart'):
        found = toys.scorer(ONE)(
            params, batch_of(FORMS[name]) | {'inputs': inputs[:, TP:], 'attend': attend[:, TP:]}
        ).logprob
        np.testing.assert_allclose(
            found, np.where(padded['segments'], wanted, 0)[:, TP:], atol=1e-5, err_msg=name
        )


MIXTURE = toys.changed(
    experts=4, mlp_dim=8, router_balance_weight=0.3, router_z_weight=0.02, layers=1
)


def updated(layout, accumulation):
    """Metrics and gradient of a step of a mixture of experts."""

    def keep(grads, _, params=None):
        return jax.tree.map(jnp.zeros_like, grads), grads

    catching = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), keep
    )
    objective = functools.partial(clipped_policy_gradient, loss_type='dapo', beta=0.1)
    update = jax.jit(step.make_update(MIXTURE, objective, catching, accumulation=accumulation))
    params = toys.params(MIXTURE)
    after, metrics = update(
        step.fresh(params, catching, 0),
        jax.tree.map(lambda _: None, params),
        batch_of(layout),
        jax.random.key(0),
    )
    return metrics, after.optimizer


@pytest.mark.parametrize('name, accumulation', [('shared', 2), ('packed by copies', 4)])
def test_steps_of_a_mixture_in_micro_batches_equal_those_of_padded_rows(name, accumulation):
    metrics, gradient = of_padded_rows()
    found, found_gradient = updated(FORMS[name], accumulation)
    assert found.keys() == metrics.keys() and metrics['router/balance_loss'] > 1
    # The most loaded expert of a micro-batch is not that of the step.
    for metric in metrics.keys() - ({'router/max_load'} if accumulation > 1 else set()):
        np.testing.assert_allclose(
            found[metric], metrics[metric], rtol=1e-5, atol=1e-5, err_msg=metric
        )
    toys.assert_trees_close(found_gradient, gradient, atol=1e-5)


@functools.cache
def of_padded_rows():
    return updated(PADDED, 1)


def test_a_reference_is_scored_in_parts():
    wanted = toys.scorer(ONE)(toys.params(ONE), batch_of(PADDED)).logprob[:, TP:]
    for name, micro in (('shared', 2), ('packed by copies', 4)):
        batch = batch_of(FORMS[name])
        found = jax.jit(step.make_score(ONE, micro=micro))(toys.params(ONE), batch)
        np.testing.assert_allclose(
            found, np.where(batch['segments'], wanted, 0), atol=1e-5, err_msg=name
        )


def test_parts_that_prompts_or_shards_do_not_divide_into_are_refused():
    with pytest.raises(
        UserError, match='4 groups of 4 rows per step do not split into accumulation=3'
    ):
        step.make_score(toys.TINY, micro=3)(toys.params(), batch_of(FORMS['shared']))
    with pytest.raises(
        UserError, match='2 groups of 8 rows per step do not split into accumulation=4'
    ):
        step.make_score(toys.TINY, micro=4)(toys.params(), batch_of(FORMS['packed apart']))


def shapes_of(jaxpr):
    for eqn in jaxpr.eqns:
        yield from (v.aval.shape for v in eqn.outvars)
        for inner in jax.tree.leaves(
            eqn.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
        ):
            if hasattr(inner, 'eqns') or hasattr(inner, 'jaxpr'):
                yield from shapes_of(getattr(inner, 'jaxpr', inner))


@pytest.mark.parametrize('chunk', [0, 3])
def test_neither_scores_of_a_whole_shard_nor_logits_of_prompts_exist(chunk):
    config = toys.changed(vocab_size=257, attention_chunk=chunk, logprob_chunk=chunk)
    batch = batch_of(FORMS['shared'])

    def loss(params):
        return losses_of(score(params, config, batch, temperature=0.7), batch)[0]

    grad = jax.make_jaxpr(jax.grad(loss))(toys.params(config))
    shapes = list(shapes_of(grad.jaxpr))
    rows, queries = P * G, chunk or C
    logits = max(np.prod(s) for s in shapes if s[-1:] == (257,) and len(s) > 2)
    scores = max(np.prod(s) for s in shapes if len(s) > 3 and s[-1] in (TP + C, TP + G * C))
    assert logits == rows * queries * 257
    assert scores == rows * config.heads * queries * (TP + C)


def test_shards_are_laid_out_as_promised():
    batch = batch_of(FORMS['packed apart'])
    shards = groups.shards_of({name: jnp.asarray(x) for name, x in batch.items()})
    S, n, L = batch['packed_from'].shape
    assert (S, L) == (2, C) and n < 8
    joined = shards.join(shards.of_prompt[0], shards.tokens)
    assert joined.shape == (S, 2 * TP + n * L)
    toys.assert_trees_equal(shards.split(joined), (shards.of_prompt[0], shards.tokens))
    np.testing.assert_array_equal(shards.for_rows(shards.tokens), batch['tokens'])
    # A bin's completions are of its prompt.
    row, prompt = np.asarray(shards.row).reshape(S, n, L), np.asarray(shards.prompt_of_bin)
    assert np.all((row < 0) | (row // G == prompt[..., None])) and row.max() == 7
    assert any(len(set(one[one >= 0])) > 1 for one in row.reshape(-1, L))


def test_embeddings_in_place_of_tokens_are_refused_and_a_tap_sees_shards():
    batch, seen = batch_of(FORMS['shared']), []
    with pytest.raises(UserError, match='set share_prompts=False'):
        score(toys.params(), toys.TINY, batch, inputs_embeds=jnp.zeros((P * G, C, 16)))
    jax.eval_shape(
        lambda params: score(
            params, toys.TINY, batch, tap=lambda layer, x: seen.append(x.shape) or x
        ),
        toys.params(),
    )
    assert seen == [(P, TP + G * C, 16)] * 2
