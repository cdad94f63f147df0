# %% [markdown]
# # Your images: from a folder of pictures to samples
#
# This notebook prepares a folder of pictures, trains a model for as many minutes as you choose, and
# draws new ones. Name your own folder in the settings; where it is not there, crops of photographs
# that scikit-image carries stand in for your pictures.
#
# Nothing is downloaded but packages. It takes little more than the minutes in the settings.

# %%
# Settings.
FOLDER = 'runs/my_pictures'  # pictures of any size, in a folder for each class if there are classes
NAME = 'mine'
SIZE = 32  # pixels of a side; larger images take longer
MINUTES = 2  # of training, on two idle CPU cores; ten show more
CROPS = 1000  # that stand in
DATA = 'runs/data'
WORKDIR = 'runs/mine'
PROJECT = '..'  # this project's folder or wheel, which is installed if it is not yet

# %%
import importlib.util
import subprocess
import sys

if not importlib.util.find_spec('tarflow_jax'):
    command = [sys.executable, '-m', 'pip', 'install', '-q', f'{PROJECT}[pictures]']
    subprocess.run(command, check=True)

# %%
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

import tarflow_jax
from tarflow_jax import pictures
from tarflow_jax.build import build
from tarflow_jax.configfile import ConfigFile
from tarflow_jax.data.image_folder.preparation import prepare_image_folder
from tarflow_jax.parallel.cores import use_cores
from tarflow_jax.stopping import Stop
from tarflow_jax.training.loop import train
from tarflow_jax.training.metrics_writer import read_metrics

# %% [markdown]
# ## A folder of pictures


# %%
def cut(photo, folder, count, side=96):
    """Writes random square crops of a photograph as PNGs."""
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for i in range(count):
        top, left = draws.integers(0, np.array(photo.shape[:2]) - side)
        Image.fromarray(photo[top : top + side, left : left + side]).save(folder / f'{i}.png')


if not Path(FOLDER).exists():
    print(f'There is no folder {FOLDER}: it is filled with crops of two photographs.')
    cut(skimage.data.astronaut(), Path(FOLDER, 'astronaut'), CROPS // 2)
    cut(skimage.data.coffee(), Path(FOLDER, 'coffee'), CROPS // 2)
files = [path for path in Path(FOLDER).rglob('*') if path.is_file()]
print(f'{len(files):,} files in {FOLDER}.')

# %% [markdown]
# ## Three lines
#
# Prepare the folder, choose a model and a training run for the available time, and train. On the
# command line these are `python -m tarflow_jax.data.prepare mine --folder=FOLDER --size=32`
# and `tarflow --config=images:mine --workdir=runs/mine`.

# %%
if not Path(DATA, NAME).exists():
    prepare_image_folder(NAME, FOLDER, DATA, size=SIZE)
config = ConfigFile().parse(f'images:{NAME},minutes={MINUTES},dir={DATA}')
use_cores(config.mesh, config.train.batch_size)  # on a CPU: a device for each core

# %%
with Stop() as stop:  # interrupting the cell saves; running it again resumes
    train(build(config), Path(WORKDIR), stop)

# %%
pictures.training_curves(read_metrics(WORKDIR))

# %% [markdown]
# ## Real pictures, and samples
#
# After minutes on a CPU, samples show colours and rough shapes at best. More minutes, or hours
# on a GPU, mean a larger model and longer training.

# %%
flow = tarflow_jax.load(WORKDIR)
dataset = build(config).dataset
real = dataset.split('train').__getitems__(np.arange(1000) % dataset.splits['train'].num_examples)
print(flow)
pictures.grid(real['image'][:25])

# %%
COLUMNS = 8
num_classes = flow.model.num_classes
labels = np.arange(COLUMNS) % num_classes if num_classes else None
names = [] if labels is None else [dataset.class_names[label] for label in labels]
samples = {
    temperature: flow.denoise(flow.sample(0, COLUMNS, labels, temperature=temperature), labels)
    for temperature in (1.0, 0.8, 0.6)
}
pictures.rows({f'temperature {t:g}': images for t, images in samples.items()}, names)
