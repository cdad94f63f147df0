"""ImageNet at 64x64 pixels, 1000 classes: TarFlow 2-1024-8-8 with noise 0.05.

    python -m tarflow_jax.main --config=configs/imagenet64_cond.py --workdir=runs/imagenet64_cond

823.0 million parameters, as in table 7 of the paper: width 1024, batch 768, 320 epochs; FID 2.66.
The published command, of an earlier version of the paper (FID 2.90), differs: width 768, batch 256,
200 epochs. It samples with guidance 2.3, which is used here too.

As in the published code the images are those of ILSVRC2012, scaled and cropped to 64 pixels, with
the classes in the order of their folders' names. First prepare the data, with its folders train/
and val/, each with class folders, in ilsvrc2012/:

    python -m tarflow_jax.data.prepare imagenet64 --folder=ilsvrc2012 --size=64 --upscale
"""

from configs import paper


def get_config(variant='pod'):
    config = paper.get_config()

    config.data.name = 'imagenet64'
    config.data.num_images = 1_281_167
    config.data.test_split = 'validation'
    config.data.random_flip = True
    config.model.width = 1024
    config.model.num_classes = 1000

    config.train.num_epochs = 320.0
    config.train.batch_size = 768

    config.sample.guidance = 2.3

    config = paper.finish(config, variant)
    if variant == 'pod':
        config.train.microbatches = 3  # for chips of 16 GB
    return config
