# ruff: noqa: E402, TID251
"""Computes the golden values with the published packages; README.md tells how to run it.

It runs with PyTorch, in an environment of its own.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import recipe
import torch

# The wheel of torchvision that stands next to a PyTorch for CPUs may be one for GPUs: its compiled
# operators do not load then, and it only wants to know that they exist. None is used here.
for operator in ('nms', 'qnms'):
    torch.library.define(f'torchvision::{operator}', '(Tensor a, Tensor b, float c) -> Tensor')

import cleanfid.resize
import pytorch_fid.fid_score
import pytorch_fid.inception
import torch_fidelity.metric_fid
import torch_fidelity.metric_isc
import torch_fidelity.metric_prc
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

HERE = Path(__file__).parent
EDGE_STEP = 13  # every 13th row and column of a resized image is kept


def nchw(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def save_state_dict(path):
    """The recipe's weights as a file of `torch.save`; names and shapes are torch-fidelity's."""
    load, torch.load = torch.load, lambda *args, **kwargs: None
    load_state_dict, FeatureExtractorInceptionV3.load_state_dict = (
        FeatureExtractorInceptionV3.load_state_dict,
        lambda self, tensors: None,
    )
    network = FeatureExtractorInceptionV3('shapes', ['2048'], feature_extractor_weights_path='-')
    torch.load = load
    FeatureExtractorInceptionV3.load_state_dict = load_state_dict
    tensors = network.state_dict()
    for name, tensor in tensors.items():
        if not name.endswith('num_batches_tracked'):
            tensors[name] = torch.from_numpy(recipe.tensor(name, tuple(tensor.shape)))
    torch.save(tensors, path)


class Watched:
    """The first seven channels of a layer of a network whenever it runs, as sFID takes them."""

    def __init__(self, layer):
        layer.register_forward_hook(self.keep)

    def keep(self, layer, inputs, output):
        self.spatial = output[:, :7].permute(0, 2, 3, 1).flatten(1).numpy()


class TorchFidelity:
    name = 'torch-fidelity'

    def __init__(self, weights):
        self.outputs = ('2048', 'logits_unbiased', 'logits')
        self.network = FeatureExtractorInceptionV3(
            'golden', list(self.outputs), feature_extractor_weights_path=weights
        )
        self.watched = Watched(self.network.Mixed_6d.branch1x1)

    def resize(self, images):
        x = nchw(images).float()
        x = interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
        return (x - 128) / 128

    def features(self, images):
        pool, unbiased, logits = (x.numpy() for x in self.network(nchw(images)))
        return dict(
            pool=pool, spatial=self.watched.spatial, logits=logits, logits_unbiased=unbiased
        )


class PytorchFid:
    name = 'pytorch-fid'

    def __init__(self, weights, **how):
        pytorch_fid.inception.load_state_dict_from_url = lambda *args, **kwargs: torch.load(weights)
        self.network = pytorch_fid.inception.InceptionV3(**how).eval()
        self.watched = Watched(self.network.blocks[2][6].branch1x1)

    def resize(self, images):
        x = nchw(images).float() / 255  # as ToTensor has it
        x = torch.nn.functional.interpolate(
            x, size=(299, 299), mode='bilinear', align_corners=False
        )
        return 2 * x - 1

    def features(self, images):
        (pool,) = self.network(nchw(images).float() / 255)
        return dict(pool=pool.flatten(1).numpy(), spatial=self.watched.spatial)


class CleanFid(PytorchFid):
    """Its resizer and scaling; its network is the same under another format."""

    name = 'clean-fid'

    def __init__(self, weights):
        super().__init__(weights, resize_input=False, normalize_input=False)

    def resize(self, images):
        resizer = cleanfid.resize.build_resizer('clean')
        return (nchw(np.stack([resizer(image) for image in images])) - 128) / 128

    def features(self, images):
        (pool,) = self.network(self.resize(images))
        return dict(pool=pool.flatten(1).numpy(), spatial=self.watched.spatial)


def make_packages(folder):
    weights = str(Path(folder, 'random.pth'))
    save_state_dict(weights)
    return TorchFidelity(weights), PytorchFid(weights), CleanFid(weights)


def make_features(packages):
    for package in packages:
        arrays = {}
        for size in recipe.IMAGE_SIZES:
            for key, array in package.features(recipe.images(size, size)).items():
                arrays[f'{key}_{size}'] = array
        for height, width in recipe.EDGE_SHAPES:
            pixels = package.resize(recipe.images(height, width)).permute(0, 2, 3, 1).numpy()
            arrays[f'pixels_{height}x{width}'] = pixels[:, ::EDGE_STEP, ::EDGE_STEP]
        np.savez_compressed(HERE / f'{package.name}.npz', **arrays)
        shown = {key: (array.shape, float(array.std())) for key, array in arrays.items()}
        print(package.name, shown, file=sys.stderr)


def frechet_distance_of_images(package):
    """Of a few images of two kinds, by the package's own code; clean-fid's is pytorch-fid's."""
    sets = [package.features(images)['pool'].astype(np.float64) for images in recipe.image_sets()]
    statistics = [(features.mean(axis=0), np.cov(features, rowvar=False)) for features in sets]
    (mean_a, cov_a), (mean_b, cov_b) = statistics
    if package.name == 'torch-fidelity':
        return torch_fidelity.metric_fid.fid_statistics_to_metric(
            *(dict(mu=mean, sigma=cov) for mean, cov in statistics), verbose=False
        )['frechet_inception_distance']
    return float(pytorch_fid.fid_score.calculate_frechet_distance(mean_a, cov_a, mean_b, cov_b))


def frechet_distances(dims, samples):
    statistics = [
        (features.mean(axis=0), np.cov(features, rowvar=False))
        for features in recipe.fid_features(dims, samples)
    ]
    (mean_a, cov_a), (mean_b, cov_b) = statistics
    by_torch_fidelity = torch_fidelity.metric_fid.fid_statistics_to_metric(
        *(dict(mu=mean, sigma=cov) for mean, cov in statistics), verbose=False
    )
    return {
        'dims': dims,
        'samples': samples,
        'pytorch-fid': float(
            pytorch_fid.fid_score.calculate_frechet_distance(mean_a, cov_a, mean_b, cov_b)
        ),
        'torch-fidelity': by_torch_fidelity['frechet_inception_distance'],
    }


def inception_score(samples, splits, shuffle):
    logits = torch.from_numpy(recipe.score_logits(samples))
    scores = torch_fidelity.metric_isc.isc_features_to_metric(logits, splits, shuffle, 2020)
    return dict(
        samples=samples,
        splits=splits,
        shuffle=shuffle,
        mean=scores['inception_score_mean'],
        std=scores['inception_score_std'],
    )


def precision_recall(samples, neighbours):
    generated, real = map(torch.from_numpy, recipe.neighbour_features(samples))
    scores = torch_fidelity.metric_prc.prc_features_to_metric(
        generated,
        real,
        prc_neighborhood=neighbours,
        prc_batch_size=10000,
        save_cpu_ram=False,
        verbose=False,
    )
    return dict(
        samples=samples,
        neighbours=neighbours,
        precision=scores['precision'],
        recall=scores['recall'],
    )


def make_metrics(packages):
    metrics = {
        'fid_of_images': {
            package.name: frechet_distance_of_images(package) for package in packages
        },
        'frechet_distance': [frechet_distances(64, 300), frechet_distances(64, 40)],
        'inception_score': [
            inception_score(500, 10, True),
            inception_score(500, 10, False),
            inception_score(503, 10, False),
            inception_score(500, 1, False),
        ],
        'precision_recall': [precision_recall(400, 3), precision_recall(400, 5)],
    }
    text = json.dumps(metrics, indent=2)
    (HERE / 'metrics.json').write_text(text + '\n')
    print(text, file=sys.stderr)


def make_small_files():
    """State dicts as every PyTorch writes them: a matrix, its transpose, a number that counts."""
    matrix = torch.from_numpy(recipe.uniform('matrix', (3, 4)))
    tensors = {'matrix': matrix, 'transposed': matrix.T, 'half': matrix.half()}
    module = torch.nn.BatchNorm2d(2)
    tensors = module.state_dict(prefix='norm.') | tensors
    for name, zipped in (('old', False), ('new', True)):
        torch.save(tensors, HERE / f'{name}.pth', _use_new_zipfile_serialization=zipped)


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    make_small_files()
    with tempfile.TemporaryDirectory() as folder:
        packages = make_packages(folder)
    make_features(packages)
    make_metrics(packages)
