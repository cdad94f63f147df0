"""The notebooks: each runs from top to bottom, and is kept as its script says, with outputs."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest

from demos import build
from tarflow_jax import exchange

FOLDER = Path(build.__file__).parent
LARGEST = 1.5e6  # bytes of a notebook

# Small settings, in place of those of the cell at the top.
SETTINGS = {
    'digits': dict(EPOCHS=3, BLOCKS=1, SAMPLES_A_CLASS=1),
    'likelihood': dict(EPOCHS=0.1, BLOCKS=1, SIZE=8, IMAGES=16, CANDIDATES=10),
    'published_model': dict(IMAGES=2, GUIDANCES=(0, 1), TEMPERATURES=(0.5,)),
    'scale': dict(EPOCHS=0.5, BLOCKS=1, TOPOLOGY='v5e:2x2'),
    'your_images': dict(SIZE=8, MINUTES=0.01, CROPS=12),
}
# What a training is told besides: to be of a tiny model, and to end soon, with nothing in between.
BRIEFLY = """
    config.model.update(width=16, head_dim=8, layers_per_block=1, unroll='none')
    config.optimizer.warmup_steps = 2
    config.train.update(
        num_epochs=min(config.train.num_epochs, 3.0), evaluate_draws=1,
        evaluate_every=1000, sample_every=1000, checkpoint_every=1000,
    )
    config.sample.num_samples = 10
"""


def script(name, settings):
    """The source of a notebook with other settings, each of which it must have once.

    Of the notebook about scale, with the first and the last of its meshes.
    """
    source = (FOLDER / f'{name}.py').read_text()
    for key, value in settings.items():
        source, count = re.subn(rf'(?m)^{key} = [^#\n]*', f'{key} = {value!r} ', source)
        assert count == 1, key
    source = source.replace("    'eight, the batch shared': (8, {'data': 8, 'fsdp': 1}),\n", '')
    return source.replace('\n    train(build(config', f'{BRIEFLY}    train(build(config')


@pytest.mark.parametrize('name', SETTINGS)
def test_it_runs_from_top_to_bottom(name, tmp_path, runs, whole, golden_dir):
    settings = dict(SETTINGS[name])
    if name == 'likelihood':
        (tmp_path / 'runs').mkdir()
        (tmp_path / 'runs' / 'digits').symlink_to(whole[0])
    if name == 'published_model':  # there is no checkpoint, and a trained model stands in for it
        published = shutil.copy(golden_dir / 'cond.pth', tmp_path / 'small_model_2_64_3_2_0.10.pth')
        settings['STAND_IN'] = str(exchange.convert_to_workdir(published, tmp_path / 'trained'))
    if name == 'scale':
        settings['PLANNED'] = str(runs.config)
    runs.run_script(script(name, settings), FOLDER / f'{name}.py', tmp_path)


@pytest.mark.parametrize('name', SETTINGS)
def test_it_is_kept_as_the_script_says_with_outputs(name):
    path = FOLDER / f'{name}.ipynb'
    assert path.stat().st_size < LARGEST
    kept, expected = nbformat.read(path, as_version=4), build.read_script(name)
    assert [cell.source for cell in kept.cells] == [cell.source for cell in expected.cells]
    codes = [cell for cell in kept.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    kinds = {output.output_type for cell in codes for output in cell.outputs}
    assert kinds <= {'stream', 'execute_result', 'display_data'}


def test_no_notebook_is_forgotten():
    scripts = {path.stem for path in FOLDER.glob('*.py')} - {'build'}
    assert scripts == set(build.NAMES) == set(SETTINGS)
    named = re.findall(r'\((\w+)\.ipynb\)', (FOLDER / 'README.md').read_text())
    assert tuple(named) == build.NAMES
