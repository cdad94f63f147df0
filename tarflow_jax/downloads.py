"""A published file that is fetched once, checked, and kept."""

import fcntl
import functools
import hashlib
import http.client
import os
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from tarflow_jax.errors import InputError
from tarflow_jax.files import write_atomically

TIMEOUT = 30  # seconds without a byte, after which an address is given up


def cache_folder() -> Path:
    """Where fetched files are kept: `$TARFLOW_CACHE`, or `~/.cache/tarflow_jax`."""
    return Path(os.environ.get('TARFLOW_CACHE') or '~/.cache/tarflow_jax').expanduser()


def fetch_once(folder: Path, addresses: Sequence[str], sha256: str) -> Path:
    """The file of one of the addresses in a folder, fetched if none of them is there.

    Where several processes want it, one fetches it and the others wait.

    Args:
      folder: made if it is missing.
      addresses: of the same file, the first choice first; its name is the last part of each.
      sha256: of the file, hexadecimal; anything else that an address gives is thrown away.

    Raises:
      InputError: the folder cannot be written to, or no address gives the file.
    """
    found = _find(folder, addresses)
    if found:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / '.fetching', 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return _find(folder, addresses) or _fetch(folder, addresses, sha256)
    except OSError as error:
        raise InputError(
            f'{_name(addresses[0])} cannot be fetched into {folder}: {error}. Set the environment '
            'variable TARFLOW_CACHE to a folder in which you may write.'
        ) from error


def _find(folder: Path, addresses: Sequence[str]) -> Path | None:
    files = (folder / _name(address) for address in addresses)
    return next((file for file in files if file.is_file()), None)


def _name(address: str) -> str:
    return address.rpartition('/')[2]


def _fetch(folder: Path, addresses: Sequence[str], sha256: str) -> Path:
    failures = []
    for address in addresses:
        file = folder / _name(address)
        print(f'fetching {address} into {folder}', file=sys.stderr, flush=True)
        try:
            with urllib.request.urlopen(address, timeout=TIMEOUT) as response:
                write_atomically(file, functools.partial(_copy, response, sha256))
            return file
        except (OSError, http.client.HTTPException, InputError) as error:
            failures.append(f'{address}: {error}')
    raise InputError(
        f'{_name(addresses[0])} is not in {folder}, and could not be fetched ('
        + '; '.join(failures)
        + '). Fetch it where there is a network, and put it into that folder under that name.'
    )


def _copy(response, sha256: str, file: BinaryIO) -> None:
    digest = hashlib.sha256()
    while chunk := response.read(2**20):
        digest.update(chunk)
        file.write(chunk)
    if digest.hexdigest() != sha256:
        raise InputError(
            f'what came, {file.tell():,} bytes, is not the file: its SHA-256 is '
            f'{digest.hexdigest()}, not {sha256}'
        )
