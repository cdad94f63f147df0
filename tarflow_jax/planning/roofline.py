"""How fast a program can run at best, and what keeps it from running faster.

Each term is the time of one resource used without a pause: products, HBM, links within a slice,
the network between slices. A step takes their maximum if all overlap, their sum if none do.
Products and messages are those of the compiled program; the bytes of HBM are those that must move,
see `traffic`, since how many more a compiler moves is its own affair: `compiled_hbm_seconds`.
"""

import collections
import dataclasses

from tarflow_jax.flow import TarFlow
from tarflow_jax.parallel.mesh import batch_shares
from tarflow_jax.planning import costs, flops, network, traffic
from tarflow_jax.planning.collectives import Collective, find
from tarflow_jax.planning.hlo import Module
from tarflow_jax.planning.topologies import Topology


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Of one run of a program.

    Attributes:
      costs: of one device.
      terms: seconds of each resource.
      compiled_hbm_seconds: of the bytes of HBM that the compiled program moves.
      collectives: by kind and axes of the mesh: how many, bytes, devices, seconds.
      loops_of_unknown_length: loops counted as if they ran once.
    """

    costs: costs.Costs
    terms: dict[str, float]
    compiled_hbm_seconds: float
    collectives: list[dict]
    loops_of_unknown_length: int

    @property
    def seconds(self) -> float:
        """With ideal overlap."""
        return max(self.terms.values())

    @property
    def seconds_as_compiled(self) -> float:
        """With ideal overlap, and the bytes of HBM that the compiled program moves."""
        return max(*self.terms.values(), self.compiled_hbm_seconds)

    @property
    def seconds_without_overlap(self) -> float:
        return sum(self.terms.values())

    @property
    def bound_by(self) -> str:
        return max(self.terms, key=self.terms.__getitem__)


def estimate(module: Module, mesh, topology: Topology, least_hbm_bytes: float) -> Roofline:
    """The terms of a compiled program on the devices of a mesh.

    Args:
      module: the program of one device.
      mesh: the devices.
      topology: what they are.
      least_hbm_bytes: that the program must move on each.
    """
    counted = costs.count(module, flops.kernel_flops)
    unknown = len(module.loops_of_unknown_length)
    summed = _sum_up(find(module), mesh, topology)
    chip = topology.chip
    products = counted.flops if chip.is_measured else counted.pass_flops
    terms = {
        'compute': products / chip.peak_flops,
        'hbm': least_hbm_bytes / chip.hbm_bandwidth,
        'interconnect': sum(row['interconnect_seconds'] for row in summed),
        'dcn': sum(row['dcn_seconds'] for row in summed),
    }
    return Roofline(counted, terms, counted.hbm_bytes / chip.hbm_bandwidth, summed, unknown)


def _sum_up(found: list[Collective], mesh, topology: Topology) -> list[dict]:
    """Collectives by kind and axes: how many, bytes, seconds within and between slices."""
    groups = collections.defaultdict(list)
    for collective in found:
        way = network.route(collective, mesh, topology)
        if way.devices > 1:
            key = collective.kind, way.axes, way.devices, way.slices
            groups[key].append((collective, way))
    rows = [_row(*key, members, mesh, topology) for key, members in groups.items()]
    return sorted(rows, key=lambda row: -row['bytes'])


def _row(kind, axes, devices, slices, members, mesh, topology: Topology) -> dict:
    if kind == 'collective-permute':
        ici = network.permute_seconds([collective for collective, _ in members], mesh, topology)
    else:
        ici = sum(collective.times * way.ici_seconds for collective, way in members)
    return {
        'kind': kind,
        'axes': list(axes),
        'devices': devices,
        'slices': slices,
        'count': sum(collective.times for collective, _ in members),
        'bytes': sum(collective.times * collective.num_bytes for collective, _ in members),
        'interconnect_seconds': ici,
        'dcn_seconds': sum(collective.times * way.dcn_seconds for collective, way in members),
    }


def peak_in_precision(model: TarFlow, topology: Topology) -> float:
    """FLOP/s of a device in the type the model computes in: float32 takes six passes on a TPU."""
    is_one_pass = topology.chip.is_measured or model.dtype == 'bfloat16'
    return topology.chip.peak_flops / (1 if is_one_pass else costs.FLOAT32_PASSES['highest'])


def advise(roofline: Roofline, config, model: TarFlow, state, mesh) -> str:
    """A sentence or two on which term holds the step down and what would help.

    Args:
      roofline: of the train step.
      config: that it is of.
      model: that is trained.
      state: shapes and places of what it trains.
      mesh: the devices.
    """
    bound = roofline.bound_by
    images = config.train.batch_size / batch_shares(mesh)
    more_work = f'more images a device than {images:g} (a larger train.batch_size, fewer devices)'
    if bound == 'compute':
        return _of_products(roofline, config, model, mesh)
    if bound == 'hbm':
        return _of_hbm(config, model, state, mesh, more_work)
    largest = max(
        roofline.collectives, key=lambda row: row['interconnect_seconds'] + row['dcn_seconds']
    )
    ratio = roofline.terms['compute'] / roofline.terms[bound]
    return (
        f'{"The network between slices" if bound == "dcn" else "The interconnect"} holds it down: '
        f'mostly {largest["kind"]} over {" and ".join(largest["axes"])}, while products take '
        f'{ratio:.0%} of its time. Would help: {more_work}; {_other_layout(largest["axes"])}.'
    )


def _of_products(roofline: Roofline, config, model: TarFlow, mesh) -> str:
    model_flops = config.train.batch_size * flops.train_flops(model) / mesh.size
    again = roofline.costs.flops / model_flops - 1
    if again > 0.05 and model.remat != 'none':
        lighter = "'dots' or 'none'" if model.remat == 'full' else "'none'"
        return (
            f"The products hold it down, {again:.0%} more than the model's own, for what is "
            f'computed twice. Would help: model.remat={lighter}, if it fits.'
        )
    return 'The products hold it down: as good as it gets on these devices.'


def _of_hbm(config, model: TarFlow, state, mesh, more_work: str) -> str:
    """Apart from what activations take, which grows with the images, is there too little work?"""
    batch, parts = config.train.batch_size, config.train.microbatches
    fixed = traffic.of_state(state, mesh, parts) / traffic.of_train_step(
        model, state, mesh, batch, parts
    )
    helps = [more_work] if fixed > 1 / 3 else []
    if fixed > 1 / 3 and mesh.shape['fsdp'] < mesh.size:
        helps.append('a larger mesh.fsdp, which splits the state')
    if model.attention == 'xla' and model.dtype == 'bfloat16':
        helps.append("model.attention='splash' (TPUs), which keeps the logits out of HBM")
    if model.remat != 'full':
        helps.append("model.remat='full', which saves less to HBM")
    return (
        f'HBM holds it down: parameters and optimizer take about {fixed:.0%} of it however few '
        f'the images are ({"too little work a chip" if fixed > 1 / 3 else "activations more"}). '
        f'Would help: {"; ".join(helps) or "a narrower type, a chip with faster memory"}.'
    )


def _other_layout(axes) -> str:
    if 'tensor' in axes:
        return 'a smaller mesh.tensor'
    if 'fsdp' in axes:
        return 'a smaller mesh.fsdp, if the state fits'
    return 'train.microbatches=1, so that gradients are summed once a step'
