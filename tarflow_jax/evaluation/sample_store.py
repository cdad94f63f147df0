"""Samples that an evaluation has drawn, kept on the disk until it is done."""

import hashlib
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from tarflow_jax.files import json_text, write_atomically, write_json
from tarflow_jax.parallel import distributed

PART_SECONDS = 10  # of drawing, at most, that a killed process loses; a bucket takes long to write


class SampleStore:
    """The first samples of a model, in files that are complete or absent.

    The folder's name is a hash of `settings`, so that samples of other settings are never reused.
    Every process may call all methods; only the main one reads and writes.

    Args:
      folder: the folder in which the samples of an evaluation get a folder of their own.
      settings: everything that the samples depend on, as values of JSON.
      image_shape: (H, W, C) of a sample.

    Attributes:
      count: how many there are, from number 0 on.
      num_redrawn: how often noise was drawn again.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], image_shape: tuple[int, ...]):
        self._settings = settings
        self._image_shape = tuple(image_shape)
        digest = hashlib.sha256(json_text(settings).encode()).hexdigest()
        self._folder = folder / f'drawn-{digest[:16]}'
        self._parts: list[tuple[Path, int]] = []  # files, and how many samples each has
        self._new: list[np.ndarray] = []
        self.count = self.num_redrawn = self._new_redrawn = 0
        self._last_write = time.monotonic()
        if distributed.is_main():
            self._read_parts()
        self.count, self.num_redrawn = distributed.broadcast_from_main(
            [self.count, self.num_redrawn]
        )

    def _read_parts(self) -> None:
        """Finds the parts that follow one another; what comes after a gap or damage is removed."""
        for path in sorted(self._folder.glob('*.npy')):
            try:
                start, num_redrawn = (int(number) for number in path.stem.split('-'))
                part = np.load(path, mmap_mode='r', allow_pickle=False)
                if start != self.count or part.shape[1:] != self._image_shape:
                    raise ValueError(f'it does not follow {self.count} samples')
                if part.dtype != np.uint8:
                    raise ValueError(f'it holds {part.dtype}')
            except (ValueError, EOFError) as damage:
                logging.warning('%s cannot be used and is drawn again: %s.', path, damage)
                path.unlink()
                continue
            self._parts.append((path, len(part)))
            self.count += len(part)
            self.num_redrawn += num_redrawn

    def read(self, start: int, stop: int) -> np.ndarray:
        """The samples uint8 [stop - start, H, W, C] of these numbers; zeros in other processes."""
        images = np.zeros((stop - start, *self._image_shape), np.uint8)
        first = 0
        for path, length in self._parts:
            low, high = max(start, first), min(stop, first + length)
            if low < high:
                part = np.load(path, mmap_mode='r')  # kept open, many would exceed the limit
                images[low - start : high - start] = part[low - first : high - first]
            first += length
        return images

    def add(self, images: np.ndarray, num_redrawn: int) -> None:
        """Adds the next samples, uint8 [n, H, W, C], and writes them now and then."""
        self.count += len(images)
        self.num_redrawn += num_redrawn
        if not distributed.is_main():
            return
        self._new.append(images)
        self._new_redrawn += num_redrawn
        if time.monotonic() - self._last_write > PART_SECONDS:
            self.write()

    def write(self) -> None:
        """Writes what was added since the last time."""
        if not self._new:
            return
        if not self._parts:
            write_json(self._folder / 'settings.json', self._settings)
        images = np.concatenate(self._new)
        path = self._folder / f'{self.count - len(images):010}-{self._new_redrawn}.npy'
        write_atomically(path, lambda file: np.save(file, images))
        self._parts.append((path, len(images)))
        self._new, self._new_redrawn = [], 0
        self._last_write = time.monotonic()

    def remove(self) -> None:
        """Removes all of them from the disk."""
        self._parts = []
        if distributed.is_main():
            shutil.rmtree(self._folder, ignore_errors=True)
