"""minisd beside torch on the same cores: full-size Stable Diffusion 1.5 with random weights, interleaved in one process.

    python tools/bench_cpu.py                          # every part, one after the other; `--plan` says how long each takes
    python tools/bench_cpu.py --resume                 # the same, without the parts that this machine has measured already
    python tools/bench_cpu.py unet vae_decode --rounds 3 --variants "torch fp32"
    python tools/bench_cpu.py --tables                 # only writes the tables in docs/ again from docs/bench_cpu.json

Timings need a quiet machine: text, vae_encode, vae_decode, unet, picture, conv, ops. The others do not: errors_…, memory.

Every contestant runs once per round, one after the other, so that a busy moment of the machine hits all of them; the first round warms
up and is dropped; medians are reported. Results are kept after every part: an interrupted run loses only the part it was in. No
timing is ever asserted. Needs the `reference` extra.
"""

import argparse
import copy
import gc
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from minisd import blas  # noqa: E402  before NumPy

blas.choose_kernel()

RESULTS = ROOT / "docs" / "bench_cpu.json"
MODELS = ("text", "vae_encode", "vae_decode", "unet")
MINUTES = {  # on two Zen 3 cores that nobody else uses, five rounds, all variants that such a machine has
    "text": 0.5, "vae_encode": 3, "vae_decode": 6, "unet": 7, "picture": 8, "conv": 5, "ops": 2,
    "errors_text": 0.5, "errors_vae_encode": 4, "errors_vae_decode": 6, "errors_unet": 5, "memory": 6,
}  # fmt: skip
VARIANTS = ("minisd exact", "torch fp32", "torch channels_last", "torch bf16")
BFLOAT16 = {"avx512_bf16", "amx_bf16"}  # without such instructions torch computes bfloat16 in float32, slower than float32


# ----- the models ----------------------------------------------------------------------------------------------------------


def torch_model(component: str):
    """The official architecture with diffusers' own random weights, rounded to float16 as a checkpoint is."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    if component == "unet":
        model = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    elif component == "vae":
        model = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, sample_size=512,
        )  # fmt: skip
    else:
        model = CLIPTextModel(CLIPTextConfig(
            vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu",
        ))  # fmt: skip
    return model.half().float().eval()


def our_model(model, component: str):
    """The same weights in minisd."""
    from minisd.checkpoint import params_from_state_dict
    from minisd.config import CLIPTextConfig, UNetConfig, VAEConfig
    from minisd.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel

    classes = {"unet": (UNet2DConditionModel, UNetConfig), "vae": (AutoencoderKL, VAEConfig), "text_encoder": (CLIPTextModel, CLIPTextConfig)}
    cls, config_class = classes[component]
    config = config_class.from_dict(model.config.to_dict() if component == "text_encoder" else dict(model.config))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    params, report = params_from_state_dict(state, component, config)
    return cls(config, params, report)


def contestants(model, variants) -> dict:
    """name -> (model, dtype) of torch's variants."""
    import torch

    made = {}
    for name in variants:
        if name == "minisd exact":
            continue
        if name == "torch fp32":
            made[name] = model
        elif name == "torch channels_last":
            made[name] = copy.deepcopy(model).to(memory_format=torch.channels_last)
        else:
            made[name] = copy.deepcopy(model).to(torch.bfloat16)
    return made


def calls(part: str, variants):
    """name -> function without arguments that gives the result as float32 NumPy, for one part; and the float64 truth, a function too."""
    import numpy as np
    import torch

    component = {"text": "text_encoder", "unet": "unet"}.get(part, "vae")
    model = torch_model(component)
    ours = our_model(model, component)
    random = np.random.RandomState(1)
    if part == "text":
        inputs = (random.randint(0, 49408, (2, 77)),)
        run, call = lambda m, ids: m(ids).last_hidden_state, ours
    elif part == "unet":
        inputs = (random.randn(2, 4, 64, 64), np.array([500, 500]), random.randn(2, 77, 768))
        run, call = lambda m, *a: m(*a).sample, ours
    elif part == "vae_decode":
        inputs = (random.randn(1, 4, 64, 64),)
        run, call = lambda m, z: m.decode(z).sample, ours.decode
    else:
        inputs = (random.uniform(-1, 1, (1, 3, 512, 512)),)
        run, call = lambda m, x: m.encode(x).latent_dist.mean, lambda x: ours.encode(x).mean
    inputs = tuple(a.astype("float32") if a.dtype.kind == "f" else a for a in inputs)

    def torch_call(m):
        dtype = next(m.parameters()).dtype

        def go():
            with torch.inference_mode():
                tensors = [torch.from_numpy(a).to(dtype) if a.dtype.kind == "f" else torch.from_numpy(a) for a in inputs]
                return run(m, *tensors).to(torch.float64 if dtype == torch.float64 else torch.float32).numpy()

        return go

    def exact():
        from minisd import ops

        with ops.using(profile="exact"):
            return call(*inputs)

    made = {"minisd": lambda: call(*inputs), **({"minisd exact": exact} if "minisd exact" in variants else {})}
    made.update({name: torch_call(m) for name, m in contestants(model, variants).items()})
    return made, lambda: torch_call(model.double())()


# ----- the parts -----------------------------------------------------------------------------------------------------------


def interleave(made: dict, rounds: int, warm: bool = True) -> tuple[dict, dict]:
    """Contestants take turns, each round is printed: `minisd.benchmark.timing`."""
    from minisd.benchmark.timing import interleave

    return interleave(made, rounds, warm=warm, say=lambda line: print(line, flush=True))


def time_model(part: str, options) -> dict:
    made, _ = calls(part, options.variants)
    seconds, _ = interleave(made, options.rounds)
    return {"seconds": seconds}


def measure_errors(part: str, options) -> dict:
    """Relative L2 error of one call to torch's float64."""
    import numpy as np

    made, truth = calls(part, [name for name in VARIANTS if name != "torch channels_last"])
    results = {}
    for name, call in made.items():
        results[name] = call()
        print(f"  {name}", flush=True)
    made.clear()
    gc.collect()
    exact = truth()
    return {name: float(np.linalg.norm(y - exact) / np.linalg.norm(exact)) for name, y in results.items()}


def time_picture(options) -> dict:
    """Two texts' worth of ids, 20 steps with guidance, and the decoder, by both pipelines; loading is not counted."""
    import diffusers
    import numpy as np
    import torch

    import minisd

    parts = {name: torch_model(name) for name in ("unet", "vae", "text_encoder")}
    ours = {name: our_model(m, name) for name, m in parts.items()}
    settings = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = minisd.StableDiffusionPipeline(**ours, tokenizer=None, scheduler=minisd.DDIMScheduler.from_config(settings))
    random = np.random.RandomState(1)
    ids, noise = random.randint(0, 49408, (2, 77)), random.randn(1, 4, 64, 64).astype("float32")

    def our_picture():
        uncond, cond = np.split(ours["text_encoder"](ids), 2)
        return pipe(prompt_embeds=cond, negative_prompt_embeds=uncond, latents=noise, num_inference_steps=20, output_type="np").images

    def torch_picture(models):
        other = diffusers.StableDiffusionPipeline(
            **models, tokenizer=None, scheduler=diffusers.DDIMScheduler(**settings), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
        other.set_progress_bar_config(disable=True)
        dtype = models["unet"].dtype

        def go():
            with torch.inference_mode():
                uncond, cond = models["text_encoder"](torch.from_numpy(ids)).last_hidden_state.chunk(2)
                latents = torch.from_numpy(noise).to(dtype)
                return other(prompt_embeds=cond, negative_prompt_embeds=uncond, latents=latents, num_inference_steps=20, output_type="np").images

        return go

    made = {"minisd": our_picture}
    for name in (name for name in options.variants if name != "minisd exact"):
        made[name] = torch_picture({part: contestants(m, [name])[name] for part, m in parts.items()})
    seconds, results = interleave(made, 1, warm=False)  # the first of twenty steps is warming up enough
    difference = np.abs(np.round(results["minisd"] * 255.0) - np.round(results["torch fp32"] * 255.0)) if "torch fp32" in results else np.zeros(1)
    return {"seconds": seconds, "uint8": {"largest difference": int(difference.max()), "pixels that differ": float((difference > 0).mean())}}


CHILD = """
import sys; sys.path.insert(0, {root!r})
which, part, folder = sys.argv[1:]
if which.startswith("minisd"):
    from minisd import blas; blas.choose_kernel()
    import numpy as np
    from minisd.models import AutoencoderKL, UNet2DConditionModel
    resident = "float16" if which.endswith("float16") else None
    if part == "unet":
        model = UNet2DConditionModel.from_pretrained(folder, resident=resident)
        model(np.ones((2, 4, 64, 64), "float32"), 500, np.ones((2, 77, 768), "float32"))
    else:
        AutoencoderKL.from_pretrained(folder, resident=resident).decode(np.ones((1, 4, 64, 64), "float32"))
else:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    dtype = torch.bfloat16 if which == "torch bf16" else torch.float32
    cls = UNet2DConditionModel if part == "unet" else AutoencoderKL
    model = cls.from_pretrained(folder, torch_dtype=dtype)
    if which == "torch channels_last":
        model = model.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        if part == "unet":
            model(torch.ones(2, 4, 64, 64, dtype=dtype), 500, torch.ones(2, 77, 768, dtype=dtype))
        else:
            model.decode(torch.ones(1, 4, 64, 64, dtype=dtype))
status = open("/proc/self/status").read()
print({{key: int(status.split(key + ":")[1].split()[0]) * 1024 for key in ("VmHWM", "RssAnon")}})
"""


def measure_memory(options) -> dict:
    """Peak resident memory (VmHWM, with pages of mapped files) of loading float16 files and one call, each in a process of its own."""
    entry = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for part in ("unet", "vae"):
            folder = Path(scratch) / part
            torch_model(part).half().save_pretrained(folder)
            gc.collect()
            for which in ("minisd", "minisd, resident float16", *(name for name in options.variants if name.startswith("torch"))):
                command = [sys.executable, "-c", CHILD.format(root=str(ROOT)), which, part, str(folder)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stderr)
                entry.setdefault(part, {})[which] = json.loads(done.stdout.strip().splitlines()[-1].replace("'", '"'))
                print(f"  {part} {which:<26} {entry[part][which]['VmHWM'] / 1e9:.2f} GB", flush=True)
    return entry


def environment(options) -> dict:
    import diffusers
    import numpy as np
    import torch

    text = Path("/proc/cpuinfo").read_text()
    field = {key: re.search(rf"{key}\s*: (.*)", text).group(1) for key in ("model name", "cpu family", "model")}
    flags = cpu_flags()
    return {
        "cpu": f"{field['model name']} (family {field['cpu family']}, model {field['model']})", "threads": options.threads,
        "flags": sorted(f for f in flags if f.startswith(("avx", "fma", "amx"))), "blas_kernel": blas.kernel(), "numpy": np.__version__,
        "torch": torch.__version__, "diffusers": diffusers.__version__, "python": platform.python_version(),
        "load_average_at_start": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }  # fmt: skip


def cpu_flags() -> list[str]:
    return re.search(r"flags\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1).split()


def same_machine(a: dict, b: dict) -> bool:
    """Whether two environments differ in nothing but the day and the load."""
    return all(a.get(key) == b[key] for key in b if key not in ("date", "load_average_at_start"))


def measure(part: str, options) -> dict:
    import bench_cpu_ladders as ladders

    if part.startswith("errors_"):
        return {"relative_l2_to_float64": measure_errors(part.removeprefix("errors_"), options)}
    if part in MODELS:
        return time_model(part, options)
    return {"picture": time_picture, "memory": measure_memory, "conv": ladders.convolutions, "ops": ladders.others}[part](options)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(MINUTES)}; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    natural = [name for name in VARIANTS if name != "torch bf16" or BFLOAT16 & set(cpu_flags())]
    parser.add_argument("--variants", nargs="*", default=natural, choices=VARIANTS, help="beside minisd itself; default: bf16 only where the processor has it")
    parser.add_argument("--scratch", help="folder for 2 GB of temporary weights")
    parser.add_argument("--resume", action="store_true", help="leave out the parts that were measured on this machine with these versions")
    parser.add_argument("--plan", action="store_true", help="only say how long each part takes")
    parser.add_argument("--tables", action="store_true", help="only write the tables again")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(MINUTES):
        parser.error(f"no part is called {', '.join(unknown)}")
    parts = options.parts or list(MINUTES)
    if options.plan:
        print(*(f"{part:<20} {MINUTES[part]:g} minutes" for part in parts), f"together {sum(MINUTES[p] for p in parts):g} minutes", sep="\n")
        return
    data = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not options.tables:
        os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)
        import torch

        torch.set_num_threads(options.threads)
        for part in parts:
            here = environment(options)
            if options.resume and part in data and same_machine(data[part].get("environment", {}), here):
                continue
            print(f"{part} (about {MINUTES[part]:g} minutes)", flush=True)
            data[part] = {**measure(part, options), "environment": here}
            RESULTS.write_text(json.dumps(data, indent=1) + "\n")
            gc.collect()
    from bench_cpu_report import write_tables

    write_tables(data)


if __name__ == "__main__":
    main()
