"""The collectives of a compiled module: their type, bytes and time.

A group of n devices of a torus whose links carry W bytes/s one way moves B = W (2 for a ring, 1 for
a line) bytes/s, summed over the axes of the torus along which it lies. An array of V bytes takes

    all-gather, reduce-scatter    V (n - 1) / n / B
    all-reduce                    twice that
    all-to-all                    V m / (8 W) on a ring of m devices, V m / (4 W) on a line
    collective-permute            V / W

(https://jax-ml.github.io/scaling-book/sharding). Of an array that is shared between s slices,
V (s - 1) / s bytes cross the data centre's network, twice that for an all-reduce.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from tarflow_jax.planning.hlo import Computation, Instruction, executed, fused, integers
from tarflow_jax.planning.topologies import Topology

_BETWEEN_SLICES = re.compile(r'megascale_transfer_type="(\w+)"')
# Kinds, and how often their array passes the links.
_PASSES = {
    'all-reduce': 2, 'all-gather': 1, 'reduce-scatter': 1, 'all-to-all': 1, 'collective-permute': 1
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of a module, sent a number of times.

    Its bytes are those of the whole array that a device starts from or ends up with. Its network is
    the 'interconnect', or 'dcn' between devices at the same place of all slices; its group the
    positions, in the mesh's list of devices, of those that take part with the first, or () for all.
    """

    kind: str
    types: tuple[str, ...]
    num_bytes: int
    times: int
    network: str
    group: tuple[int, ...]


def collectives(entry: Computation) -> Iterator[Collective]:
    """All collectives of a module.

    One that is spread over several fusions, so that it overlaps with their work, counts once.
    """
    spread = set()
    for instruction, times in executed(entry):
        for part in fused(instruction):
            collective = _collective(part, times)
            if collective and part is not instruction and _is_scattered(part):
                yield dataclasses.replace(collective, kind='reduce-scatter')
                continue
            channel = re.search(r'channel_id=(\d+)', part.attributes)
            if collective and channel and part is not instruction:
                collective = None if channel[1] in spread else collective
                spread.add(channel[1])
            if collective:
                yield collective


def _is_scattered(all_reduce: Instruction) -> bool:
    """Whether each device keeps a slice: within a fusion, a TPU then makes nothing else."""
    users = all_reduce.users
    if {user.opcode for user in users} == {'get-tuple-element'}:
        users = [user for element in users for user in element.users]
    is_sum = all_reduce.opcode == 'all-reduce'
    return is_sum and {user.opcode for user in users} == {'dynamic-slice'}


def _collective(instruction: Instruction, times: int) -> Collective | None:
    kind, network = instruction.opcode.removesuffix('-start'), 'interconnect'
    arrays = [array for operand in instruction.operands for array in operand.arrays]
    between = _BETWEEN_SLICES.search(instruction.attributes)
    if kind == 'send' and between:
        kind, arrays, network = between[1].lower().replace('_', '-'), arrays[:1], 'dcn'
    elif kind == 'all-gather':
        arrays = instruction.arrays[-len(instruction.operands) :]
    if kind not in _PASSES:
        return None
    types = tuple(sorted({array.dtype for array in arrays}))
    num_bytes = sum(array.num_bytes for array in arrays)
    return Collective(kind, types, num_bytes, times, network, device_group(instruction.attributes))


def device_group(attributes: str) -> tuple[int, ...]:
    """The first of a collective's groups of devices, which the others look like.

    It is read from {{0,1},{2,3}}, [2,2]<=[4], [2,2]<=[2,2]T(1,0), mesh['a'=2,'b'=2] {'b'} and
    mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, or from a collective-permute's pairs.
    """
    to_another = r'source_target_pairs=\{(?:\{(\d+),\1\},)*'
    if listed := re.search(rf'(?:replica_groups=\{{|{to_another})\{{([\d,]*)\}}', attributes):
        return integers(listed[2])
    numbers = r'\[([\d,]+)\](?:T\(([\d,]+)\))?'
    if iota := re.search(rf'replica_groups=\[([\d,]+)\]<={numbers}', attributes):
        return tuple(_numbered(integers(iota[1]), iota[2], iota[3])[0].tolist())
    ids = rf'(?:, device_ids=\({numbers}\))?'
    mesh = re.search(rf'replica_groups=mesh\[([^\]]*)\]{ids} *\{{([^}}]*)\}}', attributes)
    if not mesh:
        return ()
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    index = tuple(slice(None) if f"'{axis}'" in mesh[4] else 0 for axis in sizes)
    devices = _numbered(integers(','.join(sizes.values())), mesh[2], mesh[3])
    return tuple(devices[index].flatten().tolist())


def _numbered(shape, sizes: str | None, order: str | None) -> np.ndarray:
    """Devices in a shape, numbered along axes of `sizes` (the shape's, if None) in an order."""
    dims = integers(sizes) or shape
    devices = np.arange(math.prod(dims)).reshape(dims)
    return devices.transpose(integers(order) or range(len(dims))).reshape(shape)


def seconds(collective: Collective, mesh, topology: Topology) -> float:
    """The time of a collective that runs once."""
    chip, num_bytes = topology.chip, collective.num_bytes
    if collective.network == 'dcn':
        slices = topology.num_slices
        parts = slices if collective.kind == 'all-gather' else 1  # of which each device sends one
        passes = _PASSES[collective.kind] * (slices - 1) / slices
        return parts * num_bytes * passes / chip.dcn_bandwidth
    if collective.kind == 'collective-permute':
        return num_bytes / chip.link_bandwidth
    devices = [mesh.devices.flat[i] for i in collective.group or range(mesh.size)]
    lines = _lines(devices, topology)
    if collective.kind == 'all-to-all':
        length, links = max(lines)
        return num_bytes * length / (4 * links * chip.link_bandwidth)
    passes = _PASSES[collective.kind] * (len(devices) - 1) / len(devices)
    return num_bytes * passes / (chip.link_bandwidth * sum(links for _, links in lines))


def _lines(devices, topology: Topology) -> list[tuple[int, float]]:
    """Length of a group's lines along each axis of the torus, and the links that a device has.

    These are 2 in a ring, 1 in a line, and fewer where other groups lie between its devices and
    share them.
    """
    chips, lines = {tuple(getattr(device, 'coords', [device.id])) for device in devices}, []
    for size, positions in zip(topology.shape, map(set, zip(*chips, strict=True)), strict=False):
        length, distance = len(positions), max(positions) - min(positions)
        if distance:
            is_ring = length == size and size % topology.chip.wraps_at == 0
            lines.append((length, 2.0 if is_ring else (length - 1) / distance))
    return lines or [(len(devices), 1.0)]  # the cores of a chip


def summary(entry: Computation, mesh, topology: Topology) -> list[dict]:
    """Collectives by kind, type and axes of the mesh: count, bytes, seconds; the longest first."""
    groups = collections.defaultdict(list)
    for collective in collectives(entry):
        axes, devices = span(collective, mesh, topology)
        if devices > 1:
            groups[collective.kind, collective.types, collective.network, axes, devices].append(
                collective
            )
    rows = [
        {
            **dict(zip(('kind', 'types', 'network', 'axes', 'devices'), key, strict=True)),
            'count': sum(collective.times for collective in sent),
            'bytes': sum(collective.times * collective.num_bytes for collective in sent),
            'seconds': sum(
                collective.times * seconds(collective, mesh, topology) for collective in sent
            ),
        }
        for key, sent in groups.items()
    ]
    return sorted(rows, key=lambda row: -row['seconds'])


def span(collective: Collective, mesh, topology: Topology) -> tuple[tuple[str, ...], int]:
    """The axes of the mesh along which the devices of a collective lie, and how many they are."""
    if collective.network == 'dcn':  # only the mesh's first axis crosses slices, see `make_mesh`
        return mesh.axis_names[:1], topology.num_slices
    group = collective.group or range(mesh.size)
    places = np.array(np.unravel_index(list(group), mesh.devices.shape))
    axes = zip(mesh.axis_names, places, strict=True)
    return tuple(axis for axis, row in axes if len(set(row)) > 1), len(group)
