"""The folder in which a data set grows, and that becomes the data set by one rename."""

import json
import os
import pathlib
import shutil
from typing import Any

from tarflow_jax.data.image_folder.records import RecordReport
from tarflow_jax.data.image_folder.unreadable import Unreadable
from tarflow_jax.files import open_regular, remove_unfinished, write_json

# A file that is missing, or whose content is not what was written.
_UNUSABLE = (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError)


class WorkFolder:
    """`<version>.half_prepared`, beside the folder `<version>` that it is to become.

    In it are `records/`, the later folder; a report of every finished record file in `reports/`;
    and `preparation.json`, the images and settings of which these are.

    Args:
        target: the data set's folder, `<data_dir>/<name>/<version>`.
    """

    def __init__(self, target: pathlib.Path):
        self.target = target
        self.path = target.with_name(f'{target.name}.half_prepared')
        self.records = self.path / 'records'
        self._preparation = self.path / 'preparation.json'

    def begin(self, preparation: dict[str, Any]) -> None:
        """Clears the folder, and records the images and settings."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.records.mkdir(parents=True)
        write_json(self._preparation, preparation)

    def resume(self, preparation: dict[str, Any]) -> bool:
        """Keeps the folder if it is of these images and settings; returns whether it is."""
        try:
            if _read_json(self._preparation) != preparation:
                return False
        except _UNUSABLE:
            return False
        self.records.mkdir(exist_ok=True)
        remove_unfinished(self.records)
        return True

    def report_path(self, record_file: str) -> pathlib.Path:
        """Returns the place of the report of a record file."""
        return self.path / 'reports' / f'{record_file}.json'

    def report(self, record_file: str) -> RecordReport | None:
        """Returns the report of a record file; None unless both are whole."""
        try:
            fields = _read_json(self.report_path(record_file))
            unreadable = [Unreadable(*map(str, row)) for row in fields['unreadable']]
            report = RecordReport(**(fields | {'unreadable': unreadable}))
            num_bytes = (self.records / record_file).stat().st_size
        except _UNUSABLE:
            return None
        is_whole = (report.record_file, report.num_bytes) == (record_file, num_bytes)
        return report if is_whole and type(report.num_examples) is int else None

    def finish(self) -> None:
        """Makes the records the data set's folder, and deletes the rest."""
        for path in [*self.records.iterdir(), self.records]:
            _flush(path)
        self.records.rename(self.target)
        _flush(self.target.parent)
        shutil.rmtree(self.path)


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
