"""Every rung of the GPU on every case of `cases.py`, in the simulator: the ladder test of the CPU, for kernels.

Each rung answers rightly, or refuses with a reason: float32 by the project's rule against torch's own error, float16 as near to the truth
as rounding allows, a rung of the class "fast" within the bound that its docstring states.
"""

import re

import numpy as np
import pytest

from minisd import ops
from minisd.ops.dispatch import RUNGS
from tests.cudasim.simulator import gpu_ladder, needs_simulator
from tests.numerics import assert_faithful, relative_l2
from tests.ops.cases import CASES
from tests.ops.test_ladder import LAYOUTS, run

pytestmark = needs_simulator
GPU = [rung for ladder in RUNGS.values() for rung in ladder if rung.owner == "cupy" and rung.name != "cublas"]
PAIRS = [pytest.param(r, c, id=f"{c.op}/{r.name}-{c.name}") for r in GPU for c in CASES if c.op == r.op]
every_rung_and_case = pytest.mark.parametrize("rung, case", PAIRS)
SKIPPED = {"embedding", "upsample_nearest"}  # ops without a kernel of their own: indexing, copies

OTHER_SHAPES = {  # rungs whose widths are not among the cases, or which are for another GPU than the simulator says it is
    ("attention", "flash"): "test_cuda_attention.py",
    ("attention", "tuned"): "test_cuda_attention.py",
    ("attention", "few_keys"): "test_cuda_attention.py",
    ("softmax", "vectors"): "test_cuda_activation.py",
    ("geglu", "vectors"): "test_cuda_activation.py",
    ("feed_forward", "geglu_epilogue"): "test_feed_forward.py",
    ("conv2d", "split_k"): "test_cuda_conv2d.py",
    ("upsample_conv2d", "split_k"): "test_cuda_conv2d.py",
    **{(op, "wgmma"): "test_hopper.py" for op in ("linear", "conv2d", "upsample_conv2d", "attention")},
}


@pytest.fixture(scope="module", autouse=True)
def simulator():
    with gpu_ladder() as device:
        yield device


def test_every_other_op_has_a_kernel():
    assert {r.op for r in GPU} == set(RUNGS) - SKIPPED


@pytest.mark.parametrize("rung", GPU, ids=lambda r: f"{r.op}/{r.name}")
def test_every_rung_takes_some_case(rung):
    """A rung that refused every case would pass all the other tests here."""
    taken = [c for c in CASES if c.op == rung.op for d in ("float32", "float16") if rung.refuses(*c.inputs(d), **full(c, d)) is None]
    assert taken or (rung.op, rung.name) in OTHER_SHAPES


def full(case, dtype) -> dict:
    """The keywords of a case as a rung gets them from the façade."""
    defaults = {"group_norm": dict(act=None), "attention": dict(mask=None, causal=False)}
    return {**defaults.get(case.op, {}), **case.keywords(dtype)}


@every_rung_and_case
def test_float32_is_as_near_to_the_truth_as_torch(rung, case, golden_ops):
    y = run(rung, case.inputs("float32"), case.keywords("float32"))
    if y is not None:
        assert_faithful(y, golden_ops[f"{case.id}/truth"], golden_ops[f"{case.id}/torch"], name=f"{case.id} by {rung.name}")


@every_rung_and_case
def test_float16_is_the_rounded_truth(rung, case):
    args = case.inputs("float16")
    y = run(rung, args, case.keywords("float16"))
    if y is None:
        return
    with ops.using(**{case.op: "reference"}):
        widened = [a.astype("float64") if getattr(a, "dtype", None) == np.float16 else a for a in args]
        truth = getattr(ops, case.op)(*widened, **case.keywords("float64"))
    if rung.numerics == "fast":
        assert relative_l2(y, truth) <= float(re.search(r"at most (\de-\d)", rung.run.__doc__)[1])
    else:
        assert_faithful(y, truth, truth.astype("float16"), name=f"{case.id} by {rung.name}")


@pytest.mark.parametrize("rung", GPU, ids=lambda r: f"{r.op}/{r.name}")
def test_float64_is_refused(rung):
    case = next(c for c in CASES if c.op == rung.op)
    assert run(rung, case.inputs("float64"), case.keywords("float64")) is None


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("rung", GPU, ids=lambda r: f"{r.op}/{r.name}")
def test_memory_layout_changes_nothing(rung, layout):
    """The first case that the rung takes, with arrays that do not lie in order."""
    for case in (c for c in CASES if c.op == rung.op):
        args = case.inputs("float16")
        plain = run(rung, args, case.keywords("float16"))
        if plain is not None:
            moved = [LAYOUTS[layout](a) if isinstance(a, np.ndarray) and a.ndim else a for a in args]
            assert np.array_equal(run(rung, moved, case.keywords("float16")), plain)
            return
