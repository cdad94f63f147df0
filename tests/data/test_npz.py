import io
import os
import pickle
import resource
import tracemalloc
import zipfile

import numpy as np
import pytest

from tarflow_jax.data.sources import open_dataset
from tarflow_jax.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 6, 4, 3), np.uint8)
LABELS = np.arange(30) % 7


@pytest.fixture
def file(tmp_path):
    """Writes an .npz file of some arrays and gives its path, as a name."""

    def write(save=np.savez, **arrays):
        save(tmp_path / 'images.npz', **arrays)
        return str(tmp_path / 'images.npz')

    return write


def opened(name):
    return open_dataset(name, '/nowhere')


def everything(split):
    return split.__getitems__(range(len(split)))


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
@pytest.mark.parametrize('labels', ['arr_1', 'labels', 'label', 'y'])
@pytest.mark.parametrize('images', ['arr_0', 'images', 'image', 'data', 'x'])
def test_images_and_labels_under_the_usual_keys(file, images, labels, save):
    name = file(save, **{images: IMAGES, labels: LABELS, 'mean': np.zeros(3)})
    dataset = opened(name)
    assert dataset.name == name
    assert dataset.image_shape == (6, 4, 3)
    assert dataset.num_classes == 7
    assert dataset.num_levels == 256
    split = dataset.split('train')
    assert split.in_memory
    batch = everything(split)
    np.testing.assert_array_equal(batch['image'], IMAGES)
    np.testing.assert_array_equal(batch['label'], LABELS)
    assert batch['image'].dtype == np.uint8
    assert batch['label'].dtype == np.int32


def test_images_without_labels(file):
    dataset = opened(file(arr_0=IMAGES[..., :1]))
    assert dataset.image_shape == (6, 4, 1)
    assert dataset.num_classes == 0
    np.testing.assert_array_equal(everything(dataset.split('train'))['label'], np.full(30, -1))


@pytest.mark.parametrize(
    ('spec', 'rows'),
    {
        'train[:90%]': range(27),
        'train[90%:]': range(27, 30),
        'train[10:20]': range(10, 20),
        'train[-3:]': range(27, 30),
        'train[:2]+train[28:]': [0, 1, 28, 29],
        'train[:25%]': range(8),  # 7.5, rounded as TFDS rounds
    }.items(),
)
def test_slices(file, spec, rows):
    batch = everything(opened(file(arr_0=IMAGES, arr_1=LABELS)).split(spec))
    np.testing.assert_array_equal(batch['image'], IMAGES[list(rows)])
    np.testing.assert_array_equal(batch['label'], LABELS[list(rows)])


def test_a_slice_is_pickled_without_the_rest(file):
    name = file(arr_0=np.zeros((1000, 32, 32, 3), np.uint8))
    content = pickle.dumps(opened(name).split('train[:10]'))
    assert len(content) < 40_000
    assert len(pickle.loads(content)) == 10


@pytest.mark.parametrize('spec', ['test', 'train[:31]', 'train[40%:30%]'])
def test_an_unknown_split(file, spec):
    with pytest.raises(InputError, match=r'it has train \(30 examples\)') as error:
        opened(file(arr_0=IMAGES)).split(spec)
    assert f"no split '{spec}'" in str(error.value)


def test_labels_from_one_are_told(file, caplog):
    assert opened(file(arr_0=IMAGES, arr_1=LABELS + 1)).num_classes == 8
    assert 'begin at 1' in caplog.text


def test_a_path_from_the_working_directory(file, monkeypatch):
    monkeypatch.chdir(os.path.dirname(file(arr_0=IMAGES)))
    assert len(opened('images.npz').split('train')) == 30


@pytest.mark.parametrize(
    ('arrays', 'words'),
    [
        ({}, r'cannot be used: it has nothing\. Images are uint8 \[N, H, W, C\]'),
        ({'pixels': IMAGES}, r'it has pixels uint8 \[30, 6, 4, 3\]'),
        ({'arr_0': IMAGES, 'x': IMAGES}, r'has arr_0 uint8 .*, x uint8'),
        ({'arr_0': IMAGES, 'y': LABELS, 'label': LABELS}, r'y int64 .*, label int64'),
        ({'arr_0': IMAGES / 255}, r'arr_0 float64 \[30, 6, 4, 3\]'),
        ({'arr_0': IMAGES.astype(np.int64)}, 'arr_0 int64'),
        ({'arr_0': np.zeros((3, 4, 4, 2), np.uint8)}, r'arr_0 uint8 \[3, 4, 4, 2\]'),
        ({'arr_0': IMAGES[0]}, r'uint8 \[6, 4, 3\]'),
        ({'arr_0': IMAGES[:0]}, r'uint8 \[0, 6, 4, 3\]'),
        ({'arr_0': np.uint8(3)}, r'uint8 \[\]'),
        ({'arr_0': IMAGES.transpose(0, 3, 1, 2).repeat(2, 3)}, 'channels last'),
        ({'arr_0': IMAGES[:, :4].reshape(30, 48)}, r'uint8 \[30, 48\]'),
        ({'data': IMAGES.reshape(30, 72)}, r'uint8 \[30, 72\]'),
        ({'arr_0': IMAGES, 'arr_1': LABELS[1:]}, r'arr_1 int64 \[29\]'),
        ({'arr_0': IMAGES, 'arr_1': LABELS + 0.5}, r'arr_1 float64 \[30\]'),
        ({'arr_0': IMAGES, 'arr_1': LABELS.astype(str)}, 'arr_1 <U21'),
        ({'arr_0': IMAGES, 'arr_1': np.eye(7, dtype=int)[LABELS]}, r'arr_1 int64 \[30, 7\]'),
        ({'arr_0': IMAGES, 'arr_1': np.full(30, np.nan)}, r'arr_1 float64 \[30\]'),
        ({'arr_0': IMAGES, 'arr_1': LABELS - 2}, '-2 to 4'),
        ({'arr_0': IMAGES, 'arr_1': LABELS + 2**40}, 'count from 0'),
    ],
)
def test_arrays_that_are_something_else(file, arrays, words):
    with pytest.raises(InputError, match=words):
        opened(file(**arrays))


class Trap:
    def __reduce__(self):
        return os._exit, (3,)


@pytest.mark.parametrize('key', ['arr_0', 'arr_1'])
def test_pickled_objects_are_never_loaded(file, key):
    trap = np.array([Trap()] * 30, object)
    with pytest.raises(InputError, match='objects are never loaded'):
        opened(file(**({'arr_0': IMAGES} | {key: trap})))


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
@pytest.mark.parametrize('place', [0.3, 0.7])
def test_a_damaged_file(file, save, place):
    name = file(save, arr_0=IMAGES, arr_1=LABELS)
    size = os.path.getsize(name)
    with open(name, 'r+b') as content:
        content.seek(int(size * place))
        content.write(b'damage')
    with pytest.raises(InputError, match='damaged or no'):
        opened(name)


@pytest.mark.parametrize('size', [0, 10, 1000, -1])
def test_a_truncated_file(file, size):
    name = file(arr_0=IMAGES, arr_1=LABELS)
    os.truncate(name, size % os.path.getsize(name))
    with pytest.raises(InputError, match='damaged or no'):
        opened(name)


def test_a_file_of_another_kind(tmp_path):
    np.save(tmp_path / 'images.npy', IMAGES)
    (tmp_path / 'images.npy').rename(tmp_path / 'images.npz')
    with pytest.raises(InputError, match='damaged or no'):
        opened(str(tmp_path / 'images.npz'))


@pytest.mark.parametrize('name', ['/nowhere/images.npz', 'gs://bucket/images.npz', '.npz'])
def test_a_file_that_is_not_there(name):
    with pytest.raises(InputError, match=f"'{name}' cannot be opened"):
        opened(name)


def archive_of(path, name, content, num_bytes):
    """An archive whose only part claims so many bytes; those after its content are a hole."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(name, content)
        info = archive.infolist()[0]
        info.file_size = info.compress_size = num_bytes
        archive.start_dir += num_bytes - len(content)


def header_of(shape, version=(1, 0)):
    header = io.BytesIO()
    description = dict(descr='|u1', fortran_order=False, shape=shape)
    write = np.lib.format.write_array_header_1_0
    (write if version == (1, 0) else np.lib.format.write_array_header_2_0)(header, description)
    return header.getvalue()


@pytest.mark.parametrize('name', ['a' * 5000 + '.npz', '~nobody_of_this_name/images.npz'])
def test_a_name_that_no_file_can_have(name):
    with pytest.raises(InputError, match='cannot be opened: '):
        opened(name)


def test_a_file_larger_than_the_memory(tmp_path):
    """The memory of this process is bounded, so that it is too little on any machine."""
    header, num_images = header_of((2**36, 8, 8, 1)), 2**36
    archive_of(tmp_path / 'images.npz', 'arr_0.npy', header, len(header) + num_images * 64)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**41, hard))
    try:
        with pytest.raises(InputError, match='does not fit in memory'):
            opened(str(tmp_path / 'images.npz'))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize(
    'content',
    {
        'more than the file': header_of((10**15, 6, 4, 3)),
        'less than the file': header_of((1, 6, 4, 3)) + bytes(73),
        'a size that overflows': header_of((2**32, 2**32, 2**32, 1)),
        'a size below 0': header_of((-1, -72)) + bytes(72),
        'a header of two gigabytes': b'\x93NUMPY\x02\x00' + b'\xff\xff\xff\x7f' + b' ' * 10**5,
        'brackets in brackets': b'\x93NUMPY\x01\x00' + b'\xff\x7f' + b'(' * 0x7FFF,
    }.items(),
    ids=lambda case: case[0],
)
def test_an_array_that_is_not_what_it_says(tmp_path, content):
    with zipfile.ZipFile(tmp_path / 'images.npz', 'w') as archive:
        archive.writestr('arr_0.npy', content[1])
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match='cannot be read'):
            opened(str(tmp_path / 'images.npz'))
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_an_archive_that_unpacks_to_much_is_refused(tmp_path):
    """It says so itself, and is not believed to be an honest one of two gigabytes of zeros."""
    header = header_of((2**25, 8, 8, 1))
    with zipfile.ZipFile(tmp_path / 'images.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('arr_0.npy', header + bytes(2**20))
        archive.infolist()[0].file_size = len(header) + 2**31
    with pytest.raises(InputError, match=r'would unpack to .* more than 100 times the file'):
        opened(str(tmp_path / 'images.npz'))


@pytest.mark.parametrize('packing', [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_another_packing_is_refused(tmp_path, packing):
    """A few bytes of these unpack to gigabytes; NumPy writes neither."""
    with zipfile.ZipFile(tmp_path / 'images.npz', 'w', packing) as archive:
        archive.writestr('arr_0.npy', header_of((1, 6, 4, 3)) + bytes(72))
    with pytest.raises(InputError, match='packed in another way'):
        opened(str(tmp_path / 'images.npz'))


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'images.npz')
    with pytest.raises(InputError, match='it is not a file, but a FIFO'):
        opened(str(tmp_path / 'images.npz'))
