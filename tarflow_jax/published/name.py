"""Names of published checkpoints, which carry settings that the tensors do not determine.

`afhq_model_8_768_8_8_0.07.pth` is of the data set afhq, with patches of 8x8 pixels, a width of 768,
8 blocks of 8 layers each and Gaussian noise of standard deviation 0.07, rounded to two digits;
`imagenet64_model_2_768_8_8_uniform.pth` was trained with uniform noise.
"""

import dataclasses
import os
import re
from pathlib import Path

from tarflow_jax.errors import InputError

EXAMPLE = 'afhq_model_8_768_8_8_0.07.pth'
_PATTERN = re.compile(r'(.+)_model_(\d+)_(\d+)_(\d+)_(\d+)_(uniform|\d+\.\d+)\.pth')


@dataclasses.dataclass(frozen=True)
class CheckpointName:
    """The contents of the name of a published checkpoint; `str` of it is the file's name.

    Attributes:
      dataset: the data set: imagenet, imagenet64 (without classes), afhq, or another.
      patch_size: side of a patch in pixels.
      width: features of a token.
      num_blocks: autoregressive blocks.
      layers_per_block: transformer layers in each.
      noise_type: 'gaussian' or 'uniform'.
      noise_std: standard deviation of Gaussian noise, for pixels in [-1, 1]; 0 for uniform noise.
    """

    dataset: str
    patch_size: int
    width: int
    num_blocks: int
    layers_per_block: int
    noise_type: str
    noise_std: float

    @classmethod
    def parse(cls, path: str | os.PathLike) -> 'CheckpointName | None':
        """Returns the name of the file at `path`; None if it is one of another kind."""
        match = _PATTERN.fullmatch(Path(path).name)
        if not match:
            return None
        dataset, *sizes, noise = match.groups()
        is_uniform = noise == 'uniform'
        kind, std = ('uniform', 0.0) if is_uniform else ('gaussian', float(noise))
        return cls(dataset, *map(int, sizes), noise_type=kind, noise_std=std)

    @classmethod
    def of(cls, model, dataset: str, noise_type: str, noise_std: float) -> 'CheckpointName':
        """Returns the name for a `TarFlow`; characters of `dataset` unfit for a file become `_`."""
        return cls(
            re.sub(r'[^\w.-]', '_', dataset),
            model.patch_size,
            model.width,
            model.num_blocks,
            model.layers_per_block,
            noise_type,
            noise_std,
        )

    def __str__(self):
        noise = 'uniform' if self.noise_type == 'uniform' else f'{self.noise_std:.2f}'
        sizes = self.patch_size, self.width, self.num_blocks, self.layers_per_block
        return '_'.join([self.dataset, 'model', *map(str, sizes), noise]) + '.pth'

    def check_sizes(self, sizes: dict[str, int], source: str):
        """Raises InputError where the sizes of the tensors are not those of the name."""
        differences = [
            f'{key} is {getattr(self, key)} in its name and {sizes[key]} in its tensors'
            for key in ('width', 'num_blocks', 'layers_per_block')
            if sizes[key] != getattr(self, key)
        ]
        if differences:
            raise InputError(
                f'{source} does not match its name: {"; ".join(differences)}. Names read like '
                f'{EXAMPLE}: data set, patch size, width, blocks, layers, noise. Correct the name, '
                'or use any other name and pass image_shape and patch_size.'
            )
