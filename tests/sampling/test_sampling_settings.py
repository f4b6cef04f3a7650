"""From a config's group to the sampler's settings."""

import pathlib

import ml_collections
import pytest

from configs import base
from reasonjax.data.tokenizers import characters
from reasonjax.errors import UserError
from reasonjax.sampling.forcing import Span, Thinking
from reasonjax.sampling.sampler import Sampling
from reasonjax.training.samplers import sampling_from_config

KNOBS = {name: value for name, value in base.addition_tokenizer().items() if name != 'name'}


def tokenizer():
    return characters(tuple, pathlib.Path(), **KNOBS)


def ids(text):
    return tuple(tokenizer().encode(text))


def stage(**changes):
    group = ml_collections.ConfigDict(base.rollouts(base.get_config()))
    group.update(changes)
    return group


def test_defaults_are_neutral():
    wanted = Sampling(8, 30, eos_ids=tokenizer().eos_ids)
    assert sampling_from_config(stage(), tokenizer(), 'train') == wanted
    # A group of before there were these settings.
    old = {
        name: stage()[name]
        for name in (
            'num_generations',
            'max_completion_length',
            'temperature',
            'top_k',
            'top_p',
            'min_p',
        )
    }
    assert sampling_from_config(old, tokenizer(), 'train') == wanted


def test_everything_arrives():
    changed = stage(
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        min_tokens=3,
        stop=('#1', '+'),
        no_repeat_ngram_size=4,
        repetition_penalty=1.2,
        sampler=dict(
            slots=12, burst=4, cache_length=8, halvings=2, prefill_chunk=5, cache_dtype='int8'
        ),
    )
    found = sampling_from_config(changed, tokenizer(), 'train', num_generations=2)
    assert found == Sampling(
        2,
        30,
        0.7,
        5,
        0.9,
        0.1,
        tokenizer().eos_ids,
        3,
        (ids('#1'), ids('+')),
        4,
        1.2,
        (),
        'int8',
        12,
        4,
        8,
        2,
        5,
    )


def test_texts_become_forcings():
    changed = stage(
        forced_prefix='1+', thinking=dict(end='#', closing='=#', budget=9, extension='..', times=2)
    )
    found = sampling_from_config(changed, tokenizer(), 'train').forcing
    assert found == (Span(ids('1+'), place=0), Thinking(ids('#'), ids('=#'), 9, ids('..'), 2))
    assert sampling_from_config(
        stage(thinking=dict(end='#', budget=3)), tokenizer(), 'x'
    ).forcing == (Thinking(ids('#'), ids('#'), 3),)


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(stop=('abc',)), r'config.train.stop: .*a'),
        (dict(stop=('',)), r'config.train.stop: .*no tokens'),
        (dict(thinking=dict(budget=3)), r'set train.thinking.end'),
        (
            dict(thinking=dict(end='12', budget=3)),
            r"train.thinking.end='12': must be one token, these are 2",
        ),
        (dict(thinking=dict(end='#', times=1)), r'needs the tokens of the extension'),
        (dict(min_tokens=30), r'min_tokens=30: must be .*max_tokens=30'),
        (
            dict(repetition_penalty=0.0),
            r'repetition_penalty=0.0: must be from 0.0001 to 10000; nearest: 0.0001',
        ),
        (dict(sampler=dict(slots=-1)), r'slots=-1'),
        (dict(sampler=dict(burst=0)), r'burst=0'),
        (dict(sampler=dict(cache_dtype='int4')), r'cache_dtype="int4": unknown. .*int8'),
    ],
)
def test_what_cannot_be_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        sampling_from_config(stage(**changes), tokenizer(), 'train')
