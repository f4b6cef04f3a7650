"""Processors against their definitions, token by token in NumPy, and against transformers."""

import jax.numpy as jnp
import numpy as np
import pytest

from reasonjax.sampling import processors, slots

SETTINGS = [
    (3, 1.0, 0.0),
    (0, 0.7, 0.0),
    (0, 1.0, 0.2),
    (6, 0.8, 0.1),
    (1, 0.5, 0.5),
    (0, 1e-6, 0.0),
]


def logits(seed=0, rows=64, vocabulary=9):
    z = 2 * np.random.default_rng(seed).standard_normal((rows, vocabulary)).astype(np.float32)
    z[:, 0] = -1e9  # PAD, as the model's logits have it
    return z


def softmax(z):
    p = np.exp(np.asarray(z, np.float64) - np.max(z))
    return p / p.sum()


def kept(row, top_k, top_p, min_p):
    """The set of tokens left, from the definitions, each step renormalising what the one before
    left."""
    order = sorted(range(len(row)), key=lambda v: -row[v])
    left = order[:top_k] if top_k else order
    if top_p < 1:
        chosen, mass = [], 0.0
        for v, p in zip(left, softmax(row[left])):
            if mass < top_p:
                chosen.append(v)
            mass += p
        left = chosen
    if min_p > 0:
        p = softmax(row[left])
        left = [v for v, x in zip(left, p) if x >= min_p * p.max()]
    return set(left)


@pytest.mark.parametrize('top_k, top_p, min_p', SETTINGS)
def test_equals_definitions(top_k, top_p, min_p):
    z = logits()
    out = np.asarray(processors.truncate(jnp.asarray(z), top_k, top_p, min_p))
    sizes = set()
    for row, got in zip(z, out):
        survivors = {v for v in range(len(row)) if got[v] > processors.REMOVED}
        # PAD has no mass: whether it counts as one of the k, or as "kept", nobody can see.
        assert survivors - {0} == kept(row, top_k, top_p, min_p) - {0}
        assert all(got[v] == row[v] for v in survivors)
        sizes.add(len(survivors))
    assert min(sizes) >= 1 and (top_k == 1 or top_p < 1e-3 or len(sizes) > 1 or top_k == 3)


@pytest.mark.parametrize('top_k, top_p, min_p', SETTINGS)
def test_equals_transformers(top_k, top_p, min_p):
    torch = pytest.importorskip('torch')
    from transformers.generation import logits_process

    z = logits(seed=1)
    theirs = torch.from_numpy(z)
    for wanted, make in (
        (top_k, lambda: logits_process.TopKLogitsWarper(top_k)),
        (top_p < 1, lambda: logits_process.TopPLogitsWarper(top_p)),
        (min_p, lambda: logits_process.MinPLogitsWarper(min_p)),
    ):
        theirs = make()(None, theirs) if wanted else theirs
    ours = np.asarray(processors.truncate(jnp.asarray(z), top_k, top_p, min_p))
    np.testing.assert_array_equal(
        ours[:, 1:] > processors.REMOVED, np.isfinite(theirs.numpy()[:, 1:])
    )


def test_neutral_values_return_the_input_itself():
    z = jnp.asarray(logits())
    assert processors.truncate(z) is z
    assert (
        processors.keep_top_k(z, 0) is z
        and processors.keep_top_p(z, 1.0) is z
        and processors.keep_min_p(z, 0.0) is z
    )
    assert processors.keep_top_k(z, 9) is z and processors.keep_top_k(z, 99) is z


def test_ties_and_extremes():
    even = jnp.zeros((1, 4))
    assert np.all(processors.keep_top_k(even, 2) == 0)
    assert int((processors.keep_top_p(even, 0.5) == 0).sum()) == 2
    assert np.all(processors.keep_min_p(even, 0.99) == 0)
    certain = jnp.asarray([[-1e9, 0.0, -1e9]])
    for out in (
        processors.keep_top_p(certain, 0.01),
        processors.keep_min_p(certain, 0.01),
        processors.keep_top_k(certain, 1),
    ):
        assert out[0, 1] == 0 and np.all(out[0, [0, 2]] <= -1e9)


def state(prompts, completions, C=6):
    """The state of rows after these completions."""
    R, Tp = len(prompts), max(map(len, prompts))
    text = np.full((R, Tp), -1, np.int32)
    tokens = np.zeros((R, C), np.int32)
    for r, (prompt, completion) in enumerate(zip(prompts, completions)):
        text[r, Tp - len(prompt) :] = prompt
        tokens[r, : len(completion)] = completion
    fresh = slots.fresh(jnp.zeros(R, jnp.int32), jnp.asarray(text), jnp.arange(R), R, (C, 0, 0), ())
    fresh |= dict(step=jnp.asarray([len(c) for c in completions]), tokens=jnp.asarray(tokens))
    return slots.Progress(time=jnp.zeros((), jnp.int32), own=None, **fresh)


def texts(seed, completion, rows=32):
    """Random prompts of various lengths over few tokens, so that much is repeated."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(1, 5, rng.integers(1, 8)).tolist() for _ in range(rows)]
    return prompts, [rng.integers(1, 5, completion).tolist() for _ in range(rows)]


@pytest.mark.parametrize('completion', [0, 1, 4, 6])
@pytest.mark.parametrize(
    'ours, theirs',
    [
        (processors.NoRepeatNgram(1), lambda p: p.NoRepeatNGramLogitsProcessor(1)),
        (processors.NoRepeatNgram(2), lambda p: p.NoRepeatNGramLogitsProcessor(2)),
        (processors.NoRepeatNgram(4), lambda p: p.NoRepeatNGramLogitsProcessor(4)),
        (processors.RepetitionPenalty(1.7), lambda p: p.RepetitionPenaltyLogitsProcessor(1.7)),
        (processors.RepetitionPenalty(0.6), lambda p: p.RepetitionPenaltyLogitsProcessor(0.6)),
        (processors.MinTokens(4, (3, 7)), lambda p: p),
    ],
    ids=['1-gram', '2-gram', '4-gram', 'penalty 1.7', 'penalty 0.6', 'min tokens'],
)
def test_what_looks_back_equals_transformers(ours, theirs, completion):
    torch = pytest.importorskip('torch')
    from transformers.generation import logits_process

    z = logits(seed=2, rows=32)
    prompts, completions = texts(completion, completion)
    found = np.asarray(ours(jnp.asarray(z), state(prompts, completions)))
    changed = 0
    for r, (prompt, made) in enumerate(zip(prompts, completions)):
        process = theirs(logits_process)
        if isinstance(ours, processors.MinTokens):
            process = logits_process.MinNewTokensLengthLogitsProcessor(
                len(prompt), 4, list(ours.eos_ids), device='cpu'
            )
        # One row at a time: transformers takes padding for a token of the text.
        wanted = process(torch.tensor([prompt + made]), torch.from_numpy(z[r : r + 1]).clone())[
            0
        ].numpy()
        np.testing.assert_array_equal(found[r] <= processors.REMOVED, np.isinf(wanted))
        np.testing.assert_allclose(
            found[r][np.isfinite(wanted)], wanted[np.isfinite(wanted)], rtol=1e-6
        )
        changed += np.any(found[r] != z[r])
    assert (
        changed > 2
        or completion >= 4
        and isinstance(ours, processors.MinTokens)
        or getattr(ours, 'size', 0) == 4
    )


def test_longer_ngrams_are_found():
    now = state([[1, 2, 3, 4]], [[5, 1, 2, 3]])
    removed = (
        np.asarray(processors.NoRepeatNgram(4)(jnp.zeros((1, 9)), now))[0] <= processors.REMOVED
    )
    assert removed.tolist() == [v == 4 for v in range(9)]
    # Neither what stands in front of a prompt nor what is not produced yet is text.
    assert not np.any(
        processors.NoRepeatNgram(2)(jnp.zeros((2, 9)), state([[1, 2, 3], [5]], [[], []]))[1] < 0
    )


def test_neutral_processors_return_the_input_itself():
    z, now = jnp.asarray(logits(rows=1)), state([[1]], [[2]])
    off = (
        processors.NoRepeatNgram(0),
        processors.RepetitionPenalty(1.0),
        processors.MinTokens(0, (3,)),
        processors.MinTokens(5, ()),
    )
    for process in off:
        assert process(z, now) is z
