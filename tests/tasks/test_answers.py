"""Reading answers out of text, and comparing them."""

import importlib.util

import pytest

from reasonjax.errors import UserError
from reasonjax.tasks.answers import equivalent, extract, same_number


@pytest.mark.parametrize(
    'how,text,expected',
    [
        ('strict', 'so it is 12.\n#### 18', '18'),
        ('strict', '#### 840,840', '840,840'),
        ('strict', '#### -3.5', '-3.5'),
        ('strict', '#### 1 and later #### 2', '1'),
        ('strict', '####18', None),
        ('strict', '#### $18', None),
        ('strict', 'the answer is 18', None),
        ('flexible', 'it costs 3, then 840,840', '840,840'),
        ('flexible', 'a total of $1,234.50', '$1,234.50'),
        ('flexible', 'between 3 and -7 degrees', '-7'),
        ('flexible', '#### 1 and later #### 2', '2'),
        ('flexible', 'the answer is 42.', '42.'),
        ('flexible', 'it is 5', '5'),
        ('flexible', 'I think 42. Or ...', '...'),  # as the harness reads it
        ('flexible', 'no number', None),
        ('hash', '1,2#34', '34'),
        ('hash', 'a#b#c', 'b#c'),
        ('hash', '#', ''),
        ('hash', '34', None),
        ('boxed', r'so \boxed{7}.', '7'),
        ('boxed', r'\boxed{1} no, \boxed{\frac{1}{2}} yes', r'\frac{1}{2}'),
        ('boxed', r'\boxed{1} and then \boxed{2', '1'),
        ('boxed', r'\boxed{\{1, 2\}}', r'\{1, 2\}'),
        ('boxed', r'\boxed{\left\{ x \right.}', r'\left\{ x \right.'),
        ('boxed', r'\boxed {3}', '3'),
        ('boxed', r'} { \boxed{4}', '4'),
        ('boxed', r'\boxed{a \boxed{b} c', 'b'),
        ('boxed', r'\boxed{', None),
        ('boxed', '7', None),
        ('last_line', 'one\n two \n\n', 'two'),
        ('last_line', ' \n', None),
    ],
)
def test_extract(how, text, expected):
    assert extract(text, how) == expected


def test_repeated_unclosed_boxes_are_read_in_one_pass():
    # A quadratic reader would need 10^10 steps here.
    assert extract(r'\boxed{1}' + r'\boxed{' * 100_000, 'boxed') == '1'


@pytest.mark.parametrize(
    'a,b,same',
    [
        ('840,840', '840840', True),
        ('$1,234.50', '1234.5', True),
        ('18.', '18', True),
        (' -3 ', '-3.0', True),
        ('+5', '5', True),
        ('.5', '0.5', True),
        ('0.33333', '0.3333', True),
        ('0.3335', '0.3333', False),
        ('3', '-3', False),
        ('12345678901234567890', '12345678901234567891', False),
        ('x + 1', 'x + 1 ', True),
        ('x', 'y', False),
        ('...', '', False),
        ('nan', 'nan', True),
        ('inf', '1', False),
        ('1_0', '10', False),
        ('1e3', '1000', False),
        ('1.2.3', '1.2', False),
        ('', '', True),
    ],
)
def test_same_number(a, b, same):
    assert same_number(a, b) is same
    assert same_number(b, a) is same


def test_equality_by_name():
    assert equivalent('0545', '545') and not equivalent('0545', '545', 'text')
    assert not equivalent('545 ', '545', 'text')
    with pytest.raises(UserError, match='Did you mean "number"'):
        equivalent('1', '1', 'numbers')
    with pytest.raises(UserError, match='Did you mean "flexible"'):
        extract('1', 'flexibel')


def test_math_verify_names_the_extra_when_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'reasonjax\[tasks\]'):
        equivalent('1/2', '0.5', 'math_verify')


@pytest.mark.parametrize(
    'answer,solution,same',
    [
        (r'\frac{1}{2}', '0.5', True),
        ('x+1', '1+x', True),
        (r'$\frac{1}{2}$', '1/2', True),
        (r'\{2, 1\}', r'\{1, 2\}', True),
        ('1,234', '1234', True),
        (r'\frac{1}{3}', '0.5', False),
        ('', '1', False),
        ('}{', '}{', True),
        ('42.', '42', True),
        ('42,', '42', True),
        ('7.', '7', True),
        ('1/2006!', '1/2004!', False),
        ('1/2006!', r'\frac{1}{2006!}', True),
        ('2^{-100}', '2^{-101}', False),
        ('0.1234567', '0.1234568', False),
        ('0.1234567x', '0.1234568x', False),
        (r'\{0.1234567\}', r'\{0.1234568\}', False),
        (r'\pi', '3.14159265358979', False),
        (r'\sqrt{8}', r'2\sqrt{2}', True),
        (r'\sqrt{8}', '2.8284271247', False),
        (r'\sqrt{2} \cdot 10^{-30}', r'\sqrt{3} \cdot 10^{-30}', False),
        (r'\{1, 2\}', '(1, 2)', False),
        ('1, 2', '(1, 2)', False),
        ('12', '1, 2', False),
        ('[0, 1)', '(0, 1)', False),
        (r'(-\infty, \sqrt{8})', r'(-\infty, 2\sqrt{2})', True),
        (r'\begin{pmatrix} 1 \\ 2 \end{pmatrix}', '(1, 2)', False),
        (r'\begin{pmatrix} 1 \\ 2 \end{pmatrix}', r'\begin{pmatrix}1\\2\end{pmatrix}', True),
        ('(x+1)^2', 'x^2 + 2x + 1', True),
        ('x > 3', '3 < x', True),
        ('2516_8', '2516', False),
        ('x', 'X', False),
        (r'50\%', r'\frac{1}{2}', True),
        ('3!', '6', True),
        ('2^{10}', '1024', True),
        ('1e999999', '1e999998', False),
    ],
)
def test_math_verify(answer, solution, same):
    pytest.importorskip('math_verify')
    assert equivalent(answer, solution, 'math_verify') is same
    assert equivalent(solution, answer, 'math_verify') is same


@pytest.mark.parametrize('how', ['flexible', 'strict', 'answer'])
@pytest.mark.parametrize('end', ['', '.', ',', '. That is all', '...'])
def test_stops_at_the_end_of_an_answer_do_not_count(how, end):
    pytest.importorskip('math_verify')
    for answer, same in (('42', True), ('-42', False), ('42.5', False)):
        text = f'#### {answer}{end}' if how == 'strict' else f'The answer is {answer}{end}'
        assert (
            equivalent(extract(text, how), '42', 'math_verify')
            is same
            is equivalent(extract(text, how), '42')
        )
