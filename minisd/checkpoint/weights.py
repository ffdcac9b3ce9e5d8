"""From stored tensors to `Params`: official names, comparison with the config, reading, layout in memory.

Everything that can be refused from names, dtypes and shapes is refused before the first tensor is read.
"""

import difflib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..backend import to_device
from ..errors import ModelFileError, NumericError, UsageError
from ..params import Params
from ..resident import HalfWeight
from .contradiction import contradictions
from .names import official_name, official_shape
from .report import FLOATS, LoadReport, shorten, some
from .safetensors_file import FETCH_AGAIN
from .shapes import component_shapes

log = logging.getLogger("minisd")

CONFIG = "config.json"
OTHER_CONFIG = "put the config.json beside the weights that belongs to them"
# What the names of other things begin with, for a file that holds nothing of the component asked for.
OTHER_KINDS = (
    ("model.diffusion_model.", "a whole checkpoint in a single file, with the names of LDM"),
    ("lora_", "a LoRA, which changes a model but is none"),
    ("unet.", "a LoRA, which changes a model but is none"),
    ("time_embedding.", "a UNet"),
    ("decoder.up_blocks.", "a VAE"),
    ("text_model.", "a text encoder"),
)


@dataclass(frozen=True)
class ArrayTensor:
    """An array in memory, read like a `StoredTensor`. Reading copies: the weights must not change with the array."""

    name: str
    array: np.ndarray
    path: Path = Path()
    offset: int = 0

    @property
    def dtype(self) -> str:
        kinds = {"float64": "F64", "float32": "F32", "float16": "F16"}
        return kinds.get(self.array.dtype.name, self.array.dtype.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def read(self) -> np.ndarray:
        return np.array(self.array, order="C")


def params_from_state_dict(tensors: dict, component: str, config, dtype: str = "float32") -> tuple[Params, LoadReport]:
    """A state dict {name: array} of diffusers or transformers, with the same checks and layout as a file."""
    stored = [ArrayTensor(name, np.asarray(x)) for name, x in tensors.items()]
    return assemble(stored, component, config, dtype=dtype, source=f"the {component}")


def assemble(
    stored: list, component: str, config, *, dtype="float32", allow_nonfinite=False, resident=None, source="", described_by=CONFIG, device="cpu"
) -> tuple[Params, LoadReport]:
    """StoredTensors or ArrayTensors of one component to Params in `dtype`, under their official names.

    2-D weights are C-contiguous. 4-D ones keep the official shape [O, I, KH, KW] but lie as [KH, KW, I, O] in memory.
    Beside the result there is never more than about one tensor in memory: each goes to `device` when it has been read.
    Raises ModelFileError, NumericError.
    resident="float16": matrices and kernels stay float16 in memory and are widened when they are read; refused where that changed a number.
    """
    if dtype not in ("float32", "float64") and (dtype != "float16" or device == "cpu"):
        why = "matrix products of NumPy are in float32 or float64"
        raise UsageError(f"weights cannot be loaded as {dtype!r}", why, "use float32 or float64")
    check_resident(resident, dtype, allow_nonfinite)
    report = LoadReport(component, dtype, resident=resident)
    found = with_official_names(stored, component, report, source)
    shapes = component_shapes(config)
    compare(found, shapes, config, report, source, described_by)

    weights = {}
    for name in sorted(shapes, key=lambda name: (found[name].path, found[name].offset)):  # in the order of the disk
        half = resident == "float16" and len(shapes[name]) > 1  # the vectors of norms and biases are few
        weights[name], bad = read_half(found[name], shapes[name], source) if half else read_weight(found[name], shapes[name], dtype)
        if bad and not allow_nonfinite:
            narrow = dtype == "float16" and found[name].dtype != "F16"
            raise NumericError(
                f"{source}: {name} holds NaN or Inf{' in float16' if narrow else ''}: {bad:,} of {weights[name].size:,} values",
                "they would spread over the whole picture",
                f"{'choose dtype float32, or ' if narrow else ''}{FETCH_AGAIN}; to study it nevertheless: allow_nonfinite=True",
                layer=f"{component}.{name.rpartition('.')[0]}",
            )
        report.add(name, found[name].dtype, weights[name].nbytes, bad)
        weights[name] = to_device(weights[name], device)
    return Params.from_state_dict({name: weights[name] for name in shapes}, path=component), report


def with_official_names(stored: list, component: str, report: LoadReport, source: str) -> dict:
    """{official name: tensor}; what is renamed or left out goes into the report."""
    found = {}
    for tensor in stored:
        name, reason = official_name(component, tensor.name)
        if name is None:
            report.dropped.setdefault(reason, []).append(tensor.name)
            continue
        if name in found:
            one, other = (f"{shorten(t.name)} in {t.path.name or 'memory'}" for t in (found[name], tensor))
            why = f"{one} and {other} both mean it"
            raise ModelFileError(f"{source}: two tensors for {shorten(name)}", why, FETCH_AGAIN)
        if reason:
            report.renamed.setdefault(reason, {})[tensor.name] = name
        found[name] = tensor
    return found


def compare(found: dict, shapes: dict, config, report: LoadReport, source: str, described_by: str = CONFIG):
    """Names, shapes and dtypes must be those that the config describes. Only unexpected names are no error.

    described_by: where the config comes from, for messages.
    """
    have = {name: official_shape(report.component, name, tensor.shape) for name, tensor in found.items()}
    report.missing = [name for name in shapes if name not in have]
    report.unexpected = [name for name in have if name not in shapes]
    wrong = [name for name in shapes if name in have and have[name] != shapes[name]]
    if len(report.missing) == len(shapes):
        raise _another_kind(have, report, source)
    if report.missing or report.unexpected or wrong:
        why = "; ".join(
            f"{described_by} says {field} = {says!r}, the weights say {seen!r}"
            for field, says, seen in contradictions(config, have)
        )
        if report.missing:
            raise _missing(len(shapes), len(found), report, source, why, described_by)
        if wrong:
            raise _misshapen(wrong, have, shapes, source, why, described_by)
        names = f"{len(report.unexpected):,} unexpected tensors are left out: {some(report.unexpected)}"
        log.warning("%s: %s%s", source, names, f" ({why})" if why else "")
    for name in shapes:
        if found[name].dtype not in FLOATS:
            raise ModelFileError(
                f"{source}: {name} is stored as {found[name].dtype}, which is not supported",
                f"weights are {', '.join(FLOATS)}; other types are quantised, and the file does not say how",
                "fetch the original F16 or F32 weights",
            )


def _another_kind(have: dict, report: LoadReport, source: str) -> ModelFileError:
    kinds = (kind for prefix, kind in OTHER_KINDS if any(name.startswith(prefix) for name in have))
    kind = next(kinds, f"its first name is {some(list(have)[:1]) or 'none'}")
    return ModelFileError(
        f"{source} holds no {report.component}",
        f"none of its {len(have):,} names fits: {kind}",
        "give each component its own file",
    )


def _missing(expected: int, count: int, report: LoadReport, source: str, why: str, described_by: str) -> ModelFileError:
    candidates = [name for name in report.unexpected if len(name) < 200][:2000]
    pairs = ((name, difflib.get_close_matches(name, candidates, n=1, cutoff=0.8)) for name in report.missing[:5])
    nearest = "; ".join(f"{match[0]} may be {name}" for name, match in pairs if match)
    return ModelFileError(
        f"{source}: {len(report.missing):,} of {expected:,} tensors are missing: {some(report.missing)}",
        why or f"the file holds {count:,} tensors{f'; {nearest}' if nearest else ''}",
        OTHER_CONFIG if why and described_by == CONFIG else FETCH_AGAIN,
    )


def _misshapen(wrong: list, have: dict, shapes: dict, source: str, why: str, described_by: str) -> ModelFileError:
    first, more = wrong[0], f" (and {len(wrong) - 1:,} more such)" if wrong[1:] else ""
    return ModelFileError(
        f"{source}: {first} is {list(have[first])}, {described_by} describes {list(shapes[first])}{more}",
        why or f"no field of {described_by} explains the difference",
        OTHER_CONFIG if why and described_by == CONFIG else FETCH_AGAIN,
    )


def check_resident(resident: str | None, dtype: str, allow_nonfinite: bool):
    """What weights may be kept as. Raises UsageError."""
    if resident not in (None, "float32", "float16"):
        raise UsageError(f"weights cannot be kept as {resident!r}", "", "use float16, or leave resident out")
    if resident == "float16" and (dtype != "float32" or allow_nonfinite):
        what = f"dtype {dtype}" if dtype != "float32" else "allow_nonfinite=True"
        raise UsageError(f"weights kept as float16 do not go with {what}", "they are widened to float32, and ∞ has no place in that", "leave resident out")
    if resident == "float32" and dtype != "float32":
        raise UsageError(f"weights of dtype {dtype} cannot be kept as float32", "", "leave resident out")


# ----- numbers --------------------------------------------------------------------------------------------------------


def read_weight(tensor, shape: tuple, dtype: str) -> tuple[np.ndarray, int]:
    """The weight in `dtype` and in the kernels' layout, and how many of its values are NaN or Inf."""
    raw = tensor.read().reshape(shape)
    bad = count_nonfinite(raw)
    weight = lay_out(raw, dtype)
    if raw.itemsize > weight.itemsize:  # a float64 beyond float32 has become Inf
        bad = count_nonfinite(weight)
    return weight, bad


def read_half(tensor, shape: tuple, source: str) -> tuple[HalfWeight, int]:
    """The weight as float16, if that changes no value, and how many of its values are NaN or Inf."""
    weight, bad = read_weight(tensor, shape, "float16")
    if tensor.dtype != "F16":
        raw = tensor.read().reshape(shape)
        bad = count_nonfinite(raw)
        if not bad and not np.array_equal(weight, raw):
            why = f"stored as {tensor.dtype}, they have more digits or a wider range, and nothing is rounded silently"
            what = f"{source}: {tensor.name} has values that float16 does not have"
            raise UsageError(what, why, "leave resident out, or fetch the model's fp16 variant")
    return HalfWeight(weight), bad


def lay_out(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Casts. A convolution's [O, I, KH, KW] keeps its shape, but lies as [KH, KW, I, O], which the kernels want."""
    with np.errstate(over="ignore"):  # what overflows is counted, and refused by name
        if raw.ndim != 4:
            return raw.astype(dtype, order="C", copy=False)
        channels_last = raw.transpose(2, 3, 1, 0)
        memory = np.empty(channels_last.shape, dtype=dtype)
        memory[...] = channels_last
        return memory.transpose(3, 2, 0, 1)


def count_nonfinite(x: np.ndarray) -> int:
    """How many values are NaN or ±Inf."""
    if x.dtype == np.float16:  # all exponent bits set: five times as fast as isfinite, which widens float16 first
        return int(np.count_nonzero((x.view("uint16") & 0x7C00) == 0x7C00))
    return x.size - int(np.count_nonzero(np.isfinite(x)))
