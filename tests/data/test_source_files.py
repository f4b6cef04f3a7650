"""Files as users have them: packed, in folders of every kind, called anything; and what is said of
those that hold no rows."""

import functools
import gzip
import hashlib
import json
import os
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reasonjax.data import source_files, sources
from reasonjax.errors import UserError


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*rows):
    return ''.join(json.dumps(row) + '\n' for row in rows).encode()


def table(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def read(path, kind='jsonl'):
    source = getattr(sources, kind)(path=str(path))
    return [source[i] for i in range(len(source))]


def refusal(path, kind='jsonl'):
    with pytest.raises(UserError) as caught:
        read(path, kind)
    message = str(caught.value)
    assert '\n' not in message and len(message) < 1000
    return message


# the same bytes in every process that collects tests
pack = functools.partial(gzip.compress, mtime=0)
A, B, C = {'a': 1}, {'a': 2}, {'a': 3}


@pytest.mark.parametrize(
    'name, content',
    [
        ('x.jsonl.gz', pack(lines(A, B))),
        ('x.jsonl', pack(lines(A, B))),
        ('x.jsonl.gz', pack(lines(A)) + pack(lines(B))),  # as `cat a.gz b.gz` makes them
        ('X.JSONL.GZ', pack(b'\xef\xbb\xbf' + lines(A, B))),
        ('x.ndjson', lines(A, B)),
        ('TRAIN.JSONL', lines(A, B)),
        ('x.json', lines(A, B)),
        ('x.json', json.dumps([A, B], indent=2)),
        ('x.json', b'\xef\xbb\xbf ' + json.dumps([A, B]).encode()),
        ('X.JSON.gz', pack(json.dumps([A, B]).encode())),
    ],
)
def test_kinds_of_files(tmp_path, name, content):
    path = write(tmp_path / name, content)
    assert read(path) == [A, B]
    if path.suffix.lower() in ('.jsonl', '.gz', '.ndjson', '.json'):
        assert read(tmp_path) == [A, B]


def test_packed_or_not_the_content_is_the_same(tmp_path):
    plain, packed = (
        write(tmp_path / 'x.jsonl', lines(A, B)),
        write(tmp_path / 'y.jsonl.gz', pack(lines(A, B))),
    )
    assert (
        sources.jsonl(path=str(plain)).fingerprint()
        == sources.jsonl(path=str(packed)).fingerprint()
    )
    assert sources.jsonl(path=str(packed)).where(1) == f'{packed}:2'


def test_fingerprints_of_what_could_be_read_before(tmp_path):
    """A saved position in a stream is good for as long as these stay."""
    first, second = lines(A), b'\xef\xbb\xbf' + lines(B) + b'\n'
    write(tmp_path / 'b.jsonl', second)
    write(tmp_path / 'a.jsonl', first)
    # a folder with *.jsonl files has only these, as ever
    for left in ('d.json', 'd.json.gz', '.f.jsonl'):
        write(tmp_path / left, pack(lines(C)))
    parts = [hashlib.sha256(content).digest() for content in (first, second)]
    both = hashlib.sha256(b''.join(parts)).hexdigest()
    for path in (tmp_path, tmp_path / '*.jsonl', tmp_path / '?.jsonl'):
        assert sources.jsonl(path=str(path)).fingerprint() == both and read(path) == [A, B]
    assert (
        sources.jsonl(path=str(tmp_path / 'a.jsonl')).fingerprint()
        == hashlib.sha256(parts[0]).hexdigest()
    )
    limited = hashlib.sha256(b''.join(parts) + b'limit=1').hexdigest()
    assert sources.jsonl(path=str(tmp_path), limit=1).fingerprint() == limited
    path = table(tmp_path / 'x.parquet', A, B)
    wanted = hashlib.sha256(hashlib.sha256(path.read_bytes()).digest()).hexdigest()
    assert (
        sources.parquet(path=str(path)).fingerprint()
        == sources.parquet(path=str(tmp_path)).fingerprint()
        == wanted
    )


def test_hidden_files_are_no_data(tmp_path):
    write(tmp_path / 'a.jsonl', lines(A))
    # what macOS leaves beside a file on other disks
    write(tmp_path / '._a.jsonl', b'\x00\x05\x16\x07')
    write(tmp_path / '.DS_Store', b'\x00')
    write(tmp_path / '.ipynb_checkpoints' / 'a-checkpoint.jsonl', lines(B))
    for path in (tmp_path, tmp_path / '*.jsonl', tmp_path / '**' / '*.jsonl'):
        assert read(path) == [A]


def test_a_folder_with_several_kinds(tmp_path):
    write(tmp_path / 'a.jsonl', lines(A))
    table(tmp_path / 'b.parquet', B)
    write(tmp_path / 'c.csv', 'a\n3')
    assert read(tmp_path) == [A] and read(tmp_path, 'parquet') == [B]
    assert 'b.parquet is a Parquet file: source.name=parquet reads it' in refusal(
        tmp_path / '[ab]*'
    )


@pytest.mark.parametrize(
    'other', ['b.jsonl.gz', 'b.ndjson', 'b.NDJSON.gz', 'lang=en/b.jsonl', 'lang=en/x=1/b.jsonl.gz']
)
def test_rows_of_another_kind_in_a_folder_are_not_left_out(tmp_path, other):
    write(tmp_path / 'a.jsonl', lines(A))
    write(tmp_path / other, lines(B) if not other.endswith('.gz') else pack(lines(B)))
    assert (
        f'holds a.jsonl and {other}, of which only one kind can be meant: give a glob pattern'
        in refusal(tmp_path)
    )
    assert read(tmp_path / '*.jsonl') == [A]


def test_endings_in_any_case(tmp_path):
    write(tmp_path / 'B.JSONL', lines(B))
    write(tmp_path / 'a.JsonL', lines(A))
    assert read(tmp_path) == [B, A]
    table(tmp_path / 'X.PARQUET', C)
    assert read(tmp_path, 'parquet') == [C]


def test_a_pattern_through_folders(tmp_path):
    write(tmp_path / 'a.jsonl', lines(A))
    write(tmp_path / 'x' / 'b.jsonl', lines(B))
    write(tmp_path / 'x' / 'y' / 'c.jsonl', lines(C))
    assert read(tmp_path / '**' / '*.jsonl') == [A, B, C] and read(
        tmp_path / 'x' / '**' / 'c.jsonl'
    ) == [C]
    assert read(tmp_path) == [A]


# Folders whose names state a column.


def partitioned(folder):
    table(folder / 'lang=en' / 'year=2024' / 'part-0.parquet', A, B)
    table(folder / 'lang=de%2Fat' / 'year=2023' / 'part-0.parquet', C)
    table(folder / f'lang={source_files.NOTHING}' / 'year=7' / 'part-0.parquet', C)
    write(folder / 'lang=en' / '_SUCCESS', '')
    write(folder / '_delta_log' / '0.json', '{}')
    write(folder / 'lang=en' / '.part-0.parquet.crc', b'\x00')
    return folder


def test_what_folders_state_is_a_column(tmp_path):
    folder = partitioned(tmp_path)
    english = {'lang': 'en', 'year': 2024}
    wanted = [
        C | {'lang': None, 'year': 7},
        C | {'lang': 'de/at', 'year': 2023},
        A | english,
        B | english,
    ]
    assert (
        read(folder, 'parquet')
        == read(folder / '**' / '*.parquet', 'parquet')
        == read(folder / 'lang=*' / '*' / '*.parquet', 'parquet')
    )
    assert read(folder, 'parquet') == wanted
    source = sources.parquet(path=str(folder))
    assert source.where(1) == f'{folder}/lang=de%2Fat/year=2023/part-0.parquet:1'
    # Given as a file, it is a file.
    assert read(folder / 'lang=en' / 'year=2024' / 'part-0.parquet', 'parquet') == [A, B]
    (folder / 'lang=en').rename(folder / 'lang=fr')
    assert sources.parquet(path=str(folder)).fingerprint() != source.fingerprint()


def test_the_same_of_json_lines(tmp_path):
    for lang, row in (('en', A), ('07', B)):
        write(tmp_path / f'lang={lang}' / 'part-0.json', lines(row))
    assert read(tmp_path) == [B | {'lang': '07'}, A | {'lang': 'en'}]


def test_a_column_that_two_folders_state(tmp_path):
    table(tmp_path / 'y=1' / 'y=2' / '0.parquet', A)
    assert 'y=1/y=2/0.parquet: its folders state two values of column "y": 1 and 2' in refusal(
        tmp_path, 'parquet'
    )


def test_a_column_that_the_file_has_too(tmp_path):
    table(tmp_path / 'lang=en' / '0.parquet', A | {'lang': 'en'})
    assert read(tmp_path, 'parquet') == [A | {'lang': 'en'}]
    table(tmp_path / 'lang=de' / '0.parquet', A | {'lang': 'en'})
    assert (
        'lang=de/0.parquet:1: column "lang" is \'en\', but its folder is called lang=de'
        in refusal(tmp_path, 'parquet')
    )


# What is refused.


LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n'

PACKED = pack(lines(*[{'a': str(i) * i} for i in range(200)]))


@pytest.mark.parametrize(
    'content',
    [
        PACKED[:-9],
        PACKED[:40],
        b'\x1f',
        PACKED[:50] + bytes(20) + PACKED[70:],
        PACKED + b'more',
        b'plain text',
    ],
)
def test_damaged_packed_files(tmp_path, content):
    assert 'x.jsonl.gz: damaged gzip file (' in refusal(write(tmp_path / 'x.jsonl.gz', content))


def test_what_unpacks_to_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(source_files, 'UNPACKED', (2**20, 100))
    path = write(tmp_path / 'x.jsonl.gz', pack(b' ' * 2**24))
    assert 'x.jsonl.gz: 16,3' in refusal(path) and 'unpack to more than' in refusal(path)


@pytest.mark.parametrize(
    'line, reason',
    [
        ('{"a": ' + '9' * 5000 + '}', 'not usable JSON (Exceeds the limit'),
        ('{"a": ' + '[' * 100_000 + ']' * 100_000 + '}', 'not usable JSON (nested too deeply)'),
        (r'{"a": "\ud800"}', r'holds half a character (\ud800, a lone surrogate)'),
        ('{"a": 1, "a": 2}', 'not usable JSON ("a" is given twice, with other values)'),
        ('{"m": [{"role": "user", "role": "system"}]}', '"role" is given twice'),
    ],
)
@pytest.mark.parametrize('name', ['x.jsonl', 'x.json'])
def test_lines_that_are_no_rows(tmp_path, line, reason, name):
    path = write(tmp_path / name, lines(A) + line.encode() + b'\n' + lines(B, C))
    message = refusal(path)
    assert (
        message.startswith(f'{path}:2: ')
        and reason in message
        and '1 bad line, 3 valid rows in this file' in message
    )


def test_a_value_twice_is_lost_only_where_the_two_differ(tmp_path):
    assert '"b" is given twice, with other values' in refusal(
        write(tmp_path / 'x.jsonl', '{"a": [{"b": 2, "b": 3}]}')
    )
    assert read(write(tmp_path / 'x.jsonl', '{"a": [1, {"b": 2}], "a": [1, {"b": 2}]}')) == [
        {'a': [1, {'b': 2}]}
    ]


@pytest.mark.parametrize(
    'content, reason',
    [
        (
            '[{"a": 1}, 5]',
            'x.json:2: expected a JSON object of columns, found int; 1 bad line, 1 valid row',
        ),
        ('[', 'x.json: not valid JSON'),
        ('[' * 100_000, 'x.json: not usable JSON (nested too deeply)'),
        ('[{"a": 1, "a": 2}]', '"a" is given twice'),
        ('[]', 'no rows'),
        ('{\n  "data": [1]\n}', 'x.json must hold a list of objects, or an object a line'),
        (b'[{"a": "\xe9"}]', 'x.json: line 1 is not UTF-8'),
    ],
)
def test_lists_that_are_no_rows(tmp_path, content, reason):
    assert reason in refusal(write(tmp_path / 'x.json', content))


@pytest.mark.parametrize('content', [b'', b'\n\n', b' \r\n\t\n', b'\xef\xbb\xbf'])
def test_files_without_rows(tmp_path, content):
    path = write(tmp_path / 'x.jsonl.gz', pack(content))
    assert 'no rows (0 valid rows counted)' in refusal(path)
    write(tmp_path / 'y.jsonl.gz', pack(lines(A)))
    assert read(tmp_path) == [A]


@pytest.mark.parametrize(
    'name, content, kind, words',
    [
        (
            'x.csv',
            'prompt,completion\na,b\n',
            'jsonl',
            'x.csv is a table of text; convert it: pandas.read_csv("FILE")',
        ),
        ('x.TSV', 'a\tb\n', 'jsonl', 'sep="\\t"'),
        ('x.xlsx', b'PK\x03\x04', 'jsonl', 'pandas.read_excel'),
        ('x.zip', b'PK\x03\x04', 'jsonl', 'unpack it first'),
        ('x.jsonl.zst', b'\x28\xb5\x2f\xfd', 'jsonl', 'unpack it first'),
        ('x.tar.gz', pack(b'x.jsonl' + bytes(505)), 'jsonl', 'unpack it first'),
        ('x.arrow', b'ARROW1', 'jsonl', 'is an Arrow file'),
        ('x.jsonl', LFS, 'jsonl', 'git lfs pull'),
        ('x.json', LFS, 'jsonl', 'git lfs pull'),
        ('x.parquet', LFS, 'parquet', 'git lfs pull'),
        (
            'x.jsonl',
            b'PAR1' + bytes(20),
            'jsonl',
            'is a Parquet file: source.name=parquet reads it',
        ),
        ('x.parquet', lines(A), 'parquet', 'holds JSON: source.name=jsonl reads it'),
        ('x.csv', 'a,b\n1,2\n', 'parquet', 'is a table of text'),
        ('x.parquet', b'PAR1' + bytes(100) + b'PAR1', 'parquet', 'not a readable Parquet file'),
    ],
)
def test_other_kinds_say_what_to_do(tmp_path, name, content, kind, words):
    message = refusal(write(tmp_path / name, content), kind)
    assert name in message and words in message


def test_a_folder_of_another_kind_says_what_to_do(tmp_path):
    write(tmp_path / 'x.csv', 'a,b\n')
    assert 'holds no *.jsonl files; it holds: x.csv; x.csv is a table of text' in refusal(tmp_path)
    # folders that state no column may be splits: they are not thrown together
    table(tmp_path / 'sub' / 'b.parquet', B)
    assert (
        f'holds no *.parquet files; {tmp_path}/sub does: give the folder that is meant'
        in refusal(tmp_path, 'parquet')
    )


@pytest.mark.parametrize(
    'name', ['dataset_info.json', 'dataset_infos.json', 'dataset_dict.json', 'state.json']
)
def test_what_the_datasets_library_writes_beside_its_data_is_no_row(tmp_path, name):
    write(tmp_path / name, json.dumps({'splits': ['train']}))
    write(tmp_path / 'data-00000-of-00001.arrow', b'ARROW1')
    assert 'data-00000-of-00001.arrow is an Arrow file; convert it' in refusal(tmp_path)
    write(tmp_path / 'train.json', lines(A))
    assert read(tmp_path) == [A]


UNREADABLE = {
    'date value out of range': pa.array([2**63 - 1], pa.timestamp('us')),
    'Mars/Phobos|zoneinfo': pa.array([1], pa.timestamp('us', tz='Mars/Phobos')),
}


@pytest.mark.parametrize('reason', UNREADABLE)
def test_values_that_python_does_not_have(tmp_path, reason):
    column = pa.concat_arrays([pa.array([None], UNREADABLE[reason].type), UNREADABLE[reason]])
    pq.write_table(pa.table({'a': column}), tmp_path / 'x.parquet')
    message = refusal(tmp_path / 'x.parquet', 'parquet')
    assert f'{tmp_path}/x.parquet:2: holds a value that Python cannot' in message and re.search(
        reason, message
    )


def test_a_column_whose_name_is_not_utf8(tmp_path):
    path = table(tmp_path / 'x.parquet', {'qqqq': 1})
    path.write_bytes(path.read_bytes().replace(b'qqqq', b'q\xff\xfeq'))
    assert 'x.parquet: not a readable Parquet file (' in refusal(path, 'parquet')


def test_parquet_of_a_few_bytes_and_billions_of_rows(tmp_path, monkeypatch):
    import types

    path = table(tmp_path / 'x.parquet', A)
    monkeypatch.setattr(pq, 'read_metadata', lambda file: types.SimpleNamespace(num_rows=2**40))
    assert '1,099,511,627,776 rows; nothing of this size is read' in refusal(path, 'parquet')


def test_damaged_parquet(tmp_path):
    """Whatever byte is wrong: a row or one line, never a traceback."""
    rows = [{'prompt': f'p{i}', 'n': i, 'm': [{'role': 'user'}]} for i in range(50)]
    content = bytearray(table(tmp_path / 'x.parquet', *rows).read_bytes())
    for place in range(0, len(content), 29):
        spoilt = content.copy()
        spoilt[place] ^= 0x55
        path = write(tmp_path / 'y.parquet', bytes(spoilt))
        try:
            read(path, 'parquet')
        except UserError as error:
            assert '\n' not in str(error)


@pytest.mark.parametrize('kind', ['jsonl', 'parquet'])
def test_what_is_no_file(tmp_path, kind):
    os.mkfifo(tmp_path / f'pipe.{kind}')
    (tmp_path / f'link.{kind}').symlink_to(tmp_path / 'nowhere')
    for path, words in [
        (tmp_path / f'pipe.{kind}', 'a pipe or a device'),
        ('/dev/zero', 'a pipe or a device'),
        (tmp_path, 'no such file (it is a link'),
        (tmp_path / f'link.{kind}', 'a link to what is not there'),
        (tmp_path / ('x' * 300), 'File name too long'),
        ('a\0b', 'no file'),
        ('~nobody-here/x', 'home directory'),
        (tmp_path / 'none' / '**' / 'x', 'no file, folder or match'),
    ]:
        assert words in refusal(path, kind)


@pytest.mark.parametrize('value', [{1, 2}, object(), {'a': b'x'}, {(1, 2): 3}, {1: 2, 'a': 3}])
def test_rows_in_memory_that_json_cannot_hold(value):
    with pytest.raises(UserError, match='mine:2: holds what JSON cannot'):
        sources.memory(rows=[{'a': 1}, {'a': value}], label='mine')
