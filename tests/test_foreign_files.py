"""Readers of files that others made, under fire: whatever the bytes, they give what lies within the
file, or an InputError (of images, as their readers say, an OSError or a ValueError).

Some hundred cases run with the suite, always the same. For twenty thousand:

    FOREIGN_FILES=20000 python -m pytest -n 0 -s -o faulthandler_timeout=0 \\
        tests/test_foreign_files.py

The outcomes are counted and, with -s, printed.
"""

import collections
import io
import json
import math
import mmap
import os
import pathlib
import pickle
import resource
import struct
import tracemalloc
import zipfile
import zlib

import hypothesis
import numpy as np
import pytest
from golden.inception import recipe
from hypothesis import strategies as st
from PIL import Image

from tarflow_jax.data.images import FORMATS, decode, open_image
from tarflow_jax.data.npz import open_npz
from tarflow_jax.errors import InputError
from tarflow_jax.evaluation import inception_weights, references
from tarflow_jax.formats import safetensors, torchfile
from tarflow_jax.published import convert

CASES = int(os.environ.get('FOREIGN_FILES', 300))
MAX_BYTES = 2**27  # that reading may take, beside 64 times the file
MAX_RESIDENT_KIB = 2**21  # by all of it, decoders in C included: 2 GiB

OUTCOMES = collections.Counter()


# What is read of a file, by reader.


def of_torch(path):
    return torchfile.read_state_dict(path).values()


def of_safetensors(path):
    content = path.read_bytes()
    for array in safetensors.read(path).values():
        assert array.tobytes() in content
    return []


def of_weights(path):
    inception_weights.load(path)
    return []


def of_published(path):
    convert.from_state_dict(torchfile.read_state_dict(path), patch_size=2)
    return []


def of_data(path):
    batch = open_npz(str(path)).split('train').__getitems__(range(3))
    assert batch['image'].dtype == np.uint8
    assert batch['label'].min() >= -1
    return []


def of_reference(path):
    for gaussian in references.read(path).gaussians.values():
        assert np.isfinite(gaussian.mean).all()
        assert np.isfinite(gaussian.cov).all()
    return []


def of_image(path):
    with open_image(path) as image:
        assert image.format in (*FORMATS, 'MPO')
    assert decode(path).mode == 'RGB'
    return []


# Files that are whole.


def zipped(*parts, packing=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', packing) as archive:
        for name, content in parts:
            archive.writestr(zipfile.ZipInfo(name), content, packing)
    return file.getvalue()


def saved(save, **arrays):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def whole_safetensors():
    header = {
        '__metadata__': {'format': 'pt'},
        'a': {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [0, 24]},
        'b': {'dtype': 'BF16', 'shape': [2], 'data_offsets': [24, 28]},
    }
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + bytes(28)


def encoded(image, file_format, **options):
    return saved(lambda file: image.save(file, file_format, **options))


def whole_images():
    image = Image.linear_gradient('L').resize((20, 12)).convert('RGB')
    yield from (encoded(image, file_format) for file_format in FORMATS)
    yield from (encoded(image.convert(mode), 'PNG') for mode in ('L', '1', 'P', 'RGBA', 'I;16'))
    yield from (encoded(image.convert(mode), 'TIFF') for mode in ('CMYK', 'F', 'YCbCr'))
    yield encoded(image, 'TIFF', compression='tiff_lzw')
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera stood on its side
    yield encoded(image, 'JPEG', progressive=True, exif=exif)
    yield encoded(image, 'GIF', save_all=True, append_images=[image.rotate(90)])


IMAGES = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
LABELLED = dict(arr_0=IMAGES, arr_1=np.array([0, 1, -1]))
STATISTICS = dict(
    mu_haar=np.ones(3),
    sigma_haar=np.eye(3),
    features_haar=np.ones((2, 3), np.float32),
    metadata=json.dumps({'dataset': 'x', 'image_shape': [4, 4, 3]}),
    arr_0=IMAGES,
)
GOLDEN = pathlib.Path(recipe.__file__).parent


@pytest.fixture(scope='module')
def wholes():
    """By the name of a reader: it, the ending of its files, and files that it reads."""
    images = list(whole_images())
    torch = [(GOLDEN / f'{name}.pth').read_bytes() for name in ('old', 'new')]
    data = [saved(save, **LABELLED) for save in (np.savez, np.savez_compressed)]
    statistics = [saved(save, **STATISTICS) for save in (np.savez, np.savez_compressed)]
    return {
        'torch': (of_torch, '.pth', torch),
        'safetensors': (of_safetensors, '.safetensors', [whole_safetensors()]),
        'weights.pth': (of_weights, '.pth', torch),
        'weights.safetensors': (of_weights, '.safetensors', [whole_safetensors()]),
        'published': (of_published, '.pth', [(GOLDEN.parent / 'cond.pth').read_bytes()]),
        'data': (of_data, '.npz', data),
        'reference.npz': (of_reference, '.npz', statistics),
        'reference.pth': (of_reference, '.pth', torch),
        'image': (of_image, '.png', images),
    }


# What happens to them.

NUMBERS = st.one_of(
    st.integers(0, 12),
    st.sampled_from([-1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64, -(2**31)]),
)
BYTES = st.one_of(
    st.binary(max_size=16),
    NUMBERS.map(lambda number: struct.pack('<Q', number % 2**64)),
    NUMBERS.map(lambda number: struct.pack('<I', number % 2**32)),
    NUMBERS.map(lambda number: struct.pack('>I', number % 2**32)),
)
PLACES = st.integers(0, 2**16 - 1).map(lambda place: place / 2**16)  # of a file, relative
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(['flip', 'overwrite', 'insert', 'delete', 'splice', 'cut']),
        PLACES,
        PLACES,
        BYTES,
    ),
    min_size=1,
    max_size=4,
)


def changed(content: bytes, changes) -> bytes:
    """Bits turned, bytes overwritten, put in, taken out, brought from elsewhere; an end cut off."""
    data = bytearray(content)
    for change, share, other_share, new in changes:
        place, other = int(share * len(data)), int(other_share * len(data))
        length = min(64, 1 + other)
        if change == 'flip' and data:
            data[place] ^= 1 << other % 8
        elif change == 'overwrite':
            data[place : place + len(new)] = new
        elif change == 'insert':
            data[place:place] = new
        elif change == 'delete':
            del data[place : place + length]
        elif change == 'splice':
            data[place : place + length] = data[other : other + length]
        elif change == 'cut':
            del data[place:]
    return bytes(data)


# Pickles: whatever their operations can say.


def number(value):
    if 0 <= value < 256:
        return b'K' + bytes([value])
    if -(2**31) <= value < 2**31:
        return b'J' + struct.pack('<i', value)
    return pickle.dumps(value, 2)[2:-1]


def text(value):
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def named(module, name):
    return f'c{module}\n{name}\n'.encode()


def sequence(items):
    return b'(' + b''.join(items) + b't'


def call(name, arguments):
    return named('torch._utils', name) + sequence(arguments) + b'R'


KINDS = st.sampled_from(['FloatStorage', 'LongStorage', 'ByteStorage', 'BFloat16Storage', 'load'])
PLAIN = st.one_of(
    NUMBERS.map(number),
    st.sampled_from(['0', '1', 'cpu', 'storage', 'weight']).map(text),
    st.sampled_from([b'N', b'\x88', b'\x89', b')', b']', b'}', b'G' + struct.pack('>d', 0.5)]),
    KINDS.map(lambda kind: named('torch', kind)),
    st.integers(0, 9).map(lambda index: b'h' + bytes([index])),
)
NUMBER_TUPLES = st.one_of(st.lists(NUMBERS.map(number), max_size=4).map(sequence), PLAIN)
STORED = st.builds(
    lambda kind, key, length: (
        sequence([text('storage'), named('torch', kind), text(key), text('cpu'), length]) + b'Q'
    ),
    KINDS,
    st.sampled_from(['0', '1', '2']),
    st.one_of(st.sampled_from([4, 8, 16]).map(number), PLAIN),
)
TENSORS = st.builds(
    lambda *arguments: call('_rebuild_tensor_v2', [*arguments, b'\x89', b'}']),
    st.one_of(STORED, STORED, PLAIN),
    st.one_of(st.just(b'K\x00'), PLAIN),
    NUMBER_TUPLES,
    NUMBER_TUPLES,
)


def combined(values):
    lists = st.lists(values, max_size=4)
    return st.one_of(
        values,
        lists.map(sequence),
        lists.map(lambda items: b'](' + b''.join(items) + b'e'),
        lists.map(lambda items: named('collections', 'OrderedDict') + sequence(items) + b'R'),
        st.tuples(values, values, st.sampled_from([b'b', b'a', b'R', b'Q', b'\x86', b'2'])).map(
            lambda parts: b''.join(parts)
        ),
        st.tuples(values, st.integers(0, 9)).map(lambda v: v[0] + b'q' + bytes([v[1]])),
        lists.map(lambda items: call('_rebuild_parameter', items)),
    )


FLOATS = sequence(
    [text('storage'), named('torch', 'FloatStorage'), text('0'), text('cpu'), number(16)]
)
WHOLE_TENSORS = st.builds(
    lambda offset, shape, strides: call(
        '_rebuild_tensor_v2',
        [
            FLOATS + b'Q',
            number(offset),
            sequence(map(number, shape)),
            sequence(map(number, strides)),
            b'\x89',
            b'}',
        ],
    ),
    st.integers(0, 6),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
    st.tuples(st.integers(0, 4), st.integers(0, 2)),
)
VALUES = st.recursive(st.one_of(TENSORS, TENSORS, PLAIN), combined, max_leaves=6)
ITEMS = st.one_of(WHOLE_TENSORS, WHOLE_TENSORS, VALUES)
PICKLES = st.lists(st.tuples(st.sampled_from('abc').map(text), ITEMS), max_size=4).map(
    lambda items: b'\x80\x02}(' + b''.join(key + value for key, value in items) + b'u.'
)
PICKLED_ZIPS = st.builds(
    lambda value, first, second: zipped(
        ('m/data.pkl', value), ('m/data/0', first), ('m/data/1', second)
    ),
    PICKLES,
    st.sampled_from([bytes(64), bytes(64), bytes(16)]),
    st.binary(max_size=16),
)
LEGACY_START = b''.join(
    pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True})
)
PICKLED_LEGACY = st.builds(
    lambda value, keys, lengths: (
        LEGACY_START
        + value
        + pickle.dumps(keys, 2)
        + b''.join(struct.pack('<q', length) + bytes(64) for length in lengths)
    ),
    PICKLES,
    st.one_of(st.just(['0']), st.lists(st.sampled_from(['0', '1', '2']), max_size=2)),
    st.one_of(st.just([16]), st.lists(NUMBERS.map(lambda size: size % 2**63), max_size=2)),
)


def repickled(content, changes):
    """A file of PyTorch with changes to its pickle, and a checksum that is right again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    return zipped(
        *(
            (name, changed(part, changes) if name.endswith('data.pkl') else part)
            for name, part in parts.items()
        )
    )


REPICKLED = st.builds(repickled, st.just((GOLDEN / 'new.pth').read_bytes()), CHANGES)
REPUBLISHED = st.builds(repickled, st.just((GOLDEN.parent / 'cond.pth').read_bytes()), CHANGES)

# Headers of the other formats.

JSON = st.recursive(
    st.one_of(NUMBERS, st.none(), st.booleans(), st.floats(), st.sampled_from(['F32', 'BF16', ''])),
    lambda values: st.one_of(
        st.lists(values, max_size=4),
        st.dictionaries(st.sampled_from(['dtype', 'shape', 'data_offsets']), values),
    ),
    max_leaves=8,
)


def entry(dtype, shape, begin, excess):
    size = math.prod(shape) * {'F32': 4, 'BF16': 2, 'I64': 8, 'BOOL': 1}[dtype]
    return {'dtype': dtype, 'shape': shape, 'data_offsets': [begin, begin + size + excess]}


WHOLE_ENTRIES = st.builds(
    entry,
    st.sampled_from(['F32', 'BF16', 'I64', 'BOOL']),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 9),
    st.sampled_from([0, 0, 0, 1, -1]),
)
ENTRIES = st.one_of(
    WHOLE_ENTRIES,
    JSON,
    st.fixed_dictionaries(
        {
            'dtype': st.sampled_from(['F32', 'BF16', 'I64', 'BOOL', 'F8']),
            'shape': st.lists(NUMBERS, max_size=3),
            'data_offsets': st.lists(NUMBERS, min_size=2, max_size=2),
        }
    ),
)
MADE_SAFETENSORS = st.builds(
    lambda header, excess, data: (
        struct.pack('<Q', (len(json.dumps(header)) + excess) % 2**64)
        + json.dumps(header).encode()
        + data
    ),
    st.one_of(
        JSON,
        st.dictionaries(st.sampled_from(['a', 'b', '__metadata__']), ENTRIES),
        st.dictionaries(st.sampled_from(['a', 'b']), WHOLE_ENTRIES),
    ),
    st.one_of(st.just(0), st.just(0), NUMBERS),
    st.sampled_from([bytes(64), bytes(256), b'']),
)


def npy(shape, descr, fortran_order, content):
    header = repr({'descr': descr, 'fortran_order': fortran_order, 'shape': shape}).encode()
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header) + 1) + header + b'\n' + content


MADE_ARRAYS = st.builds(
    npy,
    st.one_of(
        st.sampled_from([(3, 4, 4, 3), (3, 48), (3,), (3, 3), (2, 3), ()]),
        st.lists(NUMBERS, max_size=4).map(tuple),
    ),
    st.sampled_from(['|u1', '<f8', '<i8', '|b1', '<U3', '|O', '<f2', '>f4', '|V5', '<c16', 'x']),
    st.booleans(),
    st.one_of(st.sampled_from([72, 24, 144, 12, 3]).map(bytes), st.binary(max_size=48)),
)
WHOLE_ARRAYS = st.builds(
    lambda shape, dtype, values: saved(
        np.save, arr=np.resize(np.array(values).astype(dtype), shape)
    ),
    st.sampled_from([(3, 4, 4, 3), (3, 3), (3,), (3, 1), (2, 3), ()]),
    st.sampled_from(['|u1', '<f8', '<i8', '|b1', '<f2', '>f4', '<u8', '<U8']),
    st.lists(st.sampled_from([0, 1, -1, 2, 0.7, np.nan, np.inf, 2.0**40]), min_size=1, max_size=9),
)
NAMES = st.sampled_from(['arr_0', 'arr_1', 'mu_haar', 'sigma_haar', 'features_haar', 'metadata'])
WHOLE_PARTS = st.sampled_from(
    [{key: saved(np.save, arr=value) for key, value in x.items()} for x in (LABELLED, STATISTICS)]
)
MADE_NPZ = st.builds(
    lambda whole, arrays, packing: zipped(
        *((f'{name}.npy', content) for name, content in (whole | arrays).items()), packing=packing
    ),
    WHOLE_PARTS,
    st.dictionaries(NAMES, st.one_of(WHOLE_ARRAYS, MADE_ARRAYS), max_size=2),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
)


def png(width, height, depth, colour, chunks):
    header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    parts = [(b'IHDR', header), *chunks, (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        for kind, data in parts
    )


CHUNKS = st.tuples(
    st.sampled_from([b'IDAT', b'PLTE', b'tRNS', b'eXIf', b'zTXt', b'iCCP', b'acTL', b'fcTL']),
    st.one_of(
        st.binary(max_size=40),
        st.binary(max_size=90).map(zlib.compress),
        st.just(b'x\x00\x00' + zlib.compress(bytes(2**22))),
    ),
)
SIDES = st.sampled_from([0, 1, 2, 7, 100, 9459, 2**16, 2**31 - 1, 2**32 - 1])
MADE_PNG = st.builds(
    png,
    SIDES,
    SIDES,
    st.sampled_from([1, 2, 4, 8, 16, 3]),
    st.integers(0, 7),
    st.lists(CHUNKS, max_size=4),
)

MADE = {
    'torch': [PICKLED_ZIPS, PICKLED_LEGACY, REPICKLED],
    'published': [REPUBLISHED],
    'safetensors': [MADE_SAFETENSORS, MADE_SAFETENSORS],
    'weights.pth': [PICKLED_ZIPS],
    'weights.safetensors': [MADE_SAFETENSORS],
    'data': [MADE_NPZ, MADE_NPZ],
    'reference.npz': [MADE_NPZ, MADE_NPZ],
    'reference.pth': [PICKLED_LEGACY],
    'image': [MADE_PNG],
}
SHARES = {'torch': 0.3, 'safetensors': 0.1, 'data': 0.15, 'reference.npz': 0.15, 'image': 0.2}


def attacks(whole_files, made):
    """Contents of files: whole ones changed, made ones, both, and any bytes after a whole start."""
    whole = st.sampled_from(whole_files)
    return st.one_of(
        st.builds(changed, whole, CHANGES),
        *made,
        st.builds(changed, st.one_of(made), CHANGES),
        st.builds(
            lambda content, length, rest: content[:length] + rest,
            whole,
            st.integers(0, 24),
            st.binary(max_size=200),
        ),
    )


def assert_within_the_file(array):
    """It is a view of bytes of the file, and its first and last elements can be read."""
    if not array.size:
        return
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    assert memoryview(base).readonly
    assert isinstance(base, memoryview | mmap.mmap)
    start, end = np.lib.array_utils.byte_bounds(array)
    first, last = np.lib.array_utils.byte_bounds(np.frombuffer(base, np.uint8))
    assert first <= start <= end <= last
    for element in array[(0,) * array.ndim], array[(-1,) * array.ndim]:
        assert len(element.tobytes()) == array.itemsize


def outcome(read, path, allowed):
    try:
        for array in read(path):
            assert_within_the_file(array)
    except allowed:
        return 'refused'
    return 'read'


@pytest.mark.filterwarnings('ignore')  # of Pillow, NumPy and zipfile, of the content
@pytest.mark.parametrize('name', MADE)
def test_whatever_the_bytes(name, wholes, tmp_path):
    read, ending, whole_files = wholes[name]
    allowed = (OSError, ValueError) if name == 'image' else InputError
    path = tmp_path / f'file{ending}'

    @hypothesis.settings(
        max_examples=max(1, int(CASES * SHARES.get(name, 1 / 30))),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(attacks(whole_files, MADE[name]))
    def attack(content):
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        OUTCOMES[name, outcome(read, path, allowed)] += 1
        assert tracemalloc.get_traced_memory()[1] - before < MAX_BYTES + 64 * len(content)

    for content in whole_files:
        path.write_bytes(content)
        outcome(read, path, allowed)
    tracemalloc.start()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        attack()
    finally:
        tracemalloc.stop()
        print({key: count for key, count in OUTCOMES.items() if key[0] == name})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < MAX_RESIDENT_KIB
