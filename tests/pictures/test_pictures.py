"""Pictures show what they are given, under its names, with one look in light and in dark."""

import io
import itertools
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from flows import FLOWS
from PIL import Image

from tarflow_jax import pictures
from tarflow_jax.errors import InputError
from tarflow_jax.flow import TarFlow
from tarflow_jax.pictures.journey import token_order
from tarflow_jax.pictures.latents import neighbour_correlation
from tarflow_jax.pictures.picture import INK
from tarflow_jax.sampling.calibrate import BlockReport


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def words(picture):
    return [text.get_text() for axes in picture.axes for text in axes.texts]


def shown(picture):
    (axes,) = picture.axes
    return axes.get_images()


def test_a_grid_has_a_column_for_each_class_and_shows_every_image_once():
    labels = np.array([2, 0, 0, 5, 2, 2, -1])
    levels = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1) + np.zeros((4, 4, 3), np.uint8)
    picture = pictures.grid(levels, labels, names=['cat', 'dog', 'fox'])
    assert words(picture) == ['no label', 'cat', 'fox', '5']
    places = {int(image.get_array()[0, 0, 0]): image.get_extent() for image in shown(picture)}
    assert sorted(places) == list(range(7))
    columns = [{places[i][0] for i in np.flatnonzero(labels == label)} for label in (-1, 0, 2, 5)]
    assert all(len(column) == 1 for column in columns)
    assert [min(column) for column in columns] == sorted({min(column) for column in columns})


def test_few_classes_have_several_columns_each():
    labels = np.arange(48) % 3
    picture = pictures.grid(random_images(48, 4, 4, 1), labels)
    assert words(picture) == ['0', '1', '2']
    lefts = sorted({image.get_extent()[0] for image in shown(picture)})
    assert len(lefts) == 6
    middles = [text.get_position()[0] for text in picture.axes[0].texts]
    assert lefts[0] < middles[0] < lefts[2] < middles[1] < lefts[4] < middles[2]


def test_images_of_many_classes_have_captions_of_their_own():
    names = [f'a class with the long name {i}' for i in range(40)]
    captions = words(pictures.grid(random_images(40, 4, 4, 1), np.arange(40), names))
    assert len(captions) == 40
    assert all(caption.startswith('a class') and caption.endswith('…') for caption in captions)


def test_rows_of_several_sizes_stand_under_their_captions():
    samples = {'digits': random_images(8, 8, 8, 1), 'photos': random_images(3, 64, 64, 3)}
    picture = pictures.resolutions(samples)
    assert words(picture) == ['digits, 8×8', 'photos, 64×64']
    extents = [image.get_extent() for image in shown(picture)]
    assert len(extents) == 11
    assert min(top for *_, top in extents[8:]) > max(bottom for _, _, bottom, _ in extents[:8])


def test_a_comparison_leaves_out_what_there_is_not():
    images = random_images(3, 4, 4, 1)
    assert words(pictures.comparison(images)) == ['as sampled']
    full = words(pictures.comparison(images, images, images, ['a', 'b', 'c'], weight=1.5))
    assert full == ['a', 'b', 'c', 'as sampled', 'denoised', 'guided, weight 1.5']


def test_what_is_no_image_is_refused():
    with pytest.raises(InputError, match=r'\[3, 4, 4, 2\]'):
        pictures.grid(random_images(3, 4, 4, 2))
    for labels in [1], ['cat', 'dog', 'cat']:
        with pytest.raises(InputError, match='labels must be whole numbers, one for each of 3'):
            pictures.grid(random_images(3, 4, 4, 1), labels)
    with pytest.raises(InputError, match='no rows of images'):
        pictures.rows({})
    with pytest.raises(InputError, match=r'must lie in 0\.\.255; got 300 to 300'):
        pictures.grid(np.full((1, 4, 4, 1), 300))
    draws = pictures.latents, pictures.latent_statistics, pictures.journey
    for draw in *draws, lambda stages: pictures.animation(stages, 2):
        with pytest.raises(InputError, match=r'by block, .* got the shape \[3, 4, 4, 1\]'):
            draw(random_images(3, 4, 4, 1))
    for patch_size in 0, 3:
        with pytest.raises(InputError, match='patch_size'):
            pictures.animation(random_images(3, 1, 4, 4, 1), patch_size)


def test_curves_show_what_was_recorded():
    records = [
        {'step': 50, 'train/loss': 2.0, 'train/grad_norm': 1.0, 'train/learning_rate': 1e-3},
        {'step': 60, 'test/nats_per_dim': 0.5},
        {'step': 100, 'train/loss': None, 'train/grad_norm': None, 'train/learning_rate': 1e-3},
    ]
    losses, *others = pictures.training_curves(records).axes
    train, test, _ = losses.get_lines()
    np.testing.assert_array_equal(train.get_xydata(), [[50, 2], [100, np.nan]])
    np.testing.assert_array_equal(test.get_xydata(), [[60, 0.5]])
    titles = [axes.get_title('left') for axes in others]
    assert titles == ['gradient norm', 'learning rate']
    diverged = [{'step': 1, 'train/loss': 1.0, 'test/nats_per_dim': None}]
    assert pictures.training_curves(diverged).axes
    with pytest.raises(InputError, match='train/loss'):
        pictures.training_curves([{'step': 1, 'train/grad_norm': 1.0}])


def test_latents_stand_beside_noise_and_noise_has_no_correlation():
    stages = random_images(4, 5, 8, 8, 1)
    assert words(pictures.latents(stages))[-2:] == ['after block 3 of 3', 'noise, for comparison']
    density, deviation, correlation = pictures.latent_statistics(stages).axes
    assert len(density.get_lines()) == 5
    assert len(deviation.get_lines()[0].get_xdata()) == 4
    assert len(correlation.get_lines()[0].get_xdata()) == 4
    noise = np.random.default_rng(0).normal(size=(200, 8, 8, 1))
    assert abs(neighbour_correlation(noise)) < 0.02
    smooth = noise + np.roll(noise, 1, axis=2) + np.roll(noise, 1, axis=1)
    assert neighbour_correlation(smooth) > 0.3
    assert neighbour_correlation(np.ones((3, 1, 1, 1))) == 0


@pytest.mark.parametrize('suffix', ['.png', '.gif'])
def test_the_journey_goes_from_noise_to_the_images_token_by_token(suffix, tmp_path):
    """Between the two ends, a frame differs from the one before in one token of each image."""
    stages = random_images(3, 2, 4, 4, 1)
    assert words(pictures.journey(stages)) == [
        'noise',
        'block 2 solved',
        'block 1 solved: the images',
    ]
    pictures.write_animation(tmp_path / f'way{suffix}', stages, patch_size=2)
    with Image.open(tmp_path / f'way{suffix}') as film:
        assert film.n_frames == 1 + 2 * 4
        frames = []
        for number in range(film.n_frames):
            film.seek(number)
            frames.append(np.array(film.convert('L'), np.int32))
    for before, after in itertools.pairwise(frames):
        changed = (before != after)[:64, :64]
        assert 0 < changed.mean() <= 1 / 4
    with pytest.raises(InputError, match=r'\.png or a \.gif'):
        pictures.animation(stages, 2, '.bmp')


def test_tokens_are_solved_in_the_direction_of_their_block():
    order = token_order((4, 6), patch_size=2, reverse=False)
    assert order[::2, ::2].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert token_order((4, 6), patch_size=2, reverse=True)[0, 0] == 5


@pytest.mark.parametrize('name', FLOWS)
def test_the_architecture_names_every_block(name):
    model = FLOWS[name]
    texts = words(pictures.architecture(model))
    assert [t for t in texts if t.startswith('block ')] == [
        f'block {i}' for i in range(1, model.num_blocks + 1)
    ]
    assert any(t.endswith(f'{model.num_classes} classes') for t in texts) == bool(model.num_classes)


def test_of_many_blocks_those_in_the_middle_are_counted():
    texts = words(
        pictures.architecture(TarFlow((4, 4, 1), 2, width=64, num_blocks=20, layers_per_block=1))
    )
    assert len([t for t in texts if t.startswith('block ')]) == 6
    assert any('14 more blocks' in t for t in texts)


def test_a_calibration_has_a_line_for_each_block():
    reports = [
        BlockReport(times={1: 1.0, 4: 0.5}, errors=[1.0, 0.1], settled=[0, 3], crm=2.0),
        BlockReport(errors=[1.0, 0.5], settled=[0, 1], crm=3.0),
    ]
    errors, settled, times, metrics = pictures.calibration(reports, tolerance=1e-3).axes
    assert len(settled.get_lines()) == 2
    assert len(times.get_lines()) == 2
    assert [t.get_text() for t in errors.get_legend().get_texts()] == ['block 1', 'block 2']
    assert len(metrics.texts) == 2


def test_a_picture_is_the_same_svg_each_time_in_the_ink_of_its_page(tmp_path):
    def draw():
        return pictures.grid(random_images(4, 8, 8, 1), [0, 1, 2, 3])

    svg = draw().svg()
    assert svg == draw().svg()
    assert ElementTree.fromstring(svg).tag.endswith('svg')
    assert 'prefers-color-scheme:dark' in svg
    assert svg.count(INK) == 1  # as the default of the variable
    draw().write(tmp_path / 'grid.svg')
    assert (tmp_path / 'grid.svg').read_text() == svg
    draw().write(tmp_path / 'grid.png')
    with Image.open(tmp_path / 'grid.png') as png, Image.open(io.BytesIO(draw().png())) as again:
        assert png.width == again.width == 780
    with pytest.raises(InputError, match=r'\.svg or \.png'):
        draw().write(tmp_path / 'grid.jpg')


def test_without_matplotlib_the_extra_is_named():
    code = "import sys; sys.modules['matplotlib'] = None; from tarflow_jax import pictures"
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert "pip install 'tarflow_jax[pictures]'" in result.stderr.splitlines()[-1]
