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
    """The outputs of a run by name, in execution order; `calls` counts how often each layer ran (the last call is kept)."""

    patterns: tuple = ("*",)
    outputs: dict = field(default_factory=dict)
    kinds: dict = field(default_factory=dict)
    seconds: dict = field(default_factory=dict)
    calls: dict = field(default_factory=dict)

    def __call__(self, event: Event):
        if any(fnmatchcase(event.name, pattern) for pattern in self.patterns):
            self.outputs[event.name] = event.output
            self.kinds[event.name] = event.kind
            self.seconds[event.name] = self.seconds.get(event.name, 0.0) + event.seconds
            self.calls[event.name] = self.calls.get(event.name, 0) + 1

    def __getitem__(self, name: str):
        return self.outputs[name]

    def __contains__(self, name: str) -> bool:
        return name in self.outputs

    def __len__(self) -> int:
        return len(self.outputs)

    def __iter__(self):
        return iter(self.outputs)

    def items(self):
        return self.outputs.items()

    def table(self) -> str:
        """One line a layer: name, kind, shape, dtype, seconds."""
        rows = [
            (name, self.kinds[name], "×".join(map(str, y.shape)), str(y.dtype), f"{self.seconds[name]:.3f}")
            for name, y in self.outputs.items()
        ]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(5)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)


@contextmanager
def trace(*patterns: str):
    """Collects the output of every layer whose name matches one of the patterns (`*` also matches dots; none means all)."""
    with listen(Trace(patterns or ("*",))) as collected:
        yield collected
