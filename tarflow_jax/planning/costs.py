"""What one run of a compiled module costs: products, memory traffic, collectives, cycles.

XLA's own cost analysis counts the body of a loop once, whatever its length; here everything is
multiplied by how often it runs.
"""

import dataclasses
import math
import re
from collections.abc import Callable

from tarflow_jax.planning.hlo import HBM, Computation, Instruction, Module, Shape

# Passes of bfloat16 products that a TPU's matrix unit takes for one product of float32 factors.
# https://docs.jax.dev/en/latest/jax.lax.html#jax.lax.Precision: DEFAULT 1, HIGH 3, HIGHEST 6.
FLOAT32_PASSES = {'default': 1, 'high': 3, 'highest': 6}

# Move no data of their own; a loop's, a call's or a branch's instructions are counted themselves.
_FREE = (
    'parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast', 'while', 'call',
    'conditional', 'after-all', 'partition-id', 'replica-id', 'opt-barrier', 'async-start',
    'async-update',
)  # fmt: skip
_FREE_TARGETS = ('AllocateBuffer', 'ConcatBitcast', 'Sharding')
_SLICES = ('dynamic-slice', 'slice', 'gather')
_SAME_DATA = ('bitcast', 'reshape', 'copy', 'convert')


@dataclasses.dataclass
class Costs:
    """What a device does in one run.

    Attributes:
      flops: of all products, two for a multiplication and an addition.
      pass_flops: `flops`, each product as often as the matrix unit must pass over it.
      hbm_bytes: read from and written to HBM.
      cycles: the compiler's estimate, of its fusions alone.
    """

    flops: float = 0.0
    pass_flops: float = 0.0
    hbm_bytes: float = 0.0
    cycles: float = 0.0


def count(module: Module, kernel_flops: Callable[[str, Instruction, list[Shape]], float]) -> Costs:
    """Counts a module.

    Args:
      module: of one device.
      kernel_flops: of the custom call of a name and operands; the module does not say them.
    """
    costs = Costs()
    for computation, instruction, times in module.executed():
        flops, pass_flops = _flops(module, computation, instruction)
        if is_kernel(instruction):
            operands = [shape for i in instruction.operands for shape in
                        computation.instructions[i].shapes]  # fmt: skip
            flops = pass_flops = kernel_flops(instruction.name, instruction, operands)
        costs.flops += times * flops
        costs.pass_flops += times * pass_flops
        costs.hbm_bytes += times * traffic(module, computation, instruction)
        cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        costs.cycles += times * int(cycles[1]) if cycles else 0
    return costs


def is_kernel(instruction: Instruction) -> bool:
    """Whether it is a kernel that was not written by XLA (a Pallas one)."""
    return instruction.opcode == 'custom-call' and 'tpu_custom_call' in instruction.attributes


def _flops(module, computation, instruction) -> tuple[float, float]:
    """FLOPs of an instruction, or of all that a fusion holds; and with the passes over them."""
    if instruction.opcode == 'fusion':
        inner = module.inside(module.called(instruction, 'calls'))
        counted = [_product_flops(*place) for place in inner]
    else:
        counted = [_product_flops(computation, instruction)]
    return sum(f for f, _ in counted), sum(f * passes for f, passes in counted)


def _product_flops(computation: Computation, instruction: Instruction) -> tuple[float, int]:
    if instruction.opcode not in ('dot', 'convolution'):
        return 0.0, 0
    left, right = (computation.operand(instruction, i).shapes[0] for i in (0, 1))
    if instruction.opcode == 'dot':
        (axes,) = re.findall(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.attributes)
        contracted = math.prod(left.dims[int(axis)] for axis in axes.split(',') if axis)
        flops = 2.0 * math.prod(instruction.shapes[0].dims) * contracted
    else:
        flops = _convolution_flops(instruction, left, right)
    precision = re.search(r'operand_precision=\{(\w+)', instruction.attributes)
    is_float32 = left.dtype == right.dtype == 'f32'
    passes = FLOAT32_PASSES.get(precision[1] if precision else 'default', 1) if is_float32 else 1
    return flops, passes


def _convolution_flops(instruction, left: Shape, right: Shape) -> float:
    """Of a convolution, in the form of which a TPU's compiler writes every product.

    Positions of the window that lie in the padding, or between dilated elements, cost nothing.
    """
    labels = re.findall(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.attributes)
    ((of_left, of_right, of_out),) = labels
    parts = re.search(r'window=\{([^}]*)\}', instruction.attributes)
    window = dict(part.split('=') for part in parts[1].split()) if parts else {}
    positions = 1.0
    for axis in (label for label in of_out if label.isdigit()):
        positions *= _positions(
            left.dims[of_left.index(axis)],
            right.dims[of_right.index(axis)],
            instruction.shapes[0].dims[of_out.index(axis)],
            window,
            int(axis),
        )
    batch = left.dims[of_left.index('b')] / instruction.integer('batch_group_count', 1)
    inputs, outputs = (right.dims[of_right.index(label)] for label in 'io')
    return 2.0 * positions * batch * inputs * outputs


def _positions(size, window_size, out_size, window, axis) -> int:
    """Pairs of an output and a window position along an axis that meet an element."""

    def value(key, default):
        return window[key].split('x')[axis] if key in window else default

    low = int(str(value('pad', '0_0')).split('_')[0])
    stride, base, dilation = (int(value(key, 1)) for key in ('stride', 'lhs_dilate', 'rhs_dilate'))
    last = (size - 1) * base
    met = 0
    for k in range(window_size):
        offset = k * dilation - low  # of output o, the place is o * stride + offset
        first, end = -(offset // stride), (last - offset) // stride
        first, end = max(first, 0), min(end, out_size - 1)
        if base == 1:
            met += max(0, end - first + 1)
        else:
            met += sum((o * stride + offset) % base == 0 for o in range(first, end + 1))
    return met


def traffic(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Bytes that an instruction reads from HBM and writes to it."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith('-done'):
        return 0.0
    if any(f'target="{target}"' in instruction.attributes for target in _FREE_TARGETS):
        return 0.0
    operands = [computation.instructions[name] for name in instruction.operands]
    if opcode == 'fusion':
        return _fusion_traffic(module, module.called(instruction, 'calls'), operands, instruction)
    if opcode in ('copy-start', 'slice-start', *_SLICES):
        return _slice_traffic(operands[0], instruction)
    if opcode == 'dynamic-update-slice':
        return 2 * _in_hbm(operands[1].shapes)
    if opcode == 'send':
        return _in_hbm(operands[0].shapes)
    written = instruction.shapes
    if opcode.endswith('-start'):
        written = written[-len(operands) :]
    return sum(_in_hbm(operand.shapes) for operand in operands) + _in_hbm(written)


def _in_hbm(shapes) -> int:
    return sum(shape.stored_bytes for shape in shapes if shape.space == HBM)


def _slice_traffic(source: Instruction, made: Instruction) -> float:
    """Of a copy or a slice: the part that is taken is read, and written."""
    taken = made.shapes[1 if made.opcode == 'slice-start' else 0]
    read = taken.stored_bytes if source.shapes[0].space == HBM else 0
    return read + _in_hbm([taken])


def _fusion_traffic(module, fused: Computation, operands, instruction) -> float:
    """Of a fusion: parts alone of what it slices, and of what it updates in place."""
    read = sum(
        _read(module, fused, parameter, operand)
        for parameter, operand in zip(fused.parameters, operands, strict=True)
    )
    results = [fused.root]
    if fused.root.opcode == 'tuple':
        results = [fused.instructions[name] for name in fused.root.operands]
    written = 0
    for result, shape in zip(results, instruction.shapes, strict=False):
        if shape.space == HBM:
            update = _update(module, fused, result)
            written += min(update or math.inf, shape.stored_bytes)
    return read + written


def _read(module, fused: Computation, parameter: Instruction, operand: Instruction) -> int:
    """Bytes that a fusion reads of an operand."""
    whole = _in_hbm(operand.shapes)
    if not whole:
        return 0
    parts = _parts_read(module, fused, parameter)
    return whole if parts is None else min(whole, parts)


def _parts_read(module, fused: Computation, source: Instruction) -> int | None:
    """Bytes of the slices that are all a fusion reads of a value; None if it reads the whole."""
    total = 0
    for user in fused.users[source.name]:
        if user.opcode in _SLICES and user.operands[0] == source.name:
            total += user.shapes[0].stored_bytes
        elif user.opcode == 'dynamic-update-slice' and user.operands[0] == source.name:
            continue  # the rest of it stays where it is
        elif user.opcode in _SAME_DATA:
            parts = _parts_read(module, fused, user)
            if parts is None or not fused.users[user.name]:
                return None
            total += parts
        elif user.opcode == 'fusion':
            called = module.called(user, 'calls')
            parameter = called.parameters[user.operands.index(source.name)]
            parts = _parts_read(module, called, parameter)
            if parts is None:
                return None
            total += parts
        else:
            return None
    return total


def _update(module, fused: Computation, result: Instruction) -> int | None:
    """Bytes that a fusion writes of a result that is an update in place; None for any other."""
    while result.opcode in _SAME_DATA:
        result = fused.operand(result, 0)
    if result.opcode == 'fusion':
        called = module.called(result, 'calls')
        return _update(module, called, called.root)
    if result.opcode != 'dynamic-update-slice':
        return None
    return fused.operand(result, 1).shapes[0].stored_bytes
