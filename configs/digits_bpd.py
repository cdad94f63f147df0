"""Bits per dimension of the digits: uniform dequantisation of their 17 levels.

python -m tarflow_jax.main --config=configs/digits_bpd.py --workdir=runs/digits_bpd
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.noise.type = 'uniform'
    config.sample.denoise = False  # uniform noise is part of the bins, not a blur to be removed
    return config
