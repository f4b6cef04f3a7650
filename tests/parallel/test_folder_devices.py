"""A Hugging Face folder on one device and on eight (simulated, in a process of their own): import,
a mixture's training and sampling."""

import pathlib

import devices
import jax
import numpy as np
import pytest
import toys

from reasonjax.interop.huggingface import exported
from reasonjax.interop.huggingface.families import FAMILIES

pytest.importorskip('transformers')

HERE = pathlib.Path(__file__).parent
MESHES = ('data=2,expert=4', 'fsdp=2,expert=2,tensor=2')
ONE = 'expert=1'
SHAPE = toys.changed(vocab_size=16, qk_norm='none', qkv_bias=False, pad_id=-1, head_dim=4)
FOLDERS = {
    'experts': toys.changed(SHAPE, qk_norm='head', experts=4, experts_per_token=2, mlp_dim=8),
    'phi3': toys.changed(SHAPE, rope_fraction=0.5),
    # Widths that an axis of two or four does not divide.
    'odd': toys.changed(
        SHAPE, vocab_size=13, mlp_dim=9, heads=4, kv_heads=1, head_dim=6, qkv_bias=True, tied=True
    ),
}


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('folders')
    for name, config in FOLDERS.items():
        (root / name).mkdir()
        family = next((f for f in FAMILIES if f.model_type == name), None) or exported.family_of(
            config
        )
        exported.save_tensors(root / name, family, config, toys.params(config), dtype='float32')
        exported.transformers_config(family, config).save_pretrained(root / name)
    return root


@pytest.fixture(scope='module')
def found(folders, tmp_path_factory):
    """By mesh, what it came to."""
    out = tmp_path_factory.mktemp('devices') / 'found.npz'
    return devices.by_mesh(HERE / 'folder_devices.py', out, folders, ONE, *MESHES)


@pytest.mark.parametrize('shape', MESHES)
def test_eight_devices_equal_one(found, shape):
    one, several = found[ONE], found[shape]
    assert set(several) == set(one)
    for name, wanted in one.items():
        got = several[name]
        if name.startswith(tuple(FOLDERS)) or name == 'rollout/tokens':
            np.testing.assert_array_equal(got, wanted, err_msg=name)
        else:
            np.testing.assert_allclose(got, wanted, atol=2e-6, rtol=2e-5, err_msg=name)
    assert several['step1/loss'] < several['step0/loss'] and several['step0/router/z_loss'] > 0
    assert all(np.abs(x).max() > 1e-4 for name, x in one.items() if name.startswith('moved/'))


def test_the_reference_is_what_was_written(found):
    one = found[ONE]
    for name, config in FOLDERS.items():
        kept = {
            key.removeprefix(f'{name}/'): x for key, x in one.items() if key.startswith(f'{name}/')
        }
        wanted = jax.tree_util.tree_leaves_with_path(toys.params(config))
        assert len(kept) == len(wanted)
        for path, x in wanted:
            np.testing.assert_array_equal(kept['/'.join(p.key for p in path)][: len(x)], x)
    assert one['odd/embed'].shape == (16, 16) and one['experts/embed'].shape == (16, 16)
