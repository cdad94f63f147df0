"""Training, likelihood and sampling compared with the published PyTorch code, on the same weights.

    git clone https://github.com/apple/ml-tarflow
    pip install torch
    python -m benchmarks.versus --ml_tarflow=ml-tarflow mnist photos64

Each side runs in a process of its own and both take turns, round by round, so that fluctuations of
the machine affect both. In a round, short calls are repeated for half a second. Before they are
timed, both compute the same latents, log-determinants and samples, or the benchmark ends. A ratio
is how many times as fast we are; its range is that of the rounds.
"""

import argparse
import dataclasses
import functools
import importlib
import json
import math
import os
import statistics
import sys
from pathlib import Path

import numpy as np

from benchmarks.ours import Ours
from benchmarks.remote import ROUND_SECONDS, Remote, machine, rate
from benchmarks.workloads import (
    GUIDANCE,
    NOISE_STD,
    PROJ_OUT_STD,
    WORKLOADS,
    Task,
    Workload,
    inputs,
    tasks_of,
)

# Between the results of both, relative to the largest number. Samples in bfloat16 are not compared
# with it: the rounding error of a token grows from there to the last.
TOLERANCE = {'float32': 1e-3, 'bfloat16': 0.1}
HEAD = """\
| workload | task | ours, images/s | published | ratio | of the ceiling | memory | difference |
|---|---|---|---|---|---|---|---|"""


class Published:
    """The published model, which draws the weights.

    On a GPU models in bfloat16 run as its scripts have it, under autocast; others run in float32.
    """

    def __init__(self, workload: Workload, task: Task, path: str, torch_compile: bool):
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
        self.device = torch.device('cuda' if workload.dtype == 'bfloat16' else 'cpu')
        self.autocast = functools.partial(
            torch.autocast, self.device.type, torch.bfloat16, enabled=workload.dtype == 'bfloat16'
        )
        with torch.no_grad():
            for block in self.model.blocks:  # a new model is the identity
                block.proj_out.weight.normal_(std=PROJ_OUT_STD / math.sqrt(workload.width))
        self.model.to(self.device)
        self.forward = torch.compile(self.model) if torch_compile else self.model
        if torch_compile and self.device.type == 'cuda':  # all 64 layers at once take many minutes
            self.forward = self.model
            for block in self.model.blocks:
                for layer in block.attn_blocks:
                    layer.compile()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=1e-4
        )
        levels, labels, noise = inputs(workload, task.num_images)
        self.pixels = self._channels_first(levels.astype(np.float32) / 127.5 - 1)
        self.labels = torch.from_numpy(labels).long() if workload.num_classes else None
        if self.labels is not None:
            self.labels = self.labels.to(self.device)
        self.noise = self._channels_first(noise)

    def weights(self):
        return {name: tensor.cpu().numpy() for name, tensor in self.model.state_dict().items()}

    def latents(self):
        """Latents and log-determinants of the batch without noise."""
        with self.torch.no_grad(), self.autocast():
            latents, _, log_dets = self.model(self.pixels, self.labels)
            latents = self.model.unpatchify(latents)
        num_pixels = math.prod(self.workload.image_shape)
        return [self._channels_last(latents), log_dets.float().cpu().numpy() * num_pixels]

    def train(self) -> float:
        """A step; returns its loss."""
        self.optimizer.zero_grad()
        loss = self._loss()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def likelihood(self):
        with self.torch.no_grad():
            return float(self._loss())

    def _loss(self):
        pixels = self.pixels + NOISE_STD * self.torch.randn_like(self.pixels)
        with self.autocast():
            latents, _, log_dets = self.forward(pixels, self.labels)
            return self.model.get_loss(latents, log_dets)

    def denoise(self):
        """The score step of the published scripts."""
        pixels = self.pixels.detach().clone().requires_grad_()
        with self.autocast():
            latents, _, log_dets = self.forward(pixels, self.labels)
            log_prob = -self.model.get_loss(latents, log_dets) * pixels.numel()
        (score,) = self.torch.autograd.grad(log_prob, pixels)
        with self.torch.no_grad():
            return self._channels_last(pixels + NOISE_STD**2 * score)

    def sample(self, guidance=0.0):
        tokens = self.model.patchify(self.noise)
        with self.torch.no_grad(), self.autocast():
            return self._channels_last(self.model.reverse(tokens, self.labels, guidance))

    def guided(self):
        return self.sample(GUIDANCE)

    def peak_device_bytes(self) -> int:
        return self.torch.cuda.max_memory_allocated() if self.device.type == 'cuda' else 0

    def _channels_first(self, images):
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return self.torch.from_numpy(images).to(self.device)

    def _channels_last(self, images):
        return images.permute(0, 2, 3, 1).float().cpu().numpy()


def compare(name: str, workload: Workload, task: Task, options) -> dict:
    """The figures of one task; raises SystemExit where the two sides differ."""
    published = Remote(Published, workload, task, options.ml_tarflow, options.torch_compile)
    ours = Remote(Ours, workload, task, published.call('weights').result)
    sides = {'published': published, 'ours': ours}

    with_latents = task.name in ('train', 'likelihood')
    answers = [side.call('latents').result for side in sides.values()] if with_latents else []
    timed = {name: [side.call(task.name)] for name, side in sides.items()}
    answers = answers or [calls[0].result for calls in timed.values()]
    error = difference(*answers)
    is_compared = with_latents or workload.dtype == 'float32'
    if is_compared and not error < TOLERANCE[workload.dtype]:
        sys.exit(f'{name} {task}: the sides differ by {error:.1e} of the largest number.')

    flops, ceilings = ours.call('flops').result, []
    ours.call('ceiling')
    for _ in range(options.rounds):
        for side_name, side in sides.items():
            timed[side_name].append(side.call(task.name, min_seconds=ROUND_SECONDS))
        ceilings.append(ours.call('ceiling').result)
    for side in sides.values():
        side.close()
    seconds = {name: [call.seconds for call in calls[1:]] for name, calls in timed.items()}
    ratios = [a / b for a, b in zip(seconds['published'], seconds['ours'], strict=True)]
    return {
        'workload': name,
        'task': task.name,
        'images': task.num_images,
        'difference': error,
        **{f'{name}_seconds': statistics.median(seconds[name]) for name in sides},
        **{f'{name}_first_seconds': timed[name][0].seconds for name in sides},
        **{f'{name}_peak_bytes': timed[name][-1].peak_bytes for name in sides},
        'share_of_ceiling': flops
        / statistics.median(seconds['ours'])
        / statistics.median(ceilings),
        'ratio': statistics.median(ratios),
        'ratio_range': [min(ratios), max(ratios)],
    }


def difference(answer, other) -> float:
    """The largest difference of two arrays, or of pairs of them, relative to the largest number."""
    if isinstance(answer, list):
        return max(map(difference, answer, other))
    return float(np.abs(answer - other).max() / np.abs(answer).max())


def line(row: dict) -> str:
    """A row of the table."""
    ours, published = row['ours_seconds'], row['published_seconds']
    memory = row['ours_peak_bytes'] / row['published_peak_bytes']
    low, high = row['ratio_range']
    return (
        f'| {row["workload"]} | {row["task"]} {row["images"]} | {rate(row["images"], ours)} | '
        f'{rate(row["images"], published)} | {row["ratio"]:.2f} ({low:.2f} to {high:.2f}) | '
        f'{row["share_of_ceiling"]:.0%} | {memory:.2f} | {row["difference"]:.0e} |'
    )


def main():
    """Prints a table and, with --json, writes it."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('workloads', nargs='*', default=['digits', 'mnist', 'photos64'])
    parser.add_argument('--ml_tarflow', required=True, help='a checkout of apple/ml-tarflow')
    parser.add_argument('--torch_compile', action='store_true')
    parser.add_argument('--batch_size', type=int, help="of training, instead of the workload's")
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--tasks', nargs='*', help='train, likelihood, denoise, sample, guided')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.45')  # both sides share a GPU
    print(machine('torch'))
    print(HEAD)
    rows = []
    for name in options.workloads:
        workload = WORKLOADS[name]
        if options.batch_size:
            workload = dataclasses.replace(workload, batch_size=options.batch_size)
        for task in tasks_of(workload):
            if not options.tasks or task.name in options.tasks:
                rows.append(compare(name, workload, task, options))
                print(line(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({'machine': machine('torch'), 'rows': rows}, indent=2))


if __name__ == '__main__':
    main()
