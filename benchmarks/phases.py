"""Where our time goes on the workload: phases of a step, each compiled program alone, and kinds of
operations in it.

    python -m benchmarks.phases --folder runs/peers
    python -m benchmarks.phases --folder runs/peers --write docs    tables to docs/PERFORMANCE.md

The phases of whole steps are those that `benchmarks.peers` has measured in that folder, where it
has.
"""

import argparse
import datetime
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence

from benchmarks import peer_data, peer_ours, peer_runs, summary
from reasonjax import config as configs
from reasonjax.bounds import AtLeast, flag

PROGRAMS = {'sft': ('train',), 'grpo': ('prefill', 'decode', 'score', 'train')}
TITLES = {
    'prefill': 'prefill',
    'decode': 'decode',
    'score': 'reference log-probs',
    'train': 'update',
}
NOTE = """\
Each program alone, compiled as the stage compiles it, median of {repeats} runs on synthetic inputs. FLOPs are those that the result needs
(`reasonjax/planning/flops.py`), relative to a float32 product of two 1024 x 1024 matrices, which ran at {matmul:.0f} GFLOP/s (a copy moved
{copy:.1f} GB/s). Shares are of the time that the profiler attributes to all operations of one run; a fusion counts as the first kind that it
contains, in the order product, sorting, look-up, reduction, exponential, arithmetic, copy. The SFT update is timed in the same process as
the others, whose allocator keeps no blocks of its size; a run of SFT alone does and is an eighth faster."""


def programs_of(
    what: str, data: pathlib.Path, overrides: Sequence[tuple[str, str]] = (), repeats: int = 3
) -> dict:
    """Program -> `programs.Timed`, of the stage that a part runs."""
    from benchmarks import programs
    from reasonjax.planning.programs import StagePrograms
    from reasonjax.training.context import open_run, stages_of

    config = peer_ours.config_of(what, data, overrides)
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(config, pathlib.Path(folder))
        stage = StagePrograms(run, stages_of(config, pathlib.Path(folder))[0])
        return {
            program.name: programs.timed(program, repeats)
            for program in stage.programs(PROGRAMS[what])
        }


def phases_table(measurements: Sequence[Mapping]) -> str:
    """Median seconds of the phases of our steps; '' where none are known."""
    found = {}
    for part, title in (('grpo', 'equal lengths'), ('long_tail', 'long tail')):
        rounds = [
            m['phases']
            for m in measurements
            if m['system'] == 'ours' and m['what'] == part and 'phases' in m
        ]
        if rounds:
            names = dict.fromkeys(name for r in rounds for name in r)
            found[title] = {
                name: statistics.median(r.get(name, 0.0) for r in rounds) for name in names
            }
    names = list(dict.fromkeys(name for of in found.values() for name in of))
    rows = [['GRPO step, s', *names]] + [
        [title, *(f'{of.get(name, 0.0):.3f}' for name in names)] for title, of in found.items()
    ]
    return summary.markdown(rows) if found else ''


def programs_table(found: Mapping[str, Mapping], matmul: float) -> str:
    """A row for each program: time, arithmetic and its share of the ceiling, kinds of
    operations."""
    rows = [['program', 's', 'tokens/s', 'GFLOP', 'of the matmul ceiling', 'share of operations']]
    for what, programs in found.items():
        for name, t in programs.items():
            kinds = ', '.join(
                f'{kind} {share:.0%}' for kind, share in t.kinds.items() if share >= 0.02
            )
            share = t.flops / t.seconds / matmul
            cells = [
                f'{t.seconds:.3f}',
                f'{t.tokens / t.seconds:,.0f}',
                f'{t.flops / 1e9:,.1f}',
                f'{share:.0%}',
                kinds,
            ]
            rows.append([f'{what}: {TITLES[name]}', *cells])
    return summary.markdown(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    from benchmarks import programs
    from reasonjax import programs as command_line

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        'python -m benchmarks.phases', description=__doc__, formatter_class=raw
    )
    parser.add_argument(
        '--folder',
        type=pathlib.Path,
        default=pathlib.Path('runs/peers'),
        help='of benchmarks.peers',
    )
    parser.add_argument('--repeats', type=flag(AtLeast(1)), default=3)
    parser.add_argument(
        '--write',
        type=pathlib.Path,
        metavar='FOLDER',
        help='puts the tables into FOLDER/PERFORMANCE.md',
    )
    rest, overrides = configs.split_arguments(sys.argv[1:] if arguments is None else arguments)
    given = parser.parse_args(rest)

    def program() -> None:
        command_line.start(skip_selfcheck=False)
        data = peer_data.prepare(given.folder / 'data', peer_data.source())
        roof = programs.ceilings('float32', 1024, 256)
        found = {what: programs_of(what, data, overrides, given.repeats) for what in PROGRAMS}
        note = NOTE.format(repeats=given.repeats, matmul=roof.matmul / 1e9, copy=roof.copy / 1e9)
        tables = [
            phases_table(peer_runs.measured(given.folder / 'results')),
            programs_table(found, roof.matmul),
            note,
        ]
        text = '\n\n'.join(
            [f'{datetime.date.today()}, {summary.hardware()}.', *filter(None, tables)]
        )
        print(text)
        if given.write:
            summary.write(given.write / 'PERFORMANCE.md', 'phases', text)

    return command_line.run_program(program)


if __name__ == '__main__':
    sys.exit(main())
