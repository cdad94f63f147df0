"""The models and batches that the benchmarks time, by name."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from configs import base, paper

GUIDANCE = 1.0
NOISE_STD = 0.1
PROJ_OUT_STD = 0.2  # of the last projection's weights, times the square root of the width


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model with the batches it is timed at.

    Attributes:
      image_shape: height, width and channels.
      patch_size: side of a patch in pixels.
      width: features of a token.
      num_blocks: autoregressive blocks.
      layers_per_block: transformer layers in each.
      num_classes: classes to condition on, 0 for none.
      batch_size: images of a training step.
      num_samples: numbers of images that are sampled at a time.
      data: the data set of such images that is read from disk, if there is one.
      dtype: 'float32', or 'bfloat16' for models that are trained on accelerators.
    """

    image_shape: tuple[int, int, int]
    patch_size: int
    width: int
    num_blocks: int
    layers_per_block: int
    num_classes: int
    batch_size: int
    num_samples: tuple[int, ...]
    data: str = ''
    dtype: str = 'float32'

    def config(self) -> ConfigDict:
        """A config of this model, with the optimizer of the published code."""
        config = base.get_config() if self.dtype == 'float32' else paper.get_config()
        for key in dataclasses.fields(self):
            if key.name in config.model:
                config.model[key.name] = getattr(self, key.name)
        if self.dtype == 'bfloat16':
            config.model.unroll = 'all'
        config.train.batch_size = self.batch_size
        config.noise.std = NOISE_STD
        return config


WORKLOADS = {
    'digits': Workload((8, 8, 1), 2, 64, 4, 2, 10, 64, (100,), 'digits'),
    'mnist': Workload((28, 28, 1), 4, 128, 4, 4, 10, 256, (100,)),
    'photos64': Workload((64, 64, 3), 4, 256, 4, 4, 0, 16, (16, 1), 'photos/64'),
    'photos256': Workload((256, 256, 3), 8, 256, 4, 4, 0, 4, (1,), 'photos/256'),
    'imagenet64_cond_p4': Workload((64, 64, 3), 4, 1024, 8, 8, 1000, 64, (16,), dtype='bfloat16'),
    # Two of its eight blocks, for samplers that take long.
    'afhq256_two': Workload((256, 256, 3), 8, 768, 2, 8, 3, 16, (16,), dtype='bfloat16'),
    'afhq256': Workload((256, 256, 3), 8, 768, 8, 8, 3, 16, (16, 1), dtype='bfloat16'),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What is timed: one call with a batch.

    Attributes:
      name: 'train', 'likelihood', 'denoise', 'sample' or 'guided', a method of each side.
      num_images: of the batch.
    """

    name: str
    num_images: int

    def __str__(self):
        return f'{self.name} {self.num_images}'


def tasks_of(workload: Workload) -> list[Task]:
    """All tasks of a workload; what is guided by classes needs some."""
    samplers = ('sample', 'guided') if workload.num_classes else ('sample',)
    return [
        *(Task(name, workload.batch_size) for name in ('train', 'likelihood', 'denoise')),
        *(Task(name, number) for name in samplers for number in workload.num_samples),
    ]


def inputs(workload: Workload, num_images: int):
    """Levels uint8 [B, H, W, C], labels int32 [B] and standard normal noise like the levels."""
    draws = np.random.default_rng(0)
    levels = draws.integers(0, 256, (num_images, *workload.image_shape), dtype=np.uint8)
    labels = draws.integers(0, max(workload.num_classes, 1), num_images, dtype=np.int32)
    return levels, labels, draws.normal(size=levels.shape).astype(np.float32)
