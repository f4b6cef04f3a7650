"""Every answer ends with a token that stops the sampler, and that token is learnt: in inner turns,
the last one and calls."""

import numpy as np
import pytest
import template_styles

from reasonjax import inspect
from reasonjax.data import forms, pipeline, render, sources, tokenizers
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
CALL = {
    'role': 'assistant',
    'content': '',
    'tool_calls': [{'type': 'function', 'function': {'name': 'add', 'arguments': {'a': 1}}}],
}
RESULT = {'role': 'tool', 'content': '{"sum": 357}'}


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


def answers(tokenizer, messages, **columns):
    """What is learnt of each document, one text per answer."""
    documents = []
    for document in render.demonstration({'messages': messages, **columns}, tokenizer):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], document.weights, [0]])))
        runs = [
            document.tokens[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)
        ]
        documents.append([tokenizer.tokenizer.decode(run) for run in runs])
    return documents


@pytest.mark.parametrize(
    ('style', 'messages', 'learnt'),
    [
        # The token that opens the next turn ends this one.
        ('glm', [ASK, SAY], [['\n<think></think>\nSo 2 more.<|user|>']]),
        (
            'glm',
            [ASK, SAY, MORE, LAST],
            [
                [
                    '\n<think></think>\nSo 2 more.<|user|>',
                    '\n<think></think>\nThe answer is 4.<|user|>',
                ]
            ],
        ),
        (
            'glm',
            [ASK, CALL, RESULT, SAY],
            [
                [
                    '\n<think></think>\n<tool_call>add\n<arg>a=1</arg>\n</tool_call><|observation|>',
                    '\n<think></think>\nSo 2 more.<|user|>',
                ]
            ],
        ),
        (
            'glm',
            [ASK, CALL],
            [['\n<think></think>\n<tool_call>add\n<arg>a=1</arg>\n</tool_call><|observation|>']],
        ),
        (
            'glm',
            [ASK, SAY | {'reasoning_content': 'Half.'}, MORE, LAST | {'reasoning_content': 'Sum.'}],
            [
                ['\n<think>Half.</think>\nSo 2 more.<|user|>'],
                ['\n<think>Sum.</think>\nThe answer is 4.<|user|>'],
            ],
        ),
        # Another end than the one that the model is shown later.
        (
            'harmony',
            [ASK, SAY, MORE, LAST],
            [[f'<|channel|>final<|message|>{m["content"]}<|return|>'] for m in (SAY, LAST)],
        ),
        (
            'harmony',
            [ASK, CALL, RESULT, SAY],
            [
                [
                    ' to=add<|message|>{"a": 1}<|call|>',
                    '<|channel|>final<|message|>So 2 more.<|return|>',
                ]
            ],
        ),
        # No end: each answer has EOS, and a document of its own.
        ('words', [ASK, SAY], [[' So 2 more.\n\n<|endoftext|>']]),
        (
            'words',
            [ASK, SAY, MORE, LAST],
            [[' So 2 more.\n\n<|endoftext|>'], [' The answer is 4.\n\n<|endoftext|>']],
        ),
    ],
)
def test_ends_by_hand(styles, style, messages, learnt):
    assert answers(styles[style], messages) == learnt


@pytest.mark.parametrize('style', [*template_styles.STYLES, *template_styles.ODD_STYLES])
@pytest.mark.parametrize('number', [1, 2, 3])
def test_every_end_stops_the_sampler(styles, style, number):
    tokenizer = styles[style]
    messages = [
        message | {'content': f'{message["content"]} {i}'}
        for i in range(number)
        for message in (ASK, SAY)
    ]
    found = [text for document in answers(tokenizer, messages) for text in document]
    assert len(found) == number
    for i, text in enumerate(found):
        assert f'So 2 more. {i}' in text and text.endswith(
            tuple(tokenizer.token(end) for end in tokenizer.eos_ids)
        )
        assert sum(text.count(tokenizer.token(end)) for end in tokenizer.eos_ids) == 1


def test_what_an_answer_stands_behind_is_what_the_model_is_given(styles):
    """Also where documents are cut at ends that the template does not write."""
    for style in ('glm', 'words', 'harmony'):
        prompts = [
            render.prompt({'prompt': [ASK, SAY, MORE][:size]}, styles[style]).tolist()
            for size in (1, 3)
        ]
        documents = render.demonstration({'messages': [ASK, SAY, MORE, LAST]}, styles[style])
        for prompt, document in zip(
            prompts, documents if len(documents) > 1 else documents * 2, strict=True
        ):
            assert (
                document.tokens[: len(prompt)].tolist() == prompt
                and document.weights[len(prompt)] == 1
            )


def test_answers_that_several_documents_hold_are_not_judged_as_one(styles):
    row = {'prompt': [ASK], 'chosen': [SAY, MORE, LAST], 'rejected': [LAST]}
    with pytest.raises(
        UserError,
        match='column "chosen" holds several answers .* as 2 texts.*or writes no EOS behind them',
    ):
        forms.renderer('preference', styles['words'])(row)
    assert len(forms.renderer('preference', styles['glm'])(row)) == 1


@pytest.mark.parametrize(
    ('weights', 'said'),
    [
        ([0, 1, 1, 0, 1], 'yes ($) x 2'),
        ([0, 1, 0, 0, 1], 'no, yes ($)'),
        ([0, 1, 1, 0, 0], 'yes ($)'),
        ([0, 1, 0, 1, 0], 'no x 2'),
        ([0, 0, 0, 0, 0], 'no'),
        ([0, 1, 1, 1, 1], 'yes ($)'),
    ],
)
def test_the_inspector_says_of_each_answer_whether_its_end_is_learnt(weights, said):
    tokenizer = tokenizers.characters(None, None)
    tokens = np.array(tokenizer.encode('1+$2$'))  # before: "yes" wherever any EOS had weight
    assert inspect._counts(tokens, np.array(weights, np.float32), tokenizer).endswith(
        f'EOS in the loss: {said}'
    )


def test_the_inspector_names_the_tokens_that_end_answers(styles):
    rows = [{'messages': [ASK, CALL, RESULT, SAY, MORE, LAST]}]
    source = sources.memory(rows=rows)
    batch = next(
        pipeline.supervised(source, [], styles['glm'], max_length=256, batch_size=1, seed=0)
    )
    said = inspect._counts(batch['tokens'][0], batch['weights'][0], styles['glm'])
    assert said.endswith('EOS in the loss: yes (<|observation|>), yes (<|user|>) x 2')
