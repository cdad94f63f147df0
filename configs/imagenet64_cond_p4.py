"""ImageNet at 64x64 pixels in patches of four: TarFlow 4-1024-8-8 with noise 0.05.

python -m tarflow_jax.main --config=configs/imagenet64_cond_p4.py --workdir=runs/imagenet64_cond_p4

817.6 million parameters. 256 tokens an image instead of 1024: a quarter of the cost of
`imagenet64_cond.py`, from which everything else is taken; neither the paper's table 7 nor the
published commands have this model. The authors of GS-Jacobi trained one and report FID 4.42 with
guidance 2.0.
"""

from configs import imagenet64_cond


def get_config(variant='pod'):
    config = imagenet64_cond.get_config(variant)
    config.model.patch_size = 4
    config.sample.guidance = 2.0
    if variant == 'pod':
        config.train.microbatches = 1
    return config
