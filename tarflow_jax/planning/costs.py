"""What an instruction of a compiled module costs a device: products, and bytes through HBM.

XLA's own cost analysis counts a loop's body once, whatever its length, and no kernel.
"""

import math
import re

from tarflow_jax.planning.chips import TPU_PASSES
from tarflow_jax.planning.hlo import HBM, Instruction, fused, integers

# These move no data; what loops and calls run is counted itself.
_FREE = (
    'parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast', 'while', 'call',
    'conditional', 'after-all', 'partition-id', 'replica-id', 'opt-barrier', 'async-start',
    'async-update',
)  # fmt: skip
_CUBLAS = '__cublas'
_FREE_TARGETS = re.compile('custom_call_target="(AllocateBuffer|ConcatBitcast|Sharding)"')
_SLICES = ('dynamic-slice', 'slice', 'gather')
_SAME_DATA = ('bitcast', 'reshape', 'copy', 'convert')

# Kernels for attention: their products over all pairs of tokens, and the axes of their operands.
# Splash has two products forward, three for the gradient of queries (logits again), four for that
# of keys and values; cuDNN has five for all three gradients.
_KERNELS = {
    'mha_fwd': (2, 'BNTK'),
    'mha_dq': (3, 'BNTK'),
    'mha_dkv': (4, 'BNTK'),
    'dot_product_attention_fwd': (2, 'BTNK'),
    'dot_product_attention_bwd': (5, 'BTNK'),
}
_TILE = 128  # tokens of a side, where a kernel does not say it


def flops(instruction: Instruction, float32_passes=TPU_PASSES) -> tuple[float, float]:
    """FLOPs of an instruction's products, and those times the passes of the matrix unit.

    A multiplication and an addition count as two. A fusion counts all instructions within it.
    """
    products = [_product_flops(part, float32_passes) for part in fused(instruction)]
    return sum(count for count, _ in products), sum(count * passes for count, passes in products)


def _product_flops(product: Instruction, float32_passes) -> tuple[float, float]:
    is_cublas = f'custom_call_target="{_CUBLAS}' in product.attributes
    if product.opcode == 'custom-call' and not is_cublas:
        return _kernel_flops(product), 1
    if product.opcode not in ('dot', 'convolution', 'custom-call'):
        return 0.0, 1
    left, right = (operand.arrays[0] for operand in product.operands[:2])
    precision = re.search(r'operand_precision\W+(\w+)', product.attributes)
    is_float32 = left.dtype == right.dtype == 'f32'
    kind = precision[1].lower() if precision else 'default'
    passes = float32_passes[kind] if is_float32 else 1
    if product.opcode == 'convolution':
        return 2.0 * _convolution_size(product, left.dims, right.dims), passes
    (axes,) = re.findall(r'lhs_contracting_dim\w+\W+([\d",]*)', product.attributes)
    contracted = math.prod(left.dims[axis] for axis in integers(axes.replace('"', '')))
    return 2.0 * math.prod(product.arrays[0].dims) * contracted, passes


def _convolution_size(product: Instruction, left, right) -> int:
    """Multiplications of a matrix product that the TPU's compiler has written as a convolution.

    Its batch, columns and contracted axes are the convolution's, or lie along the window, which
    meets as many elements of an axis as the longest of the factors and the result has.
    """
    (labels,) = re.findall(r'dim_labels=(\w+)_(\w+)->(\w+)', product.attributes)
    sizes = {}
    for axes, dims in zip(labels, (left, right, product.arrays[0].dims), strict=True):
        for axis, size in zip(axes, dims, strict=True):
            sizes[axis] = max(size, sizes.get(axis, 1))
    del sizes['f']  # of the left factor it is 'i', of the result 'o'
    return math.prod(sizes.values())


def _kernel_flops(kernel: Instruction) -> float:
    """FLOPs of a kernel for attention, which the module does not say.

    A causal kernel of square tiles, n a side, computes (n + 1) / 2n of all pairs of tokens.
    """
    kind = next((kind for kind in _KERNELS if kind in kernel.name), None)
    arrays = [array for operand in kernel.operands for array in operand.arrays]
    queries = next((array for array in arrays if len(array.dims) == 4), None)
    if kind is None or queries is None:
        return 0.0
    products, axes = _KERNELS[kind]
    tokens = queries.dims[axes.index('T')]
    tile = re.search(r'block_q\D*(\d+)', kernel.attributes)
    tiles = max(1, tokens // int(tile[1] if tile else _TILE))
    pairs = (tiles + 1) / (2 * tiles) * tokens  # of each query
    return products * 2.0 * math.prod(queries.dims) * pairs


def hbm_bytes(instruction: Instruction) -> float:
    """Bytes that an instruction reads from HBM and writes to it.

    Of an array that it slices or updates in place, it moves only that part.
    """
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith('-done') or _FREE_TARGETS.search(instruction.attributes):
        return 0
    operands, made = instruction.operands, instruction.arrays
    if opcode in ('copy-start', 'slice-start'):
        taken = made[0 if opcode == 'copy-start' else 1]
        return min(_in_hbm(operands[0].arrays), taken.stored_bytes) + _in_hbm([taken])
    read = sum(min(_in_hbm(operand.arrays), _read(instruction, operand)) for operand in operands)
    return read + _written(instruction)


def _written(instruction: Instruction) -> float:
    opcode, made = instruction.opcode, instruction.arrays
    if opcode == 'fusion':
        root = instruction.called[0].root
        results = root.operands if root.opcode == 'tuple' else [root]
        pairs = zip(made, results, strict=False)
        return sum(min(_in_hbm([array]), _updated(result)) for array, result in pairs)
    if opcode == 'dynamic-update-slice':
        return min(_in_hbm(made), _updated(instruction))
    if opcode.endswith('-start'):
        made = made[-len(instruction.operands) :]
    if opcode == 'custom-call' and _CUBLAS in instruction.attributes:
        made = made[:1]  # without its workspace
    return 0 if opcode == 'send' else _in_hbm(made)


def _in_hbm(arrays) -> int:
    return sum(array.stored_bytes for array in arrays if array.space == HBM)


def _read(user: Instruction, source: Instruction) -> float:
    """Bytes that an instruction reads of an array; infinite for the whole of it."""
    if user.opcode == 'fusion':
        return _read_within(user.called[0].parameter(user.operands.index(source)))
    if user.opcode in _SLICES and user.operands[0] is source:
        return user.arrays[0].stored_bytes
    is_target = user.opcode == 'dynamic-update-slice' and user.operands[0] is source
    return 0 if is_target else math.inf


def _read_within(value: Instruction) -> float:
    """Bytes that the instructions of a fusion read of one of its values."""
    return sum(
        _read_within(user) if user.opcode in _SAME_DATA and user.users else _read(user, value)
        for user in value.users
    )


def _updated(result: Instruction) -> float:
    """Bytes that an update in place writes of a result; infinite for any other result."""
    while result.opcode in _SAME_DATA:
        result = result.operands[0]
    if result.opcode == 'fusion':
        return _updated(result.called[0].root)
    is_update = result.opcode == 'dynamic-update-slice'
    return result.operands[1].arrays[0].stored_bytes if is_update else math.inf
