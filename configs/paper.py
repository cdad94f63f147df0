"""What the experiments of the TarFlow paper share, and the machines they run on.

An experiment's variant stands after its file's name: `--config=configs/afhq256.py:one_gpu`.

  pod      (the default) all available devices, from one to a TPU pod slice, with parameters and
           optimizer state sharded over all of them, and gathered once a step in bfloat16. On
           several slices, joined by a slower network, set --config.mesh.data to their number.
  one_gpu  one GPU of 24 GB or more, of 32 GB for imagenet64_cond and imagenet128: four images at a
           time, as many times as the batch needs.
"""

from configs import base

VARIANTS = ('pod', 'one_gpu')
IMAGES_AT_A_TIME = 4  # on one GPU


def get_config():
    config = base.get_config()
    config.model.attention = 'auto'
    config.model.remat = 'dots'
    return config


def published_protocol(config):
    """Samples, and what they are compared with, as for the published scores.

    50,000 samples of labels drawn uniformly, with annealed guidance and a denoising step, drawn
    again where they are not finite, clipped, and truncated to 8 bits; against all training images
    and their mirror images, resized as torch-fidelity does.
    """
    config.sample.anneal_guidance = True
    config.sample.denoise = True
    config.evaluate.metrics = (
        *('nats_per_dim', 'bits_per_dim'),
        *('fid', 'sfid', 'inception_score', 'precision', 'recall'),
    )
    config.evaluate.num_samples = 50_000
    config.evaluate.labels = 'uniform'
    config.evaluate.quantization = 'truncate'
    config.evaluate.preprocessing = 'torch-fidelity'
    config.evaluate.reference_flip = True
    return config


def finish(config, variant: str):
    """Sets what follows from the data set and the batch, the protocol, and the variant's keys."""
    if variant not in VARIANTS:
        raise ValueError(f'there is no variant {variant!r}; there are {", ".join(VARIANTS)}.')
    epoch = config.data.num_images // config.train.batch_size
    config.optimizer.warmup_steps = epoch
    published_protocol(config)
    if variant == 'pod':
        config.mesh.data = 1
        config.mesh.fsdp = -1
        config.train.gather = 'step'
    else:
        config.train.microbatches = config.train.batch_size // IMAGES_AT_A_TIME
        config.model.unroll = 'all'  # faster, and slower to compile
        config.model.attention = 'cudnn' if config.model.dtype == 'bfloat16' else 'xla'
        config.sample.batch_size = 16
        config.evaluate.batch_size = 16
    return config
