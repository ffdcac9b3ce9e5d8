"""THE rename tables: from the names found in files to the official ones, which are minisd's own.

Checkpoints of different years write the same tensor under different names, sometimes inside one repository. Every such rule
is a row below, with its reason, and a load reports which rows it used. Nothing else in minisd renames anything.
"""

import re
from dataclasses import dataclass

COMPONENTS = ("unet", "vae", "text_encoder")


@dataclass(frozen=True)
class Rule:
    """`pattern` must match the whole name. `replacement` is None where the tensor is no weight and is left out."""

    reason: str
    components: tuple[str, ...]
    pattern: str
    replacement: str | None


_VAE_ATTENTION = r"((?:encoder|decoder)\.mid_block\.attentions\.\d+)\.{}\.(weight|bias)"

RULES = (
    # 0 … 76 as int64, a buffer of older transformers: in every official SD 1.x and 2.x text encoder, also the fp16 ones.
    Rule("position_ids, a constant", COMPONENTS, r"(?:.*\.)?position_ids", None),
    # Moving averages that LDM's training keeps beside the weights.
    Rule("training averages", COMPONENTS, r"model_ema\..*", None),
    # diffusers before 0.17: the fp32 VAE of every official SD 1.x and 2.x; the fp16 file beside it has the new names.
    Rule("old VAE attention names", ("vae",), _VAE_ATTENTION.format("query"), r"\1.to_q.\2"),
    Rule("old VAE attention names", ("vae",), _VAE_ATTENTION.format("key"), r"\1.to_k.\2"),
    Rule("old VAE attention names", ("vae",), _VAE_ATTENTION.format("value"), r"\1.to_v.\2"),
    Rule("old VAE attention names", ("vae",), _VAE_ATTENTION.format("proj_attn"), r"\1.to_out.0.\2"),
    # transformers since 5.6 saves CLIPTextModel without the prefix that all official files have.
    Rule("text_model. prefix", ("text_encoder",), r"(?:embeddings|encoder|final_layer_norm)\..*", r"text_model.\g<0>"),
)


def official_name(component: str, name: str) -> tuple[str | None, str]:
    """The official name of a tensor, or None where it is left out, and the reason: "" if the name is official already."""
    for rule in RULES:
        if component in rule.components and (match := re.fullmatch(rule.pattern, name)):
            return (None if rule.replacement is None else match.expand(rule.replacement)), rule.reason
    return name, ""


def official_shape(component: str, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """LDM writes the linear layers of the VAE's attention as 1×1 convolutions: [C, C, 1, 1] means [C, C]."""
    one_by_one = component == "vae" and ".attentions." in name and shape[2:] == (1, 1)
    return shape[:2] if one_by_one else shape
