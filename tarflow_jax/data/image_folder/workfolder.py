"""The folder in which a data set grows, and that becomes the data set by one rename."""

import json
import os
import pathlib
import shutil

from tarflow_jax.data.image_folder.records import RecordReport
from tarflow_jax.data.image_folder.unreadable import Unreadable
from tarflow_jax.files import open_regular, remove_unfinished

_SUFFIX = '.half_prepared'

# A report that is missing, or was damaged.
_UNUSABLE = (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError)


class WorkFolder:
    """`<version>.<fingerprint>.half_prepared`, beside the folder `<version>` that it is to become.

    In it are `records/`, the later folder, and in `reports/` a report of every finished record
    file.

    Args:
        target: the data set's folder, `<data_dir>/<name>/<version>`.
        fingerprint: the hash of the images and settings.
    """

    def __init__(self, target: pathlib.Path, fingerprint: str):
        self.target = target
        self.path = target.with_name(f'{target.name}.{fingerprint}{_SUFFIX}')
        self.records = self.path / 'records'

    def begin(self) -> bool:
        """Creates the folder, or makes an interrupted one fit to resume.

        Returns:
            Whether there was one of other images or settings, which is deleted.
        """
        others = set(self.path.parent.glob(f'*{_SUFFIX}')) - {self.path}
        for other in others:
            shutil.rmtree(other)
        self.records.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self.records)
        return bool(others)

    def report_path(self, record_file: str) -> pathlib.Path:
        """Returns the place of the report of a record file."""
        return self.path / 'reports' / f'{record_file}.json'

    def report(self, record_file: str) -> RecordReport | None:
        """Returns the report of a record file; None unless both are whole."""
        try:
            with open_regular(self.report_path(record_file)) as file:
                fields = json.load(file)
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


def _flush(path: pathlib.Path) -> None:
    """Flushes to the disk, or a power cut may keep the new name and lose the bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
