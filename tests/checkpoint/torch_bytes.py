"""Files of `torch.save`, made byte by byte without torch: good ones, and the raw material of hostile ones."""

import struct
import zipfile
from pathlib import Path

import numpy as np

KINDS = {"float32": "FloatStorage", "float16": "HalfStorage", "uint16": "BFloat16Storage", "float64": "DoubleStorage",
         "int64": "LongStorage", "int32": "IntStorage"}  # fmt: skip
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
ORDERED = b"ccollections\nOrderedDict\n)R"
MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


def program(value, storages: dict | None = None, legacy: bool = False) -> bytes:
    """The whole pickle of a value, as torch writes it but for the memo; fills `storages` with {key: array}."""
    return b"\x80\x02" + encode(value, {} if storages is None else storages, legacy) + b"."


def encode(value, storages: dict, legacy: bool = False) -> bytes:
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        size = value.bit_length() // 8 + 1
        return b"K" + bytes([value]) if 0 <= value < 256 else b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, dict):
        return b"}(" + b"".join(encode(x, storages, legacy) for pair in value.items() for x in pair) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(encode(x, storages, legacy) for x in value) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(encode(x, storages, legacy) for x in value) + b"t"
    return tensor(value, storages, legacy)


def tensor(x: np.ndarray, storages: dict, legacy: bool = False, *, count=None, offset=0, shape=None, stride=None, key=None) -> bytes:
    """A call of _rebuild_tensor_v2; keywords make it lie about itself."""
    key = str(len(storages)) if key is None else key
    storages[key] = x
    address = storage_address(KINDS[x.dtype.name], key, x.size if count is None else count, legacy)
    shape = x.shape if shape is None else shape
    stride = tuple(step // x.itemsize for step in x.strides) if stride is None else stride
    return REBUILD + b"(" + address + b"".join(encode(v, {}) for v in (offset, shape, stride, False)) + ORDERED + b"tR"


def storage_address(kind: str, key: str, count: int, legacy: bool = False) -> bytes:
    view = b"N" if legacy else b""
    return b"(" + encode("storage", {}) + f"ctorch\n{kind}\n".encode() + encode(key, {}) + encode("cpu", {}) + encode(count, {}) + view + b"tQ"


def write_zip(path: Path, value=None, *, code: bytes | None = None, storages: dict | None = None, stem="archive", compression=zipfile.ZIP_STORED,
              byteorder=b"little", more=()) -> Path:  # fmt: skip
    """value, or a ready program with its storages {key: array}; more: (name, bytes) of further members."""
    storages = {} if storages is None else storages
    code = program(value, storages) if code is None else code
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in [("data.pkl", code), ("byteorder", byteorder), *((f"data/{k}", v.tobytes("A")) for k, v in storages.items())]:
            archive.writestr(f"{stem}/{name}", data)
        for name, data in more:
            archive.writestr(name, data)
    return path


def write_legacy(path: Path, value, *, keys=None, cut=0, little_endian=True, magic=MAGIC) -> Path:
    storages: dict = {}
    code = program(value, storages, legacy=True)
    system = program({"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {"int": 4}})
    data = magic + program(1001) + system + code + program(sorted(storages) if keys is None else keys)
    for key in sorted(storages):
        data += struct.pack("<q", storages[key].size) + storages[key].tobytes("A")
    path.write_bytes(data[: len(data) - cut])
    return path
