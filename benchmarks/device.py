"""What an accelerator reaches, against what it can do: ceilings, SFT, drawing at several batch
sizes, GRPO of a LoRA policy.

    python -m benchmarks.device                              on the accelerator that is here
    python -m benchmarks.device --write docs --json device.json
    python -m benchmarks.device --only sft --set sft.batch_size=16 --set model.remat=dots
    JAX_PLATFORMS=cpu python -m benchmarks.device --size small       does it run? (on tiny models)

Each part is a process of its own, kept in the folder with the settings it was measured with;
nothing is downloaded.
"""

import argparse
import datetime
import json
import pathlib
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import peer_env, peer_runs, summary
from reasonjax import config as configs
from reasonjax.errors import UserError, listing, nearest

PARTS = ('ceilings', 'sft', 'decode', 'grpo')
BATCHES = (8, 32, 128)
ROOT = pathlib.Path(__file__).parent.parent
FILE = ROOT / 'configs' / 'device.py'
TIMEOUT_S = 1800
# Of configs/device.py, to see that everything runs.
SMALL = {
    'model.vocab_size': 512,
    'model.dim': 32,
    'model.layers': 1,
    'model.heads': 4,
    'model.kv_heads': 2,
    'model.head_dim': 16,
    'model.mlp_dim': 64,
    'model.logprob_chunk': 0,
    'sft.batch_size': 2,
    'sft.data.max_length': 64,
    'grpo.num_prompts': 2,
    'grpo.num_generations': 4,
    'grpo.data.max_prompt_length': 16,
    'grpo.max_completion_length': 8,
    'grpo.steps': 3,
}
TARGETS = 'targets on an H200: SFT 50 % of the product, decoding 80 % at batch 8 and 50 % at 128, GRPO 1,600 tokens/s'


def ceilings(size: str) -> dict:
    """FLOP/s of a bfloat16 product, bytes/s of a copy, and what the device is."""
    import jax

    from benchmarks import programs

    found = (
        programs.ceilings('bfloat16', 8192, 4096)
        if size == 'full'
        else programs.ceilings('bfloat16', 256, 16)
    )
    device = jax.devices()[0]
    return found._asdict() | {
        'device': device.device_kind,
        'platform': device.platform,
        'devices': len(jax.devices()),
    }


def config_of(part: str, size: str, overrides: Sequence[tuple[str, str]] = ()) -> Any:
    """The config of a part; overrides have the last word."""
    variant = '' if part == 'sft' else f':{part}'
    small = [(key, str(value)) for key, value in SMALL.items()] if size == 'small' else []
    return configs.load(f'{FILE}{variant}', [*small, *overrides])


def sft(size: str, overrides: Sequence[tuple[str, str]] = ()) -> dict:
    """The update of a supervised stage, full rows: seconds, tokens/s and FLOP/s that the result
    needs, for one device."""
    from benchmarks import programs, stage_runs
    from reasonjax.planning.programs import StagePrograms

    with tempfile.TemporaryDirectory() as folder:
        run, stage = stage_runs.opened(config_of('sft', size, overrides), pathlib.Path(folder))
        program = next(StagePrograms(run, stage).programs(('train',)))
        found = programs.timed(program, repeats=5, traced=False)
    per = found.seconds * run.mesh.size
    return {'seconds': found.seconds, 'tokens_s': found.tokens / per, 'flop_s': found.flops / per}


def decode(size: str, overrides: Sequence[tuple[str, str]] = ()) -> dict:
    """Drawing completions of full length, by batch size: seconds, tokens/s and the bytes/s of
    weights and cache."""
    from benchmarks import programs, stage_runs
    from reasonjax.planning.programs import StagePrograms

    found = {}
    for batch in BATCHES:
        with tempfile.TemporaryDirectory() as folder:
            generations = config_of('decode', size, overrides).grpo.num_generations
            some = [*overrides, ('grpo.num_prompts', str(batch // generations))]
            run, stage = stage_runs.opened(config_of('decode', size, some), pathlib.Path(folder))
            planned = StagePrograms(run, stage)
            program = next(planned.programs(('decode',)))
            seconds = programs.timed(program, repeats=3, traced=False).seconds
        moved = read_bytes(run.model, planned.params, planned.settings)
        found[str(batch)] = {
            'seconds': seconds,
            'tokens_s': program.tokens / seconds,
            'byte_s': moved / seconds,
        }
    return found


def read_bytes(model: Any, params: Any, settings: Mapping) -> float:
    """Bytes that drawing all completions has to read: per token place all weights once, each
    prompt's cache once (its completions share it), and each completion's own cache as far as it has
    come. Weights and caches are of the compute dtype; of the embedding only the rows that are
    looked up, unless it is the head.
    """
    import jax
    import jax.numpy as jnp

    itemsize = jnp.dtype(model.compute_dtype).itemsize
    weights = sum(
        x.size
        for name, x in params.items()
        if name != 'embed' or model.tied
        for x in jax.tree.leaves(x)
    )
    position = 2 * model.layers * model.kv_heads * model.head_dim
    prompts, length = settings['num_prompts'], settings['max_completion_length']
    own = prompts * settings['num_generations'] * (length + 1) / 2
    return (
        itemsize
        * length
        * (weights + position * (prompts * settings['data']['max_prompt_length'] + own))
    )


def grpo(size: str, overrides: Sequence[tuple[str, str]] = ()) -> dict:
    """Whole steps of an online stage: tokens/s for one device, of completions alone and with their
    prompts, and phases."""
    from benchmarks import stage_runs

    with tempfile.TemporaryDirectory() as folder:
        run, stage = stage_runs.opened(config_of('grpo', size, overrides), pathlib.Path(folder))
        notes = stage_runs.train(stage_runs.without_end(run), stage)
    settings, seconds = (
        run.config.grpo,
        statistics.median(record['step_time'] for _, record in notes[1:]),
    )
    rows = settings.num_prompts * settings.num_generations
    drawn, read = (
        rows * settings.max_completion_length,
        rows * settings.data.max_prompt_length,
    )
    per = seconds * run.mesh.size
    return {
        'seconds': seconds,
        'drawn_s': drawn / per,
        'tokens_s': (drawn + read) / per,
        'phases': stage_runs.phases(notes),
    }


RUN = {
    'ceilings': lambda size, overrides: ceilings(size),
    'sft': sft,
    'decode': decode,
    'grpo': grpo,
}


def table(found: Mapping[str, Mapping | None]) -> str:
    """What was measured against the ceilings; a part that was not says so."""
    roof = found['ceilings']
    rows = [['', 'measured', 'of the ceiling']]
    rows.append(['bfloat16 product, TFLOP/s', f'{roof["matmul"] / 1e12:,.3g}', ''])
    rows.append(['copy, GB/s read and written', f'{roof["copy"] / 1e9:,.3g}', ''])
    if one := found.get('sft'):
        rows.append(
            [
                'SFT, tokens/s a device',
                f'{one["tokens_s"]:,.0f}',
                f'{one["flop_s"] / roof["matmul"]:.0%} of the product',
            ]
        )
    for batch, one in (found.get('decode') or {}).items():
        rows.append(
            [
                f'decoding at batch {batch}, tokens/s',
                f'{one["tokens_s"]:,.0f}',
                f'{one["byte_s"] / roof["copy"]:.0%} of the copy',
            ]
        )
    if one := found.get('grpo'):
        phases = ', '.join(f'{name} {seconds:.2f} s' for name, seconds in one['phases'].items())
        rows.append(['GRPO, tokens/s a device, prompts included', f'{one["tokens_s"]:,.0f}', ''])
        rows.append(
            [
                'GRPO, drawn tokens/s a device',
                f'{one["drawn_s"]:,.0f}',
                f'step {one["seconds"]:.2f} s: {phases}',
            ]
        )
    rows += [[part, 'not yet measured', ''] for part in PARTS if not found.get(part)]
    return summary.markdown(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        'python -m benchmarks.device', description=__doc__, formatter_class=raw
    )
    parser.add_argument('--size', choices=('small', 'full'), default='full')
    parser.add_argument('--only', default='', help=f'parts, comma-separated, of {", ".join(PARTS)}')
    parser.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='KEY=VALUE',
        help='of the config of configs/device.py',
    )
    parser.add_argument(
        '--folder',
        type=pathlib.Path,
        default=pathlib.Path('runs/device'),
        help='where results are kept',
    )
    parser.add_argument(
        '--json', type=pathlib.Path, metavar='FILE', help='writes what was measured'
    )
    parser.add_argument(
        '--write',
        type=pathlib.Path,
        metavar='FOLDER',
        help='puts the table into FOLDER/PERFORMANCE.md',
    )
    parser.add_argument(
        '--part', choices=PARTS, help='measures a part in this process and prints JSON'
    )
    given = parser.parse_args(arguments)
    overrides = [tuple(pair.split('=', 1)) for pair in given.set]
    if any(len(pair) != 2 for pair in overrides):
        parser.error('--set takes KEY=VALUE')

    from reasonjax import programs

    def program() -> None:
        if given.part:
            programs.start(skip_selfcheck=False)
            print(json.dumps(RUN[given.part](given.size, overrides)))
        else:
            _all(given)

    return programs.run_program(program)


def _all(given: argparse.Namespace) -> None:
    wanted = [name for name in given.only.split(',') if name]
    for name in wanted:
        if name not in PARTS:
            raise UserError(
                f'--only={given.only}: no part "{name}".{nearest(name, PARTS)} Parts: '
                f'{listing(PARTS)}.'
            )
    found: dict[str, Mapping | None] = {}
    for part in PARTS:
        file = given.folder / given.size / f'{part}.json'
        if part == 'ceilings' or not wanted or part in wanted:
            more = [
                option for pair in given.set if part != 'ceilings' for option in ('--set', pair)
            ]
            if file.is_file() and json.loads(file.read_text())['more'] != more:
                file.unlink()
            command = [
                sys.executable,
                '-m',
                'benchmarks.device',
                '--size',
                given.size,
                '--part',
                part,
                *more,
            ]
            peer_runs.measure(command, file, {'more': more}, {}, TIMEOUT_S)
        found[part] = _kept(file)
        print(f'{part}: {"failed, or not measured" if found[part] is None else "done"}', flush=True)
    if found['ceilings'] is None:
        raise UserError('the ceilings could not be measured, so there is nothing to compare with.')
    text = page(found, given.size)
    print(f'\n{text}\n')
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + '\n')
    if given.write:
        summary.write(given.write / 'PERFORMANCE.md', 'device', text)


def _kept(file: pathlib.Path) -> dict | None:
    if not file.is_file():
        return None
    return {
        name: value
        for name, value in json.loads(file.read_text()).items()
        if name not in ('more', 'process_s')
    }


def page(found: Mapping[str, Mapping | None], size: str) -> str:
    """The section of docs/PERFORMANCE.md."""
    roof, versions = found['ceilings'], peer_env.versions(sys.executable)
    shown = ', '.join(
        f'{name} {versions[name]}'
        for name in ('jax', 'jaxlib', 'flax', 'optax')
        if name in versions
    )
    devices = f'{roof["devices"]} x {roof["device"]} ({roof["platform"]})'
    note = '' if size == 'full' else ' Tiny models, to show that it runs: the numbers mean nothing.'
    return f'{datetime.date.today()}, {devices}, Python {platform.python_version()}, {shown}; {TARGETS}.{note}\n\n{table(found)}'


if __name__ == '__main__':
    sys.exit(main())
