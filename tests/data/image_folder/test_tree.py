import os
import shutil

import pytest
from image_trees import fill

from tarflow_jax.data.image_folder.tree import read_tree
from tarflow_jax.errors import InputError


def touch(root, *paths):
    """Files that claim to be images; nobody opens them here."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    return root


def test_classes_without_splits(tmp_path):
    tree = read_tree(touch(tmp_path, 'b/1.jpg', 'a/2.PNG', 'a/3.webp'))
    assert tree.classes == ('a', 'b')
    assert list(tree.splits) == ['train']
    found = {(file.path, file.label) for file in tree.splits['train']}
    assert found == {('b/1.jpg', 1), ('a/2.PNG', 0), ('a/3.webp', 0)}


@pytest.mark.parametrize('name', ['val', 'valid', 'validation', 'Val'])
def test_splits(tmp_path, name):
    tree = read_tree(
        touch(tmp_path, 'test/b/1.png', 'train/a/1.png', 'train/b/1.png', f'{name}/a/1.png')
    )
    assert tree.classes == ('a', 'b')
    assert list(tree.splits) == ['train', 'validation', 'test']
    assert [file.path for file in tree.splits['validation']] == [f'{name}/a/1.png']
    assert [file.label for file in tree.splits['test']] == [1]


def test_the_order_depends_on_the_names_alone_and_mixes_the_classes(tmp_path):
    fill(tmp_path / 'one', 120)
    shutil.copytree(tmp_path / 'one', tmp_path / 'other' / 'train')
    one = read_tree(tmp_path / 'one').splits['train']
    other = read_tree(tmp_path / 'other').splits['train']
    assert [f'train/{file.path}' for file in one] == [file.path for file in other]
    assert len({file.label for file in one[:12]}) == 3


def test_what_changes_the_fingerprint(tmp_path):
    touch(tmp_path, 'a/1.png', 'a/2.png', 'b/1.png')
    first = read_tree(tmp_path).fingerprint()
    assert read_tree(tmp_path).fingerprint() == first
    os.utime(tmp_path / 'a' / '1.png', ns=(1, 1))
    second = read_tree(tmp_path).fingerprint()
    (tmp_path / 'a' / '2.png').rename(tmp_path / 'a' / '3.png')
    third = read_tree(tmp_path).fingerprint()
    (tmp_path / 'a').rename(tmp_path / 'c')
    assert len({first, second, third, read_tree(tmp_path).fingerprint()}) == 4


def test_files_of_other_kinds_are_counted_and_hidden_ones_are_not(tmp_path):
    touch(tmp_path, 'README', 'a/1.png', 'a/1.txt', 'a/2.txt', 'a/.DS_Store', '.git/x.png')
    assert read_tree(tmp_path).ignored == {'': 1, '.txt': 2}


def test_links_are_followed_and_one_to_nowhere_is_seen(tmp_path):
    touch(tmp_path, 'far/away/1.png')
    (tmp_path / 'tree').mkdir()
    (tmp_path / 'tree' / 'a').symlink_to(tmp_path / 'far' / 'away')
    (tmp_path / 'far' / 'away' / '2.png').symlink_to(tmp_path / 'nowhere')
    tree = read_tree(tmp_path / 'tree')
    sizes = {file.path: file.size for file in tree.splits['train']}
    assert sizes.pop('a/1.png') == len('far/away/1.png')
    assert list(sizes) == ['a/2.png']


def test_a_link_to_itself_is_one_to_nowhere(tmp_path):
    touch(tmp_path, 'a/1.png')
    (tmp_path / 'a' / '2.png').symlink_to('2.png')
    assert {file.path for file in read_tree(tmp_path).splits['train']} == {'a/1.png', 'a/2.png'}


@pytest.mark.parametrize('split', ['', 'train/'])
def test_without_class_folders_all_images_are_one_class(tmp_path, split):
    touch(tmp_path, f'{split}1.png', f'{split}2.jpg', f'{split}notes.txt')
    tree = read_tree(tmp_path)
    assert tree.classes == ('images',)
    assert sorted((file.path, file.label) for file in tree.splits['train']) == [
        *((f'{split}1.png', 0), (f'{split}2.jpg', 0)),
    ]
    assert tree.ignored == {'.txt': 1}


def test_splits_without_class_folders(tmp_path):
    touch(tmp_path, 'train/1.png', 'val/2.png')
    assert {split: len(files) for split, files in read_tree(tmp_path).splits.items()} == {
        'train': 1,
        'validation': 1,
    }


def test_a_folder_that_leads_back_ends(tmp_path):
    touch(tmp_path, 'a/1.png')
    (tmp_path / 'a' / 'up').symlink_to('..')
    with pytest.raises(InputError, match='one level too high'):
        read_tree(tmp_path)


@pytest.mark.parametrize(
    ('paths', 'message'),
    [
        ([], r'has no images, whose names end in .*\.webp'),
        (['notes.txt'], r'has no images, whose names end in .*\.webp'),
        (['a/1.png', '2.png'], r"/2\.png' is not where an image belongs"),
        (['train/1.png', 'train/a/2.png'], r"train/1\.png' is not where"),
        (['1.png', 'val/2.png'], r"it needs a folder 'train'"),
        (['1.png', 'train/2.png'], r"/1\.png' is not where"),
        (['train/a/1.png', 'val/2.png'], r"classes that the training split lacks: 'images'"),
        (['a/1.png', 'b/1.png', 'val/1.png'], r"has 'val' beside 'a', 'b'.*leak into training"),
        (['a/1.png', 'Test/a/1.png'], r"has 'Test' beside 'a'.*leak into training"),
        (['test/a/1.png', 'val/a/1.png'], r"splits 'test', 'val': it needs a folder 'train'"),
        (['train/a/1.png', 'val/a/1.png', 'valid/a/1.png'], r'at most one for each of validation'),
        (
            ['train/a/1.png', 'val/b/1.png', 'val/a/1.png'],
            r"validation split of '.*' has classes that the training split lacks: 'b'",
        ),
        (['data/a/1.png', 'data/b/1.png'], r"data/a/1\.png' is not.*one level too high"),
        (['a /1.png'], r"class folder 'a ' .* printable"),
        (['a\nb/1.png'], r'printable'),
    ],
)
def test_what_is_no_tree(tmp_path, paths, message):
    with pytest.raises(InputError, match=message) as error:
        read_tree(touch(tmp_path, *paths))
    assert str(tmp_path) in str(error.value) or 'split' in str(error.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match='the folder of images has an empty name'):
        read_tree('')
    with pytest.raises(InputError, match=f"there is no folder '{tmp_path}/x'"):
        read_tree(tmp_path / 'x')
    touch(tmp_path, 'file')
    with pytest.raises(InputError, match='there is no folder'):
        read_tree(tmp_path / 'file')
