"""How TMA, the copy engine of Hopper, reads an array: the boxes that one instruction fetches, and how they lie in shared memory.

    TensorMap(x, box=(1, 8, 16, 64), swizzle=128)     # of x [B, H, W, C]: 64 channels of 8 × 16 pixels of one image
    TensorMap(w.reshape(9, C, O // 32, 32).transpose(0, 2, 1, 3), box=(1, 5, 64, 32), swizzle=64)       # any strides will do

A kernel takes it as `const __grid_constant__ TensorMap x`, 128 bytes by value. Corners of boxes may lie anywhere: what is outside of
the array arrives as zeros. The kernel names a corner from the innermost axis outwards.       CUDA driver API, `cuTensorMapEncodeTiled`

The manual's example has strides that grow from axis to axis. The driver does not ask for it, and FlashAttention-3 relies on that: it maps
[S, N, D] with the tokens before the heads.
"""

import ctypes
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from ...errors import ResourceError

FLOAT16 = 6  # CU_TENSOR_MAP_DATA_TYPE_FLOAT16
SWIZZLES = {32: 1, 64: 2, 128: 3}  # bytes of a row -> CU_TENSOR_MAP_SWIZZLE_…
L2_PROMOTION_256B = 3
NBYTES, ALIGNMENT = 128, 64  # of the driver's struct
LARGEST_BOX = 256  # along an axis


@dataclass(frozen=True, eq=False)
class TensorMap:
    """An array of two to five axes, the box that one load fetches of it, and the bytes of a row of the box in shared memory: 32, 64 or 128."""

    array: Any  # float16, of the device
    box: tuple[int, ...]
    swizzle: int

    def problem(self) -> str | None:
        """What the hardware cannot do with it, or None."""
        a, itemsize = self.array, self.array.dtype.itemsize
        if not 2 <= a.ndim <= 5 or len(self.box) != a.ndim:
            return f"has {a.ndim} axes and a box of {len(self.box)}"
        if a.size == 0 or a.strides[-1] != itemsize or any(stride % 16 for stride in a.strides[:-1]):
            return f"{a.shape} has strides {a.strides}: the last must be {itemsize}, the others multiples of 16"
        if any(not 1 <= n <= LARGEST_BOX for n in self.box) or self.swizzle not in SWIZZLES or self.box[-1] * itemsize != self.swizzle:
            return f"has a box {self.box} with rows of {self.swizzle} bytes"
        return None


@cache
def driver() -> ctypes.CDLL:
    """libcuda, which comes with the GPU's driver."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ResourceError("the GPU's driver is not installed", str(error), "install NVIDIA's driver, or run on the CPU") from error


@lru_cache(maxsize=4096)
def encoded(address: int, shape: tuple, strides: tuple, box: tuple, swizzle: int) -> np.ndarray:
    """The driver's struct for a float16 array at this address, as an array of one element: how CuPy passes a struct by value."""
    memory = np.zeros(NBYTES + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    struct = memory[begin : begin + NBYTES].view(np.dtype((np.void, NBYTES)))
    rank = len(shape)
    sizes = (ctypes.c_uint64 * rank)(*reversed(shape))
    distances = (ctypes.c_uint64 * (rank - 1))(*reversed(strides[:-1]))
    boxes, steps = (ctypes.c_uint32 * rank)(*reversed(box)), (ctypes.c_uint32 * rank)(*[1] * rank)
    interleave = nothing_special_outside = 0
    failed = driver().cuTensorMapEncodeTiled(
        ctypes.c_void_p(struct.ctypes.data), FLOAT16, rank, ctypes.c_void_p(address), sizes, distances, boxes, steps, interleave,
        SWIZZLES[swizzle], L2_PROMOTION_256B, nothing_special_outside,
    )  # fmt: skip
    if failed:
        what = f"the driver refuses a tensor map of {shape}, strides {strides}, box {box}, swizzle {swizzle}"
        raise ResourceError(what, f"cuTensorMapEncodeTiled: error {failed}", "report this, or choose another rung with ops.using")
    return struct
