"""The collectives of a compiled module: how many bytes, among which devices."""

import dataclasses
import math
import re

import numpy as np

from tarflow_jax.planning.hlo import Computation, Instruction, Module

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a module.

    Attributes:
      kind: one of `KINDS`.
      num_bytes: of the whole array a device ends up with or starts from, whichever is larger.
      group: positions, in the mesh's list of devices, of those that take part with the first.
      times: how often it runs.
      pairs: of a collective-permute, who sends to whom.
      between_slices: whether it joins devices at the same place of all slices, over the network.
    """

    kind: str
    num_bytes: int
    group: tuple[int, ...]
    times: int
    pairs: tuple[tuple[int, int], ...] = ()
    between_slices: bool = False


def find(module: Module) -> list[Collective]:
    """All collectives of a module, those inside fusions too.

    One that is spread over several fusions, so that it overlaps with their work, counts once.
    """
    found, spread = [], set()
    for computation, instruction, times in module.executed():
        places = [(computation, instruction)]
        if instruction.opcode == 'fusion':
            places = module.inside(module.called(instruction, 'calls'))
        for place in places:
            if between := re.search(r'megascale_transfer_type="(\w+)"', place[1].attributes):
                kind = between[1].lower().replace('_', '-')
                if place[1].opcode == 'send' and kind in KINDS:
                    found.append(_between_slices(kind, *place, times))
                continue
            kind = place[1].opcode.removesuffix('-start')
            if kind not in KINDS:
                continue
            channel = place[1].integer('channel_id', 0)
            if instruction.opcode == 'fusion' and channel:
                if channel in spread:
                    continue
                spread.add(channel)
            found.append(_collective(kind, *place, times))
    return found


def _between_slices(kind, computation: Computation, instruction: Instruction, times) -> Collective:
    """What a TPU's compiler makes of the part of a collective between slices."""
    sent = sum(shape.num_bytes for shape in computation.operand(instruction, 0).shapes)
    return Collective(kind, sent, (), times, between_slices=True)


def _collective(kind, computation: Computation, instruction: Instruction, times) -> Collective:
    read = [s for name in instruction.operands for s in computation.instructions[name].shapes]
    made = instruction.shapes
    read_bytes = sum(shape.num_bytes for shape in read)
    made_bytes = sum(shape.num_bytes for shape in made)
    if instruction.opcode.endswith('-start') and kind != 'all-reduce':
        made_bytes = max(made_bytes - read_bytes, 0)  # a start's result holds its operands, too
    num_bytes = made_bytes if kind == 'all-gather' else read_bytes
    if kind == 'collective-permute':
        text = re.search(r'source_target_pairs=\{([\d,{}]*)\}', instruction.attributes)
        found = re.findall(r'(\d+),(\d+)', text[1] if text else '')
        pairs = tuple((int(source), int(target)) for source, target in found)
        return Collective(kind, num_bytes, pairs[0] if pairs else (), times, pairs)
    return Collective(kind, num_bytes, first_group(instruction.attributes), times)


def first_group(attributes: str) -> tuple[int, ...]:
    """The first of a collective's groups of devices; the others look like it.

    Read from {{0,1},{2,3}}, [2,2]<=[4], [2,2]<=[2,2]T(1,0), mesh['a'=2,'b'=2] {'b'} and
    mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}.
    """
    if listed := re.search(r'replica_groups=\{\{([\d,]*)\}', attributes):
        return tuple(int(i) for i in listed[1].split(','))
    iota = re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', attributes)
    if iota:
        shape, dims, order = (_integers(part) for part in iota.groups())
        devices = np.arange(math.prod(dims)).reshape(dims)
        return tuple(devices.transpose(order or range(len(dims))).reshape(shape)[0].tolist())
    mesh = re.search(
        r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? *'
        r'\{([^}]*)\}',
        attributes,
    )
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        shape = [int(size) for size in sizes.values()]
        dims, order = _integers(mesh[2]) or shape, _integers(mesh[3])
        devices = (
            np.arange(math.prod(dims))
            .reshape(dims)
            .transpose(order or range(len(dims)))
            .reshape(shape)
        )
        taking_part = re.findall(r"'(\w+)'", mesh[4])
        index = tuple(slice(None) if axis in taking_part else 0 for axis in sizes)
        return tuple(devices[index].flatten().tolist())
    return ()


def _integers(text: str | None) -> list[int]:
    return [int(i) for i in text.split(',')] if text else []
