"""Quantised models: which weights, what they compute, and that they never train."""

import jax
import numpy as np
import pytest
import toys

from reasonjax.errors import UserError
from reasonjax.interop.huggingface.families import LLAMA
from reasonjax.interop.peft.adapter import peft
from reasonjax.interop.peft.write import pairs_of, save_adapter
from reasonjax.methods import adapters, filters
from reasonjax.weights import partition
from reasonjax.weights.linear import LowRank, merge_tree
from reasonjax.weights.quantised import Quantised

KEY = jax.random.key(0)
QLORA = dict(r=2, lora_alpha=3.0, quantise_block=8)
EVERYTHING = (
    'layers/attention/q',
    'layers/attention/k',
    'layers/attention/v',
    'layers/attention/o',
    'layers/mlp/*',
)


def quantised(format='nf4', config=toys.TINY, modules=EVERYTHING, block=8):
    return adapters.quantise(
        toys.params(config), KEY, quantise=format, quantise_block=block, quantise_modules=modules
    )


def kinds(params):
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        params, is_leaf=lambda x: isinstance(x, Quantised)
    )
    return {partition.path_name(path) for path, leaf in leaves if isinstance(leaf, Quantised)}


def test_the_matrices_of_the_layers_and_no_other():
    matrices = {f'layers/attention/{m}' for m in 'qkvo'} | {
        f'layers/mlp/{m}' for m in ('up', 'gate', 'down')
    }
    assert kinds(adapters.quantise(toys.params(), KEY, quantise_block=8)) == matrices
    assert kinds(adapters.lora(toys.params(), KEY, quantise='int8', quantise_block=8)) == {
        f'{name}/base' for name in matrices
    }
    assert kinds(quantised(modules=('head', '*/q'))) == {'head', 'layers/attention/q'}


def test_none_is_the_parent():
    params = toys.params()
    assert adapters.quantise(params, KEY, quantise='none') is params
    ignored = adapters.lora(params, KEY, quantise='none', quantise_block=7, quantise_modules=('?',))
    toys.assert_trees_equal(ignored, adapters.lora(params, KEY))


@pytest.mark.parametrize('format', ['int8', 'nf4'])
def test_a_model_computes_with_its_dequantised_weights(format):
    batch, params = toys.random_batch(), quantised(format)
    wanted = toys.scorer(toys.TINY)(merge_tree(params), batch)
    toys.assert_trees_close(toys.scorer(toys.TINY)(params, batch), wanted, atol=2e-5)
    off = np.abs(wanted.logprob - toys.scorer(toys.TINY)(toys.params(), batch).logprob).max()
    assert (1e-4 if format == 'int8' else 1e-2) < off < (0.2 if format == 'int8' else 3)


def test_embedding_and_head_can_be_quantised_too():
    config = toys.changed(tied=True, vocab_size=16)
    batch, params = toys.random_batch(), quantised('int8', config, ('embed',))
    toys.assert_trees_close(
        toys.scorer(config)(params, batch),
        toys.scorer(config)(merge_tree(params), batch),
        atol=2e-5,
    )


@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
def test_qlora_equals_lora_over_the_dequantised_weights(remat):
    config, batch = toys.changed(scan=True, remat=remat), toys.random_batch()
    params = shaken(adapters.lora(toys.params(), KEY, quantise='nf4', **QLORA))
    over_dense = jax.tree.map(
        lambda leaf: (
            LowRank(leaf.base.merge(), leaf.a, leaf.b, leaf.scale)
            if isinstance(leaf, LowRank)
            else leaf
        ),
        params,
        is_leaf=lambda x: isinstance(x, LowRank),
    )

    def gradient(params):
        train, freeze = partition.partition(params, filters.lora(None, params))
        return jax.jit(
            jax.value_and_grad(
                lambda t: toys.weighted_score(partition.combine(t, freeze), config, batch)
            )
        )(train)

    (value, grads), (wanted_value, wanted) = gradient(params), gradient(over_dense)
    np.testing.assert_allclose(value, wanted_value, rtol=1e-5)
    named, wanted = (
        dict(zip(partition.names(grads), jax.tree.leaves(grads))),
        jax.tree.leaves(wanted),
    )
    assert len(named) == len(wanted) == 14 and all(name.endswith(('/a', '/b')) for name in named)
    for (name, got), want in zip(named.items(), wanted):
        assert np.abs(want).max() > 1e-4
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max(), err_msg=name)


def shaken(params):
    rng = np.random.default_rng(7)

    def move(path, x):
        return (
            x + 0.3 * rng.standard_normal(x.shape).astype(x.dtype)
            if partition.path_name(path).endswith('/b')
            else x
        )

    return jax.tree_util.tree_map_with_path(move, params)


def test_no_filter_chooses_what_is_quantised():
    for params in (quantised(), adapters.lora(toys.params(), KEY, quantise='nf4', **QLORA)):
        constant = {
            name
            for name in partition.names(params)
            if name.endswith(('/codes', '/absmax', '/scale'))
        }
        assert constant
        for tree in (
            filters.all(None, params),
            filters.paths(None, params),
            filters.paths(None, params, include=('layers/*', 'embed')),
        ):
            chosen = {
                name for name, flag in zip(partition.names(tree), jax.tree.leaves(tree)) if flag
            }
            assert 'layers/attention/norm' in chosen and not chosen & constant
        with pytest.raises(UserError, match='config.filter: include and exclude'):
            filters.paths(None, params, include=('*/codes', '*/absmax'))
    assert all(
        name.endswith(('/a', '/b'))
        for name in partition.names(partition.partition(params, filters.lora(None, params))[0])
    )


def test_a_pair_may_go_over_what_an_earlier_stage_has_quantised():
    params = quantised('int8')
    both = adapters.lora(params, KEY, r=2)
    toys.assert_trees_equal(both['layers']['mlp']['up'].base, params['layers']['mlp']['up'])
    toys.assert_trees_equal(
        both, adapters.lora(toys.params(), KEY, r=2, quantise='int8', quantise_block=8)
    )


def test_a_peft_adapter_goes_over_a_quantised_base(tmp_path):
    config = toys.changed(qkv_bias=False, qk_norm='none', head_dim=4)
    trained = shaken(adapters.lora(toys.params(config), KEY, quantise='nf4', **QLORA))
    save_adapter(tmp_path, pairs_of(trained, LLAMA, config), base='', layers=config.layers)
    read = peft(toys.params(config), KEY, path=str(tmp_path), quantise='nf4', quantise_block=8)
    assert jax.tree.structure(read) == jax.tree.structure(trained)
    toys.assert_trees_close(read, trained, atol=1e-6)


def test_what_is_refused_is_named():
    params = toys.params()
    with pytest.raises(
        UserError,
        match=r'config.adapter.quantise="nf": unknown. Did you mean "nf4"\? Known: int8, nf4, none',
    ):
        adapters.quantise(params, KEY, quantise='nf')
    with pytest.raises(
        UserError,
        match=r'_block=64: must be an even number that divides .*layers/attention/o has 24.*; nearest: 8',
    ):
        adapters.lora(params, KEY, quantise='nf4')
    for block in (0, -8, 3, 48):
        with pytest.raises(UserError, match=f'quantise_block={block}: must be'):
            adapters.quantise(params, KEY, quantise_block=block)
    assert (
        adapters.quantise(params, KEY, quantise='int8', quantise_block=1)['layers']['mlp'][
            'up'
        ].block
        == 1
    )
    odd = params | {'head': np.ones((15, 4), np.float32)}
    with pytest.raises(
        UserError, match='head has 15.*there is none; leave some out of quantise_modules'
    ):
        adapters.quantise(odd, KEY, quantise_modules=('head',))
    with pytest.raises(
        UserError, match=r'config.adapter.quantise_modules: "layers/\*norm" matches no matrix'
    ):
        adapters.quantise(params, KEY, quantise_modules=('layers/*norm',))
    with pytest.raises(
        UserError, match='layers/attention/k is quantised already; set quantise=none'
    ):
        adapters.lora(quantised(), KEY, quantise='int8', quantise_block=8)
    with pytest.raises(UserError, match='layers/attention/k has a low-rank pair over it'):
        adapters.quantise(adapters.lora(params, KEY), KEY, quantise_block=8)
    with pytest.raises(
        UserError,
        match=r'quantise_modules: "layers/mlp/\*" matches .*banks of experts and stay dense; .* quantised of',
    ):
        adapters.quantise(toys.params(toys.changed(experts=3)), KEY, quantise_block=8)
