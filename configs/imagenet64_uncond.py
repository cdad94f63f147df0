"""ImageNet at 64x64 pixels without labels: TarFlow 2-768-8-8 with noise 0.05.

  python -m tarflow_jax.main --config=configs/imagenet64_uncond.py --workdir=runs/imagenet64_uncond

460.1 million parameters; batch, epochs and noise as in table 7 of the paper and in the published
commands alike. Paper: FID 18.42. Samples are guided by the attention's temperature; guidance 0.2
and temperature 0.3 are what the authors of GS-Jacobi found best (FID 14.67 of their own training).

The data set is that of van den Oord et al., TFDS's downsampled_imagenet/64x64. Its old address is
gone: with train_64x64.tar and valid_64x64.tar from elsewhere in DIR, and TensorFlow for this alone,

    pip install -e '.[prepare]'
    python -m tarflow_jax.data.prepare downsampled_imagenet/64x64 --manual_dir=DIR
"""

from configs import paper


def get_config(variant='pod'):
    config = paper.get_config()

    config.data.name = 'downsampled_imagenet/64x64'
    config.data.num_images = 1_281_149
    config.data.test_split = 'validation'
    config.data.random_flip = True

    config.train.num_epochs = 200.0
    config.train.batch_size = 256

    config.sample.guidance = 0.2
    config.sample.attention_temperature = 0.3

    return paper.finish(config, variant)
