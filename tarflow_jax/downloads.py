"""A published file that is fetched once, checked, and kept."""

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pooch
import requests

from tarflow_jax.errors import InputError

TIMEOUT = 30  # seconds without a byte, after which an address is given up


def cache_folder() -> Path:
    """Returns the folder of fetched files: `$TARFLOW_CACHE`, or `~/.cache/tarflow_jax`."""
    return Path(os.environ.get('TARFLOW_CACHE') or '~/.cache/tarflow_jax').expanduser()


def fetch_once(folder: Path, addresses: Sequence[str], sha256: str) -> Path:
    """Returns the path of a published file in a folder, and fetches the file if it is missing.

    If several processes need the file, one of them fetches it and the others wait.

    Args:
      folder: the folder of the file, created if it is missing.
      addresses: URLs of the same file, the first choice first; its name is the last part of each.
      sha256: the hexadecimal hash of the file; anything else that an address gives is deleted.

    Raises:
      InputError: the folder cannot be written to, or no address gives the file.
    """
    if file := _present(folder, addresses):
        return file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / '.fetching', 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return _present(folder, addresses) or _fetch(folder, addresses, sha256)
    except OSError as error:
        raise InputError(
            f'{_name(addresses[0])} cannot be fetched into {folder}: {error}. Set the environment '
            'variable TARFLOW_CACHE to a folder in which you may write.'
        ) from error


def _present(folder: Path, addresses: Sequence[str]) -> Path | None:
    files = (folder / _name(address) for address in addresses)
    return next((file for file in files if file.is_file()), None)


def _name(address: str) -> str:
    return address.rpartition('/')[2]


def _fetch(folder: Path, addresses: Sequence[str], sha256: str) -> Path:
    failures = []
    download: Any = pooch.HTTPDownloader(timeout=TIMEOUT)  # typed too narrowly
    for address in addresses:
        try:
            file = pooch.retrieve(address, sha256, _name(address), folder, downloader=download)
            return Path(file)
        except requests.ConnectionError:
            failures.append(f'{address}: no connection')
        except (requests.RequestException, ValueError) as error:
            failures.append(f'{address}: {error}')
    raise InputError(
        f'{_name(addresses[0])} is not in {folder}, and could not be fetched ('
        + '; '.join(failures)
        + '). Fetch it where there is a network, and put it into that folder under that name.'
    )
