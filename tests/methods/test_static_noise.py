"""Static noise: what it damages, how often, and what it leaves."""

import re

import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.methods.transforms import static_noise
from reasonjax.tasks import addition, traces

ROW = {
    'prompt': '5697+6559=',
    'completion': '79016,95115,65112,56112#12256',
    'solution': '12256',
    'level': 4,
}
LONG = {'completion': ','.join(['12+3=15'] * 2000) + '#15,7#3', 'k': 1}


def noised(row, seed=0, **knobs):
    before = dict(row)
    (example,) = static_noise(row, np.random.default_rng(seed), **knobs)
    assert row == before and example is not row
    return example


@pytest.mark.parametrize('kind', ['character', 'line'])
def test_neutral(kind):
    for knobs in (
        dict(intensity=0.0),
        dict(contamination=0.0, intensity=1.0),
        dict(contamination=0.0, intensity=0.5),
    ):
        for seed in range(50):
            assert noised(ROW, seed, kind=kind, **knobs) == ROW
    assert noised(ROW) == ROW  # as it is called without knobs


@pytest.mark.parametrize('kind', ['character', 'line'])
def test_the_answer_and_everything_else_stay(kind):
    for task in (addition(size=100), traces(size=100), traces(size=100, program='sorting')):
        changed = 0
        for i in range(100):
            row = task.examples[i]
            example = noised(row, i, kind=kind, intensity=0.3)
            assert {**example, 'completion': ''} == {**row, 'completion': ''}
            assert example['completion'].partition('#')[2] == row['completion'].partition('#')[2]
            assert task.verify(example['completion'], row, True)['correct']
            changed += example['completion'] != row['completion']
        assert changed > 30


def test_characters_become_others_of_the_set():
    example = noised(LONG, intensity=0.25)
    before, after = (text['completion'].partition('#')[0] for text in (LONG, example))
    assert len(after) == len(before)
    pairs = [(a, b) for a, b in zip(before, after) if a in '0123456789']
    assert all(a == b for a, b in zip(before, after) if a not in '0123456789')
    hit = [b for a, b in pairs if a != b]
    assert abs(len(hit) / len(pairs) - 0.25) < 5 * np.sqrt(0.1875 / len(pairs))
    # Every other digit is as likely as any.
    ones = np.bincount([int(b) for a, b in pairs if a == '1' and b != a], minlength=10)
    assert ones[1] == 0 and abs(ones[[0, *range(2, 10)]] / ones.sum() - 1 / 9).max() < 5 * np.sqrt(
        8 / 81 / ones.sum()
    )
    everything = noised(LONG, intensity=1.0, characters='0123456789+=,')['completion'].partition(
        '#'
    )[0]
    assert all(a != b for a, b in zip(before, everything)) and set(everything) == set(
        '0123456789+=,'
    )


def test_lines_are_taken_out():
    text = ','.join(map(str, range(4000))) + '#7'
    kept = (
        noised({'completion': text}, kind='line', intensity=0.25)['completion']
        .removesuffix('#7')
        .split(',')
    )
    assert list(map(int, kept)) == sorted(map(int, kept)) and set(kept) < set(map(str, range(4000)))
    assert abs(len(kept) / 4000 - 0.75) < 5 * np.sqrt(0.1875 / 4000)
    assert noised(ROW, kind='line', intensity=1.0)['completion'] == '#12256'


def test_contamination_is_the_share_of_examples():
    changed = [noised(ROW, seed, contamination=0.3, intensity=1.0) != ROW for seed in range(2000)]
    assert abs(np.mean(changed) - 0.3) < 5 * np.sqrt(0.21 / 2000)


def test_the_same_draws_give_the_same_noise():
    assert (
        noised(LONG, 3, intensity=0.5)
        == noised(LONG, 3, intensity=0.5)
        != noised(LONG, 4, intensity=0.5)
    )


def test_worked_text_in_lines():
    row = {'completion': ' First 12.\nThen 34.\n#### 46'}
    knobs = dict(marker='####', separator='\n')
    assert re.fullmatch(
        r' First \d\d\.\nThen \d\d\.\n#### 46', noised(row, intensity=1.0, **knobs)['completion']
    )
    found = {
        noised(row, seed, kind='line', intensity=0.5, **knobs)['completion'] for seed in range(50)
    }
    assert found == {row['completion'], ' First 12.\n#### 46', 'Then 34.\n#### 46', '#### 46'}


@pytest.mark.parametrize(
    'row,knobs,message',
    [
        (ROW, dict(kind='lines'), 'kind: unknown "lines".*Did you mean "line"'),
        (ROW, dict(contamination=1.2), 'contamination: expected a share'),
        (ROW, dict(intensity=-0.1), 'intensity: expected a share'),
        (ROW, dict(characters='1'), 'characters: expected at least two'),
        (ROW, dict(characters='11'), 'characters: expected at least two, each once'),
        (ROW, dict(characters='12#'), "none of the marker '#'"),
        (ROW, dict(marker=''), 'marker and separator must share no'),
        (ROW, dict(separator=''), 'marker and separator must share no'),
        (ROW, dict(marker='####', separator='#'), 'marker and separator must share no'),
        (ROW, dict(column='compeltion'), 'Did you mean "completion"'),
        ({'completion': 'no answer'}, {}, "holds no '#'"),
        (
            {'completion': [{'role': 'assistant', 'content': '#1'}]},
            {},
            'must be a string, found list',
        ),
    ],
)
def test_bad_settings(row, knobs, message):
    with pytest.raises(UserError, match=f'static_noise.*{message}'):
        static_noise(row, np.random.default_rng(0), **knobs)
