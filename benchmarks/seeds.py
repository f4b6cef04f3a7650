"""Several seeds of one GRPO run on one machine: in one program, or in a process for each core?

    python -m benchmarks.seeds                                        prints the table
    python -m benchmarks.seeds --seeds 4 --rounds 7 --json seeds.json
    python -m benchmarks.seeds --config.grpo.num_prompts=8            of a smaller iteration

Four ways to do the same iterations of the quickstart (sampling, rule, advantages and update in one
program), from fresh weights:

    vmap       one program, an axis over seeds in front of everything
    map        one program, `lax.map` over seeds
    sequence   one seed after the other, each with all cores
    pinned     a process on each core, with one thread; seeds are dealt out in turn

They take turns, so that a machine that others use too is equally slow for all; medians are over
rounds. `difference` is the largest of any parameter from that of `sequence`, and `moved` how far
training has moved one at most. Nothing that fresh weights write is right, so a tenth of a point for
each digit is added to the rule's reward: without it no weight would move.

Measured with two seeds on two cores of a Xeon server that was busy with other work (5 rounds of 5
iterations, medians, iterations/s of both seeds together): pinned 2.49, map 2.23, sequence 2.10,
vmap 1.29. So seeds that are compared run in pinned processes. Known of `vmap`, not isolated here:
its sampling loop goes on until the last row of all seeds ends, and chooses between old and new
caches at each token.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reasonjax import config as configs
from reasonjax.bounds import AtLeast, flag
from reasonjax.errors import UserError
from reasonjax.model.placement import shardings
from reasonjax.parallel import mesh as meshes
from reasonjax.tasks import TokenRule
from reasonjax.tracking.environment import environment
from reasonjax.training import fused, rollouts
from reasonjax.training.batch_source import BatchSource
from reasonjax.training.context import (
    Run,
    Stage,
    adapt,
    fresh_params,
    open_run,
    stages_of,
)
from reasonjax.training.iteration import make_iterations
from reasonjax.training.step import create
from reasonjax.training.updates import build_update
from reasonjax.weights.partition import partition, path_name

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEFAULTS = [
    ('stages', "('grpo',)"),
    ('grpo.on_device', 'true'),
    ('grpo.log_completions_every', '0'),
    ('evaluation.enabled', 'false'),
]
WAYS = ('vmap', 'map', 'sequence', 'pinned')
SINGLE = '--xla_cpu_multi_thread_eigen=false'


class Seed(NamedTuple):
    """Where one seed starts, and what it is given."""

    seed: int
    state: Any
    frozen: Any
    given: Any


class Work(NamedTuple):
    """Iterations to be compiled, `(seed) -> parameters`, and the seeds."""

    iterate: Callable[[Seed], Any]
    seeds: list[Seed]


def work(path: str, overrides: list[tuple[str, str]], seeds: list[int], iterations: int) -> Work:
    """What `seeds` have to do: `iterations` of the stage `grpo` of a config each."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [open_seed(path, overrides, seed, pathlib.Path(folder)) for seed in seeds]
    run, stage = runs[0]
    settings = stage.config
    fused.check(settings, stage.name)
    reward = with_digits(fused.reward_of(run, stage), run.tokenizer)
    updates = settings.num_iterations * settings.minibatches
    schedule = configs.resolve(settings.learning_rate, 'learning_rate')(settings.steps * updates)
    optimizer = configs.resolve(settings.optimizer, 'optimizer')(schedule)
    update = build_update(
        run,
        settings,
        BatchSource(None, None, updates, settings.temperature),
        optimizer,
        settings.steps * updates,
    )
    steps = make_iterations(
        fused.make_produce(run, stage, reward), update, updates=updates, stage=stage.number
    )

    def iterate(one: Seed) -> Any:
        return steps(one.state, one.frozen, None, one.given, one.seed, jnp.int32(1))[0].trainable

    def start(run: Run, stage: Stage) -> Seed:
        data, params = rollouts.open_data(run, stage), adapt(run, stage, fresh_params(run))
        given = fused.arrays([next(data) for _ in range(iterations)], reward.rule, run.mesh)
        chosen = configs.resolve(settings.filter, 'filter')(run.specs, params)
        trainable, frozen = partition(params, chosen)
        placed = partition(shardings(run.specs, params, run.mesh), chosen)[0]
        return Seed(
            run.config.seed,
            create(trainable, optimizer, placed, meshes.replicated(run.mesh)),
            frozen,
            given,
        )

    return Work(meshes.on(run.mesh, iterate), [start(*one) for one in runs])


def open_seed(
    path: str, overrides: list[tuple[str, str]], seed: int, folder: pathlib.Path
) -> tuple[Run, Stage]:
    config = configs.load(path, [*DEFAULTS, *overrides, ('seed', str(seed))])
    return open_run(config, folder, active=False), stages_of(config, folder)[0]


def with_digits(reward: fused.Reward, tokenizer: Any) -> fused.Reward:
    """The reward and a tenth for each digit."""
    digits = np.array(
        [tokenizer.decode([i]).isdigit() for i in range(tokenizer.vocab_size)], np.float32
    )

    def both(
        tokens: jax.Array, length: jax.Array, terminated: jax.Array, columns: Any
    ) -> jax.Array:
        said = jnp.arange(tokens.shape[-1]) < length[..., None]
        more = jnp.where(said, jnp.asarray(digits)[tokens], 0).sum(-1)
        return reward.rule.reward(tokens, length, terminated, columns) + 0.1 * more

    return reward._replace(rule=TokenRule(reward.rule.columns, both))


def in_one_program(way: str, work: Work) -> Callable[[], list]:
    """A function that does all iterations of all seeds in this process, and returns parameters by
    seed; compiled when it returns."""
    if way == 'sequence':
        program = jax.jit(work.iterate)

        def do() -> list:
            return [jax.block_until_ready(program(one)) for one in work.seeds]
    else:
        together = jax.tree.map(lambda *x: jnp.stack(x), *work.seeds)
        program = jax.jit(
            jax.vmap(work.iterate)
            if way == 'vmap'
            else lambda seeds: jax.lax.map(work.iterate, seeds)
        )

        def do() -> list:
            found = jax.block_until_ready(program(together))
            return [jax.tree.map(lambda x, i=i: x[i], found) for i in range(len(work.seeds))]

    do()
    return do


class Pinned:
    """Processes, each on a core of its own, that do their seeds' iterations when called; they
    compile while the caller continues."""

    def __init__(
        self,
        options: argparse.Namespace,
        overrides: list[tuple[str, str]],
        seeds: list[int],
        folder: str,
    ):
        self._folder = pathlib.Path(folder)
        self._seeds, self._workers = seeds, []
        environment = os.environ | {
            'JAX_PLATFORMS': 'cpu',
            'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {SINGLE}'.strip(),
        }
        cores = sorted(os.sched_getaffinity(0))
        for i, core in enumerate(cores[: len(seeds)]):
            mine = ','.join(map(str, seeds[i :: len(cores)]))
            command = [
                sys.executable,
                '-m',
                'benchmarks.seeds',
                '--config',
                options.config,
                '--worker',
                mine,
                '--core',
                str(core),
            ]
            command += [
                '--iterations',
                str(options.iterations),
                '--folder',
                folder,
                *(f'--config.{k}={v}' for k, v in overrides),
            ]
            self._workers.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )

    def __call__(self) -> list:
        for worker in self._workers:
            worker.stdin.write('go\n')
            worker.stdin.flush()
        self.wait()
        return [dict(np.load(self._folder / f'{seed}.npz')) for seed in self._seeds]

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            worker.stdin.close()
            worker.wait()

    def wait(self) -> None:
        """Returns when all have compiled, or done what they were asked."""
        for worker in self._workers:
            if worker.stdout.readline().strip() != 'ready':
                raise UserError(
                    'benchmarks.seeds: a pinned process has ended; its own message is above.'
                )


def serve(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    """A pinned process: does its seeds' iterations for every line it is given."""
    os.sched_setaffinity(0, {options.core})
    seeds = [int(seed) for seed in options.worker.split(',')]
    do = in_one_program('sequence', work(options.config, overrides, seeds, options.iterations))
    print('ready', flush=True)
    for _ in sys.stdin:
        found = do()
        for seed, params in zip(seeds, found):
            np.savez(pathlib.Path(options.folder) / f'{seed}.npz', **named(params))
        print('ready', flush=True)


def named(params: Any) -> dict[str, np.ndarray]:
    return {
        path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)
    }


def measure(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> dict:
    """Does the rounds; returns what goes into the JSON file."""
    here = work(options.config, overrides, list(range(options.seeds)), options.iterations)
    with ways(options, overrides, here) as functions:
        seconds = {way: [] for way in functions}
        for number in range(options.rounds):
            # Each way is first in some round.
            order = [*functions][number % len(functions) :] + [*functions][
                : number % len(functions)
            ]
            for way in order:
                begin = time.perf_counter()
                functions[way]()
                seconds[way].append(time.perf_counter() - begin)
        found = {
            way: [x if way == 'pinned' else named(x) for x in do()] for way, do in functions.items()
        }
    total = options.seeds * options.iterations
    rates = {way: [total / s for s in of_way] for way, of_way in seconds.items()}
    start = [named(one.state.trainable) for one in here.seeds]
    return {
        'environment': environment(),
        'config': options.config,
        'overrides': overrides,
        'seeds': options.seeds,
        'iterations': options.iterations,
        'rounds': options.rounds,
        'iterations_per_second': {way: statistics.median(of_way) for way, of_way in rates.items()},
        'by_round': rates,
        'difference': {way: apart(params, found['sequence']) for way, params in found.items()},
        'moved': apart(found['sequence'], start),
    }


@contextlib.contextmanager
def ways(
    options: argparse.Namespace, overrides: list[tuple[str, str]], here: Work
) -> Iterator[dict[str, Callable[[], list]]]:
    """The ways of this machine, compiled: without cores to pin processes to, all but that."""
    if jax.default_backend() != 'cpu' or not hasattr(os, 'sched_setaffinity'):
        yield {way: in_one_program(way, here) for way in WAYS[:3]}
        return
    with tempfile.TemporaryDirectory() as folder:
        pinned = Pinned(options, overrides, list(range(options.seeds)), folder)
        try:
            found = {way: in_one_program(way, here) for way in WAYS[:3]}
            pinned.wait()
            yield found | {'pinned': pinned}
        finally:
            pinned.close()


def apart(some: list[dict], others: list[dict]) -> float:
    """The largest difference of any parameter of any seed."""
    return max(
        float(np.abs(x[name] - y[name]).max())
        for x, y in zip(some, others, strict=True)
        for name in x
    )


def show(result: dict) -> None:
    rates = result['iterations_per_second']
    where = result['environment']
    print(
        f'{result["seeds"]} seeds, {result["iterations"]} iterations each, {result["rounds"]} '
        f'rounds, {where["cores"]} cores'
    )
    print(
        f'{"way":10} {"iterations/s":>12} {"of sequence":>12} {"lowest":>8} {"highest":>8} '
        f'{"difference":>11}'
    )
    for way, rate in rates.items():
        low, high = min(result['by_round'][way]), max(result['by_round'][way])
        of_sequence = rate / rates['sequence']
        print(
            f'{way:10} {rate:12.2f} {of_sequence:12.2f} {low:8.2f} {high:8.2f} '
            f'{result["difference"][way]:11.1e}'
        )
    print(f'training has moved a parameter by up to {result["moved"]:.1e}')


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        'python -m benchmarks.seeds', description=__doc__.split('\n')[0]
    )
    parser.add_argument(
        '--config', default='configs/quickstart.py', help='its stage grpo is measured'
    )
    parser.add_argument('--seeds', type=flag(AtLeast(1)), default=2)
    parser.add_argument(
        '--iterations', type=flag(AtLeast(1)), default=10, help='of each seed in a round'
    )
    parser.add_argument('--rounds', type=flag(AtLeast(1)), default=5)
    parser.add_argument('--json', help='file for the result')
    for hidden, kind in (('--worker', str), ('--core', int), ('--folder', str)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    rest, overrides = configs.split_arguments(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(rest)
    if options.worker:
        serve(options, overrides)
        return 0
    result = measure(options, overrides)
    show(result)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=2) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
