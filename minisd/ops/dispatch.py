"""One contract, a ladder of implementations: rungs are registered slow → fast, and the last one that can take the input runs.

    with using(attention="reference", conv2d="im2col"): …      # the only switch; nests, and is local to a thread or task
    with using(profile="exact"): …                             # only rungs that meet the project's tolerance rule
    print(explain("conv2d", x, w, b, stride=1, padding=1))     # which rung runs, and why the others do not
"""

from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from ..backend import array_module
from ..errors import UsageError


@dataclass(frozen=True)
class Rung:
    """One implementation of an op. `refuses(*args)` returns a reason why this input cannot be taken, or None.

    numerics: "exact" meets the project's rule (error against float64 at most twice torch's own);
    "fast" is the same mathematics with larger rounding errors, whose bound stands in the rung's docstring.
    lesson: kept for what it teaches, slower than a rung below it; runs only where `using` asks for it by name.
    details: for `explain`, how the rung would cut the work of this input.
    """

    op: str
    name: str
    run: Callable
    owner: str  # "numpy", "cupy" or "any"
    numerics: str
    refuses: Callable
    lesson: bool = False
    details: Callable | None = None

    @property
    def idea(self) -> str:
        return (self.run.__doc__ or "").strip().split("\n")[0]


RUNGS: dict[str, list[Rung]] = {}
PROFILES = ("fast", "exact")
_CHOICES: ContextVar[dict] = ContextVar("minisd_ops_choices", default={})
_EXPLAIN: ContextVar[bool] = ContextVar("minisd_ops_explain", default=False)


def rung(op: str, name: str, *, owner: str, numerics: str = "exact", refuses: Callable = lambda *args, **kwargs: None, lesson: bool = False,
         details: Callable | None = None):  # fmt: skip
    """Registers the decorated function on top of the ladder of `op`."""

    def register(run):
        RUNGS.setdefault(op, []).append(Rung(op, name, run, owner, numerics, refuses, lesson, details))
        return run

    return register


def _owner(args, kwargs) -> str:
    """The library of the arrays among the arguments, "numpy" or "cupy"; those given by keyword, a mask or a skip, belong to it too."""
    arrays = {f"argument {i}": a for i, a in enumerate(args) if hasattr(a, "dtype")}
    arrays |= {name: a for name, a in kwargs.items() if getattr(a, "ndim", 0)}
    return array_module(*arrays.values(), names=list(arrays)).__name__


def _reason_against(r: Rung, owner: str, choices: dict, args, kwargs) -> str | None:
    if r.owner not in (owner, "any"):
        return f"is for {r.owner} arrays, these are {owner}'s"
    if r.op in choices and r.name != choices[r.op]:
        return f"ops.using({r.op}={choices[r.op]!r}) asks for another"
    if r.op not in choices and r.lesson:
        return f"is a lesson: runs where ops.using({r.op}={r.name!r}) asks for it"
    if r.op not in choices and choices.get("profile", "fast") == "exact" and r.numerics != "exact":
        return "is not exact, and the profile asks for exact rungs"
    return r.refuses(*args, **kwargs)


def dispatch(op: str, *args, **kwargs):
    """Runs the last rung of `op` that takes this input."""
    if _EXPLAIN.get():
        return ladder(op, args, kwargs)
    choices = _CHOICES.get()
    owner = _owner(args, kwargs)
    for r in reversed(RUNGS[op]):
        if _reason_against(r, owner, choices, args, kwargs) is None:
            return r.run(*args, **kwargs)
    raise UsageError(f"no implementation of {op} can take this input", ladder(op, args, kwargs), "leave the choice of the rung to minisd")


def ladder(op: str, args=(), kwargs=None) -> str:
    """The rungs of `op`, slow → fast, a line each. With an input: which one runs, and what each of the others says."""
    lines, chosen = [], False
    owner = _owner(args, kwargs or {})
    for r in reversed(RUNGS[op]):
        note = ""
        if args:
            reason = _reason_against(r, owner, _CHOICES.get(), args, kwargs or {})
            note = f" · {reason}" if reason else " · slower than the one that runs" if chosen else " · RUNS"
            if r.details and not reason and not chosen:
                note += f": {r.details(*args, **kwargs or {})}"
            chosen = chosen or reason is None
        lines.append(f"  {r.name:<16} {r.owner:<6} {r.numerics:<6} {r.idea}{note}")
    return "\n".join([op, *reversed(lines)])


def choices() -> dict:
    """What the enclosing `using` blocks ask for: with equal choices the same rungs run on inputs of the same shapes and dtypes."""
    return _CHOICES.get()


@contextmanager
def using(*, profile: str | None = None, **rungs: str):
    """Chooses rungs by name (`conv2d="im2col"`), or restricts all ops to one numerics profile, inside the block."""
    if profile is not None and profile not in PROFILES:
        raise UsageError(f"no profile is called {profile!r}", "", f"use one of {', '.join(PROFILES)}")
    for op, name in rungs.items():
        names = [r.name for r in RUNGS.get(op, ())]
        if name not in names:
            raise UsageError(f"{op} has no rung {name!r}", f"its rungs are {', '.join(names) or 'none: no such op'}", "use one of these names")
    choices = {**_CHOICES.get(), **rungs, **({"profile": profile} if profile else {})}
    token = _CHOICES.set(choices)
    try:
        yield
    finally:
        _CHOICES.reset(token)


@contextmanager
def explaining():
    """Inside the block ops answer with their ladder instead of running."""
    token = _EXPLAIN.set(True)
    try:
        yield
    finally:
        _EXPLAIN.reset(token)
