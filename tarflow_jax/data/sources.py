"""Data sets on disk, opened for random access by their name.

A data set is a folder that TFDS prepared as ArrayRecord, or an .npz file. Our own builders are
prepared on first use; any other data set is used once it is prepared in the data folder.
"""

import os

from tarflow_jax.data import builders
from tarflow_jax.data.dataset import Dataset
from tarflow_jax.data.folder import data_folder, find_prepared, prepare_own
from tarflow_jax.data.npz import open_npz
from tarflow_jax.data.records import open_records


def open_dataset(
    name: str,
    data_dir: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    in_memory_bytes: int = 2**30,
) -> Dataset:
    """Opens a data set, and prepares it in `data_dir` first if it is one of ours.

    Args:
        name: one of our builders ('digits', 'photos/64'), a TFDS data set that is prepared in
            `data_dir` as ArrayRecord ('cifar10', 'imagenet_resized/64x64'), or the path of a file
            that ends in '.npz' (see `npz`).
        data_dir: a local or mounted folder, with TFDS's layout.
        image_size: images that come in any size (imagenet2012) become RGB squares of this side in
            pixels: the shorter side is scaled to it, the centre is cut out. Images of one fixed
            shape stay as they are.
        in_memory_bytes: splits of at most this decoded size are held in memory; those of an .npz
            file always.

    Raises:
        InputError: the name is unknown, the folder cannot be read or written, the files are
            damaged or no ArrayRecord, or the images are not uint8 of one fixed shape and there is
            no `image_size`.
    """
    if name.endswith('.npz'):
        return open_npz(name)
    root = data_folder(data_dir)
    is_own = builders.is_own(name)
    return open_records(
        name,
        prepare_own(name, root) if is_own else find_prepared(name, root),
        image_size=image_size,
        in_memory_bytes=in_memory_bytes,
        needs_levels=is_own,
    )
