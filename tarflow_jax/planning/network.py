"""How long collectives take on a torus of chips, and between slices.

With W bytes/s a link one way, a group of n devices that lies along k axes of the torus moves
B = W (2 for a ring, 1 for a line) bytes/s summed over those axes, and for an array of V bytes

    all-gather, reduce-scatter    V (n - 1) / n / B
    all-reduce                    twice that
    all-to-all                    V m / (8 W) on a ring of m devices, V m / (4 W) on a line
    collective-permute            V / W on the link that has to carry most

(https://jax-ml.github.io/scaling-book/sharding). Between s slices, each device's share of the
array after the part within its slice crosses the data centre's network.
"""

import collections
import dataclasses
import math

import numpy as np

from tarflow_jax.planning.collectives import Collective
from tarflow_jax.planning.topologies import Topology

_PASSES = {'all-gather': 1, 'reduce-scatter': 1, 'all-reduce': 2}


@dataclasses.dataclass(frozen=True)
class Route:
    """Where a collective goes and how long it takes, once.

    Attributes:
      axes: of the mesh, along which its devices lie.
      devices: that take part.
      slices: that they lie in.
      ici_seconds: within slices.
      dcn_seconds: between them.
    """

    axes: tuple[str, ...]
    devices: int
    slices: int
    ici_seconds: float
    dcn_seconds: float


def route(collective: Collective, mesh, topology: Topology) -> Route:
    """Finds the axes of a collective's first group, and its time on them."""
    if collective.between_slices:
        # Only the first axis of a mesh crosses slices, see `parallel.mesh.make_mesh`.
        count = topology.num_slices
        seconds = _between(collective, 1, count, topology)
        return Route(mesh.axis_names[:1], count, count, 0.0, seconds)
    group = list(collective.group) or list(range(mesh.size))
    devices = [mesh.devices.flat[i] for i in group]
    places = np.array(np.unravel_index(group, mesh.devices.shape))
    axes = tuple(
        axis for axis, row in zip(mesh.axis_names, places, strict=True) if len(set(row)) > 1
    )
    slices = {getattr(device, 'slice_index', None) or 0 for device in devices}
    here = [d for d in devices if (getattr(d, 'slice_index', None) or 0) == min(slices)]
    ici = _within(collective, here, topology)
    dcn = _between(collective, len(here), len(slices), topology)
    return Route(axes, len(devices), len(slices), ici, dcn)


def _within(collective: Collective, devices, topology: Topology) -> float:
    chip, count, num_bytes = topology.chip, len(devices), collective.num_bytes
    if count < 2:
        return 0.0
    lines = _lines(devices, topology)
    if collective.kind == 'collective-permute':
        return 0.0  # see `permute_seconds`
    if collective.kind == 'all-to-all':
        length, directions, _ = max(lines)
        return num_bytes * length / (4 * directions * chip.link_bandwidth)
    bandwidth = chip.link_bandwidth * sum(way / stride for _, way, stride in lines)
    return _PASSES[collective.kind] * num_bytes * (count - 1) / count / bandwidth


def _lines(devices, topology: Topology) -> list[tuple[int, int, float]]:
    """Length, directions (2 for a ring) and stride of a group's lines along each axis of the torus.

    A group that is no grid of chips has one line; the stride says how many groups share a link.
    """
    if not all(hasattr(device, 'coords') for device in devices):
        return [(len(devices), 1, 1.0)]
    coords = [tuple(device.coords) for device in devices]
    lines, chips = [], len(set(coords))
    for axis, size in enumerate(topology.shape):
        at = sorted({place[axis] for place in coords})
        if len(at) > 1:
            is_ring = len(at) == size and size % topology.chip.wraps_at == 0
            stride = 1.0 if is_ring else (at[-1] - at[0]) / (len(at) - 1)
            lines.append((len(at), 2 if is_ring else 1, stride))
    if not lines or math.prod(length for length, _, _ in lines) != chips:
        return [(len(devices), 1, 1.0)]
    return lines


def _between(collective: Collective, here: int, slices: int, topology: Topology) -> float:
    if slices < 2:
        return 0.0
    share = collective.num_bytes / here
    if collective.between_slices and collective.kind == 'all-gather':
        share *= slices  # what is sent is the part of one
    if collective.kind in _PASSES:
        share *= _PASSES[collective.kind] * (slices - 1) / slices
    return share / topology.chip.dcn_bandwidth


def permute_seconds(collectives: list[Collective], mesh, topology: Topology) -> float:
    """Time within slices of all permutes, those in opposite directions at once.

    Each goes along one axis of the torus after the other; the busiest link sets the time.
    """
    loads = collections.Counter()
    for collective in collectives:
        for source, target in collective.pairs:
            here, there = mesh.devices.flat[source], mesh.devices.flat[target]
            if getattr(here, 'slice_index', None) == getattr(there, 'slice_index', None):
                for link in _path(here, there, topology):
                    loads[link] += collective.times * collective.num_bytes
    return max(loads.values(), default=0) / topology.chip.link_bandwidth


def _path(source, target, topology: Topology):
    """Links from a chip to another: (slice, chip, axis, direction)."""
    if not hasattr(source, 'coords'):
        yield source.id, target.id
        return
    place, slice_index = list(source.coords), getattr(source, 'slice_index', None)
    for axis, size in enumerate(topology.shape):
        distance = target.coords[axis] - place[axis]
        if size % topology.chip.wraps_at == 0 and abs(distance) > size / 2:
            distance -= int(math.copysign(size, distance))
        way = 1 if distance > 0 else -1
        for _ in range(abs(distance)):
            yield slice_index, tuple(place), axis, way
            place[axis] = (place[axis] + way) % size
