"""Writes a complete pipeline folder in diffusers' layout with made-up weights: SD 2-like, v-prediction. Needs no torch.

minisd and diffusers both load what this writes, so the same folder serves the golden pictures, the plain tests and the live ones.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import minisd
from minisd.checkpoint.shapes import clip_text_shapes, unet_shapes, vae_shapes
from minisd.config import CLIPTextConfig, UNetConfig, VAEConfig

from .tiny_models import UNET_SD2, VAE, make_weights

EMBEDDED = Path(minisd.__file__).parent / "weights"

VOCABULARY = len(json.loads((EMBEDDED / "tokenizer" / "vocab.json").read_text()))
CONFIGS = {
    "unet": {"_class_name": "UNet2DConditionModel", "sample_size": 16, **UNET_SD2},
    "vae": {"_class_name": "AutoencoderKL", "sample_size": 64, "in_channels": 3, "out_channels": 3, "latent_channels": 4, **VAE},
    "text_encoder": {
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": VOCABULARY, "hidden_size": 22, "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 77, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "projection_dim": 22,
    },
}  # fmt: skip
SCHEDULER = {
    "_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "prediction_type": "v_prediction", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
    "skip_prk_steps": True, "trained_betas": None,
}  # fmt: skip
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.8.0", "feature_extractor": [None, None], "safety_checker": [None, None],
    "requires_safety_checker": False, "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip
FILES = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def write_tiny_sd2(folder: Path, in_channels: int = 4, unet: dict | None = None, **scheduler) -> Path:
    """Fills `folder` and returns it. in_channels: 9 is an inpainting model. unet: changes of its config; keywords: of the scheduler's."""
    configs = {**CONFIGS, "unet": {**CONFIGS["unet"], "in_channels": in_channels, **(unet or {})}}
    shapes = {
        "unet": unet_shapes(UNetConfig.from_dict(configs["unet"])),
        "vae": vae_shapes(VAEConfig.from_dict(configs["vae"])),
        "text_encoder": clip_text_shapes(CLIPTextConfig.from_dict(configs["text_encoder"])),
    }
    for component, config in configs.items():
        (folder / component).mkdir(parents=True)
        (folder / component / "config.json").write_text(json.dumps(config))
        weights = {name: np.ascontiguousarray(w) for name, w in make_weights(shapes[component]).items()}
        save_file(weights, folder / component / f"{FILES[component]}.safetensors", metadata={"format": "pt"})
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({**SCHEDULER, **scheduler}))
    pipeline = "StableDiffusionInpaintPipeline" if in_channels == 9 else MODEL_INDEX["_class_name"]
    (folder / "model_index.json").write_text(json.dumps({**MODEL_INDEX, "_class_name": pipeline}))
    shutil.copytree(EMBEDDED / "tokenizer", folder / "tokenizer")
    return folder
