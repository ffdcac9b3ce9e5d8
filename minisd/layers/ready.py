"""Products that are ready before the loop: what linear layers make of an input that no step changes.

    ready, = products([p.to_k, p.to_v], context[None])        # the keys and values of a prompt
    ready[p.to_k]                                             # [B, T, C], as linear(p.to_k, context)

All of them lie in one flat array, so that a CUDA graph is given another prompt or another timestep by one copy.
"""

import math

from ..backend import array_module
from .basic import linear

ALIGNED = 16  # numbers: every product begins at a multiple of 16 bytes or more, as vector loads ask for


class Ready:
    """Products of linear layers with one input. flat [n]        places: {path of the layer: (where its product begins, its shape)}"""

    __slots__ = ("flat", "places")

    def __init__(self, flat, places: dict):
        self.flat, self.places = flat, places

    def __len__(self):
        """B: the rows of the input."""
        return next(iter(self.places.values()))[1][0]

    def __getitem__(self, p):
        begin, shape = self.places[p.path]
        return self.flat[begin : begin + math.prod(shape)].reshape(shape)


def products(layers: list, x) -> list[Ready]:
    """The products of every layer with each of n inputs: one matrix product a layer.        x [n, …, C] -> n times {layer: […, C′]}"""
    ys = {p.path: linear(p, x) for p in layers}
    places, end = {}, 0
    for path, y in ys.items():
        places[path] = end, y.shape[1:]
        end += math.ceil(math.prod(y.shape[1:]) / ALIGNED) * ALIGNED
    flats = array_module(x).zeros((len(x), end), dtype=x.dtype)
    for path, y in ys.items():
        begin, shape = places[path]
        flats[:, begin : begin + math.prod(shape)] = y.reshape(len(x), -1)
    return [Ready(flat, places) for flat in flats]


def project(p, x):
    """linear(p, x), or the product of p if it is ready.        x [..., C] or Ready -> [..., C′]"""
    return x[p] if isinstance(x, Ready) else linear(p, x)
