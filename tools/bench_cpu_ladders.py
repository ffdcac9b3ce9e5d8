"""The ladders of the ops on the shapes of Stable Diffusion 1.5: every rung beside torch, with its error. Run by `bench_cpu.py`.

Arguments, FLOP and bytes are those of `minisd bench op`: minisd/benchmark/calls.py.
"""

from bench_cpu import interleave

from minisd.benchmark.calls import Call
from minisd.benchmark.ladder import relative_l2, runnable

CONV_SHAPES = (
    (2, 64, 320, 320), (2, 32, 640, 640), (2, 16, 1280, 1280), (2, 8, 1280, 1280), (1, 128, 512, 512), (1, 256, 256, 256), (1, 512, 128, 128),
    (1, 512, 128, 3),
)  # fmt: skip
UPSAMPLE_SHAPES = ((2, 16, 1280, 1280), (2, 32, 640, 640), (1, 256, 256, 256))
TORCH = ("torch fp32", "torch channels_last")


def convolutions(options) -> dict:
    """conv2d and upsample_conv2d: seconds, and relative L2 error to float64 of the first output channels."""
    import torch
    import torch.nn.functional as F

    entry = {}
    for op, shapes in (("conv2d", CONV_SHAPES), ("upsample_conv2d", UPSAMPLE_SHAPES)):
        up = (lambda t: t) if op == "conv2d" else (lambda t: F.interpolate(t, scale_factor=2.0, mode="nearest"))
        for B, side, C, C_out in shapes:
            case = Call.of(op, (B, side, C, C_out))
            (x, w, b), kwargs = case.build("float32")
            xt, wt, bt = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(w.copy(order="C")), torch.from_numpy(b)
            last = xt.to(memory_format=torch.channels_last), wt.to(memory_format=torch.channels_last)
            made = {"torch fp32": lambda: F.conv2d(up(xt), wt, bt, padding=1), "torch channels_last": lambda: F.conv2d(up(last[0]), last[1], bt, padding=1)}
            made = {name: call for name, call in made.items() if name in options.variants}
            made.update(runnable(op, (x, w, b), kwargs)[0])
            if op == "conv2d":
                del made["reference"]  # nine shifted products are for reading
            print(f" {op} {B} × {side}² {C} → {C_out}", flush=True)
            with torch.inference_mode():
                seconds, results = interleave(made, options.rounds)
                some = slice(0, min(C_out, 16))  # float64 for a few output channels
                truth = F.conv2d(up(xt.double()), wt[some].double(), bt[some].double(), padding=1).numpy()
            results = {name: y.numpy() if name in TORCH else y.transpose(0, 3, 1, 2) for name, y in results.items()}
            entry[f"{op} {B} {side} {C} {C_out}"] = {
                **work(case), "seconds": seconds, "relative_l2_to_float64": {name: relative_l2(y[:, some], truth) for name, y in results.items()},
            }  # fmt: skip
    return entry


def work(case: Call) -> dict:
    return {"gflop": 1e-9 * case.flop or None, "megabytes": 1e-6 * case.nbytes(4)}


def other_cases() -> dict:
    """title -> (call, torch's), on the UNet's shapes at 64 × 64 and the text encoder's."""
    import torch.nn.functional as F

    def attention(q, k, v, scale, causal):
        return F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=causal)

    def ff(x, w_in, b_in, w_out, b_out):
        h, g = F.linear(x, w_in, b_in).chunk(2, -1)
        return F.linear(h * F.gelu(g), w_out, b_out)

    def norm(x, w, b, groups, eps, act):
        return F.silu(F.group_norm(x.permute(0, 3, 1, 2), groups, w, b, eps)).permute(0, 2, 3, 1)

    return {
        "linear 8192 × 320 → 320": (Call.of("linear", "unet-64"), F.linear),
        "linear 154 × 768 → 3072": (Call.of("linear", "text"), F.linear),
        "feed-forward 8192 × 320": (Call.of("feed_forward", "unet-64"), ff),
        "attention 4096², 8 heads of 40": (Call.of("attention", (1, 8, 4096, 4096, 40)), attention),
        "attention 1024², 8 heads of 80": (Call.of("attention", "unet-32"), attention),
        "attention 77², 12 heads of 64, causal": (Call.of("attention", "text"), attention),
        "GEGLU 8192 × 2560": (Call.of("geglu", "unet-64"), lambda x: x.chunk(2, -1)[0] * F.gelu(x.chunk(2, -1)[1])),
        "group norm + SiLU 2 × 64² × 320": (Call.of("group_norm", "unet-64"), norm),
        "layer norm 8192 × 320": (Call.of("layer_norm", "unet-64"), lambda x, w, b, eps: F.layer_norm(x, (320,), w, b, eps)),
        "quick GELU 154 × 3072": (Call.of("quick_gelu", "text"), lambda x: x * (1.702 * x).sigmoid()),
    }


def others(options) -> dict:
    """Every other op that a network spends time in: seconds of every rung, and relative L2 error to the op in float64."""
    import torch

    from minisd import ops

    entry = {}
    for title, (case, in_torch) in other_cases().items():
        args, kwargs = case.build("float32")
        tensors = [torch.from_numpy(x) for x in args]
        made, _ = runnable(case.op, args, kwargs)
        if "torch fp32" in options.variants:
            made["torch fp32"] = lambda tensors=tensors, kwargs=kwargs, in_torch=in_torch: in_torch(*tensors, **kwargs)
        print(f" {title}", flush=True)
        with torch.inference_mode():
            seconds, results = interleave(made, options.rounds)
        truth = getattr(ops, case.op)(*(x.astype("float64") for x in args), **kwargs)
        results = {name: y.numpy() if name in TORCH else y for name, y in results.items()}
        entry[title] = {
            **work(case), "seconds": seconds, "relative_l2_to_float64": {name: relative_l2(y, truth) for name, y in results.items()},
        }  # fmt: skip
    return entry
