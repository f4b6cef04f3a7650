"""Scores of answers marked by hand."""

import json
from itertools import combinations

import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.sampling.text import Completion
from reasonjax.training import evaluate, score_run
from reasonjax.training.evaluate import Answer, Evaluation


def answer(problem, text, correct, *, length=3, terminated=True, **verdict):
    """Marks `text`, which stands for its own answer; '' could not be read."""
    return Answer(
        problem,
        Completion(text, [1] * length, length, terminated),
        {'correct': correct, 'answer': text or None, **verdict},
    )


def sampled(*problems):
    """Each problem is the list of its answers; those that equal '7' are right."""
    found = [[answer(i, text, text == '7') for text in texts] for i, texts in enumerate(problems)]
    return Evaluation(
        [{'prompt': f'p{i}', 'solution': '7'} for i in range(len(problems))], [], found
    )


PROBLEMS = (
    ['7', '1', '7', '2'],
    ['1', '1', '7', '7'],
    ['', '', '', '7'],
    ['3', '3', '3', '3'],
    ['', '', '', ''],
)


def test_pass_at_k_is_the_mean_over_all_subsets():
    found = sampled(*PROBLEMS)
    result = score_run.scores(found, [1, 2, 3, 4])
    for k in (1, 2, 3, 4):
        drawn = [
            np.mean(['7' in subset for subset in combinations(texts, k)]) for texts in PROBLEMS
        ]
        np.testing.assert_allclose(result[f'pass@{k}'], np.mean(drawn), rtol=1e-12)
        low, high = result[f'pass@{k}_ci95']
        assert 0 <= low <= result[f'pass@{k}'] <= high <= 1
    assert result['pass@1'] == pytest.approx(evaluate.summarise(found)['sampled_accuracy'])


def test_majority_at_k_votes_over_the_first_k():
    result = score_run.scores(sampled(*PROBLEMS), [1, 2, 3, 4])
    # The first wins a tie; what could not be read does not vote; where nothing could be read,
    # nothing is right.
    assert [result[f'maj@{k}'] for k in (1, 2, 3, 4)] == [1 / 5, 1 / 5, 1 / 5, 2 / 5]


def test_an_answer_that_was_cut_cannot_make_a_right_vote():
    """Equal texts may be marked differently (one did not end): the vote is right if any of the
    winners is."""
    cut, ended = answer(0, '7', False, terminated=False), answer(0, '7', True)
    for group, right in ([cut, cut], 0.0), ([cut, ended], 1.0):
        assert score_run.scores(Evaluation([{'prompt': 'p'}], [], [group]), [2])['maj@2'] == right


def test_nothing_is_asked_of_no_samples():
    assert score_run.scores(sampled(*PROBLEMS), []) == {}


@pytest.mark.parametrize(
    ('text', 'samples', 'ks'),
    [
        ('', 0, []),
        ('', 1, [1]),
        ('', 8, [1, 8]),
        ('1,4', 8, [1, 4]),
        (' 4, 2 ,4,', 4, [2, 4]),
        ('3', 3, [3]),
    ],
)
def test_which_k(text, samples, ks):
    assert score_run.wanted(text, samples) == ks


@pytest.mark.parametrize(
    ('text', 'samples', 'message'),
    [
        ('5', 4, r'--k=5: pass@5 needs --samples 5 or more, there are 4'),
        ('4', 0, r'--k=4: pass@4 needs --samples 4 or more, there are 0'),
        ('0', 4, '--k=0: must be at least 1; nearest: 1'),
        ('-1', 4, '--k=-1: must be at least 1; nearest: 1'),
        ('1.5', 4, '--k="1.5": must be a whole number, at least 1'),
        ('two', 4, '--k="two": must be a whole number'),
        ('²', 4, 'must be a whole number'),
        ('9' * 5000, 4, r'\(5002 characters\): must be a whole number'),
        ('1e400', 4, 'must be a whole number'),
    ],
)
def test_which_k_not(text, samples, message):
    with pytest.raises(UserError, match=message):
        score_run.wanted(text, samples)


def test_summary_by_hand():
    greedy = [answer(0, '7', True, length=2), answer(1, '5', False, length=6, terminated=False)]
    drawn = [
        [answer(0, '7', True, length=4), answer(0, '8', False, length=4)],
        [answer(1, '7', True, length=8), answer(1, '7', True, length=8, terminated=False)],
    ]
    result = evaluate.summarise(Evaluation([{'prompt': 'a'}, {'prompt': 'b'}], greedy, drawn))
    assert (
        result['problems'] == 2 and result['accuracy'] == 0.5 and result['sampled_accuracy'] == 0.75
    )
    assert (
        result['greedy_length'] == 4
        and result['mean_length'] == 6
        and result['clipped_ratio'] == 0.25
    )
    # Wilson's interval of one of two, from its formula with z = 1.96.
    np.testing.assert_allclose(result['ci95'], (0.0945, 0.9055), atol=1e-3)
    assert 'strict' not in result
    json.dumps(result)


def test_summary_of_greedy_alone_and_of_samples_alone():
    greedy = evaluate.summarise(Evaluation([{'prompt': 'a'}], [answer(0, '7', True, length=5)], []))
    assert (
        greedy['accuracy'] == 1 and greedy['mean_length'] == 5 and 'sampled_accuracy' not in greedy
    )
    single = evaluate.summarise(sampled(['7'], ['1'], ['7'], ['7']))
    assert single['sampled_accuracy'] == 0.75 and 'accuracy' not in single
    np.testing.assert_allclose(single['sampled_ci95'], (0.3006, 0.9544), atol=1e-3)


def test_strict_and_flexible_are_of_the_greedy_answers_where_there_are_any():
    greedy = [
        answer(0, '7', False, strict=False, flexible=True),
        answer(1, '7', True, strict=True, flexible=True),
    ]
    drawn = [
        [answer(0, '1', False, strict=False, flexible=False)],
        [answer(1, '1', False, strict=False, flexible=False)],
    ]
    rows = [{'prompt': 'a'}, {'prompt': 'b'}]
    both = evaluate.summarise(Evaluation(rows, greedy, drawn))
    assert (both['strict'], both['flexible']) == (0.5, 1.0)
    assert evaluate.summarise(Evaluation(rows, [], drawn))['flexible'] == 0.0


def test_metrics_carry_the_ends_of_the_intervals():
    metrics = evaluate.as_metrics(
        {
            'accuracy': 0.5,
            'ci95': (0.1, 0.9),
            'sampled_accuracy': 0.4,
            'sampled_ci95': (0.2, 0.6),
            'problems': 3,
        }
    )
    assert metrics == {
        'eval_accuracy': 0.5,
        'eval_sampled_accuracy': 0.4,
        'eval_problems': 3,
        'eval_accuracy_lo': 0.1,
        'eval_accuracy_hi': 0.9,
        'eval_sampled_accuracy_lo': 0.2,
        'eval_sampled_accuracy_hi': 0.6,
    }


def test_answers_file(tmp_path):
    rows = [
        {'prompt': 'wie viel?', 'solution': '7', 'level': 1},
        {'prompt': [{'role': 'user', 'content': 'ü'}]},
    ]
    greedy = [answer(0, '7', True, length=2), answer(1, 'ä\n', False, terminated=False)]
    drawn = [
        [answer(0, '7', True), answer(0, '8', False)],
        [answer(1, '', False), answer(1, '7', True)],
    ]
    path = tmp_path / 'new' / 'folder' / 'answers.jsonl'
    score_run.write_answers(Evaluation(rows, greedy, drawn), path)
    lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
    assert [
        (line['problem'], line['decoding'], line['completion'], line['correct']) for line in lines
    ] == [
        (0, 'greedy', '7', True),
        (1, 'greedy', 'ä\n', False),
        (0, 'sampled', '7', True),
        (0, 'sampled', '8', False),
        (1, 'sampled', '', False),
        (1, 'sampled', '7', True),
    ]
    assert lines[0] == {
        'problem': 0,
        'prompt': 'wie viel?',
        'solution': '7',
        'decoding': 'greedy',
        'completion': '7',
        'length': 2,
        'terminated': True,
        'correct': True,
        'answer': '7',
    }
    assert lines[1]['prompt'] == rows[1]['prompt'] and lines[1]['solution'] is None
