"""One pullback of full-size Stable Diffusion 1.5 (random weights) beside torch.autograd: time, peak memory, distance.

    python tools/bench_gradients.py                    # both parts, some ten minutes on one core
    python tools/bench_gradients.py decoder --rounds 1

Each side on one thread, in turns in one process, timed by process_time: a forward pass and the gradient of the inputs, no gradient of
the weights on either side. Memory is measured in a process for each side that does nothing else. Writes docs/bench_gradients.json and
the table in docs/gradients.md. Needs the `reference` extra.
"""

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

from bench_cpu import environment, our_model, torch_model  # noqa: E402  chooses the BLAS kernel, then imports NumPy

import numpy as np  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "docs" / "bench_gradients.json", ROOT / "docs" / "gradients.md"
PARTS = {"decoder": "VAE decoder, 512 × 512", "unet": "UNet, one picture, 64 × 64 latents"}
COMPONENTS = {"decoder": "vae", "unet": "unet"}


def inputs(part: str) -> list:
    """The inputs of the forward pass, then the gradient that is pulled back, all float32."""
    random = np.random.RandomState(1)
    shapes = {"decoder": [(1, 4, 64, 64), (1, 3, 512, 512)], "unet": [(1, 4, 64, 64), (1, 77, 768), (1, 4, 64, 64)]}
    return [random.randn(*shape).astype("float32") for shape in shapes[part]]


def by_minisd(part: str, model):
    from minisd import vjp

    *x, dy = (a.astype(model.dtype) for a in inputs(part))
    if part == "decoder":
        return (vjp.decode(model, *x)[1](dy),)
    return vjp.unet(model, x[0], 500, x[1])[1](dy)


def by_torch(part: str, model):
    import torch

    dtype = next(model.parameters()).dtype
    model.requires_grad_(False)
    *x, dy = (torch.from_numpy(a).to(dtype) for a in inputs(part))
    for a in x:
        a.requires_grad_(True)
    y = model.decode(x[0]).sample if part == "decoder" else model(x[0], torch.tensor([500]), x[1]).sample
    return tuple(g.numpy() for g in torch.autograd.grad(y, x, dy))


def model_without_torch(part: str):
    """Our model with weights of no meaning, for the process that measures memory."""
    from minisd.checkpoint import component_shapes, params_from_state_dict
    from minisd.config import UNetConfig, VAEConfig
    from minisd.models import AutoencoderKL, UNet2DConditionModel

    cls, config = {
        "decoder": (AutoencoderKL, VAEConfig(block_out_channels=(128, 256, 512, 512), layers_per_block=2,
                                             down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)),
        "unet": (UNet2DConditionModel, UNetConfig(sample_size=64, cross_attention_dim=768, attention_head_dim=8)),
    }[part]  # fmt: skip
    random = np.random.default_rng(0)
    state = {}
    for name, shape in component_shapes(config).items():
        w = random.standard_normal(shape, dtype="float32")
        state[name] = w / np.float32(np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 1)
    params, report = params_from_state_dict(state, COMPONENTS[part], config)
    return cls(config, params, report)


def peak() -> int:
    """VmHWM, the most memory that this process ever held, in bytes."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def measure_memory(part: str, side: str):
    """Prints {"model": …, "VmHWM": …} of one pullback; runs in a process of its own."""
    if side == "torch":
        import torch

        torch.set_num_threads(1)
    model = torch_model(COMPONENTS[part]) if side == "torch" else model_without_torch(part)
    gc.collect()
    model_peak = peak()
    (by_torch if side == "torch" else by_minisd)(part, model)
    print(json.dumps({"model": model_peak, "VmHWM": peak()}))


def relative_l2(ours: tuple, theirs: tuple) -> list:
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(ours, theirs)]


def measure(part: str, options) -> dict:
    import torch

    torch.set_num_threads(1)
    theirs = torch_model(COMPONENTS[part])
    sides = {"minisd": (by_minisd, our_model(theirs, COMPONENTS[part])), "torch": (by_torch, theirs)}
    seconds, results = {name: [] for name in sides}, {}
    for i in range(options.rounds + 1):
        for name, (run, model) in sides.items():
            gc.collect()
            start = time.process_time()
            results[name] = run(part, model)
            took = time.process_time() - start
            print(f"  {part} round {i}  {name:<8} {took:8.2f} s", flush=True)
            if i:  # the first warms up
                seconds[name].append(round(took, 3))
    return {"process_time": seconds, "relative_l2_to_torch": relative_l2(results["minisd"], results["torch"])}


def table(data: dict) -> str:
    e = data["environment"]
    lines = [
        f"{e['cpu']}, one thread each, NumPy {e['numpy']} with OpenBLAS kernel {e['blas_kernel']}, torch {e['torch']}, {e['date']};"
        f" load average {e['load_average_at_start']:.1f} before the run.",
        "",
        "| one forward pass and pullback | | seconds of CPU | peak memory, GB | of that the model | distance to torch |",
        "|---|---|---|---|---|---|",
    ]
    for part, title in PARTS.items():
        for side in ("minisd", "torch") if part in data else ():
            entry = data[part]
            time_, memory = statistics.median(entry["process_time"][side]), entry["memory"][side]
            distance = ", ".join(f"{x:.1e}" for x in entry["relative_l2_to_torch"]) if side == "minisd" else ""
            lines.append(f"| {title} | {side} | {time_:.1f} | {memory['VmHWM'] / 1e9:.2f} | {memory['model'] / 1e9:.2f} | {distance} |")
            title = ""
    return "\n".join(lines)


def write_table(data: dict):
    between = r"(<!-- bench:gradients -->\n).*?(<!-- /bench:gradients -->)"
    PAGE.write_text(re.sub(between, lambda m: f"{m[1]}{table(data)}\n{m[2]}", PAGE.read_text("utf-8"), flags=re.S), "utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: both")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory", nargs=2, metavar=("PART", "SIDE"), help="only measure the memory of one side, and print it")
    options = parser.parse_args()
    if options.memory:
        return measure_memory(*options.memory)
    data = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    options.threads = 1
    data["environment"] = environment(options)
    for part in options.parts or PARTS:
        memory = {}
        for side in ("minisd", "torch"):
            done = subprocess.run([sys.executable, __file__, "--memory", part, side], check=True, capture_output=True, text=True)
            memory[side] = json.loads(done.stdout)
            print(f"  {part} memory {side}: {memory[side]}", flush=True)
        data[part] = {**measure(part, options), "memory": memory}
        RESULTS.write_text(json.dumps(data, indent=1) + "\n")
        write_table(data)


if __name__ == "__main__":
    main()
