"""GSM8K rows, template and marking."""

import json

import pytest

from reasonjax.errors import UserError
from reasonjax.tasks import gsm8k
from reasonjax.tasks.gsm8k import rows_to_prompt

ANSWER = 'She has 48/2 = <<48/2=24>>24.\nIn all 48+1,176 = <<48+1176=1224>>1,224.\n#### 1,224'


@pytest.fixture
def folder(tmp_path):
    rows = [{'question': f'Number {i}?', 'answer': ANSWER, 'id': i} for i in range(3)]
    (tmp_path / 'train.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
    return tmp_path


def test_template():
    row = rows_to_prompt('How many?', ANSWER, keep_calculator=False)
    assert row == {
        'prompt': 'Question: How many?\nAnswer:',
        'completion': ' She has 48/2 = 24.\nIn all 48+1,176 = 1,224.\n#### 1,224',
        'solution': '1224',
    }
    assert rows_to_prompt('How many?', ANSWER, keep_calculator=True)['completion'] == ' ' + ANSWER
    with pytest.raises(UserError, match='#### number'):
        rows_to_prompt('How many?', 'Many.', keep_calculator=False)


def test_rows(folder):
    task = gsm8k(path=str(folder), split='train')
    assert task.name == 'gsm8k/train' and len(task.examples) == 3
    row = task.examples[1]
    assert row['question'] == 'Number 1?' and row['answer'] == ANSWER and row['id'] == 1
    assert row['prompt'] == 'Question: Number 1?\nAnswer:' and row['solution'] == '1224'
    assert task.examples.where(1).endswith('train.jsonl:2')
    assert len(gsm8k(path=str(folder), split='train', limit=2).examples) == 2
    kept = gsm8k(path=str(folder), split='train', keep_calculator=True)
    assert '<<' in kept.examples[0]['completion'] and '<<' not in row['completion']
    assert kept.examples.fingerprint() != task.examples.fingerprint()
    assert '0x' not in repr(task.examples)


@pytest.mark.parametrize(
    'completion,answer,strict,flexible',
    [
        (' It is 1224.\n#### 1224', '1224', True, True),
        (' #### 1,224', '1,224', True, True),
        (' so 1224', '1224', False, True),
        (' #### 7 or rather 1224', '7', False, True),
        (' #### 1224\n\nQuestion: Next?\nAnswer: 9 #### 9', '1224', True, True),
        (' #### 1224 for 3 of them', '1224', True, False),
        (' none', None, False, False),
    ],
)
@pytest.mark.parametrize('terminated', [True, False])
def test_marking(folder, completion, answer, strict, flexible, terminated):
    result = gsm8k(path=str(folder), split='train').verify(completion, {'solution': '1224'}, terminated)
    assert result == {'correct': strict, 'answer': answer, 'strict': strict, 'flexible': flexible}


def test_missing_folder_split_and_setting(folder, monkeypatch):
    monkeypatch.delenv('REASONJAX_DATA', raising=False)
    with pytest.raises(UserError, match='data.path.*REASONJAX_DATA'):
        gsm8k()
    with pytest.raises(UserError, match='no folder.*data.path'):
        gsm8k(path=str(folder / 'nowhere'))
    with pytest.raises(UserError, match='Did you mean "train"'):
        gsm8k(path=str(folder), split='trian')
    with pytest.raises(UserError, match='limit'):
        gsm8k(path=str(folder), split='train', limit=0)
    (folder / 'gsm8k').mkdir()
    (folder / 'train.jsonl').rename(folder / 'gsm8k' / 'test.jsonl')
    monkeypatch.setenv('REASONJAX_DATA', str(folder))
    assert len(gsm8k().examples) == 3


@pytest.mark.parametrize(
    'row,message',
    [
        ({'question': 'q', 'anser': 'a'}, 'line.jsonl:2: .*"answer".*Did you mean "anser"'),
        ({'question': 3, 'answer': 'a'}, 'line.jsonl:2: .*"question"'),
        ({'question': 'q', 'answer': 'no number'}, 'line.jsonl:2: .*#### number'),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    good = {'question': 'q', 'answer': '#### 1'}
    (tmp_path / 'line.jsonl').write_text(json.dumps(good) + '\n' + json.dumps(row) + '\n')
    source = gsm8k(path=str(tmp_path), split='line').examples
    assert source[0]['solution'] == '1'
    with pytest.raises(UserError, match=message):
        source[1]


def test_the_real_test_set_marks_its_own_answers_right(data_dir):
    task = gsm8k(path=str(data_dir / 'gsm8k'))
    assert len(task.examples) == 1319
    for i in range(0, 1319, 20):
        row = task.examples[i]
        result = task.verify(row['completion'], row, True)
        assert result['strict'] and result['flexible']
        assert not task.verify(row['completion'].replace('#### ', '#### 9'), row, True)['correct']
