"""The ladders of the ops on the shapes of Stable Diffusion 1.5: every rung beside torch, with its error. Run by `bench_cpu.py`."""

from bench_cpu import interleave

CONV_SHAPES = (
    (2, 64, 320, 320), (2, 32, 640, 640), (2, 16, 1280, 1280), (2, 8, 1280, 1280), (1, 128, 512, 512), (1, 256, 256, 256), (1, 512, 128, 128),
    (1, 512, 128, 3),
)  # fmt: skip
UPSAMPLE_SHAPES = ((2, 16, 1280, 1280), (2, 32, 640, 640), (1, 256, 256, 256))
TORCH = ("torch fp32", "torch channels_last")


def rungs_of(op: str, args, kwargs, without=()) -> dict:
    """name -> call, of every rung that takes these arguments."""
    from minisd import ops
    from minisd.errors import UsageError

    made = {}
    for rung in ops.RUNGS[op]:

        def call(rung=rung):
            with ops.using(**{op: rung.name}):
                return getattr(ops, op)(*args, **kwargs)

        if rung.owner in ("numpy", "any") and rung.name not in without:
            try:
                call()
            except UsageError:
                continue
            made[rung.name] = call
    return made


def relative_l2(y, truth) -> float:
    import numpy as np

    return float(np.linalg.norm(y - truth) / np.linalg.norm(truth))


def convolutions(options) -> dict:
    """conv2d and upsample_conv2d: seconds, and relative L2 error to float64 of the first output channels."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    random, entry = np.random.RandomState(0), {}
    for op, shapes in (("conv2d", CONV_SHAPES), ("upsample_conv2d", UPSAMPLE_SHAPES)):
        scale, up = (1, lambda t: t) if op == "conv2d" else (2, lambda t: F.interpolate(t, scale_factor=2.0, mode="nearest"))
        for B, side, C, C_out in shapes:
            x, b = random.randn(B, side, side, C).astype("float32"), random.randn(C_out).astype("float32")
            w = (random.randn(3, 3, C, C_out) / (9 * C) ** 0.5).astype("float32").transpose(3, 2, 0, 1)  # as a loaded weight lies in memory
            xt, wt, bt = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(w.copy(order="C")), torch.from_numpy(b)
            last = xt.to(memory_format=torch.channels_last), wt.to(memory_format=torch.channels_last)
            made = {"torch fp32": lambda: F.conv2d(up(xt), wt, bt, padding=1), "torch channels_last": lambda: F.conv2d(up(last[0]), last[1], bt, padding=1)}
            made = {name: call for name, call in made.items() if name in options.variants}
            kwargs = dict(padding=1) if op == "conv2d" else dict(size=(2 * side, 2 * side))
            made.update(rungs_of(op, (x, w, b), kwargs, without=("reference",) if op == "conv2d" else ()))  # nine shifted products are for reading
            print(f" {op} {B} × {side}² {C} → {C_out}", flush=True)
            with torch.inference_mode():
                seconds, results = interleave(made, options.rounds)
                some = slice(0, min(C_out, 16))  # float64 for a few output channels
                truth = F.conv2d(up(xt.double()), wt[some].double(), bt[some].double(), padding=1).numpy()
            results = {name: y.numpy() if name in TORCH else y.transpose(0, 3, 1, 2) for name, y in results.items()}
            entry[f"{op} {B} {side} {C} {C_out}"] = {
                "gflop": 18e-9 * B * (scale * side) ** 2 * C * C_out,
                "megabytes": 4e-6 * (B * side * side * (C + scale**2 * C_out) + 9 * C * C_out),
                "seconds": seconds,
                "relative_l2_to_float64": {name: relative_l2(y[:, some], truth) for name, y in results.items()},
            }
    return entry


def other_cases(random) -> dict:
    """title -> (op, arguments, keywords, torch's call, GFLOP), on the UNet's shapes at 64 × 64 and the text encoder's."""
    import torch.nn.functional as F

    def a(*shape):
        return random.randn(*shape).astype("float32")

    def attention(q, k, v, scale, causal=False):
        return F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=causal)

    def heads(B, S, N, D):
        return a(B, S, N, D).transpose(0, 2, 1, 3)  # as they lie in the model

    def ff(x, w_in, b_in, w_out, b_out):
        h, g = F.linear(x, w_in, b_in).chunk(2, -1)
        return F.linear(h * F.gelu(g), w_out, b_out)

    def norm(x, w, b, groups, eps, act):
        return F.silu(F.group_norm(x.permute(0, 3, 1, 2), groups, w, b, eps)).permute(0, 2, 3, 1)

    w = 320**-0.5
    return {
        "linear 8192 × 320 → 320": ("linear", (a(8192, 320), w * a(320, 320), a(320)), {}, F.linear, 2e-9 * 8192 * 320 * 320),
        "linear 154 × 768 → 3072": ("linear", (a(154, 768), 0.04 * a(3072, 768), a(3072)), {}, F.linear, 2e-9 * 154 * 768 * 3072),
        "feed-forward 8192 × 320": (
            "feed_forward", (a(2, 4096, 320), w * a(2560, 320), a(2560), 0.03 * a(320, 1280), a(320)), {}, ff, 2e-9 * 8192 * 320 * 3840,
        ),
        "attention 4096², 8 heads of 40": ("attention", [heads(1, 4096, 8, 40) for _ in "qkv"], dict(scale=40**-0.5), attention, 4e-9 * 8 * 4096**2 * 40),
        "attention 1024², 8 heads of 80": ("attention", [heads(2, 1024, 8, 80) for _ in "qkv"], dict(scale=80**-0.5), attention, 4e-9 * 16 * 1024**2 * 80),
        "attention 77², 12 heads of 64, causal": (
            "attention", [heads(2, 77, 12, 64) for _ in "qkv"], dict(scale=0.125, causal=True), attention, 4e-9 * 24 * 77**2 * 64,
        ),
        "GEGLU 8192 × 2560": ("geglu", (a(8192, 2560),), {}, lambda x: x.chunk(2, -1)[0] * F.gelu(x.chunk(2, -1)[1]), None),
        "group norm + SiLU 2 × 64² × 320": (
            "group_norm", (a(2, 64, 64, 320), a(320), a(320)), dict(groups=32, eps=1e-5, act="silu"), norm, None,
        ),
        "layer norm 8192 × 320": ("layer_norm", (a(8192, 320), a(320), a(320)), dict(eps=1e-5), lambda x, w, b, eps: F.layer_norm(x, (320,), w, b, eps), None),
        "quick GELU 154 × 3072": ("quick_gelu", (a(154, 3072),), {}, lambda x: x * (1.702 * x).sigmoid(), None),
    }  # fmt: skip


def others(options) -> dict:
    """Every other op that a network spends time in: seconds of every rung, and relative L2 error to the op in float64."""
    import numpy as np
    import torch

    from minisd import ops

    entry = {}
    for title, (op, args, kwargs, in_torch, gflop) in other_cases(np.random.RandomState(0)).items():
        tensors = [torch.from_numpy(x) for x in args]
        made = rungs_of(op, args, kwargs)
        if "torch fp32" in options.variants:
            made["torch fp32"] = lambda tensors=tensors, kwargs=kwargs, in_torch=in_torch: in_torch(*tensors, **kwargs)
        print(f" {title}", flush=True)
        with torch.inference_mode():
            seconds, results = interleave(made, options.rounds)
        truth = getattr(ops, op)(*(x.astype("float64") for x in args), **kwargs)
        results = {name: y.numpy() if name in TORCH else y for name, y in results.items()}
        entry[title] = {
            "gflop": gflop, "megabytes": 1e-6 * sum(x.nbytes for x in (*args, results[next(iter(results))])), "seconds": seconds,
            "relative_l2_to_float64": {name: relative_l2(y, truth) for name, y in results.items()},
        }  # fmt: skip
    return entry
