"""The correctness part of `tools/gpu_report.py`, rehearsed in the simulator, and what it does with a rung that is wrong."""

from types import SimpleNamespace

import numpy as np
import pytest
from gpu_report_parts import kernels

from minisd.ops.dispatch import RUNGS, Rung
from tests.cudasim.simulator import FORWARD, Simulator, gpu_ladder, needs_simulator


class Record(SimpleNamespace):
    """A record that keeps everything in memory."""

    def __init__(self, quick=True):
        super().__init__(quick=quick, result={})

    def put(self, key, value):
        self.result[key] = value

    def write(self, status, reason=""):
        pass

    def each(self, items):
        yield from items


SMALL = {"linear": [(5, 16, 24), (5, 24, 16)], "conv2d": [(1, 5, 8, 16)], "attention": [(1, 1, 9, 9, 40)], "geglu": [(3, 16)],
         "feed_forward": [(9, 16)]}  # fmt: skip


@pytest.fixture
def few(monkeypatch):
    """Some cases, so that every kernel is compiled, and none takes long."""
    monkeypatch.setattr(kernels, "SHAPES", SMALL)


@pytest.mark.kernels
@needs_simulator[1]
def test_the_rungs_of_the_gpu_in_the_simulator(few):
    before = {f"{op}/{r.name}" for op, ladder in RUNGS.items() for r in ladder if r.owner == "cupy" and r.name != "cublas"}
    record = Record()
    with gpu_ladder(Simulator(ways=[FORWARD])):
        kernels.correctness(record, np.asarray, owners=("numpy",))
    found = record.result["rungs"]
    assert before <= set(found) and record.result["wrong"] == 0
    assert all(entry["problems"] == [] for entry in found.values()) and 1e-5 < found["attention/flash"]["float16"] < 1e-3
    assert found["attention/flash"]["cases"] == 1 and record.result["checks"] == sum(entry["cases"] for entry in found.values()) > 100


def test_the_rungs_of_the_cpu():
    """The same code where no kernel is needed."""
    record = Record()
    kernels.correctness(record, np.asarray, owners=("numpy", "any"))
    assert record.result["wrong"] == 0, [entry["problems"] for entry in record.result["rungs"].values() if entry["problems"]]


def test_what_is_wrong_is_named(few):
    def careless(x, w, b, **kwargs):
        if x.shape[-1] == 16:
            raise RuntimeError("an illegal address")
        return x @ w.T

    RUNGS["linear"].append(Rung("linear", "careless", careless, "numpy", "exact", lambda *args, **kwargs: None, lesson=True))
    try:
        record = Record(quick=False)
        kernels.correctness(record, np.asarray, owners=("numpy",))
    finally:
        RUNGS["linear"].pop()
    wrong = {name: entry["problems"] for name, entry in record.result["rungs"].items() if entry["problems"]}
    problems = wrong["linear/careless"]
    assert set(wrong) == {"linear/careless"} and record.result["wrong"] == 1 and any("matrix, float32: " in p for p in problems)
    assert "5,16,24, float16: RuntimeError: an illegal address" in problems
    assert any(p.startswith("5,24,16, float16: relative error ") for p in problems)


def test_every_shape_is_one():
    from minisd.benchmark.calls import Call

    for op, shapes in kernels.SHAPES.items():
        for numbers in shapes:
            assert Call.of(op, numbers).nbytes(2) < 20e6
