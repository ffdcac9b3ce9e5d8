"""The fast rungs in NumPy, one file an op; each keeps the textbook form in `../reference.py` as its simple neighbour."""

from . import activation, attention, conv2d, linear, norm  # importing registers the rungs

__all__ = ["activation", "attention", "conv2d", "linear", "norm"]
