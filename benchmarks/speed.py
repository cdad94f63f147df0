"""Speed, memory and compile time of training, likelihood, denoising, sampling and reading.

    python -m benchmarks.speed digits mnist photos64 --json=speed.json --picture=speed.png

Each task runs in a process of its own. Its share of the ceiling is its FLOP/s divided by those of
the two products of an MLP of the model's width, with as many rows as the task has on a device,
measured alternately with it. The first call compiles, unless the program is kept from an earlier
run; JAX_ENABLE_COMPILATION_CACHE=false makes every program compile.
"""

import argparse
import json
import os
import statistics
from pathlib import Path

from benchmarks.data_pipeline import images_per_second
from benchmarks.ours import Ours
from benchmarks.remote import ROUND_SECONDS, Remote, machine, rate
from benchmarks.workloads import WORKLOADS, Task, Workload, tasks_of

HEAD = """\
| workload | task | images/s | share of the ceiling | ceiling, GFLOP/s | peak memory | first call |
|---|---|---|---|---|---|---|"""


def measure(name: str, task: Task, rounds: int) -> dict:
    """The figures of one task: medians, and the range of its seconds."""
    ours = Remote(Ours, WORKLOADS[name], task)
    flops = ours.call('flops').result
    first = ours.call(task.name)
    ours.call('ceiling')
    calls, ceilings = [], []
    for _ in range(rounds):
        calls.append(ours.call(task.name, min_seconds=ROUND_SECONDS))
        ceilings.append(ours.call('ceiling').result)
    ours.close()
    seconds = [call.seconds for call in calls]
    shares = [flops / s / ceiling for s, ceiling in zip(seconds, ceilings, strict=True)]
    return {
        'workload': name,
        'task': task.name,
        'images': task.num_images,
        'seconds': statistics.median(seconds),
        'seconds_range': [min(seconds), max(seconds)],
        'first_seconds': first.seconds,
        'flops': flops,
        'ceiling_flops_per_second': statistics.median(ceilings),
        'share_of_ceiling': statistics.median(shares),
        'peak_bytes': calls[-1].peak_bytes,
    }


def measure_reading(name: str, workload: Workload, data_dir: str, rounds: int) -> dict:
    """Images a second from disk, without a model; the data set is prepared if it is not."""
    from tarflow_jax.data import sources

    dataset = sources.open_dataset(workload.data, data_dir, in_memory_bytes=0)
    split = dataset.split('train')
    batch_size = min(workload.batch_size, len(split))
    rates = images_per_second(split, batch_size, workers=0, windows=rounds)
    return {
        'workload': name,
        'task': 'read',
        'images': batch_size,
        'seconds': batch_size / statistics.median(rates),
        'seconds_range': [batch_size / max(rates), batch_size / min(rates)],
    }


def line(row: dict) -> str:
    """A row of the table."""
    images = row['images']
    cells = [row['workload'], f'{row["task"]} {images}', rate(images, row['seconds'])]
    if row['task'] == 'read':
        return f'| {" | ".join(cells)} | – | – | – | – |'
    cells += [
        f'{row["share_of_ceiling"]:.0%}',
        f'{row["ceiling_flops_per_second"] / 1e9:.0f}',
        f'{row["peak_bytes"] / 2**30:.2f} GiB',
        f'{row["first_seconds"]:.1f} s',
    ]
    return f'| {" | ".join(cells)} |'


def draw(rows: list[dict], path: Path) -> None:
    """A picture of the shares of the ceiling, a bar for each task."""
    from tarflow_jax import pictures

    rows = [row for row in rows if row['task'] != 'read']
    pictures.shares(
        [f'{row["workload"]}: {row["task"]} {row["images"]}' for row in rows],
        [row['share_of_ceiling'] for row in rows],
        [f'{rate(row["images"], row["seconds"])} images/s' for row in rows],
        title=machine(),
        of='share of the FLOP/s of matrix products alone',
    ).write(path)


def main():
    """Prints a table; writes it as JSON, and as a picture, where that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('workloads', nargs='*', default=['digits', 'mnist', 'photos64'])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--tasks', nargs='*', help='train, likelihood, ..., guided, read')
    parser.add_argument(
        '--data_dir', default=os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
    )
    parser.add_argument('--json', type=Path)
    parser.add_argument('--picture', type=Path)
    options = parser.parse_args()
    rows = []

    def add(row):
        rows.append(row)
        print(line(row), flush=True)

    print(machine(), HEAD, sep='\n', flush=True)
    for name in options.workloads:
        workload = WORKLOADS[name]
        for task in tasks_of(workload):
            if not options.tasks or task.name in options.tasks:
                add(measure(name, task, options.rounds))
        if workload.data and (not options.tasks or 'read' in options.tasks):
            add(measure_reading(name, workload, options.data_dir, options.rounds))
    if options.json:
        options.json.write_text(json.dumps({'machine': machine(), 'rows': rows}, indent=2))
    if options.picture:
        draw(rows, options.picture)


if __name__ == '__main__':
    main()
