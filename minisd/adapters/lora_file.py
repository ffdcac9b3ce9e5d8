"""A LoRA file (Hu et al., arXiv:2106.09685): for some weights two thin matrices, A [r, in] and B [out, r], and a number alpha.

    ΔW = scale · B A        scale = alpha / r, where alpha is in the file; 1 where nobody says

Everything is checked against the shapes of a model before a weight is read: every name must belong to a weight, every A must have its B,
and both must have its shape. Convolutions are the same equation: A [r, in, KH, KW] and B [out, r, 1, 1], flattened behind r.
"""

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..checkpoint.folder import read_json
from ..checkpoint.report import FLOATS, shorten, some
from ..checkpoint.weights import ArrayTensor, count_nonfinite
from ..errors import ModelFileError, NumericError
from .file import locate, read_contents
from .lora_names import SDXL, resolve, spellings

FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "pytorch_lora_weights.bin")
ANOTHER = "use a LoRA that was trained for this model's family"
METADATA = "lora_adapter_metadata"  # diffusers >= 0.34: the configs of PEFT as JSON in the file's header
REFUSED_OPTIONS = {"use_dora": "DoRA", "lora_bias": "biases", "use_qalora": "QA-LoRA", "modules_to_save": "whole layers", "layer_replication": "repeated layers"}


@dataclass(frozen=True)
class LoraLayer:
    """A, B and scale of one weight. down [r, …], up [out, r, …]: arrays, or tensors still in the file before `read`."""

    down: object
    up: object
    scale: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def delta(self, shape: tuple, dtype) -> np.ndarray:
        """ΔW = scale · B A in the shape of the weight."""
        up, down = (x.astype(dtype).reshape(len(x), -1) for x in (self.up, self.down))
        return (self.scale * (up @ down)).reshape(shape)


@dataclass(frozen=True)
class LoraFile:
    """layers: {"unet": {name of a weight: LoraLayer}, "text_encoder": {…}}"""

    path: Path
    layers: dict

    def read(self) -> "LoraFile":
        """The same with its matrices in memory. Raises NumericError for NaN."""
        return replace(self, layers={part: {name: self._read(name, x) for name, x in layers.items()} for part, layers in self.layers.items()})

    def _read(self, name: str, layer: LoraLayer) -> LoraLayer:
        down, up = layer.down.read(), layer.up.read()
        if count_nonfinite(down) or count_nonfinite(up):
            raise NumericError(f"{self.path}: the LoRA of {name} holds NaN or Inf", "it would spread over the whole picture", "fetch the file again")
        return replace(layer, down=down, up=up)


def check_lora(path, shapes: dict, layers_per_block) -> LoraFile:
    """Finds the weight for every tensor of a file; reads nothing but names, shapes and alphas.

    path: a file, or a folder with pytorch_lora_weights.* or adapter_model.safetensors        shapes: {"unet": {tensor: shape}, "text_encoder": {…}}
    Raises ModelFileError for another method than LoRA, for names that belong to no weight, and for shapes that do not fit.
    """
    path = locate(path, FILES)
    contents, metadata = read_contents(path)
    tensors = _tensors(contents, path)
    known, found, strangers = spellings(shapes, layers_per_block), {}, []
    for name, tensor in tensors.items():
        try:
            target = resolve(name, known)
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error.what}", error.why, error.fix) from None
        if target is None:
            strangers.append(name)
            continue
        component, weight, role = target
        parts = found.setdefault((component, weight), {})
        if role in parts:
            raise ModelFileError(f"{path}: two tensors for {role} of {weight}", f"{shorten(name)} is the second one", "fetch the file again")
        parts[role] = tensor
    if strangers:
        raise _unknown(strangers, len(tensors), path)

    options = _options(path, metadata, tensors)
    layers: dict = {component: {} for component in shapes}
    for (component, weight), parts in found.items():
        layers[component][weight] = _layer(parts, weight, shapes[component][weight], options.get(component, {}), path)
    return LoraFile(path, {component: part for component, part in layers.items() if part})


def _tensors(contents, path: Path) -> dict:
    if isinstance(contents, dict) and contents:
        pairs = contents.items()
        if all(isinstance(name, str) and (isinstance(x, np.ndarray) or hasattr(x, "read")) for name, x in pairs):
            return {name: ArrayTensor(name, x) if isinstance(x, np.ndarray) else x for name, x in pairs}
    raise ModelFileError(f"{path} is no LoRA", "it must hold tensors under names", "check the file")


def _unknown(names: list, total: int, path: Path) -> ModelFileError:
    if any(SDXL.search(name) for name in names):
        return ModelFileError(f"{path} is a LoRA for SDXL", f"it has tensors such as {some(names, 1)}", ANOTHER)
    what = f"{path}: {len(names):,} of {total:,} tensors belong to no weight of this model: {some(names)}"
    return ModelFileError(what, "a LoRA of another architecture, a dialect that is not known, or no LoRA at all; nothing is left out silently", ANOTHER)


def _layer(parts: dict, weight: str, shape: tuple, options: dict, path: Path) -> LoraLayer:
    """A, B and scale of one weight, if their shapes make its ΔW."""
    if missing := [role for role in ("down", "up") if role not in parts]:
        have = " and ".join(parts)
        raise ModelFileError(f"{path}: the LoRA of {weight} has no {missing[0]}", f"it has only {have}", "fetch the file again")
    down, up = parts["down"], parts["up"]
    for x in (down, up):
        if x.dtype not in FLOATS:
            raise ModelFileError(f"{path}: {shorten(x.name)} is stored as {x.dtype}", f"a LoRA is {', '.join(FLOATS)}", "fetch another version of the file")
    squeezed = [tuple(x.shape[:2]) if x.shape[2:] == (1, 1) else tuple(x.shape) for x in (down, up)]  # a 1×1 convolution is a matrix
    target = shape[:2] if shape[2:] == (1, 1) else shape
    rank = down.shape[0] if down.shape else 0
    if not rank or squeezed != [(rank, *target[1:]), (target[0], rank)]:
        why = f"W is {list(shape)}, A {list(down.shape)}, B {list(up.shape)}; they must be [r, in, …] and [out, r]"
        raise ModelFileError(f"{path}: the LoRA of {weight} does not fit", why, ANOTHER)
    return LoraLayer(down, up, _scale(parts.get("alpha"), rank, weight, options, path))


def _scale(alpha, rank: int, weight: str, options: dict, path: Path) -> float:
    """alpha / r; of rank-stabilised LoRA alpha / √r. alpha from the file, from PEFT's config, or r."""
    if alpha is not None:
        alpha = float(alpha.read().item()) if math.prod(alpha.shape) == 1 else math.nan
    else:
        alpha = _by_pattern(options.get("alpha_pattern") or {}, weight, options.get("lora_alpha", rank), path)
    if not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise ModelFileError(f"{path}: alpha of {weight} is no finite number", "it scales the whole change", "fetch the file again")
    return alpha / (math.sqrt(rank) if options.get("use_rslora") else rank)


def _by_pattern(patterns: dict, weight: str, default, path: Path):
    """PEFT's alpha_pattern: {end of a module's name: alpha}; "^name" is the whole name. Patterns of a file are not run as expressions."""
    module = weight.removesuffix(".weight")
    for pattern, value in patterns.items():
        if not re.fullmatch(r"\^?[\w.]+", pattern):
            raise ModelFileError(f"{path}: the alpha_pattern {shorten(pattern)} is not supported", "only names are, no expressions", "save it with plain names")
        names = {module, module.removeprefix("text_model.")}
        if any(name == pattern.removeprefix("^") or (pattern[0] != "^" and name.endswith(f".{pattern}")) for name in names):
            return value
    return default


def _options(path: Path, metadata: dict, tensors: dict) -> dict:
    """PEFT's configs by component, from the file's header or from the adapter_config.json beside it."""
    options: dict = {"unet": {}, "text_encoder": {}}
    if METADATA in metadata:
        try:
            flat = json.loads(metadata[METADATA])
            for name, value in flat.items():
                component, _, option = name.partition(".")
                options.setdefault(component, {})[option] = value
        except (ValueError, RecursionError, AttributeError) as error:
            raise ModelFileError(f"{path}: {METADATA} in its header is broken", shorten(str(error)), "fetch the file again") from None
    elif any(name.startswith("base_model.model.") for name in tensors):
        config = read_json(path.parent / "adapter_config.json")  # without it nobody knows alpha
        options = {component: config for component in options}
    for component, given in options.items():
        if bad := [name for name in REFUSED_OPTIONS if given.get(name)]:
            raise ModelFileError(f"{path}: its config says {bad[0]}", f"{REFUSED_OPTIONS[bad[0]]} are not implemented", "use a plain LoRA")
        if not isinstance(given.get("alpha_pattern") or {}, dict):
            raise ModelFileError(f"{path}: alpha_pattern of the {component} is no table", "", "fetch the file again")
    return options
