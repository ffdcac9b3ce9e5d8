"""The convolutional half of every block, backwards."""

from ..ops import silu
from .basic import conv2d, group_norm, linear, upsample_conv2d


def resnet_block(p, x, t_emb=None, *, groups, eps):
    """y = f(x, t_emb) + skip(x)    →    dx = fₓᵀ dy + skipᵀ dy,   dt_emb through the sum of dh over the pixels.

    x [B, H, W, C], t_emb [B, E] or None -> y [B, H, W, C′]; pullback(dy) -> dx, dt_emb; dx alone without a time
    """
    h, pull_norm1 = group_norm(p.norm1, x, groups=groups, eps=eps, act="silu")
    h, pull_conv1 = conv2d(p.conv1, h, padding=1)
    if t_emb is not None:
        e, pull_silu = silu(t_emb)
        e, pull_time = linear(p.time_emb_proj, e)
        h = h + e[:, None, None, :]
    h, pull_norm2 = group_norm(p.norm2, h, groups=groups, eps=eps, act="silu")
    h, pull_conv2 = conv2d(p.conv2, h, padding=1)
    skip, pull_skip = conv2d(p.conv_shortcut, x) if "conv_shortcut" in p else (x, lambda dy: dy)

    def pullback(dy):
        dh = pull_norm2(pull_conv2(dy))
        dx = pull_norm1(pull_conv1(dh)) + pull_skip(dy)
        return dx if t_emb is None else (dx, pull_silu(pull_time(dh.sum(axis=(1, 2)))))

    return h + skip, pullback


def downsample(p, x, *, padding):
    """dx = Wᵀ ∗ dy with zeros between the pixels of dy.        x [B, H, W, C] -> y [B, H/2, W/2, C]"""
    return conv2d(p.conv, x, stride=2, padding=padding)


def upsample(p, x, *, size):
    """dx = the sums of 2 × 2 pixels of Wᵀ ∗ dy.        x [B, H, W, C] -> y [B, H′, W′, C], (H′, W′) = size"""
    return upsample_conv2d(p.conv, x, size=size)
