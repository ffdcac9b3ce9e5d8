"""The ops, backwards: each as `y, pullback = op(…)` with the arguments of `minisd.ops`; pullback(dy) gives the gradients in their order.

Where an op has weights, pullback(dy) is the gradient of x alone, and pullback(dy, wrt_params=True) is (dx, dw, db).
"""

from .activation import geglu, gelu, quick_gelu, silu, softmax
from .attention import attention
from .conv2d import conv2d
from .feed_forward import feed_forward
from .linear import embedding, linear
from .norm import group_norm, layer_norm
from .upsample_conv import upsample_conv2d, upsample_nearest

__all__ = [
    "attention", "conv2d", "embedding", "feed_forward", "geglu", "gelu", "group_norm", "layer_norm", "linear", "quick_gelu", "silu", "softmax",
    "upsample_conv2d", "upsample_nearest",
]  # fmt: skip
