"""ImageNet at 128x128 pixels, 1000 classes: TarFlow 4-1024-8-8 with noise 0.15.

    python -m tarflow_jax.main --config=configs/imagenet128.py --workdir=runs/imagenet128

823.9 million parameters; batch, epochs and noise as in table 7 of the paper and in the published
commands alike. Paper: FID 5.03. Guidance 1.5 is what the authors of GS-Jacobi found best. First
prepare the data, with the folders train/ and val/ of ILSVRC2012, each with its class folders, in
ilsvrc2012/:

    python -m tarflow_jax.data.prepare imagenet128 --folder=ilsvrc2012 --size=128 --upscale
"""

from configs import paper


def get_config(variant='pod'):
    config = paper.get_config()

    config.data.name = 'imagenet128'
    config.data.num_images = 1_281_167
    config.data.test_split = 'validation'
    config.data.random_flip = True
    config.model.image_shape = (128, 128, 3)
    config.model.patch_size = 4
    config.model.width = 1024
    config.model.num_classes = 1000

    config.noise.std = 0.15

    config.train.num_epochs = 320.0
    config.train.batch_size = 768

    config.sample.guidance = 1.5

    config = paper.finish(config, variant)
    if variant == 'pod':
        config.train.microbatches = 3  # for chips of 16 GB
    return config
