"""The GPU's rungs: launchers for CuPy arrays, and the CUDA kernels they launch (`kernels/<op>/<n>_<idea>.cu`).

Importing registers the rungs and loads neither CuPy nor a compiler: those come with the first launch.
"""

from . import activation, attention, conv2d, feed_forward, hopper, linear, norm, probe, probe_hopper  # importing registers the rungs, slow → fast

__all__ = ["activation", "attention", "conv2d", "feed_forward", "hopper", "linear", "norm", "probe", "probe_hopper"]
