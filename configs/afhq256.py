"""AFHQ at 256x256 pixels, three classes: TarFlow 8-768-8-8 with noise 0.07.

    python -m tarflow_jax.main --config=configs/afhq256.py --workdir=runs/afhq256

463.5 million parameters; batch, epochs and noise as in table 7 of the paper and in the published
commands alike. The paper shows samples but reports no score. Guidance 3.4 is what the authors of
GS-Jacobi found best. First prepare the data, with the folders train/ and val/ of the data set's
first version in afhq/:

    python -m tarflow_jax.data.prepare afhq --folder=afhq --size=256
"""

from configs import paper


def get_config(variant='pod'):
    config = paper.get_config()

    config.data.name = 'afhq'
    config.data.num_images = 14_630
    config.data.test_split = 'validation'
    config.data.random_flip = True
    config.model.image_shape = (256, 256, 3)
    config.model.patch_size = 8
    config.model.num_classes = 3

    config.noise.std = 0.07

    config.train.num_epochs = 4000.0
    config.train.batch_size = 256
    config.train.sample_every = 11_400  # 200 epochs

    config.sample.guidance = 3.4
    return paper.finish(config, variant)
