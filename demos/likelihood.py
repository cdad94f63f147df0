# %% [markdown]
# # How likely is an image?
#
# A flow gives the exact density of every image. This notebook trains a small one on crops of
# photographs, asks how likely other images are, interpolates between photographs in latent space,
# and completes digits of which only a half is known.
#
# Nothing is downloaded but packages. It takes a few minutes on two CPU cores.

# %%
# Settings. More epochs and blocks mean a better model and longer training.
EPOCHS = 6
BLOCKS = 4
SIZE = 16  # pixels of a side
IMAGES = 256  # that are scored
WORKDIR = 'runs/likelihood'
COMPLETED = 50  # digits
CANDIDATES = 2000  # samples, one of which each completed digit starts from
DIGITS = 'runs/digits'  # of the notebook digits; trained here if it is not there
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

import tarflow_jax
from tarflow_jax import pictures
from tarflow_jax.build import build
from tarflow_jax.configfile import ConfigFile
from tarflow_jax.data.sources import open_dataset
from tarflow_jax.parallel.cores import use_cores
from tarflow_jax.stopping import Stop
from tarflow_jax.training.loop import train

# %% [markdown]
# ## A model with a true code length
#
# Pixel levels are integers, and have no density. With noise that is uniform over each level's bin
# they have one, and its negative logarithm bounds the bits that a code for the images needs. So
# `noise.type` is uniform here, whereas models for sampling have Gaussian noise.

# %%
config = ConfigFile().parse('photos')
config.data.name = f'photos/{SIZE}'
config.model.image_shape = (SIZE, SIZE, 3)
config.model.patch_size = SIZE // 8
config.model.num_blocks = BLOCKS
config.model.width = 64
config.noise.type = 'uniform'
config.train.num_epochs = float(EPOCHS)
config.optimizer.warmup_steps = 10
config.sample.num_samples = 16
use_cores(config.mesh, config.train.batch_size)  # on a CPU: a device for each core

with Stop() as stop:  # interrupting the cell saves; running it again resumes
    train(build(config), Path(WORKDIR), stop)
flow = tarflow_jax.load(WORKDIR)
print(flow)

# %% [markdown]
# ## Bits per dimension
#
# Crops of two photographs that the model has never seen. Without a model, each of the three colours
# of a pixel takes 8 bits.

# %%
split = build(config).dataset.split('test')
photographs = split.__getitems__(np.arange(min(IMAGES, len(split))))['image']
bits = flow.bits_per_dim(photographs)
print(f'{bits.mean():.2f} bits per dimension, from {bits.min():.2f} to {bits.max():.2f}.')

order = np.argsort(bits)
ends = {'the eight most likely': order[:8], 'the eight least likely': order[-8:]}
pictures.rows({name: photographs[index] for name, index in ends.items()})

# %% [markdown]
# ## Unusual images
#
# The same question for images that are not photographs, or have been altered.

# %%
draws = np.random.default_rng(0)
pixels = photographs.reshape(len(photographs), -1, 3)
colours = draws.integers(0, 256, (len(photographs), 1, 1, 3), np.uint8)
odd = {
    'photographs': photographs,
    'upside down': photographs[:, ::-1],
    'negatives': 255 - photographs,
    'pixels shuffled': draws.permuted(pixels, axis=1).reshape(photographs.shape),
    'one colour': np.broadcast_to(colours, photographs.shape),
    'noise': draws.integers(0, 256, photographs.shape, np.uint8),
}
scores = {name: flow.bits_per_dim(images, num_draws=1) for name, images in odd.items()}
captions = {name: f'{name}: {score.mean():.2f} bits per dim' for name, score in scores.items()}
pictures.rows({captions[name]: images[:8] for name, images in odd.items()})


# %%
def auroc(usual, unusual):
    """How often an unusual image takes more bits than a usual one."""
    return (unusual[:, None] > usual).mean()


for name, score in scores.items():
    if name != 'photographs':
        print(f'{name:16} AUROC {auroc(scores["photographs"], score):.3f}')

# %% [markdown]
# Noise takes far more bits than any photograph, and shuffled pixels nearly always do. But a
# photograph upside down or a negative is as likely as before, and so is a single colour: this
# density depends mostly on how predictable pixels are from their neighbours, and hardly on what is
# shown. An image with a high density need not be one that the model would draw.

# %% [markdown]
# ## Between two photographs
#
# Latents of photographs look like noise, and so do points between two of them on a great circle.
# Mapped back to images, both ends are the photographs themselves.

# %%
first, last = photographs[:4], photographs[5:9]
between = np.asarray(flow.interpolate(first, last, steps=8))
print(f'The ends differ by {np.abs(between[0] - (first / 127.5 - 1)).max():.1e} at most.')
pictures.rows({f'pair {i + 1}': between[:, i] for i in range(4)})

# %% [markdown]
# ## In-painting
#
# The upper half of each digit is given; its class is not. A Markov chain samples the lower
# half and the class together, from the density of whole digits. Each of its steps is accepted or
# rejected by that density, so its samples are those of the model's posterior.

# %%
if not Path(DIGITS).exists():
    with Stop() as stop:
        train(build(ConfigFile().parse('digits')), Path(DIGITS), stop)
digits = tarflow_jax.load(DIGITS)

split = open_dataset('digits', config.data.dir).split('test')
batch = split.__getitems__(np.arange(COMPLETED))
real = batch['image'].astype(np.float32) / 8 - 1  # levels are 0 to 16
known = np.broadcast_to(np.arange(8)[:, None] < 4, (8, 8))
first, second = (digits.inpaint(real, known, key=i, num_candidates=CANDIDATES) for i in range(2))

right = int((np.asarray(first.labels) == batch['label']).sum())
print(f'{100 * np.mean(first.acceptance):.0f} % of the steps were accepted.')
print(f'{right} of {COMPLETED} classes are found from half of the digit.')
pictures.rows(
    {
        'real digits': real[:10],
        'what is given': np.where(known[..., None], real[:10], 0),
        'completed': first.images[:10],
        'completed once more': second.images[:10],
    },
    captions=[f'read as {label}' for label in np.asarray(first.labels)[:10]],
)
