"""Reads the text of a compiled XLA module: computations, instructions, shapes, loops.

Only what a compiled module's text says is used, so that a module for hardware that is not here can
be read. The grammar is that of `jax.stages.Compiled.as_text()` on CPU and TPU.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

ITEM_BITS = {'pred': 8, 's4': 4, 'u4': 4, 'token': 0, 'opaque': 0}
HBM = 0  # the memory space that is written without a name; a TPU's VMEM is 1
_LEAF = re.compile(r'(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?')
_HEADER = re.compile(r'^(ENTRY )?%([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^  (ROOT )?%([\w.\-]+) = ')
_CALLED = re.compile(r'(calls|body|condition|to_apply)=%([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: what it holds, and where it lies."""

    dtype: str
    dims: tuple[int, ...]
    space: int = HBM
    padded: int = 0  # elements with those that fill up tiles

    @property
    def item_bits(self) -> int:
        if self.dtype in ITEM_BITS:
            return ITEM_BITS[self.dtype]
        return int(re.findall(r'\d+', self.dtype)[0])  # f32, bf16, s8, f8e4m3fn

    @property
    def num_bytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.dims) * self.item_bits // 8

    @property
    def stored_bytes(self) -> int:
        """Bytes in memory: those that fill up tiles count."""
        return self.padded * self.item_bits // 8

    @classmethod
    def parse(cls, dtype: str, dims: str, layout: str) -> 'Shape':
        sizes = tuple(int(size) for size in dims.split(',') if size)
        space = re.search(r'S\((\d+)\)', layout or '')
        return cls(dtype, sizes, int(space[1]) if space else HBM, _padded(sizes, layout or ''))


def _padded(dims, layout) -> int:
    """Elements of an array with its minor axes rounded up to whole tiles."""
    order, _, tiles = layout.partition(':')
    tile = re.search(r'T\(([\d,]+)\)', tiles)
    if not tile or not order:
        return math.prod(dims)
    minor_first = [dims[int(axis)] for axis in order.split(',')]
    sides = [int(side) for side in reversed(tile[1].split(','))]
    rounded = [
        -(-size // sides[i]) * sides[i] if i < len(sides) else size
        for i, size in enumerate(minor_first)
    ]
    return math.prod(rounded)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique in the module.
      opcode: such as 'fusion'.
      shapes: the arrays that it makes; more than one for a tuple.
      operands: names of the instructions it reads.
      argument: the text between its parentheses, such as the value of a constant.
      attributes: the text after them.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str

    def integer(self, key: str, default: int) -> int:
        """An attribute `key=number`."""
        found = re.search(rf'\b{key}=(\d+)', self.attributes)
        return int(found[1]) if found else default


@dataclasses.dataclass
class Computation:
    """Instructions in the order they run in; `root` makes the result."""

    name: str
    instructions: dict[str, Instruction]
    root: Instruction

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        found = [i for i in self.instructions.values() if i.opcode == 'parameter']
        return sorted(found, key=lambda parameter: int(parameter.argument))

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Which instructions read each."""
        users = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users.get(operand, []).append(instruction)
        return users

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        return self.instructions[instruction.operands[index]]


@dataclasses.dataclass
class Module:
    """A compiled module.

    Attributes:
      computations: by name.
      entry: the one that runs first.
      loops_of_unknown_length: loops that are counted as if they ran once.
    """

    computations: dict[str, Computation]
    entry: Computation
    loops_of_unknown_length: list[str] = dataclasses.field(default_factory=list)

    def called(self, instruction: Instruction, role: str) -> Computation:
        """The computation that an instruction runs as its 'calls', 'body', 'condition'..."""
        return self.computations[dict(_CALLED.findall(instruction.attributes))[role]]

    def executed(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every instruction that runs, its computation, and how many times it does.

        What stands inside fusions is not listed. Every branch of a conditional counts.
        """
        self.loops_of_unknown_length.clear()
        yield from self._executed(self.entry, 1)

    def _executed(self, computation, times):
        for instruction in computation.instructions.values():
            yield computation, instruction, times
            if instruction.opcode == 'while':
                trips = self.trip_count(computation, instruction)
                yield from self._executed(self.called(instruction, 'body'), times * trips)
            elif instruction.opcode == 'conditional':
                branches = _BRANCHES.search(instruction.attributes)
                names = re.findall(r'%([\w.\-]+)', branches[1]) if branches else ()
                for name in names:
                    yield from self._executed(self.computations[name], times)
            elif instruction.opcode in ('call', 'async-start'):
                role = 'to_apply' if instruction.opcode == 'call' else 'calls'
                yield from self._executed(self.called(instruction, role), times)

    def inside(self, computation: Computation) -> Iterator[tuple[Computation, Instruction]]:
        """Every instruction of a fused computation, and of those fused into it."""
        for instruction in computation.instructions.values():
            yield computation, instruction
            if instruction.opcode == 'fusion':
                yield from self.inside(self.called(instruction, 'calls'))

    def trip_count(self, computation: Computation, loop: Instruction) -> int:
        """How often a loop runs: what the compiler says, else counted from its condition."""
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        trips = self._count(computation, loop)
        if trips is None:
            self.loops_of_unknown_length.append(loop.name)
            return 1
        return trips

    def _count(self, computation, loop) -> int | None:
        """Trips of `for (i = first; i < bound; i += step)`, None for any other loop."""
        condition, body = (self.called(loop, role) for role in ('condition', 'body'))
        test = condition.root
        operands = [condition.instructions[name] for name in test.operands]
        if test.opcode == 'fusion':
            test = self.called(test, 'calls').root
        if 'direction=LT' not in test.attributes or len(operands) != 2:
            return None
        counter = next((i for i in operands if i.opcode == 'get-tuple-element'), None)
        bound = next((_constant(condition, i) for i in operands if i is not counter), None)
        if counter is None or bound is None:
            return None
        index = counter.integer('index', 0)
        first = _constant(computation, _element(computation, loop.operands[0], index))
        step = _step(body, index)
        return -(-(bound - (first or 0)) // (step or 1))


def _element(computation: Computation, name: str, index: int) -> Instruction:
    """An element of the tuple called `name`."""
    made = computation.instructions[name]
    return computation.operand(made, index) if made.opcode == 'tuple' else made


def _constant(computation: Computation, instruction: Instruction) -> int | None:
    while instruction.opcode in ('copy', 'bitcast', 'convert', 'copy-done', 'copy-start'):
        instruction = computation.operand(instruction, 0)
    is_number = instruction.opcode == 'constant' and re.fullmatch(r'-?\d+', instruction.argument)
    return int(instruction.argument) if is_number else None


def _step(body: Computation, index: int) -> int | None:
    """What a loop's body adds to its counter."""
    new = _element(body, body.root.name, index)
    while new.opcode in ('copy', 'bitcast'):
        new = body.operand(new, 0)
    if new.opcode != 'add':
        return None
    added = (_constant(body, body.instructions[name]) for name in new.operands)
    return next((value for value in added if value is not None), None)


def parse(text: str) -> Module:
    """Reads a module from its text."""
    computations, entry, name = {}, '', ''
    instructions, root = {}, ''
    for line in _logical_lines(re.sub(r'/\*index=\d+\*/', '', text)):
        if header := _HEADER.match(line):
            name, instructions, root = header[2], {}, ''
            entry = name if header[1] else entry
        elif name and line == '}':
            computations[name] = Computation(name, instructions, instructions[root])
            name = ''
        elif name and (start := _INSTRUCTION.match(line)):
            made = _instruction(start[2], line[start.end() :])
            instructions[made.name] = made
            root = made.name if start[1] else root
    return Module(computations, computations[entry])


def _logical_lines(text: str) -> Iterator[str]:
    """Lines, with those joined to the one before that only continue it (attributes of kernels)."""
    pending = ''
    for line in text.splitlines():
        starts = line in ('}', '') or _INSTRUCTION.match(line) or _HEADER.match(line)
        if starts and pending:
            yield pending
            pending = ''
        pending += line
    yield pending


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith('(') else text.index(' ')
    shapes = tuple(Shape.parse(*leaf) for leaf in _LEAF.findall(text[:end]))
    call = text[end:].lstrip()
    opcode, _, _ = call.partition('(')
    close = _closing(call, len(opcode))
    argument = call[len(opcode) + 1 : close]
    operands = () if opcode == 'constant' else tuple(re.findall(r'%([\w.\-]+)', argument))
    return Instruction(name, opcode, shapes, operands, argument, call[close + 1 :])


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for match in re.compile(r'[()]').finditer(text, start):
        depth += 1 if match[0] == '(' else -1
        if not depth:
            return match.start()
    return len(text) - 1
