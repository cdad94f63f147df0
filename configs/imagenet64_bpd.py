"""Bits per dimension of ImageNet at 64x64 pixels: TarFlow 2-768-8-8, uniform dequantisation.

    python -m tarflow_jax.main --config=configs/imagenet64_bpd.py --workdir=runs/imagenet64_bpd

460.1 million parameters, in float32 throughout. Paper: 2.99 bits per dimension. Its table 7 has 60
epochs and no batch size; the published command has 100 epochs and a batch of 256. Here: 60 and 256.

There are two data sets of this name. The paper cites the one of van den Oord et al., TFDS's
downsampled_imagenet/64x64, with which most published figures were made; its authors have said they
used the download of image-net.org, which is smoother and gives lower figures. Say which you use.
"""

from configs import imagenet64_uncond


def get_config(variant='pod'):
    config = imagenet64_uncond.get_config(variant)
    config.noise.type = 'uniform'
    config.model.dtype = 'float32'
    config.model.attention = 'xla'  # no kernel computes in full float32
    config.train.num_epochs = 60.0
    config.sample.denoise = False
    config.evaluate.metrics = ('bits_per_dim', 'iw_bits_per_dim')
    return config
