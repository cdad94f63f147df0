"""In-painting and exact likelihoods of a trained flow over digits, with bounds and baselines.

    python -m benchmarks.inpainting --workdir=runs/digits [--candidates=1000,4000]

Half of each real test digit is given, its label is not. A support vector machine trained on
the real training digits reads the completed ones. It is compared with the mean of the training
digits in place of the unknown half, the half of the nearest training digit, a machine trained to
read halves (which no sample of a posterior can beat, on average, as it names the likeliest class),
and whole digits. Likelihoods then tell the test digits from crops of photographs with 8x8 pixels:
the area under the ROC curve, of crops as they are and of crops whose levels span the whole range.
"""

import argparse
import time

import numpy as np
from PIL import Image
from sklearn import datasets, metrics, svm

import tarflow_jax
from tarflow_jax.data.builders.photos import TEST_PHOTOS, TRAIN_PHOTOS, crop, load_photos

LEVELS = 17
HALVES = {'top': np.s_[:4], 'left': np.s_[:, :4]}


def main(workdir, candidates):
    """Prints the fractions of digits read as the right class, and areas under ROC curves."""
    flow = tarflow_jax.load(workdir)
    levels, labels = datasets.load_digits(return_X_y=True)
    is_test = np.arange(len(levels)) % 6 == 5
    real, test = (levels[~is_test], labels[~is_test]), (levels[is_test], labels[is_test])
    whole = svm.SVC().fit(*real)
    for half, place in HALVES.items():
        mask = np.zeros((8, 8), bool)
        mask[place] = True
        print(f'{half} half given, fraction read as the right class:')
        for number in candidates:
            complete(flow, *test, mask, whole, number)
        baselines(real, *test, mask.ravel(), whole)
    print(f'  {"whole digits":28} {whole.score(*test):.3f}')
    separate(flow, test[0])


def complete(flow, levels, labels, mask, whole, number):
    """Prints how the completed digits are read."""
    images = (levels / 8 - 1).astype(np.float32).reshape(-1, 8, 8, 1)
    start = time.perf_counter()
    completed, found, acceptance = map(
        np.asarray, flow.inpaint(images, mask, key=0, num_candidates=number)
    )
    seconds = time.perf_counter() - start
    share = whole.score(np.clip((completed.reshape(-1, 64) + 1) * 8, 0, 16), labels)
    print(
        f'  {f"in-painted, {number} candidates":28} {share:.3f}  label found '
        f'{(found == labels).mean():.3f}, steps accepted {acceptance.mean():.2f} '
        f'({acceptance.min():.2f} to {acceptance.max():.2f}), {seconds:.0f} s'
    )


def baselines(real, levels, labels, mask, whole):
    """Prints how digits completed without a model are read, and halves alone."""
    distance = ((levels[:, None, mask] - real[0][None][..., mask]) ** 2).sum(axis=-1)
    fillings = {
        'mean of training digits': real[0].mean(axis=0),
        'nearest training digit': real[0][distance.argmin(axis=1)],
    }
    for name, filling in fillings.items():
        share = whole.score(np.where(mask, levels, filling), labels)
        print(f'  {name:28} {share:.3f}')
    of_halves = svm.SVC().fit(real[0][:, mask], real[1])
    print(f'  {"machine trained on halves":28} {of_halves.score(levels[:, mask], labels):.3f}')


def separate(flow, levels):
    """Prints how well likelihoods tell digits from crops of photographs."""
    photos = load_photos([*TRAIN_PHOTOS, *TEST_PHOTOS])
    grey = [
        np.asarray(Image.fromarray(crop(photos[i % len(photos)], 8, 0, i)).convert('L'))
        for i in range(1000)
    ]
    crops = np.array(grey, np.float64)[..., None]
    darkest, brightest = (f(crops, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    stretched = (crops - darkest) / np.maximum(brightest - darkest, 1) * 255
    digit_bits = bits(flow, levels.reshape(-1, 8, 8, 1))
    print('AUROC of bits per dimension, digits against crops of photographs:')
    for name, others in ('levels stretched', stretched), ('as they are', crops):
        crop_bits = bits(flow, np.rint(others / 255 * (LEVELS - 1)))
        is_crop = np.repeat([0, 1], [len(digit_bits), len(crop_bits)])
        area = metrics.roc_auc_score(is_crop, np.concatenate([digit_bits, crop_bits]))
        print(
            f'  {name:28} {area:.4f}  medians {np.median(digit_bits):.2f} and '
            f'{np.median(crop_bits):.2f}'
        )


def bits(flow, levels):
    """Bits per dimension of images whose class is unknown, as they come without a label."""
    return flow.bits_per_dim(levels.astype(np.uint8), num_levels=LEVELS)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--workdir', default='runs/digits')
    parser.add_argument('--candidates', default='1000,4000')
    arguments = parser.parse_args()
    main(arguments.workdir, [int(number) for number in arguments.candidates.split(',')])
