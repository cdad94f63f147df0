"""The parallel sampler against the sequential one, on a trained model: time, passes and errors.

    python -m benchmarks.samplers --workdir=runs/photos64p4 [--batches 1 16] [--compared 1000]
        [--gs_jacobi=PATH]

With the path of a checkout of https://github.com/encoreus/GS-Jacobi_for_TarFlow (and torch), the
published code solves the same blocks from the same latents, too.
Prints tables of Markdown. Times are medians of rounds in which the methods take turns; the worst
round is in brackets. Errors are the largest differences of a pixel (in [-1, 1]) from the sequential
sampler's images.
"""

import argparse
import dataclasses
import functools
import importlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import tarflow_jax
from benchmarks.speed import machine
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.published.convert import to_state_dict
from tarflow_jax.sampling.calibrate import calibrate
from tarflow_jax.sampling.inverse import inverse
from tarflow_jax.sampling.parallel import Calibration

TOLERANCE = 1e-3
GUIDED = dict(guidance=1.0, attention_temperature=0.7)


class Sampler:
    """A trained model that draws given samples, with any calibration."""

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


class GsJacobi:
    """The published code of GS-Jacobi (2505.12849) with a model's weights, without guidance.

    Its strategy for models of this shape: the block next to the prior in 8 segments of at most 32
    sweeps, the others whole, from the latents. The bound that ends the sweeps is the largest whose
    images are as near to the sequential ones as required.
    """

    BOUNDS = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)

    def __init__(self, path: str, model, params):
        sys.path.insert(0, path)
        self._torch = importlib.import_module('torch')  # not a dependency of this package
        height, _, channels = model.image_shape
        sizes = dict(channels=model.width, num_blocks=model.num_blocks)
        self._model = importlib.import_module('GS_Jacobi_sampling').Model(
            *(channels, height, model.patch_size), **sizes, layers_per_block=model.layers_per_block
        )
        tensors = to_state_dict(model, jax.device_get(params))
        state = {k: self._torch.tensor(np.ascontiguousarray(v)) for k, v in tensors.items()}
        self._model.load_state_dict(state)

    def draw(self, noise, bound: float) -> np.ndarray:
        others = self._model.num_blocks - 1
        pixels = np.ascontiguousarray(np.asarray(noise).transpose(0, 3, 1, 2))
        pixels = self._torch.tensor(pixels)
        with self._torch.no_grad():
            images = self._model.reverse(
                self._model.patchify(pixels),
                num_GS_list=[8] + [1] * others,
                max_jacobi_list=[32] + [64] * others,
                guess_list=[0] * (1 + others),
                ebound=bound,
            )
        return images.permute(0, 2, 3, 1).numpy()

    def bound_for(self, noise, expected, error: float) -> float:
        """The largest bound whose images differ by at most `error`."""
        for bound in self.BOUNDS:
            if np.abs(self.draw(noise, bound) - expected).max() <= error:
                return bound
        return self.BOUNDS[-1]


def compare_gs_jacobi(sampler: Sampler, theirs: GsJacobi, batch: int, rounds: int) -> str:
    """A row of the table of both."""
    calibration, noise = sampler.calibrated(batch), sampler.noise(0, batch)
    expected, ours = sampler.draw(noise), sampler.draw(noise, calibration)
    bound = theirs.bound_for(noise, expected, 2 * TOLERANCE)
    error = np.abs(theirs.draw(noise, bound) - expected).max()
    seconds = [], []
    for _ in range(rounds):
        for times, method in (
            (seconds[0], lambda: sampler.draw(noise, calibration)),
            (seconds[1], lambda: theirs.draw(noise, bound)),
        ):
            start = time.perf_counter()
            method()
            times.append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    cells = [
        f'{batch}',
        *(f'{statistics.median(times):.3f} s' for times in seconds),
        f'{statistics.median(ratios):.2f} ({min(ratios):.2f})',
        f'{float(np.abs(ours - expected).max()):.1e}',
        f'{error:.1e}',
        f'{bound:.0e}',
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
        evaluations = solution.evaluations.mean() / (sampler.flow.num_tokens - 1)
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
    parser.add_argument('--gs_jacobi', help='path of a checkout of the published code')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument(
        '--windows', type=int, nargs='*', default=[8, 32], help='whose passes count'
    )
    parser.add_argument('--compared', type=int, default=0, help='samples whose errors are measured')
    parser.add_argument('--guided', action=argparse.BooleanOptionalAction, default=True)
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
        for settings in ({}, GUIDED) if options.guided else ({},):
            print(compare_times(sampler, batch, options.rounds, settings), flush=True)

    if options.gs_jacobi:
        print('\n| batch | ours | GS-Jacobi | ratio | our error | its error | its bound |')
        print('|---|---|---|---|---|---|---|', flush=True)
        theirs = GsJacobi(options.gs_jacobi, sampler.model, sampler.params)
        for batch in options.batches:
            print(compare_gs_jacobi(sampler, theirs, batch, options.rounds), flush=True)

    if not options.windows:
        return
    print('\n| window | calibrated | sweeps, first block to last | total | evaluations per token |')
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
            for settings in ({}, GUIDED) if options.guided else ({},):
                windows = (window,) * num_blocks
                size = options.compared_batch
                print(
                    compare_images(sampler, windows, options.compared, size, settings), flush=True
                )


if __name__ == '__main__':
    main()
