"""This package's side of the benchmarks, as its command line runs it."""

import functools
import math
import time

import numpy as np

from benchmarks.workloads import GUIDANCE, NOISE_STD, PROJ_OUT_STD, Task, Workload, inputs

CEILING_FLOPS = 1e10  # of a measurement of the ceiling, on every device


class Ours:
    """A model on all cores, with a batch for one task, whose methods run it."""

    def __init__(self, workload: Workload, task: Task, weights=None):
        """Takes the cores, makes the model and puts the batch where it is computed.

        Args:
          workload: says which model.
          task: what will be called.
          weights: a published state dict; random by default.
        """
        from tarflow_jax.parallel.cores import use_cores
        from tarflow_jax.parallel.host_memory import keep_freed_memory
        from tarflow_jax.training.program import rows_to_share_in_training

        config = workload.config()
        is_training = task.name == 'train'
        keep_freed_memory()
        use_cores(
            config.mesh, rows_to_share_in_training(config) if is_training else task.num_images
        )
        import jax

        from tarflow_jax.build import build
        from tarflow_jax.likelihood.noise import Noise
        from tarflow_jax.parallel import rules

        self.jax, self.workload, self.task = jax, workload, task
        self.experiment = build(config)
        self.model, self.mesh = self.experiment.model, self.experiment.mesh
        self.noise = Noise('gaussian', NOISE_STD, num_levels=256)
        self.on_devices = functools.partial(rules.activation_sharding, self.mesh)
        self.params = self._make_params(weights)
        levels, labels, noise = inputs(workload, task.num_images)
        index = np.arange(task.num_images, dtype=np.int32)
        batch = {'image': levels, 'label': labels, 'index': index, 'noise': noise}
        self.batch = jax.device_put(batch, rules.batch_sharding(self.mesh))
        self.num_parts = 1
        if is_training:
            self._start_training()
        self._products = None

    def _make_params(self, weights):
        from tarflow_jax.parallel import rules
        from tarflow_jax.published.convert import from_state_dict

        jax, workload = self.jax, self.workload
        shardings = functools.partial(rules.shardings, mesh=self.mesh)
        if weights is not None:
            _, params = from_state_dict(
                weights,
                image_shape=workload.image_shape,
                patch_size=workload.patch_size,
                shardings=shardings,
            )
            return params

        def init(key):
            params = self.model.init_params(key)
            proj_out = params['blocks']['proj_out']  # zero in a new model, which is the identity
            std = PROJ_OUT_STD / math.sqrt(workload.width)
            proj_out['kernel'] = std * jax.random.normal(key, proj_out['kernel'].shape)
            return params

        shapes = jax.eval_shape(init, jax.random.key(0))
        return jax.jit(init, out_shardings=shardings(shapes))(jax.random.key(0))

    def _start_training(self):
        from tarflow_jax.stopping import Stop
        from tarflow_jax.training.program import make_program

        total_steps = self.experiment.config.optimizer.warmup_steps + 1
        program = make_program(self.experiment, self.noise, total_steps)
        with self.on_devices():
            self.state = program.init(self.jax.random.key(0)).replace(params=self.params)
        self.num_parts = program.microbatches
        self.step, self.signals = program.step, Stop().signal_array(self.mesh)

    def latents(self):
        """Latents and log-determinants of the batch without noise."""
        pixels = np.asarray(self.batch['image']).astype(np.float32) / 127.5 - 1
        labels = np.asarray(self.batch['label'])
        answer = self.jax.jit(self.model.apply)({'params': self.params}, pixels, labels)
        return [np.asarray(x) for x in answer]

    def train(self) -> float:
        """A step; returns its loss. `latents` must come before: a step takes `params`."""
        with self.on_devices():
            batch = {name: self.batch[name] for name in ('image', 'label')}
            self.state, report = self.step(self.state, batch, self.signals)
        return float(self.jax.block_until_ready((self.state, report))[1]['loss'])

    def likelihood(self):
        from tarflow_jax.likelihood.scores import noisy_log_prob

        batch = {name: self.batch[name] for name in ('image', 'label', 'index')}
        with self.on_devices():
            return float(noisy_log_prob(self.model, self.noise, self.params, batch, 0, 0).mean())

    def denoise(self):
        from tarflow_jax import denoise

        with self.on_devices():
            pixels = self.batch['image'].astype('float32') / 127.5 - 1
            labels = self.batch['label']
            return np.asarray(denoise(self.model, self.params, pixels, labels, noise_std=NOISE_STD))

    def sample(self, guidance=0.0):
        from tarflow_jax import sample

        noise, labels = self.batch['noise'], self.batch['label']
        with self.on_devices():
            return np.asarray(sample(self.model, self.params, noise, labels, guidance=guidance))

    def guided(self):
        return self.sample(GUIDANCE)

    def peak_device_bytes(self) -> int:
        statistics = self.mesh.devices.flat[0].memory_stats() or {}
        return statistics.get('peak_bytes_in_use', 0)

    def flops(self) -> float:
        """FLOPs of the task; what is computed a second time does not count."""
        from tarflow_jax.planning.flops import forward_flops

        # Denoising needs no gradient of parameters, so its backward pass is a single one.
        passes = {'train': 3, 'denoise': 2, 'guided': 2}.get(self.task.name, 1)
        return passes * self.task.num_images * forward_flops(self.model)

    def ceiling(self) -> float:
        """FLOP/s of an MLP's two products alone, with the task's rows, on every device at once."""
        if self._products is None:
            self._products = _products(self.mesh, self.workload, self._rows())
        run, flops = self._products
        start = time.perf_counter()
        self.jax.block_until_ready(run())
        return flops / (time.perf_counter() - start)

    def _rows(self) -> int:
        """Rows of a product on one device."""
        rows = self.task.num_images // (self.mesh.size * self.num_parts)
        if self.task.name in ('sample', 'guided'):
            return rows * (2 if self.task.name == 'guided' else 1)
        return rows * self.model.token_flow().num_tokens


def _products(mesh, workload: Workload, rows: int):
    """A call that multiplies on every device, and its FLOPs."""
    import jax
    import jax.numpy as jnp

    from tarflow_jax.parallel import rules

    width, hidden = workload.width, 4 * workload.width
    flops = 4 * rows * width * hidden
    on_cpu = mesh.devices.flat[0].platform == 'cpu'
    repeats = max(1, round((CEILING_FLOPS if on_cpu else 1e13) / flops))

    def multiply(x, up, down, zero):
        def again(y, _):
            return x + zero * jnp.matmul(jnp.matmul(y, up), down), None

        return jax.lax.scan(again, x, length=repeats)[0]

    spread = jax.shard_map(
        multiply,
        mesh=mesh,
        in_specs=(rules.BATCH, *(3 * (rules.REPLICATED,))),
        out_specs=rules.BATCH,
        check_vma=False,
    )
    shapes = ((rows * mesh.size, width), (width, hidden), (hidden, width), ())
    shardings = (rules.batch_sharding(mesh), *(3 * (rules.replicated(mesh),)))
    keys = jax.random.split(jax.random.key(0), 3)  # some devices multiply zeros faster
    factors = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False)]
    arrays = [x.astype(workload.dtype) for x in (*factors, jnp.zeros(()))]
    arrays = jax.device_put(arrays, list(shardings))
    run = functools.partial(jax.jit(spread), *arrays)
    jax.block_until_ready(run())
    return run, repeats * flops * mesh.size
