"""The probe of the PTX wrappers: its golden answers are the simulator's, they are right by the manual's layouts, and a difference is found."""

from pathlib import Path

import numpy as np
import pytest

from minisd.ops.cuda.device import on_device
from minisd.ops.cuda.probe import ULPS, compare, inputs, probe, ulps
from tests.cudasim.simulator import Simulator, needs_simulator

PATH = Path(__file__).parents[1] / "golden" / "ptx_probe.npz"


@pytest.fixture(scope="module")
def golden() -> dict:
    with np.load(PATH, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.kernels
@needs_simulator[1]
def test_the_simulator_still_gives_the_golden_answers(golden):
    with on_device(Simulator()):
        answers = probe(np.asarray)
    assert compare(answers, golden) == {} and set(answers) == set(golden)


def halves(registers):
    return registers.view("float16").astype("float64")


def test_the_golden_product_is_the_product(golden):
    """Gathered by the fragments' layout, as the head of ptx.cuh has it."""
    given = inputs()
    a, b, c = halves(given["a"]), halves(given["b"]), given["c"]  # [lane, 8], [lane, 4], [lane, 4]
    A, B, C, D = np.zeros((16, 16)), np.zeros((16, 8)), np.zeros((16, 8)), np.zeros((16, 8))
    for lane in range(32):
        g, t = divmod(lane, 4)
        for i in range(8):
            A[g + 8 * (i // 2 % 2), 2 * t + i % 2 + 8 * (i // 4)] = a[lane, i]
        for i in range(4):
            B[2 * t + i % 2 + 8 * (i // 2), g] = b[lane, i]
            C[g + 8 * (i // 2), 2 * t + i % 2], D[g + 8 * (i // 2), 2 * t + i % 2] = c[lane, i], golden["mma"][lane, i]
    assert np.array_equal(D, C + A @ B)


@pytest.mark.parametrize("n", [2, 4])
def test_the_golden_matrices(golden, n):
    rows = inputs()["rows"][: 8 * n].reshape(n, 8, 8)
    for name, matrices in ((f"ldmatrix_x{n}", rows), (f"ldmatrix_transposed_x{n}", rows.transpose(0, 2, 1))):
        for lane in range(32):
            expected = matrices[:, lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
            assert np.array_equal(golden[name][lane], expected), (name, lane)


def test_the_golden_copies(golden):
    given = inputs()
    expected = np.where(given["valid"][:, None], given["x"], np.float16(0))
    assert np.array_equal(golden["cp_async"][::-1], expected) and 0 < given["valid"].sum() < 32


def test_the_golden_powers(golden):
    assert ulps(golden["exp2"], np.exp2(inputs()["exponents"].astype("float64"))) <= 1


@pytest.mark.parametrize("name", ["mma", "ldmatrix_x4", "ldmatrix_transposed_x2", "cp_async"])
def test_two_lanes_that_are_exchanged_are_found(golden, name):
    wrong = golden[name].copy()
    other = next(i for i in range(6, 32) if (wrong[i] != wrong[5]).any())
    wrong[[5, other]] = wrong[[other, 5]]
    found = compare({**golden, name: wrong}, golden)
    assert set(found) == {name} and "numbers differ, first at (5, " in found[name]


def test_what_else_is_found(golden):
    off = golden["exp2"] * np.float32(1 + (ULPS + 2) * 2.0**-23)
    assert set(compare({**golden, "exp2": off}, golden)) == {"exp2"}
    assert "ulp from the truth" in compare({**golden, "exp2": np.full_like(off, np.nan)}, golden)["exp2"]
    assert compare({}, golden).keys() == golden.keys() and "no answer" in compare({}, golden)["mma"]
    negative = np.where(golden["cp_async"] == 0, np.float16(-0.0), golden["cp_async"])
    assert "cp_async" in compare({**golden, "cp_async": negative}, golden)
