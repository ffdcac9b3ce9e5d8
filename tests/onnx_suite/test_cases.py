"""The ONNX backend test suite passes with every set of rungs, and with every rung that takes its cases."""

from collections import Counter
from functools import cache

import onnx
import pytest

from minisd import ops
from minisd.errors import UsageError
from minisd.onnx_suite.cases import EXPECTED, SETS, SKIPPED, VERSION, collect, run
from minisd.onnx_suite.cases import verdict as fresh_verdict
from minisd.ops import cpu

pytestmark = pytest.mark.skipif(onnx.__version__ != VERSION, reason=f"the counts are those of {VERSION}; later wheels hold no node cases")

RUNGS = [r for ladder in ops.RUNGS.values() for r in ladder if r.owner in ("any", "numpy")]
CASES = collect()
verdict = cache(fresh_verdict)


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    for rungs in SETS:
        result = verdict(name, rungs)
    if not result.startswith("passed"):
        pytest.skip(result)


@pytest.mark.parametrize("rungs", SETS)
def test_the_count_does_not_fall(rungs):
    counts = Counter(verdict(name, rungs) for name in CASES)
    print(rungs, dict(counts))
    assert counts == EXPECTED
    assert counts["passed"] + counts["passed, expanded into smaller operators"] >= 245  # what was promised


@pytest.mark.parametrize("name", SKIPPED)
def test_skipped_cases_still_fail(name):
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        run(name)


# ----- every rung ------------------------------------------------------------------------------------------------------------

# No operator of ONNX means one of these ops, and the suite doubles no image by repetition.
WITHOUT_CASES = {"feed_forward", "geglu", "quick_gelu", "upsample_conv2d", "upsample_nearest"}


FAST = 1e-6  # slack of a fast rung, for whose bound a 0 among numbers of size 1 need not be exact


# rung -> cases that it passes, with the least sizes lifted; the other cases of its op it refuses with a reason
PASSED = {
    "linear/reference": 101, "linear/gemm": 98, "linear/short_sums": 98, "conv2d/reference": 60, "conv2d/short_sums": 58, "conv2d/im2col": 58, "conv2d/pointwise": 1, "conv2d/winograd2": 21,
    "conv2d/winograd4": 17, "group_norm/reference": 5, "group_norm/blocked": 5, "layer_norm/reference": 38, "layer_norm/blocked": 38,
    "softmax/reference": 104, "attention/reference": 42, "attention/chunked": 40, "attention/tiled": 40, "silu/reference": 3, "silu/in_place": 3,
    "gelu/reference": 5, "gelu/tanh_polynomial": 5, "embedding/reference": 20, "timestep_embedding/reference": 10,
}  # fmt: skip


@cache
def cases_of() -> dict[str, list[str]]:
    """op of ours -> the cases it computes in"""
    found = {op: [] for op in ops.RUNGS}
    for name in CASES:
        if verdict(name, "fast").startswith("passed"):
            for op in run(name):
                found[op].append(name)
    return found


@pytest.fixture
def no_least_sizes(monkeypatch):
    """Rungs that leave small images to others, because they would be slower, take the suite's tiny ones."""
    for module in vars(cpu).values():
        for name in [name for name in getattr(module, "__dict__", ()) if name.startswith("MIN_")]:
            monkeypatch.setattr(module, name, 1)


def test_which_ops_the_suite_reaches():
    assert {op for op, names in cases_of().items() if not names} == WITHOUT_CASES


@pytest.mark.parametrize("rung", [r for r in RUNGS if r.op not in WITHOUT_CASES], ids=lambda r: f"{r.op}/{r.name}")
def test_every_rung(rung, no_least_sizes):
    """A rung passes every case of its op that it does not refuse with a reason."""
    counts = Counter()
    for name in cases_of()[rung.op]:
        try:
            run(name, slack=FAST if rung.numerics == "fast" else 0.0, **{rung.op: rung.name})
            counts["passed"] += 1
        except UsageError as refusal:
            (line,) = [line for line in refusal.why.splitlines() if line.split()[0] == rung.name]
            counts["refused: " + line.partition(f"{rung.idea} · ")[2]] += 1
    print(f"{rung.op}/{rung.name}", dict(counts))
    assert counts["passed"] >= PASSED.get(f"{rung.op}/{rung.name}", 0)
    assert "refused: " not in counts
