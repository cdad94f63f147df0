"""Your own images: a model and a training run for the time you have.

    tarflow --config=images:NAME --workdir=runs/NAME
    tarflow --config=images:NAME,minutes=60 --workdir=runs/NAME
    tarflow --config=images:NAME,hours=8 --workdir=runs/NAME

NAME is a data set that was prepared, or an .npz file. Shape, classes and number of images are read
from it; NAME,dir=FOLDER finds it in another folder of data sets. Minutes are those of two CPU
cores, ten by default. Hours are those of one GPU, assumed to reach 100 TFLOP/s: a guess, where the
AFHQ model reaches 260 on an H100. More time means a larger model that sees more images, each at
most a thousand times: training on few images ends sooner.

A data set without a test split has a twentieth of its training images held out as one. Images are
flipped left to right at random; where left and right matter, --config.data.random_flip=False.
"""

import dataclasses
import math

from configs import base
from tarflow_jax.data.dataset import Dataset
from tarflow_jax.data.folder import data_folder, prepared_folders
from tarflow_jax.data.sources import open_dataset
from tarflow_jax.errors import InputError

SIDE_OF_ANY = 64  # pixels, of images that come in any size
TOKENS = range(4, 1025)  # that an image may have
IMAGES_A_PARAMETER = 0.025  # to be seen by a model, or a smaller one does better
MAX_EPOCHS = 1000
MIN_STEPS = 100
MAX_AMOUNT = 10_000  # minutes, or hours


@dataclasses.dataclass(frozen=True)
class Machine:
    """The hardware to train on, for a number of minutes or hours, and settings that suit it."""

    seconds: int  # in that unit of time
    flops: float  # of training per second, over the whole run
    num_tokens: int  # of an image, approximately
    batch_size: int
    noise_std: float
    prior_temperature: float  # of samples


# On a CPU tokens are few: images of 32 pixels show shapes with patches of 8, where after the same
# time, at the same likelihood, patches of 4 show texture.
MACHINES = {
    'minutes': Machine(
        60, 6e10, num_tokens=16, batch_size=64, noise_std=0.1, prior_temperature=0.7
    ),
    'hours': Machine(
        3600, 1e14, num_tokens=256, batch_size=256, noise_std=0.05, prior_temperature=1.0
    ),
}


@dataclasses.dataclass(frozen=True)
class Size:
    """A model's size."""

    width: int
    num_blocks: int
    layers_per_block: int

    def num_parameters(self, num_features: int) -> int:
        """Returns the approximate number of parameters, for tokens of `num_features` numbers."""
        layer, ends = 12 * self.width**2, 3 * self.width * num_features
        return self.num_blocks * (self.layers_per_block * layer + ends)


SIZES = (
    *(Size(64, 4, 2), Size(128, 4, 2), Size(128, 8, 2), Size(192, 8, 2), Size(256, 8, 2)),
    *(Size(256, 8, 4), Size(384, 8, 4), Size(512, 8, 6), Size(768, 8, 8)),
)


def get_config(settings=''):
    name, unit, amount, folder = parse(settings)
    config = base.get_config()
    config.data.name = name
    config.data.dir = folder or config.data.dir
    dataset = open_set(name, config.data.dir)
    config.data.train_split, config.data.test_split, count = choose_splits(dataset)
    config.data.num_images = count
    config.data.random_flip = True

    machine = MACHINES[unit]
    height, width, channels = dataset.image_shape
    patch_size = choose_patch_size(height, width, machine.num_tokens)
    num_tokens, num_features = height * width // patch_size**2, channels * patch_size**2
    flops_a_token = amount * machine.seconds * machine.flops / num_tokens
    size, num_images = choose_size(flops_a_token, num_features, MAX_EPOCHS * count)
    batch_size = min(machine.batch_size, 2 ** int(math.log2(count)))
    num_steps = max(math.ceil(num_images / batch_size), MIN_STEPS)

    config.model.image_shape = dataset.image_shape
    config.model.num_classes = dataset.num_classes if dataset.num_classes > 1 else 0
    config.model.patch_size = patch_size
    config.model.update(dataclasses.asdict(size))

    config.noise.std = machine.noise_std

    config.optimizer.peak_learning_rate = 0.256 / size.width
    config.optimizer.clip_norm = 1.0
    config.train.batch_size = batch_size
    config.train.num_epochs = num_steps * batch_size / count
    set_pace(config, num_steps)

    # A small model draws texture at 1; cooler samples are smoother, and vary less.
    config.sample.prior_temperature = machine.prior_temperature
    config.sample.guidance = 1.0 if config.model.num_classes else 0.0

    config.evaluate.metrics = (
        *('nats_per_dim', 'bits_per_dim', 'haar_frechet', 'haar_precision', 'haar_recall'),
    )
    config.evaluate.num_samples = 2048
    config.evaluate.reference_flip = True

    if unit == 'minutes':
        config.model.dtype = 'float32'
    else:
        config.model.attention = 'auto'
        config.model.remat = 'dots'
        config.model.unroll = 'all'
        config.train.microbatches = max(batch_size // 64, 1)
    return config


def set_pace(config, num_steps: int) -> None:
    """Sets the warm-up, the moving average and the intervals, by the length of the training."""
    config.optimizer.warmup_steps = min(num_steps // 20, 1000)
    config.train.ema_decay = 1 - 10 / num_steps
    config.train.log_every = num_steps // 100
    config.train.evaluate_every = num_steps // 10
    config.train.sample_every = num_steps // 10
    config.train.checkpoint_every = num_steps // 20


def parse(settings: str) -> tuple[str, str, float, str]:
    """Returns the name, the unit of time and how many of it, and the folder of data sets or ''."""
    name, *words = settings.split(',')
    options = dict(word.split('=', 1) if '=' in word else (word, '') for word in words)
    folder = options.pop('dir', '')
    unit, amount = options.popitem() if options else ('minutes', '10')
    try:
        amount = float(amount)
    except ValueError:
        amount = math.nan
    if options or unit not in MACHINES or not 0 < amount <= MAX_AMOUNT:
        raise InputError(
            f"'{settings}' is no NAME, NAME,minutes=10 or NAME,hours=8, of at most {MAX_AMOUNT:,} "
            'minutes or hours, and perhaps with ,dir=FOLDER at its end.'
        )
    return name, unit, amount, folder


def open_set(name: str, folder: str) -> Dataset:
    """Opens a data set, to see its shape."""
    if not name:
        prepared = ', '.join(sorted(prepared_folders(data_folder(folder)))) or 'none yet'
        raise InputError(
            '--config=images needs the name of a data set: --config=images:NAME. Prepared in '
            f'{folder}: {prepared}. python -m tarflow_jax.data.prepare NAME --folder=DIR --size=32 '
            'makes one of a folder of images.'
        )
    try:
        return open_dataset(name, folder, image_size=SIDE_OF_ANY)
    except InputError as error:
        where = (
            '' if name.endswith('.npz') else ' (--config=images:NAME,dir=FOLDER is another folder.)'
        )
        raise InputError(f'{error}{where}') from error


def choose_splits(dataset: Dataset) -> tuple[str, str, int]:
    """Returns the splits for training and tests, and the number of training images."""
    sizes = {name: split.num_examples for name, split in dataset.splits.items()}
    count = sizes.get('train', 0)
    if count < 2:
        raise InputError(f"'{dataset.name}' has {count} images to train with; it needs two.")
    for name in ('test', 'validation'):
        if sizes.get(name):
            return 'train', name, count
    kept = min(max(count // 20, 1), 1000)
    return f'train[{kept}:]', f'train[:{kept}]', count - kept


def choose_patch_size(height: int, width: int, num_tokens: int) -> int:
    """Returns the side of square patches that cut an image into about so many tokens."""
    divisors = [n for n in range(1, min(height, width) + 1) if height % n == 0 == width % n]
    tokens = {n: height * width // n**2 for n in divisors}
    possible = [n for n in divisors if tokens[n] in TOKENS]
    if not possible:
        raise InputError(
            f'images of {height}x{width} pixels cannot be cut into {TOKENS[0]} to {TOKENS[-1]:,} '
            'square patches. Prepare them with another --size, such as 32.'
        )
    return min(possible, key=lambda n: abs(math.log(tokens[n] / num_tokens)))


def choose_size(flops_a_token: float, num_features: int, most_images: int) -> tuple[Size, float]:
    """Returns the largest model that sees enough images in the time, and how many it sees."""

    def images_seen(size):
        return min(flops_a_token / (6 * size.num_parameters(num_features)), most_images)

    def sees_enough(size):
        return images_seen(size) >= IMAGES_A_PARAMETER * size.num_parameters(num_features)

    size = max(filter(sees_enough, SIZES), key=SIZES.index, default=SIZES[0])
    return size, images_seen(size)
