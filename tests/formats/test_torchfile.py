"""Files as `torch.save` writes them are made here byte by byte: PyTorch is not installed.

What is written here comes back, and holds nothing but what `torch.load` takes for tensors.
"""

import copy
import hashlib
import os
import pathlib
import pickle
import pickletools
import resource
import socket
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tarflow_jax.errors import InputError
from tarflow_jax.formats.torchfile import read_state_dict, write_state_dict

STORAGES = {
    np.dtype(np.float64): 'DoubleStorage',
    np.dtype(np.float32): 'FloatStorage',
    np.dtype(np.float16): 'HalfStorage',
    np.dtype(ml_dtypes.bfloat16): 'BFloat16Storage',
    np.dtype(np.int64): 'LongStorage',
    np.dtype(np.uint8): 'ByteStorage',
    np.dtype(np.bool_): 'BoolStorage',
}

# Pickle protocol 2, as much of it as a state dict needs.


def text(value):
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def integer(value):
    return b'J' + struct.pack('<i', value)


def sequence(*items):
    return b'(' + b''.join(items) + b't'


def name_of(module, name):
    return f'c{module}\n{name}\n'.encode()


def dictionary(**items):
    return b'}(' + b''.join(text(key) + value for key, value in items.items()) + b'u'


def stored(storage, key, length):
    """The persistent id that stands for a storage."""
    device = text('cpu')
    return (
        sequence(text('storage'), name_of('torch', storage), text(key), device, integer(length))
        + b'Q'
    )


def tensor(storage, key, length, shape, strides, offset=0):
    arguments = sequence(
        stored(storage, key, length),
        integer(offset),
        sequence(*map(integer, shape)),
        sequence(*map(integer, strides)),
        b'\x89',  # requires_grad: False
        b'}',  # no hooks
    )
    return name_of('torch._utils', '_rebuild_tensor_v2') + arguments + b'R'


@pytest.fixture
def write(tmp_path):
    """Writes an archive with a pickled value and storages; returns its path."""

    def write(value: bytes, stop=b'.', **storages):
        path = tmp_path / 'model.pth'
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('model/data.pkl', b'\x80\x02' + value + stop)
            for key, array in storages.items():
                archive.writestr(f'model/data/{key}', np.asarray(array).tobytes())
        return path

    return write


@pytest.mark.parametrize('dtype', STORAGES, ids=str)
def test_tensors_of_every_type_are_read(write, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    value = dictionary(weight=tensor(STORAGES[dtype], '0', 6, (2, 3), (3, 1)))
    tensors = read_state_dict(write(value, **{'0': array}))
    assert list(tensors) == ['weight']
    assert tensors['weight'].dtype == dtype
    np.testing.assert_array_equal(tensors['weight'], array)


def test_views_share_a_storage(write):
    storage = np.arange(12, dtype=np.float32)
    value = dictionary(
        transposed=tensor('FloatStorage', '0', 12, (4, 3), (1, 4)),
        tail=tensor('FloatStorage', '0', 12, (2,), (1,), offset=10),
        repeated=tensor('FloatStorage', '0', 12, (3, 2), (0, 1)),
        scalar=tensor('FloatStorage', '0', 12, (), (), offset=5),
        empty=tensor('FloatStorage', '0', 12, (0, 3), (3, 1)),
    )
    tensors = read_state_dict(write(value, **{'0': storage}))
    np.testing.assert_array_equal(tensors['transposed'], storage.reshape(3, 4).T)
    np.testing.assert_array_equal(tensors['tail'], [10, 11])
    np.testing.assert_array_equal(tensors['repeated'], [[0, 1]] * 3)
    np.testing.assert_array_equal(tensors['scalar'], 5)
    assert tensors['empty'].shape == (0, 3)


@pytest.mark.parametrize(
    ('length', 'shape', 'strides', 'offset'),
    [
        (4, (5,), (1,), 0),
        (4, (4,), (1,), 1),
        (4, (2, 2), (4, 1), 0),
        (4, (2,), (-1,), 1),
        (4, (2,), (1,), -1),
        (4, (-2,), (1,), 0),
        (400, (400,), (1,), 0),  # the storage itself is said to be longer than it is
        (4, (2**30, 2**30, 2**30), (2**30, 2**30, 2**30), 0),
    ],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(write, length, shape, strides, offset):
    value = dictionary(weight=tensor('FloatStorage', '0', length, shape, strides, offset))
    path = write(value, **{'0': np.zeros(4, np.float32)})
    with pytest.raises(InputError, match=r'model\.pth is not a checkpoint that can be read'):
        read_state_dict(path)


class RunsCode:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('function', ['os.system', 'builtins.exec', 'builtins.eval'])
def test_a_pickle_that_wants_to_run_code_is_refused_and_nothing_runs(tmp_path, function):
    witness = tmp_path / 'it_ran'
    python = f'__import__("pathlib").Path({str(witness)!r}).touch()'
    attack = {
        'os.system': RunsCode(os.system, f'touch {witness}'),
        'builtins.exec': RunsCode(exec, python),
        'builtins.eval': RunsCode(eval, python),
    }[function]
    path = tmp_path / 'evil.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('evil/data.pkl', pickle.dumps({'weight': attack}, protocol=2))
    with pytest.raises(InputError, match=r'names \w+\.\w+, which is no part .* could run code'):
        read_state_dict(path)
    assert not witness.exists()

    pickle.loads(pickle.dumps(attack, protocol=2))  # so it would have
    assert witness.exists()


@pytest.mark.parametrize('name', ['load', 'hub.load', '_utils', 'FloatStorage.__init__'])
def test_other_names_of_torch_are_refused_too(write, name):
    with pytest.raises(InputError, match=f'names torch.{name}'):
        read_state_dict(write(dictionary(weight=name_of('torch', name))))


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    path = tmp_path / 'model.pth'
    path.write_bytes(pickle.dumps({'weight': 1}))
    with pytest.raises(InputError, match=r'model\.pth is not a checkpoint .*torch\.save writes it'):
        read_state_dict(path)


def test_big_endian_numbers_are_refused(write):
    path = write(GOOD, **{'0': np.zeros(4, np.float32)})
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('model/byteorder', 'big')
    with pytest.raises(InputError, match='big-endian'):
        read_state_dict(path)


def test_a_compressed_archive_is_refused(write):
    """PyTorch writes none, and one of a few kilobytes may hold gigabytes."""
    path = write(GOOD, **{'0': np.arange(4, dtype=np.float32)})
    with zipfile.ZipFile(path) as stored:
        parts = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    with pytest.raises(InputError, match='is compressed, which PyTorch never does'):
        read_state_dict(path)


def put(index):
    return b'q' + bytes([index])


def get(index):
    return b'h' + bytes([index])


REBUILD = name_of('torch._utils', '_rebuild_tensor_v2')
DIMS, STEPS = sequence(integer(2), integer(2)), sequence(integer(2), integer(1))
FIRST = tensor('FloatStorage', '0', 4, (2**30,), (0,)) + put(1)


def rebuilt(storage=b'h\x01', offset=b'K\x00', size=DIMS, stride=STEPS):
    """A pickle that makes a tensor `b` of anything, by default after and of a tensor `a`."""
    call = REBUILD + sequence(storage, offset, size, stride, b'\x89', b'}') + b'R'
    return dictionary(a=FIRST, b=call)


STORED = stored('FloatStorage', '0', 4)
LONGER = b'\x8a\x09' + bytes(8) + b'\x01'  # 2**64


@pytest.mark.parametrize(
    'value',
    {
        'a tensor as the storage': rebuilt(
            size=sequence(integer(2**20)), stride=sequence(b'K\x01')
        ),
        'a class as the storage': rebuilt(name_of('torch', 'FloatStorage')),
        'a tuple as the storage': rebuilt(sequence(integer(1), integer(2))),
        'an offset below 0': rebuilt(STORED, integer(-1)),
        'an offset of a fraction': rebuilt(STORED, b'G' + struct.pack('>d', 0.5)),
        'an offset of True': rebuilt(STORED, b'\x88'),
        'an offset of 2**64': rebuilt(STORED, LONGER),
        'a size of 2**64': rebuilt(STORED, size=sequence(LONGER, LONGER)),
        'a size below 0': rebuilt(STORED, size=sequence(integer(-1), integer(-4))),
        'a size that is a tensor': rebuilt(STORED, size=get(1)),
        'sizes without strides': rebuilt(STORED, stride=b')'),
        'a stride below 0': rebuilt(STORED, stride=sequence(integer(-1), integer(1))),
        'strides of 2**64': rebuilt(STORED, stride=sequence(LONGER, LONGER)),
        'elements beyond all memory': rebuilt(
            STORED, size=sequence(*[integer(2**30)] * 9), stride=sequence(*[integer(0)] * 9)
        ),
        'axes without an end': rebuilt(
            STORED, size=sequence(*[integer(1)] * 33), stride=sequence(*[integer(0)] * 33)
        ),
        'an array made of a list': rebuilt(
            name_of('torch', 'FloatStorage') + sequence(b']') + b'R'
        ),
        'an item set in a tensor': dictionary(a=FIRST + integer(0) + integer(7) + b's'),
        'items set in a tensor': dictionary(a=FIRST + b'(' + integer(0) + integer(7) + b'u'),
        'a tensor with another state': dictionary(a=FIRST + sequence(b'K\x01') + b'b'),
        'a call of a call': dictionary(a=FIRST + b')R'),
        'a storage of another kind': rebuilt(
            sequence(text('storage'), REBUILD, text('0'), text('cpu'), integer(4)) + b'Q'
        ),
        'a storage of two types': dictionary(a=FIRST, b=tensor('LongStorage', '0', 2, (2,), (1,))),
        'a storage of a length below 0': rebuilt(stored('FloatStorage', '0', -4)),
        'a parameter of a storage': dictionary(
            a=name_of('torch._utils', '_rebuild_parameter') + sequence(STORED, b'\x89') + b'R'
        ),
    }.items(),
    ids=lambda case: case[0],
)
def test_what_is_no_view_of_a_storage_is_refused(write, value):
    path = write(value[1], **{'0': np.arange(4, dtype=np.float32)})
    with pytest.raises(InputError, match='can be read'):
        read_state_dict(path)


def doubling(start, double):
    """Sixty-two times twice as large as before, in a few bytes."""
    return start + b''.join(double(index) for index in range(2, 64))


BOMBS = {
    'a name that takes years to hash': b'}'
    + doubling(b')', lambda index: put(index) + get(index) + b'\x86')
    + b'K\x01s',
    'an array of lists of lists': dictionary(
        a=name_of('torch', 'FloatStorage')
        + doubling(b'(]', lambda i: put(i) + b'0](' + get(i) + get(i) + b'e')
        + b'tR'
    ),
    'a memory of four billion places': dictionary(a=b'K\x01r' + b'\xff\xff\xff\x7f'),
    'operations without an end': dictionary(a=b']' * 600_000),
    'a dictionary of dictionaries': b''.join(
        [name_of('collections', 'OrderedDict'), sequence(dictionary(a=FIRST)), b'R']
    ),
    'a number of a gigabyte': b'\x8b' + struct.pack('<I', 2**30),
    'a text of a gigabyte': b'X' + struct.pack('<I', 2**30),
    'a text of all memory': b'\x8d' + struct.pack('<Q', 2**62),
    'brackets within brackets': b'(' * 400_000 + b't' * 400_000,
}


@pytest.mark.parametrize('value', BOMBS.values(), ids=BOMBS)
def test_a_pickle_that_takes_all_time_or_memory_is_refused(write, value):
    path = write(value, **{'0': np.arange(4, dtype=np.float32)})
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read_state_dict(path)
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()


def test_a_pickle_of_protocol_4_is_read(write):
    """As torch.save(..., pickle_protocol=4) writes text and names."""
    names = b'\x8c\x0ctorch._utils\x94\x8c\x12_rebuild_tensor_v2\x94\x93'
    value = b'\x95' + bytes(8) + GOOD.replace(REBUILD, names)
    tensors = read_state_dict(write(value, **{'0': np.arange(4, dtype=np.float32)}))
    np.testing.assert_array_equal(tensors['weight'], [[0, 1], [2, 3]])


def test_parts_of_an_archive_that_overlap_are_refused(write):
    """Else a thousand names of one part would take the time of a file a thousand times as large."""
    weights = {f'w{key}': tensor('FloatStorage', str(key), 2**16, (4,), (1,)) for key in range(9)}
    path = write(dictionary(**weights), **{'0': np.zeros(2**16, np.float32)})
    with zipfile.ZipFile(path, 'a') as archive:
        first = archive.getinfo('model/data/0')
        for key in range(1, 9):
            info = copy.copy(first)
            info.filename = f'model/data/{key}'
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
        archive.writestr('more', b'')
    with pytest.raises(InputError, match='its parts are longer than it is'):
        read_state_dict(path)


@pytest.mark.parametrize('kind', ['fifo', 'socket', 'device'])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    path = pathlib.Path('/dev/zero') if kind == 'device' else tmp_path / 'model.pth'
    if kind == 'fifo':
        os.mkfifo(path)
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == 'socket':
            listener.bind(str(path))
        with pytest.raises(InputError, match='it is not a file, but a FIFO, a socket'):
            read_state_dict(path)


def test_tensors_outlive_a_file_that_is_replaced(write):
    path = write(GOOD, **{'0': np.arange(4, dtype=np.float32)})
    tensors = read_state_dict(path)
    write_state_dict(path, {'weight': np.zeros((2, 2), np.float32)})
    np.testing.assert_array_equal(tensors['weight'], [[0, 1], [2, 3]])
    with pytest.raises(ValueError, match='read-only'):
        tensors['weight'][0] = 1


def test_an_archive_of_something_else_is_refused(tmp_path):
    path = tmp_path / 'model.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('readme.txt', 'hello')
    with pytest.raises(InputError, match=r'the archive holds no data\.pkl'):
        read_state_dict(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r'nothing\.pth does not exist'):
        read_state_dict(tmp_path / 'nothing.pth')


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match='is not a checkpoint'):
        read_state_dict(tmp_path)


GOOD = dictionary(weight=tensor('FloatStorage', '0', 4, (2, 2), (2, 1)))


def test_a_truncated_archive_is_refused(write):
    path = write(GOOD, **{'0': np.zeros(4, np.float32)})
    data = path.read_bytes()
    for length in range(0, len(data), 37):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match='damaged: fetch it again'):
            read_state_dict(path)


def test_a_flipped_bit_is_noticed(write):
    path = write(GOOD, **{'0': np.arange(4, dtype=np.float32)})
    data = bytearray(path.read_bytes())
    data[data.index(np.arange(4, dtype=np.float32).tobytes()) + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match='damaged: fetch it again'):
        read_state_dict(path)


def test_a_pickle_that_ends_early_is_refused(write):
    for length in range(len(GOOD) + 1):
        with pytest.raises(InputError, match='is not a checkpoint that can be read'):
            read_state_dict(write(GOOD[:length], stop=b'', **{'0': np.zeros(4, np.float32)}))


def test_a_storage_that_is_missing_is_refused(write):
    with pytest.raises(InputError, match='data/0'):
        read_state_dict(write(GOOD))


@pytest.mark.parametrize(
    ('value', 'what'),
    [
        (dictionary(epoch=integer(3)), 'dict'),
        (dictionary(model=GOOD), 'dict'),
        (integer(3), 'int'),
        (sequence(integer(3)), 'tuple'),
        (b'}(' + integer(1) + GOOD[GOOD.index(b'ctorch') : -1] + b'u', 'dict'),
    ],
    ids=['numbers', 'nested', 'number', 'tuple', 'numbered'],
)
def test_what_is_no_flat_dictionary_of_tensors_is_refused(write, value, what):
    path = write(value, **{'0': np.zeros(4, np.float32)})
    with pytest.raises(InputError, match=f'holds a {what}, not a state dict'):
        read_state_dict(path)


TENSORS = {
    'weight': np.arange(6, dtype=np.float32).reshape(2, 3),
    'transposed': np.arange(12, dtype=np.float32).reshape(3, 4).T,
    'scalar': np.array(2.5),
    'empty': np.zeros((0, 3), np.float16),
    'half': np.arange(5).astype(ml_dtypes.bfloat16),
    'labels': np.arange(70_000),
    'mask': np.tri(3, dtype=bool),
    'größe': np.array([3], np.int32),
}


def test_what_is_written_is_read_back(tmp_path):
    write_state_dict(tmp_path / 'model.pth', TENSORS)
    tensors = read_state_dict(tmp_path / 'model.pth')
    assert list(tensors) == list(TENSORS)
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], array, strict=True)


@pytest.mark.parametrize('dtype', STORAGES, ids=str)
def test_every_type_is_written(tmp_path, dtype):
    array = np.arange(4).astype(dtype)
    write_state_dict(tmp_path / 'model.pth', {'x': array})
    np.testing.assert_array_equal(read_state_dict(tmp_path / 'model.pth')['x'], array, strict=True)


def test_a_type_that_pytorch_lacks_is_refused(tmp_path):
    with pytest.raises(InputError, match='name has the type <U1; only float64, float32,'):
        write_state_dict(tmp_path / 'model.pth', {'name': np.array(['x'])})
    assert list(tmp_path.iterdir()) == []


def pickle_in(path):
    with zipfile.ZipFile(path) as archive:
        return archive.read('archive/data.pkl')


def test_the_pickle_names_tensors_and_nothing_else(tmp_path):
    write_state_dict(tmp_path / 'model.pth', TENSORS)
    operations = list(pickletools.genops(pickle_in(tmp_path / 'model.pth')))
    # What torch.load(weights_only=True) knows, and what a pickle of protocol 2 has.
    assert {argument for op, argument, _ in operations if op.name == 'GLOBAL'} == {
        'collections OrderedDict',
        'torch._utils _rebuild_tensor_v2',
        *(f'torch {STORAGES[t.dtype]}' for t in TENSORS.values() if t.dtype in STORAGES),
        'torch IntStorage',
    }
    assert {op.proto for op, _, _ in operations} <= {0, 1, 2}


def test_the_pickle_is_the_one_that_pytorch_was_seen_to_read(tmp_path):
    """PyTorch 2.13 read it: after a change of these bytes, have it read again."""
    write_state_dict(tmp_path / 'model.pth', TENSORS)
    digest = hashlib.sha256(pickle_in(tmp_path / 'model.pth')).hexdigest()
    assert digest == 'ee8d28e32f4ff040bae30064c08fca1e3b2902518e0cdb5bfb34571a1a6ad77a'


def test_the_same_tensors_make_the_same_file(tmp_path):
    paths = tmp_path / 'a.pth', tmp_path / 'b.pth'
    for path in paths:
        write_state_dict(path, TENSORS)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_storages_are_aligned_as_pytorch_aligns_them(tmp_path):
    write_state_dict(tmp_path / 'model.pth', TENSORS)
    for tensor in read_state_dict(tmp_path / 'model.pth').values():
        assert tensor.ctypes.data % 64 == 0 or not tensor.size


def test_a_file_that_the_disk_has_no_room_for_changes_nothing(tmp_path):
    write_state_dict(tmp_path / 'model.pth', {'x': np.zeros(3)})
    before = (tmp_path / 'model.pth').read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match='File too large'):
            write_state_dict(tmp_path / 'model.pth', {'x': np.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / 'model.pth').read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
