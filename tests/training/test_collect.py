"""Collected rows: a later stage trains on them as they are, and whatever a source gives is written,
or refused before anything is drawn."""

import datetime
import decimal
import json
import math
import uuid
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import install_rewards, quiet
from template_styles import write_style
from tokenizer_folders import write_folder

from reasonjax.data import pipeline, render, sources
from reasonjax.errors import UserError
from reasonjax.interop.huggingface.tokenizers import huggingface
from reasonjax.sampling.text import Completion
from reasonjax.training import collect, supervised
from reasonjax.training.context import open_run, stages_of
from reasonjax.training.run import run

ASK = [{'role': 'user', 'content': 'Tom has 12?'}]
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
KEEPING = SimpleNamespace(min_reward=0.0, max_per_prompt=0)


@pytest.fixture(scope='module')
def styles(tmp_path_factory):
    names = ('qwen3', 'llama3', 'gemma3', 'mistral', 'phi', 'glm', 'harmony', 'words')
    return {
        name: huggingface(None, None, path=write_style(tmp_path_factory.mktemp(name), name))
        for name in names
    }


def collected(tokenizer, row, samples):
    """The rows that a stage writes of the samples of one prompt."""
    texts = [[Completion(tokenizer.decode(ids), ids, len(ids), True) for ids in samples]]
    drawn = SimpleNamespace(
        prompts={'rows': [row]}, texts=texts, rewards=SimpleNamespace(total=np.ones(len(samples)))
    )
    return collect._part(drawn, KEEPING)['rows']


def trained_on(tokenizer, rows, tmp_path, **knobs):
    """What a stage that reads the rows from their file trains on: the ids of each prompt, and those
    with weight."""
    file = tmp_path / 'dataset.jsonl'
    file.write_text(''.join(collect._json(row) + '\n' for row in rows), encoding='utf-8')
    knobs = {'max_length': 256, 'batch_size': len(rows), 'seed': 0, 'shuffle': False} | knobs
    batch = next(pipeline.supervised(sources.jsonl(path=str(file)), [], tokenizer, **knobs))
    return [
        (tokens[(segments > 0) & (weights == 0)].tolist(), tokens[weights > 0].tolist())
        for tokens, segments, weights in zip(
            batch['tokens'], batch['segments'], batch['weights'], strict=True
        )
    ]


# Thoughts and calls as a model writes them, white space at the ends, and words split as no
# tokenizer would.
SAID = [
    'So 2 more.',
    '<think>\nHalf.\n</think>\n\nSo 2.',
    '<think>Half',
    '\n  So 2  \n',
    '{"name": "add"}',
    '<tool_call>\n{"name": "add"}',
]


@pytest.mark.parametrize(
    'style', ['qwen3', 'llama3', 'gemma3', 'mistral', 'phi', 'glm', 'harmony', 'words']
)
@pytest.mark.parametrize(
    'options', [{}, {'tools': TOOLS}, {'chat_template_kwargs': {'enable_thinking': False}}]
)
def test_the_next_stage_trains_on_exactly_the_tokens_that_were_sampled(
    styles, style, options, tmp_path
):
    tokenizer = styles[style]
    eos = tokenizer.eos_ids[-1]
    samples = [[*tokenizer.encode_more(text), eos] for text in SAID]
    samples += [
        [
            *(i for letter in 'So 2 more!' for i in tokenizer.encode_more(letter)),
            tokenizer.eos_ids[0],
        ]
    ]
    row = {'prompt': ASK, 'solution': '4', **options}
    try:
        asked = render.prompt(row, tokenizer).tolist()
    except UserError:
        assert options  # a template that reads no tools, or has no such variable
        return
    rows = collected(tokenizer, row, samples)
    assert len(rows) == len(samples)
    assert trained_on(tokenizer, rows, tmp_path) == [(asked, ids) for ids in samples]
    # As messages, for people and other programs.
    assert [row['completion'] for row in rows] == [
        [{'role': 'assistant', 'content': tokenizer.decode(ids)}] for ids in samples
    ]
    assert all(row['solution'] == '4' and row['reward'] == 1.0 for row in rows)


def test_other_prompts_and_other_forms(styles, tmp_path):
    tokenizer = styles['qwen3']
    ids = [*tokenizer.encode_more('So 2 more.'), tokenizer.eos_ids[0]]
    begun = {'prompt': [*ASK, {'role': 'assistant', 'content': 'Let me see.'}]}
    rows = collected(tokenizer, begun, [ids])
    assert trained_on(tokenizer, rows, tmp_path) == [
        (render.prompt(begun, tokenizer).tolist(), ids)
    ]
    # A stop text ended it: EOS is learnt behind, as behind strings.
    assert (
        trained_on(tokenizer, collected(tokenizer, {'prompt': ASK}, [ids[:-1]]), tmp_path)[0][1]
        == ids
    )
    judged = [row | {'label': True} for row in collected(tokenizer, {'prompt': ASK}, [ids])]
    assert trained_on(tokenizer, judged, tmp_path, form='unpaired')[0][1] == ids
    # Text prompts have text completions, as before.
    (row,) = collected(tokenizer, {'prompt': 'Tom has'}, [ids])
    assert row == {'prompt': 'Tom has', 'completion': 'So 2 more.', 'reward': 1.0}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            {'completion': [{'role': 'assistant', 'content': 'So 3 more.'}]},
            '"completion_ids" holds the tokens of another text',
        ),
        ({'completion_ids': [1, 2, 3]}, '"completion_ids" holds the tokens of another text'),
        ({'completion_ids': [10**6]}, 'must be a non-empty list of token ids of this tokenizer'),
        ({'completion_ids': []}, 'must be a non-empty list'),
        ({'completion_ids': 'x'}, 'must be a non-empty list'),
    ],
)
def test_tokens_that_are_not_those_of_the_text(styles, change, message):
    tokenizer = styles['qwen3']
    (row,) = collected(
        tokenizer, {'prompt': ASK}, [[*tokenizer.encode_more('So 2 more.'), tokenizer.eos_ids[0]]]
    )
    with pytest.raises(UserError, match=message):
        render.demonstration(row | change, tokenizer)
    assert len(render.demonstration(row | change | {'completion_ids': None}, tokenizer)) == 1


def chat_run(tmp_path, source, **overrides):
    folder = tmp_path / 'tokenizer'
    folder.mkdir()
    write_folder(folder)
    return quiet(
        'configs/quickstart.py:filtered_sft',
        stages="('collect', 'resft')",
        tokenizer__name='huggingface',
        tokenizer__path=folder,
        collect__data__source__name=source.suffix[1:],
        collect__data__source__path=source,
        collect__data__max_prompt_length=48,
        collect__rewards__accuracy__name='all_good.good',
        collect__reward_workers=0,
        collect__min_reward=0.0,
        collect__steps=2,
        collect__max_completion_length=30,
        collect__stop="('e', 'a', '1', 's', '\\n')",
        resft__data__max_length=128,
        resft__data__overlong='error',
        **overrides,
    )


@pytest.fixture
def good(tmp_path, monkeypatch):
    install_rewards(tmp_path, monkeypatch)
    (tmp_path / 'all_good.py').write_text(
        'def good(prompts, completions, **kwargs):\n    return [1.0] * len(completions)\n'
    )


def test_a_run_collects_answers_of_a_chat_model_and_trains_on_them(tmp_path, good):
    columns = {'when': datetime.date(2026, 1, 2), 'price': decimal.Decimal('1.50')}
    rows = [{'prompt': [{'role': 'user', 'content': f'Tom has {i}?'}], **columns} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'rows.parquet')
    config = chat_run(tmp_path, tmp_path / 'rows.parquet')
    summary = run(config, tmp_path / 'work')
    assert summary['stages'][0]['kept'] > 0 and summary['stages'][1]['name'] == 'resft'
    written = [
        json.loads(line)
        for line in (tmp_path / 'work/stages/00_collect/dataset.jsonl').read_text().splitlines()
    ]
    assert all(row['when'] == '2026-01-02' and row['price'] == '1.50' for row in written)
    of_run = open_run(
        config.copy_and_resolve_references().unlock(), tmp_path / 'work', active=False
    )
    batch = next(supervised.open_data(of_run, stages_of(config, tmp_path / 'work')[1]))
    ends = of_run.tokenizer.eos_ids
    sampled = [tuple(row['completion_ids']) for row in written]
    sampled = {ids if ids[-1] in ends else (*ids, ends[0]) for ids in sampled}
    assert {tuple(t[w > 0].tolist()) for t, w in zip(batch['tokens'], batch['weights'])} <= sampled


@pytest.mark.parametrize(
    ('value', 'written'),
    [
        (datetime.date(2026, 1, 2), '2026-01-02'),
        (datetime.datetime(2026, 1, 2, 3, 4, 5, 6), '2026-01-02T03:04:05.000006'),
        (datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), '2026-01-02T00:00:00+00:00'),
        (datetime.time(3, 4), '03:04:00'),
        (decimal.Decimal('0.10'), '0.10'),
        (uuid.UUID(int=1), '00000000-0000-0000-0000-000000000001'),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_('x'), 'x'),
        (np.datetime64('2026-01-02T03:04:05.123456789'), '2026-01-02T03:04:05.123456789'),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (
            {'deep': [np.arange(2), {'on': datetime.date(2026, 1, 2)}]},
            {'deep': [[0, 1], {'on': '2026-01-02'}]},
        ),
        ((1, None), [1, None]),
        (math.inf, math.inf),
        (10**40, 10**40),
    ],
)
def test_what_sources_give_is_written(value, written, tmp_path):
    row = {'prompt': '1=', 'column': value}
    collect.check_columns(row)
    (tmp_path / 'rows.jsonl').write_text(collect._json(row))
    assert sources.jsonl(path=str(tmp_path / 'rows.jsonl'))[0]['column'] == written
    for nan in (math.nan, np.float64('nan'), np.float32('nan')):
        assert math.isnan(json.loads(collect._json({'column': nan}))['column'])


@pytest.mark.parametrize(
    'value',
    [
        b'x',
        {'deep': [b'x']},
        np.array([b'x']),
        datetime.timedelta(1),
        {1, 2},
        object(),
        {(1, 2): 3},
    ],
)
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(UserError, match='^column "picture" cannot be written beside a sample'):
        collect.check_columns({'prompt': '1=', 'picture': value})


def test_a_column_that_cannot_be_written_stops_the_stage_before_anything_is_sampled(
    tmp_path, good, monkeypatch
):
    rows = [{'prompt': [{'role': 'user', 'content': 'Tom has 1?'}], 'picture': b'\x89PNG'}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'rows.parquet')
    sampled = []
    monkeypatch.setattr(
        'reasonjax.training.rollouts.sampler',
        lambda *settings: lambda *given: sampled.append(given),
    )
    with pytest.raises(
        UserError,
        match=r'rows\.parquet:1: column "picture" cannot be written beside a sample \(it holds bytes',
    ):
        run(chat_run(tmp_path, tmp_path / 'rows.parquet'), tmp_path / 'work')
    assert not sampled and not list((tmp_path / 'work/stages/00_collect/parts').iterdir())
