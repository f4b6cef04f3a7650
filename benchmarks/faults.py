"""Is a run ever lost, and is a bit ever changed? Small runs, killed, stopped, damaged and starved
at random points, then gone on with.

    python -m benchmarks.faults                                     prints the table
    python -m benchmarks.faults --only grpo --times 20              some of it, more often
    python -m benchmarks.faults --write docs/RELIABILITY.md         puts the table into the page

Every disturbed run is started again until it is finished, and then compared with one that was left
alone: the bits of all parameters, and every record of metrics.jsonl but what a clock decides. Linux
only; the disk that is full is a small one of its own (tmpfs) where that may be mounted, and a limit
on the size of files elsewhere.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from reasonjax.bounds import AtLeast, Seed, flag

ROOT = pathlib.Path(__file__).parent.parent
BEGIN, END = '<!-- table -->', '<!-- /table -->'
CLOCKED = ('step_time', 'tokens_per_second')
LIMIT_S = 600  # of one attempt
ATTEMPTS = 30  # of one run, beyond those that were disturbed: it goes nowhere
STEPS = {'SFT': 12, 'GRPO': 8}
REWARD = 'grpo.rewards.accuracy.name'
KINDS = {
    'SFT': (
        'configs/base.py',
        {
            'train.steps': STEPS['SFT'],
            'train.checkpoint_every': 2,
            'train.eval_every': 4,
            'train.max_nonfinite': 1,
        },
    ),
    'GRPO': (
        'configs/grpo.py',
        {
            'stages': "('grpo',)",
            'grpo.steps': STEPS['GRPO'],
            'grpo.checkpoint_every': 2,
            'grpo.eval_every': 3,
            'grpo.minibatches': 2,
            'grpo.learning_rate.warmup_steps': 0,
            'grpo.objective.beta': 0.05,
            'grpo.rewards_on_error': 'drop',
            REWARD: 'benchmarks.faulty.digits',
        },
    ),
}
COMMON = {'evaluation.task.size': 4, 'evaluation.samples': 0}
SAVE = 'reasonjax.training.checkpoint:Checkpoints.save'
# positions of the data; one such batch is tolerated in a row, and the second makes the run roll
# back
NAN = [5, 6]


@dataclasses.dataclass(frozen=True)
class Fault:
    """A row of the table.

    Attributes:
      kind: a key of `KINDS`.
      name: what goes wrong.
      way: how it is brought about, a key of `WAYS`.
      point: where, for a kill.
      calls: how often an undisturbed run calls that function, about.
      span: seconds from the beginning of the call within which the kill comes; 0 at once.
      overrides: of the config, for the run that is left alone as well.
      plan: what is planted in all attempts, for that run as well.
    """

    kind: str
    name: str
    way: str
    point: str = ''
    calls: int = 4
    span: float = 0.0
    overrides: tuple = ()
    plan: tuple = ()


DAMAGES: dict[str, Callable[[pathlib.Path], None]] = {
    'cut': lambda step: _change(step, lambda data: data[: len(data) // 2]),
    'a bit flipped': lambda step: _change(
        step, lambda data: data[:99] + bytes([data[99] ^ 4]) + data[100:]
    ),
    'a part gone': lambda step: shutil.rmtree(step / 'train'),
    'JSON broken': lambda step: (step / 'meta' / 'metadata').write_text('{"meta": '),
}
FAULTS = (
    Fault(
        'SFT', 'kill -9 while data are read', 'kill', 'reasonjax.data.pipeline:Batches.__next__', 12
    ),
    Fault(
        'SFT', 'kill -9 in an update', 'kill', 'reasonjax.training.loop:_Training._settle', 20, 0.01
    ),
    Fault('SFT', 'kill -9 in a save', 'kill', SAVE, 6, 0.08),
    Fault('SFT', 'kill -9 in an evaluation', 'kill', 'reasonjax.training.evaluate:completions', 3),
    Fault('SFT', 'kill -9 at any time', 'kill at random'),
    Fault('SFT', 'SIGTERM at any time', 'SIGTERM'),
    Fault('SFT', 'newest checkpoint damaged', 'damage', SAVE),
    Fault('SFT', 'disk full', 'full'),
    Fault(
        'SFT',
        'NaN in batches, rollback, kill -9',
        'kill',
        'reasonjax.training.loop:_Training._settle',
        20,
        0.01,
        plan=(('nan', NAN),),
    ),
    Fault(
        'SFT',
        'NaN in gradients, rollback, kill -9',
        'kill',
        'reasonjax.training.loop:_Training._settle',
        20,
        0.01,
        overrides=(('train.objective.name', 'benchmarks.faulty.steep'),),
        plan=(('nan', NAN),),
    ),
    Fault(
        'GRPO', 'kill -9 in a rollout', 'kill', 'reasonjax.training.rollouts:Rollouts.draw', 8, 0.02
    ),
    Fault(
        'GRPO',
        'kill -9 in the reward',
        'kill',
        'reasonjax.training.rollouts:score_completions',
        8,
        0.01,
    ),
    Fault(
        'GRPO',
        'kill -9 in an update',
        'kill',
        'reasonjax.training.loop:_Training._settle',
        16,
        0.01,
    ),
    Fault('GRPO', 'kill -9 in a save', 'kill', SAVE, 4, 0.08),
    Fault('GRPO', 'kill -9 at any time', 'kill at random'),
    Fault('GRPO', 'SIGTERM at any time, to reward workers too', 'SIGTERM'),
    Fault('GRPO', 'newest checkpoint damaged', 'damage', SAVE),
    Fault('GRPO', 'disk full', 'full'),
    Fault(
        'GRPO',
        'NaN as reward, kill -9',
        'kill',
        'reasonjax.training.rollouts:score_completions',
        8,
        0.01,
        overrides=((REWARD, 'benchmarks.faulty.sometimes'),),
    ),
)


@dataclasses.dataclass
class Row:
    """What came of a fault."""

    fault: Fault
    injected: int = 0
    runs: int = 0
    lost: int = 0
    bits: int = 0
    records: int = 0


class Runs:
    """Starts attempts of runs, and knows what runs that were left alone came to."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._alone: dict[tuple, tuple[pathlib.Path, float]] = {}
        self._number = 0

    def fresh(self) -> pathlib.Path:
        """A workdir of its own."""
        self._number += 1
        return self.folder / f'{self._number:03d}'

    def start(self, fault: Fault, workdir: pathlib.Path, **plan: object) -> subprocess.Popen:
        """Starts an attempt, as a process group of its own."""
        location, overrides = KINDS[fault.kind]
        given = COMMON | overrides | dict(fault.overrides)
        command = [
            sys.executable,
            '-m',
            'benchmarks.faulty',
            json.dumps(dict(fault.plan) | plan),
            '--config',
            location,
            '--smoke',
            '--skip_selfcheck',
            '--workdir',
            str(workdir),
            *(f'--config.{key}={value}' for key, value in given.items()),
        ]
        environment = {
            'JAX_COMPILATION_CACHE_DIR': str(self.folder / 'compiled'),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
            'TF_CPP_MIN_LOG_LEVEL': '3',
        }
        log = (self.folder / 'log').open('w')
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | dict(os.environ),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def said(self) -> str:
        """What the last attempt printed."""
        return (self.folder / 'log').read_text(errors='replace')

    def alone(self, fault: Fault) -> tuple[pathlib.Path, float]:
        """The workdir of a run like it that was left alone, and the seconds of one more such
        run."""
        key = (fault.kind, fault.overrides, json.dumps(fault.plan))
        if key not in self._alone:
            for _ in range(2):  # the first one compiles
                workdir, begin = self.fresh(), time.monotonic()
                status = self.start(fault, workdir).wait(LIMIT_S)
                if status:
                    raise SystemExit(
                        f'a run that nothing disturbed ended with {status}:\n{self.said()}'
                    )
            self._alone[key] = (workdir, time.monotonic() - begin)
        return self._alone[key]


def whole(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints there are, oldest first."""
    return sorted(
        (path for path in workdir.glob('stages/*/checkpoints/*') if path.name.isdigit()),
        key=lambda path: int(path.name),
    )


def killed(runs: Runs, fault: Fault, workdir: pathlib.Path, rng: np.random.Generator) -> int:
    """Killed at a random call of those that are left."""
    left = fault.calls * (
        1 - max([0, *(int(path.name) for path in whole(workdir))]) / STEPS[fault.kind]
    )
    kill = {
        'point': fault.point,
        'call': int(rng.integers(1, max(1, round(left)) + 1)),
        'after': float(rng.uniform(0, fault.span)),
    }
    return runs.start(fault, workdir, kill=kill).wait(LIMIT_S)


def killed_at_random(
    runs: Runs,
    fault: Fault,
    workdir: pathlib.Path,
    rng: np.random.Generator,
    number: int = signal.SIGKILL,
) -> int:
    process = runs.start(fault, workdir)
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(rng.uniform(0.3, 1.0) * runs.alone(fault)[1])
    # To the whole group: schedulers mean the workers too.
    os.killpg(process.pid, number)
    return process.wait(LIMIT_S)


def stopped(runs: Runs, fault: Fault, workdir: pathlib.Path, rng: np.random.Generator) -> int:
    return killed_at_random(runs, fault, workdir, rng, signal.SIGTERM)


def damaged(runs: Runs, fault: Fault, workdir: pathlib.Path, rng: np.random.Generator) -> int:
    """Killed when two checkpoints are whole, and the newer one then damaged."""
    kill = {'point': fault.point, 'call': 3, 'after': 0.0}
    status = runs.start(fault, workdir, kill=kill).wait(LIMIT_S)
    if len(steps := whole(workdir)) > 1:
        DAMAGES[rng.choice(list(DAMAGES))](steps[-1])
    return status


def starved(runs: Runs, fault: Fault, workdir: pathlib.Path, rng: np.random.Generator) -> int:
    """On a disk that is too small, by a random amount, for what there is to write; afterwards there
    is room."""
    needed = sum(path.stat().st_size for path in runs.alone(fault)[0].rglob('*') if path.is_file())
    size = int(rng.uniform(0.2, 0.9) * needed)
    workdir.mkdir(exist_ok=True)
    with small_disk(workdir, size) as mounted:
        status = runs.start(
            fault, workdir, **({} if mounted else {'limit': max(2**14, size // 8)})
        ).wait(LIMIT_S)
        if mounted:
            shutil.copytree(workdir, workdir.with_suffix('.kept'))
    if mounted:
        shutil.copytree(workdir.with_suffix('.kept'), workdir, dirs_exist_ok=True)
        shutil.rmtree(workdir.with_suffix('.kept'))
    if status == 2 and 'give the same command again' not in runs.said():
        raise SystemExit(f'a full disk was not explained:\n{runs.said()}')
    return status


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: int) -> Iterator[bool]:
    """Mounts a disk of this many bytes over a folder, with what is in it; yields whether that is
    allowed."""
    copy = folder.with_suffix('.before')
    shutil.copytree(folder, copy)
    used = sum(path.stat().st_size for path in copy.rglob('*') if path.is_file())
    command = ['mount', '-t', 'tmpfs', '-o', f'size={size + used}', 'tmpfs', str(folder)]
    mounted = (
        os.geteuid() == 0
        and subprocess.run(command, check=False, capture_output=True).returncode == 0
    )
    try:
        if mounted:
            shutil.copytree(copy, folder, dirs_exist_ok=True)
        yield mounted
    finally:
        if mounted:
            subprocess.run(['umount', str(folder)], check=True)
        shutil.rmtree(copy)


# How a fault is brought about, and the exit statuses of an attempt that it hit.
WAYS = {
    'kill': (killed, (-signal.SIGKILL,)),
    'kill at random': (killed_at_random, (-signal.SIGKILL,)),
    'SIGTERM': (stopped, (75, -signal.SIGTERM)),
    'damage': (damaged, (-signal.SIGKILL,)),
    'full': (starved, (2,)),
}


def measure(runs: Runs, fault: Fault, times: int, rng: np.random.Generator) -> Row:
    """Disturbs runs until the fault has hit `times` times, finishes them, and compares."""
    row, (act, hit) = Row(fault), WAYS[fault.way]
    alone, _ = runs.alone(fault)
    while row.injected < times:
        workdir, attempts = runs.fresh(), 0
        row.runs += 1
        status = 1
        while status and attempts < times + ATTEMPTS:
            attempts += 1
            disturb = row.injected < times
            status = (
                act(runs, fault, workdir, rng)
                if disturb
                else runs.start(fault, workdir).wait(LIMIT_S)
            )
            row.injected += disturb and status in hit
            if status and not (disturb and status in hit):
                print(
                    f'{fault.kind}, {fault.name}: an attempt ended with {status}:\n{runs.said()}',
                    file=sys.stderr,
                )
                break
        if status:
            row.lost += 1
            if not row.injected:
                break
        else:
            row.bits += changed_bits(workdir, alone)
            row.records += changed_records(workdir, alone)
        shutil.rmtree(workdir, ignore_errors=True)
    return row


def changed_bits(one: pathlib.Path, other: pathlib.Path) -> int:
    """Bits of the last stage's parameters that differ."""
    import jax

    from reasonjax.training.run import trained

    pairs = zip(*(jax.tree.leaves(trained(workdir)[1]) for workdir in (one, other)), strict=True)
    views = [[np.asarray(x).reshape(-1).view(np.uint8) for x in pair] for pair in pairs]
    return sum(int(np.unpackbits(a ^ b).sum()) for a, b in views)


def changed_records(one: pathlib.Path, other: pathlib.Path) -> int:
    """Records of metrics.jsonl that differ, or are there in one only."""
    from reasonjax.tracking import metrics

    def plain(workdir: pathlib.Path) -> list[dict]:
        found = metrics.read(workdir / 'metrics.jsonl')
        return [
            {k: v for k, v in r.items() if k not in CLOCKED and not k.startswith('time/')}
            for r in found
        ]

    ours, theirs = plain(one), plain(other)
    return sum(a != b for a, b in zip(ours, theirs)) + abs(len(ours) - len(theirs))


def _change(step: pathlib.Path, edit: Callable[[bytes], bytes]) -> None:
    path = max(step.rglob('d/*'), key=lambda path: path.stat().st_size)
    path.write_bytes(edit(path.read_bytes()))


def table(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    header = [
        'stage',
        'fault',
        'times injected',
        'runs',
        'runs lost',
        'bits changed',
        'records changed',
    ]
    lines = [header, ['---'] * 2 + ['---:'] * 5]
    lines += [
        [
            row.fault.kind,
            row.fault.name,
            *map(str, (row.injected, row.runs, row.lost, row.bits, row.records)),
        ]
        for row in rows
    ]
    totals = [
        str(sum(getattr(row, name) for row in rows))
        for name in ('injected', 'runs', 'lost', 'bits', 'records')
    ]
    return '\n'.join(f'| {" | ".join(line)} |' for line in [*lines, ['all', '', *totals]])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.faults', description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        '--times',
        type=flag(AtLeast(1)),
        default=3,
        metavar='N',
        help='injections of each fault (default 3)',
    )
    parser.add_argument('--seed', type=flag(Seed), default=0, help='of the random points')
    parser.add_argument(
        '--only', default='', metavar='TEXT', help='faults whose stage and name contain this'
    )
    parser.add_argument(
        '--write',
        type=pathlib.Path,
        metavar='FILE',
        help='a page with a place for the table, which is put there',
    )
    given = parser.parse_args(arguments)
    chosen = [
        (i, fault)
        for i, fault in enumerate(FAULTS)
        if given.only.lower() in f'{fault.kind} {fault.name}'.lower()
    ]
    if not chosen:
        parser.error(
            f'--only={given.only}: no such fault. There are: '
            + '; '.join(f'{fault.kind} {fault.name}' for fault in FAULTS)
        )
    rows, begin = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix='reasonjax-faults-') as folder:
        runs = Runs(pathlib.Path(folder))
        for i, fault in chosen:
            row = measure(runs, fault, given.times, np.random.default_rng([given.seed, i]))
            rows.append(row)
            print(
                f'{time.monotonic() - begin:5.0f} s  {fault.kind}, {fault.name}: {row.injected} '
                f'injected, {row.lost} of {row.runs} runs '
                f'lost, {row.bits} bits and {row.records} records changed',
                flush=True,
            )
    made = (
        f'Made by `python -m benchmarks.faults --times {given.times} --seed {given.seed}` on '
        f'{datetime.date.today()}, in '
        f'{(time.monotonic() - begin) / 60:.0f} minutes on {os.cpu_count()} cores '
        f'({platform.machine()}, CPU).'
    )
    text = f'{made}\n\n{table(rows)}'
    print(f'\n{text}')
    if given.write:
        page = given.write.read_text(encoding='utf-8')
        before, _, rest = page.partition(BEGIN)
        _, _, after = rest.partition(END)
        given.write.write_text(f'{before}{BEGIN}\n{text}\n{END}{after}', encoding='utf-8')
    return int(
        any(row.lost or row.bits or row.records or row.injected < given.times for row in rows)
    )


if __name__ == '__main__':
    raise SystemExit(main())
