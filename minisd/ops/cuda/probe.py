"""Does a GPU do what the simulator believes? Every instruction that ptx.cuh wraps, alone, on fixed numbers; no rung of any ladder.

    wrong = compare(probe(cupy.asarray), golden)       # golden: tests/golden/ptx_probe.npz, recorded from the simulator

The simulator of the tests is written from the layouts in NVIDIA's manual. A layout that was misread there would be misread in the kernels
too, and every test would pass: this is the one question that only a GPU can answer.
"""

import math
from collections.abc import Callable

import numpy as np

from ...backend import to_numpy
from .device import device
from .kernel import Kernel

FILE = "probe/1_wrappers.cu"
MMA = Kernel(FILE, "probe_mma")
LDMATRIX = Kernel(FILE, "probe_ldmatrix", tuple((n, transposed) for n in (2, 4) for transposed in (False, True)))
COPY = Kernel(FILE, "probe_copy")
EXP2 = Kernel(FILE, "probe_exp2")
ULPS = 2  # that ex2.approx may be off


def inputs() -> dict[str, np.ndarray]:
    """The numbers that every probe is given: whole, and so small that all sums are exact; exponents over the whole range of normal results."""
    random = np.random.RandomState(20)

    def whole(*shape):
        return random.randint(-8, 9, shape)

    def pairs(lanes, registers):
        return whole(lanes, 2 * registers).astype("float16").view("int32")

    return {
        "a": pairs(32, 4), "b": pairs(32, 2), "c": whole(32, 4).astype("float32"), "rows": np.arange(256, dtype="float16").reshape(32, 8),
        "x": whole(32, 8).astype("float16"), "valid": random.randint(0, 2, 32).astype("int32"),
        "exponents": np.concatenate((random.uniform(-126, 128, 4000), np.arange(-126.0, 128.0))).astype("float32"),
    }  # fmt: skip


def probe(to_device: Callable) -> dict[str, np.ndarray]:
    """{name: what the instruction answers}.        to_device: NumPy array -> array of the device"""
    dev, given = device(), {name: to_device(x) for name, x in inputs().items()}
    answers = {}

    def ask(name, instance, *args, shape, dtype, grid=1, block=32, numbers=(), shared=0):
        y = dev.empty(shape, dtype)
        dev.launch(instance, grid, block, *args, y, *numbers, shared=shared)
        answers[name] = to_numpy(y)

    ask("mma", MMA(), given["a"], given["b"], given["c"], shape=(32, 4), dtype="float32")
    for n, transposed in LDMATRIX.instances:
        name = f"ldmatrix{'_transposed' if transposed else ''}_x{n}"
        ask(name, LDMATRIX(n, transposed), given["rows"], shape=(32, n, 2), dtype="float16", shared=2 * 32 * 24)
    ask("cp_async", COPY(), given["x"], given["valid"], shape=(32, 8), dtype="float16", shared=2 * 32 * 8)
    n = given["exponents"].size
    ask("exp2", EXP2(), given["exponents"], shape=(n,), dtype="float32", grid=math.ceil(n / 128), block=128, numbers=(n,))
    return answers


def ulps(y: np.ndarray, truth: np.ndarray) -> float:
    """The largest error of y in units of the last place of float32.        truth: float64"""
    error = np.abs(y.astype("float64") - truth) / np.spacing(truth.astype("float32")).astype("float64")
    return float(error.max()) if np.isfinite(y).all() else math.inf


def compare(answers: dict, golden: dict) -> dict[str, str]:
    """{name of a probe: what is wrong}, empty where a GPU and the simulator agree: bit for bit, and 2^x to ULPS of the truth."""
    wrong = {}
    for name, expected in golden.items():
        y = answers.get(name)
        if y is None or y.shape != expected.shape or y.dtype != expected.dtype:
            wrong[name] = "no answer of this shape and dtype"
        elif name == "exp2":
            off = ulps(y, np.exp2(inputs()["exponents"].astype("float64")))
            if not off <= ULPS:
                wrong[name] = f"{off:.1f} ulp from the truth, at most {ULPS} are expected"
        elif (differ := y.view(f"u{y.itemsize}") != expected.view(f"u{y.itemsize}")).any():
            at = tuple(int(i) for i in np.argwhere(differ)[0])
            wrong[name] = f"{int(differ.sum())} of {y.size} numbers differ, first at {at}: {y[at]!r}, the simulator has {expected[at]!r}"
    return wrong
