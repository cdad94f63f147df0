"""AFHQ at 256x256 pixels, three classes: the paper's 8-768-8-8 with noise 0.07.

    python -m tarflow_jax.main --config=configs/afhq256.py --workdir=runs/afhq256

463.5 million parameters; the paper trains it on eight A100s. The data set must stand prepared as
ArrayRecord in `config.data.dir` under the name of `config.data.name`.
"""

from configs import base


def get_config():
    config = base.get_config()

    config.data.name = 'afhq'
    config.data.random_flip = True
    config.model.image_shape = (256, 256, 3)
    config.model.num_classes = 3
    config.model.patch_size = 8

    config.noise.std = 0.07

    config.optimizer.warmup_steps = 57  # an epoch of 14,630 images

    config.train.num_epochs = 4000.0
    config.train.sample_every = 11_400  # 200 epochs

    config.sample.guidance = 3.4
    config.sample.anneal_guidance = True
    return config
