"""minisd beside torch on the same cores: full-size Stable Diffusion 1.5 with random weights, interleaved in one process.

    python tools/bench_cpu.py                          # all parts but `picture`; about an hour on two cores, most of it float64 (--no-float64)
    python tools/bench_cpu.py unet vae_decode --rounds 5
    python tools/bench_cpu.py picture                  # twenty steps, end to end
    python tools/bench_cpu.py --tables                 # only writes the tables in docs/ again from docs/bench_cpu.json

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
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from minisd import blas  # noqa: E402  before NumPy

blas.choose_kernel()

RESULTS, CPU_PAGE, CONV_PAGE = (ROOT / "docs" / name for name in ("bench_cpu.json", "cpu.md", "conv.md"))
PARTS = ("text", "vae_encode", "vae_decode", "unet", "picture", "memory", "conv")
TITLES = {
    "text": "text encoder, 2 × 77 tokens", "vae_encode": "VAE encode, 512 × 512", "vae_decode": "VAE decode, 512 × 512",
    "unet": "UNet step, batch 2, 64 × 64", "picture": "20-step picture, 512 × 512",
}  # fmt: skip
VARIANTS = ("torch fp32", "torch channels_last", "torch bf16")


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

    made = {"minisd": lambda: call(*inputs), "minisd exact": exact}
    made.update({name: torch_call(m) for name, m in contestants(model, variants).items()})
    return made, lambda: torch_call(model.double())()


# ----- the parts -----------------------------------------------------------------------------------------------------------


def interleave(made: dict, rounds: int) -> tuple[dict, dict]:
    """Seconds of wall clock, a list a contestant, without the first round; and their last results."""
    seconds, results = {name: [] for name in made}, {}
    for i in range(rounds + 1):
        for name, call in made.items():
            gc.collect()
            start = time.perf_counter()
            results[name] = call()
            took = time.perf_counter() - start
            print(f"  round {i}  {name:<20} {took:8.3f} s", flush=True)
            if i:
                seconds[name].append(round(took, 4))
    return seconds, results


def time_part(part: str, options) -> dict:
    import numpy as np

    made, truth = calls(part, options.variants)
    seconds, results = interleave(made, options.rounds)
    entry = {"seconds": seconds}
    if options.float64:
        made.clear()
        gc.collect()
        exact = truth()
        entry["relative_l2_to_float64"] = {name: float(np.linalg.norm(y - exact) / np.linalg.norm(exact)) for name, y in results.items()}
    return entry


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
    for name in options.variants:
        made[name] = torch_picture({part: contestants(m, [name])[name] for part, m in parts.items()})
    seconds, results = interleave(made, max(1, options.rounds // 3))
    difference = np.abs(np.round(results["minisd"] * 255.0) - np.round(results["torch fp32"] * 255.0)) if "torch fp32" in results else np.zeros(1)
    return {"seconds": seconds, "uint8": {"largest difference": int(difference.max()), "pixels that differ": float((difference > 0).mean())}}


CHILD = """
import sys; sys.path.insert(0, {root!r})
which, part, folder = sys.argv[1:]
if which == "minisd":
    from minisd import blas; blas.choose_kernel()
    import numpy as np
    from minisd.models import AutoencoderKL, UNet2DConditionModel
    if part == "unet":
        model = UNet2DConditionModel.from_pretrained(folder)
        model(np.ones((2, 4, 64, 64), "float32"), 500, np.ones((2, 77, 768), "float32"))
    else:
        AutoencoderKL.from_pretrained(folder).decode(np.ones((1, 4, 64, 64), "float32"))
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
    """Peak resident memory (VmHWM, with pages of the mapped file) of loading and one call, each in a process of its own."""
    entry = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for part in ("unet", "vae"):
            folder = Path(scratch) / part
            torch_model(part).save_pretrained(folder)
            gc.collect()
            for which in ("minisd", *options.variants):
                command = [sys.executable, "-c", CHILD.format(root=str(ROOT)), which, part, str(folder)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                entry.setdefault(part, {})[which] = json.loads(done.stdout.strip().splitlines()[-1].replace("'", '"'))
                print(f"  {part} {which:<20} {entry[part][which]['VmHWM'] / 1e9:.2f} GB", flush=True)
    return entry


CONV_SHAPES = (
    (2, 64, 320, 320), (2, 32, 640, 640), (2, 16, 1280, 1280), (2, 8, 1280, 1280), (1, 128, 512, 512), (1, 256, 256, 256), (1, 512, 128, 128),
)  # fmt: skip
UPSAMPLE_SHAPES = ((2, 16, 1280, 1280), (2, 32, 640, 640), (1, 256, 256, 256))


def ladder_of_convolutions(options) -> dict:
    """Every rung of conv2d and upsample_conv2d that takes a shape: seconds, and relative L2 error of a part of it to float64."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from minisd import ops
    from minisd.errors import UsageError

    random, entry = np.random.RandomState(0), {}
    for op, shapes in (("conv2d", CONV_SHAPES), ("upsample_conv2d", UPSAMPLE_SHAPES)):
        for B, side, C, C_out in shapes:
            x, b = random.randn(B, side, side, C).astype("float32"), random.randn(C_out).astype("float32")
            w = (random.randn(3, 3, C, C_out) / (9 * C) ** 0.5).astype("float32").transpose(3, 2, 0, 1)  # as a loaded weight lies in memory
            xt, wt, bt = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(w.copy(order="C")), torch.from_numpy(b)
            up = (lambda t: t) if op == "conv2d" else (lambda t: F.interpolate(t, scale_factor=2.0, mode="nearest"))
            made = {"torch fp32": lambda: F.conv2d(up(xt), wt, bt, padding=1)}
            last = xt.to(memory_format=torch.channels_last), wt.to(memory_format=torch.channels_last)
            made["torch channels_last"] = lambda: F.conv2d(up(last[0]), last[1], bt, padding=1)
            kwargs = dict(padding=1) if op == "conv2d" else dict(size=(2 * side, 2 * side))
            for rung in ops.RUNGS[op]:
                if op == "conv2d" and rung.name == "reference":
                    continue  # the nine shifted products are for reading

                def call(rung=rung):
                    with ops.using(**{op: rung.name}):
                        return getattr(ops, op)(x, w, b, **kwargs)

                try:
                    call()
                except UsageError:
                    continue
                made[rung.name] = call
            print(f" {op} {B} × {side}² {C} → {C_out}", flush=True)
            with torch.inference_mode():
                seconds, results = interleave(made, options.rounds)
                some = slice(0, min(C_out, 16))  # float64 for a few output channels
                truth = F.conv2d(up(xt.double()), wt[some].double(), bt[some].double(), padding=1).numpy()
            scale = 1 if op == "conv2d" else 4
            entry[f"{op} {B} {side} {C} {C_out}"] = {
                "gflop": 18e-9 * scale * B * side * side * C * C_out,
                "seconds": seconds,
                "relative_l2_to_float64": {
                    name: float(np.linalg.norm(_nchw(y)[:, some] - truth) / np.linalg.norm(truth)) for name, y in results.items()
                },
            }
    return entry


def _nchw(y):
    return y.transpose(0, 3, 1, 2) if hasattr(y, "ctypes") else y.numpy()


# ----- the report ----------------------------------------------------------------------------------------------------------


def environment(options) -> dict:
    import diffusers
    import numpy as np
    import torch

    text = Path("/proc/cpuinfo").read_text()
    field = {key: re.search(rf"{key}\s*: (.*)", text).group(1) for key in ("model name", "cpu family", "model")}
    flags = re.search(r"flags\s*: (.*)", text).group(1).split()
    return {
        "cpu": f"{field['model name']} (family {field['cpu family']}, model {field['model']})", "threads": options.threads,
        "flags": sorted(f for f in flags if f.startswith(("avx", "fma", "amx"))), "blas_kernel": blas.kernel(), "numpy": np.__version__,
        "torch": torch.__version__, "diffusers": diffusers.__version__, "python": platform.python_version(),
        "load_average_at_start": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }  # fmt: skip


def median(entry, name):
    return statistics.median(entry["seconds"][name]) if entry["seconds"].get(name) else None


def cpu_tables(data: dict) -> str:
    e = data["environment"]
    lines = [
        f"{e['cpu']}, {e['threads']} threads, NumPy {e['numpy']} with OpenBLAS kernel {e['blas_kernel']}, torch {e['torch']}, {e['date']}; "
        f"load average {e['load_average_at_start']:.1f} before the run.",
        "",
        "| seconds (median) | minisd | torch fp32 | channels_last | bf16 | fp32 / minisd | bf16 / minisd |",
        "|---|---|---|---|---|---|---|",
    ]
    for part, title in TITLES.items():
        if part in data:
            ours, *torch = (median(data[part], name) for name in ("minisd", *VARIANTS))
            cells = [f"{t:.2f}" if t else "–" for t in torch]
            ratios = [f"**{t / ours:.2f}×**" if t else "–" for t in (torch[0], torch[2])]
            lines.append(f"| {title} | {ours:.2f} | {' | '.join(cells)} | {' | '.join(ratios)} |")
    measured = [(title, data[part]["relative_l2_to_float64"]) for part, title in TITLES.items() if data.get(part, {}).get("relative_l2_to_float64")]
    if measured:
        lines += ["", "| relative L2 error to float64 | minisd | minisd exact | torch fp32 | bf16 |", "|---|---|---|---|---|"]
    for title, errors in measured:
        cells = [f"{errors[n]:.1e}" if n in errors else "–" for n in ("minisd", "minisd exact", "torch fp32", "torch bf16")]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    if "memory" in data:
        lines += ["", "| peak memory, GB (VmHWM) | minisd | torch fp32 | channels_last | bf16 |", "|---|---|---|---|---|"]
        for part, title in (("unet", "UNet, load and one step"), ("vae", "VAE, load and one decode")):
            cells = [f"{data['memory'][part][n]['VmHWM'] / 1e9:.2f}" if n in data["memory"][part] else "–" for n in ("minisd", *VARIANTS)]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def conv_tables(data: dict) -> str:
    lines = ["| shape | rung | ms | GFLOP/s of the direct sum | error to float64 |", "|---|---|---|---|---|"]
    for key, entry in data.get("conv", {}).items():
        op, B, side, C, C_out = key.split()
        shape = f"{B} × {side}² {C} → {C_out}" + (" doubled" if op == "upsample_conv2d" else "")
        for name in entry["seconds"]:
            t = median(entry, name)
            lines.append(f"| {shape} | {name} | {1e3 * t:.1f} | {entry['gflop'] / t:.0f} | {entry['relative_l2_to_float64'][name]:.1e} |")
            shape = ""
    return "\n".join(lines)


def write_tables(data: dict):
    for page, mark, text in ((CPU_PAGE, "cpu", cpu_tables(data)), (CONV_PAGE, "conv", conv_tables(data))):
        if page.exists():
            between = rf"(<!-- bench:{mark} -->\n).*?(<!-- /bench:{mark} -->)"
            page.write_text(re.sub(between, lambda m: f"{m[1]}{text}\n{m[2]}", page.read_text("utf-8"), flags=re.S), "utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all but picture")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--no-float64", dest="float64", action="store_false", help="leave out the errors: the truth takes minutes and 7 GB")
    parser.add_argument("--scratch", help="folder for 4 GB of temporary weights")
    parser.add_argument("--tables", action="store_true", help="only write the tables again")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(unknown)}")
    data = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not options.tables:
        os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)
        import torch

        torch.set_num_threads(options.threads)
        data["environment"] = environment(options)
        special = {"picture": time_picture, "memory": measure_memory, "conv": ladder_of_convolutions}
        for part in options.parts or [p for p in PARTS if p != "picture"]:
            print(part, flush=True)
            data[part] = special[part](options) if part in special else time_part(part, options)
            RESULTS.write_text(json.dumps(data, indent=1) + "\n")
            gc.collect()
    write_tables(data)


if __name__ == "__main__":
    main()
