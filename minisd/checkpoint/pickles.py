"""A reader for the pickles inside files of `torch.save`: a closed list of instructions, a closed table of names, no code.

A pickle is a program for a small stack machine; two of its instructions import any name and call it, which is how a file runs code.
The machine here knows the instructions that torch writes (protocol 2) and nothing else. A name is looked up in `NAMES`, never imported,
and what is "called" is a function of this file. `torch_file.py` finds the program and gives its tensors their numbers.

Refused, by name: every other instruction, name and protocol; structures that contain themselves or share a container, where a few bytes
could mean gigabytes; tensors that leave their storage, or have more elements than it.
"""

import math
import struct
from dataclasses import dataclass, field

from .report import shorten

MAX_DIMENSIONS = 8


class Refused(Exception):
    """What a file holds that is not read; `read_torch_file` adds which file it is."""


@dataclass(frozen=True)
class Name:
    """A global of the closed table; never the Python object of that name."""

    name: str


STORAGES = {
    "torch FloatStorage": "float32", "torch HalfStorage": "float16", "torch BFloat16Storage": "bfloat16",
    "torch DoubleStorage": "float64", "torch LongStorage": "int64", "torch IntStorage": "int32",
}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """Numbers in a row, somewhere in the file."""

    dtype: str
    key: str
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * {"float64": 8, "int64": 8, "float16": 2, "bfloat16": 2}.get(self.dtype, 4)


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and stride in elements."""

    storage: Storage
    offset: int
    shape: tuple
    stride: tuple


# ----- what may be "called" ------------------------------------------------------------------------------------------------


def ordered_dict(pairs=()) -> dict:
    if pairs:
        raise Refused("an OrderedDict made from a list; torch makes empty ones and fills them")
    return {}


def python_set(items) -> frozenset:
    if items:
        raise Refused("a set with entries")
    return frozenset()


def rebuild_tensor(storage, offset, shape, stride, requires_grad, hooks, metadata=None) -> Tensor:
    """A view that stays inside its storage and has no more elements than it."""
    if not isinstance(storage, Storage):
        raise Refused("a tensor without a storage")
    numbers = [offset, *shape, *stride] if isinstance(shape, tuple) and isinstance(stride, tuple) else [None]
    if not all(type(n) is int and n >= 0 for n in numbers) or len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
        raise Refused("a tensor whose shape or strides are no lists of sizes")
    size, last = math.prod(shape), offset + sum((n - 1) * step for n, step in zip(shape, stride))
    if size > storage.count or (size and last >= storage.count):
        raise Refused(f"a tensor that leaves its storage of {storage.count:,} numbers")
    return Tensor(storage, offset, shape, tuple(step if size and n > 1 else 0 for n, step in zip(shape, stride)))


def rebuild_parameter(data, requires_grad, hooks):
    return data


class ParameterDict(dict):
    """torch.nn.ParameterDict, of which only the parameters are kept."""


NAMES = {
    "collections OrderedDict": ordered_dict,
    "__builtin__ set": python_set,  # protocol 2 spells builtins so
    "torch._utils _rebuild_tensor_v2": rebuild_tensor,
    "torch._utils _rebuild_parameter": rebuild_parameter,
    "torch.nn.modules.container ParameterDict": ParameterDict,  # made by NEWOBJ, filled by BUILD
    **dict.fromkeys(STORAGES),  # never called: part of the address of a storage
}


# ----- the machine ---------------------------------------------------------------------------------------------------------

MARK = object()
CONSTANTS = {"N": None, "\x88": True, "\x89": False}
EMPTY = {"}": dict, "]": list, ")": tuple}
NUMBERS = {"K": "<B", "M": "<H", "J": "<i", "G": ">d"}
TUPLES = {"\x85": 1, "\x86": 2, "\x87": 3}
SHAREABLE = (str, int, float, bool, type(None), Name, Storage, Tensor)


@dataclass
class Machine:
    """Runs one program from `data`, beginning at `place`, and leaves `place` behind its end."""

    data: bytes
    place: int = 0
    stack: list = field(default_factory=list)
    memo: dict = field(default_factory=dict)
    storages: dict = field(default_factory=dict)  # {key: Storage}, of all tensors

    def run(self):
        """The object that the program builds: dicts, lists, tuples, strings, numbers and `Tensor`s."""
        if self.take(2) != b"\x80\x02":
            raise Refused("it is no pickle of protocol 2, which is what torch writes")
        while (code := chr(self.take(1)[0])) != ".":
            if code in CONSTANTS:
                self.stack.append(CONSTANTS[code])
            elif code in EMPTY:
                self.stack.append(EMPTY[code]())
            elif code in NUMBERS:
                self.stack.append(self.number(NUMBERS[code]))
            elif code in TUPLES:
                self.stack.append(tuple(reversed([self.pop() for _ in range(TUPLES[code])])))
            elif code in STEPS:
                STEPS[code](self)
            else:
                raise Refused(f"the instruction {instruction_name(code)}, which torch does not write")
        result = self.pop()
        if self.stack:
            raise Refused("a program that leaves things behind")
        return result

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.place:
            raise Refused("a program that ends too early")
        self.place += count
        return self.data[self.place - count : self.place]

    def number(self, kind: str):
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def line(self) -> str:
        """Text up to the end of the line, as GLOBAL has it."""
        end = self.data.find(b"\n", self.place, self.place + 200)
        if end < 0:
            raise Refused("a name without an end")
        return self.take(end + 1 - self.place)[:-1].decode("ascii", "backslashreplace")

    def pop(self, kind=object):
        value = self.stack.pop() if self.stack else MARK
        if value is MARK or not isinstance(value, kind):
            raise Refused("a program that takes what is not on its stack")
        return value

    def pop_to_mark(self) -> list:
        items = []
        while self.stack and self.stack[-1] is not MARK:
            items.append(self.stack.pop())
        if not self.stack:
            raise Refused("a program that takes what is not on its stack")
        self.stack.pop()
        return items[::-1]

    # ----- one method an instruction ---------------------------------------------------------------------------------------

    def mark(self):
        self.stack.append(MARK)

    def text(self):
        try:
            self.stack.append(self.take(self.number("<I")).decode("utf-8"))
        except UnicodeDecodeError:
            raise Refused("a text that is no UTF-8") from None

    def long_number(self):
        count = self.number("<B")
        if count > 10:  # the magic number of the legacy format
            raise Refused(f"a whole number of {count} bytes")
        self.stack.append(int.from_bytes(self.take(count), "little", signed=True))

    def tuple_to_mark(self):
        self.stack.append(tuple(self.pop_to_mark()))

    def remember(self, kind: str):
        key = self.number(kind)
        value = self.pop()
        self.memo[key] = value
        self.stack.append(value)

    def recall(self, kind: str):
        value = self.memo.get(self.number(kind), MARK)
        if not isinstance(value, SHAREABLE) and not (isinstance(value, tuple) and all(isinstance(v, SHAREABLE) for v in value)):
            raise Refused("a container that stands in two places, or one that nobody has stored")
        self.stack.append(value)

    def append(self, items: list):
        self.top(list).extend(items)

    def set_items(self, items: list):
        keys = items[::2]
        if len(items) % 2 or not all(isinstance(key, (str, int)) for key in keys):
            raise Refused("a dictionary whose keys are neither texts nor numbers")
        self.top(dict).update(zip(keys, items[1::2]))

    def top(self, kind):
        value = self.pop(kind)
        self.stack.append(value)
        return value

    def global_name(self):
        name = f"{self.line()} {self.line()}"
        if name not in NAMES:
            raise Refused(f"the name {shorten(name.replace(' ', '.', 1))}, which is not on the list; nothing was imported")
        self.stack.append(Name(name))

    def reduce(self):
        arguments, name = self.pop(tuple), self.pop(Name)
        function = NAMES[name.name]
        if function is None or function is ParameterDict:
            raise Refused(f"a call of {name.name.replace(' ', '.', 1)}")
        try:
            self.stack.append(function(*arguments))
        except TypeError:
            raise Refused(f"a call of {name.name.replace(' ', '.', 1)} with {len(arguments)} arguments") from None

    def new_object(self):
        arguments, name = self.pop(tuple), self.pop(Name)
        if NAMES[name.name] is not ParameterDict or arguments:
            raise Refused(f"a new {name.name.replace(' ', '.', 1)}")
        self.stack.append(ParameterDict())

    def build(self):
        state, target = self.pop(dict), self.top(dict)  # of a state dict: its `_metadata`, which says nothing about weights
        if isinstance(target, ParameterDict):
            parameters = state.get("_parameters")
            if not isinstance(parameters, dict):
                raise Refused("a ParameterDict without parameters")
            target.update(parameters)

    def persistent(self):
        """The address of a storage: ("storage", its type, key, device, count[, view]). In the old format a class of torch.nn has one too:
        ("module", the class, its file, its source code), of which only the class is looked at."""
        address = self.pop(tuple)
        if len(address) == 4 and address[0] == "module" and address[1] == Name("torch.nn.modules.container ParameterDict"):
            self.stack.append(address[1])
            return
        kinds = (str, Name, str, str, int)
        if len(address) not in (5, 6) or not all(map(isinstance, address, kinds)) or address[0] != "storage":
            raise Refused("an address that is none of a storage")
        _, kind, key, _, count = address[:5]
        if kind.name not in STORAGES or count < 0 or any(view is not None for view in address[5:]):
            raise Refused(f"a storage of {kind.name.replace(' ', '.', 1)} with {count} numbers")
        storage = Storage(STORAGES[kind.name], key, count)
        if self.storages.setdefault(key, storage) != storage:
            raise Refused(f"two meanings of the storage {shorten(key)}")
        self.stack.append(storage)


STEPS = {
    "(": Machine.mark, "t": Machine.tuple_to_mark, "X": Machine.text, "\x8a": Machine.long_number,
    "q": lambda m: m.remember("<B"), "r": lambda m: m.remember("<I"), "h": lambda m: m.recall("<B"), "j": lambda m: m.recall("<I"),
    "a": lambda m: m.append([m.pop()]), "e": lambda m: m.append(m.pop_to_mark()),
    "s": lambda m: m.set_items([m.pop(), m.pop()][::-1]), "u": lambda m: m.set_items(m.pop_to_mark()),
    "c": Machine.global_name, "R": Machine.reduce, "\x81": Machine.new_object, "b": Machine.build, "Q": Machine.persistent,
}  # fmt: skip


def instruction_name(code: str) -> str:
    """What Python calls an instruction; only for messages."""
    from pickletools import code2op

    return code2op[code].name if code in code2op else f"{ord(code):#04x}"
