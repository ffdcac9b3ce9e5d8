"""The fast rungs in NumPy, one file an idea; each keeps the textbook form in `../reference.py` as its simple neighbour."""

from . import activation, attention, feed_forward, linear, norm  # importing registers the rungs, slow → fast
from . import conv2d, winograd, planes, upsample_conv  # isort: skip

__all__ = ["activation", "attention", "conv2d", "feed_forward", "linear", "norm", "planes", "upsample_conv", "winograd"]
