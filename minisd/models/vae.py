"""The autoencoder: between pictures and the latents, eight times smaller in each direction, in which the diffusion happens.

Only wiring. Every group norm of the VAE has eps 1e-6, a constant in the official code that no config mentions.
"""

from ..backend import array_module, beside, host_dtype, like, to_nchw, to_nhwc
from ..layers.attention import vae_attention
from ..layers.basic import conv2d, group_norm
from ..layers.resnet import downsample, resnet_block, upsample
from ..rng import randn
from ..tracing import layer
from .model import Model

VAE_NORM_EPS = 1e-6


@layer
def down_encoder_block(p, x, *, groups):
    """Resnets, then half the size.        [B, H, W, C] -> [B, H/2, W/2, C′]        diffusers `DownEncoderBlock2D`"""
    for resnet in p.resnets:
        x = resnet_block(resnet, x, groups=groups, eps=VAE_NORM_EPS)
    if "downsamplers" in p:
        x = downsample(p.downsamplers[0], x, padding=((0, 1), (0, 1)))  # one row below, one column right, as LDM trained it
    return x


@layer
def up_decoder_block(p, x, *, groups):
    """Resnets, then double the size.        [B, H, W, C] -> [B, 2H, 2W, C′]        diffusers `UpDecoderBlock2D`"""
    for resnet in p.resnets:
        x = resnet_block(resnet, x, groups=groups, eps=VAE_NORM_EPS)
    if "upsamplers" in p:
        x = upsample(p.upsamplers[0], x, size=(2 * x.shape[1], 2 * x.shape[2]))
    return x


@layer
def mid_block(p, x, *, groups):
    """resnet, attention, resnet.        [B, H, W, C] -> [B, H, W, C]        diffusers `UNetMidBlock2D`"""
    x = resnet_block(p.resnets[0], x, groups=groups, eps=VAE_NORM_EPS)
    if "attentions" in p:
        x = vae_attention(p.attentions[0], x, groups=groups, eps=VAE_NORM_EPS)
    return resnet_block(p.resnets[1], x, groups=groups, eps=VAE_NORM_EPS)


@layer
def encoder(p, x, *, groups):
    """Pixels in −1 … 1 to the moments of the latent.        [B, 8H, 8W, 3] -> [B, H, W, 2·4]        diffusers `Encoder`"""
    x = conv2d(p.conv_in, x, padding=1)
    for block in p.down_blocks:
        x = down_encoder_block(block, x, groups=groups)
    x = mid_block(p.mid_block, x, groups=groups)
    x = group_norm(p.conv_norm_out, x, groups=groups, eps=VAE_NORM_EPS, act="silu")
    return conv2d(p.conv_out, x, padding=1)


@layer
def decoder(p, z, *, groups):
    """Latents to pixels in −1 … 1.        [B, H, W, 4] -> [B, 8H, 8W, 3]        diffusers `Decoder`"""
    x = conv2d(p.conv_in, z, padding=1)
    x = mid_block(p.mid_block, x, groups=groups)
    for block in p.up_blocks:
        x = up_decoder_block(block, x, groups=groups)
    x = group_norm(p.conv_norm_out, x, groups=groups, eps=VAE_NORM_EPS, act="silu")
    return conv2d(p.conv_out, x, padding=1)


class DiagonalGaussian:
    """The encoder's answer: a normal distribution for every latent number.        diffusers `DiagonalGaussianDistribution`

    mean, logvar, std [B, 4, H, W]; logvar is clamped to −30 … 20 so that neither end overflows.
    """

    def __init__(self, moments):
        xp = array_module(moments)
        self.mean, logvar = xp.split(moments, 2, axis=1)
        self.logvar = xp.clip(logvar, -30.0, 20.0)
        self.std = xp.exp(0.5 * self.logvar)

    def mode(self):
        """The most likely latent: the mean."""
        return self.mean

    def sample(self, generator=None):
        """mean + std · noise. generator: a seed, a generator, one for each picture, or None for fresh noise; as in `minisd.rng.randn`."""
        noise = randn(self.mean.shape, generator, dtype=host_dtype(self.mean.dtype).name)
        with beside(self.mean):
            return self.mean + self.std * like(noise, self.mean)


class AutoencoderKL(Model):
    """Encoder and decoder with diffusers' names and layout. Latents for the UNet are `encode(x).sample() * config.scaling_factor`."""

    component = "vae"

    def encode(self, x) -> DiagonalGaussian:
        """x [B, 3, H, W], pixels in −1 … 1 -> a distribution of latents [B, 4, H/8, W/8], not yet scaled."""
        with self.running():
            p = self.params
            h = to_nhwc(self.take("x", x, (None, self.config.in_channels, None, None)))
            h = encoder(p.encoder, h, groups=self.config.norm_num_groups)
            if "quant_conv" in p:
                h = conv2d(p.quant_conv, h)
            return DiagonalGaussian(self.give_back(to_nchw(h), x))

    def decode(self, z):
        """z [B, 4, H, W], latents divided by the scaling factor -> pixels [B, 3, 8H, 8W], −1 … 1 but for overshoots."""
        with self.running():
            p = self.params
            h = to_nhwc(self.take("z", z, (None, self.config.latent_channels, None, None)))
            if "post_quant_conv" in p:
                h = conv2d(p.post_quant_conv, h)
            return self.give_back(to_nchw(decoder(p.decoder, h, groups=self.config.norm_num_groups)), z)
