"""The same work by torch: single ops by cuDNN and SDPA, and diffusers' UNet and decoder, eager and compiled. Not a line of minisd's GPU code runs."""

import statistics
import time

import numpy as np

from .census import convolutions
from .models import CONFIGS, inputs, weights
from .record import Skip

SPAN, MOST = 0.004, 256  # as minisd.benchmark.gpu


def need_torch():
    try:
        import torch
    except ImportError:
        raise Skip("torch is not installed") from None
    if not torch.cuda.is_available():
        raise Skip("torch was built without CUDA, or sees no GPU")
    torch.backends.cudnn.benchmark = True
    return torch


def need_diffusers():
    torch = need_torch()
    try:
        import diffusers
    except ImportError as reason:
        raise Skip(f"diffusers is not installed ({reason}): its wheel is one file, pip install --no-index --no-deps diffusers-….whl") from None
    return torch, diffusers


def in_graph(torch, calls, rounds: int) -> dict:
    """Median ms a call of a CUDA graph that calls by turns, as minisd's rungs are timed; without a graph where it cannot be recorded."""

    def some(n):
        results = [None] * len(calls)
        for i in range(n):
            results[i % len(calls)] = calls[i % len(calls)]()
        return results

    def clock(call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # cuDNN tries its algorithms here
            once = clock(lambda: some(len(calls)))
    torch.cuda.current_stream().wait_stream(side)
    n = max(len(calls), min(MOST, int(1e3 * SPAN * len(calls) / max(once, 1e-6)) + 1))
    graph, how = torch.cuda.CUDAGraph(), f"graph of {n}"
    try:
        with torch.cuda.graph(graph):
            kept = some(n)  # noqa: F841  the graph writes there
        launch = graph.replay
    except RuntimeError as reason:
        torch.cuda.synchronize()
        launch, how = (lambda: some(n)), f"{n} launches, not a graph: {str(reason).splitlines()[0]}"
    clock(launch)
    return {"ms": statistics.median(clock(launch) for _ in range(rounds)) / n, "how": how}


def sets(torch, call) -> list:
    """Arguments on the GPU, as many copies as go past the L2 cache three times."""
    host, _ = call.build("float16")
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    copies = max(1, min(64, -(-3 * cache // call.nbytes(2))))
    return [[torch.from_numpy(np.ascontiguousarray(a)).cuda() for a in host] for _ in range(copies)]


def images(torch, args):
    """[B, H, W, C] as torch has it, channels_last in memory."""
    x, *rest = args
    return [x.permute(0, 3, 1, 2), *(w.contiguous(memory_format=torch.channels_last) if w.ndim == 4 else w for w in rest)]


def ops(record):
    """{"op shape": {who: ms}}: conv2d by cuDNN, attention by each backend of SDPA, group norm + SiLU in either layout, linear, GEGLU."""
    torch = need_torch()
    import torch.nn.functional as F

    from minisd.benchmark.calls import FORMS, Call

    rounds = 3 if record.quick else 7
    conv_shapes = [",".join(map(str, numbers)) for numbers in convolutions()]
    wanted = [
        *(("attention", shape) for shape in (("unet-64", "cross-64") if record.quick else FORMS["attention"].presets)),
        *(("group_norm", shape) for shape in (("unet-64", "vae-512", "1,512,256") if record.quick else (*FORMS["group_norm"].presets, "1,512,256"))),
        *(("conv2d", shape) for shape in (*conv_shapes, *(() if record.quick else (s for s in FORMS["conv2d"].presets)))),
        *((op, shape) for op in ("linear", "geglu", "layer_norm") for shape in FORMS[op].presets if not record.quick),
    ]

    def conv(call, kwargs):
        return {"cudnn": [lambda a=images(torch, args): F.conv2d(*a, **kwargs) for args in sets(torch, call)]}

    def attention(call, kwargs):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        found, arguments = {}, sets(torch, call)

        def by(backend, q, k, v):
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, scale=kwargs["scale"], is_causal=kwargs["causal"])

        for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
            backend = getattr(SDPBackend, name, None)
            if backend is not None:
                found[name.lower()] = [lambda a=a, backend=backend: by(backend, *a) for a in arguments]
        return found

    def group_norm(call, kwargs):
        args = sets(torch, call)
        last = [images(torch, a) for a in args]
        first = [[x.contiguous(), *rest] for x, *rest in last]

        def norm(x, w, b):
            return F.silu(F.group_norm(x, kwargs["groups"], w, b, kwargs["eps"]))

        return {"channels_last": [lambda a=a: norm(*a) for a in last], "channels_first": [lambda a=a: norm(*a) for a in first]}

    def linear(call, kwargs):
        return {"cublas": [lambda a=a: F.linear(*a) for a in sets(torch, call)]}

    def geglu(call, kwargs):
        return {"torch": [lambda x=x: x.chunk(2, -1)[0] * F.gelu(x.chunk(2, -1)[1]) for (x,) in sets(torch, call)]}

    def layer_norm(call, kwargs):
        return {"torch": [lambda x=x, w=w, b=b: F.layer_norm(x, w.shape, w, b, kwargs["eps"]) for x, w, b in sets(torch, call)]}

    makers = dict(conv2d=conv, attention=attention, group_norm=group_norm, linear=linear, geglu=geglu, layer_norm=layer_norm)
    with torch.inference_mode():
        for op, shape in record.each(wanted):
            call, found = Call.of(op, shape), {}
            for name, calls in makers[op](call, call.build("float16")[1]).items():
                try:
                    found[name] = in_graph(torch, calls, rounds)
                except RuntimeError as reason:  # a backend that does not take this shape
                    found[name] = {"left_out": str(reason).splitlines()[0]}
            record.put(f"{op} {shape}", found)
            torch.cuda.empty_cache()


def network(torch, diffusers, component: str, dtype="float16"):
    """diffusers' network with the weights that `models.py` gives to minisd."""
    with torch.device("meta"):
        model = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[component](**CONFIGS[component])
    state = {name: torch.from_numpy(w) for name, w in weights(component).items()}
    model.load_state_dict(state, assign=True)
    return model.to("cuda", getattr(torch, dtype)).to(memory_format=torch.channels_last).eval()


def timed(torch, call, times: int) -> dict:
    """Medians of some calls, on the device and by the wall clock; as `models.timed`."""
    device, wall = [], []
    for i in range(times + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        torch.cuda.synchronize()
        begin = time.perf_counter()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if i > 2:
            device.append(start.elapsed_time(end))
            wall.append(1e3 * (time.perf_counter() - begin))
    return {"ms": statistics.median(device), "wall_ms": statistics.median(wall), "fastest_ms": min(device), "times": times}


def on_gpu(torch) -> dict:
    return {name: torch.from_numpy(a).cuda() for name, a in inputs().items()}


def networks(record, prepare, times: int, error: bool):
    torch, diffusers = need_diffusers()
    given = on_gpu(torch)
    calls = {
        "unet": lambda m: m(given["sample"].to(memory_format=torch.channels_last), 500, given["context"], return_dict=False)[0],
        "vae": lambda m: m.decode(given["latents"].to(memory_format=torch.channels_last), return_dict=False)[0],
    }
    with torch.inference_mode():
        for component in record.each(("unet", "vae")):
            model = prepare(torch, network(torch, diffusers, component), component)
            record.put(component, timed(torch, lambda: calls[component](model), times))
            if error and component == "unet":
                y, exact = calls["unet"](model).double(), network(torch, diffusers, "unet", "float32")
                truth = exact(given["sample"].float(), 500, given["context"].float(), return_dict=False)[0].double()
                record.put("relative_l2_to_float32", float((y - truth).norm() / truth.norm()))
            del model
            torch.cuda.empty_cache()


def eager(record):
    """float16, channels_last, SDPA as diffusers chooses it."""
    networks(record, lambda torch, model, component: model, 5 if record.quick else 20, error=not record.quick)


def compiled(record):
    """torch.compile(mode="max-autotune", fullgraph=True), which brings CUDA graphs with it. Compiling is not counted."""

    def prepare(torch, model, component):
        if component == "unet":
            return torch.compile(model, mode="max-autotune", fullgraph=True)
        model.decode = torch.compile(model.decode, mode="max-autotune", fullgraph=True)
        return model

    networks(record, prepare, 20, error=False)
