"""Sources: what is read, where it came from, and every way a file can be wrong."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reasonjax.data import sources
from reasonjax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


def write(path, *lines):
    path.write_bytes(
        b'\n'.join(line if isinstance(line, bytes) else line.encode() for line in lines)
    )
    return str(path)


def test_jsonl_rows_places_and_length(tmp_path):
    path = write(
        tmp_path / 'train.jsonl',
        '{"a": 1}',
        '',
        '{"a": "é中", "b": [1, {"c": null}]}',
        '{"a": 3}',
        '',
    )
    source = sources.jsonl(path=path)
    assert len(source) == 3
    assert [source[i] for i in range(3)] == [
        {'a': 1},
        {'a': 'é中', 'b': [1, {'c': None}]},
        {'a': 3},
    ]
    assert [source.where(i) for i in range(3)] == [f'{path}:1', f'{path}:3', f'{path}:4']


def test_jsonl_accepts_a_byte_order_mark_and_windows_line_ends(tmp_path):
    path = tmp_path / 'x.jsonl'
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')
    assert [row['a'] for row in map(sources.jsonl(path=str(path)).__getitem__, range(2))] == [1, 2]


def test_reading_a_row_does_not_expose_the_source_to_changes(tmp_path):
    source = sources.jsonl(path=write(tmp_path / 'x.jsonl', '{"a": 1}'))
    source[0]['a'] = 2
    assert source[0] == {'a': 1}


def test_limit_keeps_the_first_rows(tmp_path):
    path = write(tmp_path / 'x.jsonl', *(json.dumps({'a': i}) for i in range(5)))
    source = sources.jsonl(path=path, limit=2)
    assert [source[i]['a'] for i in range(len(source))] == [0, 1]
    assert len(sources.jsonl(path=path, limit=9)) == 5
    with pytest.raises(UserError, match='source.limit.*got 0'):
        sources.jsonl(path=path, limit=0)


def test_folder_and_glob_read_matching_files_in_sorted_order(tmp_path):
    write(tmp_path / 'b.jsonl', '{"a": 2}')
    write(tmp_path / 'a.jsonl', '{"a": 0}', '{"a": 1}')
    write(tmp_path / 'notes.txt', 'not data')
    for path in (tmp_path, tmp_path / '*.jsonl'):
        source = sources.jsonl(path=str(path))
        assert [source[i]['a'] for i in range(len(source))] == [0, 1, 2]
        assert source.where(2) == f'{tmp_path / "b.jsonl"}:1'


def test_repr_is_the_same_in_every_process_and_fingerprint_follows_content(tmp_path):
    path = write(tmp_path / 'x.jsonl', '{"a": 1}', '{"a": 2}')
    source = sources.jsonl(path=path)
    assert '0x' not in repr(source) and repr(source) == repr(sources.jsonl(path=path))
    moved = write(tmp_path / 'y.jsonl', '{"a": 1}', '{"a": 2}')
    other = write(tmp_path / 'z.jsonl', '{"a": 1}', '{"a": 3}')
    assert sources.jsonl(path=moved).fingerprint() == source.fingerprint()
    assert sources.jsonl(path=other).fingerprint() != source.fingerprint()
    assert sources.jsonl(path=path, limit=1).fingerprint() != source.fingerprint()


@pytest.mark.parametrize(
    ('line', 'reason'),
    [
        ('{"a": 1', 'not valid JSON'),
        ('[1, 2]', 'expected a JSON object of columns, found list'),
        ('"text"', 'expected a JSON object of columns, found str'),
        (b'{"a": "\xff"}', 'not UTF-8'),
    ],
)
def test_a_bad_line_is_named_and_valid_rows_are_counted(tmp_path, line, reason):
    path = write(tmp_path / 'train.jsonl', '{"a": 1}', '{"a": 2}', line, '{"a": 3}', '{oops')
    with pytest.raises(UserError) as error:
        sources.jsonl(path=path)
    assert f'{path}:3: {reason}' in str(error.value)
    assert '2 bad lines, 3 valid rows' in str(error.value)


def test_missing_file_offers_the_nearest_name(tmp_path):
    write(tmp_path / 'train.jsonl', '{"a": 1}')
    with pytest.raises(UserError, match=r'source.path: .*trian.jsonl.*Did you mean "train.jsonl"'):
        sources.jsonl(path=str(tmp_path / 'trian.jsonl'))


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(UserError, match='no rows'):
        sources.jsonl(path=write(tmp_path / 'empty.jsonl', '', ''))
    (tmp_path / 'folder').mkdir()
    write(tmp_path / 'folder' / 'data.csv', 'a,b')
    with pytest.raises(UserError, match=r'source\.path: .*data\.csv'):
        sources.jsonl(path=str(tmp_path / 'folder'))
    with pytest.raises(UserError, match='source.path is empty'):
        sources.jsonl(path='')
    with pytest.raises(UserError, match='memory: no rows'):
        sources.memory(rows=[])


def test_parquet_rows_places_limit_and_fingerprint(tmp_path):
    rows = [{'prompt': f'p{i}', 'numbers': [i, i + 1]} for i in range(4)]
    path = str(tmp_path / 'x.parquet')
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    source = sources.parquet(path=path)
    assert [source[i] for i in range(len(source))] == rows
    assert source.where(2) == f'{path}:3'
    assert len(sources.parquet(path=path, limit=3)) == 3
    assert sources.parquet(path=path, limit=3).fingerprint() != source.fingerprint()


def test_parquet_leaves_out_what_a_message_does_not_have(tmp_path):
    calls = [
        {'function': {'name': 'add', 'arguments': {'a': 1}}},
        {'function': {'name': 'sub', 'arguments': {'b': 2}}},
    ]
    rows = [
        {
            'messages': [
                {'role': 'user', 'content': 'x'},
                {'role': 'assistant', 'tool_calls': calls},
            ],
            'tools': None,
        },
        {'messages': [{'role': 'user', 'content': 'y'}], 'tools': [{'name': 'add'}]},
    ]
    path = str(tmp_path / 'x.parquet')
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert pq.read_table(path).to_pylist() != rows  # the table itself has every key everywhere
    source = sources.parquet(path=path)
    assert [source[0], source[1]] == rows


def test_parquet_errors(tmp_path):
    with pytest.raises(UserError, match='x.parquet: not a readable Parquet file'):
        sources.parquet(path=write(tmp_path / 'x.parquet', 'no'))
    empty = str(tmp_path / 'empty.parquet')
    pq.write_table(pa.table({'a': pa.array([], pa.int64())}), empty)
    with pytest.raises(UserError, match='no rows'):
        sources.parquet(path=empty)


def test_memory_names_rows_and_rejects_what_is_no_row():
    source = sources.memory(rows=[{'a': 1}, {'a': 2}], label='demos')
    assert source[1] == {'a': 2} and source.where(1) == 'demos:2'
    assert source.fingerprint() == sources.memory(rows=[{'a': 1}, {'a': 2}]).fingerprint()
    assert source.fingerprint() != sources.memory(rows=[{'a': 1}, {'a': 3}]).fingerprint()
    with pytest.raises(UserError, match='demos:2: expected a mapping'):
        sources.memory(rows=[{'a': 1}, 'b'], label='demos')


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """A prepared data set, made without TensorFlow and without a download."""
    tfds = pytest.importorskip('tensorflow_datasets')

    class TinySums(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            features = {
                'question': tfds.features.Text(),
                'steps': tfds.features.Sequence(tfds.features.Text()),
            }
            features['level'] = np.int32
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {'train': self._generate_examples()}

        def _generate_examples(self):
            for i in range(6):
                yield i, {'question': f'{i} é', 'steps': ['a', str(i)], 'level': i}

    folder = tmp_path_factory.mktemp('tfds')
    TinySums(data_dir=folder, file_format='array_record').download_and_prepare()
    return str(folder)


def test_tfds_reads_at_random_without_tensorflow(prepared):
    script = f"""
import sys
from reasonjax.data import sources
source = sources.tfds(dataset='tiny_sums', data_dir={prepared!r})
rows = sorted((source[i] for i in range(len(source))), key=lambda row: row['level'])
assert rows[2] == {{'question': '2 é', 'steps': ['a', '2'], 'level': 2}}, rows[2]
assert type(rows[2]['level']) is int and len(source) == 6
assert source[3] == source[3] and source.where(0) == repr(source)[7:].partition(',')[0] + ':1', source.where(0)
part = sources.tfds(dataset='tiny_sums', split='train[:50%]', data_dir={prepared!r})
assert len(part) == 3 and part.fingerprint() != source.fingerprint()
assert '0x' not in repr(source)
assert 'tensorflow' not in sys.modules
"""
    result = subprocess.run(
        [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_tfds_errors(prepared):
    with pytest.raises(
        UserError, match='source.split.*no split \'tran\'.*splits: train.*Did you mean "train"'
    ):
        sources.tfds(dataset='tiny_sums', split='tran', data_dir=prepared)
    with pytest.raises(UserError, match="source.dataset: no TFDS data set 'no_such_set'"):
        sources.tfds(dataset='no_such_set', data_dir=prepared)
