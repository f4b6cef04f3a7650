"""Estimates of conditional probabilities: of a model that knows the net, and of the best that
training on neighbours gives."""

import functools

import nets
import numpy as np
import pytest
import scipy.optimize

from reasonjax.errors import UserError
from reasonjax.tasks import bayes
from reasonjax.tasks.bayes import world
from reasonjax.tasks.bayes_estimates import direct, error, free, scaffolded, score

WORLD = dict(nodes=12, edges=13, net_seed=2, pairs=5)


@functools.cache
def problems(**settings):
    source = bayes(split='test', **{**WORLD, **settings}).examples
    return [source[i] for i in range(len(source))]


@functools.cache
def exact_model():
    return nets.oracle(nets.joint_of_many(world(shape='random', **WORLD).net))


def exact(rows):
    return np.array([row['probability'] for row in rows])


def test_the_exact_model_is_exact_in_every_way():
    rows = problems(size=16)
    np.testing.assert_allclose(direct(rows, exact_model()), exact(rows), rtol=1e-9)
    for scaffold in ('scaffold', 'negative_scaffold'):
        found = scaffolded(
            rows, exact_model(), np.random.default_rng(0), samples=0, scaffold=scaffold
        )
        np.testing.assert_allclose(found, exact(rows), rtol=1e-9)
        drawn = scaffolded(
            rows, exact_model(), np.random.default_rng(0), samples=400, scaffold=scaffold
        )
        assert (abs(drawn - exact(rows)) < 5 * 0.5 / np.sqrt(400)).all() and not np.array_equal(
            drawn, found
        )


def test_values_are_drawn_from_the_model_and_read_by_it():
    """A model whose answer is the last value it was told: its estimate is the probability that it
    gives to that value."""
    rows = [
        dict(prompt='B00:01=1,', scaffold=['02', '03'], probability=0.5),
        dict(prompt='B04:01=1,', scaffold=['02'], probability=0.5),
    ]
    chance = {2: 0.3, 3: 0.8}

    def model(texts):
        return np.array(
            [
                chance[i] if i in chance and text[-1] == '=' else float(told[max(told)])
                for text in texts
                for i, told in [nets.read(text)]
            ]
        )

    np.testing.assert_allclose(
        scaffolded(rows, model, np.random.default_rng(0), samples=0), [0.8, 0.3]
    )
    found = scaffolded(rows, model, np.random.default_rng(0), samples=4000)
    np.testing.assert_allclose(found, [0.8, 0.3], atol=5 * 0.5 / np.sqrt(4000))
    assert (
        len(
            set(np.round(scaffolded(rows, model, np.random.default_rng(1), samples=4) * 4, 9))
            - {0, 1, 2, 3, 4}
        )
        == 0
    )


def test_an_empty_scaffold_is_the_direct_estimate():
    rows = [row | {'scaffold': []} for row in problems(size=16)]
    for samples in (0, 1, 10):
        assert np.array_equal(
            scaffolded(rows, exact_model(), np.random.default_rng(0), samples=samples),
            direct(rows, exact_model()),
        )


def test_free_generation():
    """The exact model names a random variable, or none, before it answers; now and then it says no
    answer at all."""
    rows, rng = problems(size=16), np.random.default_rng(0)

    def sample(texts):
        said = []
        for text in texts:
            asked, told = nets.read(f'{text}#')
            others = [i for i in range(12) if i != asked and i not in told]
            name = f'{others[int(rng.integers(len(others)))]:02d}='
            value = int(rng.random() < exact_model()([text + name])[0])
            said.append(['#1', f'{name}{value},#0', f'{name}{value},'][int(rng.integers(3))])
        return said

    estimates, unfinished = free(rows, exact_model(), sample, samples=150)
    assert 0.28 < unfinished < 0.39
    assert (abs(estimates - exact(rows)) < 5 * 0.5 / np.sqrt(100)).all()
    nothing, all_of_them = free(rows, exact_model(), lambda texts: [''] * len(texts), samples=2)
    assert np.isnan(nothing).all() and all_of_them == 1
    # A problem without an answer counts for nothing.
    half = np.where(np.arange(16) < 8, estimates, np.nan)
    assert error(rows, half) == pytest.approx(np.mean((estimates - exact(rows))[:8] ** 2))


def test_score():
    rows = problems(size=16)
    marginal = np.array([row['marginal'] for row in rows])
    base = np.mean((marginal - exact(rows)) ** 2)
    scores = score(
        rows,
        exact_model(),
        np.random.default_rng(0),
        samples=0,
        sample=lambda texts: ['#'] * len(texts),
    )
    assert scores['mse_marginal'] == pytest.approx(base) and base > 1e-3
    for name in (
        'mse_direct',
        'mse_scaffolded',
        'mse_negative',
        'mse_free',
        'gap_scaffolded',
        'gap_free',
        'unfinished',
    ):
        assert scores.pop(name) == pytest.approx(0, abs=1e-12)
    assert list(scores) == ['mse_marginal']
    # A model that knows marginals only, and its scaffold no better.
    by_prompt = {row['prompt']: row['marginal'] for row in rows}
    scores = score(
        rows,
        lambda texts: [by_prompt.get(text[:9], 0.5) for text in texts],
        np.random.default_rng(0),
    )
    assert scores['mse_direct'] == pytest.approx(base) and scores[
        'gap_scaffolded'
    ] == pytest.approx(0, abs=1e-12)
    assert 'mse_free' not in scores
    without = [row | {'negative_scaffold': None} for row in rows]
    assert 'mse_negative' not in score(without, exact_model(), np.random.default_rng(0))


def trained_on_neighbours(net):
    """The model that minimises the risk of strings of one variable, or of two neighbours on a
    chain.

    Its log-odds are b[t] + w[t, a, x], of target t and the value x of the variable a that was told
    last, with a vanishing penalty on w. Exact expectations take the place of strings.
    """
    N = len(net.parents)
    whole = nets.joint(net)
    alone = np.array([nets.conditional(whole, [t], {})[1] for t in range(N)])
    seen = [(t, a, x) for t in range(N) for a in (t - 1, t + 1) if 0 <= a < N for x in (0, 1)]
    weight = np.array([nets.conditional(whole, [a], {})[x] for _, a, x in seen])
    chance = np.array([nets.conditional(whole, [t], {a: x})[1] for t, a, x in seen])
    at = tuple(np.array(seen).T)

    def risk(parameters):
        b, w = parameters[:N], parameters[N:].reshape(N, N, 2)
        logits = b[at[0]] + w[at]
        loss = (
            np.logaddexp(0, b).sum()
            - alone @ b
            + weight @ (np.logaddexp(0, logits) - chance * logits)
            + 5e-9 * (w**2).sum()
        )
        slope = weight * (1 / (1 + np.exp(-logits)) - chance)
        db, dw = 1 / (1 + np.exp(-b)) - alone, 1e-8 * w
        np.add.at(db, at[0], slope)
        np.add.at(dw, at, slope)
        return loss, np.concatenate([db, dw.ravel()])

    start = np.random.default_rng(0).normal(size=N + N * N * 2)
    found = scipy.optimize.minimize(
        risk, start, jac=True, method='BFGS', options=dict(gtol=1e-11, maxiter=5000)
    ).x
    b, w = found[:N], found[N:].reshape(N, N, 2)

    def probability_of(texts):
        asked = [(i, *list(told.items())[-1]) for i, told in map(nets.read, texts)]
        return 1 / (1 + np.exp(-np.array([b[i] + w[i, a, x] for i, a, x in asked])))

    return probability_of


def test_the_theorem_on_chains():
    """Trained on neighbours, the direct estimate of any other pair is the marginal, and reasoning
    along the chain is exact."""
    knobs = dict(nodes=5, edges=20, shape='chain', net_seed=16, pairs=3)
    net = world(**knobs).net
    # Held out are 3 pairs; the theorem is about all pairs that are no neighbours, in both
    # directions.
    first = bayes(split='test', size=1, scaffold='stepwise', **knobs).examples
    everything = tuple(
        (t, a, x) for t in range(5) for a in range(5) if abs(t - a) > 1 for x in (0, 1)
    )
    source = type(first)(**{**vars(first), 'problems': everything, 'size': len(everything)})
    rows = [source[i] for i in range(len(everything))]

    # p(y | x) of a chain is a product of matrices: down the chain those of the tables, up the chain
    # theirs by Bayes' rule.
    down = [np.stack([1 - net.tables[i], net.tables[i]], -1) for i in range(1, 5)]
    marginals = [np.array([1 - net.tables[0], net.tables[0]])]
    for D in down:
        marginals.append(marginals[-1] @ D)
    up = [(D * marginals[i][:, None] / marginals[i + 1]).T for i, D in enumerate(down)]
    products = []
    for t, a, x in everything:
        product = functools.reduce(
            np.matmul, down[a:t] if a < t else [up[i] for i in range(a - 1, t - 1, -1)]
        )
        products.append(product[x, 1])
    np.testing.assert_allclose(exact(rows), products, rtol=1e-9)

    model = trained_on_neighbours(net)
    marginal = np.array([row['marginal'] for row in rows])
    np.testing.assert_allclose(marginal, [marginals[t][1] for t, _, _ in everything], rtol=1e-9)
    np.testing.assert_allclose(direct(rows, model), marginal, atol=1e-4)
    chained = scaffolded(rows, model, np.random.default_rng(0), samples=0)
    np.testing.assert_allclose(chained, products, atol=1e-4)
    dependent = abs(marginal - products) > 1e-3
    assert dependent.sum() > len(rows) / 2
    assert (
        abs(direct(rows, model) - products)[dependent] > abs(chained - products)[dependent]
    ).all()
    scores = score(rows, model, np.random.default_rng(0), samples=0)
    assert (
        scores['mse_direct'] == pytest.approx(scores['mse_marginal'], abs=1e-4)
        and scores['mse_direct'] > 1e3 * scores['mse_scaffolded']
    )


def test_bad_settings():
    rows = problems(size=16)
    with pytest.raises(UserError, match='samples .*got -1'):
        scaffolded(rows, exact_model(), np.random.default_rng(0), samples=-1)
    with pytest.raises(UserError, match='a problem has no negative_scaffold'):
        scaffolded(
            [rows[0] | {'negative_scaffold': None}],
            exact_model(),
            np.random.default_rng(0),
            scaffold='negative_scaffold',
        )
    with pytest.raises(UserError, match='samples must be at least 1'):
        free(rows, exact_model(), list, samples=0)
