"""The notebooks run from the first cell to the last, at their tiny size, and compute what they say
they compute."""

import ast
import json
import pathlib
import re
import sys

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from small_runs import share_updates

import reasonjax
from reasonjax.arena import recipes, results
from reasonjax.methods.objectives import nll
from reasonjax.weights.partition import path_name

sys.path.append(str(pathlib.Path(__file__).parent / 'arena'))
import arena_cells  # noqa: E402

FOLDER = pathlib.Path(__file__).parent.parent / 'colabs'
NOTEBOOKS = sorted(path.name for path in FOLDER.glob('*.ipynb'))
# What a notebook takes from inside the package, beside `import reasonjax`.
INSIDE = {
    '01_quickstart.ipynb': set(),
    '02_grpo_by_hand.ipynb': {'reasonjax.methods.advantages', 'reasonjax.methods.objectives'},
    '03_write_a_method.ipynb': {
        'reasonjax',  # reduce
        'reasonjax.arena.statistics',
        'reasonjax.methods.adapters.targets',
        'reasonjax.methods.objectives',
        'reasonjax.methods.objectives.sums',
        'reasonjax.weights.linear',
    },
    '04_compare_methods.ipynb': {'reasonjax.arena', 'reasonjax.arena.table', 'reasonjax.compare'},
}
WIDTH = 100


def read(name: str) -> dict:
    return json.loads((FOLDER / name).read_text(encoding='utf-8'))


def code(notebook: dict) -> list[dict]:
    return [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']


def text(cell: dict) -> str:
    return ''.join(cell['source'])


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Runs a notebook's code in a folder of its own; returns its variables, with every figure as
    `figures`."""
    monkeypatch.setenv('MPLBACKEND', 'Agg')
    monkeypatch.setenv('REASONJAX_TINY', '1')
    monkeypatch.chdir(tmp_path)
    plt.switch_backend('Agg')
    # Of eleven runs, and tested in test_report.
    monkeypatch.setattr('reasonjax.reporting.report.write', lambda workdir: None)
    # Runs that differ in their seed trace one update.
    share_updates(monkeypatch)
    # Programs run for a moment here: most of the time would be that of the compiler.
    before = jax.config.read('jax_disable_most_optimizations')
    jax.config.update('jax_disable_most_optimizations', True)
    figures = []

    def show():
        figures.extend(plt.figure(number) for number in plt.get_fignums())
        plt.close('all')

    monkeypatch.setattr(plt, 'show', show)
    modules = set(sys.modules)

    def run(name: str) -> dict:
        variables = {'__name__': '__main__'}
        for cell in code(read(name)):
            exec(compile(text(cell), f'{name}:{cell["id"]}', 'exec'), variables)
        for figure in figures:
            figure.canvas.draw()
            assert all(axes.has_data() for axes in figure.axes)
        return variables | {'figures': figures}

    yield run
    jax.config.update('jax_disable_most_optimizations', before)
    for module in set(sys.modules) - modules:
        if module.startswith('notebook_'):
            del sys.modules[module]


def test_the_notebooks_are_there():
    assert [name[:2] for name in NOTEBOOKS] == ['01', '02', '03', '04']


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_form(name):
    notebook = read(name)
    assert notebook['nbformat'] == 4 and notebook['metadata']['kernelspec']['name'] == 'python3'
    cells = notebook['cells']
    assert cells[0]['cell_type'] == 'markdown' and re.match(r'# \w.*\n\n[\w`]', text(cells[0]))
    assert re.search(
        r'^\*\*Time:\*\* about \d+ min on two CPU cores\.', text(cells[0]), re.MULTILINE
    )
    ids = [cell['id'] for cell in cells]
    assert ids == sorted(set(ids))
    for cell in code(notebook):
        assert cell['outputs'] == [] and cell['execution_count'] is None
        compile(text(cell), name, 'exec')  # no magics
        assert [line for line in text(cell).splitlines() if len(line) > WIDTH] == []
    # Installs where there is nothing, and only there.
    first = text(code(notebook)[0])
    assert (
        "if importlib.util.find_spec('reasonjax') is None:" in first
        and 'git' in first
        and 'pip' in first
    )
    [parameters] = [cell for cell in cells if 'parameters' in cell['metadata'].get('tags', ())]
    assert text(parameters).startswith('TINY = False')
    assert json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + '\n' == (
        FOLDER / name
    ).read_text(encoding='utf-8')
    assert f'colabs/{name}' in (FOLDER.parent / 'README.md').read_text(encoding='utf-8')


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_notebooks_use_the_public_interface(name):
    source = '\n'.join(text(cell) for cell in code(read(name)))
    inside = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            assert all(m == 'reasonjax' or not m.startswith('reasonjax') for m in modules)
        elif isinstance(node, ast.ImportFrom) and node.module.split('.')[0] == 'reasonjax':
            inside.add(node.module)
    assert inside == INSIDE[name]
    assert set(re.findall(r'\breasonjax\.([a-z_]\w*)\(', source)) <= set(reasonjax.__all__)


def test_quickstart(execute):
    found = execute('01_quickstart.ipynb')
    assert list(found['accuracy']) == ['fresh', 'sft', 'grpo']
    for value, (low, high) in found['accuracy'].values():
        assert 0 <= low <= value <= high <= 1
    series = found['series']
    assert len(series('grpo', 'reward')[0]) == 4 and len(series('sft', 'eval_accuracy')[0]) >= 3
    for answers in found['answers'].values():
        assert len(answers) == 4 * found['PROBLEMS']
        assert all(1 <= a['length'] <= found['limit'] and 'correct' in a for a in answers)
    for own in found['own'].values():
        assert [prompt for prompt, _ in own] == found['PROMPTS']
        assert all(np.isfinite(answer['logprob']) and answer['ids'] for _, [answer] in own)
    assert len(found['figures']) == 2


def test_grpo_by_hand(execute):
    found = execute('02_grpo_by_hand.ipynb')
    P, G, p, weights, order = (found[name] for name in ('P', 'G', 'p', 'weights_BxT', 'order'))
    advantage_PxG, record = found['advantage_PxG'], found['record']
    assert advantage_PxG.shape == (P, G) == (8, 8) and found['apart'] < 1e-4
    assert (advantage_PxG[p] > 0).any() and (advantage_PxG[p] < 0).any()
    # By hand comes what the library recorded. A step of Adam is the sign of the gradient, also
    # where rounding decides it.
    for name in ('loss', 'grad_norm'):
        np.testing.assert_allclose(found[name], record[name], rtol=1e-4, atol=1e-6)
    assert found['difference'] < 0.05
    # Shares, from their definition.
    real = found['real'][order]
    wanted = np.broadcast_to(advantage_PxG[p][order][:, None] / weights.sum(), real.shape)
    # at the start of a step both are the advantage over the tokens there are
    for name in ('share', 'push'):
        assert found[name].shape == real.shape
        np.testing.assert_allclose(found[name][real], wanted[real], rtol=1e-3)
        assert np.isnan(found[name][~real]).all()
    for name in ('moved', 'share_later', 'push_later'):
        assert np.isfinite(found[name][real]).all()
    assert len(found['norms']) == len(jax.tree.leaves(found['params']))
    assert found['change']['rewarded'] > 0 > found['change']['unrewarded']
    assert len(found['history']) == found['UPDATES'] == 2
    assert found['history'][0]['clipped'] == 0
    assert len(found['figures']) == 6


def test_write_a_method(execute):
    found = execute('03_write_a_method.ipynb')
    params, batch, workdir = found['model'].params, found['batch'], found['WORKDIR']
    size = batch['tokens'].size
    number = sum(x.size for x in jax.tree.leaves(params))
    assert list(found['compared'].values()) == [1 + size, 2 * size, number]
    # That test can fail: other values of the knobs are not the parent.
    dropping = found['loss_and_grad'](found['truncated_nll'], drop=0.5)[1]
    assert np.abs(dropping - found['loss_and_grad'](nll)[1]).max() > 1e-6
    # The functions of the notebook are what ran.
    records = [r for r in reasonjax.read_metrics(f'{workdir}/drop_0.5_0') if 'loss' in r]
    assert len(records) == found['STEPS'] and all(0 < r['kept_tokens'] < 1 for r in records)
    assert not any('kept_tokens' in r for r in reasonjax.read_metrics(f'{workdir}/nll_0'))
    folder = f'{workdir}/drop_0.5_gains_only_0'
    adapted = reasonjax.load_model(folder, trust=('notebook_methods',)).params
    after = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(adapted)}
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        np.testing.assert_array_equal(after.get(f'{name}/base', after.get(name)), x)
    assert all(np.any(x != 1) for name, x in after.items() if name.endswith(('/rows', '/columns')))
    assert [row['arm'] for row in found['table']] == list(found['ARMS'])
    for row in found['table']:
        assert len(row['seeds']) == len(found['SEEDS']) == 2
        assert row['interval'][0] <= row['mean'] <= row['interval'][1]
        assert found['correct'][row['arm']].shape == (2, found['PROBLEMS'])
        assert ('difference' in row) == (row['arm'] in found['PARENT'])
        if 'difference' in row:
            assert row['difference'].low <= row['difference'].mean <= row['difference'].high
    assert len(found['figures']) == 1


def test_compare_methods(execute, tmp_path, monkeypatch):
    cells = [
        arena_cells.cell(recipe, task, seed, skill, other=('addition',))
        for task in ('chain', 'knights')
        for recipe, skill in (('sft', 0.4), ('grpo', 0.7))
        for seed in range(3)
    ]
    files = [results.write(tmp_path / 'run' / f'{i}.json', cell) for i, cell in enumerate(cells)]
    results.write_index(tmp_path / 'run', files)
    monkeypatch.setenv('REASONJAX_COMPARISON', str(tmp_path / 'run'))
    found = execute('04_compare_methods.ipynb')
    assert found['cells'] == cells
    assert len(recipes.find(found['RECIPES'])) == 3
    rows = {(row.task, row.recipe): row for row in found['table'].rows}
    assert len(rows) == 4 and all(
        rows[task, 'grpo'].differences['test/greedy'].mean > 0.1 for task in ('chain', 'knights')
    )
    assert set(found['needed']) == {('chain', 'grpo'), ('knights', 'grpo')}
    assert all(five <= two for five, two in found['needed'].values())
    assert len(found['figures']) == len(found['drawn']) == 5
