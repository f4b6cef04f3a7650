"""What fits where, before a pod is rented: models x topologies, each planned in a process of its
own, as docs/PLAN.md.

    python -m benchmarks.plan_table --folder runs/plans
    python -m benchmarks.plan_table --folder runs/plans --write docs
    python -m benchmarks.plan_table --folder runs/plans --only qwen3_8b@v5e:16x16,collectives

It plans what is not there yet; with --write it writes docs/PLAN.md and its figure too. Every plan
is kept in the folder as the JSON that `reasonjax.plan` prints, so that a table that was stopped
resumes.
"""

import argparse
import datetime
import json
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence

from reasonjax.errors import listing, nearest
from reasonjax.planning import topology

ROOT = pathlib.Path(__file__).parent.parent
# Parameters, to choose meshes by.
MODELS = {
    'qwen3_0_6b': 0.6e9,
    'qwen3_1_7b': 1.7e9,
    'qwen3_8b': 8.2e9,
    'qwen3_32b': 32.8e9,
    'llama3_70b': 70.6e9,
}
TOPOLOGIES = ('v5e:4x4', 'v5e:16x16', 'v6e:16x16', 'v5p:4x4x4', 'tpu7x:4x4x4')
ROWS = 2048
PROGRAMS = ('train', 'score', 'prefill', 'decode')
# Devices of a small slice.
SMALL = 64
# Of a device's memory, how much the weights may take while sampling.
WEIGHTS_SHARE = 0.25
# The figure: one model, tokens per device constant, meshes by how devices are used.
FIGURE_MODEL, FIGURE_SIZES = 'qwen3_1_7b', ('2x2', '4x4', '8x8', '16x16')
FIGURE_MESHES = {
    'data': lambda n: dict(data=n, fsdp=1),
    'fsdp': lambda n: dict(data=1, fsdp=n),
    'fsdp x tensor 4': lambda n: dict(data=1, fsdp=n // 4, tensor=4),
}
FIGURE_LAYERS, ROWS_PER_DEVICE = 4, 4


def cells() -> Iterator[tuple[str, list[str]]]:
    """Name and command line of every plan."""
    for name in TOPOLOGIES:
        for model in MODELS:
            yield (
                f'{model}@{name}',
                [
                    f'--config=configs/plan.py:{model}',
                    f'--topology={name}',
                    *_overrides(model, topology.parse(name)),
                ],
            )
    for shape in FIGURE_SIZES:
        devices = math.prod(map(int, shape.split('x')))
        for series, mesh in FIGURE_MESHES.items():
            overrides = {f'mesh.{axis}': size for axis, size in mesh(devices).items()}
            overrides |= {
                'grpo.num_prompts': devices,
                'grpo.num_generations': ROWS_PER_DEVICE,
                'grpo.accumulation': 1,
            }
            overrides |= {'model.layers': FIGURE_LAYERS}
            yield (
                f'collectives@{series}@{devices}',
                [
                    f'--config=configs/plan.py:{FIGURE_MODEL}',
                    f'--topology=v5e:{shape}',
                    '--program=train',
                    '--no-fit',
                    *(f'--config.{key}={value}' for key, value in overrides.items()),
                ],
            )


def _overrides(model: str, where: topology.Topology) -> list[str]:
    """Weights over all devices, a row of each micro-batch on every one; for sampling, weights over
    as few as hold them."""
    devices = where.size
    tensor = 1
    while 2 * MODELS[model] / tensor > WEIGHTS_SHARE * where.chip.usable and tensor < 8:
        tensor *= 2
    chosen = {
        'mesh.data': 1,
        'mesh.fsdp': devices,
        'grpo.accumulation': ROWS // devices,
        'rollout.mesh.data': devices // tensor,
        'rollout.mesh.tensor': tensor,
    }
    if devices < SMALL:
        # It cannot hold the cache of all completions.
        chosen['grpo.prompts_at_once'] = devices // tensor
    return [
        f'--program={",".join(PROGRAMS)}',
        *(f'--config.{key}={value}' for key, value in chosen.items()),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        'python -m benchmarks.plan_table', description=__doc__, formatter_class=raw
    )
    parser.add_argument('--folder', required=True, type=pathlib.Path, help='where plans are kept')
    parser.add_argument(
        '--only', default='', help='plans whose name begins with one of these, comma-separated'
    )
    parser.add_argument(
        '--write', type=pathlib.Path, help='folder for PLAN.md and plan_collectives.svg'
    )
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    every, wanted = dict(cells()), tuple(filter(None, options.only.split(',')))
    for start in wanted:
        if not any(name.startswith(start) for name in every):
            parser.error(
                f'no plan begins with {start}.{nearest(start, every)} Plans: {listing(every)}'
            )
    for name, command in every.items():
        file = options.folder / f'{name.replace(":", "_").replace(" ", "_")}.json'
        if not file.is_file() and (not wanted or name.startswith(wanted)):
            _plan(name, command, file)
    if options.write:
        write({name: _read(options.folder, name) for name in every}, options.write)
    return 0


def _plan(name: str, command: list[str], file: pathlib.Path) -> None:
    print(f'== {name}: python -m reasonjax.plan {" ".join(command)}', flush=True)
    program = [sys.executable, '-m', 'reasonjax.plan', *command, '--json']
    done = subprocess.run(
        program, stdout=subprocess.PIPE, text=True, env=os.environ | {'JAX_PLATFORMS': 'cpu'}
    )
    # A run that is refused (a mesh that does not divide it) is a result too; what went wrong is on
    # the terminal.
    found = json.loads(done.stdout) if done.returncode == 0 else {'refused': done.returncode}
    plan = found | {'command': command, 'commit': _commit()}
    file.write_text(json.dumps(plan, indent=1) + '\n')


def _commit() -> str:
    """Return the commit of the checkout that plans, with a plus sign where files differ from it."""
    command = ['git', 'describe', '--always', '--dirty=+']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or 'unknown'


def _read(folder: pathlib.Path, name: str) -> dict | None:
    file = folder / f'{name.replace(":", "_").replace(" ", "_")}.json'
    return json.loads(file.read_text()) if file.is_file() else None


def write(plans: dict[str, dict | None], folder: pathlib.Path) -> None:
    """Writes the page and the figure."""
    from benchmarks import plan_page

    missing = [name for name, found in plans.items() if found is None]
    if missing:
        print(f'not planned yet, left out: {", ".join(missing)}', file=sys.stderr)
    there = {
        name: found for name, found in plans.items() if found is not None and 'refused' not in found
    }
    (folder / 'PLAN.md').write_text(
        plan_page.page(there, tuple(MODELS), TOPOLOGIES, datetime.date.today())
    )
    plan_page.figure(
        {name: found for name, found in there.items() if name.startswith('collectives@')},
        folder / plan_page.FIGURE,
    )
    print(f'wrote {folder / "PLAN.md"}')


if __name__ == '__main__':
    sys.exit(main())
