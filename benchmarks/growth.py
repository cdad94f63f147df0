"""How the time of a training step scales with tokens, batch, depth and devices.

    python -m benchmarks.growth tokens batch depth devices

A small model grows along one axis at a time. An exponent is the slope of a straight line through
the logarithms: 1 means that twice as much takes twice as long. Next to the exponent of the time are
that of the FLOPs, which is the floor, and attention's share of the FLOPs at both ends. Devices
share one batch, and a CPU's cores.
"""

import argparse
import dataclasses
import os
import statistics

import numpy as np

from benchmarks.ours import Ours
from benchmarks.remote import Remote, machine
from benchmarks.workloads import Task, Workload

SMALL = Workload((16, 16, 3), 2, 64, 2, 2, 0, batch_size=4, num_samples=())
AXES = {
    'tokens': {
        side**2 // 4: dataclasses.replace(SMALL, image_shape=(side, side, 3), batch_size=2)
        for side in (16, 32, 64, 128)
    },
    'batch': {
        batch_size: dataclasses.replace(SMALL, batch_size=batch_size)
        for batch_size in (1, 4, 16, 64, 256)
    },
    'depth': {
        2 * layers: dataclasses.replace(SMALL, layers_per_block=layers)
        for layers in (1, 2, 4, 8, 16, 32)
    },
    'devices': {devices: dataclasses.replace(SMALL, batch_size=256) for devices in (1, 2, 4, 8)},
}


@dataclasses.dataclass(frozen=True)
class Point:
    """Seconds and FLOPs of a step; the share of the FLOPs that are attention over all pairs."""

    seconds: float
    flops: float
    attention: float


def measure(workload: Workload, rounds: int) -> Point:
    """The median of some steps, after one that compiles."""
    ours = Remote(Ours, workload, Task('train', workload.batch_size))
    flops = ours.call('flops').result
    ours.call('train')
    seconds = statistics.median(ours.call('train').seconds for _ in range(rounds))
    ours.close()
    side, _, _ = workload.image_shape
    tokens = (side // workload.patch_size) ** 2
    layers = workload.num_blocks * workload.layers_per_block
    pairs = 3 * workload.batch_size * layers * 4 * tokens**2 * workload.width
    return Point(seconds, flops, pairs / flops)


def slope(values, costs) -> float:
    """The exponent with which a cost grows."""
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def line(axis: str, points: dict[int, Point]) -> str:
    """A row of the table."""
    values, measured = list(points), list(points.values())
    time = slope(values, [point.seconds for point in measured])
    flops = slope(values, [point.flops for point in measured])
    seconds = ', '.join(f'{point.seconds:.3g}' for point in measured)
    first, last = measured[0].attention, measured[-1].attention
    return (
        f'| {axis} | {", ".join(map(str, values))} | {seconds} | {time:.2f} | {flops:.2f} | '
        f'{first:.0%} to {last:.0%} |'
    )


def main():
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('axes', nargs='*', default=list(AXES))
    parser.add_argument('--rounds', type=int, default=5)
    options = parser.parse_args()
    print(machine())
    print('| axis | values | seconds per step | exponent | exponent of the FLOPs | attention |')
    print('|---|---|---|---|---|---|')
    for axis in options.axes:
        points = {}
        for value, workload in AXES[axis].items():
            if axis == 'devices':
                os.environ['JAX_NUM_CPU_DEVICES'] = str(value)
            points[value] = measure(workload, options.rounds)
        os.environ.pop('JAX_NUM_CPU_DEVICES', None)
        print(line(axis, points), flush=True)


if __name__ == '__main__':
    main()
