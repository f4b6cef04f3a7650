"""Counted arithmetic: against the compiler's own count of models without loops, against compiled
loops taken apart, and by hand."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
import toys

from reasonjax.methods import adapters, filters
from reasonjax.model import spec
from reasonjax.model.score import score
from reasonjax.planning import flops, hlo
from reasonjax.weights import partition

B, T = 4, 64
WIDE = toys.changed(
    vocab_size=512, dim=128, layers=2, heads=8, kv_heads=4, head_dim=24, mlp_dim=320, qkv_bias=False
)


def trees(config, adapt=lambda params: params, choose=filters.all):
    specs = spec.specs(config)
    params = jax.eval_shape(adapt, spec.abstract(specs, config.param_dtype))
    return specs, params, choose(specs, params)


def counted(config, train, *, adapt=lambda params: params, choose=filters.all, rows=B):
    products = flops.matrices(config, *trees(config, adapt, choose), rows * T) + flops.attention(
        config, rows, T
    )
    return (flops.training(config, products) if train else flops.forward(products)), products


def compiled(config, train, adapt=lambda params: params, choose=filters.all, batch=None):
    specs, params, chosen = trees(config, adapt, choose)
    batch = batch or toys.random_batch(rows=B, length=T, config=config)
    own, frozen = partition.partition(params, chosen)

    def loss(own, frozen):
        return jnp.sum(
            score(partition.combine(own, frozen), config, batch).logprob * batch['weights']
        )

    # Nothing is run.
    options = {'xla_backend_optimization_level': 0}
    return (
        jax.jit(jax.value_and_grad(loss) if train else loss)
        .lower(own, frozen)
        .compile(compiler_options=options)
    )


def test_attention_in_blocks_multiplies_as_much_as_counted():
    long = dict(batch=toys.random_batch(rows=1, length=200, config=WIDE))
    of_weights = flops.matrices(WIDE, *trees(WIDE), 200)
    for train in (False, True):
        products = of_weights + flops.attention(WIDE, 1, 200)
        wanted = flops.flops(flops.training(WIDE, products) if train else flops.forward(products))
        assert dots(hlo.Module(compiled(WIDE, train, **long).as_text())) == pytest.approx(
            wanted, rel=0.002
        )
    # Blocks of 64, 64, 64 and 8 queries.
    pairs = sum(p.flops for p in flops.attention(WIDE, 1, 200)) / (
        4 * WIDE.layers * WIDE.heads * WIDE.head_dim
    )
    assert pairs == 64 * 64 + 64 * 128 + 64 * 192 + 8 * 200
    assert (
        flops.useful(flops.forward(flops.attention(WIDE, 1, 200)), WIDE, False)
        == 2 * WIDE.layers * WIDE.heads * WIDE.head_dim * 200**2
    )


CHANGES = [
    dict(tied=True, gated=False),
    dict(remat='dots'),
    dict(remat='save:q,attended,up'),
    dict(remat='full', norms='around'),
]


@pytest.mark.parametrize('changes', CHANGES)
def test_a_step_without_loops_equals_the_compilers_count(changes):
    config = toys.changed(WIDE, **changes)
    found = compiled(config, train=True).cost_analysis()['flops']
    # Left out: norms, rotations, softmax, the loss; about two per cent at this width.
    assert 0 < found / flops.flops(counted(config, train=True)[0]) - 1 < 0.035


def test_forward_and_adapters_equal_the_compilers_count():
    found = compiled(WIDE, train=False).cost_analysis()['flops']
    assert 0 < found / flops.flops(counted(WIDE, train=False)[0]) - 1 < 0.035
    how = dict(
        adapt=lambda params: adapters.lora(params, jax.random.key(0), r=8), choose=filters.lora
    )
    found = compiled(WIDE, train=True, **how).cost_analysis()['flops']
    wanted = flops.flops(counted(WIDE, train=True, **how)[0])
    # Nothing below the first layer trains, so that its inputs need no gradient: counted, but not
    # computed.
    assert abs(found / wanted - 1) < 0.04
    # Frozen weights get no gradient.
    assert wanted < 0.8 * flops.flops(counted(WIDE, train=True)[0])


@pytest.mark.parametrize('loops', [False, True])
def test_prompts_that_rows_share_count_once_and_meet_no_head(loops):
    config = toys.changed(
        WIDE,
        remat='dots',
        **(dict(scan=True, attention_chunk=16, logprob_chunk=16) if loops else {}),
    )
    P, longest = 2, 48
    prompts = toys.random_batch(rows=P, length=longest, config=config)
    shared = {f'prompt_{name}': prompts[name] for name in ('tokens', 'segments', 'positions')}
    program = compiled(
        config, train=True, batch=toys.random_batch(rows=B, length=T, config=config) | shared
    )
    products = flops.matrices(config, *trees(config), P * longest + B * T, B * T)
    products += flops.grouped_attention(config, P, longest, B, T)
    wanted = flops.flops(flops.training(config, products))
    if loops:
        assert dots(hlo.Module(program.as_text())) == pytest.approx(wanted, rel=0.01)
    else:
        assert 0 < program.cost_analysis()['flops'] / wanted - 1 < 0.035
    # What a completion sees of its prompt is not masked.
    once = flops.useful(
        [(p, 1.0) for p in flops.grouped_attention(config, P, longest, B, T)], config, False
    )
    pairs = P * longest**2 / 2 + B * T * longest + B * T**2 / 2
    assert once == 4 * config.layers * config.heads * config.head_dim * pairs


def dots(module, computation=None, times=1):
    """Operations of the matrix products of a compiled program, loops as often as they run."""
    total = 0
    for one in module.computations[computation or module.entry].values():
        if one.operation == 'while':
            body = re.search(r'body=%([\w.\-]+)', one.attributes)[1]
            total += dots(module, body, times * module.trips(computation or module.entry, one))
        elif one.operation in ('fusion', 'call'):
            total += dots(
                module, re.search(r'(?:calls|to_apply)=%([\w.\-]+)', one.attributes)[1], times
            )
        elif one.operation == 'dot':
            left = module.computations[computation or module.entry][one.operands[0]].type
            shape = [int(n) for n in re.search(r'\[([\d,]*)\]', left)[1].split(',')]
            inner = math.prod(
                shape[int(i)]
                for i in re.search(r'lhs_contracting_dims=\{([\d,]+)\}', one.attributes)[1].split(
                    ','
                )
            )
            total += (
                2
                * inner
                * math.prod(int(n) for n in re.search(r'\[([\d,]*)\]', one.type)[1].split(','))
                * times
            )
    return total


LOOPS = [dict(attention_chunk=16, logprob_chunk=16), dict(remat='full', attention_chunk=32)]


@pytest.mark.parametrize('changes', LOOPS)
def test_a_step_with_loops_multiplies_as_much_as_counted(changes):
    config = toys.changed(WIDE, scan=True, **changes)
    module = hlo.Module(compiled(config, train=True).as_text())
    assert dots(module) == pytest.approx(flops.flops(counted(config, train=True)[0]), rel=0.01)


def test_six_operations_per_weight_and_token():
    config = toys.changed(WIDE, remat='none')
    specs = spec.specs(config)
    weights = flops.matrices(config, *trees(config), tokens=1000)
    vectors = (
        sum(
            math.prod(s.shape)
            for s in jax.tree.leaves(specs['layers'], is_leaf=spec.is_spec)
            if len(s.shape) == 2
        )
        + config.dim
    )
    multiplied = spec.count(specs) - vectors - math.prod(specs['embed'].shape)
    assert flops.flops(flops.training(config, weights)) == 6 * multiplied * 1000
    # With attention: 12 L H d T per token more, of which a causal mask makes half useless.
    both, products = counted(config, train=True)
    of_attention = 12 * config.layers * config.heads * config.head_dim * T * B * T
    # The scores once more than that, for their own gradient.
    assert flops.flops(both) == 6 * multiplied * B * T + of_attention * 7 / 6
    assert flops.useful(both, config, True) == 6 * multiplied * B * T + of_attention / 2
    recomputing = toys.changed(config, remat='full')
    again = flops.training(recomputing, products)
    assert flops.flops(again) > flops.flops(both)
    assert flops.useful(again, recomputing, True) == flops.useful(both, config, True)


def test_experts_count_as_often_as_they_are_picked():
    config = toys.changed(WIDE, experts=8, experts_per_token=2)
    by_name = {p.name: p for p in flops.matrices(config, *trees(config), tokens=100)}
    assert by_name['router'].flops == 2 * 100 * 128 * 8 * 2
    assert by_name['up'].flops == by_name['down'].flops == 2 * (100 * 2) * 128 * 320 * 2
    # 200 rows read each of the 8 matrices once.
    assert flops.traffic([(by_name['up'], 1.0)], 'bfloat16', {}) == 2 * (
        200 * 128 * 2 + 8 * 128 * 320 * 2 + 200 * 320 * 2
    )
    # 3 rows can pick 3 matrices at most.
    few = flops.Product('up', 3, 128, 320, 1, ('batch', 'embed', 'mlp', None), banks=8)
    assert flops.traffic([(few, 1.0)], 'bfloat16', {}) == 2 * (3 * 128 + 3 * 128 * 320 + 3 * 320)


def test_traffic_of_one_product():
    p = flops.Product('up', 100, 30, 40, 3, ('batch', 'embed', 'mlp', None))
    assert flops.traffic([(p, 2.0)], 'bfloat16', {}) == 2 * 3 * 2 * (100 * 30 + 30 * 40 + 100 * 40)
    # Rows over 4 devices, columns over 2; the whole inner axis is gathered.
    assert flops.traffic([(p, 2.0)], 'bfloat16', {'batch': 4, 'mlp': 2}) == 2 * 3 * 2 * (
        25 * 30 + 30 * 20 + 25 * 20
    )


def test_a_decoding_step_reads_every_cache_once():
    config = toys.changed(WIDE, layers=3)
    P, Tp, G, C = 5, 70, 4, 90
    products = flops.cached_attention(config, P, Tp, G, C)
    H, K, d, L = config.heads, config.kv_heads, config.head_dim, config.layers
    assert flops.flops(flops.forward(products)) == 4 * P * G * H * d * (Tp + C) * L
    caches = 2 * L * K * d * (P * Tp + P * G * C)
    rows = 2 * L * P * G * H * d * 2  # queries in, results out, of prompt and own part
    scores = L * P * G * H * (Tp + C)
    wanted = 2 * (caches + rows + scores) + 4 * scores
    assert flops.traffic(flops.forward(products), 'bfloat16', {}) == wanted
    assert flops.traffic(
        flops.forward(products), 'bfloat16', {'batch': 5, 'kv_heads': 2}
    ) == pytest.approx(wanted / 10)
