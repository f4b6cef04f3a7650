"""From files to losses: every kind of source and tokenizer through a whole run, and what a run says
of data it cannot use."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import install_rewards, quiet, records
from tokenizer_folders import write_folder

from reasonjax.errors import UserError
from reasonjax.training.run import run, trained

ROWS = [
    {'prompt': f'{a}+{b}=', 'completion': f'#{a + b}', 'solution': str(a + b), 'level': a}
    for a in range(3)
    for b in range(4)
]


def lines(path, rows):
    path.write_text(
        ''.join((row if isinstance(row, str) else json.dumps(row)) + '\n' for row in rows)
    )
    return path


def from_file(path, name='jsonl', **overrides):
    """A supervised run of two steps on rows of short sums."""
    return quiet(
        'configs/base.py',
        train__data__source__name=name,
        train__data__source__path=path,
        train__data__max_length=16,
        train__learning_rate__warmup_steps=0,
        **overrides,
    )


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """The rows as a prepared TFDS data set; returns its name, its folder and the order that its
    shards gave the rows."""
    tfds = pytest.importorskip('tensorflow_datasets')

    class ShortSums(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            features = {
                name: tfds.features.Text() for name in ('prompt', 'completion', 'solution')
            } | {'level': np.int32}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {'train': self._generate_examples()}

        def _generate_examples(self):
            return iter(enumerate(ROWS))

    folder = tmp_path_factory.mktemp('tfds')
    builder = ShortSums(data_dir=folder, file_format='array_record')
    builder.download_and_prepare()
    source = builder.as_data_source(split='train')
    ordered = [
        {k: v.decode() if isinstance(v, bytes) else int(v) for k, v in source[i].items()}
        for i in range(len(source))
    ]
    return folder, ordered


def test_one_data_set_from_three_formats(prepared, tmp_path):
    """The same rows in the same order give the same losses, bit for bit, and TensorFlow is not
    needed."""
    folder, rows = prepared
    assert sorted(row['prompt'] for row in rows) == sorted(row['prompt'] for row in ROWS)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'rows.parquet')
    run(from_file(lines(tmp_path / 'rows.jsonl', rows)), tmp_path / 'jsonl')
    run(from_file(tmp_path / 'rows.parquet', 'parquet'), tmp_path / 'parquet')
    run(
        quiet(
            'configs/base.py',
            train__data__source__name='tfds',
            train__data__source__dataset='short_sums',
            train__data__source__data_dir=folder,
            train__data__max_length=16,
            train__learning_rate__warmup_steps=0,
        ),
        tmp_path / 'tfds',
    )
    found = [records(tmp_path / name) for name in ('jsonl', 'parquet', 'tfds')]
    assert len(found[0]) == 2 and found[0] == found[1] == found[2]
    assert 'tensorflow' not in sys.modules
    # Another order of the rows would have shown.
    run(from_file(lines(tmp_path / 'other.jsonl', rows[::-1])), tmp_path / 'other')
    assert records(tmp_path / 'other') != found[0]


def test_a_hugging_face_folder_drives_both_kinds_of_stage(tmp_path, monkeypatch):
    """Chat rows through the folder's template: supervised, then online with a reward that sees
    messages."""
    pytest.importorskip('transformers')
    install_rewards(tmp_path, monkeypatch)
    (tmp_path / 'chat_rewards.py').write_text(
        'def said(prompts, completions, solution, **kwargs):\n'
        "    assert all(p[-1]['role'] == 'user' for p in prompts) and len(solution) == "
        'len(completions)\n'
        "    return [float(len(c[0]['content'])) for c in completions]\n"
    )
    folder = tmp_path / 'tokenizer'
    folder.mkdir()
    write_folder(folder)
    rows = [
        {
            'prompt': [{'role': 'user', 'content': r['prompt']}],
            'completion': [{'role': 'assistant', 'content': r['completion']}],
            'solution': r['solution'],
        }
        for r in ROWS
    ]
    path = lines(tmp_path / 'chat.jsonl', rows)
    common = {
        f'{stage}__data__source__{key}': value
        for stage in ('warmup', 'grpo')
        for key, value in (('name', 'jsonl'), ('path', path))
    }
    config = quiet(
        'configs/grpo.py',
        tokenizer__name='huggingface',
        tokenizer__path=folder,
        warmup__data__max_length=64,
        warmup__data__overlong='error',
        grpo__data__overlong='error',
        grpo__data__max_prompt_length=48,
        grpo__rewards__accuracy__name='chat_rewards.said',
        grpo__reward_workers=0,
        **common,
    )
    run(config, tmp_path / 'work')
    losses = {
        name: [r['loss'] for r in records(tmp_path / 'work', name)] for name in ('warmup', 'grpo')
    }
    assert (
        len(losses['warmup']) == len(losses['grpo']) == 2
        and np.isfinite(losses['warmup'] + losses['grpo']).all()
    )
    table = pq.read_table(
        tmp_path / 'work' / 'completions' / 'completions_00001.parquet'
    ).to_pylist()
    assert len(table) == 8 and json.loads(table[0]['prompt'])[0]['role'] == 'user'
    of_run, _ = trained(tmp_path / 'work')
    assert (
        of_run.tokenizer.encode('2+2=') and of_run.model.vocab_size >= of_run.tokenizer.vocab_size
    )


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        ([*ROWS, '{"prompt": "1+'], r'rows\.jsonl:13: not valid JSON.*1 bad line, 12 valid rows'),
        (
            [*ROWS[:2], '', '[1]', *ROWS],
            r'rows\.jsonl:4: expected a JSON object of columns, found list',
        ),
        (
            [{'question': '1+1=', 'completion': '#2'}],
            r'rows\.jsonl:1: no column "prompt"; columns found: completion, question',
        ),
        ([{'prompt': '1+1=', 'competion': '#2'}], r'rows\.jsonl:1: .*completion'),
        (
            ['', {'prompt': '1+1=', 'completion': ''}],
            r'rows\.jsonl:2: column "completion" is empty',
        ),
        ([{'prompt': '1+1=', 'completion': None}], r'rows\.jsonl:1: column "completion" is null'),
        ([{'prompt': '1+1=', 'completion': 2}], r'rows\.jsonl:1: .*must both be strings'),
        ([{'prompt': '1+1=', 'completion': '#zwei'}], r'rows\.jsonl:1: '),
        (
            [{'prompt': '1+1=' * 9, 'completion': '#2'}],
            r'rows\.jsonl:1: 39 tokens, but max_length=16; raise max_length to at least 39',
        ),
        ([], r'rows\.jsonl: no rows'),
    ],
)
def test_rows_that_cannot_be_used_are_named(rows, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run(
            from_file(lines(tmp_path / 'rows.jsonl', rows), train__data__overlong='error'),
            tmp_path / 'work',
        )


def test_a_conversation_without_an_answer_is_masked_to_nothing(tmp_path):
    pytest.importorskip('transformers')
    folder = tmp_path / 'tokenizer'
    folder.mkdir()
    write_folder(folder)
    answered = [{'role': 'user', 'content': '1+1='}, {'role': 'assistant', 'content': '2'}]
    path = lines(tmp_path / 'rows.jsonl', ['', {'messages': answered[:1]}])
    with pytest.raises(UserError, match=r'rows\.jsonl:2: .*assistant'):
        run(
            from_file(path, tokenizer__name='huggingface', tokenizer__path=folder),
            tmp_path / 'work',
        )


def test_a_missing_file_offers_its_neighbour(tmp_path):
    lines(tmp_path / 'train.jsonl', ROWS)
    with pytest.raises(
        UserError,
        match=r'source.path: no file, folder or match for .*trian.jsonl. Did you mean "train.jsonl"\?',
    ):
        run(from_file(tmp_path / 'trian.jsonl'), tmp_path / 'work')


def test_dropping_every_row_is_an_error(tmp_path):
    path = lines(tmp_path / 'rows.jsonl', [{'prompt': '1+1=' * 9, 'completion': '#2'}] * 3)
    with pytest.raises(
        UserError, match=r'no example is left: .* dropped as longer than max_length=16'
    ):
        run(from_file(path, train__data__overlong='drop'), tmp_path / 'work')


def test_a_prompt_without_its_column_in_an_online_stage(tmp_path):
    path = lines(tmp_path / 'rows.jsonl', [{'frage': '1+1='}])
    config = quiet(
        'configs/grpo.py',
        stages="('grpo',)",
        grpo__data__source__name='jsonl',
        grpo__data__source__path=path,
        grpo__reward_workers=0,
    )
    with pytest.raises(UserError, match=r'rows\.jsonl:1: no column "prompt"; columns found: frage'):
        run(config, tmp_path / 'work')


def test_a_reward_without_its_column_names_it(tmp_path):
    path = lines(tmp_path / 'rows.jsonl', [{'prompt': row['prompt']} for row in ROWS])
    config = quiet(
        'configs/grpo.py',
        stages="('grpo',)",
        grpo__data__source__name='jsonl',
        grpo__data__source__path=path,
        grpo__reward_workers=0,
    )
    with pytest.raises(UserError, match=r'rewards\.accuracy: .*solution'):
        run(config, tmp_path / 'work')


def test_the_vocabulary_comes_from_the_rows_and_stays_with_the_run(tmp_path):
    """SentencePiece learns from what the stage trains on; a second run in the workdir finds it
    there."""
    words = [
        {'prompt': f'How much is {row["prompt"]}', 'completion': f' It is {row["completion"]}'}
        for row in ROWS * 4
    ]
    config = from_file(
        lines(tmp_path / 'rows.jsonl', words),
        tokenizer__name='sentencepiece',
        tokenizer__vocab_size=290,
        train__data__overlong='drop',
    )
    config.unlock()
    config.train.data.max_length = 48
    run(config, tmp_path / 'work')
    (tmp_path / 'rows.jsonl').unlink()
    of_run, _ = trained(tmp_path / 'work')
    assert (
        of_run.tokenizer.decode(of_run.tokenizer.encode('How much is 1+1=')) == 'How much is 1+1='
    )
