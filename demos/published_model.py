# %% [markdown]
# # A published model: samples from a checkpoint that others trained
#
# This notebook loads a checkpoint of the published code, such as those for AFHQ and ImageNet, and
# shows what affects samples: guidance, temperature, the denoising step, and how they are computed.
#
# Put the file beside the notebook, and its name into the settings. The AFHQ model has 463 million
# parameters and is best run on a GPU. Where there is no such file, a stand-in is written in the
# same format: the small model of the notebook *digits*, or if that was not run, one that was
# trained only briefly.

# %%
# Settings.
CHECKPOINT = 'afhq_model_8_768_8_8_0.07.pth'
STAND_IN = 'runs/digits'
IMAGES = 10
GUIDANCES = (0, 1, 2, 4)
TEMPERATURES = (1.0, 0.9, 0.8, 0.6)
PROJECT = '..'  # this project's folder or wheel, which is installed if it is not yet

# %%
import importlib.util
import subprocess
import sys

if not importlib.util.find_spec('tarflow_jax'):
    command = [sys.executable, '-m', 'pip', 'install', '-q', f'{PROJECT}[pictures]']
    subprocess.run(command, check=True)

# %%
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from IPython.display import Image

import tarflow_jax
from tarflow_jax import exchange, pictures
from tarflow_jax.build import build
from tarflow_jax.configfile import ConfigFile
from tarflow_jax.stopping import Stop
from tarflow_jax.training.loop import train

# %% [markdown]
# ## Load
#
# The name of a published file says its data set, patch size, width, blocks, layers and noise; the
# tensors say the rest.

# %%
checkpoint = Path(CHECKPOINT)
if not checkpoint.exists():
    print(f'There is no {CHECKPOINT} here, so a small stand-in is written.')
    if not Path(STAND_IN).exists():
        config = ConfigFile().parse('digits')
        config.train.num_epochs = 10.0
        with Stop() as stop:
            train(build(config), Path(STAND_IN), stop)
    checkpoint = exchange.convert_to_published(STAND_IN, tempfile.mkdtemp())

flow = tarflow_jax.load(checkpoint)
print(checkpoint.name)
print(flow)

# %% [markdown]
# ## Guidance
#
# Each row begins with the same noise. With more guidance, images are more like their class and less
# like one another; with far too much, they are oversaturated.

# %%
num_classes = flow.model.num_classes
labels = np.arange(IMAGES) % num_classes if num_classes else None
captions = [] if labels is None else [f'class {label}' for label in labels]
images = {weight: flow.sample(0, IMAGES, labels, guidance=float(weight)) for weight in GUIDANCES}
pictures.rows({f'guidance {weight}': rows for weight, rows in images.items()}, captions)

# %% [markdown]
# ## Temperature
#
# The noise may have a smaller standard deviation than the model was trained for: images become
# smoother and less varied.

# %%
cooler = {t: flow.sample(0, IMAGES, labels, temperature=t) for t in TEMPERATURES}
pictures.rows({f'temperature {t:g}': rows for t, rows in cooler.items()}, captions)

# %% [markdown]
# ## The denoising step
#
# The model learned images with Gaussian noise, and so draws them with noise. One step along the
# gradient of the log-likelihood removes it.

# %%
weight = GUIDANCES[1]
pictures.comparison(
    images[0],
    flow.denoise(images[0], labels),
    flow.denoise(images[weight], labels),
    captions,
    weight,
)

# %% [markdown]
# ## Sequential and parallel
#
# Sampling solves each block token by token. The same images are a fixed point, which can be found
# for windows of tokens in parallel, up to a tolerance. The residual says how far an image is from
# solving its blocks; the difference is that to the sequential image, where pixels span 2.

# %%
model, params = flow
noise = jax.random.normal(jax.random.key(0), (IMAGES, *model.image_shape))


def timed(**settings):
    """The images of the same noise, their largest residual, and the fastest call's seconds."""
    seconds = []
    for _ in range(6):  # the first call compiles
        start = time.perf_counter()
        drawn, residual = jax.block_until_ready(
            tarflow_jax.sample(model, params, noise, labels, return_residual=True, **settings)
        )
        seconds.append(time.perf_counter() - start)
    return drawn, float(residual.max()), min(seconds)


sequential, residual, seconds = timed(method='sequential')
print('method      tolerance  seconds  residual  difference')
print(f'sequential          -  {seconds:7.3f}   {residual:.1e}           -')
for tolerance in 1e-1, 1e-2, 1e-3:
    drawn, residual, seconds = timed(method='parallel', tolerance=tolerance)
    difference = float(abs(drawn - sequential).max())
    print(f'parallel    {tolerance:9g}  {seconds:7.3f}   {residual:.1e}     {difference:.1e}')

# %% [markdown]
# Which is faster depends on the model, the batch and the machine: parallel windows are faster where
# a single token does not keep the device busy. `--mode=calibrate` measures that for every block,
# and `method='auto'` then uses the result.

# %% [markdown]
# ## From noise to images
#
# The path through the blocks, and the sampler at work, token by token.

# %%
stages = np.asarray(tarflow_jax.sample(model, params, noise, labels, return_sequence=True))
pictures.journey(stages, captions)

# %%
Image(pictures.animation(stages, model.patch_size), format='png')
