"""Pictures of models, samples and training runs, in one style.

    from tarflow_jax import pictures
    pictures.grid(images, labels)                      # is displayed in a notebook
    pictures.training_curves(records).write('curves.svg')

Every function takes arrays and numbers and returns a `Picture`, a Matplotlib figure that can
be written as SVG or PNG. They need the extra: pip install 'tarflow_jax[pictures]'.
"""

from tarflow_jax.errors import InputError

try:
    import matplotlib  # noqa: F401 (which all of them need)
except ImportError as error:
    raise InputError(
        "Matplotlib, which pictures need, is not installed: pip install 'tarflow_jax[pictures]'"
    ) from error

from tarflow_jax.pictures.architecture import architecture
from tarflow_jax.pictures.bars import shares
from tarflow_jax.pictures.calibration import calibration
from tarflow_jax.pictures.curves import training_curves
from tarflow_jax.pictures.journey import animation, journey, write_animation
from tarflow_jax.pictures.latents import latent_statistics, latents
from tarflow_jax.pictures.picture import Picture
from tarflow_jax.pictures.tiles import comparison, grid, resolutions, rows

__all__ = [
    'Picture',
    'animation',
    'architecture',
    'calibration',
    'comparison',
    'grid',
    'journey',
    'latent_statistics',
    'latents',
    'resolutions',
    'rows',
    'shares',
    'training_curves',
    'write_animation',
]
