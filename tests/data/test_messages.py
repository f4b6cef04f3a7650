"""What messages may hold, and the form in which a template gets it: nothing of a row is lost, and
nothing is turned round."""

import json

import numpy as np
import pytest
import template_styles

from reasonjax.data import forms, pipeline, render, sources
from reasonjax.errors import UserError
from reasonjax.interop.huggingface.tokenizers import huggingface

ASK, SAY = (
    {'role': 'user', 'content': 'Tom has 12?'},
    {'role': 'assistant', 'content': 'So 2 more.'},
)
MORE, LAST = (
    {'role': 'user', 'content': 'and  3'},
    {'role': 'assistant', 'content': 'The answer is 4.'},
)
RESULT = {'role': 'tool', 'content': '{"sum": 357}'}
ARGUMENTS = {
    'text': 'a "b" \\ \n é',
    'number': 1.5,
    'flag': True,
    'nothing': None,
    'list': [1, {'x': 'y'}],
}


def call(arguments, **others):
    return (
        {'role': 'assistant', 'content': ''}
        | others
        | {'tool_calls': [{'function': {'name': 'add', 'arguments': arguments}}]}
    )


@pytest.fixture(scope='module')
def styles(tmp_path_factory):
    folders = {
        name: tmp_path_factory.mktemp(name)
        for name in (*template_styles.STYLES, *template_styles.ODD_STYLES)
    }
    return {
        name: huggingface(None, None, path=template_styles.write_style(folder, name))
        for name, folder in folders.items()
    }


def learnt(tokenizer, messages, **columns):
    return [
        tokenizer.tokenizer.decode(document.tokens[document.weights > 0])
        for document in render.demonstration({'messages': messages, **columns}, tokenizer)
    ]


# Thoughts.

NAMES = ('reasoning_content', 'thinking', 'reasoning')


@pytest.mark.parametrize('read', NAMES)
@pytest.mark.parametrize('given', NAMES)
def test_thoughts_reach_a_template_that_knows_them_by_another_name(of, read, given):
    tokenizer = of(
        f"{{% if m.{read} %}}{{{{ '<think>' + m.{read} + '</think>' }}}}{{% endif %}}{{{{ "
        f'm.content }}}}'
    )
    assert learnt(tokenizer, [ASK, SAY | {given: 'Half.'}]) == [
        '<think>Half.</think>So 2 more.<|im_end|>'
    ]
    # In front of a call, and where a table fills in the other names.
    for other in (None, '', 'Half.'):
        filled = dict.fromkeys(NAMES, other) | {given: 'Half.'}
        assert learnt(tokenizer, [ASK, SAY | filled]) == [
            '<think>Half.</think>So 2 more.<|im_end|>'
        ]


@pytest.mark.parametrize(
    'style', ['llama3', 'qwen25', 'gemma3', 'mistral', 'phi', 'words', 'parts']
)
@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('thought', ['Half of it, I think.', '12', 'assistant', 'So 2', '.'])
def test_thoughts_that_a_template_does_not_read(styles, style, name, thought):
    message = r'message 2 \(assistant\): the chat template leaves out its thoughts, so .*fold_thoughts .*drop_thoughts '
    with pytest.raises(UserError, match=message):
        render.demonstration({'messages': [ASK, SAY | {name: thought}]}, styles[style])
    before = [ASK, SAY | {name: thought}, MORE]
    for row in ({'prompt': before, 'completion': [LAST]}, {'messages': [*before, LAST]}):
        with pytest.raises(
            UserError, match=r'message 2 \(assistant\): the chat template leaves out its thoughts'
        ):
            render.demonstration(row, styles[style])
    with pytest.raises(
        UserError, match=r'message 2 \(assistant\): the chat template leaves out its thoughts'
    ):
        render.prompt({'prompt': before}, styles[style])


def test_content_is_not_cut(styles, of):
    """Templates that take the thoughts of earlier turns out of the content, and those of the last
    one with them."""
    tokenizer = of("{{ m.content.split('</think>')[-1] }}")
    with pytest.raises(
        UserError,
        match=r'message 2 \(assistant\): the chat template leaves out part of its content',
    ):
        render.demonstration(
            {'messages': [ASK, dict(SAY, content='<think>Half.</think>So 2 more.')]}, tokenizer
        )
    assert learnt(tokenizer, [ASK, SAY]) == ['So 2 more.<|im_end|>']
    assert learnt(tokenizer, [ASK, dict(SAY, content='<think></think>So <b>2</b> [more].')]) == [
        'So <b>2</b> [more].<|im_end|>'
    ]
    # Before the answer, thoughts have had their time.
    inline, apart = (
        dict(SAY, content='<think>Half of it.</think>So 2 more.'),
        SAY | {'thinking': 'Half of it.'},
    )
    known = [(styles[style], apart) for style in ('qwen3', 'glm', 'harmony')]
    for reader, said in [*known, (styles['qwen3'], inline), (tokenizer, inline)]:
        prompt = reader.tokenizer.decode(render.prompt({'prompt': [ASK, said, MORE]}, reader))
        assert 'So 2 more.' in prompt and 'Half' not in prompt


def test_a_thought_does_not_close_itself(styles):
    with pytest.raises(UserError, match=r'message 2 \(assistant\): its thoughts spell </think>'):
        render.demonstration(
            {'messages': [ASK, SAY | {'thinking': 'First </think> then.'}]}, styles['qwen3']
        )
    assert (
        len(
            render.demonstration(
                {'messages': [ASK, SAY | {'thinking': 'First </think> then.'}]}, styles['harmony']
            )
        )
        == 1
    )


# Calls.


@pytest.mark.parametrize('style', ['gemma3', 'mistral', 'phi', 'words', 'parts'])
@pytest.mark.parametrize('content', ['', None, 'So 2'])
def test_calls_that_a_template_does_not_read(styles, style, content):
    """They would teach an empty answer."""
    with pytest.raises(
        UserError,
        match=r'message 2 \(assistant\): the chat template leaves out call 1 \("add"\), so it would not be',
    ):
        render.demonstration({'messages': [ASK, call({'a': 1}, content=content)]}, styles[style])
    with pytest.raises(
        UserError, match=r'message 2 \(assistant\): the chat template leaves out call 1 \("add"\)'
    ):
        render.prompt({'prompt': [ASK, call({'a': 1}, content=content), ASK]}, styles[style])


def test_a_second_call_words_beside_a_call_and_arguments(styles, of):
    twice = call({'a': 1}) | {'tool_calls': call({'a': 1})['tool_calls'] * 2}
    for style in ('llama3', 'harmony'):
        with pytest.raises(UserError, match=r'leaves out call 2 \("add"\)'):
            render.demonstration({'messages': [ASK, twice]}, styles[style])
        with pytest.raises(UserError, match=r'message 2 \(assistant\).* content'):
            render.demonstration(
                {'messages': [ASK, call({'a': 1}, content='I add.')]}, styles[style]
            )
    names = of('{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}')
    with pytest.raises(UserError, match=r'leaves out the arguments of call 1 \("add"\)'):
        render.demonstration({'messages': [ASK, call({'a': 1})]}, names)
    assert learnt(styles['qwen25'], [ASK, twice])[0].count('"add"') == 2
    # An answer behind it, with no result between.
    assert learnt(styles['qwen25'], [ASK, twice, SAY])[0].endswith(
        '</tool_call><|im_end|>So 2 more.<|im_end|>'
    )


@pytest.mark.parametrize('style', ['llama3', 'qwen25', 'qwen3', 'glm', 'harmony'])
@pytest.mark.parametrize('arguments', [{'a': 1}, {}, ARGUMENTS])
def test_arguments_as_json_text_are_the_object(styles, style, arguments):
    """Also where the template goes through them, and where it wants the text itself (harmony)."""
    expected = learnt(styles[style], [ASK, call(arguments), RESULT, SAY])
    assert (
        learnt(styles[style], [ASK, call(json.dumps(arguments, ensure_ascii=False)), RESULT, SAY])
        == expected
    )
    assert '\\"a' not in expected[0] and "{'" not in expected[0]
    if not arguments:
        for nothing in (None, {}, '{}'):
            assert learnt(styles[style], [ASK, call(nothing), RESULT, SAY]) == expected


def test_a_text_that_the_template_writes_as_it_is_stays_so(styles):
    given = '{"a":1,\n "b": 1.50}'
    assert f'<|message|>{given}<|call|>' in learnt(styles['harmony'], [ASK, call(given)])[0]
    assert '"arguments": {"a": 1, "b": 1.5}}' in learnt(styles['qwen25'], [ASK, call(given)])[0]


def test_calls_without_function_around_them(styles):
    bare = {'role': 'assistant', 'tool_calls': [{'id': 'x', 'name': 'add', 'arguments': {'a': 1}}]}
    for style in ('llama3', 'qwen25', 'glm', 'harmony'):
        assert learnt(styles[style], [ASK, bare]) == learnt(styles[style], [ASK, call({'a': 1})])


@pytest.mark.parametrize('absent', [{}, {'content': None}, {'content': ''}])
def test_answers_without_words(styles, of, absent):
    wordless = {'role': 'assistant', 'tool_calls': call({'a': 1})['tool_calls']} | absent
    arguments = "{% for c in m.tool_calls %}{{ 'CALL ' + c.function.name + (c.function.arguments | tojson) }}{% endfor %}"
    for body in (
        "{{ '' + m.content }}" + arguments,  # refuses what is not text
        '{% if m.content is defined and m.content is not none %}{{ m.content }}{% else %}'
        + arguments
        + '{% endif %}',
        "{{ m.content if 'content' in m else '' }}" + arguments,
        "{% if m['content'] == '' %}" + arguments + "{% else %}{{ m['content'] }}{% endif %}",
    ):
        assert learnt(of(body), [ASK, wordless]) == ['CALL add{"a": 1}<|im_end|>']
    expected = learnt(styles['qwen3'], [ASK, SAY | {'thinking': 'Half.', 'content': ''}])
    assert (
        learnt(styles['qwen3'], [ASK, {'role': 'assistant', 'thinking': 'Half.'} | absent])
        == expected
    )


@pytest.mark.parametrize(
    'empty',
    [
        {'tool_calls': None},
        {'tool_calls': []},
        dict.fromkeys(('tool_calls', 'thinking', 'name', 'id')),
    ],
)
def test_what_a_table_fills_in_is_not_there(of, empty):
    """Some templates ask whether a key is there, not what it holds."""
    body = (
        "{{ 'CALL' if 'tool_calls' in m else m.content }}{{ 'THOUGHT' if 'thinking' in m else '' }}"
    )
    tokenizer = of(body, '{{ m.content }}{{ m.name }}')
    assert learnt(tokenizer, [ASK | empty, SAY | empty]) == ['So 2 more.<|im_end|>']
    assert 'None' not in tokenizer.tokenizer.decode(
        render.prompt({'prompt': [ASK | {'name': None}]}, tokenizer)
    )


# Results, parts and tools.


@pytest.mark.parametrize(
    ('content', 'text'),
    [
        ({'sum': 357, 'é': None}, '{"sum": 357, "é": null}'),
        ([1, 2], '[1, 2]'),
        (357, '357'),
        (True, 'true'),
        (1.5, '1.5'),
        ([], '[]'),
    ],
)
def test_results_that_are_no_text(styles, content, text):
    for style in (
        'qwen25',
        'qwen3',
        'glm',
        *(() if isinstance(content, dict) else ('harmony', 'llama3')),
    ):
        rows = [
            {'messages': [ASK, call({'a': 1}), dict(RESULT, content=value), SAY]}
            for value in (content, text)
        ]
        made = [
            [document.tokens.tolist() for document in render.demonstration(row, styles[style])]
            for row in rows
        ]
        assert made[0] == made[1]
    # Where the template writes objects as JSON, it is given the object: as text they would be
    # escaped.
    for style in ('llama3', 'harmony') if isinstance(content, dict) else ():
        row = {'messages': [ASK, call({'a': 1}), dict(RESULT, content=content), SAY]}
        assert text in styles[style].tokenizer.decode(
            render.demonstration(row, styles[style])[0].tokens
        )


def test_content_that_has_to_be_parts_or_text(styles, of):
    parts = [{'type': 'text', 'text': 'Tom '}, {'type': 'text', 'text': 'has 12?'}]
    expected = learnt(styles['qwen25'], [ASK, SAY])
    assert (
        learnt(styles['parts'], [ASK, SAY])
        == expected
        == learnt(styles['parts'], [dict(ASK, content=parts), SAY])
    )
    assert 'Tom has 12?' in styles['parts'].tokenizer.decode(
        render.prompt({'prompt': [ASK]}, styles['parts'])
    )
    # Reads the first part only.
    first = of('{{ m.content }}', '{{ m.content if m.content is string else m.content[0].text }}')
    prompts = [
        render.prompt({'prompt': [dict(ASK, content=content)]}, first).tolist()
        for content in (parts, 'Tom has 12?')
    ]
    assert prompts[0] == prompts[1]


def test_nulls_of_a_table_do_not_reach_tools(styles):
    parameters = {'properties': {'a': {'type': 'string', 'enum': [None, 'x']}}}
    clean = [{'type': 'function', 'function': {'name': 'add', 'parameters': parameters}}]
    filled = [
        {
            'type': 'function',
            'function': {
                'name': 'add',
                'description': None,
                'parameters': {
                    'properties': {
                        'a': {'type': 'string', 'enum': [None, 'x'], 'items': None},
                        'b': None,
                    },
                    'required': None,
                },
            },
        }
    ]
    for value in (filled, json.dumps(filled), tuple(filled)):
        prompts = [
            render.prompt({'prompt': [ASK], 'tools': tools}, styles['qwen25']).tolist()
            for tools in (value, clean)
        ]
        assert prompts[0] == prompts[1]
    row = {'prompt': [ASK], 'chat_template_kwargs': {'enable_thinking': None}}
    assert (
        render.prompt(row, styles['qwen3']).tolist()
        == render.prompt({'prompt': [ASK]}, styles['qwen3']).tolist()
    )


def test_nulls_of_a_table_do_not_reach_arguments(styles):
    """As JSON lines of a table have them: every call has the arguments of all."""
    tools = [
        {
            'type': 'function',
            'function': {
                'name': 'add',
                'parameters': {'properties': {'a': {}, 'b': {}, 'c': None}},
            },
        }
    ]
    filled = {'a': 1, 'b': None, 'c': None, 'city': None}
    assert (
        '"arguments": {"a": 1, "b": null}}'
        in learnt(styles['qwen25'], [ASK, call(filled)], tools=tools)[0]
    )
    # What is not known to be filled in, or is text of the row's own, stays.
    for columns in (
        {},
        {'tools': [{'name': 'sub', 'parameters': {'properties': {}}}]},
        {'tools': [{'name': 'add'}]},
    ):
        assert '"city": null' in learnt(styles['qwen25'], [ASK, call(filled)], **columns)[0]
    assert (
        '"city": null' in learnt(styles['qwen25'], [ASK, call(json.dumps(filled))], tools=tools)[0]
    )


def test_tools_that_a_template_reads_and_does_not_write(of):
    tokenizer = of(
        '{{ m.content }}',
        '{{ m.content }}{% for t in tools or [] if t.function %}{{ t.function.name }}{% endfor %}',
    )
    tools = [{'name': 'add', 'description': 'Adds.', 'parameters': {}}]
    with pytest.raises(
        UserError,
        match='column "tools": the chat template leaves out the tool "add"; it may expect {"type": '
        '"function"',
    ):
        render.prompt({'prompt': [ASK], 'tools': tools}, tokenizer)
    assert len(
        render.prompt(
            {'prompt': [ASK], 'tools': [{'type': 'function', 'function': tools[0]}]}, tokenizer
        )
    )


# Weights of messages, and keys that nothing reads.


@pytest.mark.parametrize('zero', [0, 0.0, False])
def test_an_answer_of_weight_zero_is_not_learnt(styles, zero):
    messages = [ASK, SAY | {'weight': zero}, MORE, LAST | {'weight': 1}]
    assert learnt(styles['qwen25'], messages) == ['The answer is 4.<|im_end|>']
    (weighted,) = render.demonstration({'messages': messages}, styles['qwen25'])
    (same,) = render.demonstration(
        {'prompt': [ASK, SAY, MORE], 'completion': [LAST]}, styles['qwen25']
    )
    assert (
        weighted.tokens.tolist() == same.tokens.tolist()
        and weighted.weights.tolist() == same.weights.tolist()
    )
    with pytest.raises(UserError, match='roles seen: '):
        learnt(styles['qwen25'], messages[:2])


def test_keys_that_no_template_reads_are_counted(styles):
    rows = [
        {
            'messages': [
                ASK | {'name': 'Tom', 'date': '2026'},
                SAY | {'annotations': ['x'], 'score': None, 'empty': ''},
            ],
            'id': 1,
        }
    ]
    rows.append(
        {'messages': [ASK, call({}, id=7), RESULT | {'tool_call_id': 'x', 'name': 'add'}, SAY]}
    )
    iterator = pipeline.supervised(
        sources.memory(rows=rows),
        [],
        styles['qwen25'],
        max_length=256,
        batch_size=1,
        seed=0,
        shuffle=False,
    )
    counts = []
    for _ in range(3):
        next(iterator)
        counts.append(iterator.counters['dropped_keys'])
    assert counts == [3, 4, 7]
    prompts = pipeline.prompts(
        sources.memory(rows=[{'prompt': [ASK | {'name': 'Tom'}], 'messages': rows[0]['messages']}]),
        [],
        styles['qwen25'],
        max_prompt_length=256,
        num_prompts=1,
        seed=0,
    )
    next(prompts)
    assert prompts.counters['dropped_keys'] == 1
    with_names = pipeline.evaluation(
        sources.memory(rows=[{'prompt': [ASK | {'name': 'Tom'}]}]),
        [],
        styles['qwen25'],
        max_prompt_length=256,
        batch_size=1,
    )
    assert with_names.counters['dropped_keys'] == 1


def test_a_key_that_the_template_reads_is_not_counted(of):
    tokenizer = of(
        '{{ m.content }}{{ m.plan }}', "{{ m.name + ': ' if m.name else '' }}{{ m.content }}"
    )
    rows = [{'messages': [ASK | {'name': 'Tom'}, SAY | {'plan': 'none'}]}]
    iterator = pipeline.supervised(
        sources.memory(rows=rows), [], tokenizer, max_length=256, batch_size=1, seed=0
    )
    batch = next(iterator)
    assert iterator.counters['dropped_keys'] == 0 and 'Tom: Tom has' in tokenizer.tokenizer.decode(
        batch['tokens'][0]
    )


# What is refused.


@pytest.mark.parametrize(
    ('message', 'said'),
    [
        (call('{"a": 1'), r'message 2 \(assistant\): call 1 \("add"\), arguments: not valid JSON'),
        (call('add'), r'message 2 \(assistant\): call 1 \("add"\), arguments: not valid JSON'),
        (call(''), r'arguments: not valid JSON'),
        (
            call('[1]'),
            r'message 2 \(assistant\): call 1 \("add"\): arguments must be a JSON object, found str',
        ),
        (call([1]), 'arguments must be a JSON object, found list'),
        (
            call({}) | {'tool_calls': [{'function': {'arguments': {}}}]},
            'call 1 has no name; keys found: arguments',
        ),
        (call({}) | {'tool_calls': [{'type': 'function'}]}, 'call 1 has no name; keys found: type'),
        (
            call({}) | {'tool_calls': {'name': 'add'}},
            '"tool_calls" must be a list of .* found dict',
        ),
        (call({}) | {'tool_calls': ['add']}, '"tool_calls" must be a list'),
        (
            {'role': 'assistant', 'content': '', 'function_call': {'name': 'add'}},
            'has "function_call", which .* give "tool_calls"',
        ),
        (
            SAY | {'refusal': 'No.'},
            r'message 2 \(assistant\) has "refusal", which chat templates do not read; put it into "content"',
        ),
        (SAY | {'audio': {'id': 'x'}}, 'has "audio", which .*; only text can be read'),
        (SAY | {'images': ['x']}, 'has "images", which .*; only text can be read'),
        (
            dict(SAY, content=[{'type': 'thinking', 'thinking': 'x'}]),
            r'\(assistant\): "content" holds a part that .* \(thinking\)',
        ),
        (dict(SAY, content=['So 2 more.']), r'"content" holds a part that is not text \(str\)'),
        (dict(SAY, content=4), '"content" must be text or a list of parts, found int'),
        (dict(SAY, content={'text': 'x'}), '"content" must be text or a list of parts, found dict'),
        (
            SAY | {'thinking': ['x']},
            r'message 2 \(assistant\): "thinking" must be text, found list',
        ),
        (
            SAY | {'thinking': 'x', 'reasoning': 'y'},
            'has different thoughts under thinking and reasoning',
        ),
        (
            SAY | {'weight': 0.5},
            r'message 2 \(assistant\): "weight" must be 0 \(not to be learnt\) or 1, found 0.5',
        ),
        (
            {'role': 'user', 'content': 'x', 'tool_calls': call({})['tool_calls']},
            r'message 2 \(user\) has "tool_calls", which only',
        ),
        ({'role': 'user', 'thinking': 'x'}, r'message 2 \(user\) has no "content"'),
        (
            {'role': 'tool', 'content': None},
            r'message 2 \(tool\) has the "content" null, which only an answer with calls',
        ),
        (dict(SAY, content=None), r'message 2 \(assistant\) has the "content" null'),
        (
            dict(SAY, role='Assistant'),
            r'message 2: the role \'Assistant\' must be spelt "assistant"',
        ),
        (dict(ASK, role='USER'), r'message 2: the role \'USER\' must be spelt "user"'),
        (dict(ASK, role=' system'), r'message 2: the role \' system\' must be spelt "system"'),
        (
            dict(SAY, role='gpt'),
            'no assistant message .*roles seen: user, gpt; the transform "messages" calls human a '
            'user, and gpt',
        ),
        (
            dict(SAY, role='model'),
            'no assistant message .*roles seen: user, model; the transform "messages"',
        ),
        (
            SAY | {'reasoning_details': [{'text': 'x'}]},
            r'message 2 \(assistant\) has thoughts under "reasoning_details", which',
        ),
        (SAY | {'thoughts': 'x'}, 'has thoughts under "thoughts"'),
        (SAY | {'thought': 'x', 'thinking': ''}, 'has thoughts under "thought"'),
    ],
)
def test_messages_that_are_refused(styles, message, said):
    with pytest.raises(UserError, match=said):
        render.demonstration({'messages': [ASK, message]}, styles['qwen25'])


@pytest.mark.parametrize(
    'last',
    [
        dict(SAY, content=''),
        dict(SAY, content=' \n'),
        {'role': 'assistant', 'thinking': 'x'},
        call({'a': 1}),
        call({}, content='x'),
    ],
)
def test_an_answer_that_cannot_be_left_open(styles, last):
    """It was followed by the end of its turn, and the model asked to go on behind that."""
    for row in ({'prompt': [ASK, last]}, {'prompt': [ASK, last], 'completion': [SAY]}):
        function = render.demonstration if 'completion' in row else render.prompt
        with pytest.raises(
            UserError,
            match=r'message 2 \(assistant\) is the last before the answer, which would continue it, but it has',
        ):
            function(row, styles['qwen3'])


def test_results_in_another_order_than_the_calls(styles, of):
    calls = [
        {'id': name, 'type': 'function', 'function': {'name': name, 'arguments': {}}}
        for name in ('one', 'two')
    ]
    results = [
        {'role': 'tool', 'content': f'{name}.', 'tool_call_id': name} for name in ('one', 'two')
    ]
    before = [ASK, {'role': 'assistant', 'content': '', 'tool_calls': calls}]
    assert len(render.demonstration({'messages': [*before, *results, SAY]}, styles['qwen25'])) == 1
    for wrong, number in ((results[::-1], 3), (results[1:], 3)):
        with pytest.raises(
            UserError,
            match=rf'message {number} \(tool\) is not the result of the call whose turn it is',
        ):
            render.demonstration({'messages': [*before, *wrong, SAY]}, styles['qwen25'])
    body = '{{ m.content }}{% for c in m.tool_calls %}{{ c.id + c.function.name + (c.function.arguments | tojson) }}{% endfor %}'
    by_id, by_name = (
        of(body, '{{ m.tool_call_id }}{{ m.content }}'),
        of(body, '{{ m.name }}{{ m.content }}'),
    )
    named = [result | {'name': result['tool_call_id']} for result in results]
    for tokenizer, linked in ((by_id, results), (by_name, named)):
        assert (
            len(render.demonstration({'messages': [*before, *linked[::-1], SAY]}, tokenizer)) == 1
        )
    same = [{**call, 'function': {'name': 'add', 'arguments': {}}} for call in calls]
    for linked, made in ((results, calls), (named, same)):
        with pytest.raises(UserError, match=r'message 3 \(tool\)'):
            render.demonstration(
                {'messages': [ASK, {'role': 'assistant', 'tool_calls': made}, *linked[::-1], SAY]},
                by_name,
            )


@pytest.mark.parametrize(
    'step',
    [
        [SAY | {'thinking': 'Half.'}],
        [call({'a': 1}, content='x')],
        [MORE],
        [dict(SAY, content=['x'])],
    ],
)
def test_steps_hold_words_only(styles, step):
    row = {'prompt': [ASK], 'completions': [[SAY], step], 'labels': [True, False]}
    with pytest.raises(
        UserError,
        match='column "completions": (step 2 must hold the words of assistant messages '
        'only|message 1)',
    ):
        forms.renderer('stepwise', styles['qwen3'])(row)


def test_weights_are_on_the_answers_alone(styles):
    """Marks that messages were tried out with are nowhere."""
    for style in styles:
        for document in render.demonstration({'messages': [ASK, SAY, MORE, LAST]}, styles[style]):
            text = styles[style].tokenizer.decode(document.tokens)
            assert 'reasonjax' not in text and not np.any(
                document.weights[: len(styles[style].encode(ASK['content']))]
            )
