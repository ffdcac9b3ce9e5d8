"""The ladders at the shapes of Stable Diffusion, by the same code as `minisd bench op --device cuda`."""

from dataclasses import asdict

from minisd.benchmark.calls import FORMS, Call
from minisd.benchmark.ladder import best, by, checked, measure, truth_of

from .census import convolutions

QUICK = {  # the shapes of the short form
    "conv2d": ("unet-64", "unet-16"), "upsample_conv2d": ("unet-64",), "attention": ("unet-64", "cross-64"), "linear": ("unet-64",),
    "feed_forward": ("unet-64",), "group_norm": ("unet-64", "vae-512", "1,512,256"),
}  # fmt: skip
MORE = {"group_norm": ("1,512,256",)}  # the largest of the VAE, 134 MB
OTHERS = ("layer_norm", "softmax", "silu", "gelu", "quick_gelu", "geglu")


def machine():
    from minisd.benchmark.gpu import Gpu

    return Gpu()


def ladders(record, *ops):
    """{"op shape": the ladder}; the roof is measured once more here, so that a share of it is from the same minute."""
    gpu = machine()
    roof, rounds = gpu.roof("float16"), 3 if record.quick else 7
    record.put("roof", asdict(roof))
    wanted = {op: QUICK.get(op, tuple(FORMS[op].presets)[:1]) if record.quick else (*FORMS[op].presets, *MORE.get(op, ())) for op in ops}
    for op, shape in record.each((op, shape) for op in ops for shape in wanted[op]):
        try:
            ladder = measure(Call.of(op, shape), machine=gpu, dtype="float16", rounds=rounds, roof=roof)
        except Exception as problem:  # out of memory in the float64 truth, say
            record.put(f"{op} {shape}", {"failed": f"{type(problem).__name__}: {problem}"})
            continue
        record.put(f"{op} {shape}", ladder.to_dict())


def conv2d(record):
    ladders(record, "conv2d", "upsample_conv2d")


def attention(record):
    ladders(record, "attention")


def gemm(record):
    ladders(record, "linear", "feed_forward")


def group_norm(record):
    ladders(record, "group_norm")


def others(record):
    ladders(record, *OTHERS)


def unet_convolutions(record):
    """Every 3 × 3 convolution of a UNet step by the rung that the façade takes: {numbers: times in a step, rung, ms}."""
    gpu, rounds = machine(), 3 if record.quick else 7
    roof = gpu.roof("float16")
    record.put("roof", asdict(roof))
    for numbers, times in record.each(convolutions().items()):
        call = Call.of("conv2d", numbers)
        args, kwargs = call.build("float16")
        rung = best("conv2d", [gpu.array(a) for a in args], kwargs)
        (row,) = measure(call, machine=gpu, dtype="float16", names=[rung], rounds=rounds, roof=roof).rows
        record.put(",".join(map(str, numbers)), {"times": times, "flop": call.flop, **asdict(row)})


# ----- variants: what launchers can be told, beside what they choose themselves ---------------------------------------------------


def conv_variants(x, w, b, kwargs) -> dict:
    """{what: call} of the launchers of conv2d that take a tile, or parts of K."""
    from minisd.ops.cuda import conv2d as launchers
    from minisd.ops.cuda.hopper import conv2d_wgmma

    kwargs = dict(stride=kwargs["stride"], padding=((kwargs["padding"],) * 2,) * 2)
    tiles = {str(tile): tile for tile in known_tiles()}
    made = {f"fused, {name}": lambda tile=tile: launchers.conv2d_fused(x, w, b, **kwargs, tile=tile) for name, tile in tiles.items()}
    for name, tile in tiles.items():
        for parts in (2, 4, 8, 16):
            split = dict(tile=tile, parts=parts)
            made[f"split_k, {name}, {parts} parts"] = lambda split=split: launchers.conv2d_split(x, w, b, **kwargs, **split)
    for parts in (1, 2, 4, 8, 16):
        made[f"wgmma, {parts} parts"] = lambda parts=parts: conv2d_wgmma(x, w, b, parts=parts)
    return made


def linear_variants(x, w, b, kwargs) -> dict:
    from minisd.ops.cuda.linear import product_mma

    return {f"mma, {tile}": lambda tile=tile: product_mma(x, w, b, tile=tile) for tile in known_tiles()}


def attention_variants(q, k, v, kwargs) -> dict:
    """Warps, queries, keys and stages that the tuned kernel is compiled for."""
    from minisd.ops.cuda import attention as launchers

    known = launchers.TUNED_VARIANTS.get(q.shape[3], ())
    return {f"tuned, {variant}": lambda variant=variant: launchers.tuned_by(variant, q, k, v, **kwargs) for variant in known}


def known_tiles() -> tuple:
    """The tiles on tensor cores that the launchers are compiled for."""
    from minisd.ops.cuda import linear

    return linear.SMALL, linear.LARGE, linear.WIDE


VARIANTS = {
    "conv2d": (conv_variants, ("unet-64", "unet-32", "unet-16", "unet-8", "vae-256")),
    "attention": (attention_variants, ("unet-64", "unet-32", "unet-16", "sd2-64")), "linear": (linear_variants, ("unet-64", "unet-16")),
}  # fmt: skip


def variants(record):
    """{"op shape": {variant: ms, or why not}}: from these, the launchers' choices are made."""
    import statistics

    from minisd.benchmark.timing import interleave

    gpu = machine()
    for op, shape in record.each((op, shape) for op, (_, shapes) in VARIANTS.items() for shape in shapes):
        call = Call.of(op, shape)
        host, kwargs = call.build("float16")
        sets = [[gpu.array(a) for a in host] for _ in range(gpu.sets(call.nbytes(2)))]
        truth, cut = truth_of(op, sets[0], kwargs)
        made = [VARIANTS[op][0](*args, kwargs) for args in sets]
        found, timers = {}, {}
        for name in made[0]:
            _, problem = checked(made[0][name], truth, cut, 2e-3)
            if problem:
                found[name] = problem
            else:
                timers[name], _ = gpu.timed([variant[name] for variant in made])
        timers["what the façade takes"], _ = gpu.timed([by(op, best(op, args, kwargs), args, kwargs) for args in sets])
        seconds, _ = interleave(timers, 5, clock=lambda timer: timer())
        record.put(f"{op} {shape}", {**found, **{name: 1e3 * statistics.median(s) for name, s in seconds.items()}})
