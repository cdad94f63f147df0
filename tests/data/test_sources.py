import contextlib
import os
import pathlib
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tarflow_jax.data.sources import open_dataset
from tarflow_jax.errors import InputError

TRAIN_RECORDS = 'digits-train.array_record-00000-of-00001'

ROOT = pathlib.Path(__file__).parents[2]

OPEN_AND_WAIT = """
import sys
from tarflow_jax.data.sources import open_dataset
open_dataset(*sys.argv[1:])
sys.stdin.read()
"""

READ_PICKLED = """
import pickle, sys
import numpy as np
split = pickle.load(sys.stdin.buffer)
np.save(sys.argv[1], split.__getitems__(range(len(split)))['image'])
"""


def everything(split):
    return split.__getitems__(range(len(split)))


def assert_whole(data_dir, scikit_learn_digits):
    images, labels = scikit_learn_digits
    in_test = np.arange(1797) % 6 == 5
    digits = open_dataset('digits', data_dir)
    for name, rows in ('train', ~in_test), ('test', in_test):
        batch = everything(digits.split(name))
        np.testing.assert_array_equal(batch['image'], images[rows])
        np.testing.assert_array_equal(batch['label'], labels[rows])


def start_preparing(name, data_dir):
    command = [sys.executable, '-c', OPEN_AND_WAIT, name, str(data_dir)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)


def kill_preparing_at(pattern, name, data_dir):
    """Kills a preparation once there are such files; begins anew if it was too quick to be seen."""
    folder = data_dir / name
    for _ in range(20):
        process = start_preparing(name, data_dir)
        while not (seen := any(folder.glob(pattern))) and not (folder / '1.0.0').exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.0005)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        if seen:
            return
        shutil.rmtree(folder)
    raise AssertionError(f'no preparation was seen with {pattern}')


def test_digits_describe_themselves(prepared):
    digits = open_dataset('digits', prepared)
    assert digits.name == 'digits'
    assert digits.image_shape == (8, 8, 1)
    assert digits.num_classes == 10
    assert digits.num_levels == 17
    assert len(digits.split('train')) == 1498
    assert len(digits.split('test')) == 299


def test_digits_are_those_of_scikit_learn_in_order(prepared, scikit_learn_digits):
    assert_whole(prepared, scikit_learn_digits)


@pytest.mark.parametrize('in_memory_bytes', [0, 2**30])
def test_random_access(prepared, in_memory_bytes):
    split = open_dataset('digits', prepared, in_memory_bytes=in_memory_bytes).split('train')
    assert split.in_memory == (in_memory_bytes > 0)
    batch = split.__getitems__(np.array([7, 1497, 7]))
    assert batch['image'].shape == (3, 8, 8, 1)
    assert batch['image'].dtype == np.uint8
    assert batch['label'].shape == (3,)
    assert batch['label'].dtype == np.int32
    np.testing.assert_array_equal(batch['image'][0], batch['image'][2])


def test_memory_and_disk_hold_the_same(prepared):
    from_memory = everything(open_dataset('digits', prepared).split('test'))
    from_disk = everything(open_dataset('digits', prepared, in_memory_bytes=0).split('test'))
    np.testing.assert_array_equal(from_memory['image'], from_disk['image'])
    np.testing.assert_array_equal(from_memory['label'], from_disk['label'])


def test_opening_prepares_nothing_twice_and_is_quick(prepared):
    files = {path: path.stat().st_mtime_ns for path in prepared.rglob('*')}
    start = time.process_time()
    open_dataset('digits', prepared).split('train')
    assert time.process_time() - start < 1.0
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob('*')} == files


def test_preparing_is_quiet_and_tidy(tmp_path, capfd):
    open_dataset('digits', tmp_path)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ''
    assert [path.name for path in tmp_path.iterdir()] == ['digits']
    assert sorted(path.name for path in (tmp_path / 'digits').iterdir()) == [
        '.prepare.lock',
        '1.0.0',
    ]


@pytest.mark.parametrize(
    'moment', ['.prepare.lock', 'incomplete.*/*train*', 'incomplete.*/dataset_info.json']
)
def test_a_killed_preparation_leaves_nothing_believed(tmp_path, moment, scikit_learn_digits):
    kill_preparing_at(moment, 'digits', tmp_path)
    assert_whole(tmp_path, scikit_learn_digits)
    assert not list(tmp_path.rglob('incomplete.*'))


def test_a_killed_preparation_of_a_variant_leaves_nothing_believed(tmp_path):
    kill_preparing_at('incomplete.*/*', 'photos/8', tmp_path)
    assert not (tmp_path / 'photos' / '8' / '1.0.0').exists()
    photos = open_dataset('photos/8', tmp_path)
    assert [len(photos.split(name)) for name in ('train', 'test')] == [8192, 1024]
    assert not list(tmp_path.rglob('incomplete.*'))


def test_processes_that_prepare_at_once(tmp_path, scikit_learn_digits):
    processes = [start_preparing('digits', tmp_path) for _ in range(2)]
    for process in processes:
        out, err = process.communicate('')
        assert (process.returncode, out, err) == (0, '', '')
    assert_whole(tmp_path, scikit_learn_digits)
    assert not list(tmp_path.rglob('incomplete.*'))


@pytest.mark.parametrize('in_memory_bytes', [0, 2**30])
@pytest.mark.parametrize(
    ('file', 'length'),
    [
        (TRAIN_RECORDS, None),
        (TRAIN_RECORDS, 0),
        (TRAIN_RECORDS, 200_000),
        ('dataset_info.json', None),
        ('dataset_info.json', 100),
        ('features.json', None),
        ('features.json', 100),
        ('metadata.json', None),
        ('metadata.json', 5),
    ],
)
def test_a_damaged_folder_is_named(prepared, tmp_path, file, length, in_memory_bytes):
    folder = shutil.copytree(prepared, tmp_path, dirs_exist_ok=True) / 'digits' / '1.0.0'
    if length is None:
        (folder / file).unlink()
    else:
        os.truncate(folder / file, length)
    with pytest.raises(InputError, match='Delete that folder') as error:
        open_dataset('digits', tmp_path, in_memory_bytes=in_memory_bytes).split('train')
    assert str(folder) in str(error.value)


@pytest.mark.parametrize('content', ['null', '[]', '3', '[' * 100_000, '\x00'], ids=lambda x: x[:4])
@pytest.mark.parametrize('file', ['dataset_info.json', 'features.json', 'metadata.json'])
def test_a_file_of_other_json_is_damage(prepared, tmp_path, file, content):
    folder = shutil.copytree(prepared, tmp_path, dirs_exist_ok=True) / 'digits' / '1.0.0'
    (folder / file).write_text(content)
    with pytest.raises(InputError, match='Delete that folder'):
        open_dataset('digits', tmp_path).split('train')


@pytest.mark.parametrize('levels', ['null', '"17"', '0', '1', '257', '1e9', 'true', '[17]'])
def test_levels_that_are_no_number_of_levels(prepared, tmp_path, levels):
    folder = shutil.copytree(prepared, tmp_path, dirs_exist_ok=True) / 'digits' / '1.0.0'
    (folder / 'metadata.json').write_text(f'{{"num_levels": {levels}}}')
    with pytest.raises(InputError, match=r'num_levels=.*, not 2 to 256'):
        open_dataset('digits', tmp_path)


def test_a_flipped_bit_is_noticed(prepared, tmp_path):
    folder = shutil.copytree(prepared, tmp_path, dirs_exist_ok=True) / 'digits' / '1.0.0'
    with open(folder / TRAIN_RECORDS, 'r+b') as file:
        file.seek(70_445)  # inside a record
        byte = file.read(1)[0]
        file.seek(70_445)
        file.write(bytes([byte ^ 16]))
    with pytest.raises(InputError, match='damaged'):
        open_dataset('digits', tmp_path).split('train')


def test_a_deleted_folder_is_prepared_again(prepared, tmp_path, scikit_learn_digits):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / 'digits' / '1.0.0')
    assert_whole(tmp_path, scikit_learn_digits)


@pytest.mark.parametrize('in_memory_bytes', [0, 2**30])
def test_any_prepared_data_set_is_read(tmp_path, prepare_stripes, in_memory_bytes):
    prepare_stripes(tmp_path)
    stripes = open_dataset('stripes', tmp_path, in_memory_bytes=in_memory_bytes)
    assert stripes.image_shape == (4, 6, 3)
    assert stripes.num_classes == 0
    assert stripes.num_levels == 256
    batch = everything(stripes.split('train'))
    np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], np.arange(20))
    np.testing.assert_array_equal(batch['label'], np.full(20, -1))


def test_the_last_of_many_record_files_is_missing(tmp_path, prepare_stripes):
    folder = prepare_stripes(tmp_path)
    (folder / 'stripes-train.array_record-00002-of-00003').unlink()
    with pytest.raises(InputError, match='00002-of-00003'):
        open_dataset('stripes', tmp_path, in_memory_bytes=0).split('train')


@pytest.mark.parametrize('in_memory_bytes', [0, 2**30])
def test_another_process_gets_a_split_by_pickle(prepared, in_memory_bytes):
    split = open_dataset('digits', prepared, in_memory_bytes=in_memory_bytes).split('test[5:50]')
    everything(split)  # with open files
    with tempfile.NamedTemporaryFile(suffix='.npy') as result:
        command = [sys.executable, '-c', READ_PICKLED, result.name]
        subprocess.run(command, input=pickle.dumps(split), cwd=ROOT, check=True)
        np.testing.assert_array_equal(np.load(result.name), everything(split)['image'])


def test_reading_from_disk_is_fast(tmp_path, prepare_somebodys):
    """More than 1,000 images a second of one core; 14,000 were seen on a slow one."""
    features = {'image': tfds.features.Tensor(shape=(64, 64, 3), dtype=np.uint8, encoding='bytes')}
    pixels = np.random.default_rng(0).integers(0, 256, (256, 64, 64, 3), np.uint8)
    prepare_somebodys(tmp_path, 'noise', features, [{'image': image} for image in pixels])
    split = open_dataset('noise', tmp_path, in_memory_bytes=0).split('train')
    start = time.process_time()
    batch = split.__getitems__(np.tile(np.arange(256), 8))
    assert time.process_time() - start < 2048 / 1000
    np.testing.assert_array_equal(batch['image'][:256], pixels)


SLICES = {
    'train': (0, 1498),
    'train[:90%]': (0, 1348),
    'train[90%:]': (1348, 1498),
    'train[1000:1400]': (1000, 1400),
    'train[-100:]': (1398, 1498),
    'train[:0.5%]': (0, 7),
}


@pytest.mark.parametrize('in_memory_bytes', [0, 2**30])
@pytest.mark.parametrize('spec', SLICES)
def test_slices_of_a_split(prepared, scikit_learn_digits, spec, in_memory_bytes):
    images, labels = (part[np.arange(1797) % 6 != 5] for part in scikit_learn_digits)
    split = open_dataset('digits', prepared, in_memory_bytes=in_memory_bytes).split(spec)
    rows = slice(*SLICES[spec])
    assert len(split) == rows.stop - rows.start
    np.testing.assert_array_equal(everything(split)['image'], images[rows])
    np.testing.assert_array_equal(everything(split)['label'], labels[rows])


@pytest.mark.parametrize('in_memory_bytes', [0, 2**30])
def test_a_slice_across_files(tmp_path, prepare_stripes, in_memory_bytes):
    prepare_stripes(tmp_path)
    stripes = open_dataset('stripes', tmp_path, in_memory_bytes=in_memory_bytes)
    batch = everything(stripes.split('train[5:18]+train[:2]'))
    np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], [*range(5, 18), 0, 1])


@pytest.mark.parametrize(
    'spec',
    [
        'validation',
        'train[:2000]',
        'train[5:5]',
        'train[9:2]',
        'train[101%:]',
        'train[3]',
        'train[',
        'train[a:b]',
        'train[::2]',
        'train[:10%]+valid',
        'all[:5]',
        '',
        ' ',
    ],
)
def test_an_unknown_split(prepared, spec):
    with pytest.raises(InputError, match=r'test \(299 examples\), train \(1498 ') as error:
        open_dataset('digits', prepared).split(spec)
    assert f"'digits' has no split '{spec}'" in str(error.value)
    assert "'train[:90%]'" in str(error.value)


def test_an_unknown_name(tmp_path, prepare_stripes):
    prepare_stripes(tmp_path)
    with pytest.raises(InputError, match=r"'digit' .* did you mean 'digits'\?") as error:
        open_dataset('digit', tmp_path)
    assert 'Known data sets: digits, photos/256, photos/64, stripes.' in str(error.value)
    command = f'python -m tarflow_jax.data.prepare digit --data_dir={tmp_path} '
    assert f'{command}for one of TFDS' in str(error.value)
    assert '--folder=DIR --size=N for folders of images' in str(error.value)


def test_a_name_of_the_catalog_that_is_not_prepared(tmp_path):
    command = f'tarflow_jax.data.prepare celeb_a_hq/256 --data_dir={tmp_path}'
    with pytest.raises(InputError, match=command):
        open_dataset('celeb_a_hq/256', tmp_path)


def test_a_half_prepared_folder(tmp_path, prepare_stripes):
    folder = prepare_stripes(tmp_path)
    folder.rename(folder.with_name('0.2.0.half_prepared'))
    with pytest.raises(InputError, match=r'no data set .*tarflow_jax\.data\.prepare stripes'):
        open_dataset('stripes', tmp_path)
    folder.with_name('0.2.0.half_prepared').rename(folder)
    assert len(open_dataset('stripes', tmp_path).split('train')) == 20


@pytest.mark.parametrize('name', ['', '..', '../..', '/', '/etc', '.', '*', 'a/../b', 'a' * 5000])
def test_names_that_are_none(tmp_path, name):
    with pytest.raises(InputError, match='there is no data set'):
        open_dataset(name, tmp_path)


def test_a_variant_that_is_none(tmp_path):
    with pytest.raises(InputError, match='digits has no variants'):
        open_dataset('digits/16', tmp_path)


def test_another_file_format(tmp_path, prepare_stripes):
    info = prepare_stripes(tmp_path) / 'dataset_info.json'
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(InputError, match=r"prepared as tfrecord.*file_format='array_record'"):
        open_dataset('stripes', tmp_path)


@contextlib.contextmanager
def files_end_at(num_bytes):
    """The writes fail as on a full disk. Not a fixture: pytest's own log may be larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize('name', ['digits', 'photos/8'])
def test_a_failing_write_leaves_nothing(tmp_path, name):
    refused = pytest.raises(InputError, match=r'cannot be prepared .*File too large')
    with files_end_at(100 * 1024), refused:
        open_dataset(name, tmp_path)
    assert [path.name for path in (tmp_path / name).iterdir()] == ['.prepare.lock']


@pytest.mark.parametrize('data_dir', ['/proc/data', '/dev/null', '/dev/null/data', 'gs://bucket/x'])
def test_a_data_dir_that_cannot_be_used(data_dir):
    with pytest.raises(InputError, match='data_dir is empty'):
        open_dataset('digits', '')
    with pytest.raises(InputError, match=data_dir):
        open_dataset('digits', data_dir)
