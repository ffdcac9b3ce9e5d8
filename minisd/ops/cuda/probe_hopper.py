"""The probe of Hopper's own instructions: `probe.py` for TMA and wgmma. Only compute capability 9.0 can be asked."""

from collections.abc import Callable

import numpy as np

from ...backend import to_numpy
from .device import device
from .kernel import Kernel
from .tensor_map import TensorMap

FILE = "probe/2_hopper.cu"
TMA = Kernel(FILE, "probe_tma")
WGMMA = Kernel(FILE, "probe_wgmma", (  # N, whether B lies by n, whether A comes from registers
    (64, False, False), (128, False, False), (160, False, False), (128, True, False), (160, True, False), (64, True, True), (96, True, True),
    (160, True, True),
))  # fmt: skip
CAPABILITY = 90
BOXES = {  # name: (box, bytes of a row, corner as column and row): both swizzles, inside and over each edge of x [24, 72]
    "inside, 128": ((16, 64), 128, (0, 0)), "over the end, 128": ((16, 64), 128, (40, 13)), "before the beginning, 128": ((16, 64), 128, (-24, -5)),
    "inside, 64": ((8, 32), 64, (32, 8)), "over the end, 64": ((8, 32), 64, (56, 21)),
}  # fmt: skip


def inputs() -> dict[str, np.ndarray]:
    """x for TMA, every number another; A [64, 64] and B by n [64, 160] of small whole numbers, all sums exact; A as registers hold it."""
    random = np.random.RandomState(21)
    a, b = (random.randint(-8, 9, shape).astype("float16") for shape in ((64, 64), (64, 160)))
    return {"x": np.arange(24 * 72, dtype="float16").reshape(24, 72), "a": a, "b": b, "fragments": fragments(a)}


def fragments(a: np.ndarray) -> np.ndarray:
    """A [64, 64] as the four registers of each of 128 threads in each of four steps of 16 k: as mma.m16n8k16 has them, a warp 16 rows."""
    step, thread, i = np.ogrid[:4, :128, :8]
    lane = thread % 32
    row = thread // 32 * 16 + lane // 4 + 8 * (i // 2 % 2)
    return np.ascontiguousarray(a[row, step * 16 + lane % 4 * 2 + i % 2 + 8 * (i // 4)]).view("int32")


def probe(to_device: Callable) -> dict[str, np.ndarray]:
    """{name: what the instruction answers}.        to_device: NumPy array -> array of the device"""
    dev, given = device(), {name: to_device(x) for name, x in inputs().items()}
    answers = {}
    for name, (box, row_bytes, corner) in BOXES.items():
        y = dev.empty((box[0] * box[1],), "float16")
        dev.launch(TMA(), 1, 128, TensorMap(given["x"], box, row_bytes), y, y.size, *corner, shared=2 * y.size + 1024 + 8)
        answers[f"tma, {name}"] = to_numpy(y)
    for N, by_n, in_registers in WGMMA.instances:
        b = dev.contiguous(given["b"][:, :N] if by_n else given["b"][:, :N].T)
        maps = TensorMap(given["a"], (64, 64), 128), TensorMap(b, (64, 32) if by_n else (N, 64), 64 if by_n else 128)
        y = dev.empty((128, N // 2), "float32")
        dev.launch(WGMMA(N, by_n, in_registers), 1, 128, *maps, given["fragments"], y, shared=2 * 64 * (64 + N) + 1024 + 8)
        answers[f"wgmma, {N}, b by {'n' if by_n else 'k'}, a in {'registers' if in_registers else 'shared memory'}"] = to_numpy(y)
    return answers
