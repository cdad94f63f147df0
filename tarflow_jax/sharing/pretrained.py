"""A model as a folder to share: `model.safetensors`, `config.json`, and a card, `README.md`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from tarflow_jax.errors import InputError
from tarflow_jax.files import make_writable, write_atomically, write_json
from tarflow_jax.flow import TarFlow
from tarflow_jax.flow.tarflow import shape_differences
from tarflow_jax.parallel import arrays
from tarflow_jax.workdir import CONFIG_FILE

WEIGHTS_FILE = 'model.safetensors'
CARD_FILE = 'README.md'


def is_pretrained(folder: Path) -> bool:
    """Whether a folder holds a shared model, not a workdir."""
    return (folder / WEIGHTS_FILE).is_file()


def write(folder, params, config: ConfigDict, card: str) -> Path:
    """Writes the three files, each complete or not at all, and the config last.

    Args:
      folder: is made if it is missing. The three files are replaced if they are there.
      params: the parameters.
      config: see `workdir.config_of`.
      card: the text of the card.

    Returns:
      The folder.

    Raises:
      InputError: the folder is a workdir, or cannot be written to.
    """
    folder = Path(folder).expanduser()
    if (folder / CONFIG_FILE).exists() and not is_pretrained(folder):
        raise InputError(
            f'{folder} is a workdir, whose {CONFIG_FILE} would be replaced. Give another folder.'
        )
    tensors = tensors_of(params)
    _check_finite(tensors, 'the model cannot be shared')
    make_writable(folder, instead='another folder')
    from tarflow_jax.formats import safetensors

    safetensors.write(folder / WEIGHTS_FILE, tensors)
    write_atomically(folder / CARD_FILE, lambda file: file.write(card.encode()))
    write_json(folder / CONFIG_FILE, config.to_dict())
    return folder


def read_params(folder: Path, model: TarFlow, shardings) -> Any:
    """Reads the parameters of `model`, laid out as `shardings(shapes)` says.

    Raises:
      InputError: the weights are damaged, or of another model.
    """
    from tarflow_jax.formats import safetensors

    path = folder / WEIGHTS_FILE
    tensors = safetensors.read(path)
    shapes = model.param_shapes()
    leaves: dict[str, Any] = flatten_dict(shapes, sep='.')
    needed = {name: leaf.shape for name, leaf in leaves.items()}
    given = {name: tensor.shape for name, tensor in tensors.items()}
    if given != needed:
        raise InputError(
            f'{path} does not match the model of its {CONFIG_FILE}: '
            f'{shape_differences(given, needed)}. Fetch the folder again.'
        )
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise InputError(f'{path} is damaged: {name} is {tensor.dtype}, not float32.')

    _check_finite(tensors, f'{path} cannot be used')
    return arrays.put(unflatten_dict(tensors, sep='.'), shardings(shapes))


def _check_finite(tensors: dict[str, np.ndarray], words: str) -> None:
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise InputError(f'{words}: {name} has values that are not finite.')


def tensors_of(params) -> dict[str, np.ndarray]:
    """The parameters as float32, by their names in the file, such as `blocks.proj_in.kernel`."""
    return {
        name: np.ascontiguousarray(jax.device_get(leaf), np.float32)
        for name, leaf in flatten_dict(params, sep='.').items()
    }
