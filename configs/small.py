"""A small model of any images, to begin with: about two million parameters, in float32.

    python -m tarflow_jax.main --config=configs/small.py --workdir=runs/small
    python -m tarflow_jax.main --config=configs/small.py:28x28x1 --workdir=runs/mnist --config.data.name=mnist --config.model.num_classes=10

The first learns crops of photographs; for other images say their height, width and channels after
the colon. A data set need have no split for tests: a twentieth of the training images is kept for
them. If there is one, --config.data.train_split=train --config.data.test_split=test and
--config.evaluate.splits='("test",)' take it.
"""  # noqa: E501

from configs import base

MOST_TOKENS_A_SIDE = 16


def get_config(shape='64x64x3'):
    try:
        height, width, channels = map(int, shape.split('x'))
    except ValueError:
        raise ValueError(f'{shape!r} is no shape HEIGHTxWIDTHxCHANNELS such as 64x64x3.') from None
    config = base.get_config()

    config.data.name = 'photos/64'
    config.data.train_split = 'train[5%:]'
    config.data.test_split = 'train[:5%]'
    config.model.image_shape = (height, width, channels)
    config.model.patch_size = suggested_patch_size(height, width)
    config.model.width = 128
    config.model.num_blocks = 4
    config.model.layers_per_block = 2
    config.model.dtype = 'float32'

    config.optimizer.peak_learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.train.batch_size = 64

    config.evaluate.splits = ('train[:5%]',)
    return config


def suggested_patch_size(height, width):
    """The smallest that divides the sides and leaves few tokens."""
    sizes = range(1, max(height, width) + 1)
    divisors = [size for size in sizes if height % size == width % size == 0]
    few = [size for size in divisors if max(height, width) <= size * MOST_TOKENS_A_SIDE]
    return (few or divisors or [1])[0]
