"""Files that a user hands in: one line says what is wrong."""

import json
import os

import pytest

from reasonjax import files
from reasonjax.errors import UserError


def refusal(work, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        work(*arguments)
    message = str(caught.value)
    assert '\n' not in message
    return message


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / 'train.jsonl').touch()
    assert refusal(files.read_bytes, tmp_path / 'trian.jsonl').endswith(
        'trian.jsonl: no such file. Did you mean "train.jsonl"?'
    )
    assert 'no such file' in refusal(files.read_bytes, tmp_path / 'no folder' / 'x')


def test_what_cannot_be_read_says_why(tmp_path):
    assert 'Is a directory' in refusal(files.read_text, tmp_path)
    assert 'Not a directory' in refusal(files.read_text, f'{__file__}/x')
    assert 'File name too long' in refusal(files.read_text, tmp_path / ('x' * 300))
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    assert 'symbolic links' in refusal(files.read_text, tmp_path / 'loop')
    (tmp_path / 'dangling').symlink_to(tmp_path / 'nowhere')
    assert 'no such file' in refusal(files.read_text, tmp_path / 'dangling')
    assert 'not a file name' in refusal(files.read_text, 'a\0b')


def test_text_is_utf8_without_its_mark(tmp_path):
    file = tmp_path / 'x.txt'
    file.write_bytes('\ufeffé\r\n\u2028'.encode())
    assert files.read_text(file) == 'é\r\n\u2028'
    file.write_bytes('fine\nnot fine: \xe9\n'.encode('latin-1'))
    assert 'x.txt: line 2 is not UTF-8' in refusal(files.read_text, file)


@pytest.mark.parametrize(
    'text,expected',
    [
        ('{"a": 1', "x: not valid JSON (Expecting ',' delimiter, column 8)"),
        ('{\n"a" 1}', 'line 2, column 5'),
        ('', 'x: not valid JSON'),
        ('9' * 5000, 'not usable JSON (Exceeds the limit'),
        ('[' * 100_000, 'nested too deeply'),
        (r'{"a": ["\ud800"]}', r'\ud800, a lone surrogate'),
        (r'{"\uDC00x": 1}', r'\udc00'),
    ],
)
def test_json_that_no_program_can_use(text, expected):
    assert expected in refusal(files.parse_json, text, 'x')


def test_json_that_is_fine():
    assert files.parse_json(r'"\ud83d\ude00 \\ud800"', 'x') == '\U0001f600 \\ud800'
    assert files.parse_json('[1e999, -0, "\u2028"]', 'x') == [float('inf'), 0, '\u2028']


def test_a_json_object_is_asked_for(tmp_path):
    file = tmp_path / 'x.json'
    file.write_text('[1]')
    assert 'expected a JSON object, found list' in refusal(files.json_object, file)
    file.write_text(json.dumps({'a': 1}))
    assert files.json_object(file) == {'a': 1}


def test_writing_replaces_in_one_piece(tmp_path):
    file = tmp_path / 'x.json'
    files.write_text(file, 'old')
    files.write_text(file, 'néw\n')
    assert file.read_bytes() == 'néw\n'.encode() and os.listdir(tmp_path) == ['x.json']


def test_writing_touches_nothing_elsewhere(tmp_path):
    """In a folder that a stranger has made, the name that is used until all is written may be a
    link."""
    (tmp_path / 'mine').write_text('mine')
    (tmp_path / 'file.tmp').symlink_to('mine')
    files.write_text(tmp_path / 'file', 'new')
    assert (tmp_path / 'mine').read_text() == 'mine' and (tmp_path / 'file').read_text() == 'new'
    assert not (tmp_path / 'file').is_symlink() and not (tmp_path / 'file.tmp').is_symlink()
    (tmp_path / 'folder').mkdir()
    with pytest.raises(UserError, match=r'folder: cannot be written \(it is a folder\)'):
        files.write_text(tmp_path / 'folder', '')


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    for name in (tmp_path / 'pipe', '/dev/zero'):
        assert 'cannot be read (a pipe or a device, not a file)' in refusal(files.read_bytes, name)


def test_only_what_belongs_to_a_folder_is_copied_from_it(tmp_path):
    """Not what a link in it leads to: an export of a stranger's model would give away the user's
    own files."""
    folder, secret, target = tmp_path / 'model', tmp_path / 'secret', tmp_path / 'copy'
    folder.mkdir()
    secret.write_text('mine')
    (folder / 'NOTICE').write_text('theirs')
    (folder / 'LICENSE').symlink_to('NOTICE')
    (folder / 'more').mkdir()
    files.copy_own(folder, folder / 'LICENSE', target)
    assert target.read_text() == 'theirs'
    for name in ('stolen', 'more/stolen'):
        (folder / name).symlink_to(secret)
        assert f'is a link to {secret}, outside of the folder' in refusal(
            files.copy_own, folder, folder / name, tmp_path / 'gone'
        )
    assert (
        'more/stolen' in refusal(files.copy_own, folder, folder / 'more', tmp_path / 'gone')
        and not (tmp_path / 'gone').exists()
    )
    # A snapshot in the Hub's cache.
    snapshot, blobs = (
        tmp_path / 'models--a--b' / 'snapshots' / '12ab',
        tmp_path / 'models--a--b' / 'blobs',
    )
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / 'ff').write_text('blob')
    (snapshot / 'LICENSE').symlink_to('../../blobs/ff')
    (snapshot / 'stolen').symlink_to(secret)
    files.copy_own(snapshot, snapshot / 'LICENSE', target)
    assert target.read_text() == 'blob'
    assert 'outside of the folder' in refusal(files.copy_own, snapshot, snapshot / 'stolen', target)
