"""Conversations against transformers' own rendering and tokenising, in the manner of six model
families.

The weights are held against what the assistant says, spelt out by hand and found in the text by the
tokenizer's offsets.
"""

import functools
import json

import numpy as np
import pytest
import template_styles

from reasonjax.data import render
from reasonjax.errors import UserError
from reasonjax.interop.huggingface.tokenizers import huggingface

SYSTEM = {'role': 'system', 'content': 'Be brief.'}
ASK, SAY = (
    {'role': 'user', 'content': 'Tom has 12?'},
    {'role': 'assistant', 'content': 'So 2 more.'},
)
MORE, LAST = (
    {'role': 'user', 'content': 'and  3'},
    {'role': 'assistant', 'content': 'The answer is 4.\n'},
)

# What follows an answer, per style, and what stands between the generation prompt and the words.
ENDS = {'llama3': '<|eot_id|>', 'gemma3': '<end_of_turn>', 'mistral': '</s>', 'phi': '<|end|>'}
ENDS |= {'qwen25': '<|im_end|>', 'qwen3': '<|im_end|>'}
STARTS = {'mistral': ' ', 'qwen3': '<think>\n\n</think>\n\n'}
TRIMS = ('llama3', 'gemma3')

TOOLS = [
    {
        'type': 'function',
        'function': {
            'name': 'add',
            'description': 'Adds.',
            'parameters': {'type': 'object', 'properties': {}},
        },
    }
]
CALL = {
    'role': 'assistant',
    'content': '',
    'tool_calls': [{'type': 'function', 'function': {'name': 'add', 'arguments': {'a': 1}}}],
}
RESULT = {'role': 'tool', 'name': 'add', 'content': '{"sum": 357}'}


@pytest.fixture(scope='module')
def styles(tmp_path_factory):
    return {
        style: opened(tmp_path_factory.mktemp(style), style) for style in template_styles.STYLES
    }


def opened(folder, style, **config):
    return huggingface(None, None, path=template_styles.write_style(folder, style, **config))


def reference(tokenizer, messages, **options):
    """Ids as transformers makes them."""
    return tokenizer.tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, **options
    )['input_ids']


def said(style, message, content=None):
    text = message['content'] if content is None else content
    return STARTS.get(style, '') + (text.strip() if style in TRIMS else text) + ENDS[style]


def mask(tokenizer, text, answers):
    """1 on the tokens that lie in one of the answers, which stand in the text in this order."""
    found, cursor = [], 0
    for answer in answers:
        start = text.index(answer, cursor)
        cursor = start + len(answer)
        found.append((start, cursor))
    offsets = tokenizer.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).offsets
    return [float(any(start <= begin < end for start, end in found)) for begin, _ in offsets]


def check(tokenizer, document, messages, answers, **options):
    """The document is the template's text, token for token, and the answers are what counts in
    it."""
    tools, variables = options.pop('tools', None), options.pop('template_kwargs', {})
    assert document.tokens.tolist() == reference(tokenizer, messages, tools=tools, **variables)
    text = tokenizer.chat_text(messages, False, tools=tools, template_kwargs=variables)
    assert document.weights.tolist() == mask(tokenizer, text, answers)
    assert tokenizer.tokenizer.bos_token_id not in document.tokens[1:].tolist()


def learnt(tokenizer, document):
    return tokenizer.tokenizer.decode(document.tokens[document.weights > 0])


# Every family.


# Mistral's forgets the system prompt once the question is answered: see below.
ONE_ANSWER = [(style, [ASK, SAY]) for style in template_styles.STYLES]
ONE_ANSWER += [
    (style, [SYSTEM, ASK, SAY]) for style in template_styles.STYLES if style != 'mistral'
]


@pytest.mark.parametrize(
    ('style', 'messages'),
    ONE_ANSWER,
    ids=[f'{style}-{len(messages)}' for style, messages in ONE_ANSWER],
)
def test_one_answer(styles, style, messages):
    (document,) = render.demonstration({'messages': messages}, styles[style])
    check(styles[style], document, messages, [said(style, SAY)])
    (again,) = render.demonstration(
        {'prompt': messages[:-1], 'completion': messages[-1:]}, styles[style]
    )
    assert (
        again.tokens.tolist() == document.tokens.tolist()
        and again.weights.tolist() == document.weights.tolist()
    )


@pytest.mark.parametrize('style', [style for style in template_styles.STYLES if style != 'qwen3'])
def test_several_answers_are_one_document(styles, style):
    messages = [ASK, SAY, MORE, LAST]
    (document,) = render.demonstration({'messages': messages}, styles[style])
    check(styles[style], document, messages, [said(style, SAY), said(style, LAST)])
    (last,) = render.demonstration(
        {'prompt': messages[:3], 'completion': messages[3:]}, styles[style]
    )
    check(styles[style], last, messages, [said(style, LAST)])


@pytest.mark.parametrize('style', template_styles.STYLES)
@pytest.mark.parametrize(
    'messages',
    [[ASK], [SYSTEM, ASK], [SYSTEM, ASK, SAY, MORE]],
    ids=['single', 'system', 'several'],
)
def test_prompts_are_the_template_with_its_generation_prompt(styles, style, messages):
    ids = render.prompt({'prompt': messages}, styles[style]).tolist()
    assert ids == reference(styles[style], messages, add_generation_prompt=True)
    assert styles[style].chat(messages, True) == ids
    assert styles[style].tokenizer.bos_token_id not in ids[1:]
    made = render.demonstration({'prompt': messages, 'completion': [LAST]}, styles[style])[0]
    assert (
        made.tokens[: len(ids)].tolist() == ids
        and not made.weights[: len(ids)].any()
        and made.weights[len(ids)] == 1
    )


def test_eos_sets_hold_what_ends_a_turn(styles):
    ends = {
        style: [tokenizer.token(i) for i in tokenizer.eos_ids]
        for style, tokenizer in styles.items()
    }
    assert ends == {
        'llama3': ['<|end_of_text|>', '<|eot_id|>'],
        'qwen25': ['<|im_end|>'],
        'qwen3': ['<|im_end|>'],
        'gemma3': ['<eos>', '<end_of_turn>'],
        'mistral': ['</s>'],
        'phi': ['<|endoftext|>', '<|end|>'],
    }


@pytest.mark.parametrize('style', template_styles.STYLES)
def test_what_follows_the_last_answer_is_left_out(styles, style):
    (document,) = render.demonstration({'messages': [ASK, SAY, MORE]}, styles[style])
    (without,) = render.demonstration({'messages': [ASK, SAY]}, styles[style])
    assert document.tokens.tolist() == without.tokens.tolist()


# Tools.


@pytest.mark.parametrize(
    ('style', 'called'),
    [
        ('llama3', '{"name": "add", "parameters": {"a": 1}}<|eot_id|>'),
        ('qwen25', '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'),
        (
            'qwen3',
            '<think>\nAdd them.\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": '
            '1}}\n</tool_call><|im_end|>',
        ),
    ],
)
def test_tool_calls_are_learnt_and_results_are_not(styles, style, called):
    call, last = CALL, dict(LAST, content='357.')
    if style == 'qwen3':
        # All after one question, so the thoughts of earlier turns stay.
        call, last = (
            CALL | {'reasoning_content': 'Add them.'},
            last | {'reasoning_content': 'Done.'},
        )
    answer = said(style, last).replace('<think>\n\n', '<think>\nDone.\n')
    messages = [SYSTEM, ASK, call, RESULT, last]
    (document,) = render.demonstration({'messages': messages, 'tools': TOOLS}, styles[style])
    check(styles[style], document, messages, [called, answer], tools=TOOLS)
    assert 'sum' not in learnt(styles[style], document)
    # No words beside the call, as messages of some programs have it.
    silent = [
        SYSTEM,
        ASK,
        {key: value for key, value in call.items() if key != 'content'},
        RESULT,
        last,
    ]
    (same,) = render.demonstration({'messages': silent, 'tools': TOOLS}, styles[style])
    assert same.tokens.tolist() == document.tokens.tolist()


def test_two_results_and_a_call_beside_words(styles):
    messages = [ASK, dict(CALL, content='I add.'), RESULT, RESULT, SAY]
    (document,) = render.demonstration({'messages': messages}, styles['qwen25'])
    called = 'I add.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'
    check(styles['qwen25'], document, messages, [called, said('qwen25', SAY)])


def test_tools_reach_prompts_and_may_be_json(styles):
    with_tools = render.prompt({'prompt': [ASK], 'tools': TOOLS}, styles['qwen25']).tolist()
    assert with_tools == reference(styles['qwen25'], [ASK], tools=TOOLS, add_generation_prompt=True)
    assert with_tools != render.prompt({'prompt': [ASK]}, styles['qwen25']).tolist()
    assert (
        render.prompt({'prompt': [ASK], 'tools': json.dumps(TOOLS)}, styles['qwen25']).tolist()
        == with_tools
    )
    for nothing in (None, [], '[]'):
        row = {'prompt': [ASK], 'tools': nothing}
        assert (
            render.prompt(row, styles['qwen25']).tolist()
            == render.prompt({'prompt': [ASK]}, styles['qwen25']).tolist()
        )


# Thoughts, and templates that render earlier turns differently.


def thinking(message, thought, key='reasoning_content'):
    return message | {key: thought}


@pytest.mark.parametrize('key', ['reasoning_content', 'thinking', 'reasoning'])
def test_thoughts_are_learnt(styles, key):
    messages = [ASK, thinking(SAY, 'Half.', key)]
    (document,) = render.demonstration({'messages': messages}, styles['qwen3'])
    check(styles['qwen3'], document, messages, ['<think>\nHalf.\n</think>\n\nSo 2 more.<|im_end|>'])


def test_a_conversation_with_dropped_thoughts_is_one_document_per_answer(styles):
    tokenizer = styles['qwen3']
    messages = [
        ASK,
        thinking(SAY, 'Half.'),
        MORE,
        thinking(dict(LAST, content='4.'), 'Two and two.'),
    ]
    first, second = render.demonstration({'messages': messages}, tokenizer)
    check(tokenizer, first, messages[:2], ['<think>\nHalf.\n</think>\n\nSo 2 more.<|im_end|>'])
    check(tokenizer, second, messages, ['<think>\nTwo and two.\n</think>\n\n4.<|im_end|>'])
    assert 'Half' not in tokenizer.tokenizer.decode(second.tokens)
    # Each answer stands behind just what the model is given when it is asked.
    for made, before in ((first, messages[:1]), (second, messages[:3])):
        asked = reference(tokenizer, before, add_generation_prompt=True)
        assert made.tokens[: len(asked)].tolist() == asked and not made.weights[: len(asked)].any()


def test_runs_are_as_long_as_they_can_be(styles):
    calling, done = thinking(CALL, 'Add.'), thinking(SAY, 'Done.')
    messages = [ASK, calling, RESULT, done, MORE, thinking(dict(LAST, content='4.'), 'Easy.')]
    first, second = render.demonstration({'messages': messages, 'tools': TOOLS}, styles['qwen3'])
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'
    answers = [
        '<think>\nAdd.\n</think>\n\n' + call,
        '<think>\nDone.\n</think>\n\nSo 2 more.<|im_end|>',
    ]
    check(styles['qwen3'], first, messages[:4], answers, tools=TOOLS)
    check(
        styles['qwen3'], second, messages, ['<think>\nEasy.\n</think>\n\n4.<|im_end|>'], tools=TOOLS
    )


def test_variables_of_the_template(styles):
    row = {'messages': [ASK, SAY], 'chat_template_kwargs': {'enable_thinking': False}}
    (document,) = render.demonstration(row, styles['qwen3'])
    check(
        styles['qwen3'],
        document,
        [ASK, SAY],
        ['So 2 more.<|im_end|>'],
        template_kwargs={'enable_thinking': False},
    )
    prompt = render.prompt(
        {'prompt': [ASK], 'chat_template_kwargs': '{"enable_thinking": false}'}, styles['qwen3']
    ).tolist()
    assert prompt == reference(
        styles['qwen3'], [ASK], add_generation_prompt=True, enable_thinking=False
    )
    assert document.tokens[: len(prompt)].tolist() == prompt


def test_an_answer_is_behind_the_system_prompt_even_if_the_template_forgets_it(styles):
    tokenizer, messages = styles['mistral'], [SYSTEM, ASK, SAY, MORE, LAST]
    assert SYSTEM['content'] not in tokenizer.chat_text(messages, False)
    documents = render.demonstration({'messages': messages}, tokenizer)
    assert [learnt(tokenizer, made) for made in documents] == [
        'So 2 more.</s>',
        'The answer is 4.\n</s>',
    ]
    for made, before in zip(documents, (messages[:2], messages[:4]), strict=True):
        asked = reference(tokenizer, before, add_generation_prompt=True)
        assert made.tokens[: len(asked)].tolist() == asked and made.weights[: len(asked)].sum() == 0
        assert made.weights[len(asked) :].all()


# What a template does not say.


def test_a_prompt_may_begin_the_answer(styles):
    tokenizer = styles['qwen25']
    begun = [ASK, {'role': 'assistant', 'content': 'Let me see.'}]
    ids = render.prompt({'prompt': begun}, tokenizer).tolist()
    assert ids == reference(tokenizer, begun, continue_final_message=True)
    (made,) = render.demonstration(
        {'prompt': begun, 'completion': [{'role': 'assistant', 'content': ' So 2.'}]}, tokenizer
    )
    assert made.tokens[: len(ids)].tolist() == ids and learnt(tokenizer, made) == ' So 2.<|im_end|>'
    assert tokenizer.tokenizer.decode(made.tokens).count('<|im_start|>assistant') == 1


def test_content_in_parts(styles):
    parts = [
        dict(ASK, content=[{'type': 'text', 'text': 'Tom '}, {'type': 'text', 'text': 'has 12?'}]),
        SAY,
    ]
    assert styles['gemma3'].takes_parts and not styles['llama3'].takes_parts
    (gemma,) = render.demonstration({'messages': parts}, styles['gemma3'])
    assert gemma.tokens.tolist() == reference(styles['gemma3'], parts)
    for style in ('llama3', 'qwen25', 'mistral', 'phi'):
        (made,) = render.demonstration({'messages': parts}, styles[style])
        assert made.tokens.tolist() == reference(styles[style], [ASK, SAY])
    picture = [dict(ASK, content=[{'type': 'image', 'url': 'x'}]), SAY]
    with pytest.raises(
        UserError, match=r'message 1 \(user\): "content" holds a part that is not text \(image\)'
    ):
        render.demonstration({'messages': picture}, styles['gemma3'])


def test_the_end_of_the_answer_is_learnt_where_pad_is_eos(tmp_path):
    tokenizer = opened(tmp_path, 'qwen25', pad_token='<|im_end|>')
    assert tokenizer.pad_id not in tokenizer.eos_ids
    (made,) = render.demonstration({'messages': [ASK, SAY]}, tokenizer)
    assert learnt(tokenizer, made).endswith('<|im_end|>') and tokenizer.pad_id not in made.tokens


def test_ids_before_an_answer_are_the_prompt_even_if_whole_texts_merge_there(
    tmp_path, hugging_face_folder
):
    # " ha" and "s" make one token when tokenised together.
    template = "{% for m in messages %}{{ m.role + ' ha' + m.content + '<|im_end|>' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant ha' }}{% endif %}"
    tokenizer = huggingface(None, None, path=hugging_face_folder(tmp_path, template=template))
    messages = [ASK, dict(SAY, content='s 357')]
    (made,) = render.demonstration({'messages': messages}, tokenizer)
    asked = render.prompt({'prompt': [ASK]}, tokenizer)
    assert made.tokens.tolist() != reference(tokenizer, messages)
    assert made.tokens[: len(asked)].tolist() == asked.tolist() and made.weights[len(asked) :].all()


# What is refused.


def test_roles_a_template_refuses(styles):
    with pytest.raises(
        UserError,
        match=r'refuses message 2 \(role "user"\): Roles must alternate.*; roles seen: user$',
    ):
        render.demonstration({'messages': [ASK, ASK, SAY]}, styles['gemma3'])
    with pytest.raises(
        UserError,
        match=r'refuses message 2 \(role "tool"\): Only user and assistant.*roles seen: user, tool$',
    ):
        render.demonstration({'messages': [ASK, RESULT, SAY]}, styles['mistral'])
    with pytest.raises(UserError, match=r'refuses message 3 \(role "developer"\)'):
        render.prompt(
            {'prompt': [ASK, SAY, {'role': 'developer', 'content': 'x'}]}, styles['mistral']
        )


def test_the_message_a_template_refuses_is_named(tmp_path, hugging_face_folder):
    template = "{% if messages[-1].role == 'system' %}{{ raise_exception('no question') }}{% endif %}{% for m in messages %}"
    template += "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ m.content }}{% endfor %}"
    tokenizer = huggingface(None, None, path=hugging_face_folder(tmp_path, template=template))
    with pytest.raises(
        UserError,
        match=r'refuses message 3 \(role "tool"\): no tools; roles seen: system, user, tool$',
    ):
        render.prompt({'prompt': [SYSTEM, ASK, RESULT, MORE]}, tokenizer)
    with pytest.raises(UserError, match='at least one message'):
        tokenizer.chat_text([], True)


def test_roles_a_template_leaves_out_without_a_word(styles):
    unknown = {'role': 'developer', 'content': 'Be brief.'}
    for row in ({'prompt': [unknown, ASK]}, {'prompt': [{'role': 'human', 'content': 'Tom?'}]}):
        with pytest.raises(
            UserError,
            match=r'leaves out message 1: it has no role "(developer|human)"; roles seen: ',
        ):
            render.prompt(row, styles['qwen25'])
    with pytest.raises(UserError, match='leaves out message 1: it has no role "developer"'):
        render.demonstration({'messages': [unknown, ASK, SAY]}, styles['qwen25'])
    # Trimmed, escaped or empty is not left out.
    assert (
        len(
            render.demonstration(
                {'messages': [ASK, CALL, dict(RESULT, content='"a"\n'), SAY]}, styles['llama3']
            )
        )
        == 1
    )
    assert (
        len(
            render.demonstration(
                {'messages': [dict(SYSTEM, content=''), dict(ASK, content='  a '), SAY]},
                styles['gemma3'],
            )
        )
        == 1
    )


def test_what_a_template_drops_later_had_its_time(tmp_path, hugging_face_folder):
    template = "{% for m in messages %}{% if m.role != 'tool' or loop.last or loop.nextitem.role == 'assistant' and loop.index > "
    template += "messages | length - 2 %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    tokenizer = huggingface(None, None, path=hugging_face_folder(tmp_path, template=template))
    assert RESULT['content'] not in tokenizer.chat_text([ASK, RESULT, SAY, MORE], True)
    assert len(render.prompt({'prompt': [ASK, RESULT, SAY, MORE]}, tokenizer))
    first, second = render.demonstration({'messages': [ASK, RESULT, SAY, MORE, LAST]}, tokenizer)
    assert 'sum' in tokenizer.decode(first.tokens) and 'sum' not in tokenizer.decode(second.tokens)


@pytest.mark.parametrize(
    ('messages', 'message'),
    [
        ([SYSTEM, ASK], 'no assistant message to learn from.*; roles seen: system, user$'),
        ([ASK, dict(SAY, content='')], r'message 2 \(assistant\) is empty'),
        ([ASK, dict(SAY, content=' \n')], r'message 2 \(assistant\) is empty'),
        ([SAY, ASK, LAST], r'message 1 \(assistant\) comes before anything it could answer'),
        (
            [ASK, dict(SAY, content='a<|im_end|>b')],
            r'message 2 \(assistant\) spells the token "<\|im_end\|>"',
        ),
        (
            [ASK, thinking(SAY, 'a<|im_end|>')],
            r'message 2 \(assistant\) spells the token "<\|im_end\|>"',
        ),
        (
            [ASK, {'role': 'assistant', 'contnet': 'x'}],
            r'message 2 \(assistant\) has no "content"; .* Did you mean "contnet"',
        ),
        (
            [{'from': 'human', 'value': 'x'}, SAY],
            r'message 1 has no "role"; keys found: from, value.*transform "messages"',
        ),
        (
            [ASK, {'role': 'assistant', 'content': None}],
            r'message 2 \(assistant\) has the "content" null',
        ),
        ([ASK, {'role': 5, 'content': 'x'}], 'message 2: "role" must be text, found int$'),
        (
            [ASK, {'role': ['assistant'], 'content': 'x'}],
            'message 2: "role" must be text, found list$',
        ),
        (
            [ASK, {'role': None, 'content': 'x'}],
            r'message 2 has no "role"; keys found: content, role\. The transform',
        ),
    ],
)
def test_conversations_that_are_refused(styles, messages, message):
    with pytest.raises(UserError, match=message):
        render.demonstration({'messages': messages}, styles['qwen25'])


def test_a_user_may_spell_special_tokens(styles):
    messages = [dict(ASK, content='What is <|im_end|>?'), SAY]
    (made,) = render.demonstration({'messages': messages}, styles['qwen25'])
    check(styles['qwen25'], made, messages, [said('qwen25', SAY)])


@pytest.mark.parametrize(
    ('columns', 'message'),
    [
        ({'tools': 'add'}, 'column "tools", which is text: not valid JSON'),
        (
            {'tools': '[' * 100_000},
            'column "tools", which is text: not usable JSON .nested too deeply',
        ),
        (
            {'tools': '[{"name": ' + '9' * 5000 + '}]'},
            'column "tools", which is text: not usable JSON .Exceeds the limit',
        ),
        (
            {'tools': r'[{"name": "\ud800"}]'},
            'column "tools", which is text: holds half a character',
        ),
        (
            {'tools': functools.reduce(lambda inner, _: [{'items': inner}], range(5000), None)},
            'column "tools" is nested too deeply',
        ),
        (
            {'chat_template_kwargs': '[' * 100_000},
            'column "chat_template_kwargs", which is text: not usable JSON',
        ),
        (
            {'chat_template_kwargs': '{"a": ' + '9' * 5000 + '}'},
            'column "chat_template_kwargs", which is text: not usable JSON',
        ),
        ({'tools': {'name': 'add'}}, 'column "tools" must be a list of JSON schemas'),
        ({'chat_template_kwargs': [1]}, 'column "chat_template_kwargs" must map'),
        (
            {'chat_template_kwargs': {'tokenize': True}},
            '"tokenize" is not a variable of a chat template',
        ),
        (
            {'chat_template_kwargs': {'enable_thinkin': False}},
            'chat_template_kwargs: .* does not read "enable_thinkin", so it would',
        ),
    ],
)
def test_columns_beside_messages_that_are_refused(styles, columns, message):
    with pytest.raises(UserError, match=message):
        render.demonstration({'messages': [ASK, SAY], **columns}, styles['qwen3'])


def test_what_a_template_does_not_read(styles):
    for style in ('gemma3', 'phi'):
        with pytest.raises(
            UserError, match=r'column "tools": the chat template of .* does not read "tools"'
        ):
            render.prompt({'prompt': [ASK], 'tools': TOOLS}, styles[style])
        row = {
            'prompt': [ASK],
            'tools': [],
            'chat_template_kwargs': {'python_tools': [], 'instructions': ''},
        }
        assert len(render.prompt(row, styles[style]))


def test_a_template_that_does_not_continue_its_own_prompt(tmp_path, hugging_face_folder):
    # As templates do that open a thought for the model and drop the thoughts of what it said.
    template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    tokenizer = huggingface(None, None, path=hugging_face_folder(tmp_path, template=template))
    with pytest.raises(
        UserError,
        match=r"message 2 \(assistant\) as a continuation.*ends with .*<think>\\n', so its tokens",
    ):
        render.demonstration({'messages': [ASK, SAY]}, tokenizer)
    (made,) = render.demonstration(
        {'messages': [ASK, dict(SAY, content='<think>\nx</think>y')]}, tokenizer
    )
    assert learnt(tokenizer, made) == 'x</think>y<|im_end|>'


def test_weights_are_float32_and_begin_with_none(styles):
    (made,) = render.demonstration({'messages': [ASK, SAY]}, styles['phi'])
    assert (
        made.tokens.dtype == np.int32 and made.weights.dtype == np.float32 and made.weights[0] == 0
    )
