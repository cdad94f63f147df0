"""How many images per second a host reads for training, from disk and without a model.

    python -m benchmarks.data_pipeline photos/64 photos/256 --workers=0,1,2

Each line is the median over a few windows of time, each of which reads whole batches in a random
order, as training does; the files are likely to be in the operating system's cache. `--mode=plan`
("data") says how many a planned training run needs from each host.
"""

import argparse
import contextlib
import os
import statistics
import time

from tarflow_jax.data import pipeline, sources

WINDOWS = 7
SECONDS = 2.0  # of a window


def images_per_second(split, batch_size: int, workers: int, windows: int = WINDOWS) -> list[float]:
    """The rates of all windows."""
    batches = pipeline.train_batches(split, batch_size=batch_size, seed=0, workers=workers)
    with contextlib.closing(batches):
        next(batches)
        return [_rate(batches, batch_size) for _ in range(1 + windows)][1:]


def _rate(batches, batch_size: int) -> float:
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        next(batches)
        count += batch_size
    return count / (time.perf_counter() - start)


def main():
    """Prints a line for every data set and number of worker processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='+')
    parser.add_argument(
        '--data_dir', default=os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
    )
    parser.add_argument('--image_size', type=int)
    parser.add_argument('--batch_size', type=int, default=256)
    parser.add_argument('--workers', default='0')
    args = parser.parse_args()
    for name in args.names:
        dataset = sources.open_dataset(
            name, args.data_dir, image_size=args.image_size, in_memory_bytes=0
        )
        split = dataset.split('train')
        for workers in map(int, args.workers.split(',')):
            rates = images_per_second(split, args.batch_size, workers)
            print(
                f'{name}: {len(split):,} images {dataset.image_shape}, batches of '
                f'{args.batch_size}, {workers} workers: {statistics.median(rates):,.0f} images/s '
                f'({min(rates):,.0f} to {max(rates):,.0f})',
                flush=True,
            )


if __name__ == '__main__':
    main()
