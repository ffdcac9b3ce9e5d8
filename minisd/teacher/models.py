"""Which blocks of `minisd.models`, and which whole models, answer for which module of the reference."""

import numpy as np

from ..models import clip_text, unet, vae
from .site import OWN, TABLE, answers_for, doubled

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
