"""Every rung of every op on every case of `cases.py`: a new rung is tested by existing, a new op without cases fails here.

Each rung answers rightly, or refuses with a reason: float32 by the project's rule against torch's own error, float64 equal to the
truth, float16 as near as rounding allows; again with blocks so small that loops end in a ragged block, and with arrays that do not
lie in order in memory.
"""

import re

import numpy as np
import pytest

from minisd import ops
from minisd.backend import to_numpy
from minisd.errors import UsageError
from minisd.ops import cpu
from tests.numerics import assert_close_f64, assert_faithful
from tests.ops import test_conv2d, test_feed_forward, test_linear, test_upsample_conv, test_winograd
from tests.ops.cases import CASES

# A rung of the class "fast" is held to the bound in its docstring, by the test of its own file. These keep the rule all the same.
# The GPU's rungs run on the simulator, in test_cuda_ladder.py.
FAITHFUL = {("linear", "gemm"), ("feed_forward", "row_blocks"), ("conv2d", "im2col")}
RUNGS = [rung for ladder in ops.RUNGS.values() for rung in ladder
         if rung.owner != "cupy" and (rung.numerics == "exact" or (rung.op, rung.name) in FAITHFUL)]  # fmt: skip
PAIRS = [pytest.param(r, c, id=f"{c.op}/{r.name}-{c.name}") for r in RUNGS for c in CASES if c.op == r.op]
every_rung_and_case = pytest.mark.parametrize("rung, case", PAIRS)
every_cpu_rung_and_case = pytest.mark.parametrize("rung, case", [p for p in PAIRS if p.values[0].run.__module__.startswith(cpu.__name__)])


BLOCK_SIZES = ("BLOCK", "_BYTES", "ROWS", "PIXELS", "QUERIES", "KEYS", "DEPTH")  # what the constants of `ops/cpu` that cut the work are called


def run(rung, args, kwargs):
    """The op's result by this rung and no other, as NumPy; None where the rung refuses (and then the error repeats its reason)."""
    with ops.using(**{rung.op: rung.name}):
        try:
            return to_numpy(getattr(ops, rung.op)(*args, **kwargs))
        except UsageError as refusal:
            (line,) = [line for line in refusal.why.splitlines() if line.split()[0] == rung.name]
            assert line.partition(f"{rung.idea} · ")[2], f"{rung.op}/{rung.name} refuses without a reason: {line}"
            return None


def test_every_fast_rung_is_held_to_the_bound_in_its_docstring():
    """The numbers that the tests of the rungs' own files assert are those that people read."""
    held = {**test_winograd.BOUNDS, "nine_products": test_upsample_conv.BOUND, "gemm": test_linear.BOUND, "im2col": test_conv2d.BOUND,
            "row_blocks": test_feed_forward.BOUND}  # fmt: skip
    fast = [rung for ladder in ops.RUNGS.values() for rung in ladder if rung.numerics == "fast" and rung.owner == "numpy"]
    assert {r.name: float(re.search(r"error against float64 at most (\S+)", r.run.__doc__)[1]) for r in fast} == held


@pytest.mark.parametrize("op", sorted(ops.RUNGS))
def test_every_op_has_cases(op):
    assert any(case.op == op for case in CASES)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda r: f"{r.op}/{r.name}")
def test_every_rung_takes_float32(rung):
    """A rung that refused every case would pass all the other tests here."""
    results = [run(rung, c.inputs("float32"), c.keywords("float32")) for c in CASES if c.op == rung.op]
    assert any(y is not None for y in results)


@every_rung_and_case
def test_float32_is_as_near_to_the_truth_as_torch(rung, case, golden_ops):
    y = run(rung, case.inputs("float32"), case.keywords("float32"))
    if y is not None:
        assert_faithful(y, golden_ops[f"{case.id}/truth"], golden_ops[f"{case.id}/torch"], name=f"{case.id} by {rung.name}")


@every_rung_and_case
def test_float64_is_the_truth(rung, case, golden_ops):
    y = run(rung, case.inputs("float64"), case.keywords("float64"))
    if y is not None:
        assert_close_f64(y, golden_ops[f"{case.id}/truth"], name=f"{case.id} by {rung.name}", tolerance=1e-12)


@every_rung_and_case
def test_float16_is_the_rounded_truth(rung, case):
    """The truth is the reference in float64 on the same float16 numbers (which the test above compares with torch)."""
    args = case.inputs("float16")
    y = run(rung, args, case.keywords("float16"))
    if y is not None:
        with ops.using(**{case.op: "reference"}):
            widened = [a.astype("float64") if getattr(a, "dtype", None) == np.float16 else a for a in args]
            truth = getattr(ops, case.op)(*widened, **case.keywords("float64"))
        assert_faithful(y, truth, truth.astype("float16"), name=f"{case.id} by {rung.name}")


@pytest.mark.parametrize("size", [40, 100, 4000])
@every_cpu_rung_and_case
def test_ragged_blocks_change_nothing(rung, case, size, golden_ops, monkeypatch):
    """`size` is in elements or bytes, whatever the rung counts: one number for all of them hits 1, 2 and more rows a block."""
    found = [(m, name) for m in vars(cpu).values() if hasattr(m, "__file__") for name in vars(m) if name.endswith(BLOCK_SIZES)]
    assert {m.__name__.rpartition(".")[2] for m, _ in found} >= {"activation", "attention", "conv2d", "norm"}
    for module, name in found:
        monkeypatch.setattr(module, name, size)
    test_float32_is_as_near_to_the_truth_as_torch(rung, case, golden_ops)


LAYOUTS = {
    "every_second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: a[::-1].copy()[::-1],
    "last_axis_first": lambda a: np.moveaxis(np.moveaxis(a, -1, 0).copy(), 0, -1),
}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@every_rung_and_case
def test_memory_layout_changes_nothing(rung, case, layout, golden_ops):
    """Also: an op neither writes to its inputs nor returns a view of them."""
    args = [LAYOUTS[layout](a) if isinstance(a, np.ndarray) and a.ndim else a for a in case.inputs("float32")]
    before = [np.copy(a) if isinstance(a, np.ndarray) else a for a in args]
    y = run(rung, args, case.keywords("float32"))
    if y is None:
        return
    assert_faithful(y, golden_ops[f"{case.id}/truth"], golden_ops[f"{case.id}/torch"], name=f"{case.id} by {rung.name}, {layout}")
    for a, copy in zip(args, before):
        if isinstance(a, np.ndarray):
            assert np.array_equal(a, copy), "the op wrote to its input"
            assert not np.shares_memory(a, y), "the op returned a view of its input"
