"""The layers with one weight and one bias: an op applied to the tensors that the checkpoint has under this name."""

from .. import ops
from ..tracing import layer, listening


def add(x, h):
    """x + h, written over h, the fresh result of a layer; unless a listener may have kept h.        x broadcasts to h [B, ...] -> [B, ...]"""
    if listening():
        return x + h
    h += x
    return h


@layer
def linear(p, x):
    """y = x Wᵀ + b.        x [..., C] -> [..., C′]        torch `Linear`"""
    return ops.linear(x, p.weight, p.get("bias"))


@layer
def conv2d(p, x, *, stride=1, padding=0):
    """y = W ∗ x + b, zero-padded.        x [B, H, W, C] -> [B, H′, W′, C′]        torch `Conv2d`"""
    return ops.conv2d(x, p.weight, p.get("bias"), stride=stride, padding=padding)


@layer
def upsample_conv2d(p, x, *, size):
    """y = W ∗ upsampled x: the convolution of an upsampler, given the small image.        [B, H, W, C] -> [B, H′, W′, C′]        torch `Conv2d`"""
    return ops.upsample_conv2d(x, p.weight, p.get("bias"), size=size)


def group_norm(p, x, *, groups, eps, act=None):
    """y = (x − μ) / √(σ² + ε) · γ + β over groups of channels, then SiLU if act="silu".        [B, H, W, C]        torch `GroupNorm`"""
    if act is None or not listening():
        return _group_norm(p, x, groups=groups, eps=eps, act=act)
    return ops.silu(_group_norm(p, x, groups=groups, eps=eps))  # a listener sees the norm itself, as a hook in torch does


@layer
def _group_norm(p, x, *, groups, eps, act=None):
    return ops.group_norm(x, p.weight, p.bias, groups=groups, eps=eps, act=act)


@layer
def layer_norm(p, x, *, eps):
    """y = (x − μ) / √(σ² + ε) · γ + β over the channels.        x [..., C] -> [..., C]        torch `LayerNorm`"""
    return ops.layer_norm(x, p.weight, p.bias, eps=eps)


@layer
def embedding(p, ids):
    """y = W[ids].        ids [...] -> [..., C]        torch `Embedding`"""
    return ops.embedding(ids, p.weight)
