"""Writes checkpoints with exactly the quirks of the official files, at a tiny width, byte by byte and without the safetensors library.

Old files have a header without padding, so that their data begins at an odd byte; tensors in random order; sometimes no metadata;
a float16 file with one int64 tensor; VAE attention under old names while the fp16 file beside it has the new ones.
"""

import json
import lzma
import os
import random
import re
import shutil
import zlib
from pathlib import Path

import numpy as np

from minisd.checkpoint import component_shapes
from minisd.config import CLIPTextConfig, UNetConfig, VAEConfig

GOLDEN = Path(__file__).parents[1] / "golden"

CLASSES = {"unet": UNetConfig, "vae": VAEConfig, "text_encoder": CLIPTextConfig}
FILES = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
CONFIGS = {
    "unet": {
        "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.2.2", "act_fn": "silu", "attention_head_dim": 2, "block_out_channels": [8, 12],
        "center_input_sample": False, "cross_attention_dim": 10, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "downsample_padding": 1,
        "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 1, "mid_block_scale_factor": 1, "norm_eps": 1e-05,
        "norm_num_groups": 4, "out_channels": 4, "sample_size": 8, "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    },
    "vae": {
        "_class_name": "AutoencoderKL", "_diffusers_version": "0.2.2", "act_fn": "silu", "block_out_channels": [4, 6], "in_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "latent_channels": 4, "layers_per_block": 1,
        "norm_num_groups": 2, "out_channels": 3, "sample_size": 16,
    },
    "text_encoder": {
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_act": "quick_gelu", "hidden_size": 10, "intermediate_size": 14,
        "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 30, "max_position_embeddings": 9, "torch_dtype": "float32",
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
    },
}  # fmt: skip
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.2.2", "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "U8": "<u1",
    "F8_E4M3": "<u1",
    "F8_E5M2": "<u1",
    "I8": "<i1",
}


def official(name: str):
    """A list of tests/golden/keys.json.xz: component, config and {name: shape} of an official state dict; or its other tables."""
    tables = json.loads(lzma.decompress((GOLDEN / "keys.json.xz").read_bytes()))
    if name not in tables["state_dicts"]:
        return tables[name]
    entry = tables["state_dicts"][name]
    shapes = {key: tuple(shape) for key, shape in entry["tensors"].items()}
    return entry["component"], CLASSES[entry["component"]].from_dict(entry["config"]), shapes


def config(component: str, **changes):
    return CLASSES[component].from_dict({**CONFIGS[component], **changes})


def make_weights(component: str, **changes) -> dict:
    """{official name: float32 array} for the tiny config."""
    rng = np.random.RandomState(zlib.crc32(component.encode()))
    return {
        name: rng.standard_normal(shape).astype("float32")
        for name, shape in component_shapes(config(component, **changes)).items()
    }


def encode(array, dtype: str) -> bytes:
    """An array as the format stores it. BF16 rounds to nearest, ties to even."""
    if dtype == "BF16":
        bits = np.asarray(array, dtype="<f4").view("<u4")
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(array, dtype=DTYPES[dtype]).tobytes()


def safetensors_bytes(
    tensors: dict, dtype: str = "F32", *, metadata={"format": "pt"}, shuffle: bool = False, residue: int | None = None
) -> bytes:
    """tensors {name: array, or (dtype, array)}. shuffle: random order. residue: data begins at a byte that leaves this rest modulo 8."""
    items = list(tensors.items())
    if shuffle:
        random.Random(1).shuffle(items)
    header, body, end = {} if metadata is None else {"__metadata__": metadata}, [], 0
    for name, value in items:
        kind, array = value if isinstance(value, tuple) else (dtype, value)
        body.append(encode(array, kind))
        begin, end = end, end + len(body[-1])
        header[name] = {"dtype": kind, "shape": list(np.shape(array)), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * ((-len(text) if residue is None else residue - len(text)) % 8)
    return with_length(text) + b"".join(body)


def with_length(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def old_vae_names(tensors: dict) -> dict:
    """As the official fp32 files name the VAE's attention."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    return {
        re.sub(r"(?<=attentions\.0\.)(to_q|to_k|to_v|to_out\.0)", lambda m: old[m[1]], name): x
        for name, x in tensors.items()
    }


def without_prefix(tensors: dict) -> dict:
    return {name.removeprefix("text_model."): x for name, x in tensors.items()}


def position_ids(n: int = 9) -> tuple:
    return "I64", np.arange(n, dtype="int64")[None]


def write_component(folder: Path, component: str, data: bytes | None = None, *, variant: str = "", **changes) -> Path:
    """config.json and a weights file, by default the plain float32 one. Returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIGS[component], **changes}))
    path = folder / f"{FILES[component]}{variant}.safetensors"
    path.write_bytes(safetensors_bytes(make_weights(component)) if data is None else data)
    return path


def write_pipeline(folder: Path) -> Path:
    """A whole folder as SD 1.4 has it, but for the size."""
    write_component(folder / "unet", "unet", safetensors_bytes(make_weights("unet"), shuffle=True, residue=2))
    write_component(
        folder / "vae", "vae", safetensors_bytes(old_vae_names(make_weights("vae")), shuffle=True, residue=7)
    )
    text = {**make_weights("text_encoder"), "text_model.embeddings.position_ids": position_ids()}
    write_component(folder / "text_encoder", "text_encoder", safetensors_bytes(text, shuffle=True, residue=3))
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX))
    for name in (
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def to_hub_cache(folder: Path, cache: Path, repo: str = "org--name", sha: str = "c" * 40) -> Path:
    """The folder as huggingface_hub stores it: snapshots of links to blobs. Returns the snapshot."""
    snapshot, blobs = cache / f"models--{repo}" / "snapshots" / sha, cache / f"models--{repo}" / "blobs"
    blobs.mkdir(parents=True)
    for i, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blobs / f"{i:040x}")
        link.symlink_to(os.path.relpath(blobs / f"{i:040x}", link.parent))
    refs = cache / f"models--{repo}" / "refs"
    refs.mkdir()
    (refs / "main").write_text(sha)
    return snapshot
