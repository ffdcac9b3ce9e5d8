"""The ONNX backend test suite through `minisd.ops`: cases that no one here wrote, some of them recorded from PyTorch.

The cases come from the onnx 1.22.0 wheel (kinds node, pytorch-converted, pytorch-operator): small graphs with inputs and expected
outputs. onnx.reference runs them, with the operators of `adapters.TABLE` replaced by calls of our façade; the expanded twins of
Attention and others so end in our softmax and linear. A case counts only if an op of minisd computed in it.
"""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator

from .. import ops
from .adapters import OPERATORS, TABLE, NotOurs, facade

VERSION = "1.22.0"  # whose counts these are; later wheels hold no node cases
SKIPPED = {
    "test_mish_expanded": "its Tanh near 0 is our softmax of [x, −x], 1e-7 off; the standard allows 1e-3 of a result that is nearly 0",
}
# passed by an op of ours, passed by NumPy alone (Gather of shapes), and the reasons why others are not run
EXPECTED = {
    "passed": 192,
    "passed, expanded into smaller operators": 117,
    "passed without an op of ours": 3,
    "Attention with a further output, qk_matmul_output: our op does not hand it out": 12,
    "Attention with softcap: a tanh of the scores, which no Stable Diffusion has": 10,
    "Resize to any size: ours doubles by repetition, as SD's upsamplers do": 40,
    SKIPPED["test_mish_expanded"]: 1,
}
SETS = {"fast": {"profile": "fast"}, "exact": {"profile": "exact"}, "reference": {op: "reference" for op in ops.RUNGS}}


@cache
def collect() -> dict:
    """{name: (case, model)} for every graph that holds an operator of the table."""
    cases = {}
    for kind in ("node", "pytorch-converted", "pytorch-operator"):
        for case in load_model_tests(kind=kind):
            model = onnx.load(Path(case.model_dir) / "model.onnx")
            if any(node.op_type in TABLE for node in model.graph.node):
                cases[case.name] = case, model
    return dict(sorted(cases.items()))


def stored(case, which: str) -> list:
    """test_data_set_0/input_0.pb, input_1.pb, … as arrays."""
    folder = Path(case.model_dir) / "test_data_set_0"
    count = len(list(folder.glob(f"{which}_*.pb")))
    return [numpy_helper.to_array(onnx.load_tensor(folder / f"{which}_{i}.pb")) for i in range(count)]


def run(name: str, slack=0.0, **choices) -> set[str]:
    """Runs a case with a choice of rungs, compares every output as the suite says, and returns the names of our ops that computed.

    slack: allowed in addition, as a part of the largest number of the output. Raises AssertionError where an output differs.
    """
    case, model = collect()[name]
    facade.called.clear()
    evaluator = ReferenceEvaluator(model, new_ops=list(OPERATORS), optimized=False)
    inputs = {i.name: x for i, x in zip(model.graph.input, stored(case, "input"))}  # old graphs list their weights, too
    with ops.using(**choices):
        outputs = evaluator.run(None, inputs)
    for y, expected in zip(outputs, stored(case, "output"), strict=True):
        if (y.dtype, y.shape) != (expected.dtype, expected.shape):
            raise AssertionError(f"{y.dtype} {y.shape} instead of {expected.dtype} {expected.shape}")
        y, expected = y.astype("float64"), expected.astype("float64")
        largest = np.abs(expected).max(initial=0.0, where=np.isfinite(expected))
        np.testing.assert_allclose(y, expected, rtol=case.rtol, atol=case.atol + slack * largest)
    return set(facade.called)


def verdict(name: str, rungs: str) -> str:
    """ "passed…", or the reason why a case is not ours, with the rungs of one of SETS. Raises AssertionError where an output differs."""
    if name in SKIPPED:
        return SKIPPED[name]
    try:
        if not run(name, **SETS[rungs]):
            return "passed without an op of ours"
        return "passed, expanded into smaller operators" if "_expanded" in name else "passed"
    except NotOurs as reason:
        return str(reason)
