"""What `test_several_devices` runs, in a process that has eight devices: prints nothing, writes one
.npz.

    python several_devices.py OUT MESH [MESH ...]    where MESH is like fsdp=4,tensor=2; a mixture's names `expert`

The sizes of a mesh say how many of the devices it has: fsdp=1 is one.
"""

import math
import sys
from types import SimpleNamespace

import devices
import jax
import jax.numpy as jnp
import numpy as np
import optax
import toys

from reasonjax import reduce
from reasonjax.methods import adapters, filters
from reasonjax.methods.objectives import clipped_policy_gradient
from reasonjax.model import spec
from reasonjax.model.placement import shardings
from reasonjax.parallel import mesh as meshes
from reasonjax.sampling.sampler import Rollout, Sampling, generate
from reasonjax.training import step as state
from reasonjax.training.batching import Packer, assemble, layout_of
from reasonjax.weights import partition

# Chunks that do not divide the 12 tokens of a row evenly.
CONFIG = toys.changed(
    vocab_size=16,
    scan=True,
    remat='save:attended',
    logprob_chunk=5,
    attention_chunk=5,
    gated=False,
    qkv_bias=False,
)
MIXTURE = toys.changed(
    CONFIG,
    gated=True,
    experts=4,
    mlp_dim=8,
    router_balance_weight=0.3,
    router_z_weight=0.02,
    remat='full',
)
SAMPLING = Sampling(num_generations=2, max_tokens=6, eos_ids=(2,))
STEPS = 3


def preferences(score, batch, key):
    """An objective over pairs of rows, the better first (Rafailov et al. 2023, arXiv:2305.18290,
    equation 7), beside the likelihood of both: one program, because each takes seconds to
    compile."""
    scored = score(batch)
    likelihood, metrics = toys.nll(lambda _: scored, batch, key)
    margin_B = jnp.sum(batch['weights'] * (scored.logprob - batch['logprob_ref']), axis=1)
    better, worse = margin_B.reshape(-1, 2).T
    loss = -2 * jnp.sum(jax.nn.log_sigmoid(0.1 * (better - worse))) / batch['step_rows']
    return likelihood + loss, metrics | {'preference': reduce.Sum(loss)}


def reinforcement(score, batch, key):
    return clipped_policy_gradient(score, batch, key, beta=0.1, epsilon_high=0.3)


def grouped(mesh, packing: bool) -> dict:
    """Eight prompts with two completions each, prompts beside them or, where the mesh splits a row,
    in the rows: the same step."""
    rng, C = np.random.default_rng(6), 7
    segments = (np.arange(5) >= rng.integers(0, 4, (8, 1))).astype(np.int32)
    prompts = {
        'tokens': rng.integers(1, 16, (8, 5)) * segments,
        'segments': segments,
        'positions': np.maximum(segments.cumsum(1) - 1, 0),
    }
    length = rng.integers(1, C + 1, (8, 2))
    alive = np.arange(C) < length[..., None]
    logprob = rng.normal(-3, 0.3, (8, 2, C)) * alive
    rollout = Rollout(
        rng.integers(1, 16, (8, 2, C)) * alive,
        logprob,
        alive * 1.0,
        length,
        rng.random((8, 2)) < 0.8,
    )
    share = mesh.shape['sequence'] == 1
    stage = dict(
        num_prompts=8,
        num_generations=2,
        minibatches=1,
        accumulation=2,
        share_prompts=share,
        packing=packing and share,
    )
    layout = layout_of(SimpleNamespace(**stage), mesh, 'grpo')
    batch, _ = Packer(layout)(
        assemble(prompts, rollout, rng.normal(size=(8, 2)), layout, mask_truncated=True)
    )
    return batch | {
        'logprob_old': batch['logprob_sampled'],
        'logprob_ref': 1.1 * batch['logprob_sampled'],
    }


def caught() -> optax.GradientTransformation:
    """No update at all; its state is the gradient."""

    def nothing(tree):
        return jax.tree.map(jnp.zeros_like, tree)

    return optax.GradientTransformation(
        nothing, lambda grads, state, params=None: (nothing(grads), grads)
    )


def run(sizes: dict[str, int], config) -> dict[str, np.ndarray]:
    """Fresh weights; loss and gradient of each kind of step; on some meshes a rollout and three
    steps on low-rank pairs."""
    mesh = made(sizes)
    tree = spec.specs(config)
    placement = shardings(tree, spec.abstract(tree, 'float32'), mesh)
    fresh = jax.jit(lambda key: spec.initialise(tree, key, 'float32'), out_shardings=placement)(
        jax.random.key(0)
    )
    out = {f'fresh/{name}': x for name, x in zip(partition.names(fresh), jax.tree.leaves(fresh))}
    rows = toys.random_batch(rows=16, length=12, config=config)
    rng = np.random.default_rng(5)
    near = {
        name: rng.normal(-3, 0.3, (16, 12)).astype(np.float32)
        for name in ('logprob_old', 'logprob_ref')
    }
    kinds = (
        {'supervised': (toys.nll, rows, 1)}
        if config.experts
        else {'preferences': (preferences, rows | {'logprob_ref': near['logprob_ref']}, 2)}
    )
    kinds['groups'] = (reinforcement, grouped(mesh, packing=not config.experts), 1)
    for kind, (objective, given, together) in kinds.items():
        now, metrics = steps(
            objective,
            given,
            caught(),
            together,
            fresh,
            filters.all(tree, fresh),
            tree,
            config,
            mesh,
            number=1,
        )
        out |= {
            f'{kind}/gradient/{name}': x
            for name, x in zip(partition.names(now.optimizer), jax.tree.leaves(now.optimizer))
        }
        # The most loaded expert of a micro-batch: which sequences share one depends on the form.
        left_out = {'router/max_load'} if kind == 'groups' else set()
        out |= {f'{kind}/{name}': x for name, x in metrics[0].items() if name not in left_out}
    if not config.experts and mesh.shape['sequence'] == 1:
        pairs = adapters.lora(fresh, jax.random.key(1), r=2)
        now, metrics = steps(
            toys.nll,
            rows,
            optax.adamw(0.01),
            1,
            pairs,
            filters.lora(tree, pairs),
            tree,
            config,
            mesh,
            number=STEPS,
        )
        out |= {'lora/losses': np.array([m['loss'] for m in metrics])}
        out |= {
            f'lora/{name}': x
            for name, x in zip(partition.names(now.trainable), jax.tree.leaves(now.trainable))
        }
    return jax.tree.map(np.asarray, out | sample(fresh, config, mesh))


def sample(params: dict, config, mesh) -> dict:
    """A rollout on the mesh of training; where that splits heads, one on another mesh too, the
    weights resharded in the program."""
    given = toys.random_batch(rows=8, config=config)
    prompts = {name: given[name][:, :4] for name in ('tokens', 'positions')} | {
        'segments': np.ones((8, 4), np.int32)
    }
    out, others = {}, {}
    if mesh.shape['tensor'] > 1:
        others['other'] = meshes.reshaped(mesh, {'data': -1}, 'rollout.mesh')
    for name, of_rollout in ({'same': mesh} | others).items():
        homes = shardings(spec.specs(config), params, of_rollout)

        def draw(params, prompts, key, homes=homes):
            return generate(
                jax.lax.with_sharding_constraint(params, homes), config, prompts, key, SAMPLING
            )

        placed = meshes.place_batch(prompts | {'index': np.arange(8)}, of_rollout)
        rollout = jax.jit(meshes.on(of_rollout, draw))(params, placed, jax.random.key(2))
        out |= {
            f'rollout/{name}/tokens': rollout.tokens,
            f'rollout/{name}/logprob': rollout.logprob,
        }
    if mesh.size == 1:  # there is no other mesh of one device
        out |= {name.replace('/same/', '/other/'): x for name, x in out.items()}
    return out


def steps(
    objective,
    rows: dict,
    optimizer,
    together: int,
    params,
    chosen,
    tree,
    config,
    mesh,
    *,
    number: int,
) -> tuple:
    placement = shardings(tree, params, mesh)
    params = jax.device_put(params, placement)
    (trainable, frozen), (placed, _) = (
        partition.partition(params, chosen),
        partition.partition(placement, chosen),
    )
    now = state.create(trainable, optimizer, placed, meshes.replicated(mesh))
    homes = jax.tree.map(lambda x: x.sharding, now)
    update = jax.jit(
        meshes.on(
            mesh, state.make_update(config, objective, optimizer, accumulation=2, together=together)
        ),
        out_shardings=(homes, None),
    )
    batch = meshes.place_batch(rows, mesh)
    metrics = []
    for i in range(number):
        now, measured = update(now, frozen, batch, jax.random.key(i))
        metrics.append(measured)
    assert update._cache_size() == 1, 'the step was compiled again'
    return now, metrics


def made(sizes: dict[str, int]) -> jax.sharding.Mesh:
    """A mesh of the first devices."""
    return meshes.make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])


def parsed(shape: str) -> dict[str, int]:
    return {axis: int(size) for axis, size in (part.split('=') for part in shape.split(','))}


if __name__ == '__main__':
    devices.collect_less()
    destination, *shapes = sys.argv[1:]
    assert len(jax.devices()) == 8
    found = {}
    for shape in shapes:
        config = MIXTURE if 'expert' in shape else CONFIG
        found |= {f'{shape}/{name}': x for name, x in run(parsed(shape), config).items()}
    np.savez(destination, **found)
