"""Crops of photographs that scikit-image and scikit-learn carry: colour, and no download.

    python -m tarflow_jax.main --config=configs/photos.py --workdir=runs/photos
    python -m tarflow_jax.main --config=configs/photos.py:64p4 --workdir=runs/photos64p4
    python -m tarflow_jax.main --config=configs/photos.py:64p4w256 --workdir=runs/photos64p4w256
    python -m tarflow_jax.main --config=configs/photos.py:256 --workdir=runs/photos256

At 64 pixels, the shape of ImageNet-64, or at 256, that of AFHQ; learned in minutes on two CPU
cores, by a model that is far too small for good pictures. With patches of 4 pixels and eight
blocks (64p4) it takes longer, and has the shape of the published models: samplers are compared
on it. With layers twice as wide and twice as many (64p4w256), blocks do not fit the cache of
a core. The photographs of the test split are not those of the training split.
"""

from configs import base

VARIANTS = {  # image size, patch size, blocks, width, layers a block
    '64': (64, 8, 4, 128, 2),
    '64p4': (64, 4, 8, 128, 2),
    '64p4w256': (64, 4, 8, 256, 4),
    '256': (256, 32, 4, 128, 2),
}


def get_config(variant='64'):
    if variant not in VARIANTS:
        raise ValueError(f'there is no variant {variant!r}; there are {", ".join(VARIANTS)}.')
    config = base.get_config()
    size, patch_size, num_blocks, width, num_layers = VARIANTS[variant]
    is_wide = width > 128

    config.data.name = f'photos/{size}'
    config.data.random_flip = True
    config.model.image_shape = (size, size, 3)
    config.model.patch_size = patch_size
    config.model.width = width
    config.model.num_blocks = num_blocks
    config.model.unroll = 'all' if num_blocks > 4 else 'none'
    config.model.layers_per_block = num_layers
    config.model.dtype = 'float32'

    config.noise.std = 0.1

    config.optimizer.peak_learning_rate = 1e-3
    config.optimizer.final_learning_rate = 1e-5
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 1.0

    config.train.num_epochs = 1.0 if is_wide else 4.0
    config.train.batch_size = 32 if is_wide else 64
    config.train.ema_decay = 0.99
    config.train.log_every = 20
    config.train.evaluate_every = 256
    config.train.sample_every = 256
    config.train.checkpoint_every = 128

    config.sample.num_samples = 64

    config.evaluate.metrics = (
        *('nats_per_dim', 'bits_per_dim', 'haar_frechet', 'haar_precision', 'haar_recall'),
    )
    config.evaluate.num_samples = 2048 if size == 64 else 1024
    config.evaluate.reference_flip = True
    return config
