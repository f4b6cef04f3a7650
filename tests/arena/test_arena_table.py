"""What a comparison says about cells with known effects."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
import scipy.stats
from arena_cells import TASKS, arena, cell, failed

from reasonjax.arena import formats, results, statistics, table
from reasonjax.errors import UserError
from reasonjax.training.statistics import wilson

NOTHING = {
    'generated_tokens': None,
    'trained_tokens': None,
    'flops': None,
    'seconds': None,
    'peak_bytes': None,
}


@pytest.fixture(scope='module')
def cells():
    return arena(TASKS[:2], seeds=6)


@pytest.fixture(scope='module')
def compared(cells):
    return table.build(cells, 'sft')


def made(recipe, seed, greedy, **fields):
    """A cell with these outcomes on 'test'."""
    fields = {'cost': NOTHING, 'length': {}, 'curve': [], 'before': {}} | fields
    return results.Cell(
        recipe,
        'task',
        seed,
        'done',
        '',
        {'test': {'greedy': list(greedy), 'sampled': []}},
        **fields,
    )


def outcomes(cells, task, recipe, split='test', mode='greedy', part='correct'):
    return np.array(
        [getattr(c, part)[split][mode] for c in cells if (c.task, c.recipe) == (task, recipe)]
    )


def test_verdicts(compared):
    verdicts = {(row.task, row.recipe): row.verdict for row in compared.rows}
    for task in TASKS[:2]:
        assert [
            verdicts[task, recipe] for recipe in ('sft', 'masked_thought', 'rft', 'grpo', 'dpo')
        ] == ['baseline', 'not significant', 'better', 'better', 'worse']
    assert compared.tasks == list(TASKS[:2]) and compared.recipes[0] == 'sft' and not compared.notes


def test_numbers_against_scipy(cells, compared):
    found = []
    for row in compared.rows:
        values = outcomes(cells, row.task, row.recipe)
        assert row.accuracy['test/greedy'].mean == pytest.approx(values.mean())
        assert row.accuracy['test/greedy'][1:] == pytest.approx(statistics.crossed_interval(values))
        assert row.accuracy['ood/sampled'].mean == pytest.approx(
            outcomes(cells, row.task, row.recipe, 'ood', 'sampled').mean()
        )
        assert row.before['test/greedy'] == pytest.approx(
            outcomes(cells, row.task, row.recipe, part='before').mean()
        )
        if row.recipe == 'sft':
            assert row.differences == {}
            continue
        base = outcomes(cells, row.task, 'sft')
        for measure, difference in row.differences.items():
            split, mode = measure.split('/')
            arms = [
                outcomes(cells, row.task, recipe, split, mode).mean(1)
                for recipe in (row.recipe, 'sft')
            ]
            assert difference.p == pytest.approx(scipy.stats.ttest_rel(*arms).pvalue, rel=1e-8)
            assert (difference.p_holm is None) == (measure != 'test/greedy')
        difference = row.differences['test/greedy']
        assert (difference.low, difference.high) == statistics.crossed_interval(values - base)
        assert difference.smallest == statistics.smallest_effect(
            (values - base).mean(1).std(ddof=1), 6
        )
        assert difference.seeds == tuple(range(6))
        found.append(difference)
    # The whole comparison is one family: eight tests.
    assert [d.p_holm for d in found] == pytest.approx(
        statistics.holm([d.p for d in found])
    ) and len(found) == 8


def test_other_measures(cells, compared):
    on_ood = table.build(cells, 'sft', measure='ood/sampled')
    for row, other in zip(compared.rows, on_ood.rows):
        assert row.accuracy == other.accuracy
        if row.recipe != 'sft':
            assert (
                row.differences['test/greedy'].p_holm is not None
                and other.differences['test/greedy'].p_holm is None
            )
            assert other.differences['ood/sampled'].p == row.differences['ood/sampled'].p


def test_a_difference_on_these_problems_only_is_no_verdict():
    # Every seed is better on the one problem that tells them apart: certain on these problems, open
    # on others.
    cells = [made('a', seed, [1, 0, 1, 0, 1]) for seed in range(4)] + [
        made('b', seed, [1, 1, 1, 0, 1]) for seed in range(4)
    ]
    row = table.build(cells, 'a').row('task', 'b')
    assert row.differences['test/greedy'].p_holm == 0 and row.differences['test/greedy'].low < 0
    assert row.verdict == 'not significant'


def test_where_nothing_varies():
    cells = [made(recipe, seed, [1] * 20) for recipe in 'ab' for seed in range(3)]
    row = table.build(cells, 'a').row('task', 'b')
    assert row.accuracy['test/greedy'] == (1, *wilson(20, 20))
    end = wilson(0, 20)[1]
    assert (
        row.differences['test/greedy'][:6] == (0, -end, end, 1, 1, 0)
        and row.differences['test/greedy'].smallest is None
    )
    assert row.verdict == 'not significant'


def test_forgetting_counts_tasks_the_same():
    cells = []
    for seed, (few, many) in enumerate([(1, 0), (0, 1)]):
        after = {
            'other:x': {'greedy': [few, 0], 'sampled': []},
            'other:y': {'greedy': [many] * 3 + [0] * 3, 'sampled': []},
        }
        before = {
            'other:x': {'greedy': [1, 1], 'sampled': []},
            'other:y': {'greedy': [0] * 6, 'sampled': []},
        }
        base = made('a', seed, [1, 0])
        cells.append(dataclasses.replace(base, correct=base.correct | after, before=before))
    estimate = table.build(cells, 'a').row('task', 'a').forgetting
    # x: -1/2 and -1; y: 0 and +1/2.
    assert (
        estimate.mean == pytest.approx((-0.75 + 0.25) / 2)
        and estimate.low < estimate.mean < estimate.high
    )
    assert table.build([made('a', 0, [1, 0])], 'a').row('task', 'a').forgetting is None


def test_length_and_median_costs():
    cells = [
        made(
            'a',
            seed,
            [1, 0],
            length={'test': length},
            cost=NOTHING | {'flops': flops, 'seconds': None if seed else 7.0},
        )
        for seed, (length, flops) in enumerate([(10.0, 1.0), (20.0, 100.0), (60.0, 3.0)])
    ]
    row = table.build(cells, 'a').row('task', 'a')
    assert row.length == 30 and row.cost == NOTHING | {'flops': 3, 'seconds': 7}


def test_failed_cells_stay_in_their_place(cells):
    error = 'RuntimeError: a | b\nand more'
    lost = {('addition', 'rft', seed) for seed in range(6)} | {('addition', 'grpo', 2)}
    broken = [
        failed(c.recipe, c.task, c.seed, error) if (c.task, c.recipe, c.seed) in lost else c
        for c in cells
    ]
    compared = table.build(broken, 'sft')
    assert [(row.task, row.recipe) for row in compared.rows] == [
        (t, r) for t in TASKS[:2] for r in compared.recipes
    ]
    row = compared.row('addition', 'rft')
    assert (row.seeds, row.failed, row.error, row.verdict) == ((), tuple(range(6)), error, 'failed')
    assert row.accuracy == row.differences == {} and row.length is None and row.cost == NOTHING
    row = compared.row('addition', 'grpo')
    assert (row.seeds, row.failed, row.verdict) == ((0, 1, 3, 4, 5), (2,), 'better')
    assert compared.notes == ('addition: grpo and sft are paired on 5 of 6 seeds (0, 1, 3, 4, 5).',)
    # Seven tests are left to adjust for.
    tested = [r.differences['test/greedy'] for r in compared.rows if r.differences]
    assert [d.p_holm for d in tested] == pytest.approx(
        statistics.holm([d.p for d in tested])
    ) and len(tested) == 7
    lines = formats.markdown(compared).splitlines()
    assert (
        lines[4]
        == '| addition | rft | failed'
        + ' | –' * 9
        + ' | 0 and 6 failed | RuntimeError: a \\| b and more |'
    )
    assert '* addition: grpo and sft are paired on 5 of 6 seeds (0, 1, 3, 4, 5).' in lines


def test_missing_pairs(cells):
    kept = [
        c
        for c in cells
        if (c.recipe, c.seed) not in (('grpo', 0), ('grpo', 1), ('sft', 5)) or c.task != 'addition'
    ]
    compared = table.build(kept, 'sft')
    difference = compared.row('addition', 'grpo').differences['test/greedy']
    assert difference.seeds == (2, 3, 4) and compared.row('addition', 'grpo').seeds == (2, 3, 4, 5)
    assert difference.mean == pytest.approx(
        (outcomes(cells, 'addition', 'grpo') - outcomes(cells, 'addition', 'sft'))[2:5].mean()
    )
    assert compared.notes == (
        'addition: masked_thought, rft, dpo and sft are paired on 5 of 6 seeds (0, 1, 2, 3, 4).',
        'addition: grpo and sft are paired on 3 of 6 seeds (2, 3, 4).',
    )
    alone = table.build([c for c in cells if c.recipe == 'grpo' or c.task != 'addition'], 'sft')
    assert (
        alone.row('addition', 'grpo').verdict == 'not tested'
        and alone.row('addition', 'sft') is None
    )
    assert alone.notes == (
        'addition: the baseline sft has no finished run, so nothing is compared with it.',
    )
    apart = table.build(
        [made('a', 0, [1, 0]), made('a', 1, [1, 0]), made('b', 2, [1, 0]), made('b', 3, [1, 0])],
        'a',
    )
    assert apart.row('task', 'b').verdict == 'not tested' and apart.notes == (
        'task: b and a are paired on 0 of 4 seeds.',
    )


def test_one_seed(cells):
    compared = table.build([c for c in cells if c.seed == 1], 'sft')
    for row in compared.rows:
        assert row.verdict == ('baseline' if row.recipe == 'sft' else 'not tested')
        assert row.accuracy['test/greedy'][1:] == (None, None) == row.forgetting[1:]
        for difference in row.differences.values():
            assert difference[1:-1] == (None,) * 6 and difference.seeds == (1,)
    assert compared.notes[0] == (
        'addition: one seed of sft, masked_thought, rft, grpo, dpo, so no interval over seeds and '
        'no test; '
        'at least two are needed.'
    )
    text = formats.markdown(compared)
    assert '[' not in text.split('* Accuracies')[0] and 'at least two are needed' in text


def test_refused(cells):
    with pytest.raises(UserError, match='cells: '):
        table.build([], 'sft')
    with pytest.raises(
        UserError, match='baseline="sfd": expected one of dpo, .*Did you mean "sft"?'
    ):
        table.build(cells, 'sfd')
    with pytest.raises(UserError, match='measure="test/gredy".*Did you mean "test/greedy"?'):
        table.build(cells, 'sft', measure='test/gredy')
    with pytest.raises(UserError, match='sft on addition with seed 0 is given twice'):
        table.build([*cells, cells[0]], 'sft')
    short = cell('grpo', 'addition', 9, 0.5, problems=150, other=TASKS[1:2])
    with pytest.raises(
        UserError,
        match='on addition, grpo with seed 9 answered 150 problems of ood/greedy, sft with seed 0 '
        '200',
    ):
        table.build([*cells, short], 'sft')


def test_json_is_strict_and_whole(compared):
    def refuse(constant):
        raise AssertionError(constant)

    read = json.loads(formats.to_json(compared), parse_constant=refuse)
    assert read['baseline'] == 'sft' and read['problems']['addition'] == {
        'test': 200,
        'ood': 200,
        'other:multiplication': 200,
    }
    for row, plain in zip(compared.rows, read['rows'], strict=True):
        assert plain['accuracy'] == {
            measure: estimate._asdict() for measure, estimate in row.accuracy.items()
        }
        assert plain['forgetting'] == row.forgetting._asdict() and plain['seeds'] == list(row.seeds)
        assert {measure: d['p'] for measure, d in plain['differences'].items()} == {
            m: d.p for m, d in row.differences.items()
        }


def test_csv(compared):
    lines = list(csv.DictReader(io.StringIO(formats.to_csv(compared))))
    for row, line in zip(compared.rows, lines, strict=True):
        assert (line['task'], line['recipe'], line['verdict'], line['seeds']) == (
            row.task,
            row.recipe,
            row.verdict,
            '0 1 2 3 4 5',
        )
        assert float(line['test_greedy_low']) == row.accuracy['test/greedy'].low
        assert (
            float(line['flops']) == row.cost['flops']
            and float(line['forgetting']) == row.forgetting.mean
        )
        p = line['test_greedy_difference_p_holm']
        assert p == '' if row.recipe == 'sft' else float(p) == row.differences['test/greedy'].p_holm
    assert None not in lines[0]


def test_markdown(compared):
    lines = formats.markdown(compared).splitlines()
    rows = [line for line in lines if line.startswith('|')]
    assert len(rows) == 2 * (2 + 10) and {line.count('|') for line in rows[:12]} == {14}
    row = compared.row('addition', 'grpo')
    for text in (
        formats.percent(row.accuracy['test/greedy']),
        formats.points(row.differences['test/greedy']),
        'better',
    ):
        assert f' {text} ' in rows[5]


@pytest.mark.parametrize(
    'value,text',
    [
        (None, '–'),
        (0, '0'),
        (7.25, '7.25'),
        (5.0, '5'),
        (999, '999'),
        (999.7, '1.00k'),
        (12_345, '12.3k'),
        (1.234e6, '1.23M'),
        (999.9e6, '1.00G'),
        (163e12, '163T'),
        (2.5e21, '2500E'),
    ],
)
def test_amounts(value, text):
    assert formats.amount(value) == text


def test_short_numbers():
    assert [formats.p_value(p) for p in (None, 0.0, 0.00099, 0.0123, 0.5, 1)] == [
        '–',
        '<0.001',
        '<0.001',
        '0.012',
        '0.50',
        '1.00',
    ]
    assert [formats.signed(x) for x in (0.123, -0.0001, -0.02, 0.0)] == [
        '+12.3',
        '0.0',
        '-2.0',
        '0.0',
    ]
    assert formats.shorten('a ' * 100).endswith('…') and len(formats.shorten('a ' * 100)) == 80
