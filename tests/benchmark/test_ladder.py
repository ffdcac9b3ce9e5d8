"""A ladder is checked before it is timed: what is wrong, broken or refused says so, and does not hide the others. No time is asserted."""

import json
from contextlib import contextmanager

import numpy as np
import pytest

from minisd import ops
from minisd.benchmark.calls import Call
from minisd.benchmark.ladder import chosen, measure, piece, relative_l2, runnable, truth_of, why_not
from minisd.benchmark.machine import Cpu, Roof
from minisd.errors import UsageError
from minisd.ops.dispatch import RUNGS, Rung
from tests.benchmark.test_calls import SMALL_CALLS

ROOF = Roof(1e9, 1e9)


@contextmanager
def another_rung(op, name, run, refuses=lambda *args, **kwargs: None):
    RUNGS[op].append(Rung(op, name, run, "any", "exact", refuses))
    try:
        yield
    finally:
        RUNGS[op].pop()


def ladder(call, **options):
    return measure(call, machine=Cpu(), rounds=1, roof=ROOF, **options)


@pytest.mark.parametrize("call", SMALL_CALLS, ids=lambda c: f"{c.op}-{'x'.join(map(str, c.numbers))}")
def test_every_op_has_a_ladder(call):
    result = ladder(call)
    assert [row.rung for row in result.rows] == [r.name for r in ops.RUNGS[call.op]]
    ran = {row.rung: row for row in result.rows if not row.left_out}
    assert result.runs in ran and "reference" in ran and all(row.error <= 1e-6 and row.ms > 0 and row.how == "wall clock" for row in ran.values())
    reference = ran["reference"]
    assert reference.of_roof == pytest.approx(ROOF.seconds(call.flop, call.nbytes(4)) / (1e-3 * reference.ms))
    assert reference.gbs == pytest.approx(call.nbytes(4) / (1e6 * reference.ms))
    assert reference.gflops == pytest.approx(call.flop / (1e6 * reference.ms))
    assert all(row.ms is None and row.left_out for row in result.rows if row.rung not in ran)
    assert all(row.left_out for row in result.rows if row.rung in {r.name for r in ops.RUNGS[call.op] if r.owner == "cupy"})
    assert json.loads(json.dumps(result.to_dict()))["op"] == call.op


def test_a_wrong_rung_is_not_timed():
    call = Call.of("linear", (3, 4, 5))
    for wrong in (lambda x, w, b, **k: x @ w.T, lambda x, w, b, **k: np.full((3, 5), np.nan, x.dtype)):
        with another_rung("linear", "careless", wrong):
            *others, last = ladder(call).rows
        assert last.rung == "careless" and last.ms is None and last.left_out.startswith("wrong: relative error")
        assert others[0].ms is not None
        json.dumps(last.error, allow_nan=False)


def test_a_broken_rung_does_not_hide_the_others():
    def broken(x, w, b, **kwargs):
        raise RuntimeError("CUDA error\nmore")

    with another_rung("linear", "broken", broken):
        *others, last = ladder(Call.of("linear", (3, 4, 5))).rows
    assert last.left_out == "failed: RuntimeError: CUDA error" and others[0].ms is not None


def test_a_refusal_is_repeated():
    with another_rung("linear", "picky", None, refuses=lambda *args, **kwargs: "takes · nothing"):
        args, kwargs = Call.of("linear", (3, 4, 5)).build("float32")
        assert why_not("linear", "picky", args, kwargs) == "takes · nothing" and why_not("linear", "reference", args, kwargs) is None
        calls, reasons = runnable("linear", args, kwargs)
        assert "picky" not in calls and reasons["picky"] == "takes · nothing" and calls["reference"]().shape == (3, 5)


def test_rungs_by_name():
    assert [r.name for r in chosen("linear", ["gemm", "reference"])] == ["reference", "gemm"]
    assert chosen("linear", None) == chosen("linear", ["all"]) == ops.RUNGS["linear"]
    with pytest.raises(UsageError, match="linear has no rung 'fast'"):
        chosen("linear", ["fast"])
    assert [row.rung for row in ladder(Call.of("linear", (3, 4, 5)), names=["gemm"]).rows] == ["gemm"]


@pytest.mark.parametrize("op, numbers", [
    ("conv2d", (1, 4, 3, 19)), ("upsample_conv2d", (1, 3, 2, 19)), ("linear", (3, 4, 19)), ("feed_forward", (2, 17)),
    ("attention", (2, 3, 5, 5, 4, 1)), ("group_norm", (1, 2, 8, 2)),
])  # fmt: skip
def test_the_truth_of_a_piece_is_a_piece_of_the_truth(op, numbers):
    args, kwargs = Call.of(op, numbers).build("float64")
    truth, cut = truth_of(op, args, kwargs)
    whole = getattr(ops, op)(*args, **kwargs)
    assert truth.dtype == np.float64 and relative_l2(cut(whole), truth) < 1e-13
    assert (truth.size < whole.size) == (op != "group_norm")


def test_a_missing_bias_is_no_piece():
    x, w = np.ones((2, 3)), np.ones((20, 3))
    assert piece("linear", [x, w, None])[0][2] is None


def test_relative_l2():
    assert relative_l2(np.array([3.0, 5.0]), np.array([3.0, 4.0])) == 0.2 and relative_l2(np.zeros(2), np.zeros(2)) == 0.0
    assert np.isnan(relative_l2(np.array([np.nan]), np.ones(1)))
