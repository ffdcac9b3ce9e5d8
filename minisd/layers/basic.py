"""The layers with one weight and one bias: an op applied to the tensors that the checkpoint has under this name."""

import functools

from .. import ops
from ..tracing import layer, listening


def then_adds(f):
    """Lets the layer f end in sums: f(p, …) + embedding[:, None, None] + skip, added by f's last op before it stores its result.

    A listener has to see f(p, …) itself, as a hook in torch does: for it the sums are made afterwards. The numbers are the same; in float16
    on a GPU each sum is then rounded, where the op would have rounded once.
    """

    @functools.wraps(f)
    def adding(p, *args, embedding=None, skip=None, **kwargs):
        sums = {name: a for name, a in (("embedding", embedding), ("skip", skip)) if a is not None}
        if not listening():
            return f(p, *args, **kwargs, **sums)
        y = f(p, *args, **kwargs)
        y = y if embedding is None else y + embedding[:, None, None]
        return y if skip is None else y + skip

    return adding


@then_adds
@layer
def linear(p, x, *, skip=None):
    """y = x Wᵀ + b, then + skip.        x [..., C] -> [..., C′]        torch `Linear`"""
    return ops.linear(x, p.weight, p.get("bias"), skip=skip)


@then_adds
@layer
def conv2d(p, x, *, stride=1, padding=0, embedding=None, skip=None):
    """y = W ∗ x + b, zero-padded, then + embedding of each image + skip.        x [B, H, W, C] -> [B, H′, W′, C′]        torch `Conv2d`"""
    return ops.conv2d(x, p.weight, p.get("bias"), stride=stride, padding=padding, embedding=embedding, skip=skip)


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
