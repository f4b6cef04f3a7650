"""reasonjax beside Tunix and TRL on one machine in one run: the workload of
`benchmarks/workload.py`, every system in its own environment.

    python -m benchmarks.peers                                3 rounds; prints the table
    python -m benchmarks.peers --write docs --json FILE       puts it into docs/PERFORMANCE.md, and
                                                              the medians into a file
    python -m benchmarks.peers --only ours,trl --parts grpo   some of it
    python -m benchmarks.peers --cores 2                      on this many cores
    python -m benchmarks.peers --quick                        does everything run? (hardly any work;
                                                              its numbers mean nothing)

Systems take turns, each measurement is a fresh process, and each is kept in the folder: a run that
was stopped resumes, and more `--rounds` add to what is there; `--fresh` begins anew, which a
changed program or machine needs. REASONJAX_DATA names the folder of public data (GSM8K); the first
time, pip needs a network.
"""

import argparse
import datetime
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import peer_data, peer_env, peer_runs, summary, workload
from reasonjax.bounds import AtLeast, flag
from reasonjax.errors import UserError, listing, nearest

NOTE = """\
Medians over {rounds} of each process's median step, range in brackets; the systems took turns. "First GRPO step" is the time from process
start until the first step is done: imports, compilation, step. Memory is the peak of the GRPO run's process. For TRL's SFT the faster of its
trainer and a plain torch loop counts: {plain}."""
ENDS = """\
Each system runs its own code in float32 on {cores} threads: SFT and GRPO with its trainer, sampling with what that trainer samples with.
reasonjax uses the processor as one device for training and as one device per core (`--cpu_devices`) when it only samples. All completions
have full length because EOS is never sampled (an id outside the vocabulary in reasonjax and Tunix, `min_new_tokens` in TRL). For the long
tail each system is made to sample it where the workload says: by a logit processor in reasonjax, a logits processor passed to `generate` in
TRL, and in Tunix by changing the logits that `Sampler._sample` receives. Neither Tunix nor TRL drops a row that has ended before the longest
has."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        'python -m benchmarks.peers',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    parser.add_argument('--parts', default='', help='parts, comma-separated, such as sft,grpo')
    parser.add_argument(
        '--folder',
        type=pathlib.Path,
        default=pathlib.Path('runs/peers'),
        help='environments, texts and results',
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
        '--json', type=pathlib.Path, metavar='FILE', help='writes medians by system'
    )
    parser.add_argument(
        '--write',
        type=pathlib.Path,
        metavar='FOLDER',
        help='puts the table into FOLDER/PERFORMANCE.md',
    )
    given = parser.parse_args(arguments)
    try:
        systems = chosen(given.only, tuple(peer_env.SYSTEMS), 'only')
        parts = chosen(given.parts, tuple(dict.fromkeys(sum(workload.PARTS.values(), ()))), 'parts')
        return compare(given, systems, parts if given.parts else ())
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def chosen(text: str, known: Sequence[str], option: str) -> list[str]:
    """The names of a comma-separated list, in the order of `known`; all of them where it is empty.

    Raises:
      UserError: a name that is not known.
    """
    names = [name.strip() for name in text.split(',') if name.strip()]
    for name in names:
        if name not in known:
            raise UserError(
                f'--{option}={text}: no "{name}".{nearest(name, known)} Known: {listing(known)}.'
            )
    return [name for name in known if not names or name in names]


def compare(given: argparse.Namespace, systems: Sequence[str], parts: Sequence[str]) -> int:
    """Measures what is missing, prints the table, writes what is to be written. Returns 1 where a
    measurement failed."""
    restrict(given.cores)
    folder = given.folder.resolve()
    results = folder / ('quick' if given.quick else 'results')
    plan = list(peer_runs.schedule(systems, given.rounds, parts))
    if given.fresh:
        for number, what, name in plan:
            peer_runs.file_of(results, number, what, name).unlink(missing_ok=True)
    data = peer_data.prepare(folder / 'data', peer_data.source())
    interpreters = {name: peer_env.python_of(name, folder) for name in systems}
    versions = {name: peer_env.versions(interpreter) for name, interpreter in interpreters.items()}
    failed = run(plan, results, data, interpreters, given.quick)
    kept = [
        m
        for m in peer_runs.measured(results)
        if m['system'] in systems and m['round'] < given.rounds
    ]
    found = summary.spreads(kept)
    found = {name: found[name] for name in systems if name in found}
    if not found:
        raise UserError(f'nothing was measured; {results}/*.log say why.')
    text = page(found, kept, versions)
    print(f'\n{text}\n')
    if given.json:
        given.json.write_text(json.dumps(summary.medians(found), indent=1) + '\n')
    if given.write:
        summary.write(given.write / 'PERFORMANCE.md', 'peers', text)
    return int(failed)


def restrict(cores: int) -> None:
    """Keeps this process, and those it starts, on this many cores."""
    if cores:
        there = sorted(os.sched_getaffinity(0))
        if cores > len(there):
            raise UserError(f'--cores={cores}: this process may use {len(there)}.')
        os.sched_setaffinity(0, there[:cores])


def run(
    plan: Sequence[tuple[int, str, str]],
    results: pathlib.Path,
    data: pathlib.Path,
    interpreters: Mapping[str, str],
    quick: bool,
) -> bool:
    """Measures what of a plan is not there yet. Returns whether something failed."""
    failed = False
    for done, (number, what, name) in enumerate(plan, start=1):
        file = peer_runs.file_of(results, number, what, name)
        there = file.is_file()
        environment = dict(peer_env.SYSTEMS[name].environment) | (
            {workload.QUICK: '1'} if quick else {}
        )
        command = peer_runs.command_of(name, interpreters[name], what, data)
        about = {'system': name, 'what': what, 'round': number, 'cores': workload.cores()}
        found = peer_runs.measure(command, file, about, environment)
        failed |= found is None
        if found is not None and not there:
            print(
                f'{done}/{len(plan)}  round {number + 1}  {name} {what}: {brief(found)}', flush=True
            )
    return failed


def brief(found: Mapping[str, Any]) -> str:
    """A measurement in a line."""
    numbers = {
        'sft_tok_s': 'tokens/s',
        'sample_tok_s': 'tokens/s',
        'grpo_step_s': 's a step',
        'grpo_long_tail_step_s': 's a step',
    }
    shown = [
        f'{summary.digits(found[key])} {unit}' for key, unit in numbers.items() if key in found
    ]
    return ', '.join([*shown, f'{found["peak_gb"]:.2f} GB', f'{found["process_s"]:.0f} s in all'])


def page(found: Mapping, kept: Sequence[Mapping], versions: Mapping[str, Mapping[str, str]]) -> str:
    """The section of docs/PERFORMANCE.md."""
    titles = {name: peer_env.SYSTEMS[name].title for name in found}
    plain = {
        part: [m['sft_tok_s'] for m in kept if (m['system'], m['what']) == ('trl', part)]
        for part in ('sft', 'sft_plain')
    }
    said = (
        ', '.join(
            f'{summary.digits(summary.spread(values).median)} tokens/s {name}'
            for (part, values), name in zip(plain.items(), ('with the trainer', 'without'))
            if values
        )
        or 'not measured'
    )
    rounds, cores = len({m['round'] for m in kept}), sorted({m['cores'] for m in kept})
    threads = ' or '.join(map(str, cores))
    lines = [
        f'* {titles[name]}: {", ".join(f"{p} {v}" for p, v in versions[name].items())}'
        for name in found
    ]
    head = f'{datetime.date.today()}, {summary.hardware()}, {threads} used.'
    note = NOTE.format(rounds=f'{rounds} round{"s" * (rounds > 1)}', plain=said)
    return '\n\n'.join(
        [
            head,
            summary.peers_table(found, titles),
            note,
            ENDS.format(cores=threads),
            '\n'.join(lines),
        ]
    )


if __name__ == '__main__':
    sys.exit(main())
