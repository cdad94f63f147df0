"""Preparing the data sets of TFDS's own catalog, for which its builders need TensorFlow."""

import difflib
import errno
import importlib.util
import os
import pathlib
import socket
import urllib.parse
import urllib.request

import requests
import tensorflow_datasets as tfds
from absl import logging

from tarflow_jax.data import builders
from tarflow_jax.data.examples import checked_image
from tarflow_jax.data.prepared import (
    PREPARE_COMMAND,
    cannot_prepare,
    data_folder,
    one_process,
    prepare_own,
    prepared_folders,
)
from tarflow_jax.errors import InputError

_MOST_SHOWN = 12
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
_OTHERWISE = (
    f'With the images themselves in folders, {PREPARE_COMMAND} NAME --folder=DIR --size=N makes a '
    'data set of them.'
)


def prepare(
    name: str,
    data_dir: str | os.PathLike[str],
    manual_dir: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
    """Downloads one of TFDS's data sets and prepares it as ArrayRecord.

    Everything that can be checked is checked before anything is downloaded. One that stands
    prepared is left as it is. Downloads are kept in `data_dir`/downloads, so that a preparation
    that was interrupted does not fetch them again.

    Args:
        name: as in TFDS's catalog, with the variant where there are some: 'cifar10',
            'imagenet_resized/64x64'.
        data_dir: the folder to prepare it in.
        manual_dir: a folder with the files that have to be fetched by hand, or that were fetched
            otherwise, under their own names; `data_dir`/downloads/manual by default.

    Returns:
        The folder of the prepared data set.

    Raises:
        InputError: if TFDS has no such data set, it is none of images, TensorFlow or a file that
            has to be fetched by hand is missing, or it cannot be downloaded or written.
    """
    root = data_folder(data_dir)
    if builders.is_own(name):
        return prepare_own(name, root)
    builder = _make_builder(name, root)
    folder = pathlib.Path(builder.data_path)
    if folder.exists():
        return folder
    if other := prepared_folders(root).get(name):
        raise InputError(
            f"another data set or version stands prepared as '{name}' in {other}, and either would "
            f'be taken for the other. Delete or rename that folder, or give another --data_dir.'
        )
    features = builder.info.features
    is_dict = isinstance(features, tfds.features.FeaturesDict)
    checked_image(name, dict(features.items()) if is_dict else {})
    if type(builder).__module__.startswith('tensorflow_datasets.'):  # others may do without
        _check_tensorflow(name)
    manual = _checked_manual_dir(name, builder, root, manual_dir)
    _check_network(name, builder, root, manual)
    config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
    logging.info("Preparing TFDS's data set '%s' in %s.", name, root)
    tfds.enable_progress_bar()
    try:
        with one_process(folder.parent):
            builder.download_and_prepare(file_format='array_record', download_config=config)
    except Exception as error:  # builders and downloads raise everything there is
        raise _explained(error, name, builder, root, manual) from error
    return folder


def _make_builder(name: str, root: pathlib.Path) -> tfds.core.DatasetBuilder:
    base, _, variant = name.partition('/')
    known = tfds.list_builders(with_community_datasets=False)
    if base not in known:
        nearest = difflib.get_close_matches(base, known, n=1)
        raise InputError(
            f"TFDS has no data set '{base}'"
            + (f"; did you mean '{nearest[0]}'?" if nearest else '.')
            + ' Its catalog: https://www.tensorflow.org/datasets/catalog. '
            + _OTHERWISE
        )
    try:
        variants = list(tfds.builder_cls(base).builder_configs)
        if variant in variants or not (variant or variants):
            return tfds.builder(name, data_dir=root, try_gcs=False)
    except Exception as error:  # a few builders import TensorFlow, or other packages, at once
        _check_tensorflow(name)
        raise InputError(f"TFDS cannot make the data set '{name}' ({_reason(error)}).") from error
    raise InputError(_which_variant(base, variant, variants))


def _which_variant(base: str, variant: str, variants: list[str]) -> str:
    if not variants:
        return f"TFDS's data set '{base}' has no variants; its name is '{base}'."
    shown = difflib.get_close_matches(variant, variants, n=_MOST_SHOWN) if variant else []
    shown = shown or variants[:_MOST_SHOWN]
    more = ', ...' if len(variants) > len(shown) else ''
    return (
        f"TFDS's data set '{base}' has variants"
        + (f", and none is '{variant}'" if variant else '')
        + f'; name one: {", ".join(f"{base}/{v}" for v in shown)}{more}.'
    )


def _check_tensorflow(name: str) -> None:
    if importlib.util.find_spec('tensorflow') is None:
        raise InputError(
            f"TFDS prepares its own data sets, such as '{name}', with TensorFlow, which is not "
            "installed: pip install 'tarflow_jax[prepare]' (in an environment of its own, if you "
            'like). Reading them afterwards takes no TensorFlow.'
        )


def _checked_manual_dir(
    name: str,
    builder: tfds.core.DatasetBuilder,
    root: pathlib.Path,
    manual_dir: str | os.PathLike[str] | None,
) -> pathlib.Path:
    """The folder of files fetched by hand, which has some if the builder cannot do without."""
    instructions = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    folder = root / 'downloads' / 'manual'
    if manual_dir is not None:
        folder = pathlib.Path(manual_dir).expanduser().absolute()
        if not folder.is_dir():
            raise InputError(f'manual_dir {folder} is no folder; give one that is there.')
    if instructions and not (folder.is_dir() and any(folder.iterdir())):
        raise InputError(_by_hand(name, folder, instructions))
    return folder


def _by_hand(name: str, folder: pathlib.Path, instructions: str) -> str:
    return (
        f"'{name}' is made of files that have to be fetched by hand and put in {folder} (or in "
        f'another folder, given as --manual_dir=DIR). TFDS says: {" ".join(instructions.split())}'
    )


def _check_network(
    name: str, builder: tfds.core.DatasetBuilder, root: pathlib.Path, manual: pathlib.Path
) -> None:
    """Fails at once where no host of the files is known; TFDS would try for minutes."""
    downloads = root / 'downloads'
    has_downloads = downloads.is_dir() and any(path.is_file() for path in downloads.iterdir())
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS or has_downloads or urllib.request.getproxies():
        return  # TFDS may need no network, or a proxy may know the hosts
    missing = [
        url
        for url, file in builder.url_infos.items()
        if not (file.filename and (manual / file.filename).exists())
    ]
    hosts = {urllib.parse.urlsplit(url).hostname for url in missing} - {None}
    unknown = [host for host in sorted(hosts) if not _is_known(host)]
    if unknown and len(unknown) == len(hosts):
        reason = f'no host of the name {" or ".join(unknown)} is known'
        raise _cannot_download(name, builder, manual, reason)


def _is_known(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def _cannot_download(
    name: str, builder: tfds.core.DatasetBuilder, manual: pathlib.Path, reason: str
) -> InputError:
    files = sorted({file.filename for file in builder.url_infos.values() if file.filename})
    more = ', ...' if len(files) > _MOST_SHOWN else ''
    return InputError(
        f"'{name}' cannot be downloaded: no network, or its address is dead ({reason}). If you can "
        f'get its files elsewhere, put them in {manual} (or give --manual_dir=DIR) under their '
        f'names, {", ".join(files[:_MOST_SHOWN])}{more}, and prepare it again. {_OTHERWISE}'
    )


def _explained(
    error: Exception,
    name: str,
    builder: tfds.core.DatasetBuilder,
    root: pathlib.Path,
    manual: pathlib.Path,
) -> InputError:
    reason = _reason(error)
    is_of_disk = isinstance(error, OSError) and error.errno in _OF_THE_DISK
    if is_of_disk or 'No space left' in reason:  # ArrayRecord raises RuntimeError
        return cannot_prepare(name, root, error)
    if isinstance(error, requests.RequestException | tfds.download.DownloadError):
        return _cannot_download(name, builder, manual, reason)
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:  # builders differ in what they raise without a file
        by_hand = _by_hand(name, manual, builder.MANUAL_DOWNLOAD_INSTRUCTIONS)
        return InputError(f'{by_hand} One of them is missing or damaged ({reason}).')
    return InputError(
        f"TFDS could not prepare '{name}' in {root} ({reason}). Nothing was left half-made; what "
        'was downloaded is kept.'
    )


def _reason(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())}'
