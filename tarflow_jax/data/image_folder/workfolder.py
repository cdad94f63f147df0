"""The folder in which a data set grows, and that becomes the data set by one rename."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

from tarflow_jax.data.image_folder.records import RecordReport
from tarflow_jax.data.image_folder.unreadable import Unreadable, unreadable_of
from tarflow_jax.errors import InputError
from tarflow_jax.files import open_regular, write_json

_LOCK_FILE = '.prepare.lock'
_DAMAGE = (ValueError, TypeError, KeyError, RecursionError)  # of what JSON can hold instead


class Preparation(NamedTuple):
    """What is being prepared, and the files that are no images by their headers."""

    what: Any
    unreadable: list[Unreadable]


class WorkFolder:
    """`<version>.half_prepared`, beside the folder `<version>` that it is to become.

    In it are `records/`, the later folder; a report of every finished record file in `reports/`;
    and `preparation.json`, which tells what is being prepared.

    Args:
        target: the data set's folder, `<data_dir>/<name>/<version>`.
    """

    def __init__(self, target: pathlib.Path):
        self.target = target
        self.path = target.with_name(f'{target.name}.half_prepared')
        self.records = self.path / 'records'
        self._reports = self.path / 'reports'
        self._preparation = self.path / 'preparation.json'

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes out; the kernel frees the lock of a killed one.

        Raises:
            InputError: if another process is in here, or the folder cannot be written to.
        """
        parent = self.target.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(parent / _LOCK_FILE, os.O_WRONLY | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(
                f"'{parent}' cannot be written to ({error}); give another --data_dir."
            ) from error
        with open(descriptor, 'w') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"another process is preparing '{parent.name}' in '{parent.parent}'; wait for "
                    'it, or stop it.'
                ) from None
            yield

    def recorded(self) -> Preparation | None:
        """What an interrupted preparation wrote with `begin`; None if none can be read."""
        try:
            fields = _read_json(self._preparation)
            return Preparation(fields['what'], unreadable_of(fields['unreadable']))
        except (FileNotFoundError, *_DAMAGE):
            return None

    def begin(self, preparation: dict[str, Any]) -> None:
        """Clears the folder, and records what is being prepared in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.records.mkdir(parents=True)
        write_json(self._preparation, preparation)

    def resume(self) -> None:
        """Makes the folder fit to go on: deletes the parts of files that a killed process left."""
        self.records.mkdir(exist_ok=True)
        for leftover in self.records.glob('.*'):
            leftover.unlink()

    def report(self, record_file: str) -> RecordReport | None:
        """The report of a record file that is finished; None if it is not, or cannot be read."""
        try:
            fields = _read_json(self.report_path(record_file))
            report = RecordReport(**(fields | {'unreadable': unreadable_of(fields['unreadable'])}))
            is_whole = (self.records / record_file).stat().st_size == report.num_bytes
            is_of_it = report.record_file == record_file and type(report.num_examples) is int
        except (FileNotFoundError, *_DAMAGE):
            return None
        return report if is_whole and is_of_it else None

    def finish(self) -> None:
        """Makes the records the data set's folder, and deletes the rest."""
        for path in [*self.records.iterdir(), self.records]:
            _flush(path)
        self.records.rename(self.target)
        _flush(self.target.parent)
        shutil.rmtree(self.path)

    def report_path(self, record_file: str) -> pathlib.Path:
        """Where the report of a record file belongs, once that is whole."""
        return self._reports / f'{record_file}.json'


def _read_json(path: pathlib.Path) -> Any:
    with open_regular(path) as file:
        return json.load(file)


def _flush(path: pathlib.Path) -> None:
    """Or a power cut may keep the new name and lose the bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
