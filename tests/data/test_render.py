"""Rendering of demonstrations and prompts: ids and weights against counts made by hand."""

import pathlib

import numpy as np
import pytest

from reasonjax.data import render, tokenizers
from reasonjax.errors import UserError
from reasonjax.interop.huggingface.tokenizers import huggingface

TURNS = [
    {'role': 'user', 'content': 'Tom has 1'},
    {'role': 'assistant', 'content': 'So 2'},
    {'role': 'user', 'content': 'and 3'},
    {'role': 'assistant', 'content': '4.'},
]


def characters(**knobs):
    alphabet = '_.$M#=,0123456789+'
    return tokenizers.characters(
        lambda: [], pathlib.Path('/nowhere'), **{'alphabet': alphabet} | knobs
    )


@pytest.fixture(scope='module')
def hf(tmp_path_factory, hugging_face_folder):
    folder = hugging_face_folder(tmp_path_factory.mktemp('hf'), generation={'eos_token_id': [2, 0]})
    return huggingface(lambda: [], pathlib.Path('/nowhere'), path=folder)


def chat_tokenizer(tmp_path, hugging_face_folder, template, **knobs):
    folder = hugging_face_folder(tmp_path, template=template, **knobs)
    return huggingface(lambda: [], pathlib.Path('/nowhere'), path=folder)


def spelt(tokenizer, document):
    """The text the model is told and the text it has to say."""
    said = document.weights > 0
    decode = tokenizer.tokenizer.decode
    return decode(document.tokens[~said]), decode(document.tokens[said])


# Strings.


def test_prompt_and_completion_weight_the_answer_and_its_eos():
    made = render.demonstration({'prompt': '12+3=', 'completion': '#15', 'level': 2}, characters())[
        0
    ]
    np.testing.assert_array_equal(made.tokens, [8, 9, 17, 10, 5, 4, 8, 12, 2])
    np.testing.assert_array_equal(made.weights, [0, 0, 0, 0, 0, 1, 1, 1, 1])
    assert made.tokens.dtype == np.int32 and made.weights.dtype == np.float32


def test_an_eos_the_completion_spells_out_is_not_repeated():
    spelt_out = render.demonstration({'prompt': '1=', 'completion': '#1$'}, characters())[0]
    appended = render.demonstration({'prompt': '1=', 'completion': '#1'}, characters())[0]
    np.testing.assert_array_equal(spelt_out.tokens, appended.tokens)
    assert list(spelt_out.tokens).count(2) == 1 and spelt_out.weights[-1] == 1


def test_bos_once_and_never_a_target():
    made = render.demonstration({'prompt': '1=', 'completion': '2'}, characters(bos='.'))[0]
    np.testing.assert_array_equal(made.tokens, [1, 8, 5, 9, 2])
    np.testing.assert_array_equal(made.weights, [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(render.prompt({'prompt': '.1='}, characters(bos='.')), [1, 8, 5])


def test_text_weights_all_but_the_first():
    made = render.demonstration({'text': '1+2'}, characters())[0]
    np.testing.assert_array_equal(made.tokens, [8, 17, 9, 2])
    np.testing.assert_array_equal(made.weights, [0, 1, 1, 1])
    with_bos = render.demonstration({'text': '1+2'}, characters(bos='.'))[0]
    np.testing.assert_array_equal(with_bos.weights, [0, 1, 1, 1, 1])


def test_an_empty_prompt_leaves_the_first_token_without_weight():
    made = render.demonstration({'prompt': '', 'completion': '12'}, characters())[0]
    np.testing.assert_array_equal(made.weights, [0, 1, 1])


def test_eos_of_a_hugging_face_tokenizer_is_in_the_loss(hf):
    made = render.demonstration({'prompt': 'Tom has', 'completion': ' 12'}, hf)[0]
    assert made.tokens[-1] == 2 and made.weights[-1] == 1
    assert hf.pad_id not in made.tokens


def test_prompt_ids_are_those_the_training_document_starts_with(hf):
    strings = {'prompt': 'Tom has', 'completion': ' 12'}
    chat = {'prompt': TURNS[:1], 'completion': TURNS[1:2]}
    for example in (strings, chat):
        asked = render.prompt(example, hf)
        made = render.demonstration(example, hf)[0]
        np.testing.assert_array_equal(made.tokens[: len(asked)], asked)
        assert made.weights[: len(asked)].sum() == 0 and made.weights[len(asked)] == 1


# Messages.


def test_assistant_mask_equals_the_one_made_by_hand(hf):
    made = render.demonstration({'messages': TURNS}, hf)[0]
    pieces = [  # the template spelt out, and whether the model has to say it
        ('<|im_start|>user\nTom has 1<|im_end|>\n<|im_start|>assistant\n', 0),
        ('So 2<|im_end|>', 1),
        ('\n', 0),
        ('<|im_start|>user\nand 3<|im_end|>\n<|im_start|>assistant\n', 0),
        ('4.<|im_end|>', 1),
        ('\n', 0),
    ]
    ids = [i for text, _ in pieces for i in hf.encode(text)]
    weights = [weight for text, weight in pieces for _ in hf.encode(text)]
    np.testing.assert_array_equal(made.tokens, ids)
    np.testing.assert_array_equal(made.weights, weights)


def test_conversational_completion_weights_its_own_turns_only(hf):
    made = render.demonstration({'prompt': TURNS[:3], 'completion': TURNS[3:]}, hf)[0]
    told, said = spelt(hf, made)
    assert said == '4.<|im_end|>' and 'So 2<|im_end|>' in told


def test_eos_is_appended_where_the_template_writes_none(tmp_path, hugging_face_folder):
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    tokenizer = chat_tokenizer(tmp_path, hugging_face_folder, template)
    made = render.demonstration({'messages': TURNS[:2]}, tokenizer)[0]
    assert spelt(tokenizer, made)[1] == 'So 2\n<|im_end|>'
    assert made.tokens[-1] == 2 and made.weights[-1] == 1


def test_a_template_that_rewrites_earlier_turns_gives_a_document_per_answer(
    tmp_path, hugging_face_folder
):
    template = (  # as templates do that drop the reasoning of all turns but the last
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'][-1:] }}{% else %}{{ "
        "m['content'] }}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ "
        "'<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer = chat_tokenizer(tmp_path, hugging_face_folder, template)
    first, second = render.demonstration({'messages': TURNS}, tokenizer)
    assert [spelt(tokenizer, made)[1] for made in (first, second)] == [
        'So 2<|im_end|>',
        '4.<|im_end|>',
    ]
    assert '<|im_start|>assistant\n2<|im_end|>' in spelt(tokenizer, second)[0]
    (last,) = render.demonstration({'prompt': TURNS[:3], 'completion': TURNS[3:]}, tokenizer)
    np.testing.assert_array_equal(last.tokens, second.tokens)
    np.testing.assert_array_equal(last.weights, second.weights)


# What is refused.


@pytest.mark.parametrize(
    ('example', 'message'),
    [
        ({'prompt': '1=', 'completion': ''}, 'column "completion" is empty'),
        ({'prompt': '1=', 'completion': '$'}, 'column "completion" is empty'),
        ({'text': ''}, 'column "text" is empty'),
        ({'text': 3}, 'column "text" must be a string, found int'),
        ({'prompt': '1=', 'completion': None}, 'column "completion" is null'),
        ({'completion': '1'}, 'no column "prompt"; columns found: completion'),
        ({'question': '1', 'answer': '2'}, 'needs the columns .*; columns found: answer, question'),
        (
            {'prompt': '1', 'completion': [{'role': 'assistant', 'content': '1'}]},
            'must both be strings or both be lists',
        ),
        ({'messages': 'hi'}, 'column "messages" must be a non-empty list'),
        ({'messages': []}, 'column "messages" must be a non-empty list'),
    ],
)
def test_documents_that_are_refused(example, message):
    with pytest.raises(UserError, match=message):
        render.demonstration(example, characters())[0]


def test_conversations_that_are_refused(hf):
    with pytest.raises(UserError, match='roles seen: user'):
        render.demonstration({'messages': TURNS[:1]}, hf)[0]
    with pytest.raises(UserError, match=r'message 2 \(assistant\) is empty'):
        render.demonstration({'messages': [TURNS[0], {'role': 'assistant', 'content': ''}]}, hf)[0]


@pytest.mark.parametrize(
    ('example', 'message'),
    [
        ({'prompt': ''}, 'column "prompt" is empty'),
        ({'prompt': []}, 'column "prompt" is empty'),
        ({'promt': '1'}, 'no column "prompt"; columns found: promt.*Did you mean "promt"'),
        ({'prompt': None}, 'column "prompt" is null'),
        ({'prompt': 3}, 'must be a string or a list'),
    ],
)
def test_prompts_that_are_refused(example, message):
    with pytest.raises(UserError, match=message):
        render.prompt(example, characters())


def test_texts_of_every_form():
    chat = [
        {'role': 'user', 'content': 'a'},
        {'role': 'assistant', 'content': [{'type': 'text', 'text': 'b'}]},
    ]
    call = [{'role': 'assistant', 'content': None, 'tool_calls': [{'function': {'name': 'add'}}]}]
    for example, texts in (
        ({'prompt': 'a', 'completion': 'b', 'solution': 'no'}, ['a', 'b']),
        ({'messages': chat}, ['a\nb']),
        ({'prompt': chat[:1], 'completion': call}, ['a', '']),
        ({'chosen': 'a b', 'rejected': 'a c'}, ['a b', 'a c']),
        ({'prompt': 'a', 'completions': ['b', 'c'], 'labels': [True, False]}, ['a', 'b', 'c']),
        ({'text': None}, []),
    ):
        assert list(render.texts(example)) == texts
