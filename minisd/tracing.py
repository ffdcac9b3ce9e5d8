"""See any tensor of a forward pass: `@layer` reports, `trace()` listens.

    with trace("unet.*.attn2") as seen:
        pipe.unet(latents, t, context)
    seen["unet.mid_block.attentions.0.transformer_blocks.0.attn2"]       # [B, S, C]

    with trace(pipe, to="run.safetensors") as recorder:                  # every call of every layer, straight to disk
        pipe("a red apple", num_inference_steps=2, seed=32)
    print(recorder.table())

`Params` carry their dotted path, so a layer's name in a trace is the module's name in diffusers. Without a listener a layer
costs one look-up more than the bare function.
"""

import functools
import inspect
import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from .backend import array_module
from .errors import NumericError, UsageError

_LISTENERS: ContextVar[tuple] = ContextVar("minisd_trace_listeners", default=())


@dataclass(frozen=True, slots=True)
class Event:
    """What a listener is told when a layer has returned."""

    name: str  # "unet.down_blocks.0.resnets.1.conv1"
    kind: str  # the layer function's name: "conv2d"
    inputs: tuple  # the arrays it was given, without its parameters
    output: Any  # the array it returns (images are [B, H, W, C] inside)
    seconds: float
    names: tuple = ()  # of the inputs: ("x", "context")
    options: dict = field(default_factory=dict)  # what it was given by keyword: heads, groups, eps, size
    params: Any = None  # its view of the checkpoint


def layer(f):
    """Makes `f(p, x, …)` a named layer: its output is reported under `p.path` to whoever listens."""

    signature = inspect.signature(f)
    names = tuple(signature.parameters)[1:]

    @functools.wraps(f)
    def named(p, *args, **kwargs):
        listeners = _LISTENERS.get()
        if not listeners:
            return f(p, *args, **kwargs)
        given = tuple(list(a) if isinstance(a, list) else a for a in args)  # up blocks take from the list of skips
        start = time.perf_counter()
        y = f(p, *args, **kwargs)
        event = Event(p.path, f.__name__.lstrip("_"), given, y, time.perf_counter() - start, names, kwargs, p)
        for listen in listeners:
            listen(event)
        return y

    named.__signature__ = signature
    return named


def tap(p, name: str, x):
    """Reports a quantity that is no module, such as the attention probabilities, as "<path>/<name>"; returns x.

    x: an array, or a function that makes one: it is called only for a listener whose patterns ask for taps, with a slash in them.
    """
    for listen in _LISTENERS.get():
        full = f"{p.path}/{name}"
        if not callable(x):
            listen(Event(full, "tap", (), x, 0.0))
        elif any("/" in pattern and fnmatchcase(full, pattern) for pattern in getattr(listen, "patterns", ())):
            listen(Event(full, "tap", (), x(), 0.0))
    return x


def listening() -> bool:
    """Whether anyone listens. Layers fuse two steps into one only when nobody wants to see the value between them."""
    return bool(_LISTENERS.get())


@contextmanager
def listen(listener):
    """Calls `listener(event)` for every layer that returns inside the block."""
    token = _LISTENERS.set((*_LISTENERS.get(), listener))
    try:
        yield listener
    finally:
        _LISTENERS.reset(token)


@dataclass
class Trace:
    """The outputs of a run by name, in execution order; `calls` counts how often each layer ran (the last call is kept).

    What is read from it has the layout of diffusers: images [B, C, H, W], tokens [B, S, C].
    """

    patterns: tuple = ("*",)
    events: dict = field(default_factory=dict)
    calls: dict = field(default_factory=dict)

    def __call__(self, event: Event):
        if any(fnmatchcase(event.name, pattern) for pattern in self.patterns):
            self.events[event.name] = event
            self.calls[event.name] = self.calls.get(event.name, 0) + 1

    def __getitem__(self, name: str):
        event = self.events[name]
        image = event.output.ndim == 4 and event.kind != "tap"
        return event.output.transpose(0, 3, 1, 2) if image else event.output

    def __contains__(self, name: str) -> bool:
        return name in self.events

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self):
        return iter(self.events)

    def items(self):
        return ((name, self[name]) for name in self.events)

    def table(self) -> str:
        """One line a layer: name, kind, shape, dtype, seconds of the last call."""
        rows = [
            (name, event.kind, "×".join(map(str, self[name].shape)), str(event.output.dtype), f"{event.seconds:.3f} s")
            for name, event in self.events.items()
        ]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(5)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)

    def save(self, path):
        """Writes the arrays under their names as safetensors, with a manifest; `trace(…, to=path)` writes every call instead."""
        from .tracefile import Recorder

        with Recorder(self.patterns, path) as recorder:
            for event in self.events.values():
                recorder(event)


@contextmanager
def trace(*what, to=None, inputs: bool = False, stats: bool = False, recipe: dict | None = None):
    """Collects the output of every layer whose name matches: `with trace("unet.*.attn2") as seen: …`.

    what: patterns in which `*` also matches dots, and pipelines, which stand for all of their layers. Nothing means everything.
    to: a .safetensors file, written while the run goes on: every call of every layer, and nothing is kept in memory
    stats: only shapes, ranges and moments of every call, not the arrays; with `to`, into a .json file
    inputs: also what every layer was given, for `diff --teacher`        recipe: what made the run, kept in the file
    -> a Trace, or with `to` or `stats` a `minisd.tracefile.Recorder`
    """
    patterns = tuple(p for w in what for p in ((w,) if isinstance(w, str) else w.trace_patterns))
    texts = tuple(w for w in what if isinstance(w, str))
    patterns = texts or patterns or ("*",)  # trace(pipe, "*.attn2"): the pattern narrows the pipeline
    if to is None and not stats:
        with listen(Trace(patterns)) as collected:
            yield collected
        return
    from .tracefile import Recorder

    with Recorder(patterns, to, inputs=inputs, stats=stats, recipe=recipe) as recorder, listen(recorder):
        yield recorder


# ----- where a NaN comes from ----------------------------------------------------------------------------------------------

CHECKS = ("blocks", "ops", "off")
_CHECK: ContextVar[str] = ContextVar("minisd_check", default="blocks")


@contextmanager
def checking(level: str):
    """How closely a run is watched for NaN and infinity.

    level: "blocks", the default, looks at what the networks return; "ops" at every layer; "off" at nothing
    """
    if level not in CHECKS:
        raise UsageError(f"there is no check {level!r}", "", f"use one of {', '.join(CHECKS)}")
    token = _CHECK.set(level)
    try:
        yield
    finally:
        _CHECK.reset(token)


def check_finite(compute, where: str, step: int | None = None):
    """The result of `compute()`; if it holds a NaN or an infinity, computes again and raises NumericError for the layer it came from.

    A healthy run pays for one look at the result only. The origin is the first layer with finite inputs and another output.
    """
    find_origin = functools.partial(_find_origin, step)
    if _CHECK.get() == "ops":
        with listen(find_origin):
            y = compute()
    else:
        y = compute()
    if _CHECK.get() == "off" or array_module(y).isfinite(y).all():
        return y
    with listen(find_origin):
        compute()
    raise NumericError(f"NaN or Inf came out of {where}", "no single layer makes it from finite inputs", "check the inputs", step=step)


def _find_origin(step: int | None, event: Event):
    """Raises at the first layer that turns finite inputs into something else."""
    xp = array_module(event.output)
    bad = int((~xp.isfinite(event.output)).sum())
    inputs = [x for x in event.inputs if hasattr(x, "dtype") and x.dtype.kind == "f"]
    if bad and all(xp.isfinite(x).all() for x in inputs):
        largest = max((float(xp.abs(x).max()) for x in inputs if x.size), default=0.0)
        limit = np.finfo(event.output.dtype).max
        raise NumericError(
            f"{event.name} ({event.kind}): {bad:,} of {event.output.size:,} values are NaN or Inf",
            f"its inputs are finite, the largest is {largest:.3g}; the limit of {event.output.dtype} is {limit:.3g}",
            f"check the weights of this layer, or run in {'float32' if event.output.dtype == np.float16 else 'float64'}",
            layer=event.name, step=step,
        )  # fmt: skip
