"""Weights that stay in memory as float16, and are float32 whenever they are read: half the memory, the same numbers.

float16 is sign, 5 bits of exponent, 10 of fraction; float32 is sign, 8, 23. Moved to the place of float32's, the bits of a float16
mean a number that is too small by 2^(127 − 15) = 2¹¹², whether it was normal or subnormal, and the product with a power of two is exact:

    float32(h) = bits(sign(h), 000, exponent(h), fraction(h), 0…0) · 2¹¹²

An integer shift, a mask and a product widen a number in a quarter of the time of `astype`. ∞ and NaN would come out as finite
numbers: whoever packs refuses them first.
"""

import numpy as np

from .ops.cpu.arena import empty
from .ops.cpu.parallel import blocks, parallel_for

BLOCK = 1 << 16  # numbers that stay in the cache during the four passes
KEEP = np.int32(np.uint32(0x8FFFE000).view("int32"))  # the sign, and the exponent and fraction of a float16 in a float32's place


class HalfWeight:
    """A finite float16 array whose `read()` is float32. It lies in memory as its float32 would, [KH, KW, I, O] for a convolution."""

    __slots__ = ("half",)
    dtype = np.dtype("float32")  # what it is for who computes with it

    def __init__(self, half: np.ndarray):
        self.half = half

    shape = property(lambda self: self.half.shape)
    size = property(lambda self: self.half.size)
    nbytes = property(lambda self: self.half.nbytes)

    def read(self) -> np.ndarray:
        """A new float32 array of the same numbers and the same layout in memory."""
        axes = (2, 3, 1, 0) if self.half.ndim == 4 else range(self.half.ndim)  # as they lie in memory
        halves = self.half.transpose(axes)
        wide = empty(halves.shape, self.dtype)
        numbers, halves = wide.reshape(-1), halves.reshape(-1).view("int16")

        def widen(part):
            x = numbers[part].view("int32")
            x[...] = halves[part]  # int16 to int32 repeats the sign
            x <<= 13
            x &= KEEP
            numbers[part] *= 2.0**112

        parallel_for(blocks(self.size, BLOCK), widen)
        return wide.transpose(np.argsort(axes))


def read(leaf):
    """The array that a leaf of `Params` stands for."""
    return leaf.read() if isinstance(leaf, HalfWeight) else leaf
