# %% [markdown]
# # Scale: the same training on eight devices, and a plan for a pod
#
# One program trains on one device or on many: a mesh says how many devices share the batch, and how
# many share the parameters. This notebook trains one flow on one device and on eight simulated
# CPU devices, compares the numbers, and plans a large training on hardware that is not here.
#
# It takes a few minutes on two CPU cores, on which eight devices are no faster than one.

# %%
# Settings.
EPOCHS = 3
BLOCKS = 2
PLANNED = 'photos'  # an experiment; afhq256 is the paper's, and compiles for minutes
TOPOLOGY = 'v5e:2x4'  # eight chips
FOLDER = 'runs/scale'
PROJECT = '..'  # this project's folder or wheel, which is installed if it is not yet

# %%
import importlib.util
import subprocess
import sys

if not importlib.util.find_spec('tarflow_jax'):
    command = [sys.executable, '-m', 'pip', 'install', '-q', f'{PROJECT}[pictures]']
    subprocess.run(command, check=True)

# %%
import jax

jax.config.update('jax_platforms', 'cpu')  # also where there is an accelerator
jax.config.update('jax_num_cpu_devices', 8)

from pathlib import Path

import numpy as np

import tarflow_jax
from tarflow_jax import pictures
from tarflow_jax.build import build
from tarflow_jax.configfile import ConfigFile
from tarflow_jax.planning.plan import plan
from tarflow_jax.stopping import Stop
from tarflow_jax.training.loop import train
from tarflow_jax.training.metrics_writer import read_metrics

# %% [markdown]
# ## One device, and eight
#
# Data order, noise and initial parameters depend on the seed and the step, not on the devices.
# In the second and the third run each device has an eighth of the batch. In the third it also keeps
# only a quarter of the parameters, and gathers the rest when it needs them.

# %%
MESHES = {
    'one device': (1, {}),
    'eight, the batch shared': (8, {'data': 8, 'fsdp': 1}),
    'eight, the parameters shared by four': (8, {'data': 2, 'fsdp': 4}),
}


def trained(number, mesh):
    """The workdir of a training on so many devices."""
    config = ConfigFile().parse('digits')
    config.train.num_epochs = float(EPOCHS)
    config.model.num_blocks = BLOCKS
    config.optimizer.warmup_steps = 10
    config.train.log_every = 10
    config.mesh.update(mesh)
    workdir = Path(FOLDER, '-'.join([str(number), *map(str, mesh.values())]))
    with Stop() as stop:
        train(build(config, jax.devices()[:number]), workdir, stop)
    return workdir


workdirs = {name: trained(*mesh) for name, mesh in MESHES.items()}

# %% [markdown]
# Sums are computed in another order, so the numbers agree up to rounding, which training amplifies
# step by step.

# %%
losses = {
    name: [record['train/loss'] for record in read_metrics(path) if 'train/loss' in record]
    for name, path in workdirs.items()
}
flows = {name: tarflow_jax.load(path) for name, path in workdirs.items()}
samples = {name: flow.sample(0, 10) for name, flow in flows.items()}
one = 'one device'
for name in MESHES:
    loss = np.abs(np.subtract(losses[name], losses[one])).max()
    pixel = float(abs(samples[name] - samples[one]).max())
    print(f'{name:37} last loss {losses[name][-1]:.6f}, losses differ by {loss:.1e} at most,')
    print(f'{"":37} pixels of samples by {pixel:.1e}')

# %%
pictures.rows(samples)

# %% [markdown]
# ## A plan for a pod
#
# The compiler for TPUs, the package libtpu, needs no TPU. It compiles a training run for any
# topology, which shows how much memory it takes and about how long. The same from the command line:
# `tarflow --config=photos --workdir=plans --mode=plan --topology=v5e:2x4`.

# %%
if importlib.util.find_spec('libtpu'):
    plan(ConfigFile().parse(PLANNED), FOLDER, TOPOLOGY, search_batch=False, quick=True)
else:
    print('libtpu, the compiler for TPUs, is not installed: pip install libtpu')
