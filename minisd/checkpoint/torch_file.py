"""Files of `torch.save` (.bin, .pt, .pth, .ckpt), read without torch and without running anything in them.

    zip (torch >= 1.6)   <stem>/data.pkl, the program        <stem>/data/0, /1, …: the bytes of each storage, not compressed
    legacy               three pickles (magic number, version, machine), the program, the list of its storages, and for each of
                         them its length (int64) and its bytes

The program is run by the machine of `pickles.py`, which can make nothing but dicts, lists, texts, numbers and tensors. Refused here:
compressed or overlapping members (a zip bomb needs one of the two), paths, two members of one name, storages that are not exactly as
long as the program says, and tensors that together have more bytes than the file.
"""

import os
import zipfile
from pathlib import Path

import numpy as np

from ..errors import ModelFileError
from .pickles import Machine, Refused, Storage, Tensor
from .report import shorten
from .safetensors_file import bfloat16_to_float32, foreign_kind

MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
MAX_PROGRAM = 16_000_000  # bytes; a LoRA of 2000 tensors has 300 kB
MAX_LEGACY_FILE = 2_000_000_000  # bytes; it is read as a whole
MAX_DEPTH = 50
FIX = "get it as .safetensors, or convert it where you trust it: torch.load(FILE, weights_only=True), then safetensors.torch.save_file"


def read_torch_file(path):
    """What `torch.save` wrote, with arrays for tensors (bfloat16 as float32, exactly). No code is run. Raises ModelFileError."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(512)
        if head.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(path) as archive:
                return _read_zip(archive, os.path.getsize(path))
        if head.startswith(b"\x80"):
            return _read_legacy(path)
    except Refused as refused:
        why = "it could run code; minisd reads only what torch writes for tensors, and has run nothing"
        raise ModelFileError(f"{path} is refused: it holds {refused}", why, FIX) from None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        raise ModelFileError(f"{path} is broken", f"its zip archive cannot be read: {shorten(str(error))}", "fetch it again") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read", error.strerror or str(error), "check the path and its permissions") from None
    kind = foreign_kind(head)
    raise ModelFileError(f"{path} is no file of torch", f"it is {kind[0]}" if kind else f"it begins with {head[:16]!r}", "check the path")


def _read_zip(archive: zipfile.ZipFile, size: int):
    members = {member.filename: member for member in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise Refused("two members of one name")
    for name, member in members.items():
        if not name.isprintable() or name.startswith("/") or {"\\", ":"} & set(name) or ".." in name.split("/"):
            raise Refused(f"a member called {shorten(name)}")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise Refused(f"the member {shorten(name)} compressed or encrypted, which torch never does")
    if sum(member.file_size for member in members.values()) > size:
        raise Refused("members that overlap")
    programs = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(programs) != 1:
        raise Refused(f"{len(programs)} programs data.pkl where one is expected")
    if members[programs[0]].file_size > MAX_PROGRAM:
        raise Refused(f"a program of {members[programs[0]].file_size:,} bytes")
    stem = programs[0].removesuffix("data.pkl")
    if f"{stem}byteorder" in members and archive.read(f"{stem}byteorder") != b"little":
        raise Refused("the numbers of a big-endian machine")

    machine = Machine(archive.read(programs[0]))
    value = machine.run()
    data = {}
    for key, storage in machine.storages.items():
        member = members.get(f"{stem}data/{key}")
        if member is None or member.file_size != storage.nbytes:
            raise Refused(f"no storage {shorten(key)} of {storage.nbytes:,} bytes")
        data[key] = archive.read(member)
    return Arrays(data).fill(value)


def _read_legacy(path: Path):
    if os.path.getsize(path) > MAX_LEGACY_FILE:
        raise Refused("more than 2 GB in the old format")
    data = path.read_bytes()
    run = _programs(data)
    if next(run)[0] != MAGIC:
        raise Refused("a pickle that is no file of torch")
    (version, _), (system, _), (value, maker), (keys, last) = (next(run) for _ in range(4))
    storages, place = maker.storages, last.place
    if version != LEGACY_VERSION or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("another version of the format, or the numbers of a big-endian machine")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise Refused("a list of storages that is not the tensors'")
    found = {}
    for key in keys:
        begin, end = place + 8, place + 8 + storages[key].nbytes
        if data[place:begin] != storages[key].count.to_bytes(8, "little") or end > len(data):
            raise Refused(f"no storage {shorten(key)} of {storages[key].nbytes:,} bytes")
        found[key], place = data[begin:end], end
    return Arrays(found).fill(value)


def _programs(data: bytes):
    """One pickle behind the other: (what it builds, the machine that ran it)."""
    place = 0
    while True:
        machine = Machine(data, place)
        yield machine.run(), machine
        place = machine.place


class Arrays:
    """Puts arrays where the machine left `Tensor`s."""

    def __init__(self, data: dict):
        self.data = data  # {key: bytes}
        self.known = {}  # {id of a Tensor: its array}: a tensor that stands in two places is one array
        self.budget = sum(map(len, data.values()))

    def fill(self, value, depth: int = 0):
        """The same structure with an array for each tensor."""
        if depth > MAX_DEPTH:
            raise Refused("structures nested too deeply")
        if isinstance(value, dict):
            return {key: self.fill(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.fill(item, depth + 1) for item in value)
        if isinstance(value, Tensor):
            if id(value) not in self.known:
                self.known[id(value)] = self.array(value)
            return self.known[id(value)]
        if isinstance(value, Storage):
            raise Refused("a storage without a tensor")
        return value

    def array(self, tensor: Tensor) -> np.ndarray:
        kind = "uint16" if tensor.storage.dtype == "bfloat16" else tensor.storage.dtype
        stored = np.frombuffer(self.data[tensor.storage.key], np.dtype(kind).newbyteorder("<"))[tensor.offset :]
        strides = [stored.itemsize * step for step in tensor.stride]
        view = np.lib.stride_tricks.as_strided(stored, tensor.shape, strides, writeable=False)
        self.budget -= view.nbytes
        if self.budget < 0:
            raise Refused("tensors that together have more bytes than the file")
        copy = np.array(view, dtype=kind, order="C")
        return bfloat16_to_float32(copy) if tensor.storage.dtype == "bfloat16" else copy
