"""Log-probs and entropies: chunked against naive, alignment, temperature, and PAD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from reasonjax.model.logprobs import Scored, distribution_scores, token_scores
from reasonjax.model.score import score

T = 11


def oracle(logits, batch, temperature=1.0):
    """Scores of a batch in float64, one position at a time."""
    z = np.asarray(logits, np.float64) / temperature
    out = {name: np.zeros(batch['tokens'].shape) for name in ('logprob', 'entropy', 'correct')}
    for b, t in np.ndindex(*batch['tokens'].shape):
        if t and batch['segments'][b, t] and batch['segments'][b, t] == batch['segments'][b, t - 1]:
            p = np.exp(z[b, t - 1] - z[b, t - 1].max())
            p /= p.sum()
            out['logprob'][b, t] = np.log(p[batch['tokens'][b, t]])
            out['entropy'][b, t] = -sum(x * np.log(x) for x in p if x > 0)
            out['correct'][b, t] = p.argmax() == batch['tokens'][b, t]
    return Scored(**out)


@pytest.mark.parametrize('chunk', [0, 1, 4, 10, 11, 64])
@pytest.mark.parametrize('tied', [False, True])
def test_chunks_equal_naive(chunk, tied):
    config = toys.changed(logprob_chunk=chunk, tied=tied)
    name = 'embed' if tied else 'head'
    head, batch = toys.params(config)[name], toys.random_batch(length=T)
    hidden = jnp.asarray(np.random.default_rng(0).standard_normal((4, T, 16)), jnp.float32)

    def chunked(head, hidden):
        scored = token_scores({name: head}, config, hidden, batch['tokens'])
        return jnp.sum(batch['weights'] * (scored.logprob + 0.3 * scored.entropy)), scored

    def naive(head, hidden):
        z = jax.nn.log_softmax((hidden @ (head.T if tied else head)).at[..., toys.PAD].set(-1e9))
        logprob = jnp.take_along_axis(z, batch['tokens'][..., None], axis=-1)[..., 0]
        entropy = -jnp.sum(jnp.where(z > -1e8, jnp.exp(z) * z, 0), axis=-1)
        return jnp.sum(batch['weights'] * (logprob + 0.3 * entropy)), Scored(
            logprob, entropy, z.argmax(-1) == batch['tokens']
        )

    got, wanted = (
        jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(head, hidden) for f in (chunked, naive)
    )
    real = batch['tokens'] != toys.PAD  # naive log-probs of PAD itself are -1e9 and some
    np.testing.assert_allclose(got[0][0], wanted[0][0], rtol=1e-6)
    toys.assert_trees_close(
        *(jax.tree.map(lambda x: x[real], x[0][1]) for x in (got, wanted)), atol=3e-6
    )
    toys.assert_trees_close(got[1], wanted[1], atol=1e-5)


def test_scores_equal_numpy():
    params, batch = toys.params(), toys.random_batch(length=T)
    wanted = oracle(toys.all_logits(toys.TINY)(params, batch), batch)
    toys.assert_trees_close(toys.scorer(toys.TINY)(params, batch), wanted, atol=3e-6)


@pytest.mark.parametrize('temperature', [0.5, 1.7])
def test_temperature_divides_logits(temperature):
    params, batch = toys.params(), toys.random_batch(length=T)
    wanted = oracle(toys.all_logits(toys.TINY)(params, batch), batch, temperature)
    toys.assert_trees_close(toys.scorer(toys.TINY, temperature)(params, batch), wanted, atol=5e-6)


def test_whole_logits_never_exist_in_chunks():
    batch = toys.random_batch(rows=3, length=10)

    def largest(chunk):
        config = toys.changed(vocab_size=257, logprob_chunk=chunk)
        grad = jax.make_jaxpr(jax.grad(lambda p: toys.weighted_score(p, config, batch)))(
            toys.params(config)
        )
        return max(size(eqn) for eqn in equations(grad.jaxpr))

    def equations(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn
            for inner in jax.tree.leaves(
                eqn.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
            ):
                if hasattr(inner, 'eqns') or hasattr(inner, 'jaxpr'):
                    yield from equations(getattr(inner, 'jaxpr', inner))

    def size(eqn):
        return max(
            (v.aval.size for v in eqn.outvars if v.aval.shape[-1:] == (257,) and v.aval.ndim > 2),
            default=0,
        )

    assert largest(0) == 3 * 10 * 257 and largest(5) == 3 * 5 * 257


def test_inputs_are_read_and_tokens_are_scored():
    params, batch = toys.params(), toys.random_batch(length=T)
    rng = np.random.default_rng(2)
    inputs = np.where(rng.random(batch['tokens'].shape) < 0.5, 7, batch['tokens'])
    corrupted = batch | {'inputs': inputs, 'attend': rng.random(batch['tokens'].shape) < 0.6}
    wanted = oracle(toys.all_logits(toys.TINY)(params, corrupted), batch)
    toys.assert_trees_close(toys.scorer(toys.TINY)(params, corrupted), wanted, atol=3e-6)


def test_pad_has_no_probability_and_no_gradient():
    params, batch = toys.params(), toys.random_batch(length=T)
    grads = toys.weighted_score_and_grad(toys.TINY)(params, batch)[1]
    assert np.all(grads['head'][:, toys.PAD] == 0) and np.all(
        np.abs(grads['head'][:, 1:]).max(0) > 0
    )
    assert np.all(grads['embed'][toys.PAD] == 0)
    loud = params | {'head': params['head'].at[:, toys.PAD].set(100.0)}
    toys.assert_trees_equal(
        toys.scorer(toys.TINY)(loud, batch), toys.scorer(toys.TINY)(params, batch)
    )
    everything = [jnp.full(batch['tokens'].shape, token) for token in range(13)]
    hidden = jax.random.normal(jax.random.key(0), (*batch['tokens'].shape, 16))
    probability = [jnp.exp(token_scores(params, toys.TINY, hidden, x).logprob) for x in everything]
    assert np.all(probability[toys.PAD] == 0)
    np.testing.assert_allclose(sum(probability), 1, atol=1e-6)
    allowed = toys.changed(pad_id=-1)
    assert np.all(token_scores(params, allowed, hidden, everything[toys.PAD]).logprob > -50)


def test_padding_columns_and_rows_change_nothing():
    params = toys.params()
    short, long = toys.batch([[3, 7, 2, 9]]), toys.batch([[3, 7, 2, 9]], rows=6, length=T + 5)
    scored = toys.scorer(toys.TINY)(params, short)
    assert np.all(scored.logprob[0, 1:4] < 0) and np.all(scored.entropy[0, 1:4] > 0)
    unpredicted = np.ones((4, T), bool)
    unpredicted[0, 1:4] = False
    assert np.all(scored.logprob[unpredicted] == 0) and np.all(scored.entropy[unpredicted] == 0)
    more = toys.scorer(toys.TINY)(params, long)
    np.testing.assert_allclose(more.logprob[:4, :T], scored.logprob, atol=2e-6)
    np.testing.assert_allclose(more.entropy[:4, :T], scored.entropy, atol=2e-6)
    assert np.all(more.logprob[:, T:] == 0) and np.all(more.logprob[4:] == 0)


@pytest.mark.parametrize('offset', [0.0, 300.0])
def test_distribution_scores_of_known_distributions(offset):
    z = jnp.log(jnp.asarray([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]])) + offset
    scored = distribution_scores(z, jnp.asarray([1, 2]))
    np.testing.assert_allclose(scored.logprob, np.log([0.25, 1 / 3]), atol=3e-5 if offset else 1e-6)
    np.testing.assert_allclose(
        scored.entropy, [1.5 * np.log(2), np.log(3)], atol=3e-5 if offset else 1e-6
    )
    assert scored.correct.tolist() == [False, True]  # as likely as any
    certain = distribution_scores(jnp.asarray([-1e30, 4.0, -1e30]), jnp.asarray(1))
    assert (certain.logprob, certain.entropy, certain.correct) == (0, 0, True)


def test_tap_and_embeds_reach_the_forward():
    params, batch = toys.params(), toys.random_batch(length=T)
    run = jax.jit(
        lambda factor: score(params, toys.TINY, batch, tap=lambda layer, x: factor * x).logprob
    )
    # The final norm undoes a scale of the last layer only; layer 0's reaches the result.
    assert np.abs(run(1.0) - run(2.0)).max() > 1e-3
