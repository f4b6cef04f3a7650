"""A whole comparison, small: cells in workers, a broken one among them, what is done stays done."""

import argparse
import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest
from small_runs import share_updates

from reasonjax import compare as program
from reasonjax.arena import cell, compare, recipes, results, schedule, tasks
from reasonjax.errors import UserError
from reasonjax.reporting import report

BROKEN = """
from configs import sft

def fails(score, batch, key):
    raise RuntimeError('this objective is broken')

fails.forms = ('demonstration',)

def get_config():
    c = sft.get_config()
    c.train.objective = dict(name='broken_recipe.fails')
    return c
"""
TASK = 'chain'


def options(workdir, **changes):
    found = dict(
        recipes='sft,configs/masked_thought.py,grpo@grpo',
        tasks=TASK,
        seeds=2,
        baseline='',
        measure='test/greedy',
        budget='',
        override=[],
        workdir=str(workdir),
        workers=2,
        problems=8,
        init='',
        claims=False,
        docs='',
        trust=[],
    )
    return argparse.Namespace(**found | changes)


@pytest.fixture(scope='module', autouse=True)
def small():
    """The arena with a model of one layer and stages of a few steps; workers get it through the
    configs of their cells."""
    with pytest.MonkeyPatch.context() as patch:
        share_updates(patch)
        # as many as there are problems: the rest of a batch would be drawn too
        patch.setattr(recipes, 'EXAM_BATCH', 8)
        patch.setattr(
            recipes, 'MODEL', dict(dim=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp_dim=64)
        )
        for name in (TASK, tasks.ARENA[TASK].beside):
            short = dataclasses.replace(
                tasks.ARENA[name],
                warm_steps=3,
                supervised_steps=4,
                online_steps=2,
                demonstrations=64,
            )
            patch.setitem(tasks.ARENA, name, short)
        short = dataclasses.replace(
            tasks.ARENA['gsm8k'], max_prompt_length=64, max_completion_length=64
        )
        patch.setitem(tasks.ARENA, 'gsm8k', short)
        yield


def here(specs, folder, workers, done):
    """Stands for `schedule.run`: runs the cells in this process, which has most of their programs
    compiled already, and draws no reports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'write', lambda workdir: None)
        for spec in specs:
            if spec.warm:
                done(spec, cell.run(spec).status)
            else:
                cell.warm_up(spec)
                done(spec, 'done')


@pytest.fixture
def in_this_process(monkeypatch):
    """Comparisons start no workers."""
    monkeypatch.setattr(schedule, 'run', here)


@pytest.fixture(scope='module')
def compared(tmp_path_factory):
    """A comparison with a recipe that fails: two cells in workers, one of which fails, then the
    others in this process; returns its workdir."""
    folder = tmp_path_factory.mktemp('compare')
    (folder / 'broken_recipe.py').write_text(BROKEN)
    names = f'{options(folder).recipes},{folder}/broken_recipe.py'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', f'{folder}:{pathlib.Path(__file__).parents[2]}')
        patch.syspath_prepend(str(folder))
        workers = options(folder / 'run', recipes=f'grpo@grpo,{folder}/broken_recipe.py', seeds=1)
        compare.run(workers)
        assert len(cells(folder / 'run')) == 2
        assert {path.name for path in folder.glob('run/*.log')} == {'worker0.log', 'worker1.log'}
        patch.setattr(schedule, 'run', here)
        compare.run(options(folder / 'run', recipes=names))
    return folder / 'run'


def cells(workdir):
    return {
        (c.recipe, c.seed): c
        for c in (results.read(path) for path in workdir.glob('cells/*/*/*/result.json'))
    }


def test_every_cell_has_a_result_and_a_broken_one_stops_nothing(compared):
    found = cells(compared)
    assert len(found) == 8
    broken = {key for key, one in found.items() if one.status == 'failed'}
    assert broken == {(key, seed) for key, seed in found if 'broken' in key} and len(broken) == 2
    assert all('this objective is broken' in found[key].error for key in broken)
    for name in ('report.html', 'table.md', 'table.csv', 'table.json'):
        assert (compared / name).is_file()
    assert 'this objective is broken' in (compared / 'report.html').read_text()


def test_problems_are_paired_and_costs_are_counted(compared):
    found = [one for one in cells(compared).values() if one.done]
    sizes = {
        (part, mode): len(x)
        for part, modes in found[0].correct.items()
        for mode, x in modes.items()
    }
    assert sizes == {
        (part, mode): 8
        for part in ('test', 'ood', 'other:tracking')
        for mode in ('greedy', 'sampled')
    }
    assert all(one.before == found[0].before for one in found), 'all start from one checkpoint'
    for one in found:
        drew = one.recipe == 'grpo@grpo'
        assert (
            (one.cost['generated_tokens'] > 0) == drew
            and one.cost['trained_tokens'] > 0
            and one.cost['flops'] > 0
        )
        assert [point['step'] for point in one.curve] == ([1, 2] if drew else [1, 2, 3, 4])
        assert one.curve[-1]['trained_tokens'] == one.cost['trained_tokens']
    by_seed = [
        {c.cost['trained_tokens'] for c in found if c.seed == seed and c.recipe != 'grpo@grpo'}
        for seed in (0, 1)
    ]
    assert all(len(tokens) == 1 for tokens in by_seed), 'the same demonstrations, in the same order'


def test_what_is_done_is_not_done_again_and_what_is_missing_comes_out_the_same(
    compared, monkeypatch, tmp_path
):
    before, asked = cells(compared), []

    def noted(specs, *rest):
        asked.extend(specs)
        here(specs, *rest)

    monkeypatch.setattr(schedule, 'run', noted)
    # In another place it is the same comparison.
    moved = shutil.copytree(compared, tmp_path / 'moved')
    compare.run(options(moved))
    assert not asked
    # A worker ran it.
    (gone,) = compared.glob(f'cells/{TASK}/grpo_grpo/0-*')
    (gone / 'result.json').unlink()
    compare.run(options(compared))
    assert [(spec.recipe, spec.seed) for spec in asked] == [('grpo@grpo', 0)]
    assert sorted((c.recipe, c.seed) for c in results.read_run(compared)) == sorted(
        key for key in before if 'broken' not in key[0]
    )
    again = cells(compared)['grpo@grpo', 0]
    clocks = ('seconds', 'peak_bytes')

    def timeless(one):
        curve = [{k: v for k, v in point.items() if k not in clocks} for point in one.curve]
        return dataclasses.replace(
            one, cost={k: v for k, v in one.cost.items() if k not in clocks}, curve=curve
        )

    assert timeless(again) == timeless(before['grpo@grpo', 0])
    # One that was run here, alone and without compiled programs of others.
    jax.clear_caches()
    (folder,) = compared.glob(f'cells/{TASK}/sft/0-*')
    alone = compared / 'alone'
    alone.mkdir()
    (alone / cell.CONFIG).write_text((folder / cell.CONFIG).read_text())
    (warm,) = compared.glob('warm/*')
    assert timeless(cell.run(cell.Spec('sft', TASK, 0, str(alone), str(warm), 8))) == timeless(
        before['sft', 0]
    )


def test_gsm8k_with_a_model_of_the_users(tmp_path, model_folder, monkeypatch, in_this_process):
    """A problem with more tokens than there is room for, by the model's tokenizer, is left out for
    all, and the page counts the others."""
    folder = tmp_path / 'data' / 'gsm8k'
    folder.mkdir(parents=True)
    asked = [
        {'question': f'{a} and {a + 1}?', 'answer': f'{a}+{a + 1}={2 * a + 1}\n#### {2 * a + 1}'}
        for a in range(128)
    ]
    asked[-1]['question'] *= 100
    for name, rows in (('train', asked[:120]), ('test', asked[120:])):
        (folder / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    monkeypatch.setenv('REASONJAX_DATA', str(tmp_path / 'data'))
    given = dict(
        recipes='sft',
        tasks='gsm8k',
        init=f'hf:{model_folder}',
        budget='tokens=9000',
        seeds=1,
        workers=1,
    )
    compare.run(options(tmp_path / 'run', **given))
    found = cells(tmp_path / 'run')['sft', 0]
    assert found.done, found.error
    assert len(found.correct['test']['greedy']) == 7 and found.cost['trained_tokens'] >= 9000
    assert json.loads((tmp_path / 'run' / 'table.json').read_text())['problems'] == {
        'gsm8k': {'test': 7}
    }


PEAKS = """
from reasonjax import programs
from reasonjax.arena.cell import Peak

programs._keep_freed_memory(one_arena=False)
first = Peak()
blocks = [bytes(1000) for _ in range(300_000)]
last = blocks.pop()
del blocks
print(first.bytes, Peak().bytes)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_what_one_cell_held_is_no_part_of_the_next_ones_peak():
    done = subprocess.run(
        [sys.executable, '-c', PEAKS],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    first, second = map(float, done.stdout.split())
    assert first > 3e8 and first - second > 2.5e8, done.stderr


def test_a_device_whose_mark_did_not_rise_says_nothing(monkeypatch):
    marks = iter([5.0, 7.0, 7.0, 7.0])
    monkeypatch.setattr(cell, '_device_peak', lambda: next(marks))
    assert cell.Peak().bytes == 7.0
    assert cell.Peak().bytes is None


def test_workers_share_the_memory_of_a_gpu_unless_the_user_says_otherwise():
    name = 'XLA_PYTHON_CLIENT_MEM_FRACTION'
    assert schedule.shared(1, {'a': 'b'}) == {'a': 'b'}
    assert schedule.shared(3, {'a': 'b'}) == {'a': 'b', name: '0.300'} and schedule.shared(
        3, {name: '0.1'}
    ) == {name: '0.1'}


@pytest.mark.parametrize(
    'changes, said',
    [
        (dict(recipes='sftt'), 'no recipe "sftt".*Did you mean "sft"'),
        (dict(recipes='sft,sft'), 'given twice'),
        (dict(recipes='sft@trian'), 'no stage "trian".*Did you mean "train"'),
        (dict(tasks='chian'), 'no task "chian".*Did you mean "chain"'),
        (dict(tasks='gsm8k'), 'gsm8k needs a model to start from; give --init'),
        (dict(baseline='grpo'), '--baseline=grpo: not among'),
        (dict(budget='token=5'), 'WHAT one of flops, seconds, tokens.*Did you mean "tokens"'),
        (dict(budget='tokens=-1'), 'not a positive number'),
        (dict(budget='tokens=500'), 'would end after 1 steps, before its 4 evaluations'),
        (dict(override=['train.steps']), 'expected KEY=VALUE'),
    ],
)
def test_bad_input(compared, changes, said):
    with pytest.raises(UserError, match=said):
        compare.run(options(compared, **changes))


def test_a_recipe_that_lacks_a_column_says_which(compared, tmp_path):
    (tmp_path / 'pairs.py').write_text(
        'from configs import sft\n\ndef get_config():\n    c = sft.get_config()\n'
        "    c.train.data.form = 'preference'\n    return c\n"
    )
    with pytest.raises(
        UserError,
        match='cannot run on the task "chain".*"preference", and the task lacks chosen, rejected',
    ):
        compare.run(options(compared, recipes=f'{tmp_path}/pairs.py'))


def test_the_program_prints_errors_without_a_traceback(capsys):
    assert program.main(['--recipes', 'nothing_of_this_name']) == 2
    assert 'no recipe' in capsys.readouterr().err


def test_a_budget_counts_every_token(compared, in_this_process):
    """A stage stops with the step that reaches the budget, whether it reads or draws."""
    limit = 60_000
    compare.run(options(compared, recipes='sft,grpo@grpo', seeds=1, budget=f'tokens={limit}'))
    found = list(cells_with_budget(compared, limit))
    assert len(found) == 2
    for path, spent in found:
        steps = [
            json.loads(line) for line in (path / 'run' / 'metrics.jsonl').read_text().splitlines()
        ]
        counted = [r['num_tokens'] for r in steps if 'loss' in r]
        assert counted[-1] == spent >= limit > counted[-2]


def test_what_a_collection_draws_is_part_of_the_budget(compared, in_this_process):
    """Collecting and learning from it have half of the budget each, and both are in the cell's
    cost."""
    recipe, limit = 'configs/quickstart.py:filtered_sft@collect+resft', 10_000
    compare.run(
        options(
            compared,
            recipes=recipe,
            seeds=1,
            budget=f'tokens={2 * limit}',
            override=['collect.min_reward=0.0'],
        )
    )
    (path,) = (path.parent for path in compared.glob('cells/*/*filtered_sft*/*/result.json'))
    found, counted = results.read(path / 'result.json'), {}
    for record in map(json.loads, (path / 'run' / 'metrics.jsonl').read_text().splitlines()):
        if 'step_time' in record:
            counted.setdefault(record['stage'], [0]).append(record['num_tokens'])
    assert found.done and set(counted) == {'collect', 'resft'}
    for tokens in counted.values():
        assert tokens[-1] >= limit > tokens[-2]
    assert (found.cost['generated_tokens'], found.cost['trained_tokens']) == (
        counted['collect'][-1],
        counted['resft'][-1],
    )
    assert found.curve[-1]['generated_tokens'] == counted['collect'][-1], (
        'what was drawn before is in the curve'
    )


def cells_with_budget(workdir, limit):
    for path in workdir.glob('cells/*/*/*'):
        config = json.loads((path / cell.CONFIG).read_text())
        if any(isinstance(x, dict) and x.get('token_limit') == limit for x in config.values()):
            cost = results.read(path / 'result.json').cost
            yield path, cost['generated_tokens'] or cost['trained_tokens']
