"""Preparing the data sets of TFDS's own catalog, for which its builders need TensorFlow."""

import difflib
import importlib.util
import os
import pathlib

import tensorflow_datasets as tfds
from absl import logging

from tarflow_jax.data import builders
from tarflow_jax.data.examples import checked_image
from tarflow_jax.data.folder import (
    PREPARE_COMMAND,
    data_folder,
    exclusive_lock,
    prepare_own,
    prepared_folders,
)
from tarflow_jax.errors import InputError, did_you_mean

_MAX_SHOWN = 12


def prepare(
    name: str,
    data_dir: str | os.PathLike[str],
    manual_dir: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
    """Downloads one of TFDS's data sets and prepares it as ArrayRecord.

    A data set that is prepared already is left as it is. Downloads are kept in
    `data_dir`/downloads, so that the next attempt does not fetch them again.

    Args:
        name: the name in TFDS's catalog, with the variant where there are some: 'cifar10',
            'imagenet_resized/64x64'.
        data_dir: the folder to prepare it in.
        manual_dir: a folder with the files that have to be fetched by hand, or that were fetched
            otherwise, under their own names; `data_dir`/downloads/manual by default.

    Returns:
        The folder of the prepared data set.

    Raises:
        InputError: TFDS has no such data set, it has no images, TensorFlow or a file that has to
            be fetched by hand is missing, or it cannot be downloaded or written.
    """
    root = data_folder(data_dir)
    manual = root / 'downloads' / 'manual'
    if manual_dir is not None:
        manual = data_folder(manual_dir, 'manual_dir')
        if not manual.is_dir():
            raise InputError(f'manual_dir {manual} is not a folder; give one that exists.')
    if builders.is_own(name):
        return prepare_own(name, root)
    prepared = prepared_folders(root).get(name)
    known = tfds.list_builders(with_community_datasets=False)
    if prepared and name.partition('/')[0] not in known:
        return pathlib.Path(prepared)  # of a folder of images
    builder = _make_builder(name, root)
    folder = pathlib.Path(builder.data_path)
    if folder.exists():
        return folder
    if other := prepared_folders(root).get(name):
        raise InputError(
            f"another data set or version is prepared as '{name}' in {other}, and the two could "
            f'not be distinguished. Delete or rename that folder, or give another --data_dir.'
        )
    features = builder.info.features
    is_dict = isinstance(features, tfds.features.FeaturesDict)
    checked_image(name, dict(features.items()) if is_dict else {})
    if type(builder).__module__.startswith('tensorflow_datasets.'):  # others may do without
        _check_tensorflow(name)
    config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
    logging.info("Preparing TFDS's data set '%s' in %s.", name, root)
    tfds.enable_progress_bar()
    try:
        with exclusive_lock(folder.parent):
            builder.download_and_prepare(file_format='array_record', download_config=config)
    except Exception as error:  # builders and downloads raise errors of any kind
        raise InputError(_failure(error, name, builder, root, manual)) from error
    return folder


def _make_builder(name: str, root: pathlib.Path) -> tfds.core.DatasetBuilder:
    base, _, variant = name.partition('/')
    known = tfds.list_builders(with_community_datasets=False)
    if base not in known:
        raise InputError(
            f"TFDS has no data set '{base}'{did_you_mean(base, known)} Its catalog: "
            'https://www.tensorflow.org/datasets/catalog. With the images themselves in folders, '
            f'{PREPARE_COMMAND} NAME --folder=DIR --size=N makes a data set of them.'
        )
    try:
        variants = list(tfds.builder_cls(base).builder_configs)
        if variant in variants or not (variant or variants):
            return tfds.builder(name, data_dir=root, try_gcs=False)
    except Exception as error:  # a few builders import TensorFlow, or other packages, at once
        _check_tensorflow(name)
        raise InputError(
            f"TFDS cannot build the data set '{name}' ({_one_line(error)})."
        ) from error
    if not variants:
        raise InputError(f"TFDS's data set '{base}' has no variants; its name is '{base}'.")
    nearest = difflib.get_close_matches(variant, variants, n=_MAX_SHOWN)
    shown = ', '.join(f'{base}/{variant}' for variant in nearest or variants[:_MAX_SHOWN])
    raise InputError(
        f"TFDS's data set '{base}' has no variant '{variant}'; name one of its {len(variants)} "
        f'variants, such as {shown}.'
    )


def _check_tensorflow(name: str) -> None:
    if importlib.util.find_spec('tensorflow') is None:
        raise InputError(
            f"TFDS prepares its own data sets, such as '{name}', with TensorFlow, which is not "
            "installed: pip install 'tarflow_jax[prepare]' (in an environment of its own, if you "
            'like). Reading them afterwards needs no TensorFlow.'
        )


def _failure(
    error: Exception,
    name: str,
    builder: tfds.core.DatasetBuilder,
    root: pathlib.Path,
    manual: pathlib.Path,
) -> str:
    """Returns the reason, and where to put files that have to be fetched by hand."""
    files = sorted({file.filename for file in (builder.url_infos or {}).values() if file.filename})
    names = ', '.join(files[:_MAX_SHOWN]) + (', ...' if len(files) > _MAX_SHOWN else '')
    instructions = ' '.join((builder.MANUAL_DOWNLOAD_INSTRUCTIONS or '').split())
    return (
        f"TFDS could not prepare '{name}' in {root} ({_one_line(error)}). Nothing was left "
        'incomplete; downloads are kept. Put files that cannot be downloaded into '
        f'{manual} (or into another folder, given as --manual_dir=DIR), under their own names'
        + (f' ({names}).' if names else '.')
        + (f' TFDS says: {instructions}' if instructions else '')
    )


def _one_line(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())}'
