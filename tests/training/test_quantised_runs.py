"""QLoRA in runs: it dies and goes on bit for bit, is not mistaken for another quantisation, and
leaves as any other model does."""

import json

import folders
import jax
import numpy as np
import peft
import pytest
import torch
import toys
import transformers
from small_runs import checkpoints, crash, crash_in_update, left_behind, quiet

from reasonjax.errors import UserError
from reasonjax.interop.huggingface import export
from reasonjax.methods import adapters
from reasonjax.reporting import report
from reasonjax.training.checkpoint import Checkpoints, load_params
from reasonjax.training.context import abstract_params, open_run, stages_of
from reasonjax.training.run import initial, run
from reasonjax.training.saved_run import saved
from reasonjax.weights import partition
from reasonjax.weights.linear import LowRank, is_weight, merge_tree
from reasonjax.weights.quantised import Quantised


def small(**overrides):
    return quiet(
        'configs/lora.py:qlora',
        pretrain__steps=1,
        lora__steps=4,
        lora__checkpoint_every=1,
        **overrides,
    )


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'alone'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'write', lambda workdir: None)
        run(small(), workdir)
    return workdir


def test_deaths_change_nothing(alone, tmp_path):
    config = small()
    for death in (
        crash_in_update(2),
        crash(Checkpoints, 'save', 1, after=True),
        crash(Checkpoints, 'save', 2),
    ):
        with death:
            run(config, tmp_path)
    run(config, tmp_path)
    assert left_behind(tmp_path) == left_behind(alone)
    ours, theirs = checkpoints(tmp_path), checkpoints(alone)
    assert ours.keys() == theirs.keys()
    for name in ours:
        toys.assert_trees_equal(ours[name][0], theirs[name][0])


def test_only_the_pairs_have_moved(alone):
    before, after = saved(alone, 'pretrain').params, saved(alone).params
    leaf = after['layers']['mlp']['up']
    assert (
        isinstance(leaf, LowRank) and isinstance(leaf.base, Quantised) and leaf.base.format == 'nf4'
    )
    fresh = adapters.quantise(before, jax.random.key(0), quantise_block=32)
    bases = jax.tree.map(
        lambda leaf: leaf.base if isinstance(leaf, LowRank) else leaf, after, is_leaf=is_weight
    )
    toys.assert_trees_equal(bases, fresh)
    assert np.abs(leaf.b).max() > 0


def test_another_quantisation_is_refused(alone):
    stage = stages_of(saved(alone).run.config, alone)[-1]
    for override, message in (
        (dict(lora__adapter__quantise_block=16), r'\.block: expected 16, found 32'),
        (dict(lora__adapter__quantise='int8'), r"\.format: expected 'int8', found 'nf4'"),
        (dict(lora__adapter__quantise='none'), r"'?LowRank'?|only in the checkpoint"),
    ):
        other = open_run(small(**override), alone, active=False)
        with pytest.raises(UserError, match=message):
            load_params(stage.folder / 'checkpoints', abstract_params(other, stage.number))


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    return folders.write(tmp_path_factory.mktemp('base') / 'tiny')


@pytest.fixture(scope='module')
def adapted(base, tmp_path_factory):
    """A run that starts from the folder, and its parameters with pairs that are not zero over a
    base in 4 bits."""
    config = quiet('configs/hf.py:lora', init=f'hf:{base}', model__compute_dtype='float32')
    of_run = open_run(config, tmp_path_factory.mktemp('runs') / 'hf', active=False)
    params = adapters.lora(
        initial(of_run), jax.random.key(0), r=2, quantise='nf4', quantise_block=16
    )
    rng = np.random.default_rng(0)

    def move(path, x):
        return (
            x + 0.1 * rng.standard_normal(x.shape).astype(x.dtype)
            if partition.path_name(path).endswith('/b')
            else x
        )

    return of_run, jax.tree_util.tree_map_with_path(move, params)


def logits_of_torch(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.float().numpy()


def ours(of_run, params, tokens):
    positions = np.tile(np.arange(tokens.shape[1]), (len(tokens), 1))
    batch = {'tokens': tokens, 'segments': np.ones_like(tokens), 'positions': positions}
    return np.asarray(toys.all_logits(toys.changed(of_run.model, pad_id=-1))(params, batch))


def test_merged_it_is_a_model_like_any_other(base, adapted, tmp_path):
    of_run, params = adapted
    export.export(of_run, params, tmp_path / 'merged', base=base, dtype='float32')
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'merged').eval()
    tokens = np.random.default_rng(1).integers(0, 250, (2, 9))
    theirs = logits_of_torch(model, tokens)
    np.testing.assert_allclose(
        ours(of_run, params, tokens)[..., : theirs.shape[-1]], theirs, atol=1e-4
    )
    np.testing.assert_allclose(
        ours(of_run, merge_tree(params), tokens)[..., : theirs.shape[-1]], theirs, atol=1e-4
    )


def test_the_pairs_alone_are_for_the_folder_the_base_was_rounded_from(base, adapted, tmp_path):
    of_run, params = adapted
    export.export(of_run, params, tmp_path / 'adapter', base=base, adapter=True)
    assert json.loads((tmp_path / 'adapter' / 'adapter_config.json').read_text())['r'] == 2
    # PEFT puts them over the folder's own weights; over the rounded ones, they are the model that
    # was trained.
    rounded = jax.tree.map(
        lambda leaf: leaf.base.merge() if isinstance(leaf, LowRank) else leaf,
        params,
        is_leaf=is_weight,
    )
    export.export(of_run, rounded, tmp_path / 'rounded', base=base, dtype='float32')
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'rounded')
    loaded = peft.PeftModel.from_pretrained(model, str(tmp_path / 'adapter')).eval()
    tokens = np.random.default_rng(1).integers(0, 250, (2, 9))
    theirs = logits_of_torch(loaded, tokens)
    np.testing.assert_allclose(
        ours(of_run, params, tokens)[..., : theirs.shape[-1]], theirs, atol=1e-4
    )
    other = folders.write(tmp_path / 'other', seed=5)
    with pytest.raises(
        UserError, match='the adapter alone is not what was trained: .* are not those of'
    ):
        export.export(of_run, params, tmp_path / 'out', base=other, adapter=True)
