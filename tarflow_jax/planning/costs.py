"""What an instruction of a compiled module costs a device: products, and bytes through HBM.

XLA's own cost analysis counts the body of a loop once, whatever its length, and does not know
kernels.
"""

import math
import re

from tarflow_jax.planning.hlo import HBM, Instruction, fused, integers

# Passes of a TPU's matrix unit, which multiplies bfloat16, for a product of float32 factors, by
# the product's precision: https://docs.jax.dev/en/latest/jax.lax.html#jax.lax.Precision.
FLOAT32_PASSES = {'default': 1, 'high': 3, 'highest': 6}

# These move no data; what loops and calls run is counted itself.
_FREE = (
    'parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast', 'while', 'call',
    'conditional', 'after-all', 'partition-id', 'replica-id', 'opt-barrier', 'async-start',
    'async-update',
)  # fmt: skip
_FREE_TARGETS = re.compile('custom_call_target="(AllocateBuffer|ConcatBitcast|Sharding)"')
_SLICES = ('dynamic-slice', 'slice', 'gather')
_SAME_DATA = ('bitcast', 'reshape', 'copy', 'convert')

# Products over all pairs of tokens in the splash kernels: two forward, three for the gradient of
# queries (logits again), four for that of keys and values.
_KERNEL_PRODUCTS = {'mha_fwd': 2, 'mha_dq': 3, 'mha_dkv': 4}


def flops(instruction: Instruction) -> tuple[float, float]:
    """FLOPs of an instruction's products, and those times the passes of the matrix unit.

    A multiplication and an addition are two. Of a fusion all that stands in it counts.
    """
    products = [_product_flops(part) for part in fused(instruction)]
    return sum(count for count, _ in products), sum(count * passes for count, passes in products)


def _product_flops(product: Instruction) -> tuple[float, int]:
    if product.opcode == 'custom-call':
        return _kernel_flops(product), 1
    if product.opcode not in ('dot', 'convolution'):
        return 0.0, 1
    left, right = (operand.arrays[0] for operand in product.operands)
    size = _dot_size if product.opcode == 'dot' else _convolution_size
    precision = re.search(r'operand_precision=\{(\w+)', product.attributes)
    is_float32 = left.dtype == right.dtype == 'f32'
    passes = FLOAT32_PASSES[precision[1] if precision else 'default'] if is_float32 else 1
    return 2.0 * size(product, left.dims, right.dims), passes


def _dot_size(product: Instruction, left, _) -> int:
    """Multiplications of a matrix product."""
    (axes,) = re.findall(r'lhs_contracting_dims=\{([\d,]*)\}', product.attributes)
    return math.prod(product.arrays[0].dims) * math.prod(left[axis] for axis in integers(axes))


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
    kind = next((kind for kind in _KERNEL_PRODUCTS if kind in kernel.name), None)
    arrays = [array for operand in kernel.operands for array in operand.arrays]
    queries = next((array for array in arrays if len(array.dims) == 4), None)
    if kind is None or queries is None:
        return 0.0
    batch, heads, tokens, features = queries.dims
    tile = re.search(r'block_q\D*(\d+)', kernel.attributes)
    tiles = max(1, tokens // int(tile[1])) if tile else 1
    pairs = tokens**2 * (tiles + 1) / (2 * tiles)
    return _KERNEL_PRODUCTS[kind] * 2.0 * batch * heads * pairs * features


def hbm_bytes(instruction: Instruction) -> float:
    """Bytes that an instruction reads from HBM and writes to it."""
    opcode, operands, made = instruction.opcode, instruction.operands, instruction.arrays
    if opcode in _FREE or opcode.endswith('-done') or _FREE_TARGETS.search(instruction.attributes):
        return 0
    if opcode == 'fusion':
        return _fusion_bytes(instruction)
    if opcode in ('copy-start', 'slice-start', *_SLICES):
        taken = made[1 if opcode == 'slice-start' else 0]
        return taken.stored_bytes * (operands[0].arrays[0].space == HBM) + _in_hbm([taken])
    if opcode == 'dynamic-update-slice':
        return 2 * _in_hbm(operands[1].arrays)
    if opcode == 'send':
        return _in_hbm(operands[0].arrays)
    if opcode.endswith('-start'):
        made = made[-len(operands) :]
    return sum(_in_hbm(operand.arrays) for operand in operands) + _in_hbm(made)


def _in_hbm(arrays) -> int:
    return sum(array.stored_bytes for array in arrays if array.space == HBM)


def _fusion_bytes(fusion: Instruction) -> float:
    """Bytes of a fusion, which moves only those parts of an array that it slices or updates."""
    (computation,) = fusion.called
    read = 0
    for parameter, operand in zip(computation.parameters, fusion.operands, strict=True):
        read += min(_in_hbm(operand.arrays), _sliced_bytes(parameter))
    root = computation.root
    results = root.operands if root.opcode == 'tuple' else [root]
    written = 0
    for result, array in zip(results, fusion.arrays, strict=False):
        written += min(_in_hbm([array]), _updated_bytes(result))
    return read + written


def _sliced_bytes(source: Instruction) -> float:
    """Bytes of the slices that a fusion reads of a value; infinite if it reads the whole."""
    total = 0
    for user in source.users:
        if user.opcode in _SLICES and user.operands[0] is source:
            total += user.arrays[0].stored_bytes
        elif user.opcode == 'dynamic-update-slice' and user.operands[0] is source:
            continue  # the rest of it stays where it is
        elif user.opcode in _SAME_DATA and user.users:
            total += _sliced_bytes(user)
        elif user.opcode == 'fusion':
            total += _sliced_bytes(user.called[0].parameters[user.operands.index(source)])
        else:
            return math.inf
    return total


def _updated_bytes(result: Instruction) -> float:
    """Bytes that an update in place writes of a fusion's result; infinite for any other result."""
    while result.opcode in _SAME_DATA:
        result = result.operands[0]
    if result.opcode == 'fusion':
        return _updated_bytes(result.called[0].root)
    is_update = result.opcode == 'dynamic-update-slice'
    return result.operands[1].arrays[0].stored_bytes if is_update else math.inf
