"""What `test_plan` runs in a process that has eight simulated devices; writes one JSON file.

python planned_devices.py OUT
"""

import json
import pathlib
import sys
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from reasonjax import config as configs
from reasonjax.model import reshard, spec
from reasonjax.model.config import ModelConfig
from reasonjax.model.placement import shardings
from reasonjax.parallel import mesh as meshes
from reasonjax.planning import hlo, shapes, topology
from reasonjax.planning.plan import plan
from reasonjax.planning.programs import StagePrograms, plan_run, planned_stage

LENGTH = 5
# Config, what is changed of it, and the programs wanted (all by default).
CASES = {
    'grpo': ('configs/grpo.py', {}, ()),
    'kl': (
        'configs/grpo.py',
        {'grpo.objective.beta': '0.1', 'grpo.minibatches': '2', 'rollout.mesh.data': '8'},
        ('train', 'decode', 'iteration'),
    ),
    'parts': (
        'configs/grpo.py',
        {'grpo.prompts_at_once': '8', 'rollout.mesh.data': '8'},
        ('prefill', 'decode'),
    ),
    'lora': (
        'configs/grpo.py',
        {'grpo.adapter.name': 'lora', 'grpo.filter.name': 'lora', 'grpo.objective.beta': '0.1'},
        ('train',),
    ),
    'sft': ('configs/sft.py', {'train.accumulation': '2'}, ()),
}
SHARED = {
    'mesh.data': '2',
    'mesh.fsdp': '2',
    'mesh.tensor': '2',
    'model.layers': '2',
    'model.scan': 'True',
    'model.remat': 'full',
}


def looped(devices: list) -> dict:
    """Three collectives in a loop of known length, and one outside it."""
    mesh = Mesh(devices, ('x',), axis_types=(AxisType.Auto,))

    @partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec('x'), out_specs=PartitionSpec('x'))
    def program(x: jax.Array) -> jax.Array:
        def body(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            x = x + jax.lax.ppermute(x, 'x', [(i, (i + 1) % 8) for i in range(8)])
            x = x * jax.lax.psum(jnp.sin(x), 'x')
            return x + jnp.cos(jax.lax.all_gather(x, 'x')).sum(0), None

        x, _ = jax.lax.scan(body, x, None, length=LENGTH)
        return x / jax.lax.psum(x, 'x')

    shape = jax.ShapeDtypeStruct(
        (8 * 100,), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec('x'))
    )
    return hlo.by_kind(hlo.Module(jax.jit(program).lower(shape).compile().as_text()).collectives(8))


def moved(devices: list) -> dict:
    """Parameters from eight-way fsdp to four-way data x two-way tensor: what is sent, and whether
    they are the same where they belong."""
    config = ModelConfig(
        vocab_size=64, dim=32, layers=2, heads=4, kv_heads=4, head_dim=8, mlp_dim=64, tied=True
    )
    specs = spec.specs(config)
    here = meshes.make_mesh(dict(data=1, fsdp=8), devices)
    there = meshes.reshaped(here, dict(data=4, tensor=2), 'rollout.mesh')
    params = spec.initialise(specs, jax.random.key(0), 'float32')
    params = jax.device_put(params, shardings(specs, params, here))
    move = jax.jit(lambda params: reshard.moved(specs, params, there, 'bfloat16'))
    found, homes = move(params), shardings(specs, params, there)
    for before, after, home in zip(*map(jax.tree.leaves, (params, found, homes)), strict=True):
        assert after.sharding.is_equivalent_to(home, after.ndim)
        assert (before.astype(after.dtype) == jax.device_put(after, before.sharding)).all()
    assert found['norm'].dtype == 'float32' and found['embed'].dtype == 'bfloat16'
    return hlo.by_kind(hlo.Module(move.lower(params).compile().as_text()).collectives(8))


def planned(where: topology.Topology, devices: list) -> dict:
    found = {}
    for name, (path, overrides, programs) in CASES.items():
        config = configs.load(path, tuple((SHARED | overrides).items()))
        found[name] = plan(config, where, devices, programs=programs)
        stage = StagePrograms(plan_run(config, devices), planned_stage(config))
        found[name]['shards'] = [
            [path, shapes.bytes_of(leaf), str(leaf.sharding.spec)]
            for path, leaf in (
                (jax.tree_util.keystr(p), x)
                for p, x in jax.tree_util.tree_leaves_with_path(stage.params)
            )
        ]
    return found


if __name__ == '__main__':
    where = topology.parse('cpu:8')
    devices = topology.devices(where)
    found = {'looped': looped(devices), 'moved': moved(devices), 'planned': planned(where, devices)}
    pathlib.Path(sys.argv[1]).write_text(json.dumps(found))
