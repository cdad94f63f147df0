"""Every key of a config, with the value that most experiments share.

An experiment is a file with a `get_config()` that starts from this one and changes what differs.
Any key can be set on the command line: --config.train.batch_size=64.
"""

import os

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of the initial parameters, the order of the data, noise and label dropout

    config.model = ConfigDict()
    config.model.image_shape = (64, 64, 3)  # height, width, channels; must be the data's
    config.model.patch_size = 2  # side of a patch in pixels; a patch is a token
    config.model.width = 768  # features of a token, a multiple of head_dim
    config.model.num_blocks = 8  # autoregressive blocks, alternating in direction
    config.model.layers_per_block = 8  # transformer layers in each block
    config.model.head_dim = 64  # features of an attention head
    config.model.num_classes = 0  # classes to condition on, 0 for none; at least the data's
    config.model.volume_preserving = False  # shifts only, with a tracked prior variance
    config.model.dtype = 'bfloat16'  # of the transformer layers: 'bfloat16' or 'float32'
    config.model.attention = 'xla'  # or 'cudnn' (NVIDIA, bfloat16), 'splash' (TPUs), 'auto'
    config.model.remat = 'none'  # what the backward pass recomputes: 'none', 'dots' (most), 'full'
    config.model.unroll = 'none'  # loops to unroll: 'none', 'blocks', or 'all' (layers, too)

    config.data = ConfigDict()
    config.data.name = ''  # 'digits', 'photos/64', a prepared data set, or a file .npz
    config.data.dir = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
    config.data.train_split = 'train'  # what is learned from
    config.data.test_split = 'test'  # what is scored during training
    config.data.num_images = 0  # in the training split, for plans made without the data; 0: unknown
    config.data.workers = 0  # processes that read for training, if threads are too slow (JPEGs)
    config.data.random_flip = False  # mirror half of the training images left to right

    config.noise = ConfigDict()
    config.noise.type = 'gaussian'  # 'gaussian' for samples, 'uniform' for bits per dimension
    config.noise.std = 0.05  # of gaussian noise, for pixels in [-1, 1]

    config.optimizer = ConfigDict()
    config.optimizer.peak_learning_rate = 1e-4  # after the warm-up
    config.optimizer.final_learning_rate = 1e-6  # before the warm-up and at the end of the cosine
    config.optimizer.warmup_steps = 1000  # of linear warm-up
    config.optimizer.b1 = 0.9  # AdamW's decay of the first moment
    config.optimizer.b2 = 0.95  # and of the second
    config.optimizer.weight_decay = 1e-4  # of kernels only, times the learning rate
    config.optimizer.clip_norm = 0.0  # largest global norm of the gradients, 0 for no clipping
    config.optimizer.first_moment_dtype = 'float32'  # or 'bfloat16', for less memory

    config.train = ConfigDict()
    config.train.num_epochs = 200.0  # passes over the training split
    config.train.batch_size = 256  # images per step, over all devices
    config.train.microbatches = 0  # parts of a batch, one after the other; 0: chosen by the program
    config.train.gather = 'layer'  # gather sharded parameters by 'layer', or once per 'step'
    config.train.drop_label = 0.1  # fraction of labels hidden from a conditional model
    config.train.ema_decay = 0.0  # of the parameters' moving average, 0 for none
    config.train.log_every = 100  # steps between two lines of metrics
    config.train.profile_steps = 0  # steps to profile, from the eleventh on, into tensorboard/
    config.train.evaluate_every = 5000  # steps between two scores of the test split
    config.train.evaluate_draws = 1  # draws of the noise for each image of that score
    config.train.sample_every = 5000  # steps between two grids of samples
    config.train.checkpoint_every = 1000  # steps between two checkpoints
    config.train.keep_checkpoints = 2  # newest ones to keep, besides the best
    config.train.max_restarts = 3  # from the last sound checkpoint, before it gives up
    config.train.restart_factor = 1.0  # multiplies the learning rate at each restart

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that share a batch; -1 for all that are left
    config.mesh.fsdp = 1  # devices that share a batch and the parameters
    config.mesh.tensor = 1  # devices that share heads and hidden features

    config.sample = ConfigDict()
    config.sample.num_samples = 64  # in samples/samples.npz, and in a grid during training
    config.sample.labels = 'even'  # all classes in turn; or '3,3,-1' (-1: none); or 'uniform'
    config.sample.batch_size = 64  # samples at a time
    config.sample.guidance = 0.0  # weight of the guidance, 0 for none
    config.sample.guide = 'both'  # what is guided: 'both', 'scale' or 'shift'
    config.sample.anneal_guidance = False  # let the weight grow from token to token
    config.sample.attention_temperature = 1.0  # of the unguided pass; guides without classes
    config.sample.prior_temperature = 1.0  # standard deviation of the prior, relative to training
    config.sample.denoise = True  # remove gaussian training noise by a score step
    config.sample.method = 'auto'  # as calibrated, else 'sequential'; or 'parallel'
    config.sample.tolerance = 1e-3  # of an image, by the parallel method; pixels span 2
    config.sample.certify = False  # measure residuals; solve again what is above the tolerance
    config.sample.seed = 0  # of the samples' noise

    config.evaluate = ConfigDict()
    config.evaluate.metrics = ('nats_per_dim', 'bits_per_dim')  # see evaluation/metrics.py for more
    config.evaluate.splits = ()  # scored as a whole; () for data.test_split
    config.evaluate.batch_size = 256  # images at a time
    config.evaluate.num_draws = 1  # draws of the noise for each image
    config.evaluate.seed = 0  # of that noise
    config.evaluate.num_samples = 50_000  # drawn for fid and related metrics, as config.sample says
    config.evaluate.labels = 'uniform'  # of those samples: drawn 'uniform'ly, or 'even'
    config.evaluate.quantization = 'truncate'  # to 8 bits, as published; or 'round'
    config.evaluate.samples = ''  # a .npz of samples to measure, instead of drawing some
    config.evaluate.save_samples = True  # keep those drawn in samples/evaluated.npz, as ADM does
    config.evaluate.preprocessing = 'torch-fidelity'  # or 'pytorch-fid', 'clean-fid'
    config.evaluate.inception_weights = ''  # a file of the 2015 network's weights; '' downloads it
    config.evaluate.reference = ''  # a file of statistics; '' for those of the training split
    config.evaluate.reference_flip = False  # whether those include each image mirrored, too

    return config.lock()
