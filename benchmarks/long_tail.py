"""Completions of very unequal length: the long-tail part of `benchmarks.peers`, and ours with other
settings.

    python -m benchmarks.long_tail                 all systems, and ours as SETTINGS below
    python -m benchmarks.long_tail --only ours     ours alone
    python -m benchmarks.long_tail --write docs    the table of settings goes to docs/PERFORMANCE.md

What is measured is kept in the folder that `benchmarks.peers` keeps its own in, and each of the two
uses what the other has.
"""

import argparse
import datetime
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence

from benchmarks import peer_data, peer_env, peer_runs, peers, summary, workload
from reasonjax.bounds import AtLeast, flag
from reasonjax.errors import UserError

# Title -> overrides of configs/benchmark.py:long_tail. The first is what `benchmarks.peers`
# measures.
SETTINGS = {
    'as configured': {},
    'completions not packed': {'packing': False},
    'no halving of the batch': {'sampler.halvings': 0},
    'full-length cache from the start': {'sampler.cache_length': 0},
    '8 slots, refilled': {'sampler.slots': 8, 'sampler.burst': 8, 'sampler.halvings': 0},
    '16 slots, refilled, then 8': {
        'sampler.slots': 16,
        'sampler.burst': 8,
        'sampler.halvings': 1,
    },
    'none of these': {
        'sampler.halvings': 0,
        'sampler.cache_length': 0,
        'packing': False,
        'share_prompts': False,
    },
}


def table(measurements: Sequence[Mapping]) -> str:
    """A row for each setting: step, how many times faster than the first, phases, memory."""
    settings = list(dict.fromkeys(m['setting'] for m in measurements))
    of = {setting: [m for m in measurements if m['setting'] == setting] for setting in settings}
    phases = list(dict.fromkeys(name for m in measurements for name in m['phases']))
    steps = {
        setting: summary.spread(m['grpo_long_tail_step_s'] for m in of[setting])
        for setting in settings
    }
    rows = [['setting', 'step, s', 'speed', *(f'{name}, s' for name in phases), 'peak GB']]
    for setting in settings:
        times = steps[settings[0]].median / steps[setting].median
        seconds = [
            statistics.median(m['phases'].get(name, 0.0) for m in of[setting]) for name in phases
        ]
        memory = summary.spread(m['peak_gb'] for m in of[setting])
        cells = [
            summary.shown(steps[setting]),
            f'{times:.2f}x',
            *(f'{s:.3f}' for s in seconds),
            summary.digits(memory.median),
        ]
        rows.append([setting, *cells])
    return summary.markdown(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        'python -m benchmarks.long_tail', description=__doc__, formatter_class=raw
    )
    parser.add_argument(
        '--rounds',
        type=flag(AtLeast(1)),
        default=3,
        help='times everything is measured (default 3)',
    )
    parser.add_argument(
        '--only', default='', help=f'systems, comma-separated, of {", ".join(peer_env.SYSTEMS)}'
    )
    parser.add_argument(
        '--folder',
        type=pathlib.Path,
        default=pathlib.Path('runs/peers'),
        help='of benchmarks.peers',
    )
    parser.add_argument(
        '--cores',
        type=flag(AtLeast(0)),
        default=0,
        help='processor cores to use; 0: all this process may use',
    )
    parser.add_argument(
        '--quick', action='store_true', help='hardly any work: does everything run?'
    )
    parser.add_argument('--fresh', action='store_true', help='measures again what is there')
    parser.add_argument(
        '--write',
        type=pathlib.Path,
        metavar='FOLDER',
        help='puts the table of settings into FOLDER/PERFORMANCE.md',
    )
    given = parser.parse_args(arguments)
    try:
        systems = peers.chosen(given.only, tuple(peer_env.SYSTEMS), 'only')
        failed = peers.compare(
            argparse.Namespace(**vars(given) | {'json': None, 'write': None}),
            systems,
            ['long_tail'],
        )
        return int(settings(given) or failed) if 'ours' in systems else failed
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def settings(given: argparse.Namespace) -> bool:
    """Measures ours with each setting. Returns whether something failed."""
    folder = given.folder.resolve()
    results, kept, failed = folder / ('quick' if given.quick else 'results'), [], False
    data = peer_data.prepare(folder / 'data', peer_data.source())
    for number in range(given.rounds):
        for i, (title, overrides) in enumerate(SETTINGS.items()):
            more = [f'--config.grpo.{name}={value}' for name, value in overrides.items()]
            file = peer_runs.file_of(
                results / 'settings' if i else results,
                number,
                f'long_tail_{i}' if i else 'long_tail',
                'ours',
            )
            if given.fresh and i:
                file.unlink(missing_ok=True)
            about = {
                'system': 'ours',
                'what': 'long_tail',
                'round': number,
                'cores': workload.cores(),
                'more': more,
            }
            environment = dict(peer_env.SYSTEMS['ours'].environment) | (
                {workload.QUICK: '1'} if given.quick else {}
            )
            found = peer_runs.measure(
                peer_runs.command_of('ours', sys.executable, 'long_tail', data, more),
                file,
                about,
                environment,
            )
            failed |= found is None
            if found is not None and found.get('more', []) != (
                more if i else found.get('more', [])
            ):
                raise UserError(
                    f'{file} was measured with other settings ({found["more"]}); remove it.'
                )
            kept += [found | {'setting': title}] if found is not None else []
    if not kept:
        raise UserError(f'nothing was measured; {results}/*.log say why.')
    where = f'{datetime.date.today()}, {summary.hardware()}, {kept[0]["cores"]} used'
    text = f'{where}; medians, range in brackets.\n\n{table(kept)}'
    print(f'\n{text}\n')
    if given.write:
        summary.write(given.write / 'PERFORMANCE.md', 'long_tail', text)
    return failed


if __name__ == '__main__':
    sys.exit(main())
