"""Who says what: roles that a template does not know or merges, thoughts under other names, content
in parts."""

import pytest

from reasonjax.data import render
from reasonjax.errors import UserError

ASK, SAY = (
    {'role': 'user', 'content': 'Tom has 12?'},
    {'role': 'assistant', 'content': 'So 2 more.'},
)
MORE, LAST = (
    {'role': 'user', 'content': 'and  3'},
    {'role': 'assistant', 'content': 'The answer is 4.'},
)


def learnt(tokenizer, messages, **columns):
    return [
        tokenizer.tokenizer.decode(document.tokens[document.weights > 0])
        for document in render.demonstration({'messages': messages, **columns}, tokenizer)
    ]


@pytest.mark.parametrize('role', ['Assistant', 'ASSISTANT', ' assistant'])
def test_an_answer_whose_role_is_misspelt_is_not_left_out(of, role):
    with pytest.raises(UserError, match='message 4: the role .* must be spelt "assistant"'):
        learnt(of('{{ m.content }}'), [ASK, SAY, MORE, dict(LAST, role=role)])


def test_thoughts_under_a_name_that_the_template_reads(of):
    tokenizer = of('{{ m.thought }}{{ m.content }}')
    assert learnt(tokenizer, [ASK, SAY | {'thought': 'Half.'}]) == ['Half.So 2 more.<|im_end|>']


def test_parts_of_one_text_keep_the_spaces_between_them(of):
    trims = '{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text | trim }}{% endfor %}{% endif %}'
    only_parts = '{% for p in m.content %}{{ p.text | trim }}{% endfor %}'
    parts = [{'type': 'text', 'text': 'So '}, {'type': 'text', 'text': '2 more.'}]
    for body in (trims, only_parts):
        assert learnt(of(body, body), [ASK, dict(SAY, content=parts)]) == ['So 2 more.<|im_end|>']


def test_roles_that_a_template_merges(of):
    """They would be learnt as what the assistant said, or stand in another's turn."""
    template = "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content }}"
    template += "{% else %}{{ 'ASSISTANT: ' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
    tokenizer = of('')
    tokenizer.tokenizer.chat_template = template
    with pytest.raises(
        UserError,
        match='message 2: the chat template knows no role "critic", and writes its content as if '
        'it were',
    ):
        render.prompt({'prompt': [ASK, {'role': 'critic', 'content': 'Wrong.'}, MORE]}, tokenizer)
    naked = of('{{ m.content }}')
    naked.tokenizer.chat_template = template.replace(
        '{% else %}', "{% elif m.role == 'critic' %}{{ m.content }}{% else %}"
    )
    with pytest.raises(UserError, match='message 1: the chat template knows no role "critic"'):
        render.prompt({'prompt': [{'role': 'critic', 'content': 'Wrong.'}, MORE]}, naked)
    assert len(
        render.prompt(
            {'prompt': [ASK, {'role': 'critic', 'content': 'Wrong.'}, MORE]}, of('{{ m.content }}')
        )
    )


@pytest.mark.parametrize(
    'text', ['a', 'Tom', 'assistant', 'A question of some length, asked twice.']
)
def test_a_message_that_a_template_drops_is_not_taken_for_another_of_the_same_text(of, text):
    """Two in a row: the template keeps the last, and the same words stand elsewhere."""
    tokenizer = of('{{ m.content }}')
    kept = "{% if m.role != 'user' or loop.last or loop.nextitem.role != 'user' %}"
    tokenizer.tokenizer.chat_template = tokenizer.tokenizer.chat_template.replace(
        'messages %}', 'messages %}' + kept
    ).replace('{% endfor %}', '{% endif %}{% endfor %}')
    twice = [dict(ASK, content=text)] * 2
    with pytest.raises(UserError, match='leaves out message 1: it has no role "user"'):
        render.prompt({'prompt': [*twice, SAY, MORE]}, tokenizer)
    with pytest.raises(UserError, match='leaves out message 1'):
        render.demonstration({'messages': [*twice, SAY]}, tokenizer)
    assert len(render.prompt({'prompt': [twice[0], SAY, MORE]}, tokenizer))
