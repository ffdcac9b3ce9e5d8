"""The convolutional half of every block, backwards."""

from ...layers import basic as forward
from ..ops import silu
from .basic import conv2d, group_norm, linear, upsample_conv2d


def norm_conv(p_norm, p_conv, x, *, groups, eps):
    """conv(SiLU(norm(x))), keeping x alone: the pullback of the norm starts from x, and only dW of the convolution asks for its input.

    x [B, H, W, C] -> y [B, H, W, C′]
    """
    options = dict(groups=groups, eps=eps, act="silu")
    h, pull_norm = group_norm(p_norm, x, **options)
    y, pull_conv = conv2d(p_conv, h, padding=1, again=lambda: forward.group_norm(p_norm, x, **options))
    return y, lambda dy: pull_norm(pull_conv(dy))


def resnet_block(p, x, t_emb=None, *, groups, eps):
    """y = f(x, t_emb) + skip(x)    →    dx = fₓᵀ dy + skipᵀ dy,   dt_emb through the sum of dh over the pixels.

    x [B, H, W, C], t_emb [B, E] or None -> y [B, H, W, C′]; pullback(dy) -> dx, dt_emb; dx alone without a time
    """
    h, pull_1 = norm_conv(p.norm1, p.conv1, x, groups=groups, eps=eps)
    if t_emb is not None:
        e, pull_silu = silu(t_emb)
        e, pull_time = linear(p.time_emb_proj, e)
        h = h + e[:, None, None, :]
    h, pull_2 = norm_conv(p.norm2, p.conv2, h, groups=groups, eps=eps)
    skip, pull_skip = conv2d(p.conv_shortcut, x) if "conv_shortcut" in p else (x, lambda dy: dy)

    def pullback(dy):
        dh = pull_2(dy)
        dx = pull_1(dh) + pull_skip(dy)
        return dx if t_emb is None else (dx, pull_silu(pull_time(dh.sum(axis=(1, 2)))))

    return h + skip, pullback


def downsample(p, x, *, padding):
    """dx = Wᵀ ∗ dy with zeros between the pixels of dy.        x [B, H, W, C] -> y [B, H/2, W/2, C]"""
    return conv2d(p.conv, x, stride=2, padding=padding)


def upsample(p, x, *, size):
    """dx = the sums of 2 × 2 pixels of Wᵀ ∗ dy.        x [B, H, W, C] -> y [B, H′, W′, C], (H′, W′) = size"""
    return upsample_conv2d(p.conv, x, size=size)
