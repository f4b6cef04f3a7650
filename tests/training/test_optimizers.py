"""Schedules at chosen steps, and AdamW against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reasonjax.errors import UserError
from reasonjax.training import optimizers, schedules


def values(schedule, *steps):
    return [float(schedule(step)) for step in steps]


def test_warmup_starts_above_zero_and_reaches_the_peak():
    for make in (schedules.constant, schedules.cosine, schedules.linear):
        rise = make(100, peak=2.0, warmup_steps=4)
        np.testing.assert_allclose(
            values(rise, 0, 1, 2, 3, 4), [0.5, 1.0, 1.5, 2.0, 2.0], rtol=1e-6
        )
        assert float(make(100, peak=2.0)(0)) == 2.0
        np.testing.assert_allclose(values(make(3, peak=2.0, warmup_steps=1), 0), [2.0])


def test_constant():
    assert values(schedules.constant(10, peak=0.3), 0, 5, 9, 50) == pytest.approx([0.3] * 4)


@pytest.mark.parametrize('warmup', [0, 20])
@pytest.mark.parametrize('final', [0.0, 0.1])
def test_cosine_and_linear_fall_to_their_end(warmup, final):
    steps, peak = 120, 3e-3
    cosine = schedules.cosine(steps, peak=peak, warmup_steps=warmup, final_fraction=final)
    linear = schedules.linear(steps, peak=peak, warmup_steps=warmup, final_fraction=final)
    for share in (0, 0.25, 0.5, 0.75, 1):
        step = warmup + share * (steps - warmup)
        assert float(cosine(step)) == pytest.approx(
            peak * (final + (1 - final) * (1 + np.cos(np.pi * share)) / 2), abs=1e-9
        )
        assert float(linear(step)) == pytest.approx(peak * (1 + (final - 1) * share), abs=1e-9)
    assert (
        values(cosine, steps + 50)
        == values(linear, steps + 50)
        == pytest.approx([peak * final], abs=1e-9)
    )
    falling = values(cosine, *range(warmup, steps))
    assert falling == sorted(falling, reverse=True)


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    return {
        'layers': {
            'attention': {
                'q': rng.standard_normal((3, 4)),
                'q_bias': rng.standard_normal(4),
                'norm': rng.standard_normal(4),
            }
        },
        'norm': rng.standard_normal(5),
        'head': rng.standard_normal((4, 2)),
    }


def as_float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def run(optimizer, steps=5):
    params = as_float32(parameters())
    state = optimizer.init(params)
    for number in range(steps):
        changes, state = optimizer.update(as_float32(parameters(10 + number)), state, params)
        params = optax.apply_updates(params, changes)
    return params


@pytest.mark.parametrize('clip', [float('inf'), 1.5])
def test_adamw_equals_torch(clip):
    torch = pytest.importorskip('torch')
    names = [
        'head',
        'layers/attention/norm',
        'layers/attention/q',
        'layers/attention/q_bias',
        'norm',
    ]
    weights = [torch.nn.Parameter(torch.from_numpy(x)) for x in jax.tree.leaves(parameters())]
    decays = [name in ('head', 'layers/attention/q') for name in names]
    optimizer = torch.optim.AdamW(
        [
            {'params': [w for w, d in zip(weights, decays) if d], 'weight_decay': 0.3},
            {'params': [w for w, d in zip(weights, decays) if not d], 'weight_decay': 0.0},
        ],
        lr=1.0,
        betas=(0.8, 0.95),
        eps=1e-6,
    )
    schedule = schedules.cosine(5, peak=0.1, warmup_steps=2)
    for number in range(5):
        for weight, grad in zip(weights, jax.tree.leaves(parameters(10 + number))):
            weight.grad = torch.from_numpy(grad)
        if clip < float('inf'):
            torch.nn.utils.clip_grad_norm_(weights, clip)
        for group in optimizer.param_groups:
            group['lr'] = float(schedule(number))
        optimizer.step()
    ours = run(
        optimizers.adamw(schedule, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.3, clip_norm=clip)
    )
    for name, got, wanted in zip(names, jax.tree.leaves(ours), weights):
        np.testing.assert_allclose(got, wanted.detach().numpy(), atol=2e-6, err_msg=name)


def test_decay_follows_the_patterns():
    zero = jax.tree.map(jnp.zeros_like, as_float32(parameters()))
    params = as_float32(parameters())

    def decayed(**knobs):
        optimizer = optimizers.adamw(optax.constant_schedule(0.1), weight_decay=0.5, **knobs)
        changes, _ = optimizer.update(zero, optimizer.init(params), params)
        shrunk = jax.tree.map(lambda c, p: np.allclose(c, -0.05 * p), changes, params)
        still = jax.tree.map(lambda c: np.all(c == 0), changes)
        assert all(a != b for a, b in zip(jax.tree.leaves(shrunk), jax.tree.leaves(still)))
        return shrunk

    attention = {'q': True, 'q_bias': False, 'norm': False}
    assert decayed() == {'layers': {'attention': attention}, 'norm': False, 'head': True}
    assert all(jax.tree.leaves(decayed(no_decay=())))
    assert decayed(no_decay=('layers/*',)) == {
        'layers': {'attention': dict.fromkeys(attention, False)},
        'norm': True,
        'head': True,
    }


def test_neutral_knobs():
    schedule = optax.constant_schedule(0.1)
    plain = run(optax.adam(schedule))
    np.testing.assert_array_equal(plain['head'], run(optimizers.adamw(schedule))['head'])
    np.testing.assert_array_equal(
        plain['head'], run(optimizers.adamw(schedule, clip_norm=1e9))['head']
    )


def test_first_moments_in_fewer_bits():
    schedule, params = optax.constant_schedule(0.1), as_float32(parameters())
    moments = optimizers.adamw(schedule, mu_dtype='bfloat16').init(params)[0]
    assert {x.dtype for x in jax.tree.leaves(moments.mu)} == {jnp.dtype('bfloat16')}
    assert {x.dtype for x in jax.tree.leaves(moments.nu)} == {jnp.dtype('float32')}
    plain, rounded = (
        run(optimizers.adamw(schedule))['head'],
        run(optimizers.adamw(schedule, mu_dtype='bfloat16'))['head'],
    )
    assert np.all(plain == run(optimizers.adamw(schedule, mu_dtype=''))['head'])
    # Five steps of at most 0.1 each, their directions rounded to 8 bits.
    assert 0 < np.abs(plain - rounded).max() < 5 * 0.1 * 2**-7
    with pytest.raises(
        UserError, match='config.optimizer.mu_dtype="bfloat": unknown. Did you mean "bfloat16"'
    ):
        optimizers.adamw(schedule, mu_dtype='bfloat')


def test_sgd():
    schedule = optax.constant_schedule(0.1)
    params, grads = as_float32(parameters()), [as_float32(parameters(10 + n)) for n in range(2)]
    wanted = params['head'] - 0.1 * (grads[0]['head'] + grads[1]['head'])
    np.testing.assert_allclose(run(optimizers.sgd(schedule), steps=2)['head'], wanted, atol=1e-6)
    wanted = params['head'] - 0.1 * (1.9 * grads[0]['head'] + grads[1]['head'])
    np.testing.assert_allclose(
        run(optimizers.sgd(schedule, momentum=0.9), steps=2)['head'], wanted, atol=1e-6
    )
    norm = float(optax.global_norm(grads[0]))
    wanted = params['head'] - 0.1 * grads[0]['head'] * 0.5 / norm
    np.testing.assert_allclose(
        run(optimizers.sgd(schedule, clip_norm=0.5), steps=1)['head'], wanted, atol=1e-6
    )
