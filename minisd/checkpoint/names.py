"""THE rename tables: from the names found in files to the official ones, which are minisd's own.

Checkpoints of different years write the same tensor under different names, sometimes inside one repository. Every such rule
is a row below, with its reason, and a load reports which rows it used. Nothing else in minisd renames anything.
`official_name` is for files in diffusers' layout, `from_ldm` for those of the original code.
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


# ----- LDM, the code of the paper: one file for all components --------------------------------------------------------------
#
# It numbers the UNet's blocks through, counts the decoder's levels from the picture inwards, and has OpenAI's or OpenCLIP's text
# encoder. A row is (LDM, diffusers) and stands for everything below both names; the longest row that fits a name counts.

LDM_COMPONENTS = {
    "model.diffusion_model": "unet",
    "first_stage_model": "vae",
    "cond_stage_model.transformer": "text_encoder",  # SD 1.x: transformers' CLIP under its own names
    "cond_stage_model.model": "text_encoder",  # SD 2.x: OpenCLIP
    "conditioner.embedders.0.model": "text_encoder",  # SD-Turbo: OpenCLIP
}
LDM_RESNET = (
    ("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("emb_layers.1", "time_emb_proj"), ("out_layers.0", "norm2"), ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)  # fmt: skip
LDM_VAE_ATTENTION = (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))
OPENCLIP_LAYER = (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("attn", "self_attn"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"))


def from_ldm(names) -> dict[str, tuple[str, ...]]:
    """{name in LDM: its official names, behind the component} for the tensors of a whole file, or for the modules of a trace.

    "model.diffusion_model.input_blocks.1.0.in_layers.0.weight" -> ("unet.down_blocks.0.resnets.0.norm1.weight",)
    OpenCLIP's attn.in_proj_weight and in_proj_bias are q, k and v, a third of the rows each: three names. What Stable Diffusion does
    not use has none: the schedule's buffers, OpenCLIP's projection, and its last layer, since the output of the one before is taken.
    """
    official: dict[str, tuple[str, ...]] = dict.fromkeys(names, ())
    for prefix, component in LDM_COMPONENTS.items():
        inside = {name: name[len(prefix) + 1 :] for name in official if name == prefix or name.startswith(f"{prefix}.")}
        rows = dict(_ROWS.get(prefix, lambda _: [])(set(inside.values())))
        for name, inner in inside.items():
            targets = [official_name(component, target)[0] for target in _renamed(inner, rows)]
            official[name] = tuple(f"{component}.{target}".rstrip(".") for target in targets if target is not None)
    return official


def why_left_out(name: str) -> tuple[str, str]:
    """(component, reason) for a tensor to which `from_ldm` gives no name."""
    component = next((component for prefix, component in LDM_COMPONENTS.items() if name.startswith(f"{prefix}.")), "unet")
    _, reason = official_name(component, name)
    unused = "OpenCLIP's last layer and projection" if component == "text_encoder" else "the training's schedule"
    return component, reason or unused


def is_ldm(name: str) -> bool:
    """Whether LDM gave a tensor or a module this name."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in LDM_COMPONENTS)


def _renamed(name: str, rows: dict) -> tuple[str, ...]:
    head, tail = name, ""
    while head and head not in rows:
        head, dot, last = head.rpartition(".")
        tail = f"{dot}{last}{tail}"
    targets = rows.get(head, head)
    return tuple(target + tail for target in ((targets,) if isinstance(targets, str) else targets))


def _below(ldm: str, official: str, parts=()) -> list:
    return [(ldm, official), *((f"{ldm}.{a}", f"{official}.{b}") for a, b in parts)]


def _numbers(names, pattern: str) -> list:
    """The numbers that stand for (\\d+) in the names that begin with the pattern, ascending.

    Those of three digits are no official ones: a name in a file must not make us count to a million.
    """
    return sorted({int(found[1]) for name in names if (found := re.match(pattern, name)) and len(found[1]) < 3})


def _unet_rows(names) -> list:
    """A level is `layers` resnets, each with a transformer where the level attends, and an input block that halves the size."""
    halving = _numbers(names, r"input_blocks\.(\d+)\.0\.op\b")
    levels, layers = (len(halving) + 1, halving[0] - 1) if halving else (4, 2)  # a part of a trace has none: as in Stable Diffusion
    attends = [any(name.startswith(f"input_blocks.{i * (layers + 1) + 1}.1") for name in names) if halving else i < 3 for i in range(levels)]
    rows = [("time_embed", "time_embedding"), ("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"),
            ("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out"), ("middle_block", "mid_block")]  # fmt: skip
    for i in range(levels):
        first = i * (layers + 1) + 1
        for j in range(layers):
            rows += _below(f"input_blocks.{first + j}.0", f"down_blocks.{i}.resnets.{j}", LDM_RESNET)
            rows += _below(f"input_blocks.{first + j}.1", f"down_blocks.{i}.attentions.{j}")
        rows += _below(f"input_blocks.{first + layers}.0", f"down_blocks.{i}.downsamplers.0", [("op", "conv")])
    for j in (0, 1):
        rows += _below(f"middle_block.{2 * j}", f"mid_block.resnets.{j}", LDM_RESNET)
    rows += _below("middle_block.1", "mid_block.attentions.0")
    for i, attending in enumerate(reversed(attends)):
        for j in range(layers + 1):
            block = f"output_blocks.{i * (layers + 1) + j}"
            rows += _below(f"{block}.0", f"up_blocks.{i}.resnets.{j}", LDM_RESNET)
            rows += _below(f"{block}.1", f"up_blocks.{i}.attentions.{j}") if attending else []
        rows += _below(f"{block}.{2 if attending else 1}", f"up_blocks.{i}.upsamplers.0")
    return rows


def _vae_rows(names) -> list:
    levels, blocks = (max(_numbers(names, rf"decoder\.up\.{k}"), default=n) + 1 for k, n in ((r"(\d+)", 3), (r"\d+\.block\.(\d+)", 2)))
    rows = []
    for side, way, size in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        rows += [(f"{side}.norm_out", f"{side}.conv_norm_out"), (f"{side}.mid", f"{side}.mid_block")]
        rows += _below(f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0", LDM_VAE_ATTENTION)
        rows += [(f"{side}.mid.block_{j + 1}", f"{side}.mid_block.resnets.{j}") for j in (0, 1)]
        for k in range(levels):
            ldm, official = f"{side}.{way}.{k}", f"{side}.{way}_blocks.{k if way == 'down' else levels - 1 - k}"
            rows += [(ldm, official), (f"{ldm}.{size}", f"{official}.{size}rs.0")]
            for j in range(blocks):
                rows += _below(f"{ldm}.block.{j}", f"{official}.resnets.{j}", [("nin_shortcut", "conv_shortcut")])
    return rows


def _openclip_rows(names) -> list:
    rows = [("text_projection", ()), ("logit_scale", ()), ("attn_mask", ()), ("transformer", "text_model.encoder"),
            ("token_embedding", "text_model.embeddings.token_embedding"), ("ln_final", "text_model.final_layer_norm"),
            ("positional_embedding", "text_model.embeddings.position_embedding.weight")]  # fmt: skip
    for n in _numbers(names, r"transformer\.resblocks\.(\d+)"):
        ldm, official = f"transformer.resblocks.{n}", f"text_model.encoder.layers.{n}"
        rows += _below(ldm, official, OPENCLIP_LAYER)
        rows += [(f"{ldm}.attn.in_proj_{x}", tuple(f"{official}.self_attn.{part}_proj.{x}" for part in "qkv")) for x in ("weight", "bias")]
    stored = _numbers(names, r"transformer\.resblocks\.(\d+)\.attn\.in_proj_weight")  # modules in a trace all ran
    return [(ldm, () if stored and ldm.startswith(f"transformer.resblocks.{stored[-1]}") else official) for ldm, official in rows]


_ROWS = {"model.diffusion_model": _unet_rows, "first_stage_model": _vae_rows, "cond_stage_model.model": _openclip_rows,
         "conditioner.embedders.0.model": _openclip_rows}  # fmt: skip
