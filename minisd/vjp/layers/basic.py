"""The layers with one weight and one bias, backwards; the gradients of both go to `parameter_gradients()`."""

from .. import ops
from ..collect import keep, of_layer

WEIGHT_AND_BIAS = ("weight", "bias")


def linear(p, x, *, again=None):
    """dx = dy W.        x [..., C] -> y [..., C′]; with `again`, a function that makes x anew, x is not kept"""
    y, pullback = ops.linear(x, p.weight, p.get("bias"), again=again)
    return y, of_layer(p, WEIGHT_AND_BIAS, pullback)


def conv2d(p, x, *, stride=1, padding=0, again=None):
    """dx = Wᵀ ∗ dy, the transposed convolution.        x [B, H, W, C] -> y [B, H′, W′, C′]; `again` as in linear"""
    y, pullback = ops.conv2d(x, p.weight, p.get("bias"), stride=stride, padding=padding, again=again)
    return y, of_layer(p, WEIGHT_AND_BIAS, pullback)


def upsample_conv2d(p, x, *, size):
    """dx = the sums of 2 × 2 pixels of Wᵀ ∗ dy.        x [B, H, W, C] -> y [B, H′, W′, C′], (H′, W′) = size"""
    y, pullback = ops.upsample_conv2d(x, p.weight, p.get("bias"), size=size)
    return y, of_layer(p, WEIGHT_AND_BIAS, pullback)


def group_norm(p, x, *, groups, eps, act=None):
    """dx without its mean and its share along x̂ in each group.        x [B, H, W, C] -> y [B, H, W, C]"""
    y, pullback = ops.group_norm(x, p.weight, p.bias, groups=groups, eps=eps, act=act)
    return y, of_layer(p, WEIGHT_AND_BIAS, pullback)


def layer_norm(p, x, *, eps):
    """dx without its mean and its share along x̂ in each token.        x [..., C] -> y [..., C]"""
    y, pullback = ops.layer_norm(x, p.weight, p.bias, eps=eps)
    return y, of_layer(p, WEIGHT_AND_BIAS, pullback)


def embedding(p, ids):
    """Whole ids have no gradient: pullback(dy) returns None, and the table's goes to `parameter_gradients()`.        ids [...] -> y [..., C]"""
    y, pullback = ops.embedding(ids, p.weight)
    return y, lambda dy: keep(p, {"weight": pullback(dy)})
