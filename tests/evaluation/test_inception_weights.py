import json
import struct
import zipfile

import jax
import numpy as np
import pytest
from golden.inception import recipe

from tarflow_jax.errors import InputError
from tarflow_jax.evaluation import inception_weights
from tarflow_jax.evaluation.inception import Inception

SHAPES = inception_weights.tensor_shapes()
NORM = 'Mixed_6d.branch7x7_2.bn'


def write_torch_file(path, shapes, extra=()):
    """A `.pth` of tensors that all repeat the one number 1/2: small, whatever the shapes."""

    def text(value):
        return b'X' + struct.pack('<I', len(value)) + value.encode()

    def numbers(values):
        return b'(' + b''.join(b'J' + struct.pack('<i', value) for value in values) + b't'

    storage = b'((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000'
    storage += b'X\x03\x00\x00\x00cpuJ\x01\x00\x00\x00tQJ\x00\x00\x00\x00'
    value = b'\x80\x02}('
    for name, shape in (*shapes.items(), *extra):
        strides = numbers(0 for _ in shape)
        value += text(name) + b'ctorch._utils\n_rebuild_tensor_v2\n' + storage
        value += numbers(shape) + strides + b'\x89}tR'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('model/data.pkl', value + b'u.')
        archive.writestr('model/data/0', struct.pack('<f', 0.5))


def write_safetensors(path, shapes):
    """A `.safetensors` file of zeros, which takes no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * int(np.prod(shape, dtype=int))
        header[name] = {'dtype': 'F32', 'shape': shape, 'data_offsets': [begin, end]}
    text = json.dumps(header).encode()
    with open(path, 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        file.truncate(file.tell() + end)


def test_the_tensors_are_those_of_the_published_state_dicts():
    """Five parts of each of 94 convolutions, and the classifier's two."""
    assert len(SHAPES) == 94 * 5 + 2
    assert SHAPES['Conv2d_1a_3x3.conv.weight'] == (32, 3, 3, 3)
    assert SHAPES['Mixed_6b.branch7x7_2.conv.weight'] == (128, 128, 1, 7)
    assert SHAPES['Mixed_6b.branch7x7_2.bn.running_var'] == (128,)
    assert SHAPES['Mixed_7c.branch_pool.conv.weight'] == (192, 2048, 1, 1)
    assert (SHAPES['fc.weight'], SHAPES['fc.bias']) == ((1008, 2048), (1008,))


def test_a_batch_norm_is_folded_into_its_convolution():
    """What a layer computes is scale * (conv(x) - mean) / sqrt(variance + eps) + bias."""
    tensors = {name: recipe.tensor(name, shape) for name, shape in SHAPES.items()}
    layer = inception_weights.from_state_dict(tensors)['Mixed_6d']['branch7x7_2']
    x = recipe.uniform('x', (2, 7, 160)).astype(np.float64)
    kernel = tensors['Mixed_6d.branch7x7_2.conv.weight'][:, :, 0]
    scale, bias, mean, variance = (
        tensors[f'{NORM}.{part}'] for part in inception_weights.BATCH_NORM
    )
    normed = scale * (np.einsum('oik,bki->bo', kernel, x) - mean) / np.sqrt(variance + 1e-3) + bias
    folded = np.einsum('kio,bki->bo', layer['kernel'][0], x) + layer['bias']
    np.testing.assert_allclose(folded, normed, rtol=1e-5, atol=1e-6)


@pytest.fixture
def torch_file(tmp_path):
    path = tmp_path / 'weights.pth'
    ignored = [('AuxLogits.fc.weight', (3, 4)), (f'{NORM}.num_batches_tracked', ())]
    write_torch_file(path, SHAPES, ignored)
    return path


def test_a_state_dict_becomes_the_parameters_of_the_network(torch_file):
    params, digest = inception_weights.load(torch_file)
    images = jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32)
    expected = jax.eval_shape(Inception().init, jax.random.key(0), images)['params']
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), expected
    )
    assert len(digest) == 64
    gain = 0.5 / np.sqrt(0.5 + 1e-3)
    kernel = params['Mixed_7c']['branch3x3_2a']['kernel']
    np.testing.assert_allclose(kernel[0, :, 5], 0.5 * gain, rtol=1e-6)
    np.testing.assert_array_equal(params['fc']['kernel'], 0.5)


def test_safetensors_are_read_too(tmp_path):
    write_safetensors(tmp_path / 'weights.safetensors', SHAPES)
    params, _ = inception_weights.load(tmp_path / 'weights.safetensors')
    assert params['fc']['kernel'].shape == (2048, 1008)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize('name', ['Conv2d_1a_3x3.conv.weight', f'{NORM}.running_var', 'fc.bias'])
def test_a_missing_tensor_is_named(tmp_path, name):
    shapes = {key: shape for key, shape in SHAPES.items() if key != name}
    write_torch_file(tmp_path / 'weights.pth', shapes)
    with pytest.raises(InputError, match=rf'weights\.pth is not the Inception .* has no {name}\. '):
        inception_weights.load(tmp_path / 'weights.pth')


def test_another_network_is_refused(tmp_path):
    write_torch_file(tmp_path / 'vit.pth', {'cls_token': (1, 1, 768)})
    with pytest.raises(InputError, match=r'has no Conv2d_1a_3x3\.conv\.weight and 471 more'):
        inception_weights.load(tmp_path / 'vit.pth')


def test_a_misshapen_tensor_is_named(tmp_path):
    """The classifier of torchvision's network has 1,000 classes."""
    write_torch_file(tmp_path / 'weights.pth', SHAPES | {'fc.weight': (1000, 2048)})
    with pytest.raises(InputError, match=r'fc\.weight of .*\(1000, 2048\).*\(1008, 2048\).*torchv'):
        inception_weights.load(tmp_path / 'weights.pth')


def test_whole_numbers_are_no_weights():
    tensors = {name: np.broadcast_to(np.float32(1), shape) for name, shape in SHAPES.items()}
    tensors['fc.bias'] = np.ones(1008, np.int64)
    with pytest.raises(InputError, match=r'fc\.bias of the state dict is int64'):
        inception_weights.from_state_dict(tensors)


def test_a_file_that_is_not_what_its_name_says_is_damaged(torch_file):
    _, digest = inception_weights.load(torch_file)
    honest = torch_file.rename(torch_file.with_name(f'weights-{digest[:8]}.pth'))
    assert inception_weights.load(honest)[1] == digest
    damaged = honest.rename(honest.with_name('pt_inception-2015-12-05-6726825d.pth'))
    with pytest.raises(
        InputError, match=f'is damaged: .* begins with 6726825d, but it is {digest}'
    ):
        inception_weights.load(damaged)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(InputError, match=r'there is no file .*nothing\.pth'):
        inception_weights.load(tmp_path / 'nothing.pth')


@pytest.mark.parametrize('address', inception_weights.ADDRESSES)
def test_the_published_file_is_looked_for_in_the_cache(tmp_path, monkeypatch, address):
    """Both names are found; what lies there under one of them is not the file, and is refused."""
    monkeypatch.setenv('TARFLOW_CACHE', str(tmp_path))
    (tmp_path / address.rpartition('/')[2]).write_bytes(b'half of it')
    with pytest.raises(InputError, match='is damaged'):
        inception_weights.load()
    assert all('6726825d' in name for name in (address, inception_weights.SHA256))
