"""The parallel sampler against the sequential one, on a trained model: time, passes and errors.

    python -m benchmarks.samplers --workdir=runs/photos64p4 [--batches 1 16] [--compared 1000]

Prints tables of Markdown. Times are medians of rounds in which the methods take turns; the worst
round is in brackets. Errors are the largest differences of a pixel (in [-1, 1]) from the sequential
sampler's images.
"""

import argparse
import dataclasses
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import tarflow_jax
from benchmarks.speed import machine
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.sampling.calibrate import calibrate
from tarflow_jax.sampling.inverse import inverse
from tarflow_jax.sampling.parallel import Calibration

TOLERANCE = 1e-3
GUIDED = dict(guidance=1.0, attention_temperature=0.7)


class Sampler:
    """A model that draws samples of given numbers, by any calibration."""

    def __init__(self, workdir: str):
        self.model, self.params = tarflow_jax.load(workdir)
        self.flow = self.model.token_flow()
        self.mesh = make_mesh(devices=jax.devices()[:1])

    def noise(self, first: int, batch: int):
        key = jax.random.fold_in(jax.random.key(1), first)
        return jax.random.normal(key, (batch, *self.model.image_shape))

    def labels(self, batch: int):
        return jnp.arange(batch) % self.model.num_classes if self.model.num_classes else None

    def draw(self, noise, calibration=None, **settings):
        settings = dict(tolerance=TOLERANCE, calibration=calibration) | settings
        labels = self.labels(len(noise))
        images = tarflow_jax.sample(self.model, self.params, noise, labels, **settings)
        return jax.block_until_ready(images)

    def calibrated(self, batch: int, windows=(), **settings) -> Calibration:
        arguments = dict(batch_size=batch, tolerance=TOLERANCE, windows=windows, **settings)
        return calibrate(self.model, self.params, self.mesh, **arguments)[0]


def compare_times(sampler: Sampler, batch: int, rounds: int, settings) -> str:
    """A row of the table of times."""
    calibration = sampler.calibrated(batch, **settings)
    jacobi = Calibration.default(sampler.flow, sampler.flow.num_tokens - 1)
    noise = sampler.noise(0, batch)
    draw = functools.partial(sampler.draw, noise, **settings)
    methods = {
        'sequential': draw,
        'calibrated': functools.partial(draw, calibration),
        'certified': functools.partial(draw, calibration, return_residual=True),
        'Jacobi': functools.partial(draw, jacobi),
    }
    results = {name: method() for name, method in methods.items()}  # compiled now
    seconds = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            seconds[name].append(time.perf_counter() - start)

    def faster(name):
        ratios = [a / b for a, b in zip(seconds['sequential'], seconds[name], strict=True)]
        return f'{statistics.median(ratios):.2f} ({min(ratios):.2f})'

    error = float(jnp.abs(results['calibrated'] - results['sequential']).max())
    cells = [
        f'{batch}{", guided" if settings else ""}',
        ' '.join(map(str, calibration.windows)),
        f'{statistics.median(seconds["sequential"]):.3f} s',
        *(faster(name) for name in ('calibrated', 'certified', 'Jacobi')),
        f'{float(results["certified"][1].max()):.1e}',
        f'{error:.1e}',
    ]
    return f'| {" | ".join(cells)} |'


def count_sweeps(sampler: Sampler, window: int, fitted: Calibration) -> list[str]:
    """Rows of the table of passes: what the first guess and the response save."""
    plain = Calibration.default(sampler.flow, window)
    window = min(window, sampler.flow.num_tokens - 1)
    of_guess = dict(gain=fitted.gain, offset=fitted.offset)
    variants = {
        'neither (Jacobi in a window)': plain,
        'first guess': dataclasses.replace(plain, **of_guess),
        'response': dataclasses.replace(plain, response=fitted.response),
        'both': dataclasses.replace(plain, response=fitted.response, **of_guess),
    }
    rows = []
    latents = sampler.model.patchify(sampler.noise(0, 1))
    for name, calibration in variants.items():
        solution = _solve(sampler.flow, sampler.params, latents, calibration)
        sweeps = np.asarray(solution.sweeps)
        evaluations = window * sweeps.mean() / (sampler.flow.num_tokens - 1)
        by_block = ' '.join(map(str, sweeps))
        rows.append(f'| {window} | {name} | {by_block} | {sweeps.sum()} | {evaluations:.2f} |')
    return rows


@functools.partial(jax.jit, static_argnums=0)
def _solve(flow, params, latents, calibration):
    labels = jnp.full(len(latents), -1)
    return inverse(
        flow, params, latents, labels, calibration=calibration, tolerance=TOLERANCE, certify=True
    )


def compare_images(sampler: Sampler, windows, number: int, batch: int, settings) -> str:
    """A row of the table of errors, over many samples."""
    calibration = sampler.calibrated(batch, windows, **settings)
    errors, residuals = [], []
    for first in range(0, number, batch):
        noise = sampler.noise(first, batch)
        images, residual = sampler.draw(noise, calibration, return_residual=True, **settings)
        difference = jnp.abs(images - sampler.draw(noise, **settings))
        errors.extend(np.asarray(difference.max(axis=(1, 2, 3))))
        residuals.extend(np.asarray(residual))
    errors = np.array(errors[:number])
    cells = [
        f'{windows[0]}{", guided" if settings else ""}',
        f'{number}',
        f'{max(residuals):.1e}',
        f'{errors.max():.1e}',
        f'{np.quantile(errors, 0.99):.1e}',
        f'{np.median(errors):.1e}',
        f'{np.mean(errors <= TOLERANCE):.1%}',
    ]
    return f'| {" | ".join(cells)} |'


def main():
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--workdir', required=True, help='of a trained model')
    parser.add_argument('--batches', type=int, nargs='*', default=[1, 16])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument(
        '--windows', type=int, nargs='*', default=[8, 32], help='whose passes count'
    )
    parser.add_argument('--compared', type=int, default=0, help='samples whose errors are measured')
    parser.add_argument('--compared_batch', type=int, default=50)
    options = parser.parse_args()
    sampler = Sampler(options.workdir)
    num_tokens, num_blocks = sampler.flow.num_tokens, sampler.flow.num_blocks
    print(machine())
    print(f'{num_blocks} blocks, {num_tokens} tokens, tolerance {TOLERANCE}\n')

    print(
        '| batch | windows, first block to last | sequential | calibrated | certified | Jacobi ',
        end='',
    )
    print('| largest residual | largest error |\n|---|---|---|---|---|---|---|---|', flush=True)
    for batch in options.batches:
        for settings in {}, GUIDED:
            print(compare_times(sampler, batch, options.rounds, settings), flush=True)

    print('\n| window | calibrated | sweeps, first block to last | in all | evaluations a token |')
    print('|---|---|---|---|---|', flush=True)
    fitted = sampler.calibrated(1, (1,) * num_blocks)
    for window in [*options.windows, num_tokens - 1]:
        print(*count_sweeps(sampler, window, fitted), sep='\n', flush=True)

    if options.compared:
        print(
            '\n| window | samples | largest residual | largest error | 99 % | median | within ',
            end='',
        )
        print('the tolerance |\n|---|---|---|---|---|---|---|', flush=True)
        for window in [*options.windows, num_tokens - 1]:
            for settings in {}, GUIDED:
                windows = (window,) * num_blocks
                size = options.compared_batch
                print(
                    compare_images(sampler, windows, options.compared, size, settings), flush=True
                )


if __name__ == '__main__':
    main()
