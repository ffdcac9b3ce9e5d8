"""Files of `torch.save` (.bin, .pt, .pth, .ckpt), read without torch and without running anything in them.

    zip (torch >= 1.6)   <stem>/data.pkl, the program        <stem>/data/0, /1, …: the bytes of each storage, not compressed
    legacy               three pickles (magic number, version, machine), the program, the list of its storages, and for each of
                         them its length (int64) and its bytes

The program is run by the machine of `pickles.py`, which can make nothing but dicts, lists, texts, numbers and tensors. `read_torch_file`
reads the tensors, `locate_tensors` only says where they lie, for checkpoints of gigabytes. Refused here:
compressed or overlapping members (a zip bomb needs one of the two), paths, two members of one name, storages that are not exactly as
long as the program says, and tensors that together have more bytes than the file.
"""

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import ModelFileError
from .pickles import Machine, Refused, Storage, Tensor
from .report import shorten
from .safetensors_file import StoredTensor, bfloat16_to_float32, foreign_kind

MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
MAX_PROGRAM = 16_000_000  # bytes; a LoRA of 2000 tensors has 300 kB
MAX_LEGACY_FILE = 2_000_000_000  # bytes; it is read as a whole
MAX_DEPTH = 50
FIX = "get it as .safetensors, or convert it where you trust it: torch.load(FILE, weights_only=True), then safetensors.torch.save_file"


def read_torch_file(path):
    """What `torch.save` wrote, with arrays for tensors (bfloat16 as float32, exactly). No code is run. Raises ModelFileError."""
    return _read(Path(path), _with_arrays)


def locate_tensors(path):
    """The same with a `StoredTensor` for each tensor, whose numbers are read later, one at a time; in the legacy format with arrays.

    Unlike arrays read by `read_torch_file` their bytes are not held against the archive's checksums.
    """
    return _read(Path(path), _with_places)


def _read(path: Path, fill: Callable):
    try:
        with open(path, "rb") as file:
            head = file.read(512)
        if head.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(path) as archive:
                return fill(archive, *_run_zip(archive, os.path.getsize(path)))
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


def _run_zip(archive: zipfile.ZipFile, size: int) -> tuple:
    """What the program builds, and the member of each storage: {key: (Storage, ZipInfo)}."""
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
    found = {}
    for key, storage in machine.storages.items():
        member = members.get(f"{stem}data/{key}")
        if member is None or member.file_size != storage.nbytes:
            raise Refused(f"no storage {shorten(key)} of {storage.nbytes:,} bytes")
        found[key] = storage, member
    return value, found


def _with_arrays(archive: zipfile.ZipFile, value, storages: dict):
    return Arrays({key: archive.read(member) for key, (_, member) in storages.items()}).fill(value)


def _with_places(archive: zipfile.ZipFile, value, storages: dict):
    """The data of a member follow its own header, whose length only the header itself knows."""
    places, spans = {}, []
    for key, (storage, member) in storages.items():
        archive.fp.seek(member.header_offset)
        head = archive.fp.read(30)
        if len(head) < 30 or not head.startswith(b"PK\x03\x04"):
            raise Refused(f"no member where the archive says that {shorten(member.filename)} begins")
        places[key] = member.header_offset + 30 + sum(struct.unpack_from("<HH", head, 26))
        spans.append((places[key], places[key] + storage.nbytes))
    spans.sort()
    if any(begin < end for (_, end), (begin, _) in zip(spans, spans[1:])) or (spans and spans[-1][1] > archive.start_dir):
        raise Refused("members that overlap")
    return Places(Path(archive.filename), places).fill(value)


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


class Places(Arrays):
    """Puts `StoredTensor`s there instead, which know their place in the file."""

    def __init__(self, path: Path, places: dict):
        super().__init__({})
        self.path, self.places = path, places  # {key: where the storage begins}

    def array(self, tensor: Tensor) -> StoredTensor:
        step, steps = 1, []
        for n in reversed(tensor.shape):
            steps.insert(0, step if n > 1 and 0 not in tensor.shape else 0)
            step *= n
        if tensor.stride != tuple(steps):
            raise Refused("a tensor that is not contiguous")
        kind = tensor.storage.dtype
        offset = self.places[tensor.storage.key] + tensor.offset * (tensor.storage.nbytes // max(tensor.storage.count, 1))
        return StoredTensor(self.path, "", kind.replace("bfloat", "BF").replace("float", "F").replace("int", "I"), tensor.shape, offset)
