"""Interprets the pickles in PyTorch's files of both formats, without running any code.

Python's own unpickler calls whatever a pickle names, and a pickle of a few bytes can have it run
for years or fill the memory. The interpreter here knows the operations that a state dict takes,
makes nothing but plain values, and calls nothing: a tensor stays a description until the file that
holds its numbers has been checked.
"""

import math
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from tarflow_jax.errors import InputError

STORAGE_DTYPES = {
    'DoubleStorage': np.float64,
    'FloatStorage': np.float32,
    'HalfStorage': np.float16,
    'BFloat16Storage': ml_dtypes.bfloat16,
    'LongStorage': np.int64,
    'IntStorage': np.int32,
    'ShortStorage': np.int16,
    'CharStorage': np.int8,
    'ByteStorage': np.uint8,
    'BoolStorage': np.bool_,
}
STORAGES = {np.dtype(dtype): storage for storage, dtype in STORAGE_DTYPES.items()}

# A tensor takes about 40 operations; an operation takes some microseconds, and 300 bytes at most.
_MAX_OPERATIONS = 2**19
_MAX_AXES = 32
_MAX_INT64 = 2**63 - 1  # of what PyTorch counts


class Storage(NamedTuple):
    """Numbers that lie elsewhere in the file, under a key; only `persistent ids` make one."""

    dtype: np.dtype
    key: str
    length: int

    @property
    def num_bytes(self) -> int:
        return self.length * self.dtype.itemsize


class Tensor(NamedTuple):
    """A view of a storage, checked to lie within it; only `_rebuild_tensor` makes one.

    Offset and strides count elements.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Returns the size of the array, which repeats elements where a stride is 0."""
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def array(self, data: memoryview) -> np.ndarray:
        """Returns the tensor as a view of the bytes of its storage."""
        if 0 in self.shape:
            return np.empty(self.shape, self.storage.dtype)
        size = self.storage.dtype.itemsize
        # NumPy looks once more whether all of it lies in the buffer.
        return np.ndarray(
            self.shape,
            self.storage.dtype,
            buffer=data[: self.storage.num_bytes],
            offset=self.offset * size,
            strides=[stride * size for stride in self.strides],
        )


class _Name(NamedTuple):
    """A function or class that a pickle names; it is never looked up."""

    module: str
    name: str


class _Mark:
    """Where the items of a tuple, a list or a dictionary begin on the stack."""


_ORDERED_DICT = _Name('collections', 'OrderedDict')
_REBUILD_TENSOR = _Name('torch._utils', '_rebuild_tensor_v2')
_REBUILD_PARAMETER = _Name('torch._utils', '_rebuild_parameter')
_KNOWN = {
    *(_ORDERED_DICT, _REBUILD_TENSOR, _REBUILD_PARAMETER),
    *(_Name('torch', storage) for storage in STORAGE_DTYPES),
}


def load(file: IO[bytes], path: Path) -> tuple[Any, dict[str, Storage]]:
    """Returns the value of the pickle at the position of `file`, and its storages by key.

    It is made of None, numbers, text, tuples, lists, dictionaries, `Storage`s and `Tensor`s. The
    position of `file` is then after the pickle.

    Args:
      file: a BytesIO or a mapped file, which allocate nothing for what lies beyond their end.
      path: the file that holds it, for messages.

    Raises:
      InputError: the pickle names something that is not part of a tensor.
      Exception: it is damaged, or not a state dict; of nearly any kind.
    """
    interpreter = _Interpreter(path)
    return interpreter.run(file), interpreter.storages


class _Interpreter:
    """A stack, and a memory of values that the pickle refers to again."""

    def __init__(self, path: Path):
        self._path = path
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, file: IO[bytes]) -> Any:
        for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
            if operation.name not in _OPERATIONS:
                raise pickle.UnpicklingError(
                    f'its description has the operation {operation.name}, which no tensor needs'
                )
            if count == _MAX_OPERATIONS:
                raise pickle.UnpicklingError(
                    f'its description has more than {_MAX_OPERATIONS:,} operations'
                )
            _OPERATIONS[operation.name](self, argument)
        (value,) = self._stack
        return value

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        return self._stack.pop()

    def _pop_items(self) -> list[Any]:
        """Removes the topmost mark and the values above it, which it returns."""
        items = []
        while not isinstance(value := self._pop(), _Mark):
            items.append(value)
        return items[::-1]

    def _top(self, kind: type) -> Any:
        value = self._stack[-1]
        if type(value) is not kind:
            raise pickle.UnpicklingError(f'it fills a {type(value).__name__}')
        return value

    def _push_tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._push(tuple(items[::-1]))

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _extend(self, items: list[Any]) -> None:
        self._top(list).extend(items)

    def _set(self, items: list[Any]) -> None:
        dictionary = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):  # others can take years to hash
                raise pickle.UnpicklingError(f'a {type(key).__name__} is the name of something')
            dictionary[key] = value

    def _set_one(self) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _name(self, module: str, name: str) -> None:
        known = _Name(module, name)
        if known not in _KNOWN:
            raise InputError(
                f'{self._path} was not loaded: its pickle names {module}.{name}, which is no '
                'part of a dense tensor, and could run code. A state dict of dense tensors never '
                'does; do not trust this file unless you know why it does.'
            )
        self._push(known)

    def _name_of_stack(self) -> None:
        name, module = self._pop(), self._pop()
        self._name(_checked(module, str), _checked(name, str))

    def _call(self) -> None:
        arguments, name = _checked(self._pop(), tuple), _checked(self._pop(), _Name)
        if name == _ORDERED_DICT and not arguments:
            self._push({})
        elif name == _REBUILD_TENSOR:
            self._push(_rebuild_tensor(*arguments))
        elif name == _REBUILD_PARAMETER:
            self._push(_checked(arguments[0], Tensor))
        else:
            raise pickle.UnpicklingError(
                'it calls something other than the constructor of a tensor'
            )

    def _build(self) -> None:
        """Drops the state of an OrderedDict besides its items: PyTorch's versions of modules."""
        self._pop()
        self._top(dict)

    def _persistent(self) -> None:
        _, kind, key, _, length, *view = _checked(self._pop(), tuple)
        if view not in ([], [None]):
            raise pickle.UnpicklingError('a storage is a part of another')
        dtype = np.dtype(STORAGE_DTYPES[_checked(kind, _Name).name])
        storage = Storage(dtype, _checked(key, str), _checked_number(length))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise pickle.UnpicklingError(f'storage {key} has two types or lengths')
        self._push(storage)


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise pickle.UnpicklingError(f'it has an unexpected {type(value).__name__}')
    return value


def _checked_number(value: Any) -> int:
    if not 0 <= _checked(value, int) <= _MAX_INT64:
        raise pickle.UnpicklingError('it has a size below 0 or beyond all files')
    return value


def _checked_numbers(values: Any) -> tuple[int, ...]:
    if len(_checked(values, tuple)) > _MAX_AXES:
        raise pickle.UnpicklingError(f'a tensor has more than {_MAX_AXES} axes')
    return tuple(map(_checked_number, values))


def _rebuild_tensor(storage, offset, size, stride, *_) -> Tensor:
    tensor = Tensor(
        _checked(storage, Storage),
        _checked_number(offset),
        _checked_numbers(size),
        _checked_numbers(stride),
    )
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((n - 1) * step for n, step in steps)
    if 0 not in tensor.shape and last >= tensor.storage.length:
        raise pickle.UnpicklingError('a tensor reaches beyond its storage')
    return tensor


_PLAIN = (
    *('BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT'),
    *('BINUNICODE', 'SHORT_BINUNICODE', 'BINSTRING', 'SHORT_BINSTRING'),
)
_Operation = Callable[[_Interpreter, Any], None]

# The opcodes of PyTorch's weights-only unpickler, and those that protocol 4 writes instead.
_OPERATIONS: dict[str, _Operation] = {
    **dict.fromkeys(('PROTO', 'FRAME', 'STOP'), lambda run, argument: None),
    **dict.fromkeys(_PLAIN, lambda run, argument: run._push(argument)),
    'NONE': lambda run, _: run._push(None),
    'NEWTRUE': lambda run, _: run._push(True),
    'NEWFALSE': lambda run, _: run._push(False),
    'EMPTY_TUPLE': lambda run, _: run._push(()),
    'EMPTY_LIST': lambda run, _: run._push([]),
    'EMPTY_DICT': lambda run, _: run._push({}),
    'MARK': lambda run, _: run._push(_Mark()),
    'TUPLE': lambda run, _: run._push(tuple(run._pop_items())),
    'TUPLE1': lambda run, _: run._push_tuple(1),
    'TUPLE2': lambda run, _: run._push_tuple(2),
    'TUPLE3': lambda run, _: run._push_tuple(3),
    'APPEND': lambda run, _: run._extend([run._pop()]),
    'APPENDS': lambda run, _: run._extend(run._pop_items()),
    'SETITEM': lambda run, _: run._set_one(),
    'SETITEMS': lambda run, _: run._set(run._pop_items()),
    **dict.fromkeys(('BINPUT', 'LONG_BINPUT'), lambda run, index: run._put(index)),
    'MEMOIZE': lambda run, _: run._put(len(run._memo)),
    **dict.fromkeys(('BINGET', 'LONG_BINGET'), lambda run, index: run._push(run._memo[index])),
    'GLOBAL': lambda run, names: run._name(*names.split(' ', 1)),
    'STACK_GLOBAL': lambda run, _: run._name_of_stack(),
    'REDUCE': lambda run, _: run._call(),
    'BUILD': lambda run, _: run._build(),
    'BINPERSID': lambda run, _: run._persistent(),
}
