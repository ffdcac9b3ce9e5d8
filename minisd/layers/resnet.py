"""The convolutional half of every block: resnets, and the two ways to change the size."""

from ..tracing import layer
from .basic import conv2d, group_norm, upsample_conv2d
from .timestep import time_projection


@layer
def resnet_block(p, x, t_emb=None, *, groups, eps):
    """norm → SiLU → conv, add the time embedding, norm → SiLU → conv, add the skip.

    x [B, H, W, C], t_emb [B, E] or Ready or None -> [B, H, W, C′]        LDM, arXiv:2112.10752; diffusers `ResnetBlock2D`
    """
    embedding = None if t_emb is None else time_projection(p.time_emb_proj, t_emb, len(x))  # [B, C′]; the VAE has no time
    h = group_norm(p.norm1, x, groups=groups, eps=eps, act="silu")
    h = conv2d(p.conv1, h, padding=1, embedding=embedding)  # [B, H, W, C′]
    h = group_norm(p.norm2, h, groups=groups, eps=eps, act="silu")
    skip = conv2d(p.conv_shortcut, x) if "conv_shortcut" in p else x
    return conv2d(p.conv2, h, padding=1, skip=skip)


@layer
def downsample(p, x, *, padding):
    """Halves height and width by a 3×3 convolution with stride 2.

    x [B, H, W, C] -> [B, H/2, W/2, C]; padding 1 in the UNet, ((0, 1), (0, 1)) in the VAE        diffusers `Downsample2D`
    """
    return conv2d(p.conv, x, stride=2, padding=padding)


@layer
def upsample(p, x, *, size):
    """Doubles height and width by repeating pixels (cut to `size`), then smooths by a 3×3 convolution.

    x [B, H, W, C] -> [B, H′, W′, C], (H′, W′) = size        diffusers `Upsample2D`
    """
    return upsample_conv2d(p.conv, x, size=size)
