"""Which function of `minisd.layers` answers for which module of the reference."""

from .. import ops
from ..layers import attention as attention_layers
from ..layers import basic, resnet, timestep
from .site import OWN, answers_for, doubled

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
