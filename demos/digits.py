# %% [markdown]
# # Handwritten digits: a flow from its first step to its last sample
#
# This notebook trains a TarFlow on scikit-learn's 8×8 digits, and then uses it: it draws digits,
# removes their noise, guides them, and reads digits that it has never seen.
#
# Nothing is downloaded but packages. It takes a few minutes on two CPU cores.

# %%
# Settings. Fewer epochs mean shorter training and worse digits.
EPOCHS = 68
BLOCKS = 4
SAMPLES_A_CLASS = 10
WORKDIR = 'runs/digits'
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
from tarflow_jax.parallel.cores import use_cores
from tarflow_jax.stopping import Stop
from tarflow_jax.training.loop import train
from tarflow_jax.training.metrics_writer import read_metrics

# %% [markdown]
# ## Train
#
# An experiment is a config: `tarflow --config=digits --workdir=runs/digits` trains this one from
# the command line. Here it is loaded, optionally changed, and trained by a function call.

# %%
config = ConfigFile().parse('digits')
config.train.num_epochs = float(EPOCHS)
config.model.num_blocks = BLOCKS
use_cores(config.mesh, config.train.batch_size)  # on a CPU: a device for each core

experiment = build(config)


def real_digits(split):
    """The images of a split, float32 in [-1, 1], and their labels."""
    examples = experiment.dataset.split(split)
    batch = examples.__getitems__(np.arange(len(examples)))
    return batch['image'].astype(np.float32) / 8 - 1, batch['label']  # levels are 0 to 16


images, labels = real_digits('train')
print(f'{len(images):,} digits to learn; the first hundred:')
pictures.grid(images[:100], labels[:100])

# %% [markdown]
# The losses are nats per dimension: the lower, the more likely the images, with a little Gaussian
# noise on each, under the model. Digits of the test split are scored now and then.

# %%
with Stop() as stop:  # interrupting the cell saves; running it again resumes
    train(experiment, Path(WORKDIR), stop)

# %%
pictures.training_curves(read_metrics(WORKDIR))

# %% [markdown]
# ## What was trained
#
# `load` gives the model with the moving average of its parameters, as one object. An image is cut
# into patches, and each block runs through them in the direction that its arrow shows.

# %%
flow = tarflow_jax.load(WORKDIR)
print(flow)
pictures.architecture(flow.model)

# %% [markdown]
# ## Sample
#
# Sampling maps noise to images, and one seed always gives the same ones. The model has learned
# digits *with* noise on them, so it draws digits with noise.

# %%
classes = np.tile(np.arange(10), SAMPLES_A_CLASS)
samples = flow.sample(0, labels=classes)
pictures.grid(samples, classes)

# %% [markdown]
# ## Denoise and guide
#
# One step along the gradient of the log-likelihood removes the noise. Guidance moves each patch
# further in the direction in which its prediction with the label differs from that without: digits
# become more typical of their class, and less varied. All three rows begin with the same noise.

# %%
GUIDANCE = 1.0
guided = flow.sample(0, labels=classes, guidance=GUIDANCE)
pictures.comparison(
    samples[:10],
    flow.denoise(samples, classes)[:10],
    flow.denoise(guided, classes)[:10],
    captions=list(map(str, classes[:10])),
    weight=GUIDANCE,
)

# %% [markdown]
# ## From noise to digits
#
# The path of ten samples through the blocks. Each block is inverted exactly.

# %%
noise = np.random.default_rng(0).standard_normal((10, *flow.model.image_shape), np.float32)
pictures.journey(flow.journey(noise, range(10)), captions=list(map(str, range(10))))

# %% [markdown]
# ## Classify
#
# The model gives the likelihood of an image under each of the ten labels, so Bayes' rule makes it a
# classifier that was never trained as one. These are the digits of the test split.

# %%
test_images, test_labels = real_digits('test')
noisy = test_images + flow.noise.std * np.random.default_rng(0).standard_normal(
    test_images.shape, np.float32
)
read = np.asarray(flow.classify(noisy)).argmax(axis=1)
wrong = np.flatnonzero(read != test_labels)
print(f'{len(read) - len(wrong)} of {len(read)} test digits are read correctly.')

# %%
if wrong.size:
    captions = [f'{test_labels[i]} as {read[i]}' for i in wrong[:10]]
    picture = pictures.rows({'misread (the first ten)': test_images[wrong[:10]]}, captions)
picture if wrong.size else 'None was misread.'

# %% [markdown]
# ## Next
#
# * `tarflow --workdir=runs/digits --mode=evaluate` scores whole splits, and samples against them.
# * *likelihood* has log-likelihoods, interpolation and in-painting; *your_images* begins with a
#   folder of pictures.
