"""What `test_elastic` runs in a process that has eight devices: a run that moves from mesh to mesh,
and one that does not.

    python elastic.py FOLDER
"""

import itertools
import pathlib
import sys

import devices
import jax
import numpy as np
import pytest
from small_runs import install_rewards, quiet, share_updates

from reasonjax.errors import Stopped
from reasonjax.parallel import mesh as meshes
from reasonjax.reporting import report
from reasonjax.training import stopping
from reasonjax.training.run import run, trained

# Devices, config.mesh, and the steps up to the move.
EIGHT, FOUR, ONE = (8, dict(data=2, fsdp=4)), (4, dict(data=1, fsdp=2, tensor=2)), (1, dict(data=1))
LONG = (8, dict(data=1, fsdp=2, sequence=2, tensor=2))
MOVES = {
    'sft': ((*EIGHT, 2), (*FOUR, 1), (*ONE, 1), (*LONG, 99)),
    'grpo': ((*EIGHT, 2), (*FOUR, 99)),
}
STEPS = 5
CONFIGS = {
    'sft': (
        'configs/base.py',
        dict(
            train__batch_size=8,
            train__learning_rate__warmup_steps=0,
            train__optimizer__clip_norm=1.0,
        ),
    ),
    'grpo': (
        'configs/grpo.py',
        dict(
            stages="('grpo',)",
            grpo__num_prompts=8,
            grpo__num_generations=2,
            grpo__reward_workers=0,
            grpo__learning_rate__warmup_steps=0,
            grpo__rewards__accuracy__name='toy_rewards.digits',
            grpo__minibatches=1,
            grpo__learning_rate__peak=1e-3,
        ),
    ),
}


class Patch:
    """The two methods of pytest's monkeypatch that `install_rewards` uses, for good."""

    def syspath_prepend(self, path):
        sys.path.insert(0, path)

    def setenv(self, name, value):
        pass


def go(name, workdir, number, mesh, steps):
    """Runs until it is asked to stop after `steps` steps."""
    location, overrides = CONFIGS[name]
    stage = 'train' if name == 'sft' else 'grpo'
    sizes = {f'mesh__{axis}': mesh.get(axis, 1) for axis in meshes.AXES}
    if 'tensor' in mesh:  # heads are split for training, and not for sampling
        sizes['rollout__mesh__data'] = number
    config = quiet(location, **overrides | sizes | {f'{stage}__steps': STEPS})
    make = meshes.make_mesh
    meshes.make_mesh = lambda shape, **options: make(shape, jax.devices()[:number], **options)
    calls = itertools.count(1)
    stopping.asked = lambda: next(calls) == steps
    try:
        run(config, workdir)
        return True
    except Stopped:
        return False
    finally:
        meshes.make_mesh = make


if __name__ == '__main__':
    devices.collect_less()
    share_updates(pytest.MonkeyPatch())
    folder = pathlib.Path(sys.argv[1])
    assert len(jax.devices()) == 8
    install_rewards(folder, Patch())
    report.write = lambda workdir: None
    for name in CONFIGS:
        assert go(name, folder / name / 'alone', *EIGHT, 99)
        ended = [go(name, folder / name / 'moved', *move) for move in MOVES[name]]
        assert not any(ended[:-1]) and ended[-1], ended
        for kind in ('alone', 'moved'):
            np.savez(
                folder / name / f'{kind}.npz', *jax.tree.leaves(trained(folder / name / kind)[1])
            )
