"""TFDS's own builders need TensorFlow, which is not here: builders like them stand for them."""

import importlib
import io

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from PIL import Image

from tarflow_jax.data.catalog import prepare
from tarflow_jax.data.sources import open_dataset
from tarflow_jax.errors import InputError


class CatalogDots(tfds.core.GeneratorBasedBuilder):
    """Image files of any size in two variants; `url_infos` has a file to download."""

    VERSION = tfds.core.Version('1.2.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ('small', 'large')]  # noqa: RUF012
    url_infos = {}  # noqa: RUF012
    error = None

    def _info(self):
        features = tfds.features.FeaturesDict({'image': tfds.features.Image()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        if self.error:
            raise self.error
        return {'train': self._generate_examples()}

    def _generate_examples(self):
        for i in range(5):
            file = io.BytesIO()
            Image.new('RGB', (20 + i, 30), (i, i, i)).save(file, 'PNG')
            yield i, {'image': io.BytesIO(file.getvalue())}


class CatalogByHand(tfds.core.GeneratorBasedBuilder):
    """Made of a file that is fetched by hand."""

    VERSION = tfds.core.Version('1.0.0')
    MANUAL_DOWNLOAD_INSTRUCTIONS = 'manual_dir should contain\n  all.npy.'
    url_infos = None

    def _info(self):
        image = tfds.features.Tensor(shape=(2, 2, 3), dtype=np.uint8, encoding='bytes')
        features = tfds.features.FeaturesDict({'image': image})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        assert (dl_manager.manual_dir / 'all.npy').exists(), 'no all.npy'
        return {'train': self._generate_examples(np.load(dl_manager.manual_dir / 'all.npy'))}

    def _generate_examples(self, images):
        for i, image in enumerate(images):
            yield i, {'image': image}


class CatalogWords(tfds.core.GeneratorBasedBuilder):
    """Has no images."""

    VERSION = tfds.core.Version('1.0.0')
    url_infos = None

    def _info(self):
        features = tfds.features.FeaturesDict({'word': tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        raise AssertionError('this is not reached')

    def _generate_examples(self):
        yield from ()


def nothing_is_believed(data_dir):
    return not [path for path in data_dir.rglob('*') if path.name[:1].isdigit()]


def test_a_variant_is_prepared_once_and_read(tmp_path, monkeypatch):
    folder = prepare('catalog_dots/small', tmp_path)
    assert folder == tmp_path / 'catalog_dots' / 'small' / '1.2.0'
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(CatalogDots, 'error', AssertionError('prepared again'))
    assert prepare('catalog_dots/small', tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == files
    split = open_dataset('catalog_dots/small', tmp_path, image_size=8).split('train')
    greys = split.__getitems__(range(5))['image'][:, 4, 4, 0]
    np.testing.assert_array_equal(np.sort(greys), np.arange(5))


def test_a_name_that_another_data_set_has_is_refused(tmp_path):
    """As one of a folder of images may, from before such names were refused."""
    (tmp_path / 'catalog_dots' / 'small' / '1.0.0').mkdir(parents=True)
    with pytest.raises(InputError, match=r'or version is prepared .*/small/1\.0\.0'):
        prepare('catalog_dots/small', tmp_path)


def test_a_folder_of_images_is_prepared_already(tmp_path):
    folder = tmp_path / 'animals' / '1.0.0'
    folder.mkdir(parents=True)
    assert prepare('animals', tmp_path) == folder


def test_what_a_killed_preparation_left_is_removed(tmp_path):
    leftover = tmp_path / 'catalog_dots' / 'small' / 'incomplete.ABCDEF_1.2.0'
    leftover.mkdir(parents=True)
    prepare('catalog_dots/small', tmp_path)
    assert not leftover.exists()


def test_our_own_are_prepared_too(tmp_path):
    assert prepare('digits', tmp_path) == tmp_path / 'digits' / '1.0.0'


@pytest.mark.parametrize('name', ['cifar10', 'imagenet_resized/64x64', 'imagenet2012'])
def test_without_tensorflow(tmp_path, name, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda module: None)
    with pytest.raises(InputError, match=r"TensorFlow.*pip install 'tarflow_jax\[prepare\]'"):
        prepare(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('cifra10', "no data set 'cifra10'; did you mean 'cifar10'"),
        ('', "no data set ''"),
        ('afhq', 'prepare NAME --folder=DIR'),
        ('celeb_a_hq', 'name one of its 11 variants, such as .*celeb_a_hq/256, '),
        ('imagenet_resized/63x64', "no variant '63x64'.*, such as imagenet_resized/64x64"),
        ('catalog_dots/huge', 'variants, such as catalog_dots/small, catalog_dots/large'),
        ('mnist/64', "'mnist' has no variants; its name is 'mnist'"),
        ('mnist:3.0.1', "did you mean 'mnist'"),
        ('catalog_words', "needs a feature 'image'"),
        ('glue', 'prepare NAME --folder=DIR'),
    ],
)
def test_names_that_are_none_of_images(tmp_path, name, words):
    with pytest.raises(InputError, match=words):
        prepare(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_files_that_are_fetched_by_hand(tmp_path):
    manual = tmp_path / 'manual'
    with pytest.raises(InputError, match='manual is not a folder'):
        prepare('catalog_by_hand', tmp_path, manual)
    by_hand = r'Put files that .*manual .*--manual_dir=DIR.* should contain all\.npy'
    with pytest.raises(InputError, match=by_hand):
        prepare('catalog_by_hand', tmp_path)
    manual.mkdir()
    with pytest.raises(InputError, match=by_hand):
        prepare('catalog_by_hand', tmp_path, manual)
    (manual / 'some.npy').touch()
    with pytest.raises(InputError, match='no all.npy.*' + by_hand):
        prepare('catalog_by_hand', tmp_path, manual)
    assert nothing_is_believed(tmp_path)
    np.save(manual / 'all.npy', np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3))
    prepare('catalog_by_hand', tmp_path, manual)
    assert len(open_dataset('catalog_by_hand', tmp_path).split('train')) == 2


def file_at(url, monkeypatch):
    """Makes the dots wait for a file at an address."""
    info = tfds.download.checksums.UrlInfo(size=9, checksum='0' * 64, filename='dots.tar')
    monkeypatch.setattr(CatalogDots, 'url_infos', {url: info})


@pytest.mark.parametrize(
    'error',
    [
        requests.ConnectionError('Max retries exceeded'),
        tfds.download.DownloadError('Failed to get url. HTTP code: 404.'),
    ],
)
def test_an_address_that_is_dead(tmp_path, monkeypatch, error):
    monkeypatch.setattr(CatalogDots, 'error', error)
    words = r'(Max retries|HTTP code: 404).*Put files that .*--manual_dir=DIR'
    with pytest.raises(InputError, match=words):
        prepare('catalog_dots/small', tmp_path)
    assert nothing_is_believed(tmp_path)


def test_files_that_cannot_be_downloaded_are_named(tmp_path, monkeypatch):
    file_at('https://host.invalid/dots.tar', monkeypatch)
    monkeypatch.setattr(CatalogDots, 'error', requests.ConnectionError('Max retries exceeded'))
    with pytest.raises(InputError, match=r'under their own names \(dots\.tar\)') as error:
        prepare('catalog_dots/small', tmp_path)
    assert str(tmp_path / 'downloads' / 'manual') in str(error.value)


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (OSError(28, 'No space left on device'), 'could not prepare .*No space left'),
        (PermissionError(13, 'Permission denied'), 'could not prepare .*Permission denied'),
        (OSError('Not enough disk space. Needed: 1 TiB'), 'could not prepare .*Not enough disk'),
        (KeyError('column'), "TFDS could not prepare .*KeyError: 'column'"),
    ],
)
def test_whatever_else_goes_wrong(tmp_path, monkeypatch, error, words):
    monkeypatch.setattr(CatalogDots, 'error', error)
    with pytest.raises(InputError, match=words):
        prepare('catalog_dots/small', tmp_path)
    assert nothing_is_believed(tmp_path)


@pytest.mark.parametrize('data_dir', ['/proc/data', '/dev/null', 'gs://bucket/x'])
def test_a_data_dir_that_cannot_be_used(data_dir):
    with pytest.raises(InputError, match=data_dir):
        prepare('catalog_dots/small', data_dir)
