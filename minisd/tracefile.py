"""Traces as files: safetensors with a manifest, written while the run goes on, so that no trace is ever held in memory.

    unet.mid_block.attentions.0          the output of the first call of this layer, images as [B, C, H, W]
    unet.mid_block.attentions.0@3        of its fourth call: of a UNet the step, counted from 0
    unet.mid_block.attentions.0<context  what it was given, if inputs were asked for; equal inputs are stored once
    unet.…attn1/probs                    a quantity that is no module

The manifest, JSON in the header's metadata under "minisd", lists the layers in execution order with kind, shape, statistics and
seconds, and says what made the run. Any other safetensors file can be read as a trace too: its names are then all there is to know.
"""

import hashlib
import json
import os
import platform
import shutil
import weakref
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from .backend import to_numpy
from .checkpoint.safetensors_file import DTYPES, StoredTensor, read_header
from .errors import ModelFileError, ResourceError, UsageError
from .ops.cpu.parallel import blocks
from .statistics import statistics

FORMAT = 1
GAP = 1 << 24  # before the arrays of a large trace, so that its header fits in front of them and they are written once
CODES = {dtype: code for code, dtype in DTYPES.items() if code != "BF16"}


def key(name: str, call: int) -> str:
    """The name of a layer's output in a file."""
    return f"{name}@{call}" if call else name


def split_key(stored: str) -> tuple[str, int]:
    """"unet.conv_in@3" -> ("unet.conv_in", 3)."""
    name, at, call = stored.rpartition("@")
    return (name, int(call)) if at and call.isdecimal() else (stored, 0)


def versions() -> dict:
    from . import __version__

    return {"minisd": __version__, "numpy": np.__version__, "python": platform.python_version()}


class Recorder:
    """A listener that writes every event to `path`, or with `stats` keeps its statistics only. `rows` is the manifest so far.

    path: a .safetensors file, or with `stats` a .json file or None. Nothing appears under this name before the run is complete.
    """

    def __init__(self, patterns=("*",), path=None, *, inputs: bool = False, stats: bool = False, recipe: dict | None = None):
        self.path = None if path is None else Path(path)
        suffix = ".json" if stats else ".safetensors"
        if self.path and self.path.suffix != suffix:
            raise UsageError(f"{self.path}: a trace{' of statistics' if stats else ''} is a {suffix} file", "", f"end its name in {suffix}")
        if self.path and not self.path.parent.is_dir():
            raise UsageError(f"{self.path}: the folder {self.path.parent} does not exist", "", f"mkdir -p {self.path.parent}")
        self.patterns, self.inputs, self.stats, self.recipe = tuple(patterns), inputs, stats, recipe or {}
        self.rows, self.calls = [], {}
        self._measured = (lambda: None), {}  # the last array, held weakly, and its statistics
        self._header, self._known, self._end, self._data = {}, {}, 0, None

    def __enter__(self) -> "Recorder":
        if self.path and not self.stats:
            self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
            try:
                self._data = open(self._part, "w+b", buffering=0)
                self._data.seek(GAP)  # a hole: it takes no room on the disk
            except OSError as error:
                raise self._unwritable(error) from None
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind is None and self.path:
                self.save(self.path)
        finally:
            if self._data:
                self._data.close()
                self._part.unlink(missing_ok=True)
                self._data = None

    def __call__(self, event):
        if not any(fnmatchcase(event.name, pattern) for pattern in self.patterns):
            return
        call = self.calls.get(event.name, 0)
        self.calls[event.name] = call + 1
        y = to_numpy(event.output)
        stored = key(event.name, call)
        row = {
            "key": stored, "name": event.name, "call": call, "kind": event.kind, "shape": _official_shape(y, event.kind), "dtype": y.dtype.name,
            **self._statistics(y), "bytes": y.nbytes, "seconds": round(event.seconds, 6), "reduction": _reduction(event),
        }  # fmt: skip
        if self.inputs and event.kind != "tap" and self._data:
            row["inputs"], row["options"] = self._inputs(stored, event)
        if self._data:
            self._append(stored, _official(y, event.kind))
        self.rows.append(row)

    def _statistics(self, y: np.ndarray) -> dict:
        """A block that returns what its last layer returned is not measured again."""
        if self._measured[0]() is not y:
            self._measured = weakref.ref(y), statistics(y)
        return self._measured[1]

    def _inputs(self, stored: str, event) -> tuple[dict, dict]:
        """Stores what the layer was given. {name: key of an array, or a list of them}, {name: number or text}."""
        keys, options = {}, {}
        for name, x in [*zip(event.names, event.inputs), *event.options.items()]:
            if isinstance(x, list) and all(hasattr(a, "dtype") for a in x):
                keys[name] = [self._append_once(f"{stored}<{name}.{i}", a) for i, a in enumerate(x)]
            elif hasattr(x, "dtype"):
                keys[name] = self._append_once(f"{stored}<{name}", x)
            elif isinstance(x, (int, float, str, tuple)):
                options[name] = x
        return keys, options

    def _append_once(self, stored: str, x) -> str:
        x = _official(to_numpy(x), "")
        content = (x.shape, x.dtype.name, hashlib.blake2b(x.view("uint8") if x.ndim else x.tobytes(), digest_size=16).digest())
        if content not in self._known:
            self._known[content] = stored
            self._append(stored, x)
        return self._known[content]

    def _append(self, stored: str, x: np.ndarray):
        if x.dtype.name not in CODES:
            raise UsageError(f"{stored} is {x.dtype}", f"a trace holds {', '.join(CODES)}", "trace other layers")
        try:
            self._write(x.data.cast("B") if x.size else b"")
        except OSError as error:
            raise self._unwritable(error) from None
        self._header[stored] = {"dtype": CODES[x.dtype.name], "shape": list(x.shape), "data_offsets": [self._end, self._end + x.nbytes]}
        self._end += x.nbytes

    def _write(self, data):
        while data:  # the system may take a part of it only
            data = data[self._data.write(data) :]

    @property
    def manifest(self) -> dict:
        return {"format": FORMAT, "versions": versions(), "recipe": self.recipe, "rows": self.rows}

    def save(self, path):
        """Writes the file, whole or not at all. Called at the end of the block; without a path it may be called for the statistics."""
        path = Path(path)
        part = path.with_name(f".{path.name}.{os.getpid()}.whole.tmp")
        try:
            if self._data and self._end >= 16 * GAP and len(self._header_bytes()) <= GAP:
                self._data.seek(0)
                self._write(memoryview(self._header_bytes(GAP)))
                self._data.close()
                part = self._part
            elif self._data:
                with open(part, "wb") as file:
                    file.write(self._header_bytes())
                    self._data.seek(GAP)
                    shutil.copyfileobj(self._data, file, 1 << 20)
            else:
                part.write_text(json.dumps(self.manifest, indent=1))
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise self._unwritable(error, path) from None

    def _header_bytes(self, size: int = 0) -> bytes:
        """The header of a safetensors file with its length in front, filled up to a multiple of 8, or to `size` bytes."""
        text = json.dumps({"__metadata__": {"format": "pt", "minisd": json.dumps(self.manifest)}, **self._header}).encode()
        text = text.ljust(max(size - 8, len(text) + -len(text) % 8))
        return len(text).to_bytes(8, "little") + text

    def table(self) -> str:
        return table(self.rows)

    def _unwritable(self, error: OSError, path=None) -> ResourceError:
        what = f"{path or self.path}: could not be written"
        return ResourceError(what, error.strerror or str(error), "free some disk space, or choose another path")


def _official(x: np.ndarray, kind: str) -> np.ndarray:
    """In diffusers' layout: images [B, C, H, W]. What is no image stays as it is."""
    if x.ndim != 4 or kind == "tap":
        return np.ascontiguousarray(x)
    B, H, W, C = x.shape
    y = np.empty((B, C, H * W), dtype=x.dtype)
    for pixels, planes in zip(x.reshape(B, H * W, C), y):
        for part in blocks(H * W, 64):  # 64 pixels at a time stay in the cache: twice as fast as one transposition
            planes[:, part] = pixels[part].T
    return y.reshape(B, C, H, W)


def _official_shape(x: np.ndarray, kind: str) -> list:
    return [x.shape[i] for i in (0, 3, 1, 2)] if x.ndim == 4 and kind != "tap" else list(x.shape)


def _reduction(event) -> int:
    """How many products each value of a linear or convolutional layer sums up; 0 for the others."""
    weight = event.params.get("weight") if event.params is not None else None
    return weight[0].size if getattr(weight, "ndim", 0) >= 2 and event.kind != "embedding" else 0


def table(rows: list) -> str:
    """A line for each call of each layer: name, step, kind, shape, dtype, range, mean, deviation, seconds."""
    lines = [("name", "step", "kind", "shape", "dtype", "min", "max", "mean", "std", "seconds")]
    for r in rows:
        numbers = (f"{r[k]:.4g}" if r[k] is not None else "–" for k in ("min", "max", "mean", "std"))
        bad = "".join(f"  {r[k]} {k}" for k in ("nan", "inf") if r[k])
        lines.append((r["name"], str(r["call"]), r["kind"], "×".join(map(str, r["shape"])), r["dtype"], *numbers, f"{r['seconds']:.4f}{bad}"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)


# ----- reading -------------------------------------------------------------------------------------------------------------


class TraceFile:
    """A trace on disk: `rows` in execution order, arrays by key, each read when it is asked for.

    A file without our manifest gets rows from its names alone, in the order of its header.
    """

    def __init__(self, path):
        self.path = Path(path)
        if self.path.suffix == ".json":
            raise UsageError(f"{path} holds statistics only", "values cannot be compared without the arrays", "trace again without --stats")
        self.tensors: dict[str, StoredTensor] = read_header(self.path)
        manifest = read_manifest(self.path) or {}
        self.recipe, self.versions = manifest.get("recipe", {}), manifest.get("versions", {})
        self.rows = manifest.get("rows") or [self._row(name) for name in self.tensors]

    def _row(self, stored: str) -> dict:
        name, call = split_key(stored)
        tensor = self.tensors[stored]
        dtype = DTYPES.get(tensor.dtype, tensor.dtype)
        return {"key": stored, "name": name, "call": call, "kind": "", "shape": list(tensor.shape), "dtype": dtype}

    def __getitem__(self, stored: str) -> np.ndarray:
        try:
            return self.tensors[stored].read()
        except KeyError:
            why = "its manifest promises it: the file was changed"
            raise ModelFileError(f"{self.path}: there is no {stored}", why, "make the trace again") from None


def read_manifest(path) -> dict | None:
    """The manifest of a valid safetensors file, or None where there is none."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    text = header.get("__metadata__", {}).get("minisd")
    if text is None:
        return None
    try:
        manifest = json.loads(text)
        rows = manifest["rows"]
        named = all(isinstance(row[field], str) for row in rows for field in ("key", "name", "kind"))
        valid = manifest["format"] == FORMAT and named and all(row["call"] >= 0 for row in rows)
    except (ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        raise ModelFileError(f"{path}: its manifest is broken", "the metadata “minisd” is not what this version writes", "make the trace again")
    return manifest
