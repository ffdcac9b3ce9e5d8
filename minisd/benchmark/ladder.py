"""The ladder of an op, measured: every rung's error to float64, its time, and how near it comes to what the machine can do."""

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from .. import ops
from ..backend import to_numpy
from ..errors import UsageError
from .calls import Call
from .machine import Machine, Roof
from .timing import interleave

BOUNDS = {"float16": 2e-3, "float32": 2e-5, "float64": 1e-12}  # above this relative error a rung is wrong, and is not timed


@dataclass(frozen=True)
class Row:
    """One rung. Where it did not run: `left_out` says why, and the numbers are None."""

    rung: str
    numerics: str
    idea: str
    error: float | None = None  # relative L2, to float64
    ms: float | None = None  # median
    gflops: float | None = None  # of the formula, a second
    gbs: float | None = None  # of the arguments and the result, a second
    of_roof: float | None = None  # 1 is the roof
    how: str = ""
    left_out: str = ""


@dataclass(frozen=True)
class Ladder:
    """All rungs of an op on one call."""

    op: str
    shape: str
    dtype: str
    machine: str
    flop: int
    nbytes: int
    roof: Roof
    runs: str  # the rung that the façade takes
    rows: list[Row]

    def to_dict(self) -> dict:
        return asdict(self)


def relative_l2(y, truth) -> float:
    """‖y − truth‖ / ‖truth‖ in float64."""
    y, truth = (to_numpy(a).astype("float64") for a in (y, truth))
    return float(np.linalg.norm(y - truth) / (np.linalg.norm(truth) or 1.0))


def by(op: str, name: str, args, kwargs) -> Callable:
    """The call of an op by one rung."""

    def call():
        with ops.using(**{op: name}):
            return getattr(ops, op)(*args, **kwargs)

    return call


def why_not(op: str, name: str, args, kwargs) -> str | None:
    """Why a rung does not take these arguments, or None."""
    with ops.using(**{op: name}):
        text = ops.explain(op, *args, **kwargs)
    (rung,) = [r for r in ops.RUNGS[op] if r.name == name]
    (line,) = [line for line in text.splitlines()[1:] if line.split()[0] == name]
    reason = line.partition(f"{rung.idea} · ")[2]
    return None if reason == "RUNS" else reason


def best(op: str, args, kwargs) -> str:
    """The rung that the façade takes for these arguments."""
    (line,) = [line for line in ops.explain(op, *args, **kwargs).splitlines() if line.endswith(" · RUNS")]
    return line.split()[0]


def chosen(op: str, names) -> list:
    """The rungs of an op with these names, all for None or "all", in the order of the ladder. Raises UsageError."""
    ladder = ops.RUNGS[op]
    if not names or tuple(names) == ("all",):
        return list(ladder)
    known = [r.name for r in ladder]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"{op} has no rung {unknown[0]!r}", "", f"its rungs are {', '.join(known)}")
    return [r for r in ladder if r.name in names]


def runnable(op: str, args, kwargs, names=None) -> tuple[dict, dict]:
    """({name: call} of the rungs that take these arguments, {name: reason} of the others)."""
    reasons = {r.name: why_not(op, r.name, args, kwargs) for r in chosen(op, names)}
    return {n: by(op, n, args, kwargs) for n, reason in reasons.items() if reason is None}, {n: r for n, r in reasons.items() if r is not None}


def piece(op: str, args) -> tuple[list, Callable]:
    """Arguments that make a part of the result, and the function that cuts it from a whole one: float64 is slow, and a part is enough."""
    some = slice(0, 16)
    if op in ("conv2d", "upsample_conv2d", "linear"):
        x, w, b = args
        return [x, w[some], None if b is None else b[some]], lambda y: y[..., some]
    if op == "feed_forward":
        return [*args[:3], args[3][some], args[4][some]], lambda y: y[..., some]
    if op == "attention":
        return [a[:, :1] for a in args], lambda y: y[:, :1]
    return list(args), lambda y: y


def truth_of(op: str, args, kwargs) -> tuple[np.ndarray, Callable]:
    """A part of the result in float64 by the reference, and the function that cuts the same part from another result."""
    part, cut = piece(op, args)
    wide = [a.astype("float64") if a is not None and a.dtype.kind == "f" else a for a in part]
    with ops.using(profile="exact", **{op: "reference"}):
        return to_numpy(getattr(ops, op)(*wide, **kwargs)), cut


def checked(call: Callable, truth, cut, bound: float) -> tuple[float | None, str]:
    """(relative error, "") of one call; or why the rung is not timed, in words."""
    try:
        y = to_numpy(cut(call()))
    except Exception as problem:  # one rung that breaks must not hide the others
        return None, f"failed: {type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}"
    error = relative_l2(y, truth)
    return error, "" if error <= bound else f"wrong: relative error {error:.1e}, at most {bound:.0e} is right"


def measure(call: Call, *, machine: Machine, dtype: str = "float32", names=None, rounds: int = 5, roof: Roof | None = None,
            say: Callable = lambda line: None) -> Ladder:  # fmt: skip
    """Checks, then times every rung of the op on one call. roof: if it has been measured already."""
    op, nbytes = call.op, call.nbytes(np.dtype(dtype).itemsize)
    roof = roof or machine.roof(dtype)
    host, kwargs = call.build(dtype)
    sets = [[machine.array(a) for a in host] for _ in range(machine.sets(nbytes))]
    _, left_out = runnable(op, sets[0], kwargs, names)
    truth, cut = truth_of(op, sets[0], kwargs)

    errors, timers, hows = {}, {}, {}
    for r in chosen(op, names):
        if r.name in left_out:
            continue
        errors[r.name], problem = checked(by(op, r.name, sets[0], kwargs), truth, cut, BOUNDS[dtype])
        if problem:
            left_out[r.name] = problem
            continue
        say(f"{op} by {r.name}: error {errors[r.name]:.1e}")
        timers[r.name], hows[r.name] = machine.timed([by(op, r.name, args, kwargs) for args in sets])
    seconds, _ = interleave(timers, rounds, clock=lambda timer: timer(), say=say)

    least, rows = roof.seconds(call.flop, nbytes), []
    for r in chosen(op, names):
        common = dict(rung=r.name, numerics=r.numerics, idea=r.idea, error=_finite(errors.get(r.name)), left_out=left_out.get(r.name, ""))
        if r.name in timers:
            t = statistics.median(seconds[r.name])
            common |= dict(ms=1e3 * t, gflops=1e-9 * call.flop / t, gbs=1e-9 * nbytes / t, of_roof=least / t, how=hows[r.name])
        rows.append(Row(**common))
    return Ladder(op, str(call), dtype, machine.name, call.flop, nbytes, roof, best(op, sets[0], kwargs), rows)


def _finite(error: float | None) -> float | None:
    """JSON has no NaN."""
    return error if error is not None and math.isfinite(error) else None
