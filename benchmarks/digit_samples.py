"""How often a classifier of real digits agrees with the labels of sampled ones.

    python benchmarks/digit_samples.py runs/digits/samples/samples.npz

A support vector machine learns the real training digits; its accuracy on samples can be
compared with that on the real test digits.
"""

import sys

import numpy as np
from sklearn import datasets, svm


def main(path):
    """Prints the classifier's accuracy on real test digits and on the samples in `path`."""
    images, labels = datasets.load_digits(return_X_y=True)
    is_test = np.arange(len(images)) % 6 == 5
    classifier = svm.SVC().fit(images[~is_test], labels[~is_test])
    samples = np.load(path)
    levels = samples['arr_0'].reshape(-1, 64) / 255 * 16
    print(f'real test digits  {classifier.score(images[is_test], labels[is_test]):.3f}')
    print(f'{len(levels)} samples  {classifier.score(levels, samples["arr_1"]):.3f}')


if __name__ == '__main__':
    main(sys.argv[1])
