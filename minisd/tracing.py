"""See any tensor of a forward pass: `@layer` reports, `trace()` listens.

    with trace("unet.*.attn2") as seen:
        pipe.unet(latents, t, context)
    seen["unet.mid_block.attentions.0.transformer_blocks.0.attn2"]       # [B, S, C]

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

from .backend import array_module, to_numpy
from .errors import NumericError

_LISTENERS: ContextVar[tuple] = ContextVar("minisd_trace_listeners", default=())


@dataclass(frozen=True, slots=True)
class Event:
    """What a listener is told when a layer has returned."""

    name: str  # "unet.down_blocks.0.resnets.1.conv1"
    kind: str  # the layer function's name: "conv2d"
    inputs: tuple  # the arrays it was given, without its parameters
    output: Any  # the array it returns (images are [B, H, W, C] inside)
    seconds: float


def layer(f):
    """Makes `f(p, x, …)` a named layer: its output is reported under `p.path` to whoever listens."""

    @functools.wraps(f)
    def named(p, *args, **kwargs):
        listeners = _LISTENERS.get()
        if not listeners:
            return f(p, *args, **kwargs)
        start = time.perf_counter()
        y = f(p, *args, **kwargs)
        event = Event(p.path, f.__name__, args, y, time.perf_counter() - start)
        for listen in listeners:
            listen(event)
        return y

    named.__signature__ = inspect.signature(f)
    return named


def tap(p, name: str, x):
    """Reports a quantity that is no module, such as the attention probabilities, as "<path>/<name>"; returns it."""
    for listen in _LISTENERS.get():
        listen(Event(f"{p.path}/{name}", "tap", (), x, 0.0))
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
        """Writes the arrays under their names as safetensors."""
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(to_numpy(y)) for name, y in self.items()}, str(path))


@contextmanager
def trace(*what):
    """Collects the output of every layer whose name matches: `with trace("unet.*.attn2") as seen: …`.

    what: patterns in which `*` also matches dots, and pipelines, which stand for all of their layers. Nothing means everything.
    """
    patterns = tuple(p for w in what for p in ((w,) if isinstance(w, str) else w.trace_patterns))
    texts = tuple(w for w in what if isinstance(w, str))
    with listen(Trace(texts or patterns or ("*",))) as collected:  # trace(pipe, "*.attn2"): the pattern narrows the pipeline
        yield collected


def check_finite(compute, where: str, step: int | None = None):
    """The result of `compute()`; if it holds a NaN or an infinity, computes again and raises NumericError for the layer it came from.

    A healthy run pays for one look at the result only. The origin is the first layer with finite inputs and another output.
    """
    y = compute()
    if array_module(y).isfinite(y).all():
        return y
    with listen(_find_origin):
        compute()
    raise NumericError(f"NaN or Inf came out of {where}", "no single layer makes it from finite inputs", "check the inputs", step=step)


def _find_origin(event: Event):
    """A listener that raises at the first layer that turns finite inputs into something else."""
    xp = array_module(event.output)
    bad = int((~xp.isfinite(event.output)).sum())
    inputs = [x for x in event.inputs if hasattr(x, "dtype") and x.dtype.kind == "f"]
    if bad and all(xp.isfinite(x).all() for x in inputs):
        largest = max((float(xp.abs(x).max()) for x in inputs if x.size), default=0.0)
        limit = np.finfo(event.output.dtype).max
        raise NumericError(
            f"{event.name} ({event.kind}): {bad:,} of {event.output.size:,} values are NaN or Inf",
            f"its inputs are finite, the largest is {largest:.3g}; the limit of {event.output.dtype} is {limit:.3g}",
            "check the weights of this layer, or run in float64",
            layer=event.name,
        )
