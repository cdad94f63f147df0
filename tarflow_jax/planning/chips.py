"""What a device can do at most: products, memory, links. Every number with its public source.

[cloud] is Google's page of the chip, https://docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e
and /tpu7x; [book] the tables of https://jax-ml.github.io/scaling-book/tpus. `hbm_bytes` is what
the compiler lets a program use, as libtpu 0.0.42 says it when a program is too large. `clock` is
the peak over what the matrix units do in a cycle: 2 x 128 x 128 FLOPs in each of eight units (v4,
v5p) or four (v5e); that of v6e is taken to be v5p's.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of a topology as JAX sees it: a chip, or a core of a tpu7x.

    Attributes:
      name: as it stands in a topology's name.
      peak_flops: bfloat16 FLOP/s of one device.
      hbm_bytes: memory that a program may use on one device.
      hbm_bandwidth: bytes/s.
      link_bandwidth: bytes/s of one link to a neighbour, one way.
      dcn_bandwidth: bytes/s a chip of the network between slices.
      dimensions: of the torus.
      wraps_at: a dimension whose size is a multiple of it is a ring.
      source: where the numbers come from.
      clock: cycles/s of the compiler's estimates; None where it is unknown.
      devices_per_chip: 2 where JAX sees the cores.
      chip_config: libtpu's name of the way the cores of a chip are used.
      is_measured: of this machine rather than of a data sheet.
    """

    name: str
    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    dcn_bandwidth: float
    dimensions: int
    wraps_at: int
    source: str
    clock: float | None = None
    devices_per_chip: int = 1
    chip_config: str | None = None
    is_measured: bool = False


CLOUD = 'docs.cloud.google.com/tpu/docs'

CHIPS = {
    # [cloud] 275 TFLOP/s, 32 GiB at 1200 GB/s; [book] 45 GB/s a link one way, 25 GB/s a host of
    # four chips between slices. Two cores that work as one ('megacore').
    'v4': Chip(
        name='v4',
        peak_flops=275e12,
        hbm_bytes=30.75 * GIB,
        hbm_bandwidth=1.2e12,
        link_bandwidth=45e9,
        dcn_bandwidth=6.25e9,
        dimensions=3,
        wraps_at=4,
        source=f'{CLOUD}/v4 and jax-ml.github.io/scaling-book/tpus',
        clock=1.05e9,
        chip_config='megacore',
    ),
    # [cloud] 197 TFLOP/s, 16 GB at 819 GB/s, 400 GB/s both ways over 4 links, 6.4 Tbit/s a pod of
    # 256 chips between pods. [book] rings on axes of 16 only.
    'v5e': Chip(
        name='v5e',
        peak_flops=197e12,
        hbm_bytes=15.75 * GIB,
        hbm_bandwidth=819e9,
        link_bandwidth=50e9,
        dcn_bandwidth=3.125e9,
        dimensions=2,
        wraps_at=16,
        source=f'{CLOUD}/v5e',
        clock=1.5e9,
    ),
    # [cloud] 459 TFLOP/s, 95 GiB at 2765 GB/s, 1200 GB/s both ways over 6 links, 50 Gbit/s a chip
    # between slices; rings in slices of 4x4x4 and larger.
    'v5p': Chip(
        name='v5p',
        peak_flops=459e12,
        hbm_bytes=95.74 * GIB,
        hbm_bandwidth=2.765e12,
        link_bandwidth=100e9,
        dcn_bandwidth=6.25e9,
        dimensions=3,
        wraps_at=4,
        source=f'{CLOUD}/v5p',
        clock=1.75e9,
    ),
    # [cloud] 918 TFLOP/s, 32 GB at 1638 GB/s, 800 GB/s both ways over 4 links, 25.6 Tbit/s a pod of
    # 256 chips between pods. [book] rings on axes of 16 only.
    'v6e': Chip(
        name='v6e',
        peak_flops=918e12,
        hbm_bytes=31.25 * GIB,
        hbm_bandwidth=1.638e12,
        link_bandwidth=100e9,
        dcn_bandwidth=12.5e9,
        dimensions=2,
        wraps_at=16,
        source=f'{CLOUD}/v6e',
        clock=1.75e9,
    ),
    # [cloud] a chip of two devices: 2307 TFLOP/s, 192 GiB at 7.37 TB/s, 1200 GB/s both ways over 6
    # links, 100 Gbit/s a chip between slices. Here halved but for the links, which both share.
    'tpu7x': Chip(
        name='tpu7x',
        peak_flops=2307e12 / 2,
        hbm_bytes=94.75 * GIB,
        hbm_bandwidth=7.37e12 / 2,
        link_bandwidth=100e9 / 2,
        dcn_bandwidth=12.5e9 / 2,
        dimensions=3,
        wraps_at=4,
        source=f'{CLOUD}/tpu7x',
        devices_per_chip=2,
    ),
}
