"""Chat templates are programs of strangers: whatever one does, it ends soon, takes little memory,
and is refused in one line."""

import json
import pathlib
import subprocess
import sys
import threading

import pytest
from tokenizer_folders import TEMPLATE

from reasonjax.errors import UserError
from reasonjax.interop.huggingface.tokenizers import bounded, huggingface

ROOT = pathlib.Path(__file__).parents[2]
ASK = [{'role': 'user', 'content': 'Tom'}]


def opened(folder, template=None):
    if template is not None:
        (pathlib.Path(folder) / 'chat_template.jinja').write_text(template)
    return huggingface(None, None, path=str(folder))


def refusal(work, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        work(*arguments)
    message = str(caught.value)
    assert '\n' not in message and len(message) < 1000
    return message


@pytest.fixture
def folder(tmp_path, hugging_face_folder):
    return hugging_face_folder(tmp_path)


GROWING = "{% set n = namespace(x='ab', l=[1]) %}{% for i in range(60) %}"
# Each would take gigabytes, or hours within one operation, where no exception arrives.
LARGE = {
    'text times number': "{{ 'x' * 10**11 }}",
    'number times text': "{{ 100000000000 * 'x' }}",
    'list times number': '{{ ([0] * 10**11)|length }}',
    'text doubled by +': GROWING + '{% set n.x = n.x + n.x %}{% endfor %}',
    'safe text doubled': GROWING.replace("'ab'", "'ab'|safe")
    + '{% set n.x = n.x + n.x %}{% endfor %}',
    'bytes doubled': GROWING.replace("'ab'", "'ab'.encode()")
    + '{% set n.x = n.x + n.x %}{% endfor %}',
    'tuples doubled': GROWING.replace('[1]', '(1, 2)') + '{% set n.l = n.l + n.l %}{% endfor %}',
    'text doubled by ~': GROWING + '{% set n.x = n.x ~ n.x %}{% endfor %}',
    'text doubled by a block': GROWING
    + '{% set x %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = x %}{% endfor %}',
    'text doubled by a macro': '{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}'
    + GROWING
    + '{% set n.x = m(n.x) %}{% endfor %}',
    'list doubled by +': GROWING + '{% set n.l = n.l + n.l %}{% endfor %}',
    'lists in lists, shown': GROWING + '{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l }}',
    'lists in lists, joined': GROWING + "{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l ~ '' }}",
    'lists in lists, as json': GROWING
    + "{% set n.l = {'a': n.l, 'b': n.l} %}{% endfor %}{{ n.l|tojson }}",
    'lists in lists, compared': GROWING
    + '{% set n.l = (n.l, n.l) %}{% endfor %}{{ n.l == n.l[0] }}',
    'dicts in dicts': GROWING + '{% set n.l = dict(a=n.l, b=n.l) %}{% endfor %}{{ n.l }}',
    'namespaces in namespaces': GROWING
    + '{% set n.x = namespace(a=n.x, b=n.x) %}{% endfor %}{{ n.x }}',
    'namespaces in namespaces, joined': GROWING
    + "{% set n.x = namespace(a=n.x, b=n.x) %}{% endfor %}{{ n.x ~ '' }}",
    'an integer of many digits': "{% set x = ('f' * 16000000)|int(base=16) %}{{ x % 7 }}",
    'much text': '{% for i in range(99999) %}{% for j in range(999) %}'
    + 'text ' * 20
    + '{% endfor %}{% endfor %}',
    'a wide field': "{{ '%100000000000d' % 1 }}",
    'a field as wide as told': "{{ '%*d' % (2000000000, 1) }}",
    'a wide field by filter': "{{ '%2000000000d'|format(1) }}",
    'a wide field in braces': "{{ '{:100000000000}'.format(1) }}",
    'a field in braces as wide as told': "{{ '{:{}}'.format(1, 2000000000) }}",
    'a mapping into braces': "{{ '{a:{b}}'.format_map({'a': 1, 'b': 2000000000}) }}",
    'center': "{{ 'x'|center(100000000000) }}",
    'ljust': "{{ 'x'.ljust(100000000000) }}",
    'expandtabs': r"{{ ('\t' * 1000000).expandtabs(1000000) }}",
    'replace': "{% set x = 'a' * 1000000 %}{{ x.replace('a', x) }}",
    'replace nothing': "{% set x = 'a' * 1000000 %}{{ x|replace('', x) }}",
    'join': "{% set x = 'a' * 1000000 %}{{ x.join(x) }}",
    'join what comes one by one': "{% set x = 'a' * 1000000 %}{{ x|map('upper')|join(x) }}",
    'join one text many times': "{% set x = 'a' * 1000000 %}{{ ([x] * 1000000)|join }}",
    'indent': r"{{ ('a\n' * 100000)|indent(1000000) }}",
    'json': '{{ [1, [2]]|tojson(indent=2000000000) }}',
    'slices': '{{ [1]|slice(100000000000)|list }}',
    'characters to sort': "{{ ('x' * 16000000)|sort }}",
    'a wide date': "{{ strftime_now('%100000d' * 2000000)|length }}",
    'batch': "{{ [1]|batch(100000000000, 'x')|list }}",
    'translate': "{% set x = 'a' * 1000000 %}{{ x.translate({97: x}) }}",
    'sum of lists': '{{ ([[0] * 1000000] * 100000)|sum(start=[])|length }}',
    'bytes': '{{ (5).to_bytes(100000000000) }}',
    'power': '{{ 9 ** (9 ** 9) }}',
    'squares': '{% set n = namespace(x=10) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% '
    'endfor %}',
    'rounding': '{{ 5|round(-1000000000) }}',
}


@pytest.mark.parametrize('name', LARGE)
def test_what_would_be_too_large_is_refused_before_it_is_made(folder, name):
    message = refusal(opened, folder, LARGE[name])
    assert str(folder) in message and (
        'makes a text or list of more than' in message or 'makes an integer of' in message
    )


@pytest.mark.parametrize(
    'body',
    [
        '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}',
        '{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i + j %}{% endfor %}{% '
        'endfor %}',
        '{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}',
        '{{ lipsum(1, false, 1000000000, 1000000001) }}',
    ],
)
def test_what_does_not_end_is_stopped(folder, body, monkeypatch):
    monkeypatch.setattr(bounded, 'SECONDS', 0.3)
    assert 'is not done after 0.3 s' in refusal(opened, folder, body)


def test_what_does_not_end_for_some_messages_is_stopped_where_it_is_rendered(folder, monkeypatch):
    """In another thread as well; and nothing arrives in the thread later."""
    body = (
        "{% if messages[0].content == 'go' %}"
        + '{% for i in range(99999) %}' * 3
        + '{% endfor %}' * 3
        + '{% endif %}'
    )
    tokenizer, results = opened(folder, TEMPLATE + body), []
    monkeypatch.setattr(bounded, 'SECONDS', 0.3)

    def work():
        results.append(refusal(tokenizer.chat_text, [{'role': 'user', 'content': 'go'}], True))
        for _ in range(200_000):  # a late exception would end this
            pass
        results.append(tokenizer.chat_text(ASK, True))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    work()
    assert results[0] == results[2] and 'is not done after' in results[0]
    assert results[1] == results[3] == '<|im_start|>user\nTom<|im_end|>\n<|im_start|>assistant\n'


@pytest.mark.parametrize(
    'body, words',
    [
        (
            '{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}',
            'RecursionError: maximum recursion depth exceeded',
        ),
        ('{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}', 'RecursionError'),
        ('{% block a %}{{ self.a() }}{% endblock %}', 'RecursionError'),
        ('{{ 1 / 0 }}', 'ZeroDivisionError: division by zero'),
        (r"{{ raise_exception('two\nlines' * 1000) }}", 'two linestwo lines'),
        ('{{ ' + '(' * 5000 + '1' + ')' * 5000 + ' }}', 'RecursionError'),
        ('{% if 1 %}' * 3000 + '{% endif %}' * 3000, 'RecursionError'),
        (
            "{% for i in 'a' %}" * 30 + '{% endfor %}' * 30,
            'SyntaxError: too many statically nested blocks',
        ),
        ('{{ range(10**9) }}', 'OverflowError: Range too big'),
        ("{{ messages[0].content.encode('no such') }}", 'LookupError: unknown encoding'),
    ],
)
def test_what_a_template_raises_is_one_line(folder, body, words):
    tokenizer = opened(folder, body)
    message = refusal(tokenizer.chat_text, ASK, True)
    assert (
        f'the chat template of {folder} refuses message 1 (role "user"): ' in message
        and words in message
    )


@pytest.mark.parametrize(
    'body',
    [
        "{{ 'x' * 12 }}{{ 3 * 'ab' }}{{ [1] * 2 + [3] }}{{ 'a' + 'b' ~ 4 ~ none }}{{ 2 ** 10 }}{{ "
        '7 % 4 }}{{ -7 // 2 }}',
        "{{ '%5d|%-5s|%.2f|%%' % (7, 'ab', 1.5) }}{{ '%(a)s' % {'a': 1} }}{{ "
        "'{:>8}{!r:{}}'.format('x', 'y', 6) }}{{ 'at 20250101'|format }}",
        "{{ 'x'|center(9) }}{{ 'x'.ljust(4) }}{{ 'a b a'.replace('a', 'cc') }}{{ 'a b'|replace(' "
        "', '') }}{{ ', '.join(['a', 'b']) }}",
        r"{{ ['a', 1]|join('-') }}{{ 'a\nb'|indent(3) }}{{ messages|tojson }}{{ messages|tojson(indent=2) }}{{ [1, 2, 3]|batch(2)|list }}",
        "{{ [3, 1, 2]|slice(2)|list }}{{ [3, 1, 2]|slice(2, 'x')|list }}{{ 'ba'|sort }}{{ "
        "messages|sort(attribute='role', reverse=true) }}",
        "{% set x %}[{{ messages[0].role }}]{% endset %}{{ x }}{{ {'a': [1, (2,)]} }}{{ "
        "messages|map(attribute='role')|list }}",
        "{% set n = namespace(l=[], t='') %}{% for m in messages %}{% set n.l = n.l + [m.role] %}"
        '{% set n.t = n.t ~ m %}{% endfor %}{{ n.l }}{{ n.t }}{{ n }}',
        "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('a') }}{{ dict(a=1, b=[2]) }}{{ [[1], "
        '[2]]|sum(start=[]) }}{{ 2.567|round(1) }}',
        '{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% endfor %}{{ (1, 2)[0] }}{{ [] }}{{ {} '
        '}}{{ () }}{{ 1700000000 * 1000 }}',
    ],
)
def test_what_templates_do_every_day_comes_out_as_before(folder, body):
    import jinja2.sandbox

    plain = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    plain.filters['tojson'] = lambda x, indent=None: json.dumps(
        x, ensure_ascii=False, indent=indent
    )
    assert opened(folder, body).chat_text(ASK, False) == plain.from_string(body).render(
        messages=ASK
    )


def test_long_conversations_are_none_of_it(folder):
    """Ten million characters, and a list that grows by one entry at each of ten thousand
    messages."""
    body = (
        '{% set n = namespace(l=[]) %}{% for m in messages %}{% set n.l = n.l + [m.role] %}{{ '
        "m.content + '\n' }}{% endfor %}"
        '{{ n.l|length }}'
    )
    messages = [{'role': 'user', 'content': 'x' * 1000}] * 10_000
    assert opened(folder, body).chat_text(messages, False) == ('x' * 1000 + '\n') * 10_000 + '10000'


def test_what_others_render_is_not_bounded(folder):
    opened(folder).chat_text(ASK, True)
    import transformers

    plain = transformers.AutoTokenizer.from_pretrained(folder)
    plain.chat_template = "{{ ('x' * 20000000)|length }}{{ [1] + [2] }}{{ [[3]]|list }}"
    assert plain.apply_chat_template(ASK, tokenize=False) == '20000000[1, 2][[3]]'


def test_size_is_looked_at_before_a_template_is_read(folder):
    message = refusal(opened, folder, 'x' * 10**7)
    assert (
        'chat_template.jinja: has 10,000,000 bytes; none of more than 1,048,576 is read' in message
    )
    assert 'has 200,000 characters, but none longer than 131,072 is used' in refusal(
        opened, folder, 'x' * 200_000
    )


def test_a_template_of_ones_own_is_looked_at_too(folder, tmp_path):
    file = tmp_path / 'mine.jinja'
    for content, words in [
        (b'x' * 10**6, 'has 1,000,000 bytes'),
        (b'x' * 200_000, 'has 200,000 characters'),
        (b'\xff', 'is not UTF-8'),
        (LARGE['text times number'].encode(), 'makes a text or list of more than'),
    ]:
        file.write_bytes(content)
        assert words in refusal(
            lambda: huggingface(None, None, path=str(folder), chat_template=str(file))
        )


def test_memory_stays_small(folder):
    """Everything that is too large, one after the other, in a process that may not have a
    gigabyte."""
    script = f"""
import json, pathlib, resource, sys
from transformers import AutoTokenizer
from reasonjax.interop.huggingface.tokenizers import bounded
tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for body in json.load(sys.stdin):
    tokenizer.chat_template = body
    try:
        bounded.render(lambda: tokenizer.apply_chat_template([{{'role': 'user', 'content': 'a'}}], tokenize=False))
    except bounded.TooMuch:
        continue
    raise AssertionError(body)
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
"""
    keep = "{% set x = 'a' * 10000000 %}{% set n = namespace(l=[]) %}{% for i in range(9999) %}{% set n.l = n.l + [x ~ i] %}{% endfor %}"
    bodies = json.dumps([*LARGE.values(), keep])
    done = subprocess.run(
        [sys.executable, '-c', script],
        cwd=ROOT,
        input=bodies,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
