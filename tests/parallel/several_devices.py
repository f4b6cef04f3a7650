"""What `test_several_devices` runs, here and in a process that has eight devices: prints nothing, writes one .npz.

    python several_devices.py OUT MESH [MESH ...]    where MESH is data,fsdp,tensor
"""

import sys

import jax
import numpy as np
import optax
import toys

from reasonjax import state
from reasonjax.methods import adapters, filters
from reasonjax.model import spec
from reasonjax.parallel import mesh as meshes
from reasonjax.rollout.sampler import Sampling, generate
from reasonjax.weights import partition

CONFIG = toys.changed(vocab_size=16, scan=True, remat='full', logprob_chunk=4, gated=False, qk_norm='none', qkv_bias=False)
SAMPLING = Sampling(num_generations=2, max_tokens=6, eos_ids=(2,))
STEPS = 3


def run(*sizes: int) -> dict[str, np.ndarray]:
    """Fresh weights, three steps of AdamW on them, and on one kind of mesh
    each a rollout and three steps on low-rank pairs."""
    mesh = meshes.make_mesh(dict(zip(meshes.AXES, sizes)))
    tree = spec.specs(CONFIG)
    placement = meshes.shardings(tree, spec.abstract(tree, 'float32'), mesh)
    fresh = jax.jit(lambda key: spec.initialise(tree, key, 'float32'), out_shardings=placement)(jax.random.key(0))
    out = {f'fresh/{name}': x for name, x in zip(partition.names(fresh), jax.tree.leaves(fresh))}
    starts = {'dense': fresh}
    if mesh.shape['tensor'] > 1 or mesh.size == 1:
        starts['lora'] = adapters.lora(fresh, jax.random.key(1), r=2)
    for kind, params in starts.items():
        out |= {f'{kind}/{name}': x for name, x in train(kind, params, tree, mesh).items()}
    if mesh.shape['data'] > 1 and mesh.shape['fsdp'] > 1 or mesh.size == 1:
        out |= sample(fresh, mesh)
    return jax.tree.map(np.asarray, out)


def sample(params: dict, mesh) -> dict:
    prompts = meshes.place_batch(
        {name: toys.random_batch(rows=8, config=CONFIG)[name][:, :4] for name in ('tokens', 'positions')}
        | {'segments': np.ones((8, 4), np.int32), 'index': np.arange(8)},
        mesh,
    )
    rollout = jax.jit(lambda p, x, key: generate(p, CONFIG, x, key, SAMPLING))(params, prompts, jax.random.key(2))
    return {'rollout/tokens': rollout.tokens, 'rollout/logprob': rollout.logprob}


def train(kind: str, params: dict, tree: dict, mesh) -> dict:
    placement = meshes.shardings(tree, params, mesh)
    params = jax.device_put(params, placement)
    chosen = filters.lora(tree, params) if kind == 'lora' else filters.all(tree, params)
    (trainable, frozen), (placed, _) = partition.partition(params, chosen), partition.partition(placement, chosen)
    optimizer = optax.adamw(0.01)
    now = state.create(trainable, optimizer, placed, meshes.replicated(mesh))
    homes = jax.tree.map(lambda x: x.sharding, now)
    for leaf, home in zip(jax.tree.leaves(now.optimizer[0].mu), jax.tree.leaves(placed), strict=True):
        assert leaf.sharding.is_equivalent_to(home, leaf.ndim), 'a moment does not live with its weight'
    update = jax.jit(
        state.make_update(CONFIG, toys.nll, optimizer, accumulation=2),
        donate_argnums=0,
        out_shardings=(homes, None),
    )
    batch = meshes.place_batch(toys.random_batch(rows=16, config=CONFIG), mesh)
    losses = []
    for number in range(STEPS):
        now, metrics = update(now, frozen, batch, jax.random.key(number))
        losses.append(metrics['loss'])
    assert update._cache_size() == 1, 'the step was compiled again'
    return {'losses': np.array(losses)} | dict(zip(partition.names(now.trainable), jax.tree.leaves(now.trainable)))


if __name__ == '__main__':
    destination, *shapes = sys.argv[1:]
    assert len(jax.devices()) == 8
    found = {f'{shape}/{name}': x for shape in shapes for name, x in run(*map(int, shape.split(','))).items()}
    np.savez(destination, **found)
