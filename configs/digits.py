"""Handwritten digits of 8x8 pixels, learned in minutes on two CPU cores.

python -m tarflow_jax.main --config=configs/digits.py --workdir=runs/digits
"""

from configs import base


def get_config():
    config = base.get_config()

    config.data.name = 'digits'
    config.model.image_shape = (8, 8, 1)
    config.model.num_classes = 10
    config.model.patch_size = 2
    config.model.width = 64
    config.model.num_blocks = 4
    config.model.layers_per_block = 2
    config.model.dtype = 'float32'
    config.model.unroll = 'all'

    config.noise.std = 0.1

    # High to the end: the moving average acts like the end of a cosine, and overfits later.
    config.optimizer.peak_learning_rate = 4e-3
    config.optimizer.final_learning_rate = 1e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 1.0

    config.train.num_epochs = 68.0
    config.train.batch_size = 64
    config.train.ema_decay = 0.997
    config.train.log_every = 50
    config.train.evaluate_every = 500
    config.train.evaluate_draws = 8
    config.train.sample_every = 500
    config.train.checkpoint_every = 500

    config.sample.num_samples = 100
    config.sample.batch_size = 100

    config.evaluate.metrics = (
        *('nats_per_dim', 'bits_per_dim', 'accuracy', 'cross_entropy'),
        *('haar_frechet', 'haar_precision', 'haar_recall'),
    )
    config.evaluate.num_draws = 8
    config.evaluate.num_samples = 5000
    return config
