"""A run that goes on on other devices: from 8 to 4 to 1 and back to 8, sharded in other ways each
time; sampling too."""

import json
import pathlib

import devices
import jax
import numpy as np
import pytest
from small_runs import records

from reasonjax import config as configs
from reasonjax.errors import UserError
from reasonjax.training import claim, saved_run

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('elastic')
    devices.on_eight(HERE / 'elastic.py', folder)
    return folder


@pytest.mark.parametrize('name', ['sft', 'grpo'])
def test_losses_go_on_to_rounding(name, folder):
    alone, moved = (records(folder / name / kind) for kind in ('alone', 'moved'))
    assert [r['step'] for r in alone] == [r['step'] for r in moved] == [1, 2, 3, 4, 5]
    for metric in ('loss', 'grad_norm', 'entropy', *(['reward'] if name == 'grpo' else [])):
        found, expected = ([r[metric] for r in records] for records in (moved, alone))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=metric)
    for counted in ('num_tokens', 'learning_rate', 'skipped_updates', 'rollbacks'):
        assert [r[counted] for r in alone] == [r[counted] for r in moved]
    ours, theirs = (np.load(folder / name / f'{kind}.npz') for kind in ('moved', 'alone'))
    # Adam divides by the size of a gradient, however small: rounding shows in the parameters more
    # than in the losses.
    assert (
        len(ours.files) > 5
        and max(np.abs(ours[leaf] - theirs[leaf]).max() for leaf in ours.files) < 1e-3
    )


def test_a_run_is_read_on_any_devices(folder):
    """Here there is one, and the run says eight."""
    found = saved_run.saved(folder / 'sft' / 'moved')
    assert found.step == 5 and found.run.mesh.size == 1
    leaves = np.load(folder / 'sft' / 'moved.npz')
    for name, leaf in zip(leaves.files, jax.tree.leaves(found.params), strict=True):
        np.testing.assert_array_equal(leaf, leaves[name])


def test_the_workdir_says_where_the_run_is_now_and_other_changes_are_refused(folder):
    path = folder / 'sft' / 'moved' / 'config.json'
    config = json.loads(path.read_text())
    assert config['mesh']['data'] == 1 and config['mesh']['sequence'] == 2
    loaded = configs.from_json(path.read_text())
    with loaded.unlocked():
        loaded.mesh.fsdp, loaded.seed = 1, 1
    with pytest.raises(UserError, match='config.seed') as error:
        claim.claim(loaded, path.parent)
    assert 'config.seed: 0 -> 1' in str(error.value) and 'mesh' not in str(error.value)
