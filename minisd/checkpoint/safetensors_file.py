"""safetensors files: which tensors there are, where their bytes lie, and what a file that is none really is.

    8 bytes      n, the length of the header, little-endian
    n bytes      JSON: {"conv_in.weight": {"dtype": "F16", "shape": [320, 4, 3, 3], "data_offsets": [begin, end]}, …}
    the rest     the tensors' bytes, little-endian, in C order; offsets count from here

The `safetensors` library validates header and size: offsets without holes or overlaps, shapes that fit them. What it leaves
open is closed here: a name that stands twice, and messages that say which file, which tensor and what to do.

Bytes are read, never mapped: a mapped file that shrinks while it is used kills Python. And they are never viewed in place:
the data of old official files begins at an odd byte.
"""

import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import ModelFileError, ResourceError
from .report import in_bytes, shorten

if sys.byteorder != "little":
    why = "checkpoints are read into memory as they lie on disk"
    raise ResourceError("minisd needs a little-endian machine", why, "use x86-64 or arm64")

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "uint16", "I64": "int64", "I32": "int32"}
FETCH_AGAIN = "delete it and fetch the model again: minisd fetch ORG/NAME"
PICKLE_FIX = """minisd reads no weights from pickles. Where you trust the file, torch can convert it:
        import torch; from safetensors.torch import save_file
        weights = torch.load("FILE.bin", map_location="cpu", weights_only=True)
        save_file({name: w.contiguous() for name, w in weights.items()}, "FILE.safetensors")"""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. `dtype` is the format's word, such as "BF16"; `offset` is where its bytes begin in the file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def read(self) -> np.ndarray:
        """The tensor as a new contiguous array of its own dtype; BF16, which NumPy lacks, exactly as float32."""
        if self.dtype not in DTYPES:
            what = f"{self.path}: {shorten(self.name)} is {self.dtype}"
            raise ModelFileError(what, f"minisd reads {', '.join(DTYPES)}", "convert it to F16 or F32")
        array = np.empty(self.shape, dtype=DTYPES[self.dtype])
        if array.size:
            self._fill(memoryview(array.reshape(-1)).cast("B"))
        return bfloat16_to_float32(array) if self.dtype == "BF16" else array

    def _fill(self, buffer: memoryview):
        done = 0
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset)
            while done < len(buffer):  # one call reads 2 GiB at most
                count = file.readinto(buffer[done:])
                if not count:
                    gap = len(buffer) - done
                    why = f"it ends {gap:,} bytes before the end of {shorten(self.name)}: it was cut while it was read"
                    raise ModelFileError(f"{self.path} is cut short", why, FETCH_AGAIN)
                done += count


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """A bfloat16 is the upper half of a float32.        uint16 [...] -> float32 [...], exact"""
    return np.left_shift(bits, 16, dtype="uint32").view("float32")


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Validates the file and lists its tensors, in the order of the header. Reads no tensor."""
    try:
        with safe_open(path, framework="np", backend="pread"):
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_duplicates)
    except SafetensorError as error:
        raise _refusal(path, str(error)) from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: the header is broken", str(error), FETCH_AGAIN) from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read", str(error), "check the path and its permissions") from None
    header.pop("__metadata__", None)
    if not header:
        raise ModelFileError(f"{path} holds no tensors", "its header is empty", FETCH_AGAIN)
    return {
        name: StoredTensor(path, name, info["dtype"], tuple(info["shape"]), 8 + length + info["data_offsets"][0])
        for name, info in header.items()
    }


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a writer left in the header's `__metadata__`; {} if there are none. The file was validated by `read_header`."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header.get("__metadata__") or {}


def _without_duplicates(pairs: list) -> dict:
    """A JSON object; the library lets a name stand twice, and the last one win."""
    result = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{shorten(name)} stands there twice, so it could mean either")
        result[name] = value
    return result


# ----- what a refused file really is ----------------------------------------------------------------------------------


def _refusal(path: Path, message: str) -> ModelFileError:
    """The library's refusal with the file, its likely nature, the tensor at fault, and what to do."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(512)
    if kind := foreign_kind(head):
        what = f"{path} is not a safetensors file: it is {kind[0]}"
        return ModelFileError(what, f"it begins with {head[:16]!r}", kind[1])
    if size < 8:
        why = f"it has {size} bytes: an interrupted copy"
        return ModelFileError(f"{path} is not a safetensors file", why, FETCH_AGAIN)
    length = int.from_bytes(head[:8], "little")
    detail = message.removeprefix("Error while deserializing header: ")
    why = f"safetensors says: {shorten(detail)}; the file has {size:,} bytes, its header claims {length:,}"
    if detail.startswith(("invalid offset", "invalid shape", "overflow", "incomplete metadata")):
        why = _layout_fault(path, length, size - 8 - length)
    return ModelFileError(f"{path} is broken", why, FETCH_AGAIN)


def foreign_kind(head: bytes) -> tuple[str, str] | None:
    """What a file that begins so is, and what to do about it; None if nothing comes to mind."""
    if head.startswith(b"version https://git-lfs"):
        size = re.search(rb"\nsize (\d{1,15})\n", head)
        real = f", {in_bytes(int(size[1]))}," if size else ""
        return f"a Git LFS pointer; the file itself{real} was never fetched", "run `git lfs pull` in that folder"
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page", "download the file itself, not the page that shows it, or run: minisd fetch ORG/NAME"
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive, most likely a torch .ckpt or .bin", PICKLE_FIX
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle, which can run code when it is opened", PICKLE_FIX
    return None


def _layout_fault(path: Path, length: int, body: int) -> str:
    """The first tensor whose bytes do not fit its shape or do not follow the one before; or how many bytes are missing."""
    with open(path, "rb") as file:
        header = json.loads(file.read(8 + length)[8:])  # it is typed: the library parsed it before it complained
    header.pop("__metadata__", None)
    end = 0
    for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = info["data_offsets"]
        if first != end:
            return f"the bytes of {shorten(name)} begin at {first:,}, but those before it end at {end:,}"
        kind, shape = info["dtype"], info["shape"]
        size = math.prod(shape[:64]) * np.dtype(DTYPES[kind]).itemsize if kind in DTYPES else last - first
        if last - first != size:
            needs = f"{size:,}" if size < 2**64 else "more than 2^64"
            return f"{shorten(name)} is {kind} {shorten(str(shape))}, {needs} bytes, but it is given {last - first:,}"
        end = last
    return f"its tensors take {end:,} bytes, it holds {body:,}" + (": an interrupted copy" if body < end else "")
