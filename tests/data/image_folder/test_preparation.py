import contextlib
import errno
import io
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import PIL
import pytest
import tensorflow_datasets as tfds
from image_trees import CLASSES, KINDS, SIZE, as_pillow_sees, damage, fill, in_order, write_image

from tarflow_jax.data.image_folder import preparation, records
from tarflow_jax.data.image_folder.preparation import prepare_image_folder
from tarflow_jax.data.sources import open_dataset
from tarflow_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[3]
NUM_TRAIN, NUM_VALIDATION = 1800, 200
NUM_RECORD_FILES = 9  # 8 of training, with at most 256 images


@pytest.fixture(scope='session')
def tree(tmp_path_factory):
    """2,000 whole images in two splits and two that are none; not to be written to."""
    root = tmp_path_factory.mktemp('tree')
    fill(root / 'train', NUM_TRAIN)
    fill(root / 'val', NUM_VALIDATION, seed=1)
    (root / 'train' / 'cat' / 'notes.txt').write_text('of another kind')
    damage(root / 'train')
    return root


@pytest.fixture(scope='session')
def prepared(tree, tmp_path_factory):
    """The tree prepared without an interruption, and what was said; not to be written to."""
    data_dir = tmp_path_factory.mktemp('prepared')
    with contextlib.redirect_stdout(io.StringIO()) as said:
        folder = prepare_image_folder('animals', tree, data_dir, size=SIZE)
    return folder, said.getvalue().splitlines()


@pytest.fixture
def small_tree(tmp_path):
    fill(tmp_path / 'images', 40)
    return tmp_path / 'images'


def prepare(folder, data_dir, **options):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        prepare_image_folder('animals', folder, data_dir, size=SIZE, **options)
    return said.getvalue()


def everything(folder, split):
    data = open_dataset('animals', folder.parents[1]).split(split)
    return data.__getitems__(range(len(data)))


def record_files(folder):
    return {path.name: path.read_bytes() for path in folder.glob('*.array_record-*')}


def test_counts_shapes_and_classes(prepared):
    folder, _ = prepared
    assert folder.parts[-2:] == ('animals', '1.0.0')
    animals = open_dataset('animals', folder.parents[1])
    assert animals.image_shape == (SIZE, SIZE, 3)
    assert animals.num_classes == len(CLASSES)
    assert animals.num_levels == 256
    assert len(animals.split('train')) == NUM_TRAIN
    assert len(animals.split('validation')) == NUM_VALIDATION
    info = tfds.builder_from_directory(folder).info
    assert info.features['label'].names == list(CLASSES)
    assert len(record_files(folder)) == NUM_RECORD_FILES
    assert info.dataset_size == sum(map(len, record_files(folder).values()))


@pytest.mark.parametrize(('split', 'name'), [('train', 'train'), ('validation', 'val')])
def test_every_label_is_its_folder(tree, prepared, split, name):
    paths = in_order(tree / name, left_out=['cat/jpeg_cut.jpg', 'dog/text.jpg'])
    labels = [CLASSES.index(path.parent.name) for path in paths]
    np.testing.assert_array_equal(everything(prepared[0], split)['label'], labels)


@pytest.mark.parametrize('kind', KINDS)
def test_records_are_what_pillow_gives(tree, prepared, kind):
    paths = in_order(tree / 'train', left_out=['cat/jpeg_cut.jpg', 'dog/text.jpg'])
    rows = [i for i, path in enumerate(paths) if path.name.startswith(kind)]
    assert len(rows) == NUM_TRAIN / len(KINDS)
    split = open_dataset('animals', prepared[0].parents[1]).split('train')
    for row in rows[:3] + rows[-3:]:
        np.testing.assert_array_equal(
            split.__getitems__([row])['image'][0], as_pillow_sees(paths[row])
        )


def test_what_is_no_image_is_named_and_what_is_of_another_kind_counted(prepared):
    folder, said = prepared
    lines = (folder / 'unreadable.txt').read_text().splitlines()
    assert lines[0].startswith('train/cat/jpeg_cut.jpg: image file is truncated')
    assert lines[1:] == ['train/dog/text.jpg: no image']
    assert 'Ignored, by extension: 1 .txt.' in said
    assert any('Left out 2 files' in line and 'train/dog/text.jpg' in line for line in said)


def test_what_a_person_may_not_expect_is_said(prepared, tmp_path, capsys):
    _, said = prepared
    transparent = (NUM_TRAIN + NUM_VALIDATION) // len(KINDS)  # of kind rgba
    line = f'Composited onto white where transparent: {transparent} images with an alpha channel.'
    assert line in said
    for name, count in ('cat', 4), ('dog', 1):
        for i in range(count):
            write_image(tmp_path / 'images' / name / f'png_{i}.png', 'png')
    prepare_image_folder('pets', tmp_path / 'images', tmp_path / 'data', size=8)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == 'Images of a class: 1 (dog) to 4 (cat).'
    assert lines[2].startswith('There is no folder val or test: all images are the split train')
    assert not [line for line in said if line.startswith(('Images of a class', 'There is no'))]


def test_nothing_else_is_left(prepared):
    folder, _ = prepared
    assert {path.name for path in folder.parent.iterdir()} == {'1.0.0', '.prepare.lock'}
    names = {path.name for path in folder.iterdir() if 'array_record' not in path.name}
    json_files = {'dataset_info.json', 'features.json', 'metadata.json'}
    assert names == {*json_files, 'label.labels.txt', 'unreadable.txt'}


def start_preparing(folder, data_dir, workers):
    command = [sys.executable, '-m', 'tarflow_jax.data.prepare', 'animals', f'--folder={folder}']
    command += [f'--size={SIZE}', f'--data_dir={data_dir}', f'--workers={workers}']
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def kill_preparing_halfway(folder, data_dir):
    """Kills all its processes once some record files stand; anew if it was too quick to be seen."""
    reports = 'animals/*.half_prepared/reports/*.json'
    for _ in range(10):
        process = start_preparing(folder, data_dir, workers=2)
        while not list(data_dir.glob(reports)) and not (data_dir / 'animals' / '1.0.0').exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.0005)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        finished = list(data_dir.glob(reports))
        if 0 < len(finished) < NUM_RECORD_FILES:
            return {
                path.stem: (path.parents[1] / 'records' / path.stem).stat() for path in finished
            }
        shutil.rmtree(data_dir / 'animals')
    raise AssertionError('no preparation was seen halfway')


def test_a_killed_preparation_goes_on(tree, prepared, tmp_path):
    finished = kill_preparing_halfway(tree, tmp_path)
    said = prepare(tree, tmp_path)
    assert f'Resuming: {len(finished)} of {NUM_RECORD_FILES} record files are written.' in said
    folder = tmp_path / 'animals' / '1.0.0'
    assert record_files(folder) == record_files(prepared[0])
    for name, status in finished.items():
        now = (folder / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    test_nothing_else_is_left((folder, None))
    assert (folder / 'unreadable.txt').read_text() == (prepared[0] / 'unreadable.txt').read_text()


def test_a_record_file_that_was_cut_is_written_again(tree, prepared, tmp_path):
    stop_halfway(tree, tmp_path)
    records = sorted(tmp_path.glob('animals/*.half_prepared/records/*'))
    os.truncate(records[0], 1000)
    said = prepare(tree, tmp_path)
    assert f'Resuming: {len(records) - 1} of {NUM_RECORD_FILES}' in said
    assert record_files(tmp_path / 'animals' / '1.0.0') == record_files(prepared[0])


def stop_halfway(folder, data_dir, at=3):
    """Interrupts a preparation in this process after some record files."""

    def write_or_stop(task):
        report = records.write_records(task)
        if len(list(data_dir.glob('animals/*/reports/*'))) == at:
            raise KeyboardInterrupt
        return report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, 'write_records', write_or_stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(folder, data_dir)


@pytest.mark.parametrize('change', ['file', 'option'])
def test_another_preparation_begins_anew(small_tree, tmp_path, change):
    stop_halfway(small_tree, tmp_path, at=1)
    if change == 'file':
        write_image(small_tree / 'dog' / 'png_new.png', 'png')
    said = prepare(small_tree, tmp_path, upscale=change == 'option')
    assert 'changed since the interruption: it starts again.' in said
    num_images = 41 if change == 'file' else 40
    assert len(everything(tmp_path / 'animals' / '1.0.0', 'train')['label']) == num_images


OTHER_JSON = ['null', '[1]', '{}', '\xff']


@pytest.mark.parametrize('content', OTHER_JSON, ids=lambda content: content[:12])
def test_a_report_that_cannot_be_read_is_made_again(small_tree, tmp_path, content):
    stop_halfway(small_tree, tmp_path, at=1)
    for path in tmp_path.glob('animals/*.half_prepared/reports/*.json'):
        path.write_text(content, encoding='latin-1')
    prepare(small_tree, tmp_path)
    assert len(everything(tmp_path / 'animals' / '1.0.0', 'train')['label']) == 40


def test_a_full_disk_loses_nothing(tree, prepared, tmp_path):
    stop_halfway(tree, tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(InputError, match=r'File too large.*same command resumes'):
            prepare(tree, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.rglob('*.unfinished'))
    assert 'Resuming: 3 of' in prepare(tree, tmp_path)
    assert record_files(tmp_path / 'animals' / '1.0.0') == record_files(prepared[0])


def test_a_disk_that_is_too_small_is_seen_before(small_tree, tmp_path):
    with pytest.raises(InputError, match=r'need .* TB, .* has room for .*--data_dir'):
        prepare_image_folder('big', small_tree, tmp_path, size=10**7, upscale=True)
    assert not list(tmp_path.rglob('*.array_record*'))


def test_images_that_are_too_small(small_tree, tmp_path):
    write_image(small_tree / 'cat' / 'png_a.png', 'png', sides=(SIZE - 1, 90))
    write_image(small_tree / 'dog' / 'png_b.png', 'png', sides=(90, SIZE - 4))
    message = r"2 of 42 images .* smallest is 'dog/png_b.png' with 20\. Choose --size=20.*--upscale"
    with pytest.raises(InputError, match=message):
        prepare(small_tree, tmp_path)
    assert not (tmp_path / 'animals').exists()
    prepare(small_tree, tmp_path, upscale=True)
    row = in_order(small_tree).index(small_tree / 'dog' / 'png_b.png')
    images = everything(tmp_path / 'animals' / '1.0.0', 'train')['image']
    np.testing.assert_array_equal(images[row], as_pillow_sees(small_tree / 'dog' / 'png_b.png'))


def test_what_is_no_file_is_not_waited_for(small_tree, tmp_path):
    """A FIFO would keep its reader waiting for good, and a device would never end."""
    os.mkfifo(small_tree / 'cat' / 'fifo.png')
    (small_tree / 'cat' / 'zeros.png').symlink_to('/dev/zero')
    (small_tree / 'dog' / 'circle.png').symlink_to('circle.png')
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(small_tree / 'dog' / 'socket.png'))
        prepare(small_tree, tmp_path)
    lines = (tmp_path / 'animals' / '1.0.0' / 'unreadable.txt').read_text().splitlines()
    no_file = 'it is not a file, but a FIFO, a socket, a device or a folder'
    assert [line for line in lines if line.endswith(no_file)] == [
        f'{name}: {no_file}' for name in ('cat/fifo.png', 'cat/zeros.png', 'dog/socket.png')
    ]
    assert any(line.startswith('dog/circle.png: ') for line in lines)
    assert len(everything(tmp_path / 'animals' / '1.0.0', 'train')['label']) == 40


@pytest.mark.parametrize('only', ['cat/jpeg_cut.jpg', 'dog/text.jpg'])  # in pixels, in the header
def test_a_split_of_which_nothing_can_be_read(small_tree, tmp_path, only):
    for name in CLASSES:
        shutil.move(small_tree / name, small_tree / 'train' / name)
        (small_tree / 'val' / name).mkdir(parents=True)
    for name in damage(small_tree / 'val'):
        if name != only:
            (small_tree / 'val' / name).unlink()
    with pytest.raises(InputError, match=rf"no file of the validation split.*'val/{only}'"):
        prepare(small_tree, tmp_path)
    (small_tree / 'val' / only).unlink()
    prepare(small_tree, tmp_path)
    assert len(everything(tmp_path / 'animals' / '1.0.0', 'train')['label']) == 40


@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (PIL.UnidentifiedImageError('cannot identify image file'), 'no image'),
        (OSError('image file is truncated (3 bytes not processed)'), 'image file is truncated'),
        (ValueError('first line\nsecond'), 'first line'),
        (ValueError(), 'ValueError'),
    ],
)
def test_what_pillow_says_is_told_in_a_line(error, reason):
    told = records._reason(error)
    assert told.startswith(reason)
    assert '\n' not in told


@pytest.mark.parametrize('number', [errno.EIO, errno.EACCES, errno.EMFILE])
def test_an_error_of_the_disk_is_no_bad_image(number):
    with pytest.raises(OSError, match='disk'):
        records._reason(OSError(number, 'of the disk'))


def test_a_data_set_that_stands_there_is_kept(small_tree, tmp_path):
    prepare(small_tree, tmp_path)
    before = record_files(tmp_path / 'animals' / '1.0.0')
    with pytest.raises(InputError, match=r"is already prepared in '.*/animals/1.0.0'. Delete"):
        prepare(small_tree, tmp_path)
    assert record_files(tmp_path / 'animals' / '1.0.0') == before


def test_one_process_at_a_time(small_tree, tmp_path, monkeypatch):
    def write_while_another_begins(task):
        with pytest.raises(InputError, match="another process is preparing 'animals'"):
            prepare(small_tree, tmp_path)
        return records.write_records(task)

    monkeypatch.setattr(preparation, 'write_records', write_while_another_begins)
    prepare(small_tree, tmp_path)


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('digits', {}, "'digits' is the name of a data set of this package"),
        ('photos', {}, "'photos' is the name of a data set of this package"),
        ('mnist', {}, "'mnist' is the name of a data set of TFDS's catalog"),
        ('Animals', {}, "'Animals' cannot be the name .* lower-case"),
        ('a/b', {}, 'cannot be the name'),
        ('my-animals', {}, 'cannot be the name'),
        ('', {}, 'cannot be the name'),
        ('animals', dict(size=0), '--size must be at least 1; got 0'),
        ('animals', dict(workers=0), '--workers must be at least 1; got 0'),
        ('animals', dict(data_dir='gs://bucket/data'), 'gs://bucket/data'),
        ('animals', dict(data_dir='/proc/data'), "cannot be prepared in data_dir '/proc/data'"),
        ('animals', dict(folder='/nowhere'), "there is no folder '/nowhere'"),
    ],
)
def test_bad_input_leaves_nothing(small_tree, tmp_path, name, options, message):
    arguments = dict(folder=small_tree, data_dir=tmp_path / 'data', size=SIZE) | options
    with pytest.raises(InputError, match=message):
        prepare_image_folder(name, **arguments)
    assert not (tmp_path / 'data').exists()
