"""The dialects of LoRA files. One weight, `unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight`, goes by these names:

    PEFT, diffusers          unet.down_blocks.0.….attn1.to_q.lora_A.weight             lora_B.weight
    PEFT alone               base_model.model.down_blocks.0.….attn1.to_q.lora_A.weight
    diffusers 0.17 … 0.20    unet.down_blocks.0.….attn1.processor.to_q_lora.down.weight (before: without unet.)
                             text_encoder.text_model.….self_attn.to_q_lora.down.weight, or ….q_proj.lora_linear_layer.down.weight
    kohya                    lora_unet_down_blocks_0_…_attn1_to_q.lora_down.weight     lora_up.weight, alpha
    kohya, blocks of LDM     lora_unet_input_blocks_1_1_…_attn1_to_q.lora_down.weight

Underscores cannot be parsed (is "to_q" one word?), so nothing is: every weight of the model is spelled in each dialect, and a name of
the file is looked up among the spellings.
"""

import re

from ..checkpoint.report import shorten
from ..errors import ModelFileError

# What stands behind the name of the module, and what the tensor is. Down is A [r, in], up is B [out, r].
ENDINGS = (
    ("down", r"\.lora_A(?:\.\w+)?\.weight|\.lora_down\.weight|\.lora\.down\.weight|\.lora_linear_layer\.down\.weight|_lora\.down\.weight"),
    ("up", r"\.lora_B(?:\.\w+)?\.weight|\.lora_up\.weight|\.lora\.up\.weight|\.lora_linear_layer\.up\.weight|_lora\.up\.weight"),
    ("alpha", r"\.alpha"),
)
# Other ways to change a weight by few numbers. Each would need its own equation; none is approximated by another.
OTHER_METHODS = (
    ("LoHa (a product of two LoRAs)", r"hada_w\d|hada_t\d"),
    ("LoKr (a Kronecker product)", r"lokr_w\d|lokr_t\d"),
    ("a Tucker decomposition of a convolution (lora_mid)", r"lora_mid"),
    ("DoRA (a LoRA with a magnitude)", r"dora_scale|lora_magnitude_vector"),
    ("OFT (a rotation)", r"oft_blocks|oft_diag|oft_R|boft_\w+"),
    ("GLoRA", r"\.(?:a1|a2|b1|b2)\.weight$"),
    ("IA³", r"on_input$|ia3_\w+"),
    ("a full difference of weights", r"\.diff(?:_b)?$"),
    ("a LoRA with biases", r"\.lora_[AB](?:\.\w+)?\.bias$"),
    ("a LoRA of the token embedding", r"lora_embedding_[AB]"),
    ("VeRA", r"vera_lambda_[bd]"),
)
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
SDXL = re.compile(r"lora_te[12]_|text_encoder_2\.|add_embedding|label_emb")


def spellings(shapes: dict, layers_per_block) -> dict:
    """{name of a module in any dialect: (component, name of its weight)} for every matrix and convolution of the models.

    shapes: {"unet": {tensor: shape}, "text_encoder": {…}}        layers_per_block: the UNet's, for the names of LDM
    """
    result = {}
    attended = {name.partition(".attentions.")[0] for name in shapes.get("unet", {}) if ".attentions." in name}
    for component, tensors in shapes.items():
        for tensor, shape in tensors.items():
            module, _, leaf = tensor.rpartition(".")
            if leaf != "weight" or len(shape) < 2 or "embeddings." in module:
                continue
            for name in _dotted(component, module):
                result[f"{component}.{name}"] = result[f"base_model.model.{name}"] = result[name] = component, tensor
            result[KOHYA[component] + module.replace(".", "_")] = component, tensor
            if component == "unet" and isinstance(layers_per_block, int):
                name = ldm_name(module, layers_per_block, attended)
                result[KOHYA[component] + name.replace(".", "_")] = component, tensor
    return result


def _dotted(component: str, module: str) -> set:
    """The module's own name, and those of diffusers' attention processors and of newer and older transformers."""
    names = {module}
    if component == "unet":
        names |= {name.replace(".to_", ".processor.to_") for name in names}
        return names | {name.removesuffix(".0") for name in names if name.endswith(".to_out.0")}
    names |= {re.sub(r"\.(q|k|v|out)_proj$", r".to_\1", name) for name in names}
    return names | {name.removeprefix("text_model.") for name in names}


# The names of LDM's UNet. Its blocks are numbered through: n resnets, then the sampler; an up block has one resnet more.
OUTSIDE = {"conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
PARTS = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
PLACES = {"resnets": 0, "attentions": 1}


def ldm_name(module: str, n: int, attended: set) -> str:
    """A module of diffusers' UNet under its name in LDM. n: layers_per_block; attended: the blocks that have attention."""
    match module.split("."):
        case ["down_blocks", i, "downsamplers", *_]:
            return f"input_blocks.{1 + int(i) * (n + 1) + n}.0.op"
        case ["up_blocks", i, "upsamplers", *_]:
            return f"output_blocks.{int(i) * (n + 1) + n}.{2 if f'up_blocks.{i}' in attended else 1}.conv"
        case ["down_blocks", i, kind, j, *rest]:
            head = f"input_blocks.{1 + int(i) * (n + 1) + int(j)}.{PLACES[kind]}"
        case ["up_blocks", i, kind, j, *rest]:
            head = f"output_blocks.{int(i) * (n + 1) + int(j)}.{PLACES[kind]}"
        case ["mid_block", kind, j, *rest]:
            head = f"middle_block.{2 * int(j) + PLACES[kind]}"
        case _:
            return OUTSIDE.get(module, module)
    part = ".".join(rest)
    return f"{head}.{PARTS.get(part, part)}"


def resolve(name: str, known: dict) -> tuple[str, str, str] | None:
    """(component, weight, "down" | "up" | "alpha") of a tensor in a file; None where it belongs to no weight of these models.

    Raises ModelFileError for a method that is no LoRA.
    """
    for method, pattern in OTHER_METHODS:
        if re.search(pattern, name):
            why = f"{shorten(name)} is part of {method}, which is another equation than W + scale · B A"
            raise ModelFileError(f"this file is {method}", why, "use a plain LoRA")
    for role, pattern in ENDINGS:
        if found := re.fullmatch(f"(.+?)(?:{pattern})", name):
            module = known.get(found[1])
            return None if module is None else (*module, role)
    return None
