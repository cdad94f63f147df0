"""Any class-folder tree of image files, as a TFDS data set of one fixed size in ArrayRecord.

A preparation that was interrupted goes on: finished files of records stay, and the whole is, byte
for byte, what it would have been without.
"""

import collections
import contextlib
import dataclasses
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator

import PIL
import tensorflow_datasets as tfds

from tarflow_jax.data import builders
from tarflow_jax.data.image_folder.headers import survey
from tarflow_jax.data.image_folder.records import (
    RecordReport,
    RecordTask,
    features,
    write_records,
)
from tarflow_jax.data.image_folder.tree import ImageTree, describe_ignored, read_tree
from tarflow_jax.data.image_folder.unreadable import FILE_NAME, LeftOut
from tarflow_jax.data.image_folder.workers import Workers
from tarflow_jax.data.image_folder.workfolder import WorkFolder
from tarflow_jax.data.prepared import data_folder, prepared_folders
from tarflow_jax.errors import InputError
from tarflow_jax.quantities import format_bytes

VERSION = '1.0.0'

_NAME = re.compile('[a-z][a-z0-9_]*')

# A killed preparation loses record files that are half written; a reader holds all of them open.
_IMAGES_A_RECORD_FILE = 256
_MOST_RECORD_FILES = 256


def prepare_image_folder(
    name: str,
    folder: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    size: int,
    upscale: bool = False,
    max_unreadable: float = 1.0,
    workers: int = 1,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> pathlib.Path:
    """Prepares `<folder>/<class>/<file>` or `<folder>/<split>/<class>/<file>` as a data set.

    The splits are 'train', 'validation' (of a folder val, valid or validation) and 'test'. Examples
    are image uint8 [size, size, 3], the shorter side scaled to `size` and the centre cut, and the
    label, an index into the sorted names of the class folders. Files that are no images despite
    their names are left out, and named in `unreadable.txt`.

    Args:
        name: of the data set: lower-case letters, digits and underscores.
        folder: the images.
        data_dir: where data sets stand prepared.
        size: side of the images in pixels.
        upscale: enlarge images that are smaller, rather than refuse them.
        max_unreadable: percentage of a split that may be left out.
        workers: processes to use.
        say: is told what a person should know.
        progress: is told a stage's name, and how many images of how many are done.

    Returns:
        The folder `<data_dir>/<name>/<version>`, which TFDS reads.

    Raises:
        InputError: if it cannot be done as given. Nothing that was finished is lost.
        RunError: if a worker process was killed.
    """
    root = data_folder(data_dir)
    _check_name(name, root)
    _check_numbers(size, max_unreadable, workers)
    tree = read_tree(folder)
    _tell(tree, say)
    work = WorkFolder(root / name / VERSION)
    totals = {split: len(files) for split, files in tree.splits.items()}
    left_out = LeftOut(totals, max_unreadable, work.path)
    preparation = _Preparation(name, tree, size, upscale, work, left_out, say, progress)
    with work.lock(), _failing_writes(name, work), Workers(workers) as pool:
        _check_new(name, root)
        preparation.look_at_headers(pool)
        reports = preparation.write_records(pool)
        return preparation.finish(reports)


@dataclasses.dataclass(frozen=True)
class _Preparation:
    """The steps, in a work folder that this process has locked."""

    name: str
    tree: ImageTree
    size: int
    upscale: bool
    work: WorkFolder
    left_out: LeftOut
    say: Callable[[str], None]
    progress: Callable[[str, int, int], None]

    def look_at_headers(self, pool: Workers) -> None:
        """Looks at all headers and clears the work folder, unless that was done before."""
        what = {
            'files': self.tree.fingerprint(),
            'size': self.size,
            'upscale': self.upscale,
            'pillow': PIL.__version__,
        }
        recorded = self.work.recorded()
        if recorded is not None and recorded.what == what:
            self.work.resume()
            self.left_out.add(recorded.unreadable)
            return
        if recorded is not None:
            self.say('The images or the settings changed since the interruption: begun anew.')
        total = self.tree.num_files
        at_least = 0 if self.upscale else self.size
        found = survey(
            self.tree, at_least, pool, lambda done: self.progress('headers', done, total)
        )
        self.left_out.add(found)
        self.work.begin({'what': what, 'unreadable': found})

    def write_records(self, pool: Workers) -> list[RecordReport]:
        """Writes the record files that are not there yet; the reports are in the files' order."""
        tasks = list(self._tasks())
        written = {task.target.name: self.work.report(task.target.name) for task in tasks}
        reports = [report for report in written.values() if report]
        missing = [task for task in tasks if not written[task.target.name]]
        if reports:
            self.say(f'Going on: {len(reports)} of {len(tasks)} record files are written.')
        for report in reports:
            self.left_out.add(report.unreadable)
        self._check_space(missing)
        total = sum(len(task.files) for task in tasks)
        done = sum(report.num_files for report in reports)
        self.progress('images', done, total)
        for report in pool.map(write_records, missing):
            reports.append(report)
            done += report.num_files
            self.progress('images', done, total)
            self.left_out.add(report.unreadable)
        return sorted(reports)

    def _tasks(self) -> Iterator[RecordTask]:
        """The images dealt evenly to record files."""
        unreadable = self.left_out.paths()
        for split, files in self.tree.splits.items():
            files = tuple(file for file in files if file.path not in unreadable)
            count = min(math.ceil(len(files) / _IMAGES_A_RECORD_FILE), _MOST_RECORD_FILES)
            for index in range(count):
                part = slice(len(files) * index // count, len(files) * (index + 1) // count)
                target = self._template(split).sharded_filepath(shard_index=index, num_shards=count)
                yield RecordTask(
                    root=self.tree.root,
                    split=split,
                    files=files[part],
                    size=self.size,
                    num_classes=len(self.tree.classes),
                    target=pathlib.Path(target),
                    report=self.work.report_path(target.name),
                )

    def _template(self, split: str) -> tfds.core.ShardedFileTemplate:
        return tfds.core.ShardedFileTemplate(
            data_dir=self.work.records,
            dataset_name=self.name,
            split=split,
            filetype_suffix=tfds.core.FileFormat.ARRAY_RECORD.file_suffix,
        )

    def _check_space(self, tasks: list[RecordTask]) -> None:
        needed = sum(len(task.files) for task in tasks) * self.size**2 * 3
        free = shutil.disk_usage(self.work.path).free
        if needed > free:
            raise InputError(
                f"the record files need {format_bytes(needed)}, and '{self.work.target.parent}' "
                f'has room for {format_bytes(free)}. Make room or give another --data_dir.'
            )

    def finish(self, reports: list[RecordReport]) -> pathlib.Path:
        """Writes what TFDS wants to know, and gives the folder its name."""
        by_split: dict[str, list[RecordReport]] = collections.defaultdict(list)
        for report in reports:
            by_split[report.split].append(report)
        split_infos = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[report.num_examples for report in reports],
                num_bytes=sum(report.num_bytes for report in reports),
                filename_template=self._template(split),
            )
            for split, reports in by_split.items()
        ]
        tfds.folder_dataset.write_metadata(
            data_dir=self.work.records,
            features=features(self.size, tfds.features.ClassLabel(names=self.tree.classes)),
            split_infos=split_infos,
            version=VERSION,
            check_data=False,  # TFDS would read with TensorFlow
            description=f'Images of class folders, scaled and cropped to {self.size} pixels.',
            supervised_keys=('image', 'label'),
            disable_shuffling=True,  # the order is ours
            metadata=tfds.core.MetadataDict(num_levels=256),
        )
        if self.left_out:
            self.left_out.write(self.work.records)
            self.say(
                f'Left out {len(self.left_out):,} files that cannot be read ({self.left_out}); '
                f'all are named in {self.work.target / FILE_NAME}.'
            )
        self.work.finish()
        return self.work.target


@contextlib.contextmanager
def _failing_writes(name: str, work: WorkFolder) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord's is a RuntimeError, on a full disk
        raise InputError(
            f"data set '{name}' cannot be prepared in '{work.target.parent}' ({error}). Make room "
            'there or mend that: finished record files are kept, and the same command goes on.'
        ) from error


def _check_name(name: str, root: pathlib.Path) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"'{name}' cannot be the name of a data set: take lower-case letters, digits and "
            'underscores, a letter first.'
        )
    if builders.is_own(name):
        raise InputError(f"'{name}' is the name of a data set of ours; choose another one.")
    if name in tfds.list_builders(with_community_datasets=False):
        raise InputError(
            f"'{name}' is the name of a data set of TFDS's, and would be taken for it; choose "
            'another one.'
        )
    _check_new(name, root)


def _check_new(name: str, root: pathlib.Path) -> None:
    for known, folder in prepared_folders(root).items():
        if known.split('/')[0] == name:
            raise InputError(
                f"a data set '{name}' stands prepared in '{folder}' already. Delete that folder "
                'to make it anew, or choose another name.'
            )


def _check_numbers(size: int, max_unreadable: float, workers: int) -> None:
    if size < 1:
        raise InputError(f'--size must be at least 1 pixel; got {size}.')
    if not 0 <= max_unreadable <= 100:
        raise InputError(f'--max_unreadable must lie in 0..100 per cent; got {max_unreadable:g}.')
    if workers < 1:
        raise InputError(f'--workers must be at least 1; got {workers}.')


def _tell(tree: ImageTree, say: Callable[[str], None]) -> None:
    counts = ', '.join(f'{len(files):,} {split}' for split, files in tree.splits.items())
    say(f'{len(tree.classes):,} classes; image files: {counts}.')
    if tree.ignored:
        say(f'Passed over, by their extension: {describe_ignored(tree.ignored)}.')
