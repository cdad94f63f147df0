"""NVIDIA GPUs, each alone in a machine, and how XLA's compiler is told about them."""

import dataclasses

from tarflow_jax.planning.chips import Chip

KERNEL_SECONDS = 2e-6  # of the shortest kernels in a graph of an H100
_MEMORY_SHARE = 0.75  # that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU by NVIDIA's data sheet and CUDA's programming guide.

    FLOP/s are of dense matrix products, in bfloat16 (summed in float32) and in float32 outside of
    the tensor cores; bandwidth is in bytes/s. `memory_bytes` is about what CUDA offers.
    `shared_bytes` is the most shared memory of a multiprocessor.
    """

    name: str
    capability: tuple[int, int]
    bfloat16_flops: float
    float32_flops: float
    memory_bytes: int
    bandwidth: float
    multiprocessors: int
    clock_ghz: float
    l2_bytes: int
    shared_bytes: int
    threads: int
    float32_units: int

    def chip(self) -> Chip:
        passes = self.bfloat16_flops / self.float32_flops
        return Chip(
            *(self.name, self.bfloat16_flops, _MEMORY_SHARE * self.memory_bytes, self.bandwidth),
            *(0.0, 0.0, 1, 1),
            platform='gpu',
            # In TensorFloat-32, or outside of the tensor cores.
            float32_passes={'default': 2, 'high': 2, 'highest': passes},
            kernel_seconds=KERNEL_SECONDS,
            # Triton's tiles are chosen by timing them, which takes the GPU.
            options={'xla_gpu_enable_triton_gemm': False},
        )

    def target_config(self) -> str:
        """XLA's description of the GPU (a GpuTargetConfigProto as text), for CUDA 12 and later."""
        major, minor = self.capability
        return f"""
            platform_name: "CUDA"
            device_description_str: "NVIDIA {self.name.upper()}"
            dnn_version_info {{ major: 9 minor: 8 }}
            runtime_version {{ major: 12 minor: 8 }}
            gpu_device_info {{
              cuda_compute_capability {{ major: {major} minor: {minor} }}
              device_memory_size: {self.memory_bytes}
              memory_bandwidth: {self.bandwidth:.0f}
              core_count: {self.multiprocessors}
              clock_rate_ghz: {self.clock_ghz}
              l2_cache_size: {self.l2_bytes}
              fpus_per_core: {self.float32_units}
              threads_per_core_limit: {self.threads}
              shared_memory_per_core: {self.shared_bytes}
              shared_memory_per_block: 49152
              shared_memory_per_block_optin: {self.shared_bytes - 1024}
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
              threads_per_block_limit: 1024
              threads_per_warp: 32
              block_dim_limit_x: 2147483647
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
            }}
        """


KIB, MIB = 2**10, 2**20

# name, capability, FLOP/s of bfloat16 and float32, memory, bytes/s of it, multiprocessors, GHz,
# L2 cache, shared memory, threads and float32 units of a multiprocessor
_4090 = (165.2e12, 82.6e12, 24210 * MIB, 1.008e12, 128, 2.52, 72 * MIB, 100 * KIB, 1536, 128)
_A100 = (312e12, 19.5e12, 80 * 2**30, 2.039e12, 108, 1.41, 40 * MIB, 164 * KIB, 2048, 64)
_H100 = (989e12, 66.9e12, 80994 * MIB, 3.352e12, 132, 1.98, 50 * MIB, 228 * KIB, 2048, 128)
_H200 = (989e12, 66.9e12, 143771 * MIB, 4.8e12, 132, 1.98, 50 * MIB, 228 * KIB, 2048, 128)
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu('rtx4090', (8, 9), *_4090),
        Gpu('a100', (8, 0), *_A100),
        Gpu('h100', (9, 0), *_H100),
        Gpu('h200', (9, 0), *_H200),
    )
}
