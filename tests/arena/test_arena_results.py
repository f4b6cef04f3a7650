"""Cells as files: what is written is read, and what is not a cell is refused with the file's and
the field's name."""

import dataclasses
import json
import math

import ml_collections
import pytest
from arena_cells import cell, failed

from reasonjax.arena import compare, results
from reasonjax.arena.cell import EXAM, RESULT, Spec
from reasonjax.errors import UserError


def test_round_trip(tmp_path):
    for number, made in enumerate(
        (
            cell('grpo', 'addition', 3, 0.8, other=['sorting'], problems=7),
            failed('sft', 'addition', 0),
        )
    ):
        file = tmp_path / 'cells' / f'{number}.json'
        assert results.write(file, made) == file
        assert results.read(file) == made
    assert sorted(path.name for path in file.parent.iterdir()) == ['0.json', '1.json']
    assert not made.done


def test_what_was_not_measured_is_null_or_empty(tmp_path):
    made = cell('sft', 'addition', 0, 0.5, problems=3)
    made.cost['peak_bytes'] = made.curve[0]['flops'] = made.length['ood'] = None
    made.correct['ood']['sampled'].clear()
    made.before['ood']['sampled'].clear()
    del made.before['test']
    assert results.read(results.write(tmp_path / 'a.json', made)) == made


@pytest.mark.parametrize(
    'change,said',
    [
        (lambda c: c.pop('curve'), '"curve" is missing'),
        (lambda c: c.update(sede=1), '"sede" is unknown. Expected .*Did you mean "seed"?'),
        (lambda c: c.update(seed=1.5), '"seed": expected a whole number, found 1.5'),
        (lambda c: c.update(seed=True), '"seed": expected a whole number'),
        (lambda c: c.update(recipe=3), '"recipe": expected text'),
        (
            lambda c: c.update(status='finished'),
            '"status": expected one of done, failed, found finished',
        ),
        (lambda c: c.update(status='failed'), '"error": expected text where the cell failed'),
        (
            lambda c: c.update(error='no'),
            '"error": expected text where the cell failed, "" where it is done, found no',
        ),
        (lambda c: c.update(correct={}), '"correct": expected at least one split'),
        (lambda c: c['correct']['test'].pop('sampled'), '"correct.test.sampled" is missing'),
        (lambda c: c['correct']['test'].update(beam=[]), '"correct.test.beam" is unknown'),
        (
            lambda c: c['correct']['test']['greedy'].append(0.0),
            r'"correct.test": expected the same problems in each mode, found 5, 6',
        ),
        (
            lambda c: c['correct']['test']['greedy'].__setitem__(2, 0.5),
            r'"correct.test.greedy\[2\]": expected 0 or 1, found 0.5',
        ),
        (
            lambda c: c['correct']['test']['sampled'].__setitem__(2, 1.5),
            r'"correct.test.sampled\[2\]": expected a share from 0 to 1',
        ),
        (
            lambda c: c['before']['ood'].update(greedy=[1], sampled=[]),
            '"before": expected only problems of "correct".*found ood/greedy',
        ),
        (lambda c: c['length'].update(test=-1), '"length.test": expected a number of at least 0'),
        (lambda c: c['curve'][1].pop('accuracy'), r'"curve\[1\].accuracy" is missing'),
        (lambda c: c['curve'][1].update(loss=1), r'"curve\[1\].loss" is unknown'),
        (lambda c: c['curve'][1].update(accuracy='x'), r'"curve\[1\].accuracy": expected a number'),
        (lambda c: c['cost'].pop('flops'), '"cost.flops" is missing'),
        (lambda c: c['cost'].update(flop=1), '"cost.flop" is unknown. .*Did you mean "flops"?'),
    ],
)
def test_refused(tmp_path, change, said):
    content = dataclasses.asdict(cell('sft', 'addition', 0, 0.5, problems=5))
    change(content)
    file = tmp_path / 'cell.json'
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=said) as caught:
        results.read(file)
    assert str(caught.value).startswith(f'{file}: ')


def test_numbers_that_are_none_are_not_written(tmp_path):
    made = cell('sft', 'addition', 0, 0.5, problems=5)
    made.cost['flops'] = math.nan
    with pytest.raises(
        UserError, match='"cost.flops": expected a number of at least 0, or null, found nan'
    ):
        results.write(tmp_path / 'a.json', made)
    assert not list(tmp_path.iterdir())
    (tmp_path / 'b.json').write_text(json.dumps(dataclasses.asdict(made)))
    with pytest.raises(UserError, match='cost.flops'):
        results.read(tmp_path / 'b.json')
    (tmp_path / 'c.json').write_text('[]')
    with pytest.raises(UserError, match=r'c\.json'):
        results.read(tmp_path / 'c.json')


DAMAGED = ('', '{', '[]', 'null', '{"recipe": "sft"}', '\0', '[[1]]')


@pytest.mark.parametrize('text', DAMAGED)
def test_a_damaged_result_is_put_aside_and_the_cell_run_again(text, tmp_path, capsys):
    config = ml_collections.ConfigDict({'seed': 0})
    planned = compare.Planned(Spec('sft', 'addition', 0, str(tmp_path)), config)
    planned.write()
    results.write(tmp_path / RESULT, cell('sft', 'addition', 0, 0.5))
    assert planned.result.done
    (tmp_path / RESULT).write_text(text)
    assert (
        planned.result is None
        and 'Renamed to result.json.damaged; the cell is run again' in capsys.readouterr().err
    )
    assert (
        not (tmp_path / RESULT).exists() and (tmp_path / 'result.json.damaged').read_text() == text
    )


@pytest.mark.parametrize(
    'text', [*DAMAGED, '{"correct": {}, "length": 3}', '{"correct": {}, "length": {}, "more": {}}']
)
def test_a_damaged_exam_is_answered_again(text, tmp_path, capsys):
    (tmp_path / EXAM).write_text('{"correct": {}, "length": {}}')
    assert compare._answered(tmp_path / EXAM)
    (tmp_path / EXAM).write_text(text)
    assert (
        not compare._answered(tmp_path / EXAM)
        and 'Renamed to exam.json.damaged' in capsys.readouterr().err
    )
    assert not compare._answered(tmp_path / EXAM)


@pytest.mark.parametrize('text', ['', '{', '{}', '[1]', 'null', '"x"'])
def test_a_damaged_index_is_named(text, tmp_path):
    (tmp_path / 'cells.json').write_text(text)
    with pytest.raises(UserError, match='cells.json: ') as error:
        results.read_run(tmp_path)
    assert '\n' not in str(error.value)
