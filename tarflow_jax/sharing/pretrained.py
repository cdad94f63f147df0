"""A model as a folder to hand on: `model.safetensors`, `config.json`, and a card, `README.md`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tarflow_jax.errors import InputError
from tarflow_jax.files import make_writable, write_atomically, write_json
from tarflow_jax.flow import TarFlow
from tarflow_jax.parallel import arrays
from tarflow_jax.workdir import CONFIG_FILE

WEIGHTS_FILE = 'model.safetensors'
CARD_FILE = 'README.md'


def is_pretrained(folder: Path) -> bool:
    """Whether a folder holds a model that was handed on, not a workdir."""
    return (folder / WEIGHTS_FILE).is_file()


def write(folder, params, config: ConfigDict, card: str) -> Path:
    """Writes the three files, each complete or not at all, and the config at last.

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
    make_writable(folder, instead='another folder')
    from tarflow_jax.formats import safetensors

    safetensors.write(folder / WEIGHTS_FILE, tensors_of(params))
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
    expected = {name: leaf.shape for name, leaf in named_leaves(shapes)}
    given = {name: tensor.shape for name, tensor in tensors.items()}
    differences = [
        f'{name} is {given.get(name, "missing")}, not {expected[name]}'
        if name in expected
        else f'{name} is unexpected'
        for name in sorted({*expected, *given})
        if given.get(name) != expected.get(name)
    ]
    if differences:
        raise InputError(
            f'{path} does not match the model of its {CONFIG_FILE}: {"; ".join(differences[:3])}. '
            'Fetch the folder again.'
        )
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise InputError(f'{path} is damaged: {name} is {tensor.dtype}, not float32.')

    def place(path, _, sharding):
        return arrays.put(tensors[name_of(path)], sharding)

    return jax.tree_util.tree_map_with_path(place, shapes, shardings(shapes))


def tensors_of(params) -> dict[str, np.ndarray]:
    """The parameters as float32, by their names in the file, such as `blocks.proj_in.kernel`."""
    return {
        name: np.ascontiguousarray(jax.device_get(leaf), np.float32)
        for name, leaf in named_leaves(params)
    }


def named_leaves(tree) -> list[tuple[str, Any]]:
    """The leaves of a tree of parameters with their names."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(name_of(path), leaf) for path, leaf in leaves]


def name_of(path) -> str:
    """The name of a parameter in the file."""
    return jax.tree_util.keystr(path, simple=True, separator='.')
