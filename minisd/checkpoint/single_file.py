"""One file with a whole model, under the names of LDM, the code of the paper: v1-5-pruned-emaonly.safetensors and its many descendants.

    model.diffusion_model.*        the UNet        first_stage_model.*        the VAE
    cond_stage_model.*, conditioner.embedders.0.*        the text encoder: CLIP in SD 1.x, OpenCLIP in SD 2.x and SD-Turbo

There are no configs in it: which family it is, and how wide, is read off names and shapes; the rest is in the tables of `families.py`. `names.py`
has the names. A fused q, k, v is cut where it lies in the file, so that weights are read one at a time, as from a folder.
A .ckpt is read by the machine of `pickles.py`, which runs nothing. CLIP's vocabulary is not in the file either: see `tokenizer_beside`.
"""

import hashlib
import logging
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..config import CLIPTextConfig, UNetConfig, VAEConfig
from ..errors import ModelFileError, UsageError
from ..params import Params
from .families import FAMILIES, PARTS, SCHEDULER, Family, config_of, model_folder, refusal, size_of
from .names import COMPONENTS, from_ldm, why_left_out
from .report import LoadReport
from .safetensors_file import DTYPES, StoredTensor, read_header
from .torch_file import locate_tensors
from .variants import PICKLES
from .weights import ArrayTensor, assemble

log = logging.getLogger("minisd")

PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class SingleFile:
    """A recognised checkpoint. Only the header has been read.

    scheduler: a scheduler_config.json        stored: {component: its tensors under official names}
    renamed: {component: {LDM's name: official ones}}        dropped: {component: {reason: names}}        note: what was guessed, for the user
    """

    path: Path
    family: Family
    scheduler: dict
    stored: dict
    renamed: dict
    dropped: dict
    note: str

    @property
    def index(self) -> dict:
        """As a model_index.json would have it."""
        pipeline = "StableDiffusionInpaintPipeline" if "inpainting" in self.family.name else "StableDiffusionPipeline"
        classes = {component: name for component, (_, name) in PARTS.items()}
        return {"_class_name": pipeline, **classes, "tokenizer": "CLIPTokenizer", "scheduler": self.scheduler["_class_name"]}

    def require(self, *components: str):
        """Raises ModelFileError if one of them is not in the file."""
        for component in components:
            if self.stored[component]:
                continue
            spoken, name = PARTS[component]
            there = " and ".join(PARTS[c][0] for c in COMPONENTS if self.stored[c])
            fix = (
                "take it from a whole model of its family:\n"
                f"        {component} = {name}.from_pretrained({self.family.repository!r})\n"
                f"        StableDiffusionPipeline.from_single_file({str(self.path)!r}, {component}={component})"
            )
            why = f"it has the {there} only; such files are meant to be used with the {spoken} of another"
            raise ModelFileError(f"{self.path} holds no {spoken}", why, fix)

    def config(self, component: str) -> UNetConfig | VAEConfig | CLIPTextConfig:
        """The family's config, as wide as the tensors are."""
        self.require(component)
        return config_of(component, {t.name: t.shape for t in self.stored[component]}, self.family, where=str(self.path))

    def load(self, component: str, **options) -> tuple[UNetConfig | VAEConfig | CLIPTextConfig, Params, LoadReport]:
        """Config, weights and report of "unet", "vae" or "text_encoder", checked as those of a folder are. options: as `assemble` takes them"""
        config = self.config(component)
        if component == "unet" and self.note:
            log.warning("%s: %s", self.path.name, self.note)
        described_by = f"the config of {self.family.name}"
        params, report = assemble(self.stored[component], component, config, source=str(self.path), described_by=described_by, **options)
        report.files = [self.path.name]
        report.renamed["LDM's names"] = self.renamed[component]
        report.dropped |= self.dropped[component]
        log.info("%s", report.headline)
        return config, params, report


def open_single_file(path, prediction_type: str | None = None) -> SingleFile:
    """Recognises a checkpoint. prediction_type: "epsilon" or "v_prediction", where the file's own hints are wrong.

    Raises ModelFileError for a broken file and, by name, for everything that is no Stable Diffusion 1.x or 2.x.
    """
    path = Path(path)
    if prediction_type not in (None, *PREDICTIONS):
        raise UsageError(f"prediction_type is {prediction_type!r}", "", f"use one of {', '.join(PREDICTIONS)}")
    folder = model_folder(path)
    if folder and path.suffix in (".json", ".txt"):
        raise ModelFileError(f"{path} is a part of a model", "a model is a whole folder", f"give the folder {folder}")
    tensors, global_step = read_tensors(path)
    if (found := refusal(path, tensors)) is not None:
        raise found
    stored, renamed, dropped = ({component: kind() for component in COMPONENTS} for kind in (list, dict, dict))
    for name, targets in from_ldm(tensors).items():
        for i, target in enumerate(targets):
            component, _, official = target.partition(".")
            stored[component].append(_part(tensors[name], official, i, len(targets)))
        if targets:
            renamed[component][name] = ", ".join(target.partition(".")[2] for target in targets)
        else:
            component, reason = why_left_out(name)
            dropped[component].setdefault(reason, []).append(name)
    family, prediction, note = _recognise(path, tensors, global_step, prediction_type)
    return SingleFile(path, family, {**SCHEDULER, **family.scheduler, "prediction_type": prediction}, stored, renamed, dropped, note)


def read_tensors(path: Path) -> tuple[dict, int | None]:
    """{name: StoredTensor or ArrayTensor} of a .safetensors or .ckpt, and the training step if the file has it. Reads no numbers."""
    with open_or_explain(path) as file:
        head = file.read(9)
    if not path.name.endswith(PICKLES) or head[8:] == b"{":
        return read_header(path), None
    value = locate_tensors(path)
    step = value.get("global_step") if isinstance(value, dict) else None
    while isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    arrays = value if isinstance(value, dict) else {}
    tensors = {name: _named(x, name) for name, x in arrays.items() if isinstance(name, str) and isinstance(x, (StoredTensor, np.ndarray))}
    if not tensors:
        raise ModelFileError(f"{path} holds no tensors", "it has neither a state_dict nor tensors of its own", "check the path")
    return tensors, step if type(step) is int else None


def open_or_explain(path: Path):
    try:
        return open(path, "rb")
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read", error.strerror or str(error), "check the path and its permissions") from None


def file_sha256(path) -> str:
    """What a checkpoint is known by; of 4 GB it takes some seconds, once."""
    stat = Path(path).stat()
    return _sha256(Path(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _sha256(path: Path, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ----- which family --------------------------------------------------------------------------------------------------------


def _recognise(path: Path, tensors: dict, global_step: int | None, asked: str | None) -> tuple[Family, str, str]:
    """The family, what its UNet predicts, and a note if that was guessed."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    inpainting = " inpainting" * (size_of(shapes, "model.diffusion_model.input_blocks.0.0.weight", 1, 4) == 9)
    if any(name.startswith("conditioner.embedders.0.model.") for name in tensors):
        key = "turbo"
    elif len(shapes.get("model.diffusion_model.input_blocks.1.1.proj_in.weight", ())) != 2:
        key = f"1{inpainting}"
    elif inpainting:
        key = "2 inpainting"
    else:
        prediction, note = (asked, "") if asked else _prediction(path, tensors, global_step)
        return FAMILIES["2 v" if prediction == "v_prediction" else "2"], prediction, note
    return FAMILIES[key], asked or "epsilon", ""


STATISTIC = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
THRESHOLD = 0.09


def _prediction(path: Path, tensors: dict, global_step: int | None) -> tuple[str, str]:
    """What a text-to-image SD 2.x predicts, which no name or shape says.

    The .yaml beside the file says it, as A1111 reads it. A step of 875000 is 2-base, as in diffusers' `_legacy_load_scheduler`. Otherwise ε
    and v are told apart as in ComfyUI's `SD20`, by the spread of one bias. (diffusers' `from_single_file` takes v for all.)
    """
    yaml = path.with_suffix(".yaml")
    if yaml.is_file():
        with open_or_explain(yaml) as file:
            text = file.read(1_000_000).decode("utf-8", "replace")
        return ("v_prediction" if re.search(r"^\s*parameterization:\s*[\"']?v\b", text, re.MULTILINE) else "epsilon"), ""
    if global_step == 875000:
        return "epsilon", ""
    bias = tensors[STATISTIC] if STATISTIC in tensors and len(tensors[STATISTIC].shape) == 1 else None
    spread = float(np.std(bias.read().astype("float64"))) if bias and bias.shape[0] else float("nan")
    prediction = "v_prediction" if spread > THRESHOLD else "epsilon"
    other = "eps" if prediction == "v_prediction" else "v"
    return prediction, (
        f"it does not say what its UNet predicts; taken for {prediction}, since σ = {spread:.3f} of {STATISTIC.partition('diffusion_model.')[2]}. "
        f"If pictures stay noise, set prediction_type=, or put a line  parameterization: \"{other}\"  into {yaml.name} beside it"
    )


# ----- tensors -------------------------------------------------------------------------------------------------------------


def _named(x, name: str):
    return replace(x, name=name) if isinstance(x, StoredTensor) else ArrayTensor(name, x)


def _part(tensor, name: str, i: int, count: int):
    """The i-th of `count` equal parts along the rows, under its own name: a span of the bytes, since rows lie one behind the other."""
    if count == 1 or not tensor.shape or tensor.shape[0] % count:  # what cannot be cut is refused later, by its shape
        return replace(tensor, name=name)
    rows = tensor.shape[0] // count
    if isinstance(tensor, ArrayTensor):
        return ArrayTensor(name, tensor.array[i * rows : (i + 1) * rows])
    shape = (rows, *tensor.shape[1:])
    size = int(np.prod(shape, dtype=object)) * np.dtype(DTYPES.get(tensor.dtype, "uint8")).itemsize
    return replace(tensor, name=name, shape=shape, offset=tensor.offset + i * size)


def tokenizer_beside(path: Path) -> Path | None:
    """The folder with CLIP's vocabulary beside a checkpoint: its own, or tokenizer/ in it."""
    folders = (path.parent, path.parent / "tokenizer")
    return next((folder for folder in folders if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()), None)
