"""How long a run of a program takes, as a range from ideal to as compiled.

The ideal time assumes that all resources work at once and without pauses: it is the longest of the
times for the program's products, for its arguments and results through HBM, and for its messages.
The compiled time assumes that the instructions run one after the other, each for as long as its
products or its HBM traffic take, whichever is longer, and that no message overlaps with them. A
kernel of a GPU takes some time however little it does, which counts as HBM traffic.
"""

import dataclasses

from tarflow_jax.flow import TarFlow
from tarflow_jax.planning import collectives, costs, hlo
from tarflow_jax.planning.compilation import Program
from tarflow_jax.planning.topologies import Topology


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A run of a program on each device: FLOPs of its products, bytes that it moves through HBM.

    `ideal` and `compiled` are the seconds of each resource ('compute', 'hbm', 'interconnect',
    'dcn'); `collectives` is a `collectives.summary`.
    """

    flops: float
    hbm_bytes: float
    ideal: dict[str, float]
    compiled: dict[str, float]
    collectives: list[dict]

    @property
    def ideal_seconds(self) -> float:
        return max(self.ideal.values())

    @property
    def compiled_seconds(self) -> float:
        return sum(self.compiled.values())

    @property
    def bound_by(self) -> str:
        return max(self.compiled, key=self.compiled.__getitem__)


def estimate(program: Program, mesh, topology: Topology) -> Estimate | None:
    """The time of a program on the devices of a mesh; None for one that does not fit."""
    if program.entry is None:
        return None
    chip, rows = topology.chip, collectives.summary(program.entry, mesh, topology)
    sent = {'interconnect': 0.0, 'dcn': 0.0}
    for row in rows:
        sent[row['network']] += row['seconds']
    must_move = (program.argument_bytes + program.result_bytes) / chip.hbm_bandwidth
    ideal = {'compute': 0.0, 'hbm': must_move, **sent}
    compiled = {'compute': 0.0, 'hbm': 0.0, **sent}
    flops = hbm_bytes = 0.0
    for instruction, times in hlo.executed(program.entry):
        products, passes = costs.flops(instruction, chip.float32_passes)
        moved = costs.hbm_bytes(instruction)
        compute = times * passes / chip.peak_flops
        hbm = times * max(moved / chip.hbm_bandwidth, chip.kernel_seconds if moved else 0.0)
        compiled['compute' if compute > hbm else 'hbm'] += max(compute, hbm)
        ideal['compute'] += compute
        flops += times * products
        hbm_bytes += times * moved
    return Estimate(flops, hbm_bytes, ideal, compiled, rows)


def peak_in_precision(model: TarFlow, topology: Topology) -> float:
    """FLOP/s of a device in the type the model computes in: float32 takes six passes on a TPU."""
    passes = 1 if model.dtype == 'bfloat16' else topology.chip.float32_passes['highest']
    return topology.chip.peak_flops / passes
