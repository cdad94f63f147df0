import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest
from image_trees import CLASSES, damage, fill

from tarflow_jax.configfile import ConfigFile
from tarflow_jax.data import prepare
from tarflow_jax.data.sources import open_dataset
from tarflow_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
NEXT = '  python -m tarflow_jax.main '


def start(*arguments, workers=None):
    command = [sys.executable, '-m', 'tarflow_jax.data.prepare', *map(str, arguments)]
    command += [f'--workers={workers}'] if workers else []
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)


def run(*arguments, **options):
    """Exit status, stdout and stderr of the command."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture
def images(tmp_path):
    fill(tmp_path / 'images', 30)
    return tmp_path / 'images'


def test_a_folder_of_images(tmp_path):
    """In two processes; what it says is all there is to know."""
    fill(tmp_path / 'images' / 'train', 300)
    fill(tmp_path / 'images' / 'val', 30, seed=1)
    damage(tmp_path / 'images' / 'train')
    data_dir = tmp_path / 'data'
    options = (f'--folder={tmp_path}/images', '--size=16', f'--data_dir={data_dir}')
    status, out, err = run('animals', *options, workers=2)
    assert (status, err) == (0, '')
    for line in (
        '3 classes; image files: 302 train, 30 validation.',
        f'animals is prepared in {data_dir}/animals/1.0.0',
        '  train       300 images',
        '  validation  30 images',
        '  classes     3',
        '  images      16x16x3',
        f'  left out    the files in {data_dir}/animals/1.0.0/unreadable.txt',
    ):
        assert line in out.splitlines(), out
    animals = open_dataset('animals', data_dir)
    assert animals.image_shape == (16, 16, 3)
    assert animals.num_classes == len(CLASSES)
    assert len(animals.split('train')) == 300
    assert shlex.split(out.splitlines()[-1]) == [
        *('python', '-m', 'tarflow_jax.main'),
        *(f'--config=images:animals,dir={data_dir}', '--workdir=runs/animals'),
    ]


def test_our_own_data_set(tmp_path, capsys):
    prepare.main(['digits', f'--data_dir={tmp_path}'])
    out = capsys.readouterr().out
    assert f'digits is prepared in {tmp_path}/digits/1.0.0' in out
    assert '  train       1,498 images' in out
    assert '  images      8x8x1' in out
    assert f'{NEXT}--config=digits --workdir=runs/digits' in out


def test_the_command_that_is_next_trains(tmp_path, capsys, runs):
    """As it is printed, but one block for one step."""
    fill(tmp_path / 'images', 80)
    options = (f'--folder={tmp_path}/images', '--size=16', '--workers=1')
    prepare.main(['animals', *options, f'--data_dir={tmp_path}/data'])
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[-1] == '--workdir=runs/animals'
    one_step = ('--config.train.num_epochs=0.1', '--config.optimizer.warmup_steps=0')
    small = ('--config.model.num_blocks=1', '--config.model.layers_per_block=1')
    result = runs.run(
        tmp_path / 'run', words[3], *one_step, *small, '--config.sample.num_samples=4'
    )
    assert 'Trained to step 1' in result.out
    assert ', 76 images of animals' in result.out


def test_the_command_needs_no_folder_that_is_the_default(tmp_path, capsys, monkeypatch):
    fill(tmp_path / 'images', 8)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'data'))
    prepare.main(['animals', f'--folder={tmp_path}/images', '--size=16', '--workers=1'])
    *_, expectation, command = capsys.readouterr().out.splitlines()
    assert 'ten minutes on two CPU cores' in expectation
    assert 'animals,minutes=60 or, on a GPU, animals,hours=8' in expectation
    words = shlex.split(command)
    assert words[3:] == ['--config=images:animals', '--workdir=runs/animals']


def test_no_file_of_the_folder_is_executed(tmp_path, monkeypatch, capsys):
    """There may be configs of somebody else's, or files that are none, where the command is run."""
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'a.py').write_text(f'open("{tmp_path}/executed", "w")')
    monkeypatch.chdir(tmp_path)
    prepare.main(['digits', f'--data_dir={tmp_path}/data'])
    assert f'{NEXT}--config=digits' in capsys.readouterr().out
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('name', prepare._EXPERIMENTS)
def test_our_experiments_are_those_of_our_data(name):
    assert ConfigFile().parse(prepare._EXPERIMENTS[name]).data.name == name


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'NAME'),
        (['animals', '--folder=/nowhere'], '--folder needs --size'),
        (['animals', '--folder=/nowhere', '--size=8'], "no folder '/nowhere'"),
        (['animals', '--folder=/nowhere', '--size=x'], "--size: must be a whole number; got 'x'"),
        (
            ['digits', '--size=8', '--upscale'],
            '--size and --upscale can be given with',
        ),
        (['animals', '--folder=/', '--size=8', '--manual_dir=/'], '--manual_dir is for TFDS'),
        (['animals', '--folder=', '--size=8'], 'the folder of images has an empty name'),
        (['digits', '--data_dir='], 'data_dir is empty'),
        (['mnist', '--manual_dir='], 'manual_dir is empty'),
        (['mnist', '--folder=/nowhere', '--size=8'], "'mnist' is the name of a data set of TFDS"),
        (['digits', '--colour'], 'unrecognized arguments: --colour'),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(InputError, match=message):
        prepare.main(arguments)


def test_a_mistake_is_told_without_a_traceback(tmp_path):
    status, out, err = run('animals', f'--folder={tmp_path}/x', '--size=8')
    assert (status, out) == (2, '')
    assert err.startswith(f"error: there is no folder '{tmp_path}/x'")
    assert len(err.splitlines()) == 1


def interrupt(process):
    """Ctrl-C, which a terminal sends to all processes."""
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, 'error: interrupted. Run the same command again.\n')


def test_ctrl_c_while_workers_start(images, tmp_path):
    options = (f'--folder={images}', '--size=16', f'--data_dir={tmp_path}')
    process = start('animals', *options, workers=2)
    assert process.stdout.readline() == '3 classes; image files: 30 train.\n'
    interrupt(process)


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    fill(tmp_path / 'images', 900)
    options = (f'--folder={tmp_path}/images', '--size=512', '--upscale', f'--data_dir={tmp_path}')
    process = start('animals', *options, workers=2)
    while not list(tmp_path.glob('animals/*.half_prepared/reports/*.json')):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    interrupt(process)
    kept = list(tmp_path.glob('animals/*.half_prepared/reports/*.json'))
    assert 0 < len(kept) < 4
