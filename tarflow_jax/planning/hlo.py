"""Reads the text of a compiled XLA module: instructions, the arrays they make, what they call.

The text is all there is of a module for absent hardware. Its grammar is that of
`jax.stages.Compiled.as_text()` on CPU, GPU and TPU.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

HBM = 0  # the memory space that is written without a name; a TPU's VMEM is 1
_LINE = re.compile(
    r'\n(?=  (?:ROOT )?%[\w.\-]+ = |(?:ENTRY )?%[\w.\-]+ \(|\}(?:,|$))', re.MULTILINE
)
_HEADER = re.compile(r'(?P<entry>ENTRY )?%(?P<name>[\w.\-]+) \(')
_INSTRUCTION = re.compile(
    r'(?s)  (?P<root>ROOT )?%(?P<name>[\w.\-]+) = (?P<arrays>\(.*?\)|\S+) '
    r'(?P<opcode>[\w\-]+)\((?P<argument>[^)]*)\)(?P<attributes>.*)'
)
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?')
_CALLED = re.compile(
    r'(?:calls|condition|body|to_apply|\w+_computations?)=\{?((?:%[\w.\-]+(?:, )?)+)'
)
_NAME = re.compile(r'%([\w.\-]+)')
_CALLS = ('call', 'call-start', 'conditional', 'async-start')
_BITS = {'pred': 8, 'token': 0, 'opaque': 0}  # of types whose names have no number of bits


@dataclasses.dataclass(frozen=True)
class Array:
    """An array in a memory space; `stored_bytes` includes the padding of its layout's tiles."""

    dtype: str
    dims: tuple[int, ...]
    space: int
    num_bytes: int
    stored_bytes: int

    @classmethod
    def parse(cls, dtype: str, sizes: str, layout: str) -> 'Array':
        dims = integers(sizes)
        bits = _BITS[dtype] if dtype in _BITS else int(re.findall(r'\d+', dtype)[0])
        space = re.search(r'S\((\d+)\)', layout)
        num_bytes, stored = math.prod(dims) * bits // 8, _stored_elements(dims, layout) * bits // 8
        return cls(dtype, dims, int(space[1]) if space else HBM, num_bytes, stored)


def _stored_elements(dims, layout: str) -> int:
    """Elements of an array with its minor axes rounded up to whole tiles."""
    order, _, tiles = layout.partition(':')
    tile = re.search(r'T\(([\d,]+)\)', tiles)
    sides = integers(tile[1])[::-1] if tile else ()
    minor_first = [dims[axis] for axis in integers(order)] or dims
    sides += (1,) * (len(minor_first) - len(sides))
    pairs = zip(minor_first, sides, strict=False)
    return math.prod(-(-size // side) * side for size, side in pairs)


def integers(text: str | None) -> tuple[int, ...]:
    """Numbers separated by commas."""
    return tuple(int(number) for number in (text or '').split(',') if number)


@dataclasses.dataclass(eq=False)
class Instruction:
    """An instruction, such as '%name = arrays opcode(argument), attributes'.

    `arrays` are more than one for a tuple. `argument` is the text of the operands, of a constant
    its value, of a parameter its number. `called` are the computations that it runs, in the order
    of the text, and `users` the instructions that read its result.
    """

    name: str
    opcode: str
    arrays: list[Array]
    argument: str
    attributes: str
    operands: list['Instruction']
    called: list['Computation']
    users: list['Instruction'] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class Computation:
    """Instructions in the order in which they run; `root` makes the result."""

    instructions: list[Instruction]
    root: Instruction

    def parameter(self, number: int) -> Instruction:
        parameters = (i for i in self.instructions if i.opcode == 'parameter')
        return next(parameter for parameter in parameters if int(parameter.argument) == number)


def parse(text: str) -> Computation:
    """The computation that a module starts with; callees are reachable from it.

    Computations stand before those that call them, and instructions before those that read them.
    """
    computations, instructions = {}, {}
    name = root = entry = ''
    for line in _LINE.split(re.sub(r'/\*index=\d+\*/', '', text)):
        if match := _INSTRUCTION.match(line):
            instruction = _instruction(match, instructions, computations)
            instructions[instruction.name] = instruction
            root = instruction.name if match['root'] else root
        elif header := _HEADER.match(line):
            name, instructions = header['name'], {}
            entry = name if header['entry'] else entry
        elif line.startswith('}') and name:
            computations[name] = Computation(list(instructions.values()), instructions[root])
    return computations[entry]


def _instruction(match: re.Match, instructions, computations) -> Instruction:
    argument, attributes = match['argument'], match['attributes']
    names = [] if match['opcode'] == 'constant' else _NAME.findall(argument)
    called = [name for listed in _CALLED.findall(attributes) for name in _NAME.findall(listed)]
    instruction = Instruction(
        name=match['name'],
        opcode=match['opcode'],
        arrays=[Array.parse(*array) for array in _ARRAY.findall(match['arrays'])],
        argument=argument,
        attributes=attributes,
        operands=[instructions[name] for name in names],
        called=[computations[name] for name in called],
    )
    for operand in dict.fromkeys(instruction.operands):
        operand.users.append(instruction)
    return instruction


def executed(computation: Computation, times: int = 1) -> Iterator[tuple[Instruction, int]]:
    """All instructions that run, each with the number of times that it does.

    A fusion is one instruction. All branches of a conditional count, and a loop that is not
    a scan counts as one that runs once.
    """
    for instruction in computation.instructions:
        yield instruction, times
        if instruction.opcode == 'while':
            _, body = instruction.called
            yield from executed(body, times * trip_count(instruction))
        elif instruction.opcode in _CALLS:
            for called in instruction.called:
                yield from executed(called, times)


def fused(instruction: Instruction) -> Iterator[Instruction]:
    """All instructions of a fusion and of the fusions in it; of another instruction, itself."""
    if instruction.opcode == 'fusion':
        for part in instruction.called[0].instructions:
            yield from fused(part)
    else:
        yield instruction


def trip_count(loop: Instruction) -> int:
    """The number of times that a scan's loop runs; 1 for any other loop.

    It is what the compiler notes, or else the only integer in the loop's condition: a scan counts
    from 0 by ones up to it.
    """
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition, _ = loop.called
    constants = [i.argument for i in condition.instructions if i.opcode == 'constant']
    numbers = [int(value) for value in constants if value.isdecimal()]
    return numbers[0] if len(numbers) == 1 else 1
