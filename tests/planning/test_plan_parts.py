"""Topologies, rooflines, the search for what fits, and the program: in this process, on one
device."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasonjax import config as configs
from reasonjax import plan as program
from reasonjax.errors import UserError
from reasonjax.methods import advantages
from reasonjax.planning import fit, plan, topology
from reasonjax.planning import programs as plan_programs
from reasonjax.planning.roofline import Work, roofline
from reasonjax.training import batching
from reasonjax.training.context import fresh_params
from reasonjax.training.step import fresh
from reasonjax.weights.partition import partition

ONE = topology.parse('cpu:1')
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='no TPU compiler here (pip install libtpu)'
)


@pytest.mark.parametrize(
    'name, chips, devices',
    [
        ('v5e:16x16', 256, 256),
        ('2*v5p:4x4x4', 128, 128),
        ('tpu7x:2x2x1', 4, 8),
        ('v6e:2x4', 8, 8),
        ('v4:2x2x2', 8, 16),
        ('cpu:8', 8, 8),
    ],
)
def test_topologies_by_name(name, chips, devices):
    where = topology.parse(name)
    assert (where.chips, where.size) == (chips, devices)


@pytest.mark.parametrize(
    'name, said',
    [
        ('v5p-128', 'expected GENERATION:SHAPE'),
        ('v5litepod:4x4', 'unknown generation "v5litepod"'),
        ('v5f:4x4', 'Did you mean "v5'),
        ('v7x:2x2x1', 'tpu7x'),
        ('v5e:3x5', 'nearest: v5e:2x4, v5e:4x4'),
        ('v5e:32x32', r'nearest: .*v5e:16x16.*several slices: 2\*v5e'),
        ('v5e:4x4x4', 'nearest: .*v5e:8x8'),
        ('v5p:4x4', 'nearest: .*v5p:2x2x4'),
        ('cpu:2x2', 'cpu:N'),
        ('0*v5e:4x4', 'nearest'),
    ],
)
def test_topologies_that_are_not(name, said):
    with pytest.raises(UserError, match=said):
        topology.parse(name)


def test_a_process_cannot_have_more_devices_than_it_began_with():
    jax.devices()
    with pytest.raises(UserError, match='--topology cpu:4096'):
        topology.devices(topology.parse('cpu:4096'))


def test_roofline_by_hand():
    chip = topology.Chip('x', 100.0, 0, 10.0, 5.0, 1.0, 2, 0, 2, 1)
    # A chip of two devices: 50 flop/s, 5 B/s of memory, 2.5 B/s to neighbours, 0.5 B/s to other
    # slices each.
    assert roofline(chip, [Work(200.0, 10.0)], 5.0, 0.5) == (4.0, 2.0, 2.0, 1.0, 4.0, 'compute')
    assert roofline(chip, [Work(200.0, 40.0)], 5.0, 0.5)[4:] == (8.0, 'memory')
    assert roofline(chip, [Work(200.0, 10.0)], 25.0, 0.5)[4:] == (10.0, 'interconnect')
    assert roofline(chip, [Work(200.0, 10.0)], 5.0, 30.0)[4:] == (60.0, 'network')
    # Phases follow one another, and do not share what is idle.
    assert roofline(chip, [Work(50.0, 30.0), Work(200.0, 5.0)], 0, 0) == (
        5.0,
        7.0,
        0,
        0,
        10.0,
        'memory',
    )


def tiny(**overrides):
    sizes = dict(layers=1, dim=32, heads=2, kv_heads=2, head_dim=16, mlp_dim=64)
    small = {f'model.{name}': str(size) for name, size in sizes.items()}
    small |= {
        'grpo.num_prompts': '4',
        'grpo.num_generations': '2',
        'grpo.max_completion_length': '8',
    }
    return configs.load('configs/grpo.py', tuple((small | overrides).items()))


def test_planned_programs_run_and_agree():
    """With arrays in place of shapes: prefill and decode are the sampler, and the whole iteration
    is they, rewards and the update."""
    config = tiny()
    run = plan_programs.plan_run(config, jax.devices()[:1])
    stage = plan_programs.StagePrograms(run, plan_programs.planned_stage(config))
    programs = {one.name: one for one in stage.programs()}
    params = fresh_params(run)
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 18, (4, 10)).astype(np.int32)
    prompts = {
        'tokens': tokens,
        'segments': np.ones_like(tokens),
        'positions': np.tile(np.arange(10, dtype=np.int32), (4, 1)),
    }
    prompts['index'] = np.arange(4, dtype=np.int32)
    key, rewards = jax.random.key(1), rng.random((4, 2)).astype(np.float32)

    cache = programs['prefill'].function(params, prompts)
    rollout = jax.device_get(programs['decode'].function(params, prompts, cache, key))
    advantage, _ = advantages.group_relative(jnp.asarray(rewards), jnp.ones((4, 2), bool))
    batch = batching.minibatches(
        batching.assemble(prompts, rollout, np.asarray(advantage)), stage.settings
    )[0]
    assert {name: (np.shape(x), np.asarray(x).dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in programs['train'].arguments[2].items()
    }
    trainable, frozen = partition(params, stage.chosen)
    copies = [jax.tree.map(jnp.copy, trainable) for _ in range(2)]
    separate, measured = programs['train'].function(
        fresh(copies[0], stage.optimizer, 0), frozen, batch, jax.random.fold_in(key, 0)
    )
    together, also = programs['iteration'].function(
        fresh(copies[1], stage.optimizer, 0), frozen, (), prompts, rewards, key
    )
    for name in measured:
        np.testing.assert_allclose(also[name], measured[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for a, b in zip(jax.tree.leaves(separate.trainable), jax.tree.leaves(together.trainable)):
        np.testing.assert_allclose(a, b, atol=1e-5)
    # What scores is what the update sees.
    found = programs['score'].function(
        params, {name: batch[name] for name in programs['score'].arguments[1]}
    )
    np.testing.assert_allclose(
        found * batch['weights'], batch['logprob_sampled'] * batch['weights'], atol=1e-4
    )


# Logits dominate: 8 rows x 512 tokens x 4096 words x 4 bytes are 64 MiB, of which the step holds
# several.
WORDY = {
    'stages': "('warmup',)",
    'warmup.data.max_length': '512',
    'warmup.batch_size': '8',
    'model.vocab_size': '4096',
    'model.remat': 'full',
}


def wordy():
    config = tiny(**WORDY).unlock()
    config.model.attention_chunk = 128
    return config


def test_the_smallest_change_that_fits_is_found_by_compiling():
    config = wordy()
    logits = 8 * 512 * 4096 * 4
    small = dataclasses.replace(ONE, chip=dataclasses.replace(ONE.chip, usable=1.6 * logits))
    found = plan.plan(config, small, jax.devices()[:1], programs=('train',))
    assert (
        not found['fits']
        and found['programs']['train']['limit'] == 1.6 * logits < found['programs']['train']['peak']
    )
    said = []
    trials = fit.search(
        config, small, jax.devices()[:1], 'warmup', ('train',), ('train',), said.append
    )
    commands = [fit.command(trial.candidate.overrides) for trial in trials]
    assert commands == ['--config.model.logprob_chunk=256', '--config.model.logprob_chunk=128']
    assert said == [f'trying {command}' for command in commands]
    assert [trial.fits for trial in trials] == [False, True]
    coarse, fine = (trial.programs[0].peak for trial in trials)
    assert fine <= 1.6 * logits < coarse < found['programs']['train']['peak']


def test_what_cannot_fit_is_not_compiled():
    config = wordy()
    nothing = dataclasses.replace(ONE, chip=dataclasses.replace(ONE.chip, usable=1000.0))
    trials = fit.search(
        config, nothing, jax.devices()[:1], 'warmup', ('train',), ('train',), lambda text: None
    )
    assert trials and not any(trial.fits or trial.programs for trial in trials)
    assert 'of parameters, optimiser and batch alone' in trials[0].refused
    whats = [trial.candidate.what for trial in trials]
    assert (
        whats.index('micro-batches of 4 rows')
        < whats.index('all of these together')
        < len(whats) - 1
    )
    assert whats[-1].startswith('parameters and moments in bfloat16') and whats[-1].endswith(
        'all before'
    )


def test_programs_and_stages_that_are_not_there():
    config = tiny()
    with pytest.raises(UserError, match='no such training stage.*Did you mean "grpo"'):
        plan_programs.planned_stage(config, 'grp')
    assert (
        plan_programs.planned_stage(config).name == 'grpo'
        and plan_programs.planned_stage(config, 'warmup').number == 0
    )
    with pytest.raises(UserError, match='no such program. Did you mean "decode"'):
        plan.plan(config, ONE, jax.devices()[:1], programs=('decod',))
    with pytest.raises(UserError, match='has no such program.*It has: score, train'):
        plan.plan(config, ONE, jax.devices()[:1], stage='warmup', programs=('decode',))
    with pytest.raises(UserError, match='accumulation=3: does not divide 8 rows'):
        plan.plan(tiny(**{'grpo.accumulation': '3'}), ONE, jax.devices()[:1])
    config.unlock().tokenizer = dict(name='huggingface', path='/nowhere')
    with pytest.raises(UserError, match='give --config.model.vocab_size'):
        plan_programs.plan_run(config, jax.devices()[:1])


def test_the_program(capsys):
    shrink = [
        '--config.model.layers=1',
        '--config.grpo.num_prompts=4',
        '--config.grpo.max_completion_length=4',
    ]
    assert (
        program.main(
            [
                '--config',
                'configs/grpo.py',
                '--topology',
                'cpu:1',
                '--program',
                'score,prefill',
                '--json',
                *shrink,
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [
        'topology',
        'mesh',
        'stage',
        'model',
        'programs',
        'fits',
        'compile_seconds',
        'peak_host_bytes',
    ]
    assert (
        list(found['programs']) == ['score', 'prefill']
        and found['topology']['usable_bytes_per_device'] is None
    )
    assert program.main(['--config', 'configs/grpo.py', '--topology', 'v5e:7x7']) == 2
    assert 'nearest: v5e:4x8, v5e:8x16, v5e:8x8' in capsys.readouterr().err
    assert (
        program.main(
            ['--config', 'configs/grpo.py', '--topology', 'cpu:1', '--program', 'prefill', *shrink]
        )
        == 0
    )
    shown = capsys.readouterr()
    assert 'compiling prefill' in shown.err and 'prefill' in shown.out and 'parameters' in shown.out


def test_prompts_that_are_shared_are_counted_once():
    jobs = {}
    for share in ('True', 'False'):
        config = tiny(
            **{'grpo.num_generations': '4', 'grpo.share_prompts': share, 'grpo.accumulation': '2'}
        )
        run = plan_programs.plan_run(config, jax.devices()[:1])
        stage = plan_programs.StagePrograms(run, plan_programs.planned_stage(config))
        jobs[share] = next(stage.programs(('train',))), stage
    (shared, stage), (apart, _) = jobs['True'], jobs['False']
    # 16 completions of 8 tokens to 4 prompts of 10, and the head on completions alone.
    assert (shared.tokens, apart.tokens) == (16 * 8 + 4 * 10, 16 * 18)
    heads = [
        next(p for p, _ in one.phases[0][0] if p.name == 'head').rows for one in (shared, apart)
    ]
    assert heads == [16 * 8, 16 * 18]
    assert {name: x.shape for name, x in shared.arguments[2].items() if x.shape} == (
        dict.fromkeys(('tokens', 'segments', 'positions', 'weights', 'logprob_sampled'), (16, 8))
        | {'advantage': (16,)}
        | dict.fromkeys(('prompt_tokens', 'prompt_segments', 'prompt_positions'), (4, 10))
    )
    assert stage.widest == 10 and shared.useful < 0.6 * apart.useful
    # As many copies as devices and micro-batches need, and no more.
    config = tiny(**{'grpo.num_generations': '4', 'grpo.accumulation': '8'})
    copied = plan_programs.StagePrograms(
        plan_programs.plan_run(config, jax.devices()[:1]), plan_programs.planned_stage(config)
    )
    assert copied.layout.copies == 2 and copied.tokens(16) == 16 * 8 + 8 * 10


@needs_libtpu
def test_a_pod_that_is_not_here(capsys):
    arguments = [
        '--config',
        'configs/grpo.py',
        '--config.model.layers=1',
        '--config.model.compute_dtype=bfloat16',
        '--config.mesh.fsdp=2',
    ]
    arguments += ['--program', 'score', '--json', '--topology', 'v5e:2x2']
    assert program.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    one = found['programs']['score']
    assert (
        found['mesh']['data'] == found['mesh']['fsdp'] == 2
        and 0 < one['peak'] < one['limit'] == 15.75 * 2**30
    )
    assert one['time']['compute'] == pytest.approx(one['flops'] / 4 / 197e12)
    assert one['time']['interconnect'] == pytest.approx(one['sent'] / 200e9) and one['sent'] > 0
    assert 0 < one['mfu'] <= 1
    # Attention over prompts of 16384 tokens, all of it at once: 4 heads x 16384 x 16384 x 4 bytes a
    # prompt, 8 prompts a device.
    assert program.main([*arguments, '--config.grpo.data.max_prompt_length=16384', '--no-fit']) == 0
    found = json.loads(capsys.readouterr().out)
    one = found['programs']['score']
    assert (
        not found['fits']
        and one['peak'] > 8 * 4 * 16384 * 16384 * 4
        and one['time'] is None
        and 'fit' not in found
    )


def test_both_messages_of_too_little_memory_are_read():
    start = 'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: '
    early = 'Ran out of memory on HBM, the total memory required for HLO temporaries (16.17G) exceeds available HBM (15.75G).'
    late = 'XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 16.64G of 15.75G hbm. Exceeded by 918.69M.'
    assert plan.bytes_needed(start + early) == pytest.approx(16.17 * 2**30)
    assert plan.bytes_needed(start + late) == pytest.approx(16.64 * 2**30)
    assert plan.bytes_needed('INTERNAL: something else') is None
