"""Tiny models of every family: configs, weights made from names alone, and inputs. Shared by the tests and by tools/make_golden.py.

Widths, heads and sizes are deliberately awkward (odd widths a head, no powers of two, latents that halve by rounding up), and the
weights are made to give mistakes away:

- norm weights are not 1 and no bias is 0, so that a forgotten or swapped one shows;
- the first third of the channels that flow between the blocks is quiet: its variance is about 1e-5, where a group norm with
  ε = 1e-6 instead of 1e-5 is a quarter off, not one part in 200 000. The tokens of the transformers and CLIP's embeddings are
  quiet for their layer norms in the same way.
"""

import math
import zlib

import numpy as np

from minisd.checkpoint import component_shapes, params_from_state_dict
from minisd.config import CLIPTextConfig, UNetConfig, VAEConfig
from minisd.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel

UNET_SD1 = dict(
    in_channels=4,
    block_out_channels=(18, 30, 42),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=2,
    norm_num_groups=6,
    cross_attention_dim=20,
    attention_head_dim=3,  # the number of heads: 6, 10 and 14 channels each
)
UNET_SD2 = dict(
    in_channels=4,
    block_out_channels=(18, 30, 42),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    norm_num_groups=6,
    cross_attention_dim=22,
    attention_head_dim=(3, 5, 7),  # heads of 6 channels at every width, as SD 2 has 64
    transformer_layers_per_block=(1, 2, 1),
    use_linear_projection=True,
    upcast_attention=True,
)
UNET_INPAINTING = dict(
    in_channels=9,
    block_out_channels=(12, 20),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=2,
    norm_num_groups=4,
    cross_attention_dim=20,
    attention_head_dim=2,
)
VAE = dict(
    block_out_channels=(12, 18, 30),
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    layers_per_block=2,
    norm_num_groups=6,
)
CLIP_QUICK_GELU = dict(
    model_type="clip_text_model",
    vocab_size=60,
    hidden_size=30,
    intermediate_size=66,
    num_hidden_layers=3,
    num_attention_heads=5,
    max_position_embeddings=77,
    hidden_act="quick_gelu",
)
CLIP_GELU = {**CLIP_QUICK_GELU, "hidden_size": 28, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "gelu"}

CONFIGS = {
    "unet_sd1": UNET_SD1,
    "unet_sd2": UNET_SD2,
    "unet_inpainting": UNET_INPAINTING,
    "vae": VAE,
    "clip_quick_gelu": CLIP_QUICK_GELU,
    "clip_gelu": CLIP_GELU,
}
# Of the golden files: latents, pixels or tokens. The sizes halve unevenly, and leave some hundred numbers at the lowest level.
SIZES = {
    "unet_sd1": (9, 14),
    "unet_sd2": (6, 10),
    "unet_inpainting": (7, 12),
    "vae": (15, 22),
    "clip_quick_gelu": (13,),
    "clip_gelu": (13,),
}
FAMILIES = {
    "unet": (UNet2DConditionModel, UNetConfig),
    "vae": (AutoencoderKL, VAEConfig),
    "clip": (CLIPTextModel, CLIPTextConfig),
}


def family(name: str) -> tuple:
    """"unet_sd1" -> the model's class and its config's."""
    return FAMILIES[name.split("_")[0]]


def build(name: str, config: dict, shapes: dict | None = None):
    """The float32 minisd model of a family (the first part of `name`) with made-up weights; shapes as torch has them, or minisd's own."""
    model, config_class = family(name)
    config = config_class.from_dict(config)
    weights = make_weights(shapes or component_shapes(config))
    params, report = params_from_state_dict(weights, model.component, config, "float32")
    return model(config, params, report)


def make_weights(shapes: dict) -> dict:
    """{tensor name: float32 array}, each drawn from a generator that its name seeds."""
    return {name: make_tensor(name, tuple(shape)) for name, shape in shapes.items()}


def make_tensor(name: str, shape: tuple) -> np.ndarray:
    """One tensor: 1/√fan_in for matrices, 1 ± 0.2 for norms, so that activations stay near 1; quiet where this file's docstring says."""
    module, leaf = name.rsplit(".", 1)
    x = random(name).standard_normal(shape)
    if "embedding" in module.rsplit(".", 1)[-1]:
        x *= 0.01  # CLIP's tables, as quiet as the official ones
    elif leaf == "bias":
        x *= 0.2
    elif len(shape) == 1:
        x = 1.0 + 0.2 * x
    else:
        x *= 1.0 / math.sqrt(x[0].size)
    if module.endswith(WRITERS):
        x[: len(x) // 3] *= 3e-3
    if module.endswith("proj_in"):
        x *= 1e-2
    return x.astype("float32")


# The modules that write into the stream of images between the blocks ("conv" is that of the up- and downsamplers, and of the quant convs).
WRITERS = ("conv_in", "conv", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "proj_out", "attentions.0.to_out.0")


def make_inputs(name: str, size: tuple | None = None, batch: int = 2, config: dict | None = None) -> dict:
    """The arguments of a whole run, float32: a UNet's sample, timestep and encoder_hidden_states; a VAE's x and z; CLIP's input_ids.

    size: latents (H, W) of a UNet, pixels of a VAE, (T,) tokens of CLIP; the default is SIZES.
    """
    config, size, draw = config or CONFIGS[name], size or SIZES[name], random(name)
    if name.startswith("unet"):
        H, W = size
        width = config["cross_attention_dim"]
        width = width if isinstance(width, int) else width[0]
        return {
            "sample": draw.standard_normal((batch, config["in_channels"], H, W)).astype("float32"),
            "timestep": np.array([501.25, 7.0, 999.0][:batch]),  # LMS asks for fractions
            "encoder_hidden_states": draw.standard_normal((batch, 11, width)).astype("float32"),
        }
    if name.startswith("vae"):
        H, W = size
        z = (batch, config.get("latent_channels", 4), -(-H // 4), -(-W // 4))
        return {
            "x": draw.uniform(-1.0, 1.0, (batch, 3, H, W)).astype("float32"),
            "z": draw.standard_normal(z).astype("float32"),
        }
    return {"input_ids": draw.randint(0, config["vocab_size"], (batch, *size))}


def random(name: str) -> np.random.RandomState:
    """NumPy's frozen generator, seeded by a name."""
    return np.random.RandomState(zlib.crc32(name.encode()))
