"""Forms of rows: TRL's columns as they are, and which rows are refused."""

import json

import numpy as np
import pytest
import template_styles

from reasonjax.data import forms, pairs, pipeline, render, sources, tokenizers
from reasonjax.errors import UserError
from reasonjax.interop.huggingface.tokenizers import huggingface

ASK = [{'role': 'user', 'content': 'Tom has 12?'}]
GOOD, BAD = (
    [{'role': 'assistant', 'content': 'So 2 more.'}],
    [{'role': 'assistant', 'content': '357'}],
)
TOKENIZER = tokenizers.characters(None, None, alphabet='_.$M#=,0123456789+ab \n')


@pytest.fixture(scope='module')
def chatty(tmp_path_factory):
    return huggingface(
        None, None, path=template_styles.write_style(tmp_path_factory.mktemp('qwen3'), 'qwen3')
    )


def rows(form, example, tokenizer=TOKENIZER, **knobs):
    """The documents of the one example that a row is."""
    (made,) = forms.renderer(form, tokenizer, **knobs)(example)
    return made


def same(document, other):
    return (
        document.tokens.tolist() == other.tokens.tolist()
        and document.weights.tolist() == other.weights.tolist()
    )


def batches(form, examples, tokenizer=TOKENIZER, **knobs):
    knobs = {'max_length': 16, 'batch_size': len(examples), 'seed': 0, 'shuffle': False} | knobs
    return pipeline.supervised(
        sources.memory(rows=examples, label='train'), [], tokenizer, form=form, **knobs
    )


# Demonstrations are what they were.


def test_demonstrations(chatty):
    for example, tokenizer in (
        ({'prompt': '1=', 'completion': '2', 'level': 3}, TOKENIZER),
        ({'text': '1=2'}, TOKENIZER),
        ({'messages': ASK + GOOD}, chatty),
        # a label of something else
        ({'prompt': '1=', 'completion': '2', 'label': 'easy'}, TOKENIZER),
        ({'prompt': '1=', 'completion': '2', 'chosen': 'x', 'rejected': 'y'}, TOKENIZER),
    ):
        (document,) = rows('demonstration', example, tokenizer)
        assert same(document, render.demonstration(example, tokenizer)[0]) and not document.marks


# Preferences.


def test_preference_by_hand():
    examples = [
        {'prompt': '1=', 'chosen': '#1', 'rejected': '#23'},
        {'prompt': '12=', 'chosen': '4', 'rejected': '5'},
    ]
    batch = next(batches('preference', examples, max_length=7))
    assert {name: value.dtype.name for name, value in batch.items()} == {
        'tokens': 'int32',
        'weights': 'float32',
        'segments': 'int32',
        'positions': 'int32',
        'chosen': 'bool',
    }
    np.testing.assert_array_equal(batch['chosen'], [True, False, True, False])
    np.testing.assert_array_equal(
        batch['tokens'],
        [
            [8, 5, 4, 8, 2, 0, 0],
            [8, 5, 4, 9, 10, 2, 0],
            [8, 9, 5, 11, 2, 0, 0],
            [8, 9, 5, 12, 2, 0, 0],
        ],
    )
    np.testing.assert_array_equal(
        batch['weights'],
        [
            [0, 0, 1, 1, 1, 0, 0],
            [0, 0, 1, 1, 1, 1, 0],
            [0, 0, 0, 1, 1, 0, 0],
            [0, 0, 0, 1, 1, 0, 0],
        ],
    )


def test_conversational_preferences(chatty):
    explicit = {'prompt': ASK, 'chosen': GOOD, 'rejected': BAD}
    for example in (
        explicit,
        {'chosen': ASK + GOOD, 'rejected': ASK + BAD},
        {'prompt': 'Tom has 12?', 'chosen': ASK + GOOD, 'rejected': ASK + BAD},
    ):
        chosen, rejected = rows('preference', example, chatty)
        assert same(chosen, render.demonstration({'prompt': ASK, 'completion': GOOD}, chatty)[0])
        assert same(rejected, render.demonstration({'prompt': ASK, 'completion': BAD}, chatty)[0])
        assert chosen.marks['chosen'] == np.True_ and rejected.marks['chosen'] == np.False_
    thoughtless = rows(
        'preference', explicit | {'chat_template_kwargs': {'enable_thinking': False}}, chatty
    )
    assert (
        not same(thoughtless[0], chosen)
        and chatty.decode(thoughtless[0].tokens[thoughtless[0].weights > 0]) == 'So 2 more.'
    )


@pytest.mark.parametrize(
    ('chosen', 'rejected', 'prompt'),
    [
        ('The sky is blue.', 'The sky is green.', 'The sky is'),  # as TRL cuts
        ('The sky is blue.', 'The sky is brown.', 'The sky is'),  # where TRL cuts within the word
        ('Q: 1?\nA: yes', 'Q: 1?\nA: no', 'Q: 1?\nA:'),
        ('Q: 1?\nyes', 'Q: 1?\nno', 'Q: 1?\n'),
        ('I said yes', 'I said yes twice', 'I said'),
        ('a  b', 'a  c', 'a '),
    ],
)
def test_the_prompt_of_two_texts_is_what_they_begin_with(chosen, rejected, prompt):
    found = pairs.prompt_and_answers({'chosen': chosen, 'rejected': rejected})
    assert found == (prompt, chosen[len(prompt) :], rejected[len(prompt) :])


def test_the_prompt_of_two_conversations_is_their_common_messages(chatty):
    more = [{'role': 'user', 'content': 'and 3'}]
    begun = ASK + GOOD + more
    assert pairs.prompt_and_answers({'chosen': begun + GOOD, 'rejected': begun + BAD}) == (
        begun,
        GOOD,
        BAD,
    )
    assert pairs.prompt_and_answers({'prompt': ASK, 'chosen': GOOD, 'rejected': BAD}) == (
        ASK,
        GOOD,
        BAD,
    )


@pytest.mark.parametrize(
    ('example', 'message'),
    [
        ({'chosen': 'a b', 'rejected': 'a b'}, 'chosen and rejected are the same'),
        ({'chosen': 'yes', 'rejected': 'no'}, 'do not begin with the same: no prompt'),
        ({'chosen': ASK + GOOD, 'rejected': ASK}, 'the beginning of the other'),
        (
            {'chosen': 'a b', 'rejected': ASK},
            'must both be strings or both be lists of messages, found str and list',
        ),
        ({'chosen': 'a b', 'rejected': None}, 'found str and NoneType'),
        (
            {'prompt': ASK, 'chosen': 'a b', 'rejected': 'a c'},
            'prompt is a list of messages, chosen and rejected are strings',
        ),
        (
            {'prompt': 'Why?', 'chosen': ASK + GOOD, 'rejected': ASK + BAD},
            'column "prompt" is text that is not among the messages',
        ),
        ({'prompt': '1=', 'chosen': '2', 'rejected': ''}, 'column "rejected" is empty'),
    ],
)
def test_preferences_that_are_refused(example, message):
    with pytest.raises(UserError, match=message):
        forms.renderer('preference', TOKENIZER)(example)


def test_answers_of_several_texts_cannot_be_compared(chatty):
    several = GOOD + [{'role': 'user', 'content': 'and 3'}] + BAD
    with pytest.raises(
        UserError,
        match='column "chosen" holds several answers that the chat template renders as 2 texts',
    ):
        forms.renderer('preference', chatty)({'prompt': ASK, 'chosen': several, 'rejected': BAD})


def test_a_pair_is_dropped_as_one():
    examples = [
        {'prompt': '1=', 'chosen': '1', 'rejected': '1' * 20},
        {'prompt': '2=', 'chosen': '1', 'rejected': '2'},
    ]
    iterator = batches('preference', examples, batch_size=1, overlong='drop')
    assert next(iterator)['tokens'][:, 0].tolist() == [9, 9]
    assert iterator.counters == {
        'rows': 2,
        'examples': 1,
        'rows_without_examples': 0,
        'dropped_overlong': 1,
        'dropped_keys': 0,
    }
    with pytest.raises(UserError, match='^train:1: 23 tokens, but max_length=16'):
        next(batches('preference', examples))


# Unpaired answers and steps.


def test_unpaired(chatty):
    examples = [
        {'prompt': '1=', 'completion': '1', 'label': True},
        {'prompt': '1=', 'completion': '2', 'label': False},
    ]
    batch = next(batches('unpaired', examples))
    np.testing.assert_array_equal(batch['label'], [True, False])
    assert batch['label'].dtype == bool and batch['tokens'].shape == (2, 16)
    np.testing.assert_array_equal(batch['weights'][0, :5], [0, 0, 1, 1, 0])
    (document,) = rows('unpaired', {'prompt': ASK, 'completion': BAD, 'label': 0}, chatty)
    assert (
        same(document, render.demonstration({'prompt': ASK, 'completion': BAD}, chatty)[0])
        and not document.marks['label']
    )
    for label in (None, 'no', 2):
        with pytest.raises(
            UserError, match='column "label" must hold true or false|data.form="unpaired" needs'
        ):
            rows('unpaired', {'prompt': '1=', 'completion': '1', 'label': label})


def test_stepwise_by_hand():
    example = {'prompt': '1=', 'completions': ['12', '3', '#'], 'labels': [True, False, True]}
    batch = next(batches('stepwise', [example], max_length=10))
    np.testing.assert_array_equal(batch['tokens'], [[8, 5, 8, 9, 21, 10, 21, 4, 21, 0]])
    np.testing.assert_array_equal(batch['weights'], [[0, 0, 0, 0, 1, 0, 1, 0, 1, 0]])
    np.testing.assert_array_equal(batch['step_label'], [[0, 0, 0, 0, 1, 0, 0, 0, 1, 0]])
    assert batch['step_label'].dtype == np.float32
    (bare,) = rows('stepwise', example, step_separator='')
    assert bare.tokens.tolist() == [8, 5, 8, 9, 10, 4] and bare.marks['step_label'].tolist() == [
        0,
        0,
        0,
        1,
        0,
        1,
    ]


def test_steps_of_a_conversation(chatty):
    example = {'prompt': ASK, 'completions': ['So 2', 'The answer is 4.'], 'labels': [True, False]}
    (document,) = rows('stepwise', example, chatty)
    asked = render.prompt(example, chatty).tolist()
    assert document.tokens.tolist() == asked + chatty.encode('So 2\n') + chatty.encode(
        'The answer is 4.\n'
    )
    assert (
        document.weights.sum() == 2
        and document.weights[-1] == 1
        and document.marks['step_label'].sum() == 1
    )
    in_messages = [[{'role': 'assistant', 'content': step}] for step in example['completions']]
    assert same(rows('stepwise', example | {'completions': in_messages}, chatty)[0], document)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'labels': [True]}, 'must be lists of one length'),
        ({'completions': [], 'labels': []}, 'must be lists of one length, with at least one step'),
        ({'completions': ['1', '']}, 'step 2 must be a text or messages, and not empty'),
        ({'labels': [True, None]}, 'column "labels" must hold true or false, found None'),
        ({'prompt': ''}, 'column "prompt" is empty'),
    ],
)
def test_steps_that_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        rows(
            'stepwise',
            {'prompt': '1=', 'completions': ['1', '2'], 'labels': [True, False]} | change,
        )


# Rows of another form.

EXAMPLES = {
    'demonstration': {'prompt': '1=', 'completion': '2'},
    'preference': {'prompt': '1=', 'chosen': '2', 'rejected': '3'},
    'unpaired': {'prompt': '1=', 'completion': '2', 'label': False},
    'stepwise': {'prompt': '1=', 'completions': ['2'], 'labels': [True]},
}


@pytest.mark.parametrize('form', forms.FORMS)
@pytest.mark.parametrize('other', forms.FORMS)
def test_a_row_of_another_form_names_its_own(form, other):
    render_row, example = forms.renderer(form, TOKENIZER), EXAMPLES[other]
    if form == other:
        assert len(render_row(example)) == 1
        return
    with pytest.raises(UserError) as error:
        render_row(example)
    text = str(error.value)
    assert f'data.form="{other}"' in text and f'columns found: {", ".join(sorted(example))}' in text
    ways = {'preference': 'chosen_only', 'unpaired': 'desirable_only', 'stepwise': 'correct_steps'}
    assert form != 'demonstration' or ways[other] in text


def test_rows_of_no_form():
    with pytest.raises(
        UserError,
        match='data.form="preference" needs the columns chosen and rejected; columns found: chosn, '
        'prompt$',
    ):
        forms.renderer('preference', TOKENIZER)({'prompt': '1', 'chosn': '2'})
    with pytest.raises(
        UserError,
        match='needs the columns prompt and completion, or messages, or text; columns found: '
        'question',
    ):
        forms.renderer('demonstration', TOKENIZER)({'question': '1'})


def test_settings_that_are_refused():
    with pytest.raises(
        UserError,
        match='data.form: unknown form "preferences". Did you mean "preference"\\? Known: '
        'demonstration',
    ):
        batches('preferences', [EXAMPLES['preference']])
    for form in ('preference', 'unpaired', 'stepwise'):
        with pytest.raises(
            UserError,
            match=f'data.packing: only demonstrations can be packed; rows of data.form="{form}"',
        ):
            batches(form, [EXAMPLES[form]], packing=True)


# Positions are saved and restored for every form, also where rows give several documents.


def of_form(form, i):
    prompt = f'{i}='
    return {
        'preference': {'prompt': prompt, 'chosen': f'#{i}', 'rejected': '#' * (1 + i % 3)},
        'unpaired': {'prompt': prompt, 'completion': f'#{i}', 'label': i % 2 == 0},
        'stepwise': {
            'prompt': prompt,
            'completions': ['1'] * (1 + i % 3),
            'labels': [True] * (1 + i % 3),
        },
    }[form]


def plain(batch):
    return {name: value.tolist() for name, value in batch.items()}


def check_restores(make, stop):
    undisturbed, first, restored = make(), make(), make()
    want = [(plain(next(undisturbed)), undisturbed.counters) for _ in range(stop + 8)]
    for _ in range(stop):
        next(first)
    next(restored)
    restored.set_state(json.loads(json.dumps(first.get_state())))
    assert [(plain(next(restored)), restored.counters) for _ in range(8)] == want[stop:]


@pytest.mark.parametrize('stop', [0, 1, 4])
@pytest.mark.parametrize('form', ['preference', 'unpaired', 'stepwise'])
def test_forms_are_restored(form, stop):
    examples = [of_form(form, i) for i in range(7)]
    check_restores(lambda: batches(form, examples, batch_size=3, shuffle=True), stop)


def conversations():
    """Conversations of one to three answers, whose thoughts the template drops."""
    for i in range(5):
        messages = []
        for k in range(1 + i % 3):
            messages += [
                {'role': 'user', 'content': f'{i} {k}?'},
                {'role': 'assistant', 'content': f'So {k}', 'thinking': '.'},
            ]
        yield {'messages': messages}


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('stop', [0, 1, 2, 5])
def test_conversations_of_several_documents_are_restored(chatty, stop, packed):
    examples = list(conversations())
    check_restores(
        lambda: batches(
            'demonstration',
            examples,
            chatty,
            batch_size=2,
            max_length=128,
            shuffle=True,
            packing=packed,
        ),
        stop,
    )


def test_every_document_of_a_conversation_is_an_example(chatty):
    examples = list(conversations())
    iterator = batches('demonstration', examples, chatty, batch_size=9, max_length=128)
    batch = next(iterator)
    assert iterator.counters == {
        'rows': 5,
        'examples': 9,
        'rows_without_examples': 0,
        'dropped_overlong': 0,
        'dropped_keys': 0,
    }
    want = [made for example in examples for made in render.demonstration(example, chatty)]
    assert [
        row[row_segments > 0].tolist()
        for row, row_segments in zip(batch['tokens'], batch['segments'])
    ] == [made.tokens.tolist() for made in want]
    # Dropped one by one: the short answers of a long conversation are learnt.
    longest = max(len(made.tokens) for made in want)
    short = [made for made in want if len(made.tokens) < longest]
    iterator = batches(
        'demonstration',
        examples,
        chatty,
        batch_size=len(short),
        max_length=longest - 1,
        overlong='drop',
    )
    next(iterator)
    assert iterator.counters['examples'] == len(short) and iterator.counters[
        'dropped_overlong'
    ] == len(want) - len(short)
