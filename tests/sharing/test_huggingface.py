"""A name is a folder first, then one in the library's cache, then one to download."""

import sys

import pytest
from huggingface_hub import constants

import tarflow_jax
from tarflow_jax.errors import InputError
from tarflow_jax.sharing.huggingface import is_name

COMMIT = '0123456789abcdef0123456789abcdef01234567'
NAME = 'someone/digits'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the library, which reaches no network."""
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'hub'


@pytest.fixture
def cached(cache, whole):
    """The same with a model, as the library leaves one that it fetched."""
    repository = cache / 'models--someone--digits'
    (repository / 'refs').mkdir(parents=True)
    (repository / 'refs' / 'main').write_text(COMMIT)
    tarflow_jax.load(whole[0]).save_pretrained(repository / 'snapshots' / COMMIT)
    return cache


def test_a_model_in_the_cache_needs_no_network(cached):
    for load in tarflow_jax.load, tarflow_jax.from_pretrained:
        assert load(NAME).noise == ('gaussian', 0.1)
    assert tarflow_jax.from_pretrained(NAME, revision='main').model.width == 16


def test_a_folder_of_that_name_comes_first(cached, whole, tmp_path):
    tarflow_jax.load(whole[0]).save_pretrained(tmp_path / NAME)
    assert tarflow_jax.load(NAME).path == tmp_path / NAME


def test_a_name_that_nobody_has(cache):
    with pytest.raises(InputError, match=r'someone/digits is neither a local folder nor a model'):
        tarflow_jax.load(NAME)


def test_a_revision_of_a_folder(whole):
    with pytest.raises(InputError, match='revision=main applies to Hub repositories only'):
        tarflow_jax.from_pretrained(whole[0], revision='main')


def test_without_the_library(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(InputError, match=r"pip install 'tarflow_jax\[hub\]'"):
        tarflow_jax.from_pretrained(NAME)


@pytest.mark.parametrize('text', ['runs/digits', 'a/b.c-d_e'])
def test_names(text):
    assert is_name(text)


@pytest.mark.parametrize('text', ['digits', '/a/b', './b', '../b', 'a/b/c', 'a/', '~/b', 3])
def test_what_is_no_name(text):
    assert not is_name(text)
