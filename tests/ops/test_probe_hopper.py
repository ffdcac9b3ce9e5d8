"""The probe of TMA and wgmma: its golden answers are the simulator's, and right by the layouts of the PTX manual."""

from pathlib import Path

import numpy as np
import pytest

from minisd.ops.cuda.device import on_device
from minisd.ops.cuda.probe import compare
from minisd.ops.cuda.probe_hopper import BOXES, CAPABILITY, WGMMA, inputs, probe
from tests.cudasim.simulator import Simulator, needs_simulator

PATH = Path(__file__).parents[1] / "golden" / "ptx_probe_hopper.npz"


@pytest.fixture(scope="module")
def golden() -> dict:
    with np.load(PATH, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.kernels
@needs_simulator[1]
def test_the_simulator_still_gives_the_golden_answers(golden):
    with on_device(Simulator(capability=CAPABILITY)):
        answers = probe(np.asarray)
    assert compare(answers, golden) == {} and set(answers) == set(golden) and len(golden) == len(BOXES) + len(WGMMA.instances)


@pytest.mark.parametrize("name", BOXES)
def test_the_golden_boxes(golden, name):
    """Zeros outside of x; 16 bytes of row r at place c lie at place c ^ r % 8, or c ^ r / 2 % 4 where rows have 64 bytes."""
    (rows, columns), row_bytes, (column, row) = BOXES[name]
    padded = np.pad(inputs()["x"], 100)
    box = padded[100 + row : 100 + row + rows, 100 + column : 100 + column + columns].reshape(rows, -1, 8)
    lies = golden[f"tma, {name}"].reshape(rows, -1, 8)
    for r in range(rows):
        for c in range(box.shape[1]):
            place = c ^ r % 8 if row_bytes == 128 else c ^ r // 2 % 4
            assert np.array_equal(lies[r, place], box[r, c]), (r, c)


def test_the_golden_products(golden):
    """d[4 j + i] of thread t is D[16 (t / 32) + l / 4 + 8 (i / 2), 8 j + 2 (l % 4) + i % 2], l = t % 32."""
    given = inputs()
    D = given["a"].astype("float64") @ given["b"].astype("float64")
    t, at = np.ogrid[:128, :80]
    lane, j, i = t % 32, at // 4, at % 4
    expected = D[16 * (t // 32) + lane // 4 + 8 * (i // 2), 8 * j + 2 * (lane % 4) + i % 2]
    for name, y in golden.items():
        if name.startswith("wgmma"):
            assert np.array_equal(y, expected[:, : y.shape[1]]), name
