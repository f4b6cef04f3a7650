"""The sampler: its log-probs are the model's, its draws depend on nothing but the key, and
completions end as they should."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from reasonjax.data.tokenizers import characters
from reasonjax.errors import UserError
from reasonjax.methods import adapters
from reasonjax.model.logprobs import distribution_scores
from reasonjax.sampling.sampler import Sampling, generate
from reasonjax.sampling.text import completions
from reasonjax.weights.linear import merge_tree

SMALL = toys.changed(layers=1)
EOS = (2, 5)
C = 12
PROMPTS = [[3, 7, 2, 9], [5], [4, 4, 1, 11, 12], [8, 1], [6, 10, 3], [12, 9, 9, 1, 1]]
FREE = Sampling(num_generations=4, max_tokens=C, eos_ids=EOS)
ENDLESS = Sampling(num_generations=4, max_tokens=C)
KEY = jax.random.key(3)


def left_padded(rows, width=None, index=None):
    width = width or max(map(len, rows))
    out = {
        name: np.zeros((len(rows), width), np.int32) for name in ('tokens', 'positions', 'segments')
    }
    for p, row in enumerate(rows):
        out['tokens'][p, width - len(row) :] = row
        out['positions'][p, width - len(row) :] = np.arange(len(row))
        out['segments'][p, width - len(row) :] = 1
    out['index'] = np.arange(len(rows)) if index is None else np.asarray(index)
    return out


@functools.cache
def sampler(config, sampling, processors=()):
    """Compiled `(params, prompts, key) -> Rollout`, on the host."""
    return toys.compiled(
        lambda params, prompts, key: generate(params, config, prompts, key, sampling, processors)
    )


def concat_rewards(prompts, rollout):
    """The batch that a trainer makes of a rollout: one row per sample, prompt and completion as one
    document."""
    P, G, C = rollout.tokens.shape
    repeated = {name: np.repeat(x, G, axis=0) for name, x in prompts.items()}
    length = np.asarray(rollout.length).reshape(-1, 1)
    inside = np.arange(C) < length
    start = repeated['positions'][:, -1:]
    return {
        'tokens': np.concatenate(
            [repeated['tokens'], np.asarray(rollout.tokens).reshape(-1, C)], axis=1
        ),
        'positions': np.concatenate(
            [repeated['positions'], np.where(inside, start + 1 + np.arange(C), 0)], axis=1
        ).astype(np.int32),
        'segments': np.concatenate([repeated['segments'], inside], axis=1).astype(np.int32),
        'weights': np.concatenate([np.zeros(repeated['tokens'].shape), inside], axis=1).astype(
            np.float32
        ),
    }


def assert_equals_scoring(config, params, prompts, rollout, temperature, atol=1e-5):
    P, G, C = rollout.tokens.shape
    batch = concat_rewards(prompts, rollout)
    scored = toys.scorer(config, temperature)(params, batch)
    inside = batch['weights'][:, -C:] > 0
    for field in ('logprob', 'entropy'):
        recorded = np.asarray(getattr(rollout, field)).reshape(-1, C)
        np.testing.assert_allclose(
            recorded[inside],
            np.asarray(getattr(scored, field))[:, -C:][inside],
            atol=atol,
            err_msg=field,
        )
        assert np.all(recorded[~inside] == 0)
    return inside


# Longest prompt 5, completions of 12. A window of 3 leaves the prompt after three tokens, one of 7
# starts in most prompts and ends in the completion; 20 sees everything.
WINDOWS = {n: toys.changed(attention_pattern=('local', 'global'), window=n) for n in (3, 7, 20)}
AROUND = toys.changed(
    norms='around',
    norm_offset=1.0,
    embed_scale=4.0,
    query_scale=0.3,
    attention_softcap=1.5,
    logit_softcap=2.0,
    rope_local_theta=10.0,
    attention_pattern=('local', 'local_nope', 'global'),
    layers=3,
    window=3,
)
EXPERTS = toys.changed(SMALL, experts=5, experts_per_token=2, mlp_dim=8)


@pytest.mark.parametrize(
    'sampling, temperature, config',
    [
        (FREE, 1.0, toys.TINY),
        *((FREE, 1.0, config) for config in (WINDOWS[3], WINDOWS[7], AROUND, EXPERTS)),
        # What may be drawn is narrowed; what is recorded is the whole distribution at that
        # temperature.
        (Sampling(4, C, temperature=0.7, top_k=6, top_p=0.9, min_p=0.02, eos_ids=EOS), 0.7, SMALL),
        (Sampling(4, C, temperature=0.0, eos_ids=EOS), 1.0, SMALL),
    ],
)
def test_logprobs_equal_scoring(sampling, temperature, config):
    params, prompts = toys.params(config), left_padded(PROMPTS)
    rollout = sampler(config, sampling)(params, prompts, KEY)
    inside = assert_equals_scoring(config, params, prompts, rollout, temperature)
    assert inside.any() and not inside.all()
    assert not np.any(np.asarray(rollout.tokens).reshape(-1, C)[inside] == toys.PAD)


def test_logprobs_equal_scoring_at_the_quickstarts_batch_and_length():
    config = toys.QUICKSTART
    rng = np.random.default_rng(0)
    prompts = left_padded(
        [rng.integers(4, 18, rng.choice([6, 8, 10])).tolist() for _ in range(32)], width=10
    )
    sampling = Sampling(num_generations=8, max_tokens=30, eos_ids=(2,))
    params = toys.params(config)
    # An EOS that is rare enough for some rows to reach the end.
    params = params | {'head': params['head'].at[:, 2].add(-0.2 * jnp.sign(params['norm']))}
    rollout = sampler(config, sampling)(params, prompts, KEY)
    inside = assert_equals_scoring(config, params, prompts, rollout, 1.0)
    assert inside.sum() > 2000 and not inside.all() and inside[:, -1].any()


def test_a_window_beyond_everything_changes_nothing():
    params, prompts = toys.params(), left_padded(PROMPTS)
    wide, narrow = (sampler(WINDOWS[n], FREE)(params, prompts, KEY) for n in (20, 3))
    toys.assert_trees_equal(wide, sampler(toys.TINY, FREE)(params, prompts, KEY))
    assert np.abs(wide.logprob - narrow.logprob).max() > 0.1


def test_experts_sample_alike_when_scanned():
    params, prompts = toys.params(EXPERTS), left_padded(PROMPTS)
    scanned = sampler(toys.changed(EXPERTS, scan=True, router_balance_weight=0.5), FREE)(
        params, prompts, KEY
    )
    toys.assert_trees_equal(scanned, sampler(EXPERTS, FREE)(params, prompts, KEY))


def test_bfloat16_logprobs_stay_near_scoring():
    config = toys.changed(SMALL, compute_dtype='bfloat16')
    params, prompts = toys.params(SMALL), left_padded(PROMPTS)
    rollout = sampler(config, FREE)(params, prompts, KEY)
    assert rollout.logprob.dtype == rollout.entropy.dtype == jnp.float32
    assert_equals_scoring(config, params, prompts, rollout, 1.0, atol=0.1)


def test_shared_prompts_equal_separate_prompts():
    P, G = len(PROMPTS), 4
    noise = jax.random.gumbel(jax.random.key(9), (P * G, C, 13))

    # At temperature 0 the processor's noise, given row by row, is all the randomness there is.
    def disturb(logits, progress):
        return logits + noise[progress.job, progress.step]

    params = toys.params(SMALL)
    grouped = Sampling(G, C, temperature=0.0, eos_ids=EOS)
    alone = Sampling(1, C, temperature=0.0, eos_ids=EOS)
    shared = sampler(SMALL, grouped, (disturb,))(params, left_padded(PROMPTS), KEY)
    apart = sampler(SMALL, alone, (disturb,))(
        params, left_padded([p for p in PROMPTS for _ in range(G)]), KEY
    )
    flat = jax.tree.map(lambda x: np.asarray(x).reshape(P * G, *x.shape[2:]), shared)
    single = jax.tree.map(lambda x: np.asarray(x)[:, 0], apart)
    for field in ('tokens', 'length', 'terminated'):
        np.testing.assert_array_equal(getattr(flat, field), getattr(single, field))
    np.testing.assert_allclose(flat.logprob, single.logprob, atol=1e-5)
    np.testing.assert_allclose(flat.entropy, single.entropy, atol=1e-5)
    # Completions that end at once may coincide; a row read in another's place could not have
    # matched above.
    assert len({tuple(row) for row in flat.tokens}) > P * G // 2


def test_draws_do_not_depend_on_the_batch():
    params = toys.params(SMALL)
    whole = sampler(SMALL, FREE)(params, left_padded(PROMPTS, index=[0, 1, 2, 3, 70, 80]), KEY)

    def check(part, rows, samples=4):
        np.testing.assert_array_equal(part.tokens[:, :samples], whole.tokens[rows, :samples])
        np.testing.assert_array_equal(part.length[:, :samples], whole.length[rows, :samples])
        np.testing.assert_array_equal(
            part.terminated[:, :samples], whole.terminated[rows, :samples]
        )
        np.testing.assert_allclose(
            part.logprob[:, :samples], whole.logprob[rows, :samples], atol=1e-5
        )

    # Another order, other neighbours, more padding; fewer prompts; more samples; another layer
    # loop.
    order = [4, 2, 0, 5, 3, 1]
    index = np.array([0, 1, 2, 3, 70, 80])
    moved = left_padded([PROMPTS[i] for i in order], index=index[order])
    check(sampler(SMALL, FREE)(params, moved, KEY), np.array(order))
    few = left_padded([PROMPTS[i] for i in (5, 1)], width=8, index=index[[5, 1]])
    check(sampler(SMALL, FREE)(params, few, KEY), np.array([5, 1]))
    more = Sampling(num_generations=8, max_tokens=C, eos_ids=EOS)
    check(
        sampler(toys.changed(SMALL, scan=True, remat='full'), more)(
            params, left_padded(PROMPTS, index=index), KEY
        ),
        np.arange(6),
    )


def test_draws_depend_on_key_index_and_sample():
    params, prompts, run = (
        toys.params(SMALL),
        left_padded([PROMPTS[0]] * 6),
        sampler(SMALL, ENDLESS),
    )
    first = run(params, prompts, KEY)
    # One prompt under six indices, four samples each: all differ.
    assert len({tuple(row) for row in np.asarray(first.tokens).reshape(-1, C)}) == 24
    assert not np.array_equal(first.tokens, run(params, prompts, jax.random.key(4)).tokens)
    toys.assert_trees_equal(first, run(params, prompts, KEY))
    # Tokens of one row are drawn apart too: the same logits everywhere would otherwise repeat one
    # token for ever.
    flat = params | {'head': jnp.zeros_like(params['head'])}
    tokens = np.asarray(run(flat, prompts, KEY).tokens).reshape(-1, C)
    assert len(np.unique(tokens)) == 12 and all(len(set(row[:4])) > 1 for row in tokens)


def test_greedy_equals_argmax_of_the_full_forward():
    params = toys.params(SMALL)
    rollout = sampler(SMALL, Sampling(4, C, temperature=0.0, eos_ids=EOS))(
        params, left_padded(PROMPTS), KEY
    )
    rows = [list(p) for p in PROMPTS]
    done = [False] * len(rows)
    for _ in range(C):
        batch = toys.batch(*([row] for row in rows), rows=len(rows), length=20)
        logits = np.asarray(toys.all_logits(SMALL)(params, batch))
        for b, row in enumerate(rows):
            if not done[b]:
                row.append(int(logits[b, len(row) - 1].argmax()))
                done[b] = row[-1] in EOS
    for p, (row, prompt) in enumerate(zip(rows, PROMPTS)):
        wanted = row[len(prompt) :]
        for g in range(4):
            assert np.asarray(rollout.tokens)[p, g, : len(wanted)].tolist() == wanted
            assert rollout.length[p, g] == len(wanted) and rollout.terminated[p, g] == done[p]


def test_ends():
    params, prompts = toys.params(SMALL), left_padded(PROMPTS)
    rollout = sampler(SMALL, FREE)(params, prompts, KEY)
    seen = set()
    for p, g in itertools.product(range(6), range(4)):
        tokens, n = np.asarray(rollout.tokens)[p, g].tolist(), int(rollout.length[p, g])
        assert (
            not set(tokens[: n - 1]) & set(EOS)
            and all(t == toys.PAD for t in tokens[n:])
            and 1 <= n <= C
        )
        assert rollout.terminated[p, g] == (tokens[n - 1] in EOS)
        assert rollout.terminated[p, g] or n == C
        seen.add(tokens[n - 1] if rollout.terminated[p, g] else 'cut')
    assert seen == {*EOS, 'cut'}
    # Without an EOS everything is cut, and what came before the end is the same.
    endless = sampler(SMALL, ENDLESS)(params, prompts, KEY)
    assert (
        not endless.terminated.any()
        and np.all(endless.length == C)
        and not np.any(endless.tokens == toys.PAD)
    )
    inside = np.arange(C) < np.asarray(rollout.length)[..., None]
    np.testing.assert_array_equal(
        np.asarray(endless.tokens)[inside], np.asarray(rollout.tokens)[inside]
    )


def test_a_completion_may_end_on_its_last_token():
    def force(logits, progress):
        return jnp.where(
            jnp.arange(13) == jnp.where(progress.step == C - 1, EOS[1], 4)[:, None], logits, -1e30
        )

    rollout = sampler(SMALL, FREE, (force,))(toys.params(SMALL), left_padded(PROMPTS), KEY)
    assert (
        np.all(rollout.terminated)
        and np.all(rollout.length == C)
        and np.all(rollout.tokens[..., -1] == EOS[1])
    )


def test_the_loop_stops_when_all_have():
    steps = []

    def watch(logits, progress):
        jax.debug.callback(lambda step: steps.append(int(step)), progress.time)
        return logits

    prompts = left_padded(PROMPTS)
    plain = sampler(SMALL, FREE)(toys.params(SMALL), prompts, KEY)
    ended = np.flatnonzero(np.asarray(plain.length).max(1) < C)
    assert 0 < len(ended) < 6
    few = {name: x[ended[:1]] for name, x in prompts.items()}
    part = sampler(SMALL, FREE, (watch,))(toys.params(SMALL), few, KEY)
    jax.effects_barrier()
    assert sorted(steps) == list(range(int(plain.length[ended[0]].max())))
    np.testing.assert_array_equal(part.tokens, plain.tokens[ended[:1]])
    np.testing.assert_allclose(part.logprob, plain.logprob[ended[:1]], atol=1e-5)


def test_pad_is_never_drawn():
    params = toys.params(SMALL)
    loud = params | {'head': params['head'].at[:, toys.PAD].set(50.0)}
    rollout = sampler(SMALL, FREE)(loud, left_padded(PROMPTS), KEY)
    inside = np.arange(C) < np.asarray(rollout.length)[..., None]
    assert inside.sum() > 100 and not np.any(np.asarray(rollout.tokens)[inside] == toys.PAD)


ENUMERABLE = toys.changed(vocab_size=5, layers=1)


@pytest.mark.parametrize(
    'sampling',
    [
        Sampling(20_000, 2),
        Sampling(20_000, 2, temperature=1.6, top_k=3),
        Sampling(20_000, 2, temperature=0.8, top_p=0.75),
    ],
)
def test_draws_follow_the_models_distribution(sampling):
    params, prompt = toys.params(ENUMERABLE), [3, 1]
    rollout = sampler(ENUMERABLE, sampling)(params, left_padded([prompt]), KEY)
    drawn = np.asarray(rollout.tokens)[0]
    counts = np.zeros((5, 5))
    np.add.at(counts, (drawn[:, 0], drawn[:, 1]), 1)

    batch = toys.batch(*([[*prompt, first]] for first in range(5)), rows=5)
    logits = (
        np.asarray(toys.all_logits(ENUMERABLE)(params, batch), np.float64) / sampling.temperature
    )
    first = narrowed(logits[0, 1], sampling)
    wanted = np.stack([first[v] * narrowed(logits[v, 2], sampling) for v in range(5)]) * len(drawn)
    assert np.all(counts[wanted == 0] == 0)
    cells = wanted > 0
    chi_square = np.sum((counts - wanted)[cells] ** 2 / wanted[cells])
    # Degrees of freedom are one less than the cells; six standard deviations above their mean.
    freedom = cells.sum() - 1
    assert freedom >= 3 and chi_square < freedom + 6 * np.sqrt(2 * freedom)
    assert (cells.sum() == 16) == (sampling.top_k == 0 and sampling.top_p == 1)


def narrowed(z, sampling):
    """The distribution to draw from, in float64, by definition."""
    p = np.exp(z - z.max())
    p /= p.sum()
    order = np.argsort(-p)
    keep = order[: sampling.top_k] if sampling.top_k else order
    before = np.cumsum(p[order]) - p[order]
    keep = [v for v in keep if before[list(order).index(v)] < sampling.top_p]
    out = np.zeros_like(p)
    out[keep] = p[keep]
    return out / out.sum()


def test_recorded_logprob_is_of_the_whole_distribution():
    sampling = Sampling(20_000, 2, temperature=1.6, top_k=3)
    params, prompt = toys.params(ENUMERABLE), [3, 1]
    rollout = sampler(ENUMERABLE, sampling)(params, left_padded([prompt]), KEY)
    logits = toys.all_logits(ENUMERABLE)(params, toys.batch([[*prompt]], rows=5))[0, 1] / 1.6
    tokens = np.asarray(rollout.tokens)[0, :, 0]
    wanted = distribution_scores(jnp.broadcast_to(logits, (5, 5)), jnp.arange(5))
    np.testing.assert_allclose(rollout.logprob[0, :, 0], wanted.logprob[tokens], atol=1e-5)
    # Their probabilities do not add up to 1: the tokens that could not be drawn have theirs.
    assert np.exp(wanted.logprob[np.unique(tokens)]).sum() < 0.97


def test_adapted_weights_sample_as_their_merged_ones():
    config = toys.changed(SMALL, tied=True)
    lora = functools.partial(adapters.lora, r=2, target_modules=('layers/*', 'embed'))
    params = toys.compiled(lora)(toys.params(config), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: x if np.any(x) else x + 0.1 * rng.standard_normal(x.shape).astype(np.float32),
        params,
    )
    prompts = left_padded(PROMPTS)
    adapted, merged = (
        sampler(config, FREE)(p, prompts, KEY) for p in (params, jax.jit(merge_tree)(params))
    )
    base = sampler(config, FREE)(toys.params(config), prompts, KEY)
    np.testing.assert_array_equal(adapted.tokens, merged.tokens)
    np.testing.assert_allclose(adapted.logprob, merged.logprob, atol=2e-5)
    assert not np.array_equal(adapted.tokens, base.tokens)


@pytest.mark.parametrize(
    'field, value, words',
    [
        ('num_generations', 0, 'at least 1; nearest: 1'),
        ('max_tokens', 0, 'at least 1'),
        ('temperature', -0.1, '0 or from 0.0001 to 10000'),
        ('top_k', -1, 'at least 0'),
        ('top_p', 0.0, 'above 0 and at most 1'),
        ('top_p', 1.5, 'above 0 and at most 1; nearest: 1'),
        ('min_p', 1.0, 'at least 0 and below 1'),
        ('min_p', -0.1, 'at least 0 and below 1; nearest: 0'),
        ('temperature', np.nan, 'a number'),
        ('temperature', np.inf, 'finite'),
        ('top_k', 2.5, 'a whole number'),
        ('max_tokens', True, 'a whole number'),
        ('burst', 0, 'at least 1'),
    ],
)
def test_impossible_settings_are_refused(field, value, words):
    with pytest.raises(UserError, match=rf'sampling.{field}={value}: must be .*{words}'):
        Sampling(**{field: value})


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_tokens_of_a_model_that_overflows_are_refused(temperature):
    """Its parameters are finite, its logits are not: whatever was drawn from them means nothing."""
    sampling = Sampling(num_generations=2, max_tokens=4, temperature=temperature)
    params, prompts = toys.params(SMALL), left_padded(PROMPTS[:2])
    tokenizer = characters(None, None, alphabet='_abcdefghijk$', pad='_', eos='$', mask='')
    completions(jax.device_get(sampler(SMALL, sampling)(params, prompts, KEY)), tokenizer)
    large = params | {'head': params['head'] * 1e30, 'norm': params['norm'] * 1e10}
    rollout = jax.device_get(sampler(SMALL, sampling)(large, prompts, KEY))
    with pytest.raises(
        UserError,
        match=r'^sampling: \d+ of 16 log-probabilities are not finite numbers: the model overflows',
    ):
        completions(rollout, tokenizer)


@pytest.mark.parametrize('temperature', [1e-4, 1e4])
def test_temperatures_at_the_ends_of_their_range_give_finite_numbers(temperature):
    sampling = Sampling(
        num_generations=2,
        max_tokens=4,
        temperature=temperature,
        repetition_penalty=1e4,
        no_repeat_ngram_size=1,
    )
    rollout = sampler(SMALL, sampling)(toys.params(SMALL), left_padded(PROMPTS[:2]), KEY)
    assert np.isfinite(rollout.logprob).all() and np.isfinite(rollout.entropy).all()
