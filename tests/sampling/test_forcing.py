"""Tokens that are put rather than drawn, on models small enough to write down every completion;
stop sequences; several models."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from test_sampler import (
    EOS,
    FREE,
    KEY,
    PROMPTS,
    SMALL,
    C,
    assert_equals_scoring,
    left_padded,
    sampler,
)
from test_slots import assert_alike, with_

from reasonjax.errors import UserError
from reasonjax.sampling.forcing import Span, Thinking
from reasonjax.sampling.sampler import Companion, Sampling, generate

END, WAIT = 6, (8, 9)


@functools.partial(jax.jit, static_argnames='sampling')
def _scripted(params, wanted, prompts, sampling):
    """A rollout in which only these tokens [C] can be drawn, in turn."""

    def only(logits, progress):
        token_R = wanted[jnp.minimum(progress.step, len(wanted) - 1)]
        return jnp.where(jnp.arange(13) == token_R[:, None], logits, -1e30)

    return generate(params, SMALL, prompts, KEY, sampling, (only,))


def scripted(*arguments):
    return jax.device_get(_scripted(*arguments))


def script(*tokens):
    """As many tokens as a completion may have: these, the last of them again and again."""
    return np.array([*tokens, *[tokens[-1]] * (C - len(tokens))])


def forced(forcing, *drawn, **settings):
    """The completion, and what of it was put, where these tokens would be drawn. Greedy by
    default: where only one token can be drawn, a program of half the size says the same."""
    settings = {'temperature': 0.0} | settings
    sampling = Sampling(1, C, eos_ids=EOS, forcing=forcing, **settings)
    rollout = scripted(toys.params(SMALL), script(*drawn), left_padded([PROMPTS[0]]), sampling)
    n = int(rollout.length[0, 0])
    assert not np.any(rollout.forced[0, 0, n:])
    return np.asarray(rollout.tokens)[0, 0, :n].tolist(), np.flatnonzero(
        rollout.forced[0, 0]
    ).tolist()


def test_spans():
    assert forced((Span((7, 7, 8), place=0),), 4, 4, 4, 4, 5) == ([7, 7, 8, 4, 5], [0, 1, 2])
    assert forced((Span((7, 8), place=2),), 4, 4, 4, 4, 5) == ([4, 4, 7, 8, 5], [2, 3])
    for temperature in (0.0, 1.0):
        assert forced(
            (Span((7, 8), behind=6),), 4, 6, 4, 4, 6, 4, 4, 5, temperature=temperature
        ) == ([4, 6, 7, 8, 6, 7, 8, 5], [2, 3, 5, 6])
    # One that begins while another is running waits for nothing: the later of the two is heard.
    assert forced((Span((7, 7), place=0), Span((8,), place=1)), 4, 4, 5) == ([7, 8, 5], [0, 1])
    # A token that is put ends a completion as a drawn one does, and is put where it would have been
    # drawn too.
    assert forced((Span((5,), place=1),), 4) == ([4, 5], [1])
    assert forced((Span((4,), place=0),), 4, 5) == ([4, 5], [0])


def by_definition(drawn, budget, times):
    """What budget forcing makes of a stream of draws, token by token."""
    out, put, over, used = [], [], False, 0
    while len(out) < C and not (out and out[-1] in EOS):
        token = drawn[min(len(out), len(drawn) - 1)]
        if not over and budget and len(out) >= budget and token != END:
            put.append(len(out))
            token, over = END, True
        elif not over and token == END and used < times and not (budget and len(out) >= budget):
            put += range(len(out), min(len(out) + len(WAIT), C))
            out, used = (out + list(WAIT))[:C], used + 1
            continue
        elif token == END:
            over = True
        out.append(token)
    return out, put


@pytest.mark.parametrize(
    'budget, times, temperature',
    [(0, 0, 0.0), (0, 1, 0.0), (0, 2, 0.0), (3, 0, 0.0), (4, 1, 1.0), (4, 9, 0.0)],
)
def test_thinking(budget, times, temperature):
    forcing = (Thinking((END,), (END,), budget, WAIT, times),)
    sampling = Sampling(1, C, temperature=temperature, eos_ids=EOS, forcing=forcing)
    streams = list(itertools.product((4, END), repeat=4))
    table = np.array([[*stream, 4, END, 4, 4, 4, 5] for stream in streams])

    def only(logits, progress):
        wanted = jnp.asarray(table)[
            jnp.minimum(progress.job, len(streams) - 1),
            jnp.minimum(progress.step, table.shape[1] - 1),
        ]
        return jnp.where(jnp.arange(13) == wanted[:, None], logits, -1e30)

    prompts = left_padded([PROMPTS[0]] * len(streams))
    for slots in (0, 5):
        rollout = sampler(SMALL, dataclasses.replace(sampling, slots=slots), (only,))(
            toys.params(SMALL), prompts, KEY
        )
        for i, drawn in enumerate(table.tolist()):
            n = int(rollout.length[i, 0])
            found = (
                np.asarray(rollout.tokens)[i, 0, :n].tolist(),
                np.flatnonzero(rollout.forced[i, 0]).tolist(),
            )
            assert found == by_definition(drawn, budget, times), (drawn, slots)


def test_closing_and_place_of_several_tokens():
    thinking = Thinking((END,), (10, 11, END), budget=2)
    assert forced((thinking,), 4, 4, 4, 4, 4, END, 5) == ([4, 4, 10, 11, END, END, 5], [2, 3, 4])
    # A prefix is part of the budget, and both can be asked for.
    assert forced((Span((7,), place=0), thinking), 4, 4, 4, 4, 4, 5) == (
        [7, 4, 10, 11, END, 5],
        [0, 2, 3, 4],
    )


def test_what_is_put_is_scored_as_the_policys_own():
    params, prompts = toys.params(SMALL), left_padded(PROMPTS)
    sampling = with_(forcing=(Span((7, 8), place=1), Thinking((4,), (4,), 6, (9, 9), 1)))
    rollout = sampler(SMALL, sampling)(params, prompts, KEY)
    assert_equals_scoring(SMALL, params, prompts, rollout, 1.0)
    assert np.all(
        np.asarray(rollout.forced)[..., 1:3] | (np.asarray(rollout.length)[..., None] < 3)
    )
    assert sampler(SMALL, FREE)(params, prompts, KEY).forced is None


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda: Span(()), 'no tokens'),
        (lambda: Span((3,)), 'one of them'),
        (lambda: Span((3,), 1, 2), 'one of them'),
        (lambda: Span((2, 3), behind=3), 'never stop'),
        (lambda: Thinking(()), 'no token ends'),
        (lambda: Thinking((3,), budget=2), 'close'),
        (lambda: Thinking((3,), times=2), 'extension'),
        (lambda: Thinking((3,), budget=-1), '0 \\(off\\)'),
    ],
)
def test_impossible_forcings_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_stop_sequences():
    params, prompts = toys.params(SMALL), left_padded(PROMPTS)
    stop = ((4, 9), (7, 7, 7), (11,))
    plain = sampler(SMALL, Sampling(4, C))(params, prompts, KEY)
    for least in (0, 4):
        rollout = sampler(SMALL, Sampling(4, C, stop=stop, min_tokens=least))(params, prompts, KEY)
        ended = 0
        for p, g in itertools.product(range(6), range(4)):
            tokens = np.asarray(plain.tokens)[p, g].tolist()
            ends = (
                n
                for n in range(least + 1, C + 1)
                if any(tuple(tokens[max(n - len(s), 0) : n]) == s for s in stop)
            )
            length = next(ends, 0)
            assert rollout.terminated[p, g] == bool(length) and rollout.length[p, g] == (
                length or C
            )
            assert np.asarray(rollout.tokens)[p, g, : length or C].tolist() == tokens[: length or C]
            ended += bool(length) and length < C
        assert ended > 5
        assert_equals_scoring(SMALL, params, prompts, rollout, 1.0)


def test_the_prompt_is_no_part_of_a_stop_sequence():
    rollout = scripted(
        toys.params(SMALL),
        script(9, 3, 3),
        left_padded([[3, 4]]),
        Sampling(1, 3, temperature=0.0, stop=((4, 9),)),
    )
    assert rollout.length[0, 0] == 3


def test_limits_leave_the_recorded_logprob_alone():
    params, prompts = toys.params(SMALL), left_padded(PROMPTS)
    sampling = with_(
        min_tokens=3,
        no_repeat_ngram_size=2,
        repetition_penalty=1.5,
        temperature=0.8,
        stop=((4, 4),),
    )
    rollout = sampler(SMALL, sampling)(params, prompts, KEY)
    assert_equals_scoring(SMALL, params, prompts, rollout, 0.8)
    for p, g in itertools.product(range(6), range(4)):
        text = PROMPTS[p] + np.asarray(rollout.tokens)[p, g, : int(rollout.length[p, g])].tolist()
        start = len(PROMPTS[p])
        assert not set(text[start : start + 3]) & set(EOS)
        pairs = [tuple(text[i : i + 2]) for i in range(len(text) - 1)]
        assert not set(pairs[start - 1 :]) & set(pairs[: start - 1]) and len(
            set(pairs[start - 1 :])
        ) == len(pairs[start - 1 :])


def test_companions_read_the_same_completions():
    params, other = toys.params(SMALL), toys.params(SMALL, seed=5)
    prompts, theirs = left_padded(PROMPTS), left_padded([[1, *p, 7, 7] for p in PROMPTS])
    greedy = Sampling(2, C, temperature=0.0, eos_ids=EOS)

    @functools.partial(jax.jit, static_argnames='sampling')
    def draw(params, prompts, companion, weight, sampling):
        combine = lambda mine, others, state: mine + weight * (others[0] - mine)  # noqa: E731
        return generate(
            params, SMALL, prompts, KEY, sampling, companions=(companion,), combine=combine
        )

    def run(weight, companion, sampling=greedy):
        return jax.device_get(draw(params, prompts, companion, weight, sampling))

    # With all the weight on it, the companion says what it would say alone; with none, it is not
    # heard.
    alone = jax.jit(lambda p, x: generate(p, SMALL, x, KEY, greedy))
    there = run(1.0, Companion(other, theirs, SMALL))
    np.testing.assert_array_equal(there.tokens, alone(other, theirs).tokens)
    assert_equals_scoring(SMALL, params, prompts, there, 1.0)
    np.testing.assert_array_equal(
        run(0.0, Companion(other, theirs, SMALL)).tokens, alone(params, prompts).tokens
    )
    # The policy as its own companion changes nothing, and in slots each model's cache goes with its
    # row.
    half = run(0.5, Companion(other, theirs, SMALL))
    assert_alike(
        run(0.5, Companion(other, theirs, SMALL), dataclasses.replace(greedy, slots=5, halvings=1)),
        half,
    )
    assert not np.array_equal(half.tokens, there.tokens)
    with pytest.raises(UserError, match='1 companions'):
        jax.eval_shape(
            lambda: generate(
                params, SMALL, prompts, KEY, greedy, companions=(Companion(other, theirs, SMALL),)
            )
        )
