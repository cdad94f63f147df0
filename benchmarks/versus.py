"""Training, likelihood and sampling beside the published PyTorch code, on the same weights.

    git clone https://github.com/apple/ml-tarflow
    pip install torch
    python -m benchmarks.versus --ml_tarflow=ml-tarflow mnist photos64

Each side runs in a process of its own and both take turns, round by round, so that a machine's
moods meet both. Before they are timed, both compute the same latents, log-determinants and samples,
or the benchmark ends. A ratio is how many times as fast we are; its range is that of the rounds.
"""

import argparse
import importlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.workloads import WORKLOADS, Workload

GUIDANCE = 1.0
TOLERANCE = 1e-3  # between the answers of both, relative to the largest number


class Published:
    """The published model, which draws the weights; float32, as its own code runs without a GPU."""

    def __init__(self, workload: Workload, path: str, torch_compile: bool):
        sys.path.insert(0, path)
        torch = importlib.import_module('torch')  # not a dependency of this package
        make_model = importlib.import_module('transformer_flow').Model

        height, _, channels = workload.image_shape
        torch.manual_seed(0)
        self.torch, self.workload = torch, workload
        self.model = make_model(
            in_channels=channels,
            img_size=height,
            patch_size=workload.patch_size,
            channels=workload.width,
            num_blocks=workload.num_blocks,
            layers_per_block=workload.layers_per_block,
            num_classes=workload.num_classes,
        )
        with torch.no_grad():
            for block in self.model.blocks:  # a new model is the identity
                block.proj_out.weight.normal_(std=0.2 / math.sqrt(workload.width))
        self.forward = torch.compile(self.model) if torch_compile else self.model
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=1e-4
        )

    def weights(self):
        return {name: tensor.numpy() for name, tensor in self.model.state_dict().items()}

    def latents(self, images, labels):
        with self.torch.no_grad():
            latents, _, log_dets = self.model(self._pixels(images), self._labels(labels))
            latents = self.model.unpatchify(latents).permute(0, 2, 3, 1)
        return [latents.numpy(), log_dets.numpy() * math.prod(self.workload.image_shape)]

    def train(self, images, labels):
        pixels = self._pixels(images)
        pixels = pixels + 0.1 * self.torch.randn_like(pixels)
        self.optimizer.zero_grad()
        latents, _, log_dets = self.forward(pixels, self._labels(labels))
        loss = self.model.get_loss(latents, log_dets)
        loss.backward()
        self.optimizer.step()
        loss.item()

    def likelihood(self, images, labels):
        with self.torch.no_grad():
            pixels = self._pixels(images)
            pixels = pixels + 0.1 * self.torch.randn_like(pixels)
            latents, _, log_dets = self.forward(pixels, self._labels(labels))
            return float(self.model.get_loss(latents, log_dets))

    def sample(self, noise, labels, guidance):
        tokens = self.model.patchify(self._to_torch(noise))
        with self.torch.no_grad():
            images = self.model.reverse(tokens, self._labels(labels), guidance)
        return images.permute(0, 2, 3, 1).numpy()

    def _pixels(self, levels):
        return self._to_torch(levels.astype(np.float32) / 127.5 - 1)

    def _to_torch(self, images):
        return self.torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    def _labels(self, labels):
        return self.torch.from_numpy(labels).long() if self.workload.num_classes else None


class Ours:
    """This package, as its command line runs it."""

    def __init__(self, workload: Workload, weights, rows: int):
        from tarflow_jax.parallel.cores import use_cores
        from tarflow_jax.parallel.host_memory import keep_freed_memory
        from tarflow_jax.parallel.libtpu import quiet_without_tpu

        config = workload.config()
        keep_freed_memory()
        quiet_without_tpu()
        use_cores(config.mesh, rows)
        import jax

        from tarflow_jax.build import build
        from tarflow_jax.likelihood.noise import Noise
        from tarflow_jax.parallel import rules
        from tarflow_jax.published.convert import from_state_dict

        self.jax, self.rules, self.workload = jax, rules, workload
        experiment = build(config)
        self.experiment, self.model, self.mesh = experiment, experiment.model, experiment.mesh
        self.noise = Noise('gaussian', 0.1, num_levels=256)
        _, self.params = from_state_dict(
            weights,
            image_shape=workload.image_shape,
            patch_size=workload.patch_size,
            shardings=lambda params: rules.shardings(params, self.mesh),
        )

    def latents(self, images, labels):
        pixels = images.astype(np.float32) / 127.5 - 1
        answer = self.jax.jit(self.model.apply)({'params': self.params}, pixels, labels)
        return [np.asarray(x) for x in answer]

    def start_training(self):
        from tarflow_jax.stopping import Stop
        from tarflow_jax.training.program import make_program

        total_steps = self.experiment.config.optimizer.warmup_steps + 1
        program = make_program(self.experiment, self.noise, total_steps)
        with self.rules.activation_sharding(self.mesh):
            self.state = program.init(self.jax.random.key(0))
        self.step, self.signals = program.step, Stop().received_on(self.mesh)

    def train(self, images, labels):
        with self.rules.activation_sharding(self.mesh):
            batch = self._placed({'image': images, 'label': labels})
            self.state, report = self.step(self.state, batch, self.signals)
        self.jax.block_until_ready((self.state, report))

    def likelihood(self, images, labels):
        from tarflow_jax.likelihood.scores import noisy_log_prob

        index = np.arange(len(images), dtype=np.int32)
        batch = self._placed({'image': images, 'label': labels, 'index': index})
        with self.rules.activation_sharding(self.mesh):
            log_probs = noisy_log_prob(self.model, self.noise, self.params, batch, 0, 0)
            return float(log_probs.mean())

    def sample(self, noise, labels, guidance):
        from tarflow_jax import sample

        placed = self._placed({'noise': noise, 'labels': labels})
        with self.rules.activation_sharding(self.mesh):
            images = sample(
                self.model, self.params, placed['noise'], placed['labels'], guidance=guidance
            )
        return np.asarray(images)

    def _placed(self, arrays):
        return self.jax.device_put(arrays, self.rules.batch_sharding(self.mesh))


def serve(connection, side: str, task: str, workload: Workload, options):
    """One side of one task, in a process of its own, until it is told to end."""
    name, _, size = task.partition(' ')
    num = int(size or workload.batch_size)
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (num, *workload.image_shape), dtype=np.uint8)
    labels = draws.integers(0, max(workload.num_classes, 1), num, dtype=np.int32)
    noise = draws.normal(size=images.shape).astype(np.float32)
    if side == 'published':
        runner = Published(workload, options.ml_tarflow, options.torch_compile)
        connection.send(runner.weights())
    else:
        from tarflow_jax.training.program import rows_to_share_in_training

        rows = rows_to_share_in_training(workload.config()) if name == 'train' else num
        runner = Ours(workload, connection.recv(), rows)
    calls = {
        'train': lambda: runner.train(images, labels),
        'likelihood': lambda: runner.likelihood(images, labels),
        'sample': lambda: runner.sample(noise, labels, 0.0),
        'guided': lambda: runner.sample(noise, labels, GUIDANCE),
    }
    is_of_samples = name in ('sample', 'guided')
    connection.send([calls[name]()] if is_of_samples else runner.latents(images, labels))
    if (side, name) == ('ours', 'train'):
        runner.start_training()
    while connection.recv():
        start = time.perf_counter()
        calls[name]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        connection.send((time.perf_counter() - start, peak))


def compare(task: str, name: str, options) -> dict:
    """The figures of one task; raises SystemExit where the two sides differ."""
    context = multiprocessing.get_context('spawn')
    ends, processes = {}, []
    for side in ('published', 'ours'):
        ends[side], far = context.Pipe()
        arguments = (far, side, task, WORKLOADS[name], options)
        processes.append(context.Process(target=serve, args=arguments, daemon=True))
        processes[-1].start()
    ends['ours'].send(ends['published'].recv())
    answers = [ends[side].recv() for side in ends]
    error = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(*answers, strict=True))
    if not error < TOLERANCE:
        sys.exit(f'{name} {task}: the two sides differ by {error:.1e} of the largest number.')
    rounds = []
    for _ in range(1 + options.rounds):
        for side in ends:
            ends[side].send(True)
            rounds.append((side, *ends[side].recv()))
    seconds = {side: [s for at, s, _ in rounds if at == side][1:] for side in ends}
    for end, process in zip(ends.values(), processes, strict=True):
        end.send(False)
        process.join()
    ratios = [a / b for a, b in zip(seconds['published'], seconds['ours'], strict=True)]
    images = int(task.partition(' ')[2] or WORKLOADS[name].batch_size)
    return {
        'workload': name,
        'task': task,
        'images': images,
        'difference': error,
        **{f'{side}_seconds': statistics.median(seconds[side]) for side in ends},
        **{f'{side}_first_seconds': next(s for at, s, _ in rounds if at == side) for side in ends},
        **{f'{side}_peak_bytes': max(p for at, _, p in rounds if at == side) for side in ends},
        'ratio': statistics.median(ratios),
        'ratio_range': [min(ratios), max(ratios)],
    }


def tasks_of(workload: Workload) -> list[str]:
    """Names of tasks, those of sampling with their number of images."""
    samples = [f'sample {num}' for num in workload.num_samples]
    guided = [f'guided {num}' for num in workload.num_samples if workload.num_classes]
    return ['train', 'likelihood', *samples, *guided]


def line(row: dict) -> str:
    """A row of the table."""
    ours, published = row['ours_seconds'], row['published_seconds']
    memory = row['ours_peak_bytes'] / row['published_peak_bytes']
    low, high = row['ratio_range']
    return (
        f'| {row["workload"]} | {row["task"]} | {row["images"] / ours:.3g} | '
        f'{row["images"] / published:.3g} | {row["ratio"]:.2f} ({low:.2f} to {high:.2f}) | '
        f'{memory:.2f} | {row["difference"]:.0e} |'
    )


def machine() -> str:
    """What the figures were measured on."""
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in ('jax', 'torch'))
    return f'{len(os.sched_getaffinity(0))} cores of {platform.machine()}, {versions}'


def main():
    """Prints a table and, with --json, writes it."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('workloads', nargs='*', default=['digits', 'mnist', 'photos64'])
    parser.add_argument('--ml_tarflow', required=True, help='a checkout of apple/ml-tarflow')
    parser.add_argument('--torch_compile', action='store_true')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--tasks', nargs='*', help='train, likelihood, sample 16, guided 100, ...')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    print(machine())
    print('| workload | task | ours, images/s | published | ratio | memory | difference |')
    print('|---|---|---|---|---|---|---|')
    rows = []
    for name in options.workloads:
        for task in options.tasks or tasks_of(WORKLOADS[name]):
            rows.append(compare(task, name, options))
            print(line(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({'machine': machine(), 'rows': rows}, indent=2))


if __name__ == '__main__':
    main()
