"""What `test_folder_devices` runs, in a process that has eight devices: prints nothing, writes one
.npz.

    python folder_devices.py OUT FOLDERS MESH [MESH ...]    where MESH is like fsdp=4,tensor=2; expert=1 is one device
"""

import pathlib
import sys

import devices
import jax
import numpy as np
import optax
import toys
from several_devices import made, parsed

from reasonjax.interop.huggingface import pretrained
from reasonjax.model import config as model_config
from reasonjax.model import spec
from reasonjax.model.placement import shardings
from reasonjax.parallel import mesh as meshes
from reasonjax.sampling.sampler import Sampling, generate
from reasonjax.training import step
from reasonjax.weights import partition

RUN = dict(scan=True, router_balance_weight=0.3, router_z_weight=0.02)
SAMPLING = Sampling(num_generations=2, max_tokens=6, eos_ids=(2,))


def run(root: pathlib.Path, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Parameters of every folder; of the mixture, two training steps and a rollout."""
    mesh = made(sizes)
    out = {}
    for path in sorted(root.iterdir()):
        folder = pretrained.read_folder(path)
        # The smallest embedding is grown to the size of the others.
        config = model_config.from_config(
            folder.fields | RUN | {'vocab_size': 16}, vocab_size=0, pad_id=0
        )
        params = pretrained.load(folder, config, mesh)
        placement = shardings(spec.specs(config), params, mesh)
        for (name, leaf), home in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(placement), strict=True
        ):
            assert leaf.sharding.is_equivalent_to(home, leaf.ndim), (
                f'{name} does not live where it should'
            )
            out[f'{path.name}/{partition.path_name(name)}'] = leaf
        if config.experts:
            out |= train(config, params, placement, mesh) | sample(config, params, mesh)
    return jax.tree.map(np.asarray, out)


def train(
    config: model_config.ModelConfig, params: dict, placement: dict, mesh: jax.sharding.Mesh
) -> dict:
    optimizer = optax.sgd(0.1)
    now = step.create(params, optimizer, placement, meshes.replicated(mesh))
    homes = jax.tree.map(lambda x: x.sharding, now)
    update = jax.jit(
        meshes.on(mesh, step.make_update(config, toys.nll, optimizer)), out_shardings=(homes, None)
    )
    batch = meshes.place_batch(toys.random_batch(rows=8, config=config), mesh)
    frozen, out = jax.tree.map(lambda _: None, params), {}
    for number in range(2):
        now, metrics = update(now, frozen, batch, jax.random.key(number))
        out |= {f'step{number}/{name}': value for name, value in metrics.items()}
    # Plain gradient descent: how far a weight moved is its gradient.
    moved = jax.tree.map(np.subtract, *jax.device_get((params, now.trainable)))
    return out | {
        f'moved/{name}': x for name, x in zip(partition.names(moved), jax.tree.leaves(moved))
    }


def sample(config: model_config.ModelConfig, params: dict, mesh: jax.sharding.Mesh) -> dict:
    given = {
        name: x[:, :4]
        for name, x in toys.random_batch(rows=8, config=config).items()
        if name in ('tokens', 'positions')
    }
    prompts = meshes.place_batch(
        given | {'segments': np.ones((8, 4), np.int32), 'index': np.arange(8)}, mesh
    )
    draw = meshes.on(mesh, lambda p, x, key: generate(p, config, x, key, SAMPLING))
    rollout = jax.jit(draw)(params, prompts, jax.random.key(2))
    return {'rollout/tokens': rollout.tokens, 'rollout/logprob': rollout.logprob}


if __name__ == '__main__':
    devices.collect_less()
    destination, folders, *shapes = sys.argv[1:]
    assert len(jax.devices()) == 8
    found = {
        f'{s}/{name}': x
        for s in shapes
        for name, x in run(pathlib.Path(folders), parsed(s)).items()
    }
    np.savez(destination, **found)
