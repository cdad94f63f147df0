"""Any class-folder tree of image files, as a TFDS data set of one fixed size in ArrayRecord.

A preparation that was interrupted resumes: finished files of records stay, and the result is, byte
for byte, that of a preparation without interruption.
"""

import collections
import dataclasses
import functools
import itertools
import math
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

import PIL
import tensorflow_datasets as tfds

from tarflow_jax.data import builders
from tarflow_jax.data.folder import (
    data_folder,
    exclusive_lock,
    explain_write_errors,
    prepared_folders,
)
from tarflow_jax.data.image_folder.records import (
    RecordReport,
    RecordTask,
    features,
    read_headers,
    read_report,
    write_records,
)
from tarflow_jax.data.image_folder.tree import ImageTree, read_tree
from tarflow_jax.data.workers import map_unordered
from tarflow_jax.errors import InputError
from tarflow_jax.files import remove_unfinished, write_atomically
from tarflow_jax.progress import count_progress
from tarflow_jax.quantities import format_bytes, format_count
from tarflow_jax.values import Integer

VERSION = '1.0.0'
UNREADABLE_FILE = 'unreadable.txt'

_NAME = re.compile('[a-z][a-z0-9_]*')
_WORK_SUFFIX = '.half_prepared'

# A killed preparation loses record files that are half written; a reader holds all of them open.
_IMAGES_PER_RECORD_FILE = 256
_MAX_RECORD_FILES = 256
_IMBALANCE_RATIO = 2  # of the largest class to the smallest, from which their sizes are printed
_MAX_EXAMPLES = 3


def prepare_image_folder(
    name: str,
    folder: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    size: int,
    upscale: bool = False,
    workers: int = 1,
) -> pathlib.Path:
    """Prepares `<folder>/<class>/<file>` or `<folder>/<split>/<class>/<file>` as a data set.

    The splits are 'train', 'validation' (of a folder val, valid or validation) and 'test'. Examples
    are image uint8 [size, size, 3], the shorter side scaled to `size` and the centre cut, and the
    label, an index into the sorted names of the class folders. Files that cannot be read as images
    are left out, and listed in `unreadable.txt`. Prints a summary of the folder, and the progress.

    Args:
        name: the name of the data set: lower-case letters, digits and underscores.
        folder: the images.
        data_dir: the folder of prepared data sets.
        size: side of the images in pixels.
        upscale: whether smaller images are enlarged rather than refused.
        workers: processes to use.

    Returns:
        The folder `<data_dir>/<name>/<version>`, which TFDS reads.

    Raises:
        InputError: it cannot be done as given. Nothing that was finished is lost.
        RunError: a worker process was killed.
    """
    root = data_folder(data_dir)
    _check_name(name, root)
    Integer(1).check('--size', size)
    Integer(1).check('--workers', workers)
    tree = read_tree(folder)
    for line in _summary_lines(tree):
        print(line, flush=True)
    preparation = _Preparation(name, tree, root / name / VERSION, size, upscale, workers)
    preparation.check_headers()
    with explain_write_errors(name, root), exclusive_lock(root / name, wait=False):
        preparation.begin_or_resume()
        preparation.finish(preparation.write_records())
    return preparation.target


def _images_in(reports: list[RecordReport]) -> int:
    return sum(report.num_examples + len(report.unreadable) for report in reports)


def _check_name(name: str, root: pathlib.Path) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"'{name}' cannot be the name of a data set: take lower-case letters, digits and "
            'underscores, a letter first.'
        )
    if builders.is_own(name) or name in tfds.list_builders(with_community_datasets=False):
        owner = 'this package' if builders.is_own(name) else "TFDS's catalog"
        raise InputError(f"'{name}' is the name of a data set of {owner}; choose another one.")
    for known, folder in prepared_folders(root).items():
        if known.split('/')[0] == name:
            raise InputError(
                f"a data set '{name}' is already prepared in '{folder}'. Delete that folder to "
                'prepare it again, or choose another name.'
            )


def _summary_lines(tree: ImageTree) -> Iterator[str]:
    """Yields lines that summarize the tree, and lines about what users may not expect."""
    counts = ', '.join(f'{len(files):,} {split}' for split, files in tree.splits.items())
    noun = 'class' if len(tree.classes) == 1 else 'classes'
    yield f'{len(tree.classes):,} {noun}; image files: {counts}.'
    ranking = collections.Counter(file.label for file in tree.splits['train']).most_common()
    (most, largest), (least, smallest) = ranking[0], ranking[-1]
    if largest >= _IMBALANCE_RATIO * smallest:
        names = tree.classes[least], tree.classes[most]
        yield f'Images of a class: {smallest:,} ({names[0]}) to {largest:,} ({names[1]}).'
    if len(tree.splits) == 1:
        yield (
            'There is no folder val or test: all images are the split train, of which slices can '
            "be held out for testing (--config.data.train_split='train[5%:]' "
            "--config.data.test_split='train[:5%]')."
        )
    if tree.ignored:
        kinds = (f'{count:,} {kind or "without any"}' for kind, count in tree.ignored.items())
        yield f'Ignored, by extension: {", ".join(kinds)}.'


@dataclasses.dataclass(frozen=True)
class _Preparation:
    """The steps of a preparation, in a work folder beside the `target`.

    The work folder holds `records/`, which is renamed to the target at the end, and `reports/`,
    with a report of every finished record file. A hash of the images and settings is part of its
    name.
    """

    name: str
    tree: ImageTree
    target: pathlib.Path
    size: int
    upscale: bool
    workers: int

    @functools.cached_property
    def work(self) -> pathlib.Path:
        fingerprint = self.tree.fingerprint(self.size, self.upscale, PIL.__version__)
        return self.target.with_name(f'{VERSION}.{fingerprint}{_WORK_SUFFIX}')

    @property
    def records(self) -> pathlib.Path:
        return self.work / 'records'

    @functools.cached_property
    def num_files(self) -> int:
        return sum(len(files) for files in self.tree.splits.values())

    def begin_or_resume(self) -> None:
        """Creates the work folder, unless that was done before."""
        for other in set(self.target.parent.glob(f'*{_WORK_SUFFIX}')) - {self.work}:
            print('The images or the settings changed since the interruption: it starts again.')
            shutil.rmtree(other)
        self.records.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self.records)

    def check_headers(self) -> None:
        """Reads the sizes of all images, unless that was done before; writes nothing."""
        if self.records.is_dir():
            return
        small: list[tuple[int, str]] = []
        done = num_transparent = 0
        with (
            count_progress('headers', self.num_files) as progress,
            map_unordered(read_headers, self._tasks(), self.workers) as results,
        ):
            for headers in results:
                small += headers.small
                done += headers.num_files
                num_transparent += headers.num_transparent
                progress.update(done)
        if num_transparent:
            images = format_count(num_transparent, 'image')
            print(f'Composited onto white where transparent: {images} with an alpha channel.')
        if small and not self.upscale:
            side, path = min(small)
            raise InputError(
                f'{len(small):,} of {self.num_files:,} images have a side shorter than '
                f"{self.size} pixels; the smallest is '{path}' with {side}. Choose --size={side} "
                'or less, take them out, or have them enlarged with --upscale.'
            )

    def write_records(self) -> list[RecordReport]:
        """Writes the record files that are not there yet; the reports are in the files' order."""
        tasks = list(self._tasks())
        reports = [report for task in tasks if (report := read_report(task))]
        written = {report.record_file for report in reports}
        missing = [task for task in tasks if task.target.name not in written]
        if reports:
            print(f'Resuming: {len(reports)} of {len(tasks)} record files are written.')
        self._check_space(missing)
        with (
            count_progress('images', self.num_files, first=_images_in(reports)) as progress,
            map_unordered(write_records, missing, self.workers) as results,
        ):
            for report in results:
                reports.append(report)
                progress.update(_images_in(reports))
        return sorted(reports)

    def _tasks(self) -> Iterator[RecordTask]:
        """Deals the images evenly to record files."""
        for split, files in self.tree.splits.items():
            count = min(math.ceil(len(files) / _IMAGES_PER_RECORD_FILE), _MAX_RECORD_FILES)
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
                    report=self.work / 'reports' / f'{target.name}.json',
                )

    def _template(self, split: str) -> tfds.core.ShardedFileTemplate:
        return tfds.core.ShardedFileTemplate(
            data_dir=self.records,
            dataset_name=self.name,
            split=split,
            filetype_suffix=tfds.core.FileFormat.ARRAY_RECORD.file_suffix,
        )

    def _check_space(self, tasks: list[RecordTask]) -> None:
        needed = sum(len(task.files) for task in tasks) * self.size**2 * 3
        free = shutil.disk_usage(self.work).free
        if needed > free:
            raise InputError(
                f"the record files need {format_bytes(needed)}, and '{self.target.parent}' has "
                f'room for {format_bytes(free)}. Make room or give another --data_dir.'
            )

    def finish(self, reports: list[RecordReport]) -> None:
        """Writes TFDS's metadata, and gives the folder its name."""
        by_split: dict[str, list[RecordReport]] = collections.defaultdict(list)
        for report in reports:
            by_split[report.split].append(report)
        if any(report.unreadable for report in reports):
            self._list_unreadable(by_split)
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
            data_dir=self.records,
            features=features(self.size, tfds.features.ClassLabel(names=self.tree.classes)),
            split_infos=split_infos,
            version=VERSION,
            check_data=False,  # TFDS would read with TensorFlow
            description=f'Images of class folders, scaled and cropped to {self.size} pixels.',
            supervised_keys=('image', 'label'),
            disable_shuffling=True,  # the order is ours
            metadata=tfds.core.MetadataDict(num_levels=256),
        )
        self.records.rename(self.target)
        shutil.rmtree(self.work)

    def _list_unreadable(self, by_split: dict[str, list[RecordReport]]) -> None:
        """Writes which files are left out; raises InputError if a split has no others."""
        reports = itertools.chain(*by_split.values())
        unreadable = sorted(file for report in reports for file in report.unreadable)
        examples = ', '.join(f"'{path}': {reason}" for path, reason in unreadable[:_MAX_EXAMPLES])
        examples += ', ...' if len(unreadable) > _MAX_EXAMPLES else ''
        for split, reports in by_split.items():
            if not any(report.num_examples for report in reports):
                raise InputError(f'no file of the {split} split can be read ({examples}).')
        text = ''.join(f'{path}: {reason}\n' for path, reason in unreadable)
        content = text.encode(errors='surrogateescape')  # a name may be any bytes
        write_atomically(self.records / UNREADABLE_FILE, lambda file: file.write(content))
        print(
            f'Left out {format_count(len(unreadable), "file")} that cannot be read ({examples}); '
            f'named in {self.target / UNREADABLE_FILE}.'
        )
