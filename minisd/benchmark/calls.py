"""Calls of the ops described by a few numbers: their arguments, their multiplications, their bytes, and the shapes of Stable Diffusion.

    call = Call.of("conv2d", "unet-64")         # or Call.of("conv2d", "2,64,320,320")
    call.flop, call.nbytes(2)                   # what any implementation of the formula has to compute, and to move in float16
    args, kwargs = call.build("float32")

All formulas stand here, beside the shapes they are made of. A FLOP is one multiplication or one addition of a matrix product as the op's
formula has it, products with the zeros of a padding included: a rung that saves some of them (Winograd) may come out above the roof.
Bytes are those of a kernel that reads every argument once and writes the result once.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError

EPS = 1e-5


@dataclass(frozen=True)
class Form:
    """What the numbers of an op's calls are called, in order, with the usual value where one may be left out; and what follows from them."""

    names: tuple[str, ...]
    arguments: Callable  # numbers -> {name: shape}
    result: Callable  # numbers -> shape
    presets: dict  # name of a place in Stable Diffusion -> numbers
    usual: tuple[int, ...] = ()  # of the last numbers
    multiplications: Callable = lambda *numbers: 0  # 0: nothing but reading and writing
    keywords: Callable = lambda *numbers: {}


def _conv(B, side, C, O, kernel=3, stride=1):
    return dict(x=(B, side, side, C), w=(O, C, kernel, kernel), b=(O,))


def _conv_result(B, side, C, O, kernel=3, stride=1):
    out = (side + 2 * (kernel // 2) - kernel) // stride + 1
    return B, out, out, O


def _heads(B, N, S, T, D, causal):
    return dict(q=(B, N, S, D), k=(B, N, T, D), v=(B, N, T, D))


def _tokens(twice: bool = False, **more):
    """One shape for each resolution of the UNet, both halves of guidance: 2 · 64² tokens of 320 channels, and so on; C twice for C → C."""
    return {f"unet-{side}": (2 * side**2, C, C)[: 3 if twice else 2] for side, C in ((64, 320), (32, 640), (16, 1280))} | more


UNET_IMAGES = {"unet-64": (2, 64, 320), "unet-32": (2, 32, 640), "unet-16": (2, 16, 1280), "unet-8": (2, 8, 1280)}
VAE_IMAGES = {"vae-64": (1, 64, 512), "vae-128": (1, 128, 512), "vae-256": (1, 256, 256), "vae-512": (1, 512, 128)}
EACH = dict(names=("rows", "C"), arguments=lambda M, C: dict(x=(M, C)), result=lambda M, C: (M, C))

FORMS = {
    "linear": Form(
        ("rows", "C", "C′"), lambda M, C, O: dict(x=(M, C), w=(O, C), b=(O,)), lambda M, C, O: (M, O),
        _tokens(twice=True, text=(154, 768, 3072)), multiplications=lambda M, C, O: M * C * O,
    ),
    "conv2d": Form(
        ("images", "side", "C", "C′", "kernel", "stride"), _conv, _conv_result,
        {name: (*n, n[-1]) for name, n in (UNET_IMAGES | VAE_IMAGES).items()} | {"vae-out": (1, 512, 128, 3), "unet-shortcut": (2, 64, 960, 320, 1)},
        usual=(3, 1), keywords=lambda B, side, C, O, kernel, stride: dict(stride=stride, padding=kernel // 2),
        multiplications=lambda B, side, C, O, kernel, stride: math.prod(_conv_result(B, side, C, O, kernel, stride)) * C * kernel**2,
    ),
    "upsample_nearest": Form(
        ("images", "side", "C"), lambda B, side, C: dict(x=(B, side, side, C)), lambda B, side, C: (B, 2 * side, 2 * side, C),
        {"unet-64": (2, 32, 640), "vae-512": (1, 256, 256)}, keywords=lambda B, side, C: dict(size=(2 * side, 2 * side)),
    ),
    "upsample_conv2d": Form(
        ("images", "side", "C", "C′"), _conv, lambda B, side, C, O: (B, 2 * side, 2 * side, O),
        {"unet-16": (2, 8, 1280, 1280), "unet-32": (2, 16, 1280, 1280), "unet-64": (2, 32, 640, 640), "vae-128": (1, 64, 512, 512),
         "vae-256": (1, 128, 512, 512), "vae-512": (1, 256, 256, 256)},
        keywords=lambda B, side, C, O: dict(size=(2 * side, 2 * side)), multiplications=lambda B, side, C, O: 9 * B * (2 * side) ** 2 * C * O,
    ),
    "attention": Form(
        ("images", "heads", "queries", "keys", "width", "causal"), _heads, lambda B, N, S, T, D, causal: (B, N, S, D),
        {"unet-64": (2, 8, 4096, 4096, 40), "unet-32": (2, 8, 1024, 1024, 80), "unet-16": (2, 8, 256, 256, 160), "unet-8": (2, 8, 64, 64, 160),
         "cross-64": (2, 8, 4096, 77, 40), "cross-32": (2, 8, 1024, 77, 80), "cross-16": (2, 8, 256, 77, 160), "sd2-64": (2, 5, 4096, 4096, 64),
         "text": (2, 12, 77, 77, 64, 1), "vae-64": (1, 1, 4096, 4096, 512)},
        usual=(0,), keywords=lambda B, N, S, T, D, causal: dict(scale=D**-0.5, causal=bool(causal)),
        multiplications=lambda B, N, S, T, D, causal: 2 * B * N * S * T * D,
    ),
    "feed_forward": Form(
        ("rows", "C"), lambda M, C: dict(x=(M, C), w_in=(8 * C, C), b_in=(8 * C,), w_out=(C, 4 * C), b_out=(C,)), lambda M, C: (M, C),
        _tokens(), multiplications=lambda M, C: 12 * M * C * C,
    ),
    "group_norm": Form(
        ("images", "side", "C", "groups"), lambda B, side, C, groups: dict(x=(B, side, side, C), w=(C,), b=(C,)),
        lambda B, side, C, groups: (B, side, side, C), UNET_IMAGES | VAE_IMAGES, usual=(32,),
        keywords=lambda B, side, C, groups: dict(groups=groups, eps=EPS, act="silu"),
    ),
    "layer_norm": Form(
        ("rows", "C"), lambda M, C: dict(x=(M, C), w=(C,), b=(C,)), lambda M, C: (M, C), _tokens(text=(154, 768)),
        keywords=lambda M, C: dict(eps=EPS),
    ),
    "softmax": Form(**EACH, presets={"unet-32": (16 * 1024, 1024), "unet-16": (16 * 256, 256), "text": (24 * 77, 77), "vae-64": (4096, 4096)}),
    "silu": Form(**EACH, presets=_tokens(time=(2, 1280))),
    "gelu": Form(**EACH, presets={"text": (154, 4096)}),
    "quick_gelu": Form(**EACH, presets={"text": (154, 3072)}),
    "geglu": Form(("rows", "C"), lambda M, C: dict(x=(M, 2 * C)), lambda M, C: (M, C), {n: (M, 4 * C) for n, (M, C) in _tokens().items()}),
}  # fmt: skip


def form(op: str) -> Form:
    """Raises UsageError for an op without shapes."""
    if op not in FORMS:
        raise UsageError(f"no shapes are known of an op {op!r}", "", f"the ops are {', '.join(FORMS)}")
    return FORMS[op]


@dataclass(frozen=True)
class Call:
    """One call of an op, by its numbers."""

    op: str
    numbers: tuple[int, ...]

    @classmethod
    def of(cls, op: str, shape) -> "Call":
        """shape: the name of a preset, "2,64,320,320", or the numbers; the last ones may be left out where they have a usual value."""
        f = form(op)
        if shape in f.presets:
            shape = f.presets[shape]
        elif isinstance(shape, str):
            try:
                shape = tuple(int(part) for part in shape.split(","))
            except ValueError:
                fix = f"a name of {', '.join(f.presets)}, or numbers: {','.join(f.names)}"
                raise UsageError(f"{op} has no shape {shape!r}", "", fix) from None
        missing = len(f.names) - len(shape)
        if not 0 <= missing <= len(f.usual) or any(n < (name != "causal") for n, name in zip(shape, f.names)):
            what = f"{','.join(map(str, shape))} is no shape of {op}"
            raise UsageError(what, f"it has {len(f.names)} positive numbers", f"give {','.join(f.names)}")
        return cls(op, (*shape, *f.usual[len(f.usual) - missing :]))

    @property
    def flop(self) -> int:
        """Multiplications and additions of the matrix products in the op's formula."""
        return 2 * FORMS[self.op].multiplications(*self.numbers)

    def nbytes(self, itemsize: int) -> int:
        """Of all arguments and the result."""
        f = FORMS[self.op]
        return itemsize * sum(math.prod(s) for s in (*f.arguments(*self.numbers).values(), f.result(*self.numbers)))

    def __str__(self) -> str:
        return ", ".join(f"{name} {n}" for name, n in zip(FORMS[self.op].names, self.numbers))

    def build(self, dtype) -> tuple[list, dict]:
        """Arguments as NumPy arrays in `dtype`, the same at each call, values near 1 on the way through; and keywords.

        Weights lie in memory as a loader leaves them, heads as a linear layer does.
        """
        f = FORMS[self.op]
        random = np.random.default_rng(zlib.crc32(f"{self.op} {self.numbers}".encode()))
        arrays = [_draw(random, name, shape).astype(dtype) for name, shape in f.arguments(*self.numbers).items()]
        if self.op in ("conv2d", "upsample_conv2d"):
            arrays[1] = np.ascontiguousarray(arrays[1].transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1)
        if self.op == "attention":
            arrays = [np.ascontiguousarray(a.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for a in arrays]
        return arrays, f.keywords(*self.numbers)


def _draw(random, name: str, shape) -> np.ndarray:
    values = random.standard_normal(shape, "float32")
    if name.startswith("w") and len(shape) > 1:
        return values / math.sqrt(math.prod(shape[1:]))
    return 1.0 + 0.2 * values if name == "w" else values  # γ of a norm is near 1
