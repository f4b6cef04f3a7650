"""Fields of the model's shape at values that change nothing, and knobs that have nothing to act
on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

ONE = toys.changed(layers=1)
PLAIN = toys.changed(ONE, qkv_bias=False)
T = 11


def scaled_embedding(params):
    return params | {'embed': params['embed'] / 4}


def zero_biases(config):
    """Adds the biases that `config` has and its parent has not."""

    def change(params):
        attention, mlp = params['layers']['attention'], params['layers']['mlp']
        zeros = {
            f'{n}_bias': jnp.zeros((1, attention[n].shape[-1]))
            for n in 'qkv' * config.qkv_bias + 'o' * config.o_bias
        }
        more = {
            f'{n}_bias': jnp.zeros((1, mlp[n].shape[-1]))
            for n in ('up', 'gate', 'down') * config.mlp_bias
        }
        return params | {'layers': {'attention': attention | zeros, 'mlp': mlp | more}}

    return change


def offset(params):
    """Scales of norms as differences from one."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x - 1 if 'norm' in jax.tree_util.keystr(path) else x, params
    )


def scaling(name, **knobs):
    return tuple(sorted({'name': name, **knobs}.items()))


ORIGINAL = dict(original_max_position_embeddings=4)
ALONE = toys.changed(ONE, heads=1, kv_heads=1)
# Parent, child, how the parent's parameters become the child's, and how far apart they may be.
NEUTRAL = {
    'qkv_bias': (
        PLAIN,
        toys.changed(PLAIN, qkv_bias=True),
        zero_biases(toys.changed(qkv_bias=True)),
        1e-6,
    ),
    'o_bias': (
        PLAIN,
        toys.changed(PLAIN, o_bias=True),
        zero_biases(toys.changed(qkv_bias=False, o_bias=True)),
        1e-6,
    ),
    'mlp_bias': (
        PLAIN,
        toys.changed(PLAIN, mlp_bias=True),
        zero_biases(toys.changed(qkv_bias=False, mlp_bias=True)),
        1e-6,
    ),
    'embed_scale': (ONE, toys.changed(ONE, embed_scale=4.0), scaled_embedding, 0),
    'query_scale': (ONE, toys.changed(ONE, query_scale=6**-0.5), None, 0),
    'norm_offset': (ONE, toys.changed(ONE, norm_offset=1.0), offset, 2e-6),
    'attention_softcap': (ONE, toys.changed(ONE, attention_softcap=1e3), None, 1e-5),
    'logit_softcap': (ONE, toys.changed(ONE, logit_softcap=1e4), None, 1e-5),
    'window_of_the_row': (ONE, toys.changed(ONE, attention_pattern=('local',), window=T), None, 0),
    'window_beyond_the_row': (
        ONE,
        toys.changed(ONE, attention_pattern=('local', 'global'), window=10**6),
        None,
        0,
    ),
    'window_that_no_layer_has': (ONE, toys.changed(ONE, window=2), None, 0),
    'pattern': (
        toys.TINY,
        toys.changed(attention_pattern=('global', 'global', 'local'), window=1),
        None,
        0,
    ),
    'windows_scanned': (
        toys.changed(scan=True),
        toys.changed(scan=True, attention_pattern=('local', 'global'), window=T),
        None,
        0,
    ),
    'rope_local_theta': (
        toys.changed(ONE, attention_pattern=('local',), window=3),
        toys.changed(ONE, attention_pattern=('local',), window=3, rope_local_theta=1e4),
        None,
        0,
    ),
    'rope_local_theta_without_local_layers': (
        ONE,
        toys.changed(ONE, rope_local_theta=7.0),
        None,
        0,
    ),
    'linear': (ONE, toys.changed(ONE, rope_scaling=scaling('linear', factor=1.0)), None, 0),
    'dynamic': (
        ONE,
        toys.changed(ONE, rope_scaling=scaling('dynamic', factor=3.3, length=4, **ORIGINAL)),
        None,
        0,
    ),
    'llama3': (
        ONE,
        toys.changed(ONE, rope_scaling=scaling('llama3', factor=1.0, **ORIGINAL)),
        None,
        0,
    ),
    'yarn': (ONE, toys.changed(ONE, rope_scaling=scaling('yarn', factor=1.0, **ORIGINAL)), None, 0),
    'longrope': (
        ONE,
        toys.changed(
            ONE,
            rope_scaling=scaling(
                'longrope', short_factor=(1.0,) * 3, long_factor=(1.0,) * 3, length=9, **ORIGINAL
            ),
        ),
        None,
        0,
    ),
    'row_norm_of_one_head': (ALONE, toys.changed(ALONE, qk_norm='row'), None, 0),
    'max_positions': (ONE, toys.changed(ONE, max_positions=1), None, 0),
    'knobs_of_experts_without_any': (
        ONE,
        toys.changed(
            ONE,
            experts_per_token=9,
            normalise_router=False,
            router_balance_weight=1.0,
            router_z_weight=1.0,
        ),
        None,
        0,
    ),
    'embed_std': (ONE, toys.changed(ONE, embed_std=0.0), None, 0),
}


@pytest.mark.parametrize('name', NEUTRAL)
def test_a_neutral_value_is_the_parent(name):
    parent, child, change, atol = NEUTRAL[name]
    assert parent != child
    params, batch = toys.params(parent), toys.random_batch(length=T)
    wanted = toys.scorer(parent)(params, batch)
    got = toys.scorer(child)(change(params) if change else params, batch)
    for field in ('logprob', 'entropy'):
        np.testing.assert_allclose(
            getattr(got, field), getattr(wanted, field), atol=atol, rtol=0, err_msg=field
        )


@pytest.mark.parametrize(
    'changes',
    [
        dict(o_bias=True),
        dict(mlp_bias=True),
        dict(embed_scale=4.0),
        dict(query_scale=0.9),
        dict(attention_softcap=1.0),
        dict(logit_softcap=2.0),
        dict(attention_pattern=('local',), window=2),
        dict(attention_pattern=('global_nope',)),
        dict(attention_pattern=('local',), window=T, rope_local_theta=9.0),
        dict(rope_fraction=1 / 3),
        dict(rope_scaling=scaling('linear', factor=4.0)),
        dict(qk_norm='row'),
        dict(norms='after'),
        dict(norms='around'),
        dict(activation='gelu'),
        dict(rope_theta=9.0),
    ],
    ids=lambda changes: '_'.join(changes),
)
def test_other_values_are_not(changes):
    """None of the fields is forgotten."""
    child = toys.changed(ONE, **changes)
    batch = toys.random_batch(length=T)
    a, b = (toys.scorer(config)(toys.params(config), batch) for config in (ONE, child))
    assert np.abs(a.logprob - b.logprob).max() > 1e-3


def test_no_positions_are_positions_of_zero():
    nope = toys.changed(attention_pattern=('global_nope',))
    params, batch = toys.params(), toys.random_batch(length=T)
    wanted = toys.scorer(toys.TINY)(
        params, batch | {'positions': np.zeros_like(batch['positions'])}
    )
    toys.assert_trees_equal(toys.scorer(nope)(params, batch), wanted)


def test_a_window_ends_where_it_says():
    """A token is reached from the `window` positions that follow it, its own included, and from no
    other."""
    config = toys.changed(ONE, attention_pattern=('local',), window=4)
    params = toys.params(config)
    batch = toys.batch([[3, 7, 2, 9, 5, 1, 8, 4, 6, 11, 12]], rows=1)
    before = np.asarray(toys.all_logits(config)(params, batch))
    for at in range(T):
        other = batch['tokens'].copy()
        other[0, at] = 1 + other[0, at] % 12
        moved = (
            np.abs(before - toys.all_logits(config)(params, batch | {'tokens': other})).max(-1)[0]
            > 0
        )
        assert np.flatnonzero(moved).tolist() == list(range(at, min(at + 4, T)))
