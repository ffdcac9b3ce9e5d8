"""Are the kernels right on this GPU? The probe of single instructions, and every rung on the cases of the tests."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
SHAPES = {  # for rungs whose widths are not among the cases: (op, numbers of a `Call`)
    "attention": [(1, 2, 77, 77, d) for d in (40, 64, 80, 160)] + [(1, 2, 200, 77, 40), (2, 1, 130, 130, 64, 1)],
    "geglu": [(9, 40)], "linear": [(130, 320, 320), (77, 768, 320), (33, 1280, 640)], "feed_forward": [(40, 320)],
    "conv2d": [(2, 9, 320, 320), (1, 16, 64, 96), (1, 12, 32, 3), (2, 8, 640, 1280, 1), (1, 9, 320, 320, 3, 2)],
    "upsample_conv2d": [(1, 9, 320, 320)], "group_norm": [(2, 16, 320), (1, 8, 960)],
}  # fmt: skip
BOUNDS = {"float16": 1e-3, "float32": 2e-6}  # relative L2 error


def probe(record):
    """The answers of the PTX wrappers beside the simulator's; those of Hopper's own on a Hopper."""
    from minisd.benchmark.gpu import Gpu
    from minisd.ops.cuda import probe, probe_hopper
    from minisd.ops.cuda.device import device

    to_device, asked, wrong = Gpu().cupy.asarray, [], {}
    for module, name in ((probe, "ptx_probe.npz"), (probe_hopper, "ptx_probe_hopper.npz")):
        if module is probe_hopper and device().capability != probe_hopper.CAPABILITY:
            continue
        answers = module.probe(to_device)
        with np.load(GOLDEN / name, allow_pickle=False) as golden:
            wrong |= probe.compare(answers, dict(golden))
        asked += sorted(answers)
        record.put("asked", asked)
        record.put("wrong", wrong)
        if module is probe:
            record.put("exp2 ulp", round(probe.ulps(answers["exp2"], np.exp2(probe.inputs()["exponents"].astype("float64"))), 3))


def cases(quick: bool):
    """(op, name, arguments and keywords by dtype, golden name or None): those of the tests, and those of SHAPES."""
    from minisd.benchmark.calls import Call
    from tests.ops.cases import CASES

    for case in CASES[:: 4 if quick else 1]:
        yield case.op, case.name, lambda dtype, case=case: (case.inputs(dtype), case.keywords(dtype)), case.id
    for op, shapes in SHAPES.items():
        for numbers in shapes:
            call = Call.of(op, numbers)
            yield op, ",".join(map(str, call.numbers)), call.build, None


def check(rung, build: Callable, golden_name, golden, dtype: str, to_device: Callable) -> dict | None:
    """One rung on one case -> {error: relative L2, problem}; None where it refuses.

    The cases of the tests are held to the tests' rule, the others and the rungs of the class "fast" to a relative error.
    """
    from minisd.backend import to_numpy
    from minisd.benchmark.ladder import by, relative_l2, truth_of, why_not

    args, kwargs = build(dtype)
    on_device = [to_device(a) if isinstance(a, np.ndarray) else a for a in args]
    kwargs = {k: to_device(v) if isinstance(v, np.ndarray) else v for k, v in kwargs.items()}
    if why_not(rung.op, rung.name, on_device, kwargs) is not None:
        return None
    y = to_numpy(by(rung.op, rung.name, on_device, kwargs)())
    if dtype == "float32" and golden_name:
        truth, plain = golden[f"{golden_name}/truth"], golden[f"{golden_name}/torch"]
    else:
        wide = [a.astype("float64") if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in args]  # the very numbers
        truth, cut = truth_of(rung.op, wide, build("float64")[1])
        y, plain = cut(y), truth.astype(dtype)
    error = relative_l2(y, truth)
    if golden_name and rung.numerics == "exact":
        return {"error": error, "problem": unfaithful(y, truth, plain)}
    bound = bound_of(rung, dtype)
    return {"error": error, "problem": "" if error <= bound else f"relative error {error:.2e}, at most {bound:.0e} is right"}


def unfaithful(y, truth, plain) -> str:
    """What the tests' rule has against a result, in a line; empty where it is right."""
    from tests.numerics import assert_faithful

    try:
        assert_faithful(y, truth, plain, name="")
    except AssertionError as reason:
        return str(reason).splitlines()[0].strip(": ")
    return ""


def bound_of(rung, dtype: str) -> float:
    """What a rung's docstring promises, else what rounding allows."""
    stated = re.search(r"error against float64 at most (\de-\d)", rung.run.__doc__ or "")
    return float(stated[1]) if stated and rung.numerics == "fast" else BOUNDS[dtype]


def correctness(record, to_device: Callable | None = None, owners=("cupy",)):
    """For every rung of the GPU: how many cases it took, its largest relative error (1 where all is below float16), and what went wrong.

    to_device, owners: the simulator's in the tests
    """
    from minisd.ops import RUNGS

    if to_device is None:
        from minisd.benchmark.gpu import Gpu

        to_device = Gpu().cupy.asarray
    with np.load(GOLDEN / "ops.npz", allow_pickle=False) as file:
        golden = dict(file)
    record.result["rungs"] = found = {}
    for op, name, build, golden_name in record.each(cases(record.quick)):
        for rung in RUNGS[op]:
            if rung.owner not in owners:
                continue
            entry = found.setdefault(f"{op}/{rung.name}", {"cases": 0, "float16": 0.0, "float32": 0.0, "problems": []})
            for dtype in ("float16", "float32"):
                try:
                    result = check(rung, build, golden_name, golden, dtype, to_device)
                except Exception as problem:  # one kernel that breaks must not hide the others
                    result = {"error": None, "problem": f"{type(problem).__name__}: {problem}"}
                if result is None:
                    continue
                entry["cases"] += 1
                entry[dtype] = max(entry[dtype], result["error"]) if result["error"] is not None else entry[dtype]
                if result["problem"]:
                    entry["problems"].append(f"{name}, {dtype}: {result['problem']}")
        record.write("partial", "stopped")
    record.put("wrong", sum(bool(entry["problems"]) for entry in found.values()))
    record.put("checks", sum(entry["cases"] for entry in found.values()))
