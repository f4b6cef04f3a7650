"""The figures and the page of a comparison: they show the table's numbers, escape what they are
given, and fetch nothing."""

import dataclasses
import itertools
import json
import re
import struct
import subprocess
import sys

import matplotlib.colors
import matplotlib.figure
import numpy as np
import pytest
from arena_cells import TASKS, arena, cell, failed
from html_page import Page, addresses

from reasonjax.arena import figures, page, panels, table
from reasonjax.reporting import pages

EVIL = '</pre><script>alert(1)</script> & "$x_1$"'


@pytest.fixture(scope='module')
def cells():
    return [
        failed(c.recipe, c.task, c.seed, EVIL)
        if (c.recipe, c.task) == ('dpo', 'multiplication')
        else c
        for c in arena(TASKS[:2], seeds=4, points=4)
    ]


@pytest.fixture(scope='module')
def compared(cells):
    return table.build(cells, 'sft')


@pytest.fixture(scope='module')
def written(cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp('arena') / 'new'
    described = {
        'budget': '2 M tokens',
        'commands': ['python -m one', 'python -m two'],
        'model': {'width': 96},
        EVIL: EVIL,
    }
    return page.write(folder, cells, 'sft', described)


def test_the_page_for_readers_of_the_project_has_tables_verdicts_and_figures(
    cells, compared, tmp_path
):
    text, *drawn = page.publish(
        tmp_path / 'docs', cells, 'sft', {'command': 'python -m this --docs docs', 'seeds': 4}
    )
    said = text.read_text()
    assert (
        text.name == 'ARENA.md'
        and 'Written by `python -m this --docs docs`.' in said
        and '* seeds: 4' in said
    )
    assert [path.name for path in drawn] == ['arena_learning.png', 'arena_differences.png'] and all(
        path.is_file() for path in drawn
    )
    assert all(f']({path.name})' in said for path in drawn)
    assert all(page.sentence(compared, task) in said for task in compared.tasks)
    assert said.count('\n| addition |') == 2 * len(compared.recipes), 'results and costs'


def draw(compared, cells, name, task):
    """The axes of one panel."""
    drawing = {drawing.name: drawing for drawing in figures.drawings(compared, cells)}[name]
    with pages.style(name):
        plot = matplotlib.figure.Figure().add_subplot()
        drawing.panel(plot, task, pages.INK)
    return plot


def test_band():
    runs = [np.array([[0, 0], [2, 4.0], [4, 4]]), np.array([[0, 1], [1, 1], [3, 5.0]])]
    x, mean, low, high = panels.band(runs)
    assert x.tolist() == [0, 1, 2, 3]
    assert (
        low.tolist() == [0, 1, 3, 4]
        and high.tolist() == [1, 2, 4, 5]
        and mean.tolist() == [0.5, 1.5, 3.5, 4.5]
    )
    assert all(
        len(part) == 0
        for part in panels.band([np.array([[0, 1.0], [1, 1]]), np.array([[2, 1.0], [3, 1]])])
    )


def test_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = [tuple(point) for point in rng.integers(0, 6, (8, 2)).tolist()]
        beaten = {
            b for a, b in itertools.permutations(set(points), 2) if a[0] <= b[0] and a[1] >= b[1]
        }
        assert panels.front(points) == sorted(set(points) - beaten)


def test_learning_curves_end_where_training_did(compared, cells):
    plot = draw(compared, cells, 'learning', 'addition')
    ends = {
        matplotlib.colors.to_hex(line.get_color()): line
        for line in plot.lines
        if line.get_marker() != 'None'
    }
    assert len(ends) == 5 and len(plot.collections) == 5
    for index, recipe in enumerate(compared.recipes):
        curves = [c.curve for c in cells if (c.task, c.recipe) == ('addition', recipe)]
        first_end = min(
            curve[-1]['trained_tokens'] + curve[-1]['generated_tokens'] for curve in curves
        )
        assert ends[pages.COLOURS[index]].get_xdata() == [pytest.approx(first_end)]
    one = [c for c in cells if c.seed == 0]
    assert not draw(table.build(one, 'sft'), one, 'learning', 'addition').collections, (
        'no band of one seed'
    )


def test_short_and_long_runs_share_an_axis():
    # A hundred times the tokens: on a straight axis the short run would be an upright line.
    cells = [cell(recipe, 'addition', seed, 0.5) for recipe in ('sft', 'grpo') for seed in range(2)]
    cells = [
        dataclasses.replace(
            c,
            curve=[
                point | {'generated_tokens': 100 * point['generated_tokens']} for point in c.curve
            ],
        )
        for c in cells
    ]
    assert draw(table.build(cells, 'sft'), cells, 'learning', 'addition').get_xscale() == 'symlog'


def test_cost_against_accuracy(compared, cells):
    plot = draw(compared, cells, 'cost', 'addition')
    drawn = [
        (container[0].get_xdata()[0], container[0].get_ydata()[0]) for container in plot.containers
    ]
    rows = [row for row in compared.rows if row.task == 'addition']
    assert drawn == [(row.cost['flops'], row.accuracy['test/greedy'].mean) for row in rows]
    bars = plot.containers[0].lines[2][1].get_segments()[0]  # the upright one
    assert bars[:, 1].tolist() == pytest.approx(rows[0].accuracy['test/greedy'][1:])
    edge = next(line for line in plot.lines if line.get_linestyle() == '--')
    assert list(zip(*edge.get_data()))[:-1] == panels.front(drawn)
    without = [
        dataclasses.replace(c, cost=c.cost | {'flops': None}) if c.done else c for c in cells
    ]
    drawing = figures.drawings(table.build(without, 'sft'), without)[1]
    assert drawing.axis.startswith('tokens')


def test_forest(compared, cells):
    plot = draw(compared, cells, 'differences', 'addition')
    others = [compared.row('addition', recipe) for recipe in compared.recipes[1:]]
    drawn = [container[0] for container in plot.containers]
    expected = [
        row.differences[measure].mean for row in others for measure in ('test/greedy', 'ood/greedy')
    ]
    assert [line.get_xdata()[0] for line in drawn] == expected
    filled = [line.get_markerfacecolor() != 'none' for line in drawn[::2]]
    assert (
        filled == [row.verdict in ('better', 'worse') for row in others]
        and any(filled)
        and not all(filled)
    )
    assert not any(line.get_markerfacecolor() != 'none' for line in drawn[1::2])
    assert [label.get_text() for label in plot.get_yticklabels()] == compared.recipes[1:]
    assert [
        text.get_text() for text in draw(compared, cells, 'differences', 'multiplication').texts
    ] == ['failed']


def test_forgetting(compared, cells):
    plot = draw(compared, cells, 'forgetting', 'addition')
    assert [container[0].get_xdata()[0] for container in plot.containers] == [
        row.forgetting.mean for row in compared.rows if row.task == 'addition'
    ]
    alone = arena(('addition',), seeds=2)
    names = [drawing.name for drawing in figures.drawings(table.build(alone, 'sft'), alone)]
    assert names == ['learning', 'cost', 'differences', 'length'], 'nothing to forget'


def test_more_recipes_than_colours():
    cells = [cell(f'r{number}', 'addition', 0, 0.5, problems=5, points=2) for number in range(20)]
    keys = figures.drawings(table.build(cells, 'r0'), cells)[0].keys
    assert len({(key.colour, key.marker) for key in keys}) == 20


def test_files(written, compared):
    names = [
        'report.html',
        'table.md',
        'table.csv',
        'table.json',
        'learning.png',
        'cost.png',
        'differences.png',
        'length.png',
        'forgetting.png',
    ]
    assert [path.name for path in written] == names == sorted(names, key=names.index)
    assert {path.name for path in written[0].parent.iterdir()} == set(names)
    for path in written[4:]:
        data = path.read_bytes()
        width, height = struct.unpack('>II', data[16:24])
        assert data.startswith(b'\x89PNG') and 1000 < width < 1400 and 400 < height < 800, (
            path.name,
            width,
            height,
        )
    assert len(json.loads(written[3].read_text())['rows']) == len(compared.rows)


def test_page(written, compared):
    text = written[0].read_text(encoding='utf-8')
    read = Page(text)
    assert addresses(text) == set() and pages.INK not in text
    order = [
        'Comparison with sft',
        'Results',
        'Task by task',
        'Forgetting, length and cost',
        'Learning curves: accuracy on validation problems',
        'Accuracy against cost: test, greedy',
        'Difference to sft: greedy accuracy',
        'Response length on validation problems, tokens',
        'Forgetting: greedy accuracy on other tasks, after minus before',
        'How many seeds',
        'Failed: 4',
        'How it was measured',
    ]
    assert re.findall(r'<h[12]>(.*?)</h[12]>', text) == order
    assert read.tags.count('svg') == 2 * 5
    ids = [value for _, name, value in read.attributes if name == 'id']
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', text)) == set(ids)
    assert len(ids) > 50 and len(ids) == len(set(ids)), 'two figures of a page may not share a name'
    # The table and the failures show the error, the description its title and text.
    assert read.words.count(EVIL) == 1 + 4 + 2
    for said in (
        '2 M tokens',
        'python -m one',
        'width: 96',
        'test 200, ood 200, other:addition 200',
        '36 finished, 4 failed',
        '0, 1, 2, 3',
        'grpo: better on 2',
        'dpo: worse on 1, failed on 1',
    ):
        assert said in read.words, said
    for task in compared.tasks:
        assert page.sentence(compared, task) in read.words


def test_sentences(compared):
    said = page.sentence(compared, 'multiplication')
    row = compared.row('multiplication', 'masked_thought')
    assert said.startswith('multiplication: sft reached ') and said.endswith('; failed: dpo.')
    assert re.search(r'; better: (rft .*, )?grpo \(\+\d+\.\d \[', said)
    smallest = f'80 % power to detect {100 * row.differences["test/greedy"].smallest:.1f} points'
    assert 'not significant: masked_thought (' in said and smallest in said


def test_one_seed_says_so(tmp_path):
    cells = [c for c in arena(('addition',), seeds=1, points=2)]
    text = Page(page.write(tmp_path, cells, 'sft', {})[0].read_text()).words
    assert (
        'at least two are needed' in text
        and 'not tested on 1' in text
        and 'How many seeds' not in text
    )


def test_everything_failed(tmp_path):
    paths = page.write(tmp_path, [failed('sft', 'a', 0), failed('grpo', 'a', 0)], 'sft', {})
    assert [path.name for path in paths] == ['report.html', 'table.md', 'table.csv', 'table.json']
    assert 'a: sft has no result; failed: grpo.' in Page(paths[0].read_text()).words


def test_needs_no_accelerator_library_and_no_global_figures():
    program = (
        'import sys, reasonjax.arena.page; '
        'print([name for name in ("jax", "matplotlib.pyplot") if name in sys.modules])'
    )
    assert (
        subprocess.run(
            [sys.executable, '-c', program], capture_output=True, text=True, check=True
        ).stdout.strip()
        == '[]'
    )
