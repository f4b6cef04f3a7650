"""The forward pass: an independent NumPy decoder, causality, packing, padding, loop forms and
hooks."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from reasonjax.model.attention import causal
from reasonjax.model.forward import forward, logits, rms_norm
from reasonjax.model.score import score

VARIANTS = {
    'all_options': toys.TINY,
    'plain_gelu': toys.changed(
        gated=False, activation='gelu', qk_norm='none', qkv_bias=False, kv_heads=4, rope_theta=50.0
    ),
    'tied_gelu_tanh': toys.changed(
        tied=True, activation='gelu_tanh', qkv_bias=False, kv_heads=1, norm_eps=1e-3
    ),
    # What Gemma, OLMo and SmolLM do otherwise, and layers of every kind.
    'around': toys.changed(
        layers=3,
        norms='around',
        norm_offset=1.0,
        embed_scale=4.0,
        query_scale=0.3,
        attention_softcap=1.5,
        logit_softcap=2.0,
        attention_pattern=('local', 'global', 'local_nope'),
        window=3,
        rope_theta=100.0,
        rope_local_theta=10.0,
    ),
    'after': toys.changed(
        norms='after',
        qk_norm='row',
        o_bias=True,
        mlp_bias=True,
        attention_pattern=('local', 'global_nope'),
        window=4,
        head_dim=8,
        rope_fraction=0.5,
        rope_scaling=(('factor', 3.0), ('name', 'linear')),
    ),
    'experts': toys.changed(
        experts=3,
        experts_per_token=2,
        normalise_router=False,
        attention_pattern=('local',),
        window=1,
    ),
}


def numpy_logits(params, config, batch):
    """The decoder in float64 NumPy, one position and one head at a time, from the definitions."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    erf = np.vectorize(math.erf)
    activate = {
        'silu': lambda x: x / (1 + np.exp(-x)),
        'gelu': lambda x: x * 0.5 * (1 + erf(x / math.sqrt(2))),
        'gelu_tanh': lambda x: (
            0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        ),
    }[config.activation]

    def norm(x, scale):
        return (
            x
            / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + config.norm_eps)
            * (config.norm_offset + scale)
        )

    def spin(x, position, kind):
        width = round(config.head_dim * config.rope_fraction)
        half, out = width // 2, x.copy()
        theta, factor = config.rope_theta, dict(config.rope_scaling).get('factor', 1.0)
        if kind == 'local' and config.rope_local_theta:
            theta, factor = config.rope_local_theta, 1.0
        for j in range(0 if kind.endswith('nope') else half):
            angle = position / factor * theta ** (-2 * j / width)
            out[j] = x[j] * math.cos(angle) - x[j + half] * math.sin(angle)
            out[j + half] = x[j + half] * math.cos(angle) + x[j] * math.sin(angle)
        return out

    def cap(x, at):
        return at * np.tanh(x / at) if at else x

    def mlp(w, h):
        if not config.experts:
            gate = activate(h @ w['gate'] + w.get('gate_bias', 0)) if config.gated else 1
            up = h @ w['up'] + w.get('up_bias', 0)
            return (gate * up if config.gated else activate(up)) @ w['down'] + w.get('down_bias', 0)
        out = np.zeros_like(h)
        for t, token in enumerate(h):
            share = np.exp(token @ w['router'])
            share /= share.sum()
            for e in np.argsort(-share)[: config.experts_per_token]:
                out[t] += (
                    share[e]
                    * (activate(token @ w['gate'][e]) * (token @ w['up'][e]))
                    @ w['down'][e]
                )
        return out

    inputs = batch.get('inputs', batch['tokens'])
    B, T = inputs.shape
    attend = batch.get('attend', np.ones((B, T), bool))
    out = np.zeros((B, T, config.vocab_size))
    for b in range(B):
        x = p['embed'][inputs[b]] * config.embed_scale
        for layer in range(config.layers):
            w = jax.tree.map(lambda leaf, layer=layer: leaf[layer], p['layers'])
            a, m = w['attention'], w['mlp']
            kind = config.attention_pattern[layer % len(config.attention_pattern)]
            h = norm(x, a['norm']) if 'norm' in a else x
            q, k, v = (h @ a[n] + a.get(f'{n}_bias', 0) for n in 'qkv')
            if config.qk_norm == 'row':
                q, k = norm(q, a['q_norm']), norm(k, a['k_norm'])
            q, k, v = (each.reshape(T, -1, config.head_dim) for each in (q, k, v))
            if config.qk_norm == 'head':
                q, k = norm(q, a['q_norm']), norm(k, a['k_norm'])
            mixed = np.zeros((T, config.heads, config.head_dim))
            for t in range(T):
                seen = [
                    s
                    for s in range(t + 1)
                    if batch['segments'][b, s] == batch['segments'][b, t]
                    and (attend[b, s] or s == t)
                ]
                seen = [s for s in seen if t - s < config.window or kind.startswith('global')]
                for head in range(config.heads):
                    shared = head // (config.heads // config.kv_heads)
                    query = spin(q[t, head], batch['positions'][b, t], kind)
                    keys = np.stack(
                        [spin(k[s, shared], batch['positions'][b, s], kind) for s in seen]
                    )
                    scale = config.query_scale or 1 / math.sqrt(config.head_dim)
                    weight = np.exp(cap(keys @ query * scale, config.attention_softcap))
                    mixed[t, head] = weight / weight.sum() @ v[seen, shared]
            added = mixed.reshape(T, -1) @ a['o'] + a.get('o_bias', 0)
            x = x + (norm(added, a['post_norm']) if 'post_norm' in a else added)
            added = mlp(m, norm(x, m['norm']) if 'norm' in m else x)
            x = x + (norm(added, m['post_norm']) if 'post_norm' in m else added)
        out[b] = cap(
            norm(x, p['norm']) @ (p['embed'].T if config.tied else p['head']), config.logit_softcap
        )
    out[..., config.pad_id] = -1e9
    return out


@pytest.mark.parametrize('name', VARIANTS)
def test_equals_numpy(name):
    config = VARIANTS[name]
    params, batch = toys.params(config), toys.random_batch()
    got = toys.all_logits(config)(params, batch)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, numpy_logits(params, config, batch), atol=2e-5)


def test_attend_equals_numpy_and_hides_a_key():
    params, batch = toys.params(), toys.random_batch()
    rng = np.random.default_rng(5)
    attend = rng.random(batch['tokens'].shape) < 0.6
    batch['inputs'] = np.where(rng.random(batch['tokens'].shape) < 0.3, 7, batch['tokens'])
    hidden = batch | {'attend': attend}
    np.testing.assert_allclose(
        toys.all_logits(toys.TINY)(params, hidden),
        numpy_logits(params, toys.TINY, hidden),
        atol=2e-5,
    )

    # Row 0 is one document: a hidden position is seen by itself alone.
    at = 4
    attend = np.ones_like(attend)
    attend[0, at] = False
    other = batch['inputs'].copy()
    other[0, at] = 1 + other[0, at] % 12
    a = toys.all_logits(toys.TINY)(params, batch | {'attend': attend})
    b = toys.all_logits(toys.TINY)(params, batch | {'attend': attend, 'inputs': other})
    same = (np.asarray(a) == np.asarray(b)).all(-1)
    assert not same[0, at] and np.delete(same[0], at).all()


@pytest.mark.parametrize('name', ['all_options', 'plain_gelu', 'experts'])
def test_causal(name):
    # A window would hide most of the past as well.
    config = toys.changed(VARIANTS[name], attention_pattern=('global',))
    params = toys.params(config)
    tokens = np.random.default_rng(1).integers(1, 13, (1, 11))
    batch = toys.batch([tokens[0].tolist()])
    before = toys.all_logits(config)(params, batch)
    for at in range(11):
        other = batch['tokens'].copy()
        other[0, at] = 1 + other[0, at] % 12
        after = toys.all_logits(config)(params, batch | {'tokens': other})
        np.testing.assert_array_equal(before[0, :at], after[0, :at])
        assert np.all(np.abs(before[0, at:] - after[0, at:]).max(-1) > 1e-4)


def test_packed_documents_equal_separate_rows():
    documents = [[3, 7, 2, 9], [5, 1, 8], [4, 4]]
    params = toys.params()
    packed, apart = toys.batch(documents), toys.batch(*([d] for d in documents))
    together, alone = (toys.scorer(toys.TINY)(params, b) for b in (packed, apart))
    at = 0
    for row, document in enumerate(documents):
        n = len(document)
        for field in ('logprob', 'entropy'):
            got, wanted = getattr(together, field)[0, at : at + n], getattr(alone, field)[row, :n]
            np.testing.assert_allclose(got, wanted, atol=2e-6)
            assert got[0] == 0 and np.all(got[1:] != 0)
        at += n
    assert (
        np.all(together.logprob[0, at:] == 0)
        and np.all(together.entropy[0, at:] == 0)
        and not together.correct[0, at:].any()
    )
    (value, grads), (value2, grads2) = (
        toys.weighted_score_and_grad(toys.TINY)(params, b) for b in (packed, apart)
    )
    np.testing.assert_allclose(value, value2, atol=1e-5)
    toys.assert_trees_close(grads, grads2, atol=1e-5)


def test_no_gradient_between_documents():
    params = toys.params()
    batch = toys.batch([[3, 7, 2, 9], [5, 1, 8]])

    def loss(embeds, document):
        scored = score(params, toys.TINY, batch, inputs_embeds=embeds)
        return jnp.sum(scored.logprob * (batch['segments'] == document))

    embeds = params['embed'][batch['tokens']]
    for document in (1, 2):
        reached = np.abs(jax.jit(jax.grad(loss))(embeds, document)[0]).max(-1) > 0
        inside = batch['segments'][0] == document
        assert not reached[~inside].any()
        # The last token of a document predicts nothing.
        assert reached[np.flatnonzero(inside)[:-1]].all()


@pytest.mark.parametrize('left', [1, 4])
def test_padding_on_the_left_changes_nothing(left):
    params, document = toys.params(), [3, 7, 2, 9, 5]
    plain = toys.batch([document])
    moved = {name: np.roll(x, left, axis=1) for name, x in plain.items()}
    (a, grads), (b, grads2) = (
        toys.weighted_score_and_grad(toys.TINY)(params, x) for x in (plain, moved)
    )
    np.testing.assert_allclose(a, b, atol=2e-6)
    toys.assert_trees_close(grads, grads2, atol=5e-6)
    scored, shifted = (toys.scorer(toys.TINY)(params, x) for x in (plain, moved))
    np.testing.assert_allclose(np.roll(scored.logprob, left, axis=1), shifted.logprob, atol=2e-6)


@pytest.mark.parametrize(
    'name, scan, remat',
    [
        ('all_options', True, 'none'),
        ('all_options', False, 'dots'),
        ('all_options', False, 'full'),
        ('all_options', True, 'full'),
        ('all_options', True, 'save:q,attended,gate'),
        ('all_options', False, 'offload:attended,up'),
        ('around', True, 'none'),
        ('experts', True, 'full'),
        ('experts', True, 'save:down'),
    ],
)
def test_scan_unroll_and_remat_agree(name, scan, remat):
    config = VARIANTS[name]
    params, batch = toys.params(config), toys.random_batch()
    value, grads = toys.weighted_score_and_grad(toys.changed(config, scan=scan, remat=remat))(
        params, batch
    )
    wanted, wanted_grads = toys.weighted_score_and_grad(config)(params, batch)
    np.testing.assert_allclose(value, wanted, atol=1e-5)
    toys.assert_trees_close(grads, wanted_grads, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize('scan', [False, True])
def test_remat_recomputes(scan):
    @functools.cache
    def products(remat):
        config = toys.changed(scan=scan, remat=remat)
        grad = jax.grad(lambda p: toys.weighted_score(p, config, toys.random_batch()))
        return str(jax.make_jaxpr(grad)(toys.params())).count('dot_general')

    # 'dots' recomputes attention's two products; 'full' also those with weights.
    assert products('none') < products('dots') < products('full')
    # Each product kept is one less to recompute: in every layer, or in the one that is scanned.
    layers = 1 if scan else toys.TINY.layers
    assert (
        products('full') - products('save:q,v')
        == 2 * layers
        == products('full') - products('offload:k,o')
    )
    # both; its own gradient needs the scores once more in either case
    assert products('full') - products('save:attended') == 2 * layers


@pytest.mark.parametrize(
    'name, chunk', [('around', 3), ('all_options', 5), ('all_options', 11), ('all_options', 99)]
)
def test_chunks_of_attention_change_nothing(name, chunk):
    config = VARIANTS[name]
    params, batch = toys.params(config), toys.random_batch()
    batch['attend'] = np.random.default_rng(3).uniform(size=batch['tokens'].shape) > 0.2
    value, grads = toys.weighted_score_and_grad(toys.changed(config, attention_chunk=chunk))(
        params, batch
    )
    wanted, wanted_grads = toys.weighted_score_and_grad(config)(params, batch)
    np.testing.assert_allclose(value, wanted, atol=1e-5)
    toys.assert_trees_close(grads, wanted_grads, atol=2e-5)


def test_chunks_of_attention_hold_fewer_scores():
    def largest(chunk):
        config = toys.changed(attention_chunk=chunk)
        grad = jax.grad(
            lambda p: toys.weighted_score(p, config, toys.random_batch(rows=2, length=64))
        )
        return max(
            math.prod(v.aval.shape) for v in _values(jax.make_jaxpr(grad)(toys.params()).jaxpr)
        )

    assert largest(0) == 2 * toys.TINY.heads * 64 * 64
    # Less than the scores of one chunk of 8 queries: the residual stream of two rows is then the
    # largest thing there is.
    assert largest(8) == max(2 * toys.TINY.heads * 8 * 64, 2 * 64 * toys.TINY.mlp_dim)


def _values(jaxpr):
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for inner in jax.tree.leaves([*equation.params.values()], is_leaf=_is_program):
            if _is_program(inner):
                yield from _values(getattr(inner, 'jaxpr', inner))


def _is_program(x):
    return hasattr(x, 'eqns')


def test_tied_head_is_the_transposed_embedding():
    tied, untied = toys.changed(tied=True), toys.TINY
    params, batch = toys.params(tied), toys.random_batch()
    assert 'head' not in params
    spread = params | {'head': params['embed'].T}
    (value, grads), (value2, grads2) = (
        toys.weighted_score_and_grad(c)(p, batch) for c, p in ((tied, params), (untied, spread))
    )
    np.testing.assert_allclose(value, value2, atol=1e-5)
    np.testing.assert_allclose(grads['embed'], grads2['embed'] + grads2['head'].T, atol=1e-5)


def test_inputs_embeds_and_identity_tap_change_nothing():
    params, batch = toys.params(), toys.random_batch()
    wanted = toys.scorer(toys.TINY)(params, batch)

    @jax.jit
    def run(params, batch):
        return score(
            params,
            toys.TINY,
            batch,
            inputs_embeds=params['embed'][batch['tokens']],
            tap=lambda layer, x: x,
        )

    toys.assert_trees_equal(run(params, batch), wanted)


def test_tap_captures_and_replaces():
    params, batch = toys.params(), toys.random_batch()

    @jax.jit
    def run(params, batch):
        seen = {}

        def tap(layer, x):
            seen[layer] = x
            return x

        hidden, cache, _ = forward(
            params,
            toys.TINY,
            batch['tokens'],
            batch['positions'],
            causal(toys.TINY, batch['segments']),
            tap=tap,
        )
        return seen, hidden, cache

    seen, hidden, cache = run(params, batch)
    assert cache is None and sorted(seen) == [0, 1]
    np.testing.assert_allclose(rms_norm(seen[1], params['norm'], 1e-6), hidden, atol=1e-6)
    # Where layer 0's output is overwritten by what a run left there, the rest follows from it,
    # whatever was read.
    embeds = jnp.zeros_like(seen[0])
    for scan in (False, True):
        patched, _, _ = jax.jit(
            lambda params, batch, scan=scan: forward(
                params,
                toys.changed(scan=scan),
                batch['tokens'],
                batch['positions'],
                causal(toys.TINY, batch['segments']),
                inputs_embeds=embeds,
                tap=lambda layer, x: jnp.where(layer == 0, seen[0], x),
            )
        )(params, batch)
        np.testing.assert_allclose(patched, hidden, atol=1e-6)


def test_bfloat16_computes_in_bfloat16_and_scores_in_float32():
    config = toys.changed(compute_dtype='bfloat16')
    params, batch = toys.params(config), toys.random_batch()
    hidden, _, _ = jax.eval_shape(
        lambda p, b: forward(p, config, b['tokens'], b['positions'], causal(config, b['segments'])),
        params,
        batch,
    )
    assert (
        hidden.dtype == jnp.bfloat16
        and jax.eval_shape(lambda p, h: logits(p, config, h), params, hidden).dtype == jnp.float32
    )
    scored, exact = toys.scorer(config)(params, batch), toys.scorer(toys.TINY)(params, batch)
    assert scored.logprob.dtype == scored.entropy.dtype == jnp.float32
    assert 0 < np.abs(scored.logprob - exact.logprob).max() < 0.15
