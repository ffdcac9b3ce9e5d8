"""The networks of Stable Diffusion 1.5 on the GPU: a UNet step, a VAE decode, a picture in 50 steps, with random weights.

Weights are drawn as torch's default initialisation draws them, from a seed for each name: `baselines.py` makes the very same ones for diffusers
in a process of its own.
"""

import math
import statistics
import time
import zlib

import numpy as np

CONFIGS = {
    "unet": dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
    "vae": dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, sample_size=512),
    "text_encoder": dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                         hidden_act="quick_gelu"),
}  # fmt: skip


def config_of(component: str):
    from minisd.config import CLIPTextConfig, UNetConfig, VAEConfig

    return {"unet": UNetConfig, "vae": VAEConfig, "text_encoder": CLIPTextConfig}[component].from_dict(CONFIGS[component])


def weights(component: str) -> dict[str, np.ndarray]:
    """{name: float16}: ±1/√fan-in for weights and biases, 1 and 0 for norms, as `torch.nn` has it; embeddings 0.02 wide."""
    from minisd.checkpoint import component_shapes

    shapes, made = component_shapes(config_of(component)), {}
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")
        weight = shapes[f"{module}.weight"]
        random = np.random.default_rng(zlib.crc32(name.encode()))
        if len(weight) == 1:
            made[name] = np.full(shape, float(kind == "weight"), "float16")
        elif "embedding" in name and "time_embedding" not in name:
            made[name] = (0.02 * random.standard_normal(shape, "float32")).astype("float16")
        else:
            bound = 1 / math.sqrt(math.prod(weight[1:]))
            made[name] = (bound * (2 * random.random(shape, "float32") - 1)).astype("float16")
    return made


def inputs() -> dict[str, np.ndarray]:
    """What every contestant is given: latents of both halves of guidance, a prompt's vectors, latents to decode, token ids, noise."""
    random = np.random.RandomState(1)
    arrays = {"sample": random.randn(2, 4, 64, 64), "context": random.randn(2, 77, 768), "latents": random.randn(1, 4, 64, 64)}
    return {
        **{name: a.astype("float16") for name, a in arrays.items()},
        "ids": random.randint(0, 49408, (2, 77)), "noise": random.randn(1, 4, 64, 64).astype("float32"),
    }  # fmt: skip


def build(component: str, gpu):
    """The network in minisd, its weights on the GPU, convolutions channels-last as a loader leaves them."""
    from minisd.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
    from minisd.params import Params

    def placed(w):
        return gpu.array(np.ascontiguousarray(w.transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1) if w.ndim == 4 else w)

    cls = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}[component]
    return cls(config_of(component), Params.from_state_dict({name: placed(w) for name, w in weights(component).items()}, path=component))


def timed(gpu, call, times: int) -> dict:
    """Medians of some calls: ms on the device between two events, and ms of the wall clock until the device is done."""
    stream = gpu.cupy.cuda.get_current_stream()
    device, wall = [], []
    for i in range(times + 2):
        stream.synchronize()
        start = time.perf_counter()
        seconds, _ = gpu.clock(stream, call)
        stream.synchronize()
        if i > 1:  # the first two compile, load and fill the memory pool
            device.append(1e3 * seconds)
            wall.append(1e3 * (time.perf_counter() - start))
    return {"ms": statistics.median(device), "wall_ms": statistics.median(wall), "fastest_ms": min(device), "times": times}


def difference(y, other) -> float:
    from minisd.benchmark.ladder import relative_l2

    return relative_l2(y, other)


def unet(record):
    """A step by the public call, and, where models have it, by a `Once` with its CUDA graph. Errors are those to the float32 network."""
    from minisd.benchmark.gpu import Gpu

    gpu, given = Gpu(), inputs()
    model = build("unet", gpu)
    sample, context = gpu.array(given["sample"]), gpu.array(given["context"])
    times = 5 if record.quick else 20

    def step():
        return model(sample, 500, context)

    record.put("eager", timed(gpu, step, times))
    y = step()
    record.put("graph", graph(gpu, model, sample, context, times, y))
    if not record.quick:
        from minisd import ops

        with ops.using(profile="exact"):
            exact = model.astype("float32")(sample.astype("float32"), 500, context.astype("float32"))
        record.put("relative_l2_to_float32", difference(y, exact))


def graph(gpu, model, sample, context, times: int, eager) -> dict:
    """The step as a run of the pipeline computes it: prompt and timestep projected once, the latents of guidance once, one graph."""
    from minisd.models import Once

    once = Once([500.0])
    result = timed(gpu, lambda: model(sample, 500, context, once), times)
    recorded = getattr(getattr(model, "replay", None), "graph", None) is not None
    same = difference(model(sample, 500, context, once), eager)
    shared = timed(gpu, lambda: model(sample[:1], 500, context, once), times)
    return {**result, "recorded": recorded, "relative_l2_to_eager": same, "shared": shared}


def vae(record):
    from minisd.benchmark.gpu import Gpu

    gpu = Gpu()
    model, z = build("vae", gpu), gpu.array(inputs()["latents"])
    record.put("decode", timed(gpu, lambda: model.decode(z), 3 if record.quick else 10))


def image(record):
    """Token ids to pixels on the host: text encoder, 50 steps with guidance, decoder. Loading is not counted; the wall clock is."""
    import minisd
    from minisd.benchmark.gpu import Gpu

    gpu, given = Gpu(), inputs()
    parts = {name: build(name, gpu) for name in CONFIGS}
    settings = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = minisd.StableDiffusionPipeline(**parts, tokenizer=None, scheduler=minisd.DDIMScheduler.from_config(settings))

    def picture():
        uncond, cond = np.split(parts["text_encoder"](given["ids"]), 2)
        return pipe(prompt_embeds=cond, negative_prompt_embeds=uncond, latents=given["noise"], num_inference_steps=50, output_type="np").images

    seconds = []
    for _ in record.each(range(3 if record.quick else 5)):
        start = time.perf_counter()
        pixels = picture()
        seconds.append(time.perf_counter() - start)
    record.put("seconds", {"first": seconds[0], "median": statistics.median(seconds[1:] or seconds), "finite": bool(np.isfinite(pixels).all())})
