"""Chat templates of real models: what they do not write is refused, and every answer ends with what
stops its model.

The templates are those that the installed packages bring, and those of the folder
REASONJAX_TEMPLATES.
"""

import functools
import json
import pathlib
import tempfile

import numpy as np
import pytest
import template_files

from reasonjax.data import render
from reasonjax.errors import UserError
from reasonjax.interop.huggingface.tokenizers import huggingface

FILES = template_files.files()
ASK = {'role': 'user', 'content': 'How many apples does Tom have?'}
SAY = {'role': 'assistant', 'content': 'So forty-two apples remain.'}
MORE, LAST = (
    {'role': 'user', 'content': 'And in total then?'},
    {'role': 'assistant', 'content': 'Exactly fifty altogether.'},
)
THOUGHT, ARGUMENTS = 'Halfway through pondering.', {'left': 'quince "q"', 'flag': True}
RESULT = {'role': 'tool', 'name': 'sumup', 'tool_call_id': 'abcdef123', 'content': '{"total": 357}'}
TOOLS = [
    {
        'type': 'function',
        'function': {
            'name': 'sumup',
            'description': 'Adds.',
            'parameters': {
                'type': 'object',
                'properties': {'left': {'type': 'string', 'description': 'x'}},
                'required': ['left'],
            },
        },
    }
]

# What of the families that we read has to be learnt, not refused.
THOUGHTS = ('qwen3', 'qwen3_5_think_training', 'glm4moe', 'gptoss', 'lfm2_2_5', 'lfm2_2_5_v2')
CALLS = (*THOUGHTS, 'llama3_1', 'llama3_2', 'qwen2_5', 'qwen3_instruct_2507', 'lfm2_v2', 'gemma4')
ANSWERS = (*CALLS, 'llama3', 'phi3', 'phi3_5', 'gemma', 'gemma3', 'lfm2', 'cohere', 'smolvlm')


def call(arguments=ARGUMENTS, number=3, **others):
    made = {
        'id': f'abcdef12{number}',
        'type': 'function',
        'function': {'name': 'sumup', 'arguments': arguments},
    }
    return {'role': 'assistant', 'content': '', 'tool_calls': [made]} | others


@functools.cache
def opened(file):
    with tempfile.TemporaryDirectory() as folder:
        template = file.read_text(encoding='utf-8')
        return huggingface(
            None, None, path=template_files.write_folder(pathlib.Path(folder), template)
        )


def answers(file, messages, **columns):
    """What is learnt, and whether it ends with an EOS, answer by answer; None where the template,
    or we, refuse the row."""
    tokenizer, found = opened(file), []
    if 'tools' in columns and not tokenizer_reads_tools(tokenizer):
        columns.pop('tools')
    try:
        documents = render.demonstration({'messages': messages, **columns}, tokenizer)
    except UserError:
        return None
    for document in documents:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], document.weights, [0]])))
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            tokens = document.tokens[start:end]
            found.append(
                (tokenizer.tokenizer.decode(tokens), bool(np.isin(tokens, tokenizer.eos_ids)[-1]))
            )
    return found


def tokenizer_reads_tools(tokenizer):
    return 'tools' in tokenizer.tokenizer.get_chat_template(tools=TOOLS)


def of_files(function):
    marks = [pytest.param(file, id=f'{file.parent.name}/{file.stem}') for file in FILES]
    return pytest.mark.parametrize('file', marks)(function)


@of_files
def test_every_answer_is_learnt_with_its_end(file):
    for messages in ([ASK, SAY], [ASK, SAY, MORE, LAST]):
        found = answers(file, messages)
        assert found is not None or file.stem not in ANSWERS
        for (text, ends), message in zip(found or [], messages[1::2], strict=found is not None):
            assert message['content'] in text and ends


@of_files
def test_thoughts_are_learnt_or_refused(file):
    for key in ('reasoning_content', 'thinking', 'reasoning'):
        found = answers(file, [ASK, SAY | {key: THOUGHT}])
        assert found is not None or file.stem not in THOUGHTS
        assert all(
            THOUGHT in text and SAY['content'] in text and ends for text, ends in found or []
        )


@of_files
def test_calls_are_learnt_or_refused(file):
    for change in (
        {},
        {'content': None},
        {'content': 'Let me compute this.'},
        {'reasoning_content': THOUGHT},
    ):
        found = answers(file, [ASK, call(**change), RESULT, SAY], tools=TOOLS)
        assert (
            found is not None
            or file.stem not in CALLS
            or change.keys() & {'reasoning_content'}
            or change.get('content')
        )
        for text, ends in (found or [])[:1]:
            assert (
                'sumup' in text
                and 'left' in text
                and 'quince' in text
                and ends
                and 'None' not in text
            )
            assert all(value in text for value in change.values() if value)
        assert found is None or (len(found) == 2 and SAY['content'] in found[1][0] and found[1][1])


@of_files
def test_arguments_as_json_text_are_learnt_as_the_object(file):
    found = answers(file, [ASK, call(), RESULT, SAY], tools=TOOLS)
    assert answers(file, [ASK, call(json.dumps(ARGUMENTS)), RESULT, SAY], tools=TOOLS) == found
    assert found is None or '\\"left' not in found[0][0]


@of_files
def test_two_calls_are_learnt_or_refused(file):
    both = call() | {'tool_calls': call()['tool_calls'] + call({'left': 'walnut'}, 4)['tool_calls']}
    results = [RESULT, RESULT | {'tool_call_id': 'abcdef124', 'content': '{"total": 1}'}]
    found = answers(file, [ASK, both, *results, SAY], tools=TOOLS)
    assert found is None or ('quince' in found[0][0] and 'walnut' in found[0][0])


@of_files
def test_results_and_system_prompts_are_read_or_refused(file):
    tokenizer = opened(file)
    for messages, texts in (
        (
            [{'role': 'system', 'content': 'You are a careful helper.'}, ASK],
            ['careful helper', 'apples'],
        ),
        (
            [{'role': 'developer', 'content': 'You are a careful helper.'}, ASK],
            ['careful helper', 'apples'],
        ),
        ([ASK, MORE], ['apples', 'in total']),
        ([{'role': 'assistant', 'content': 'Hello, how can I help?'}, ASK], ['Hello', 'apples']),
        (
            [ASK, SAY, {'role': 'system', 'content': 'You are a careful helper.'}, MORE],
            ['careful helper', 'in total'],
        ),
        ([ASK, call(), RESULT | {'content': {'total': 357}}], ['"total": 357']),
        ([{'role': 'critic', 'content': 'That is quite wrong.'}, ASK], ['quite wrong']),
    ):
        try:
            prompt = tokenizer.tokenizer.decode(render.prompt({'prompt': messages}, tokenizer))
        except UserError:
            continue
        assert all(text in prompt.replace('\\"', '"') for text in texts)
