"""Teacher forcing: any layer of a model computed on inputs that were recorded elsewhere, so that its error is its own.

One table says which layer of ours answers for which module of diffusers and transformers. Each function is registered under the
reference's class name. Its parameters behind `site` have the names of that class's `forward` arguments, which tells a recorder what to
keep. Images reach it as [B, H, W, C]; it returns an array or several.
"""

import inspect
from dataclasses import dataclass

import numpy as np

from . import ops
from .backend import to_nchw, to_nhwc
from .config import VAEConfig
from .layers import attention as attention_layers
from .layers import basic, resnet, timestep
from .models import clip_text, unet, vae
from .models.model import Model
from .params import Params

TABLE: dict = {}
OWN: dict = {}  # layers that are cut otherwise than in the reference, for our own traces
# What our own traces call a layer: its class in the reference, and the names that `forward` has for its arguments.
OURS = {
    "conv2d": ("conv2d", {"x": "x", "stride": "stride", "padding": "padding"}),
    "upsample_conv2d": ("upsample_conv2d", {"x": "x", "size": "size"}),
    "linear": ("Linear", {"x": "input"}),
    "group_norm": ("GroupNorm", {"x": "input"}),
    "layer_norm": ("LayerNorm", {"x": "input"}),
    "embedding": ("Embedding", {"ids": "input"}),
    "resnet_block": ("ResnetBlock2D", {"x": "input_tensor", "t_emb": "temb"}),
    "downsample": ("Downsample2D", {"x": "hidden_states"}),
    "upsample": ("Upsample2D", {"x": "hidden_states", "size": "output_size"}),
    "time_embedding": ("TimestepEmbedding", {"t_sin": "sample"}),
    "attention": ("Attention", {"x": "hidden_states", "context": "encoder_hidden_states"}),
    "vae_attention": ("Attention", {"x": "hidden_states"}),
    "geglu": ("GEGLU", {"x": "hidden_states"}),
    "feed_forward": ("FeedForward", {"x": "hidden_states"}),
    "transformer_block": ("BasicTransformerBlock", {"x": "hidden_states", "context": "encoder_hidden_states"}),
    "spatial_transformer": ("Transformer2DModel", {"x": "hidden_states", "context": "encoder_hidden_states"}),
    "clip_attention": ("CLIPAttention", {"x": "hidden_states"}),
    "clip_mlp": ("CLIPMLP", {"x": "hidden_states"}),
    "clip_layer": ("CLIPEncoderLayer", {"x": "hidden_states"}),
    "down_block": ("CrossAttnDownBlock2D", {"x": "hidden_states", "t_emb": "temb", "context": "encoder_hidden_states"}),
    "mid_block": ("UNetMidBlock2DCrossAttn", {"x": "hidden_states", "t_emb": "temb", "context": "encoder_hidden_states"}),
    "up_block": ("up_block", {"x": "x", "t_emb": "t_emb", "context": "context", "skips": "skips"}),
    "down_encoder_block": ("DownEncoderBlock2D", {"x": "hidden_states"}),
    "up_decoder_block": ("UpDecoderBlock2D", {"x": "hidden_states"}),
    "embeddings": ("CLIPTextEmbeddings", {"ids": "input_ids"}),
    "unet": ("UNet2DConditionModel", {"x": "sample", "t": "timestep", "context": "encoder_hidden_states"}),
    "decoder": ("Decoder", {"z": "sample"}),
}
OUR_CUTS = {"conv2d": "Conv2d", "upsample_conv2d": "Conv2d", "up_block": "CrossAttnUpBlock2D"}  # what the kinds in OWN stand for
OURS_ELSEWHERE = {  # functions of the same name in two models
    ("vae", "mid_block"): ("UNetMidBlock2D", {"x": "hidden_states"}),
    ("vae", "encoder"): ("Encoder", {"x": "sample"}),
    ("text_encoder", "encoder"): ("CLIPEncoder", {"x": "inputs_embeds"}),
}
# Modules of the reference without weights or arithmetic that is a layer of ours: their work is inside the layers that hold them.
NOT_LAYERS = {"ModuleList", "Dropout", "SiLU", "QuickGELUActivation", "GELUActivation"}
# Whole models take and return [B, C, H, W] themselves.
PUBLIC = {"UNet2DConditionModel", "AutoencoderKL.encode", "AutoencoderKL.decode", "CLIPTextModel", "DiagonalGaussianDistribution"}


@dataclass(frozen=True)
class Site:
    """One module of the reference, by its path in `named_modules()`, and the model of ours that has the same weights."""

    model: Model
    path: str

    @property
    def p(self) -> Params:
        p = self.model.params.text_model if self.model.component == "text_encoder" else self.model.params
        for part in self.path.split(".") if self.path else ():
            p = getattr(p, part)
        return p

    @property
    def config(self):
        return self.model.config

    @property
    def in_vae(self) -> bool:
        return isinstance(self.config, VAEConfig)

    @property
    def heads(self) -> int:
        """The heads of this block: the config lists them downwards, and the up blocks mirror the list."""
        heads = self.config.per_block("attention_head_dim")
        where, _, rest = self.path.partition(".")
        if where == "mid_block":
            return heads[-1]
        return (heads if where == "down_blocks" else heads[::-1])[int(rest.split(".")[0])]

    @property
    def groups(self) -> int:
        return self.config.norm_num_groups

    @property
    def eps(self) -> float:
        """ε of the group norms in the resnets and at the end."""
        return vae.VAE_NORM_EPS if self.in_vae else self.config.norm_eps

    @property
    def clip(self) -> dict:
        c = self.config
        return dict(heads=c.num_attention_heads, act=c.hidden_act, eps=c.layer_norm_eps)


def compute(model: Model, kind: str, path: str, inputs: dict) -> list:
    """What our layer makes of the reference's inputs: a list of arrays in the reference's layout, [B, C, H, W] for images."""
    site = Site(model, path)
    if kind in PUBLIC:
        y = TABLE[kind](site, **inputs)
        return y if isinstance(y, list) else [y]
    y = _layer(kind)(site, **{name: _inside(kind, x) for name, x in inputs.items()})
    return [_outside(kind, a) for a in (y if isinstance(y, list) else [y])]


def replay(model: Model, row: dict, fetch):
    """What `model` makes of the inputs that a trace recorded for one call of one layer; None where no layer of ours answers for it.

    row: of a manifest        fetch(key) -> the array stored under it        -> the output in the reference's layout
    """
    component, _, path = row["name"].partition(".")
    kind, names = _answer(row)
    if kind not in TABLE and kind not in OWN or "inputs" not in row:
        return None
    known = input_names(kind)

    def named(given: dict) -> dict:
        given = given if names is None else {names.get(name): x for name, x in given.items()}
        return {name: x for name, x in given.items() if name in known}

    def array(name: str, stored: str):
        x = fetch(stored)  # a timestep may be a fraction that float32 cannot hold
        return x if x.dtype.kind != "f" or name.startswith("timestep") else x.astype(model.dtype)

    inputs = {name: [array(name, a) for a in x] if isinstance(x, list) else array(name, x) for name, x in named(row["inputs"]).items()}
    options = named(row.get("options", {}))
    path = path.removeprefix("text_model.") if component == "text_encoder" else path
    return compute(model, kind, path, {**inputs, **options})[0]


def reference_class(row: dict) -> str:
    """The reference's class for a manifest's row, which may be ours."""
    kind, _ = _answer(row)
    return OUR_CUTS.get(kind, kind)


def reference_names(row: dict, inputs: dict) -> dict:
    """`inputs` of a manifest's row under the names of the reference's arguments."""
    kind, names = _answer(row)
    cut = {"conv2d": {"x": "input"}, "up_block": {"x": "hidden_states", "t_emb": "temb"}}
    names = {**(names or {}), **cut.get(kind, {})}
    return {names.get(name, name): stored for name, stored in inputs.items()}


def _answer(row: dict) -> tuple:
    """The key of TABLE or OWN for a row, and how our names of its arguments are to be changed."""
    return OURS_ELSEWHERE.get((row["name"].partition(".")[0], row["kind"])) or OURS.get(row["kind"]) or (row["kind"], None)


def input_names(kind: str) -> list:
    """The arguments of the reference's `forward` that are tensors to us."""
    return list(inspect.signature(_layer(kind)).parameters)[1:]


def _layer(kind: str):
    return TABLE[kind] if kind in TABLE else OWN[kind]


def _inside(kind, x):
    if isinstance(x, (list, tuple)):
        return [_inside(kind, a) for a in x]
    if getattr(x, "ndim", 0) == 4:
        return to_nhwc(x)
    if getattr(x, "ndim", 0) == 3 and kind == "GroupNorm":
        return np.ascontiguousarray(x.swapaxes(1, 2))  # the VAE's attention norms [B, C, S]
    return x


def _outside(kind, y):
    if y.ndim == 4:
        return to_nchw(y)
    return y.swapaxes(1, 2) if y.ndim == 3 and kind == "GroupNorm" else y


def answers_for(name: str, table: dict = TABLE):
    """Registers the decorated function under the reference's class name, or in OWN under ours."""

    def register(f):
        table[name] = f
        return f

    return register


# ------------------------------------------------------------------------------------------------------------- basic


@answers_for("Conv2d")
def _(site, input):
    down = "downsamplers" in site.path
    own_padding = not (site.in_vae and down)  # the VAE's Downsample2D pads before it calls its convolution
    return basic.conv2d(site.p, input, stride=2 if down else 1, padding=site.p.weight.shape[-1] // 2 if own_padding else 0)


@answers_for("conv2d", OWN)
def _(site, x, stride=1, padding=0):
    return basic.conv2d(site.p, x, stride=stride, padding=padding if isinstance(padding, int) else tuple(map(tuple, padding)))


@answers_for("Linear")
def _(site, input):
    return basic.linear(site.p, input)


@answers_for("GroupNorm")
def _(site, input):
    transformer = not site.in_vae and ".attentions." in site.path
    eps = attention_layers.TRANSFORMER_GROUP_NORM_EPS if transformer else site.eps
    return basic.group_norm(site.p, input, groups=site.groups, eps=eps)


@answers_for("LayerNorm")
def _(site, input):
    clip = site.model.component == "text_encoder"
    return basic.layer_norm(site.p, input, eps=site.clip["eps"] if clip else attention_layers.TRANSFORMER_LAYER_NORM_EPS)


@answers_for("Embedding")
def _(site, input):
    return basic.embedding(site.p, input)


# ----------------------------------------------------------------------------------------- resnets, sizes, timesteps


@answers_for("ResnetBlock2D")
def _(site, input_tensor, temb=None):
    return resnet.resnet_block(site.p, input_tensor, temb, groups=site.groups, eps=site.eps)


@answers_for("Downsample2D")
def _(site, hidden_states):
    return resnet.downsample(site.p, hidden_states, padding=((0, 1), (0, 1)) if site.in_vae else 1)


@answers_for("upsample_conv2d", OWN)
def _(site, x, size):
    return basic.upsample_conv2d(site.p, x, size=tuple(size))


@answers_for("Upsample2D")
def _(site, hidden_states, output_size=None):
    return resnet.upsample(site.p, hidden_states, size=tuple(output_size or doubled(hidden_states)))


@answers_for("Timesteps")
def _(site, timesteps):
    c, dtype = site.config, site.model.dtype
    return ops.timestep_embedding(
        timesteps, dim=c.block_out_channels[0], flip_sin_to_cos=c.flip_sin_to_cos, freq_shift=c.freq_shift, dtype=dtype
    )


@answers_for("TimestepEmbedding")
def _(site, sample):
    return timestep.time_embedding(site.p, sample)


# --------------------------------------------------------------------------------------------------------- attention


@answers_for("Attention")
def _(site, hidden_states, encoder_hidden_states=None):
    if site.in_vae:
        return attention_layers.vae_attention(site.p, hidden_states, groups=site.groups, eps=site.eps)
    return attention_layers.attention(site.p, hidden_states, encoder_hidden_states, heads=site.heads)


@answers_for("GEGLU")
def _(site, hidden_states):
    return attention_layers.geglu(site.p, hidden_states)


@answers_for("FeedForward")
def _(site, hidden_states):
    return attention_layers.feed_forward(site.p, hidden_states)


@answers_for("BasicTransformerBlock")
def _(site, hidden_states, encoder_hidden_states):
    return attention_layers.transformer_block(site.p, hidden_states, encoder_hidden_states, heads=site.heads)


@answers_for("Transformer2DModel")
def _(site, hidden_states, encoder_hidden_states):
    return attention_layers.spatial_transformer(site.p, hidden_states, encoder_hidden_states, heads=site.heads, groups=site.groups)


@answers_for("CLIPAttention")
def _(site, hidden_states):
    return attention_layers.clip_attention(site.p, hidden_states, heads=site.clip["heads"])


@answers_for("CLIPMLP")
def _(site, hidden_states):
    return attention_layers.clip_mlp(site.p, hidden_states, act=site.clip["act"])


@answers_for("CLIPEncoderLayer")
def _(site, hidden_states):
    return attention_layers.clip_layer(site.p, hidden_states, **site.clip)


# ------------------------------------------------------------------------------------------ the blocks of each model


@answers_for("CrossAttnDownBlock2D")
def _(site, hidden_states, temb, encoder_hidden_states):
    skips = []
    y = unet.down_block(site.p, hidden_states, temb, encoder_hidden_states, skips, heads=site.heads, groups=site.groups, eps=site.eps)
    return [y, *skips]


@answers_for("DownBlock2D")
def _(site, hidden_states, temb):
    return TABLE["CrossAttnDownBlock2D"](site, hidden_states, temb, None)


@answers_for("UNetMidBlock2DCrossAttn")
def _(site, hidden_states, temb, encoder_hidden_states):
    return unet.mid_block(site.p, hidden_states, temb, encoder_hidden_states, heads=site.heads, groups=site.groups, eps=site.eps)


@answers_for("CrossAttnUpBlock2D")
def _(site, hidden_states, res_hidden_states_tuple, temb, encoder_hidden_states, upsample_size=None):
    H, W = upsample_size or doubled(hidden_states)
    below = np.empty((1, H, W, 1), dtype="float32")  # the skip of the next block: only its size is looked at
    skips = [below, *res_hidden_states_tuple]
    return unet.up_block(site.p, hidden_states, temb, encoder_hidden_states, skips, heads=site.heads, groups=site.groups, eps=site.eps)


@answers_for("up_block", OWN)
def _(site, x, t_emb, context, skips):
    return unet.up_block(site.p, x, t_emb, context, list(skips), heads=site.heads, groups=site.groups, eps=site.eps)


@answers_for("UpBlock2D")
def _(site, hidden_states, res_hidden_states_tuple, temb, upsample_size=None):
    return TABLE["CrossAttnUpBlock2D"](site, hidden_states, res_hidden_states_tuple, temb, None, upsample_size)


@answers_for("DownEncoderBlock2D")
def _(site, hidden_states):
    return vae.down_encoder_block(site.p, hidden_states, groups=site.groups)


@answers_for("UpDecoderBlock2D")
def _(site, hidden_states):
    return vae.up_decoder_block(site.p, hidden_states, groups=site.groups)


@answers_for("UNetMidBlock2D")
def _(site, hidden_states):
    return vae.mid_block(site.p, hidden_states, groups=site.groups)


@answers_for("Encoder")
def _(site, sample):
    return vae.encoder(site.p, sample, groups=site.groups)


@answers_for("Decoder")
def _(site, sample):
    return vae.decoder(site.p, sample, groups=site.groups)


@answers_for("CLIPTextEmbeddings")
def _(site, input_ids):
    return clip_text.embeddings(site.p, input_ids)


@answers_for("CLIPEncoder")
def _(site, inputs_embeds):
    return clip_text.encoder(site.p, inputs_embeds, [], **site.clip)


# ------------------------------------------------------------------------------------------------------ whole models


@answers_for("UNet2DConditionModel")
def _(site, sample, timestep, encoder_hidden_states):
    return site.model(sample, timestep, encoder_hidden_states)


@answers_for("AutoencoderKL.encode")
def _(site, x):
    posterior = site.model.encode(x)
    return [posterior.mean, posterior.logvar]


@answers_for("AutoencoderKL.decode")
def _(site, z):
    return site.model.decode(z)


@answers_for("DiagonalGaussianDistribution")
def _(site, parameters):
    posterior = vae.DiagonalGaussian(parameters)
    return [posterior.mode(), posterior.logvar, posterior.std]


@answers_for("CLIPTextModel")
def _(site, input_ids):
    return [site.model(input_ids), *site.model.hidden_states(input_ids)]


def doubled(x) -> tuple:
    """(2H, 2W) of [B, H, W, C]."""
    return 2 * x.shape[1], 2 * x.shape[2]
