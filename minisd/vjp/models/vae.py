"""The autoencoder, backwards: which latents a change of the pixels asks for, and which pixels a change of the latents."""

from ...backend import to_nchw, to_nhwc
from ...models.model import expect_input
from ...models.vae import VAE_NORM_EPS
from ..layers.attention import vae_attention
from ..layers.basic import conv2d, group_norm
from ..layers.resnet import downsample, resnet_block, upsample
from ..wiring import Chain, expect_host, public


def down_encoder_block(p, x, *, groups):
    """x [B, H, W, C] -> y [B, H/2, W/2, C′]"""
    steps = Chain(x)
    for resnet in p.resnets:
        steps.then(resnet_block, resnet, groups=groups, eps=VAE_NORM_EPS)
    if "downsamplers" in p:
        steps.then(downsample, p.downsamplers[0], padding=((0, 1), (0, 1)))
    return steps.y, steps.pullback


def up_decoder_block(p, x, *, groups):
    """x [B, H, W, C] -> y [B, 2H, 2W, C′]"""
    steps = Chain(x)
    for resnet in p.resnets:
        steps.then(resnet_block, resnet, groups=groups, eps=VAE_NORM_EPS)
    if "upsamplers" in p:
        steps.then(upsample, p.upsamplers[0], size=(2 * x.shape[1], 2 * x.shape[2]))
    return steps.y, steps.pullback


def mid_block(p, x, *, groups):
    """x [B, H, W, C] -> y [B, H, W, C]"""
    steps = Chain(x)
    steps.then(resnet_block, p.resnets[0], groups=groups, eps=VAE_NORM_EPS)
    if "attentions" in p:
        steps.then(vae_attention, p.attentions[0], groups=groups, eps=VAE_NORM_EPS)
    steps.then(resnet_block, p.resnets[1], groups=groups, eps=VAE_NORM_EPS)
    return steps.y, steps.pullback


def encoder(p, x, *, groups):
    """x [B, 8H, 8W, 3] pixels -> y [B, H, W, 2·4] moments"""
    steps = Chain(x)
    steps.then(conv2d, p.conv_in, padding=1)
    for block in p.down_blocks:
        steps.then(down_encoder_block, block, groups=groups)
    steps.then(mid_block, p.mid_block, groups=groups)
    steps.then(group_norm, p.conv_norm_out, groups=groups, eps=VAE_NORM_EPS, act="silu")
    steps.then(conv2d, p.conv_out, padding=1)
    return steps.y, steps.pullback


def decoder(p, z, *, groups):
    """z [B, H, W, 4] latents -> y [B, 8H, 8W, 3] pixels"""
    steps = Chain(z)
    steps.then(conv2d, p.conv_in, padding=1)
    steps.then(mid_block, p.mid_block, groups=groups)
    for block in p.up_blocks:
        steps.then(up_decoder_block, block, groups=groups)
    steps.then(group_norm, p.conv_norm_out, groups=groups, eps=VAE_NORM_EPS, act="silu")
    steps.then(conv2d, p.conv_out, padding=1)
    return steps.y, steps.pullback


def encode(vae, x):
    """`vae.encode`, backwards, up to the moments: the mean, and the log-variance before it is clamped.

    x [B, 3, 8H, 8W] -> moments [B, 2·4, H, W]; pullback(dmoments) -> dx
    """
    expect_host(vae)
    expect_input(vae, "x", x, (None, vae.config.in_channels, None, None))
    steps = Chain(to_nhwc(x))
    steps.then(encoder, vae.params.encoder, groups=vae.config.norm_num_groups)
    if "quant_conv" in vae.params:
        steps.then(conv2d, vae.params.quant_conv)
    return public(to_nchw(steps.y), lambda dy: to_nchw(steps.pullback(to_nhwc(dy))))


def decode(vae, z):
    """`vae.decode`, backwards: the gradient that guidance follows.

    z [B, 4, H, W] -> pixels [B, 3, 8H, 8W]; pullback(dpixels) -> dz
    """
    expect_host(vae)
    expect_input(vae, "z", z, (None, vae.config.latent_channels, None, None))
    steps = Chain(to_nhwc(z))
    if "post_quant_conv" in vae.params:
        steps.then(conv2d, vae.params.post_quant_conv)
    steps.then(decoder, vae.params.decoder, groups=vae.config.norm_num_groups)
    return public(to_nchw(steps.y), lambda dy: to_nchw(steps.pullback(to_nhwc(dy))))
