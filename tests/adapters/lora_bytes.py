"""LoRA files for a tiny model in every dialect, made without torch and PEFT."""

import numpy as np

from tests.tiny_models import random

# (component, module, A's shape behind r) of targets of every kind in the tiny models of tests/tiny_folder.py
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
LAYER = "text_model.encoder.layers.1"


def matrices(weights: dict, modules: dict, rank: int = 2, dtype="float32") -> dict:
    """{(component, module): (A, B)} of the weights of these modules, random, small enough not to blow the picture up."""
    result = {}
    for component, names in modules.items():
        for module in names:
            shape = weights[component][f"{module}.weight"]
            draw = random(f"{component}.{module}.{rank}")
            a, b = draw.standard_normal((rank, *shape[1:])), draw.standard_normal((shape[0], rank, *[1] * (len(shape) - 2)))
            result[component, module] = (0.2 * a).astype(dtype), (0.2 * b).astype(dtype)
    return result


def peft(pairs: dict) -> dict:
    return {f"{part}.{module}.lora_{which}.weight": x for (part, module), ab in pairs.items() for which, x in zip("AB", ab)}


def peft_alone(pairs: dict) -> dict:
    return {f"base_model.model.{module}.lora_{which}.weight": x for (_, module), ab in pairs.items() for which, x in zip("AB", ab)}


def diffusers_0_20(pairs: dict) -> dict:
    """Processors in the UNet; to_q_lora in attention, lora_linear_layer elsewhere, in the text encoder."""
    result = {}
    for (part, module), ab in pairs.items():
        for role, x in zip(("down", "up"), ab):
            stem, _, leaf = module.rpartition(".")
            if part == "unet" and ".attn" in module:
                name = f"{module.partition('.to_')[0]}.processor.to_{module.partition('.to_')[2].removesuffix('.0')}_lora.{role}"
            elif part == "unet":
                name = f"{module}.lora.{role}"
            elif leaf.endswith("_proj"):
                name = f"{stem}.to_{leaf.removesuffix('_proj')}_lora.{role}"
            else:
                name = f"{module}.lora_linear_layer.{role}"
            result[f"{part}.{name}.weight"] = x
    return result


def diffusers_0_16(pairs: dict) -> dict:
    """The UNet alone, without a prefix."""
    return {name.removeprefix("unet."): x for name, x in diffusers_0_20(pairs).items() if name.startswith("unet.")}


def kohya(pairs: dict, alpha: float | None = None, rename=lambda component, module: module) -> dict:
    result = {}
    for (part, module), (a, b) in pairs.items():
        stem = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part] + rename(part, module).replace(".", "_")
        result |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b}
        if alpha is not None:
            result[f"{stem}.alpha"] = np.array(alpha, dtype="float32")
    return result
