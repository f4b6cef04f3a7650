"""Settings of speed change no completion: refilled slots, growing caches, halved batches, prompts
read in chunks."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from test_sampler import (
    AROUND,
    FREE,
    KEY,
    PROMPTS,
    SMALL,
    C,
    assert_equals_scoring,
    left_padded,
    sampler,
)

from reasonjax.sampling import processors
from reasonjax.sampling.sampler import Sampling, generate

SLOTS = dataclasses.replace(FREE, slots=5, burst=3)
INDEX = np.array([0, 1, 2, 3, 70, 80])


def with_(**settings):
    return dataclasses.replace(FREE, **settings)


def assert_alike(rollout, plain, atol=1e-5):
    for field in ('tokens', 'length', 'terminated'):
        np.testing.assert_array_equal(getattr(rollout, field), getattr(plain, field), err_msg=field)
    for field in ('logprob', 'entropy'):
        np.testing.assert_allclose(
            getattr(rollout, field), getattr(plain, field), atol=atol, err_msg=field
        )


@pytest.mark.parametrize(
    'settings',
    [
        dict(slots=5, burst=3),
        dict(slots=23, burst=40, prefill_chunk=4),
        dict(slots=7, burst=2, cache_length=3, halvings=2),
        dict(cache_length=5, halvings=3, prefill_chunk=2),
    ],
)
def test_equals_the_plain_sampler(settings):
    params, prompts = toys.params(SMALL), left_padded(PROMPTS)
    assert_alike(
        sampler(SMALL, with_(**settings))(params, prompts, KEY),
        sampler(SMALL, FREE)(params, prompts, KEY),
    )


def test_equals_the_plain_sampler_whatever_limits_the_draws():
    params, prompts = toys.params(SMALL), left_padded(PROMPTS)
    limits = dict(
        stop=((4, 9), (7,)), min_tokens=2, no_repeat_ngram_size=2, repetition_penalty=1.3, top_k=9
    )
    plain = sampler(SMALL, with_(**limits))(params, prompts, KEY)
    assert_alike(
        sampler(SMALL, with_(**limits, slots=6, burst=4, halvings=1))(params, prompts, KEY), plain
    )
    assert 5 < len(np.unique(plain.length))


def test_windows_are_counted_from_each_row():
    params, prompts = toys.params(AROUND), left_padded(PROMPTS)
    rollout = sampler(AROUND, with_(slots=5, burst=3, prefill_chunk=2, halvings=1))(
        params, prompts, KEY
    )
    assert_alike(rollout, sampler(AROUND, FREE)(params, prompts, KEY))
    assert_equals_scoring(AROUND, params, prompts, rollout, 1.0)


def test_order_and_burst_change_no_bit():
    params, prompts = toys.params(SMALL), left_padded(PROMPTS, index=INDEX)
    found = sampler(SMALL, SLOTS)(params, prompts, KEY)
    for burst in (1, 100):
        toys.assert_trees_equal(
            found, sampler(SMALL, dataclasses.replace(SLOTS, burst=burst))(params, prompts, KEY)
        )
    for order in ([5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 4, 3]):
        # What is one's turn, and in which row, is then another.
        moved = {name: x[order] for name, x in prompts.items()}
        other = sampler(SMALL, SLOTS)(params, moved, KEY)
        toys.assert_trees_equal(
            jax.tree.map(lambda x, order=order: x[np.array(order)], found), other
        )


def test_neutral_values_are_the_plain_program():
    def text(sampling):
        arguments = toys.params(SMALL), left_padded(PROMPTS), KEY
        return (
            jax.jit(lambda *x: generate(x[0], SMALL, x[1], x[2], sampling))
            .lower(*arguments)
            .as_text()
        )

    plain = text(FREE)
    assert (
        text(with_(slots=24))
        == text(with_(slots=99, burst=2))
        == text(with_(cache_length=C))
        == text(with_(prefill_chunk=5))
        == plain
    )
    assert text(with_(slots=23)) != plain


def steps_of(sampling, prompts):
    """How many rows drew at each step."""
    seen = []

    def watch(logits, progress):
        jax.debug.callback(
            lambda time, done: seen.append((int(time), int(np.sum(~done)), len(done))),
            progress.time,
            progress.done,
        )
        return logits

    rollout = sampler(SMALL, sampling, (watch,))(toys.params(SMALL), prompts, KEY)
    jax.effects_barrier()
    return rollout, sorted(seen)


def test_rows_that_end_are_refilled_and_the_last_ones_halved():
    prompts = left_padded(PROMPTS)
    plain = sampler(SMALL, FREE)(toys.params(SMALL), prompts, KEY)
    lengths = np.asarray(plain.length).reshape(-1).tolist()
    _, seen = steps_of(dataclasses.replace(SLOTS, burst=1), prompts)
    # By hand: five rows, each taking the next completion as soon as its own has ended.
    waiting, busy, drawing = list(lengths), [], []
    while waiting or busy:
        busy += [waiting.pop(0) for _ in range(min(5 - len(busy), len(waiting)))]
        drawing.append(len(busy))
        busy = [left - 1 for left in busy if left > 1]
    assert [number for _, number, _ in seen] == drawing and [time for time, _, _ in seen] == list(
        range(len(drawing))
    )
    assert sum(drawing) == sum(lengths) and len(drawing) < sum(
        max(lengths[i : i + 5]) for i in range(0, 24, 5)
    )

    _, seen = steps_of(with_(halvings=3), prompts)
    assert [rows for _, _, rows in seen] == [halved(number) for _, number, _ in seen]
    assert [time for time, _, _ in seen] == list(range(max(lengths))) and seen[-1][2] < 24


def halved(drawing):
    return next(rows for rows in (3, 6, 12, 24) if drawing <= rows)


def test_caches_grow():
    seen = []

    def watch(logits, progress):
        length = progress.own[0][0].length
        jax.debug.callback(lambda time: seen.append((int(time), length)), progress.time)
        return logits

    sampler(SMALL, with_(cache_length=3, eos_ids=()), (watch,))(
        toys.params(SMALL), left_padded(PROMPTS), KEY
    )
    jax.effects_barrier()
    assert sorted(seen) == [(time, 3 if time < 3 else 6 if time < 6 else 12) for time in range(C)]
    assert with_(cache_length=5).lengths() == [5, 10, 12] and FREE.lengths() == [12]


def test_what_processors_see_is_the_same_in_slots():
    def odd(logits, progress):
        """Depends on everything that a processor may look at."""
        text = processors.so_far(progress)
        wanted = (
            text.sum(axis=1, where=text > 0) + progress.step + 3 * progress.job + progress.last
        ) % 11
        return logits + 2.0 * (jnp.arange(13) == 1 + wanted[:, None])

    params, prompts = toys.params(SMALL), left_padded(PROMPTS)
    plain = sampler(SMALL, FREE, (odd,))(params, prompts, KEY)
    assert_alike(sampler(SMALL, with_(slots=5, halvings=1), (odd,))(params, prompts, KEY), plain)
    assert np.abs(plain.tokens - sampler(SMALL, FREE)(params, prompts, KEY).tokens).max() > 0
    assert_equals_scoring(SMALL, params, prompts, plain, 1.0)


def test_completions_are_numbered_prompt_by_prompt():
    def tell(logits, progress):
        return jnp.where(jnp.arange(13) == 1 + (progress.job % 12)[:, None], logits, -1e30)

    greedy = Sampling(4, 3, temperature=0.0)
    for sampling in (greedy, dataclasses.replace(greedy, slots=5, burst=1)):
        tokens = sampler(SMALL, sampling, (tell,))(
            toys.params(SMALL), left_padded(PROMPTS), KEY
        ).tokens
        for p, g in itertools.product(range(6), range(4)):
            assert np.all(tokens[p, g] == 1 + (4 * p + g) % 12)
