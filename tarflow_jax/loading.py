"""A trained model from wherever it is: a workdir, one of its checkpoints, a published file."""

from pathlib import Path

import jax

from tarflow_jax import convert, experiment, torchfile
from tarflow_jax.errors import InputError
from tarflow_jax.parallel import distributed, rules
from tarflow_jax.training.checkpoint import Checkpoints, Damaged


def load(path, *, image_shape=None, patch_size=None):
    """Loads a model and the parameters to sample and score with.

    Args:
      path: a workdir (its newest checkpoint is taken), a folder `workdir/checkpoints/<step>`, or a
        state dict of apple/ml-tarflow (`.pth`). Where a moving average was kept, that is loaded.
      image_shape: (H, W, C), for a state dict only, which does not tell.
      patch_size: likewise.

    Returns:
      (model, params): a `TarFlow`, and its float32 parameters on the default device.

    Raises:
      InputError: there is no such thing at `path`, or it is damaged, or no TarFlow, or does not
        fit the shapes given.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return _load(
        path,
        lambda params: jax.tree.map(lambda _: device, params),
        image_shape=image_shape,
        patch_size=patch_size,
    )


def load_for(config, path, mesh):
    """`load` onto a mesh, and a check that what is there is the model of `config`.

    Every device reads the shards it holds; no device, and of a workdir no host, has it all.
    """
    asked = experiment.make_model(config)
    model, params = _load(
        path,
        lambda params: rules.shardings(params, mesh),
        image_shape=asked.image_shape,
        patch_size=asked.patch_size,
    )
    differences = [
        f'{key} is {getattr(model, key)} there, {getattr(asked, key)} in the config'
        for key in config.model
        if key not in experiment.FREE_MODEL_KEYS and getattr(model, key) != getattr(asked, key)
    ]
    if differences:
        raise InputError(
            f'{path} holds another model: {"; ".join(differences)}. Set config.model accordingly.'
        )
    return asked, params


def _load(path, shardings, *, image_shape, patch_size):
    """The model and parameters at `path`, laid out as `shardings(params)` says."""
    path = Path(path).expanduser()
    if path.is_dir():
        return _load_folder(path, shardings)
    if image_shape is None or patch_size is None:
        raise InputError(
            f'{path} is no folder; a published state dict is read with its image_shape=(H, W, C) '
            'and patch_size=P, which the file does not tell.'
        )
    model, params = convert.from_state_dict(
        torchfile.read_state_dict(path),
        image_shape=image_shape,
        patch_size=patch_size,
        source=str(path),
    )
    return model, distributed.put(params, shardings(params))


def _load_folder(path: Path, shardings):
    is_step = path.name.isdigit() and path.parent.name == 'checkpoints'
    workdir = path.parent.parent if is_step else path
    config = experiment.read_config(workdir)
    config.model.attention = 'auto'  # that of these devices, not of those it was trained on
    model = experiment.make_model(config)
    item = 'ema_params' if experiment.has_ema(config) else 'params'
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        shapes = jax.eval_shape(model.init_params, jax.random.key(0))
        abstract = {item: rules.abstract(shapes, shardings(shapes))}
        if is_step:
            return model, checkpoints.restore(int(path.name), abstract)[item]
        newest = checkpoints.restore_newest(abstract)
    except Damaged as reason:
        raise InputError(f'the checkpoint {path} is damaged: {reason}.') from reason
    finally:
        checkpoints.close()
    if newest is None:
        raise InputError(f'{workdir} has no checkpoint yet: train there first.')
    return model, newest[1][item]
