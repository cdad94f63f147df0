"""The models and batches that the benchmarks time, by name."""

import dataclasses

from ml_collections import ConfigDict

from configs import base


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
    """

    image_shape: tuple[int, int, int]
    patch_size: int
    width: int
    num_blocks: int
    layers_per_block: int
    num_classes: int
    batch_size: int
    num_samples: tuple[int, ...]

    def config(self) -> ConfigDict:
        """A config of this model in float32, with the optimizer of the published code."""
        config = base.get_config()
        for key in dataclasses.fields(self):
            if key.name in config.model:
                config.model[key.name] = getattr(self, key.name)
        config.model.dtype = 'float32'
        config.train.batch_size = self.batch_size
        config.noise.std = 0.1
        return config


WORKLOADS = {
    'digits': Workload((8, 8, 1), 2, 64, 4, 2, 10, 64, (100,)),
    'mnist': Workload((28, 28, 1), 4, 128, 4, 4, 10, 256, (100,)),
    'photos64': Workload((64, 64, 3), 4, 256, 4, 4, 0, 16, (16, 1)),
    'photos256': Workload((256, 256, 3), 8, 256, 4, 4, 0, 4, (1,)),
}
