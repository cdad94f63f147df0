"""Files are whole or absent."""

import errno
import json
import os
import subprocess
import sys
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from tarflow_jax.files import (
    describe_error,
    json_text,
    open_atomically,
    open_regular,
    remove_own_unfinished,
    remove_unfinished,
    write_atomically,
    write_json,
)


def fail_halfway(file):
    file.write(b'half')
    raise RuntimeError('no more')


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_written_file_has_what_was_written_and_no_company(tmp_path):
    path = tmp_path / 'new' / 'folder' / 'file'
    write_atomically(path, lambda file: file.write(b'whole'))
    assert path.read_bytes() == b'whole'
    assert names_in(path.parent) == ['file']


def test_a_failed_write_leaves_no_trace(tmp_path):
    with pytest.raises(RuntimeError, match='no more'):
        write_atomically(tmp_path / 'file', fail_halfway)
    assert names_in(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / 'file'
    write_atomically(path, lambda file: file.write(b'old'))
    with pytest.raises(RuntimeError, match='no more'):
        write_atomically(path, fail_halfway)
    assert path.read_bytes() == b'old'
    assert names_in(tmp_path) == ['file']


def test_the_old_file_stands_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / 'file'
    write_atomically(path, lambda file: file.write(b'old'))

    def write_and_look(file):
        file.write(b'new')
        file.flush()
        assert path.read_bytes() == b'old'

    write_atomically(path, write_and_look)
    assert path.read_bytes() == b'new'


def test_json_is_read_back(tmp_path):
    value = {'step': 3, 'nested': {'list': [1, 2.5, None, True]}, 'text': 'é'}
    write_json(tmp_path / 'value.json', value)
    assert json.loads((tmp_path / 'value.json').read_text()) == value


def test_a_value_that_json_cannot_say_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / 'value.json', {'what': object()})
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        (float('nan'), None),
        ([float('inf'), -float('inf'), 1.0], [None, None, 1.0]),
        (np.float32('nan'), None),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.array([1.0, np.inf]), [1.0, None]),
        (jnp.float32(0.25), 0.25),
        (jnp.bfloat16(0.25), 0.25),
        ((1, 2), [1, 2]),
    ],
)
def test_numbers_become_json_that_any_parser_reads(value, expected):
    def refuse(constant):
        raise AssertionError(f'{constant} is not JSON')

    assert json.loads(json_text({'x': value}), parse_constant=refuse) == {'x': expected}


def test_what_a_killed_process_had_begun_is_removed_and_what_another_writes_is_not(tmp_path):
    write = (
        'import sys\nfrom tarflow_jax.files import open_atomically\n'
        "with open_atomically(sys.argv[1]): print('open', flush=True); sys.stdin.read()"
    )
    path = tmp_path / 'samples' / 'file'
    with subprocess.Popen(
        [sys.executable, '-c', write, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        writer.stdout.readline()
        remove_unfinished(tmp_path)
        assert len(names_in(path.parent)) == 1
        writer.kill()
        writer.wait()
        assert len(names_in(path.parent)) == 1
        remove_unfinished(tmp_path)
    assert names_in(path.parent) == []


def test_a_process_that_ends_outright_removes_what_it_had_begun(tmp_path):
    with open_atomically(tmp_path / 'file'):
        remove_own_unfinished()
        assert names_in(tmp_path) == []
        (tmp_path / f'.file.{os.getpid()}.unfinished').touch()


def test_a_read_allocates_no_more_than_there_is(tmp_path):
    """A length in a damaged header of an image is read as it stands there."""
    (tmp_path / 'file').write_bytes(bytes(100))
    tracemalloc.start()
    try:
        with open_regular(tmp_path / 'file') as file:
            assert [len(file.read(size)) for size in (60, 2**27, 2**62)] == [60, 40, 0]
            file.seek(0)
            assert len(file.read()) == 100
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (OSError(errno.ENOSPC, 'No space left'), 'is the disk full?'),
        (OSError(errno.EROFS, 'Read-only file system'), 'it is mounted to be read only'),
        (OSError(errno.EMFILE, 'Too many open files'), 'mount that with --rename-dir-limit=200000'),
        (
            NotADirectoryError(errno.ENOTDIR, 'Not a directory'),
            'another file or folder is in the way',
        ),
        (ValueError("INTERNAL: writing [os_error_code='28']\nmore"), 'is the disk full?'),
        (ValueError("INTERNAL: writing [os_error_code='30']"), 'it is mounted to be read only'),
    ],
    ids=str,
)
def test_only_a_full_disk_is_called_full(error, words):
    reason = describe_error(error)
    assert words in reason
    assert ('disk full' in reason) == ('disk full' in words)
    assert '\n' not in reason


def test_a_failure_of_another_kind_has_no_advice_of_a_disk():
    assert describe_error(RuntimeError('step 4\nexists')) == 'RuntimeError: step 4'
    assert describe_error(PermissionError(errno.EACCES, 'No')) == 'No'


def test_a_full_disk_is_named(tmp_path):
    def fill(_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/file'"):
        write_atomically(tmp_path / 'file', fill)
