"""Reading and writing tests/golden/<model>.npz: what torch's modules were given and gave, for tests that run without torch.

A file holds for each recorded module
    inputs   its own float32 inputs, whole (equal arrays are stored once)
    truth    torch's float64 result on them, at up to 512 positions drawn at random from the module's name, and where torch errs most
    plain    torch's float32 result at the same positions
and the config and the tensor shapes of the model; its weights are made from their names (tests/tiny_models.py).
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from minisd import ops
from tests.layer_table import compute
from tests.numerics import assert_close_f64, assert_faithful
from tests.tiny_models import CONFIGS, build, random

FOLDER = Path(__file__).parent / "golden"
POSITIONS = 512


@dataclass(frozen=True)
class Record:
    """One module: inputs by the reference's argument names; shapes, positions, truth and plain one each for each output."""

    path: str
    kind: str
    inputs: dict
    shapes: list
    positions: list
    truth: list
    plain: list


def choose_positions(path: str, shape: tuple, outputs: int, worst: int) -> np.ndarray:
    """Which elements of a flat output are kept, in ascending order: all of a small one, and always the one where torch errs most."""
    size = math.prod(shape)
    keep = random(path).choice(size, min(size, POSITIONS // outputs), replace=False)
    return np.unique([*keep, worst])


class Golden:
    """A golden file, opened: `config`, `shapes`, `records` by path, `extras` (arrays by name), and the model in both dtypes."""

    def __init__(self, name: str, file: Path | None = None):
        with np.load(file or FOLDER / f"{name}.npz", allow_pickle=False) as npz:
            arrays = dict(npz)
        header = json.loads(arrays.pop("header").tobytes())
        self.name, self.config, self.shapes, self.note = name, header["config"], header["shapes"], header["note"]
        pools = {pool: arrays.pop(pool) for pool in ("inputs", "truth", "plain")}
        self.extras, self.records, at = arrays, {}, 0
        for path, kind, inputs, outputs in header["records"]:
            positions = [choose_positions(path, shape, len(outputs), worst) for shape, worst in outputs]
            edges = np.cumsum([at, *map(len, positions)])
            truth, plain = ([pools[p][a:b] for a, b in zip(edges, edges[1:])] for p in ("truth", "plain"))
            inputs = {key: _unpack(value, pools["inputs"]) for key, value in inputs.items()}
            self.records[path] = Record(path, kind, inputs, [tuple(shape) for shape, _ in outputs], positions, truth, plain)
            at = edges[-1]

    def model(self, dtype: str):
        return _model(self, dtype)


@cache
def golden(name: str) -> Golden:
    return Golden(name)


@cache
def _model(golden: Golden, dtype: str):
    if dtype == "float64":
        return _model(golden, "float32").astype("float64")
    return build(golden.name, golden.config, golden.shapes)


def write(file: Path, *, note: str, config: dict, shapes: dict, records: list, extras: dict | None = None):
    """records: (path, kind, inputs, truth arrays, plain arrays) with whole outputs."""
    pool, known, listed, truths, plains = [], {}, [], [], []
    for path, kind, inputs, truth, plain in records:
        packed, outputs = {key: _pack(value, pool, known) for key, value in inputs.items()}, []
        for exactly, y in zip(truth, plain, strict=True):
            worst = int(np.argmax(np.abs(y - exactly)))
            keep = choose_positions(path, y.shape, len(plain), worst)
            truths.append(exactly.ravel()[keep])
            plains.append(y.ravel()[keep])
            outputs.append((y.shape, worst))
        listed.append((path, kind, packed, outputs))
    header = dict(note=note, config=config, shapes=shapes, records=listed)
    np.savez_compressed(
        file,
        header=np.frombuffer(json.dumps(header).encode(), dtype="uint8"),
        inputs=np.concatenate(pool),
        truth=np.concatenate(truths),
        plain=np.concatenate(plains),
        **(extras or {}),
    )


def _pack(value, pool: list, known: dict):
    """A float array becomes its place in the pool of inputs; anything else is small and goes into the header."""
    if isinstance(value, (tuple, list)):
        return {"tuple": [_pack(v, pool, known) for v in value]}
    if not isinstance(value, np.ndarray):
        return {"value": value}
    if value.dtype != np.float32:
        return {"array": value.tolist(), "dtype": value.dtype.name}
    key = (value.shape, value.tobytes())
    if key not in known:
        known[key] = sum(len(a) for a in pool)
        pool.append(value.ravel())
    return {"at": known[key], "shape": value.shape}


def _unpack(packed: dict, pool: np.ndarray):
    if "tuple" in packed:
        return tuple(_unpack(v, pool) for v in packed["tuple"])
    if "array" in packed:
        return np.array(packed["array"], dtype=packed["dtype"])
    if "value" in packed:
        return packed["value"]
    shape = packed["shape"]
    return pool[packed["at"] :][: math.prod(shape)].reshape(shape)


# --------------------------------------------------------------------------------------------------- the comparison


def check(golden: Golden, path: str, dtypes: tuple = ("float32", "float64")):
    """Our layer, fed the reference's own inputs, keeps the project's rule in float32 and equals the truth in float64."""
    record = golden.records[path]
    name = f"{golden.name}: {record.kind} {path}"
    for dtype in dtypes:
        with ops.using(profile="exact"):  # fast rungs have bounds of their own
            ours = compute(golden.model(dtype), record.kind, path, cast(record.inputs, dtype))
        assert [y.shape for y in ours] == record.shapes, f"{name}: shapes {[y.shape for y in ours]}, torch's are {record.shapes}"
        for y, keep, truth, plain in zip(ours, record.positions, record.truth, record.plain):
            if dtype == "float32":
                assert_faithful(y.ravel()[keep], truth, plain, name=name)
            else:
                assert_close_f64(y.ravel()[keep], truth, name=name)


def cast(x, dtype: str):
    """Every float array in x (a dict, a tuple or an array) in this dtype."""
    if isinstance(x, dict):
        return {key: cast(value, dtype) for key, value in x.items()}
    if isinstance(x, tuple):
        return tuple(cast(value, dtype) for value in x)
    return x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x


def every_record_of(*kinds: str):
    """`@every_record_of("Conv2d")`: the test gets `name, path` of each recorded module of these kinds; its id names the module."""
    found = [
        pytest.param(name, path, id=f"{name}-{path or record.kind}")
        for name in CONFIGS
        for path, record in golden(name).records.items()
        if record.kind in kinds
    ]
    return pytest.mark.parametrize("name, path", found)
