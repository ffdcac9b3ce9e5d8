"""Writes single-file checkpoints with exactly the official names, of the official structure, at toy widths; and the same weights as a folder."""

import functools
import json
import lzma
import shutil
from pathlib import Path

import numpy as np

from minisd.checkpoint import component_shapes
from minisd.checkpoint.names import from_ldm
from minisd.config import CLIPTextConfig, UNetConfig, VAEConfig
from tests.tiny_folder import EMBEDDED, FILES, MODEL_INDEX, SCHEDULER, VOCABULARY
from tests.tiny_models import make_weights

from .synthetic import GOLDEN, safetensors_bytes

LDM = json.loads(lzma.decompress((GOLDEN / "ldm_keys.json.xz").read_bytes()))["files"]
CLASSES = {"unet": UNetConfig, "vae": VAEConfig, "text_encoder": CLIPTextConfig}
STATISTIC = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"


def configs(file: str, in_channels: int = 4, sample_size: int = 64) -> dict:
    """{component: config.json} of a toy with the structure of "ldm_sd1", "ldm_sd2" or "ldm_sd_turbo"."""
    first = file == "ldm_sd1"
    widths = [32, 64, 32, 32] if first else [64, 128, 64, 64]  # as in the official ones the last two are equal
    return {
        "unet": {
            "_class_name": "UNet2DConditionModel", "in_channels": in_channels, "out_channels": 4, "block_out_channels": widths, "layers_per_block": 2,
            "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"], "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
            "cross_attention_dim": 64, "attention_head_dim": 8 if first else [1, 2, 1, 1], "use_linear_projection": not first,
            "sample_size": sample_size,
        },
        "vae": {
            "_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [32, 64, 32, 32],
            "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "sample_size": 512,
        },
        "text_encoder": {
            "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 80,
            "num_hidden_layers": 12 if first else 23, "num_attention_heads": 1, "max_position_embeddings": 77,
            "hidden_act": "quick_gelu" if first else "gelu",
        },
    }  # fmt: skip


@functools.cache
def weights(file: str, in_channels: int = 4, spread: float | None = None) -> dict:
    """{component: {official name: float32 array}}. spread: of the bias that tells ε from v."""
    found = {}
    for component, config in configs(file, in_channels).items():
        found[component] = make_weights(component_shapes(CLASSES[component].from_dict(config)))
    if spread is not None:
        bias = found["unet"][STATISTIC]
        bias[:] = spread * np.tile([-1, 1], bias.size // 2)
    return found


def tensors(file: str, in_channels: int = 4, spread: float | None = None) -> dict:
    """{LDM's name: array, or (dtype, array)}: every name of the official file."""
    ours, found = weights(file, in_channels, spread), {}
    for name, targets in from_ldm(LDM[file]).items():
        shape = LDM[file][name]
        if targets:
            parts = [ours[component][rest] for component, _, rest in (target.partition(".") for target in targets)]
            array = np.concatenate(parts) if parts[1:] else parts[0]
            found[name] = array.reshape(*array.shape, *[1] * (len(shape) - array.ndim))
        elif name.endswith("text_projection"):
            found[name] = np.full((64, 64), 0.25, "float32")
        elif name.endswith("position_ids"):
            found[name] = "I64", np.arange(77)[None]
        else:
            found[name] = np.full([min(n, 1000 if shape[1:] == [] else 2) for n in shape], 0.25, "float32")
    return found


def write_single_file(path: Path, file: str = "ldm_sd1", dtype: str = "F32", *, in_channels=4, spread=None, change=None) -> Path:
    """change: a function of the tensors that returns others."""
    made = tensors(file, in_channels, spread)
    path.write_bytes(safetensors_bytes(made if change is None else change(dict(made)), dtype, shuffle=True, residue=3))
    return path


def write_folder(folder: Path, file: str = "ldm_sd1", *, in_channels: int = 4, sample_size: int = 64, **scheduler) -> Path:
    """The same weights in diffusers' layout."""
    for component, config in configs(file, in_channels, sample_size).items():
        (folder / component).mkdir(parents=True)
        (folder / component / "config.json").write_text(json.dumps(config))
        path = folder / component / f"{FILES[component]}.safetensors"
        path.write_bytes(safetensors_bytes(weights(file, in_channels)[component]))
    (folder / "scheduler").mkdir()
    settings = {**SCHEDULER, "_class_name": "PNDMScheduler", "prediction_type": "epsilon", **scheduler}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    (folder / "model_index.json").write_text(json.dumps({**MODEL_INDEX, "scheduler": ["diffusers", settings["_class_name"]]}))
    shutil.copytree(EMBEDDED / "tokenizer", folder / "tokenizer")
    return folder


def put_tokenizer(folder: Path) -> Path:
    """The embedded model's vocabulary, as tokenizer/ beside a checkpoint."""
    shutil.copytree(EMBEDDED / "tokenizer", folder / "tokenizer")
    return folder
