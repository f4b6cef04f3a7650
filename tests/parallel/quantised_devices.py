"""What `test_quantised_devices` runs, in a process that has eight devices: prints nothing, writes
one .npz.

    python quantised_devices.py OUT MESH [MESH ...]    where MESH is like fsdp=4,tensor=2; fsdp=1 is one device
"""

import sys

import devices
import jax
import numpy as np
import toys
from several_devices import CONFIG, caught, made, parsed

from reasonjax.methods import adapters, filters
from reasonjax.model import spec
from reasonjax.model.placement import shardings
from reasonjax.parallel import mesh as meshes
from reasonjax.training import step
from reasonjax.weights import partition

# Blocks of 4 divide over four devices with the 16 rows they are cut from; of the two blocks of 8
# each device keeps all.
KINDS = {'int8': 4, 'nf4': 8}
TARGETS = ('layers/attention/q', 'layers/attention/o', 'layers/mlp/up')


def run(sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Loss and gradient of pairs over each kind of base (over dense ones: `several_devices`)."""
    mesh, tree = made(sizes), spec.specs(CONFIG)
    fresh = toys.params(CONFIG)
    rows = toys.random_batch(rows=16, length=12, config=CONFIG)
    out = {}
    kinds = KINDS if mesh.shape['sequence'] == 1 else {'nf4': KINDS['nf4']}
    for kind, block in kinds.items():
        bits = dict(quantise=kind, quantise_block=block, quantise_modules=TARGETS)
        params = adapters.lora(fresh, jax.random.key(1), r=2, target_modules=TARGETS, **bits)
        placement = shardings(tree, params, mesh)
        params = jax.device_put(params, placement)
        if 'tensor' in sizes:
            check_places(params, kind, sizes)
        chosen = filters.lora(tree, params)
        # Of zeros in B the gradient of A is zero.
        params = jax.tree_util.tree_map_with_path(
            lambda p, x: x + 0.1 if partition.path_name(p).endswith('/b') else x, params
        )
        now, loss = step_once(params, placement, chosen, caught(), mesh, rows)
        out |= {
            f'{kind}/gradient/{name}': x
            for name, x in zip(partition.names(now.optimizer), jax.tree.leaves(now.optimizer))
        }
        out[f'{kind}/loss'] = loss
    return jax.tree.map(np.asarray, out)


def check_places(params: dict, kind: str, sizes: dict[str, int]) -> None:
    """Codes and scales are split as the dense weight is, whose rows are the model's width and whose
    columns are the MLP's."""
    node, rows = params['layers']['mlp']['up'], sizes['fsdp'] * sizes.get('sequence', 1)
    assert (
        parts(node.a) == (1, rows, 1)
        and parts(node.b) == (1, 1, sizes['tensor'])
        and parts(node.scale) == (1,)
    )
    blocks = node.base.absmax.shape[1]
    fitting = rows if blocks % rows == 0 else sizes['fsdp'] if blocks % sizes['fsdp'] == 0 else 1
    assert parts(node.base.codes) == (1, rows, sizes['tensor']) and parts(node.base.absmax) == (
        1,
        fitting,
        sizes['tensor'],
    )
    assert (fitting < rows) == (kind == 'nf4')
    dense = params['layers']['mlp']['down']
    assert parts(dense) == (1, sizes['tensor'], rows)


def parts(x: jax.Array) -> tuple[int, ...]:
    """Over how many devices each axis is split."""
    return tuple(whole // own for whole, own in zip(x.shape, x.sharding.shard_shape(x.shape)))


def step_once(params, placement, chosen, optimizer, mesh, rows: dict) -> tuple:
    (trainable, frozen), (placed, _) = (
        partition.partition(params, chosen),
        partition.partition(placement, chosen),
    )
    whole = meshes.replicated(mesh)
    now = step.create(trainable, optimizer, placed, whole)
    homes = jax.tree.map(lambda x: x.sharding, now)
    update = jax.jit(
        meshes.on(mesh, step.make_update(CONFIG, toys.nll, optimizer)), out_shardings=(homes, whole)
    )
    now, metrics = update(now, frozen, meshes.place_batch(rows, mesh), jax.random.key(0))
    return now, metrics['loss']


if __name__ == '__main__':
    devices.collect_less()
    destination, *shapes = sys.argv[1:]
    assert len(jax.devices()) == 8
    np.savez(
        destination,
        **{f'{shape}/{name}': x for shape in shapes for name, x in run(parsed(shape)).items()},
    )
