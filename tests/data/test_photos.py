import numpy as np
import pytest

from tarflow_jax.data.builders import photos
from tarflow_jax.data.sources import open_dataset
from tarflow_jax.errors import InputError


@pytest.fixture(scope='module')
def small_photos(tmp_path_factory):
    """A data folder with photos/16; not to be written to."""
    data_dir = tmp_path_factory.mktemp('photos')
    open_dataset('photos/16', data_dir)
    return data_dir


@pytest.fixture(scope='module')
def pictures():
    """The photographs of the splits, as PIL images."""
    return {
        'train': photos.load_photos(photos.TRAIN_PHOTOS),
        'test': photos.load_photos(photos.TEST_PHOTOS),
    }


def test_photos_describe_themselves(small_photos):
    dataset = open_dataset('photos/16', small_photos)
    assert dataset.name == 'photos/16'
    assert dataset.image_shape == (16, 16, 3)
    assert dataset.num_classes == 0
    assert dataset.num_levels == 256
    assert len(dataset.split('train')) == 8192
    assert len(dataset.split('test')) == 1024
    assert np.all(dataset.split('test').__getitems__(range(1024))['label'] == -1)


@pytest.mark.parametrize(('split', 'seed'), [('train', 0), ('test', 1)])
def test_every_example_is_a_crop_of_its_photograph(small_photos, pictures, split, seed):
    of_split = pictures[split]
    rows = [0, 1, 2, 517, 1023]
    images = open_dataset('photos/16', small_photos).split(split).__getitems__(rows)['image']
    for image, i in zip(images, rows, strict=True):
        expected = photos.crop(of_split[i % len(of_split)], 16, seed, i)
        np.testing.assert_array_equal(image, expected)


def test_no_photograph_is_in_both_splits(pictures):
    assert not set(photos.TRAIN_PHOTOS) & set(photos.TEST_PHOTOS)
    contents = [photo.tobytes() for of_split in pictures.values() for photo in of_split]
    assert len(set(contents)) == len(contents) == 7
    names = [name for _, name in photos.TRAIN_PHOTOS + photos.TEST_PHOTOS]
    assert sum(name.startswith('motorcycle') for name in names) == 1  # two views of one scene


def test_photographs_are_in_colour_and_large_enough(pictures):
    every = pictures['train'] + pictures['test']
    assert min(min(photo.size) for photo in every) == photos.MAX_SIZE
    for photo in every:
        assert photo.mode == 'RGB'
        assert np.ptp(np.asarray(photo).astype(int), axis=-1).mean() > 10


def test_crops_differ_and_are_functions_of_seed_and_index(pictures):
    photo = pictures['test'][0]
    crops = {photos.crop(photo, 8, seed, i).tobytes() for seed in range(4) for i in range(50)}
    assert len(crops) == 200
    np.testing.assert_array_equal(photos.crop(photo, 8, 3, 5), photos.crop(photo, 8, 3, 5))


def test_crops_never_change(pictures):
    """The data set of a version is the same everywhere, whatever NumPy is installed."""
    photo = pictures['train'][0]
    colours = [photos.crop(photo, 8, 0, i).mean(axis=(0, 1)) for i in (0, 5)]
    seen = [[189.4, 178.7, 167.9], [171.7, 158.6, 151.4]]
    np.testing.assert_allclose(colours, seen, rtol=0, atol=0.5)


def test_crops_have_every_scale_and_place():
    """Of an image whose pixels tell where they are: columns in red, rows in green."""
    rows, columns = np.mgrid[:240, :200]
    photo = photos.Image.fromarray(np.stack([columns, rows, rows * 0], -1).astype(np.uint8))
    crops = np.stack([photos.crop(photo, 20, 0, i) for i in range(400)]).astype(float)
    scale = (crops[:, 10, -2, 0] - crops[:, 10, 1, 0]) / 17  # pixels of the photo to one of a crop
    assert 0.9 < scale.min() < 1.1
    assert 9 < scale.max() < 10.1
    assert 0.4 < np.mean(scale < 10**0.5) < 0.6
    assert crops[..., 0].min() <= 3
    assert crops[..., 0].max() >= 196
    assert crops[..., 1].min() <= 3
    assert crops[..., 1].max() >= 236


def test_a_crop_as_large_as_the_photograph(pictures):
    cat = pictures['test'][0]
    image = photos.crop(cat, photos.MAX_SIZE, 0, 0)
    wide = np.asarray(cat)
    assert any(np.array_equal(image, wide[:, x : x + 300]) for x in range(wide.shape[1] - 299))


@pytest.mark.parametrize(
    'name',
    [
        'photos',
        'photos/',
        'photos/7',
        'photos/301',
        'photos/064',
        'photos/-8',
        'photos/x',
        'photos/64/1',
        'photos/６４',
    ],
)
def test_sizes_that_there_are_not(tmp_path, name):
    with pytest.raises(InputError, match='photos/8 to photos/300, such as photos/64') as error:
        open_dataset(name, tmp_path)
    assert f"no data set '{name}'" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_preparing_is_quiet_and_tidy(tmp_path, capfd):
    open_dataset('photos/8', tmp_path)
    assert capfd.readouterr() == ('', '')
    files = sorted(path.name for path in (tmp_path / 'photos' / '8').iterdir())
    assert files == ['.prepare.lock', '1.0.0']
