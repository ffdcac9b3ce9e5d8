"""Model folders in diffusers' layout. Nothing in them is believed: closed tables of names, no code, no pickle, no way out.

    model_index.json                          which class each part has
    scheduler/scheduler_config.json           tokenizer/vocab.json, merges.txt, …
    unet/config.json                          unet/diffusion_pytorch_model[.fp16].safetensors
    vae/config.json                           vae/diffusion_pytorch_model[.fp16].safetensors
    text_encoder/config.json                  text_encoder/model[.fp16].safetensors

What is asked for here is answered by `single_file.py` where the model is one file.
"""

import json
import logging
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import CLIPTextConfig, UNetConfig, VAEConfig
from ..errors import ModelFileError
from ..params import Params
from .hub import fetch_tokenizer, resolve
from .report import LoadReport, shorten, some
from .safetensors_file import FETCH_AGAIN, read_header
from .shapes import component_shapes
from .single_file import SingleFile, open_single_file, tokenizer_beside
from .variants import available, choose_weights
from .weights import assemble

log = logging.getLogger("minisd")

MAX_JSON_BYTES = 1_000_000
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline")
CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (),  # any: `schedulers` has its own table
}
IGNORED = ("safety_checker", "feature_extractor", "image_encoder")  # parts that do not make the picture
LIBRARIES = ("diffusers", "transformers", "stable_diffusion", None)
CONFIGS = {"unet": UNetConfig, "vae": VAEConfig, "text_encoder": CLIPTextConfig}


@dataclass(frozen=True)
class Component:
    """One network as loaded. The root of its `Params` is the component's name."""

    config: UNetConfig | VAEConfig | CLIPTextConfig
    params: Params
    report: LoadReport


def load_component(
    folder,
    component: str,
    *,
    subfolder: str | None = None,
    dtype: str = "float32",
    variant: str | None = None,
    allow_nonfinite: bool = False,
    resident: str | None = None,
    device: str = "cpu",
) -> Component:
    """Config and weights of "unet", "vae" or "text_encoder", checked against each other before a tensor is read.

    folder: the pipeline's folder or the component's own; or a single file or `SingleFile`; else what `resolve` takes
    subfolder: where the component is, if not under its own name        dtype: "float32", "float64", or for a GPU "float16"
    variant: "fp16" asks for those files; without it they are read only where there are no others
    allow_nonfinite: NaN weights are reported instead of refused, to study them
    resident: "float16" keeps the weights in memory as float16, where that changes no number
    device: "cpu" or "cuda:N": each weight goes there as soon as it is read
    """
    options = dict(dtype=dtype, allow_nonfinite=allow_nonfinite, resident=resident, device=device)
    root = folder_of(folder, variant)
    if isinstance(root, SingleFile):
        return Component(*root.load(component, **options))
    home = locate(root, component, subfolder)
    config = _read_config(root, home, component)
    others = [root / name for name in CONFIGS if name != component and (root / name).is_dir()]
    mixture = variant is not None and any(variant in available(listing(other), other.name) for other in others)
    file, note = choose_weights(listing(home), component, variant, where=str(home), mixture=mixture)
    if note:
        log.warning("%s", note)
    files = _files_of_index(root, home / file) if file.endswith(".json") else [file]
    stored = [tensor for name in files for tensor in read_header(inside(root, home / name)).values()]
    params, report = assemble(stored, component, config, source=str(home / file), **options)
    report.files = files
    log.info("%s", report.headline)
    return Component(config, params, report)


def read_component_config(folder, component: str, subfolder: str | None = None):
    """The config of "unet", "vae" or "text_encoder" alone."""
    root = folder_of(folder)
    if isinstance(root, SingleFile):
        return root.config(component)
    return _read_config(root, locate(root, component, subfolder), component)


def component_bytes(folder, component: str, dtype: str, subfolder: str | None = None) -> int:
    """What the weights of a component take in memory, by its config alone."""
    shapes = component_shapes(read_component_config(folder, component, subfolder))
    return np.dtype(dtype).itemsize * sum(map(math.prod, shapes.values()))


def read_scheduler_config(model) -> dict:
    """scheduler/scheduler_config.json of a pipeline's folder, or what a single file needs."""
    root = folder_of(model)
    if isinstance(root, SingleFile):
        return root.scheduler
    return read_json(root / "scheduler" / "scheduler_config.json")


def tokenizer_files(model) -> tuple[Path, str | None]:
    """The folder with the vocabulary, and the token that pads where the folder does not say.

    For a single file it is beside it, or one of the family's on the hub.
    """
    root = folder_of(model)
    if not isinstance(root, SingleFile):
        return root / "tokenizer", None
    return tokenizer_beside(root.path) or fetch_tokenizer(root.family.tokenizers, root.path), root.family.pad_token


def folder_of(model, variant: str | None = None) -> Path | SingleFile:
    """Where a model is: a folder, or a single file, opened."""
    if isinstance(model, SingleFile):
        return model
    root = Path(model) if os.path.isdir(model) else resolve(os.fspath(model), variant=variant)
    return open_single_file(root) if root.is_file() else root


def locate(root: Path, component: str, subfolder: str | None = None) -> Path:
    """The folder with the component's config.json: root/subfolder if given, else root/component, else root itself."""
    homes = [root / subfolder] if subfolder else [root / component, root]
    for home in homes:
        if (home / "config.json").is_file():
            return inside(root, home)
    places = " nor ".join(str(home / "config.json") for home in homes)
    why = f"there is no {places}; {root} holds {some(listing(root)) or 'nothing'}"
    raise ModelFileError(f"{root} holds no {component}", why, f"give the pipeline's folder, or that of the {component}")


def listing(folder: Path) -> list[str]:
    """The names in a folder, sorted; none if it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _read_config(root: Path, home: Path, component: str):
    path = home / "config.json"
    raw = read_json(inside(root, path))
    claims = raw.get("_class_name") or raw.get("architectures") or CLASSES[component]
    claims = claims if isinstance(claims, (list, tuple)) else [claims]
    if not any(claim in claims for claim in CLASSES[component]):
        fix = f"give the folder of the {component}"
        raise ModelFileError(f"{path} describes no {component}", f"it is the config of {show(claims)}", fix)
    return CONFIGS[component].from_dict(raw, where=str(path))


def _files_of_index(root: Path, path: Path) -> list[str]:
    """The shards that an index names: plain names, in order."""
    weight_map = read_json(inside(root, path)).get("weight_map")
    files = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not files or not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) for name in files):
        raise ModelFileError(f"{path} is broken", "weight_map must name safetensors files beside it", FETCH_AGAIN)
    return sorted(set(files))


# ----- JSON and paths that are not believed ---------------------------------------------------------------------------


def read_json(path) -> dict:
    """The object in a JSON file of at most 1 MB."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        fix = "check the path, or fetch the model again"
        raise ModelFileError(f"{path} cannot be read", error.strerror or str(error), fix) from None
    if len(data) > MAX_JSON_BYTES:
        why = f"it has more than {MAX_JSON_BYTES:,} bytes"
        raise ModelFileError(f"{path} is too large for a config", why, FETCH_AGAIN)
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        why = "its brackets are nested too deeply for a config"
        raise ModelFileError(f"{path} is broken", why, FETCH_AGAIN) from None
    except ValueError as error:
        raise ModelFileError(f"{path} is broken", f"it is no JSON: {shorten(str(error))}", FETCH_AGAIN) from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} is broken", f"it holds a {type(value).__name__}, not an object", FETCH_AGAIN)
    return value


def inside(root: Path, path: Path) -> Path:
    """`path`, if its links do not lead out of `root`; in the hub's cache they lead to the blobs of the same model."""
    real, base = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    allowed = [base] + [parent.parent / "blobs" for parent in base.parents if parent.name == "snapshots"]
    if not any(real.is_relative_to(folder) for folder in allowed):
        fix = f"put a copy into {root} if you trust it"
        raise ModelFileError(f"{path} leads out of the model's folder", f"it is a link to {real}", fix)
    return path


def read_model_index(folder) -> dict:
    """{"_class_name": pipeline, "unet": class, …} of a pipeline's folder, or of a single file; no class is looked up, let alone imported.

    Raises ModelFileError for a pipeline, part or class that is not implemented, and for what is no name at all.
    """
    root = Path(folder)
    if root.is_file():
        single = open_single_file(root)
        single.require(*CONFIGS)
        return single.index
    path = root / "model_index.json"
    if not path.is_file():
        single = (root / "config.json").is_file()
        why = "it is the folder of a single component" if single else f"it holds {some(listing(root)) or 'nothing'}"
        fix = "give the folder of a whole model in the diffusers layout"
        raise ModelFileError(f"{root} is not a pipeline: it has no model_index.json", why, fix)
    index = read_json(inside(root, path))
    if (pipeline := index.get("_class_name")) not in PIPELINES:
        why = f"minisd has {' and '.join(PIPELINES)}, and never runs a model's code"
        raise _refused(path, f"the pipeline {show(pipeline)} is not implemented", why)

    parts = {"_class_name": pipeline}
    for name, entry in index.items():
        if not re.fullmatch("[a-z_0-9]+", name):
            why = "names are lower-case letters, digits and underscores"
            raise _refused(path, f"{show(name)} is not the name of a part", why)
        if name.startswith("_") or not isinstance(entry, (list, dict)):
            continue  # a note, or an option such as requires_safety_checker
        if not (isinstance(entry, list) and len(entry) == 2 and entry[0] in LIBRARIES and _is_class(entry[1])):
            why = "a part is [library, class], the library diffusers or transformers"
            raise _refused(path, f"the part {name} is {show(entry)}", why)
        if name in IGNORED or entry == [None, None]:
            continue
        if name not in CLASSES:
            raise _refused(path, f"the part {name} is not implemented", "it would take part in making the picture")
        if CLASSES[name] and entry[1] not in CLASSES[name]:
            raise _refused(path, f"the {name} {show(entry[1])} is not implemented", f"minisd has {CLASSES[name][0]}")
        parts[name] = entry[1]
    if missing := [name for name in CLASSES if name not in parts]:
        raise _refused(path, f"the part {missing[0]} is missing", f"a pipeline has {', '.join(CLASSES)}")
    for name in CLASSES:
        for file in listing(root / name):
            if file.endswith((".json", ".txt", ".safetensors")):
                inside(root, root / name / file)
    return parts


def _is_class(name) -> bool:
    return name is None or isinstance(name, str) and name.isidentifier()


def _refused(path: Path, what: str, why: str) -> ModelFileError:
    return ModelFileError(f"{path}: {what}", why, "use a Stable Diffusion 1.x or 2.x model")


def show(value) -> str:
    """A value out of a file as JSON, cut to a line."""
    return shorten(json.dumps(value))
