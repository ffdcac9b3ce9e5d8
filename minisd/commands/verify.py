"""`minisd verify`: does this installation compute what it should? Exit code 1 where it does not.

The embedded model is compared with recorded values, any other model with itself in float64, layer by layer; the samplers with recorded
runs of a toy model. The records (verify.json) are float64 results at a few positions; `record()` makes them, and the tests hold them
against diffusers.
"""

import json
import math
import sys
import tempfile
from pathlib import Path

import click

from ..errors import UsageError
from .options import device_option

RECORD = Path(__file__).with_suffix(".json")
PROMPT, SEED, STEPS = "a red apple on a blue background", 7, 4
POSITIONS = 24
ALLOWED = 1e-4  # relative L2 of float32 after four guided steps; a right run is a fifth of it or less away
ALLOWED_HALF = 0.1  # of float16, whose guided noise at late timesteps is up to 0.04 away by the reference ops
ALLOWED_HALF_PICTURE = 5e-3  # a right run: 5e-4
ALLOWED_PICTURE = 2e-5  # the decoder's clip hides what lies outside 0 … 1, so the picture of a right run is nearer: 4e-7


@click.command("verify")
@click.option("-m", "--model", default="tiny", show_default=True, help="“tiny”, a folder in diffusers' layout, a single file, or a hub id.")
@click.option("--suite", type=click.Choice(["golden", "schedulers", "onnx", "all"]), default="all", show_default=True,
              help="golden: the model; schedulers; onnx: the ONNX standard's own cases for our ops (needs onnx==1.22.0); all: the first two.")  # fmt: skip
@click.option("--variant", help="File variant to read, such as fp16.")
@device_option("cpu")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model, suite, variant, device, as_json):
    """Run a self-test of this installation on the embedded model, or on the model -m. On a GPU: in float32, and the embedded model in float16 too."""
    checks = []
    if suite in ("golden", "all"):
        checks += golden(device) if model == "tiny" else oracle(model, variant, device)
    if suite in ("schedulers", "all"):
        checks += schedulers()
    if suite == "onnx":
        checks += foreign()
    ok = all(check["ok"] for check in checks)
    if as_json:
        click.echo(json.dumps({"ok": ok, "checks": [{**c, "error": c["error"] if math.isfinite(c["error"]) else None} for c in checks]}))
    else:
        for check in checks:
            verdict, numbers = "ok" if check["ok"] else "WRONG", f"{check['error']:.1e} of {check['allowed']:.1e}"
            click.echo(f"{verdict:<6} {check['name']:<46} {numbers} {check.get('note', '')}".rstrip())
        click.echo(f"{sum(check['ok'] for check in checks)} of {len(checks)} checks passed")
    sys.exit(0 if ok else 1)


# ----- recorded values -----------------------------------------------------------------------------------------------------


def golden(device: str = "cpu") -> list:
    """The embedded model against the record: the prompt, every step with every sampler, the picture. In float32, on a GPU in float16 too."""
    from .. import gpu

    recorded, device = json.loads(RECORD.read_text())["model"], gpu.choose(device)
    checks = compared(model_values("float32", device), recorded, ALLOWED, {"picture": ALLOWED_PICTURE})
    if device == "cpu":
        return checks
    halves = compared(model_values("float16", device), recorded, ALLOWED_HALF, {"picture": ALLOWED_HALF_PICTURE})
    return [*checks, *({**check, "name": f"float16: {check['name']}"} for check in halves)]


def schedulers() -> list:
    """The samplers' arithmetic in float64 against the record."""
    return compared(scheduler_values(), json.loads(RECORD.read_text())["schedulers"], 1e-6)


def compared(values: dict, recorded: dict, allowed: float, stricter: dict | None = None) -> list:
    """One check for each value: its relative L2 error is at most `allowed`, or what `stricter` says for its name."""
    if values.keys() != recorded.keys():
        raise UsageError("the record belongs to another version", f"{RECORD.name} and the program differ in what they hold", "install minisd again")
    checks = []
    for name, ours in values.items():
        size = math.hypot(*recorded[name])
        error = math.hypot(*(a - b for a, b in zip(ours, recorded[name], strict=True))) / size
        limit = (stricter or {}).get(name, allowed)
        checks.append({"name": name, "ok": error <= limit, "error": error, "allowed": limit})
    return checks


def model_values(dtype: str, device: str = "cpu") -> dict:
    """{what: a few of its values} of short runs of the embedded model."""
    from ..pipeline import StableDiffusionPipeline
    from ..schedulers import SCHEDULERS
    from .trace import first_noise

    pipe = StableDiffusionPipeline.from_pretrained("tiny", device=device, dtype=dtype)
    values = {"prompt vectors": sample(pipe.encode_prompt([PROMPT]))}
    for name, scheduler in SCHEDULERS.items():
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        for step in pipe.steps(PROMPT, latents=first_noise(pipe, SEED), num_inference_steps=STEPS):
            values[f"{name}, step {step.index}: noise"] = sample(step.noise_pred)
            values[f"{name}, step {step.index}: latents"] = sample(step.latents)
    values["picture"] = sample(pipe.decode_latents(step.latents))
    return values


def scheduler_values() -> dict:
    """{what: values} of ten steps of each sampler in float64 with the model ε(x, t) = 0.3 x + 0.2 sin(t / 100 + i), i the index of a value."""
    import numpy as np

    from ..schedulers import SCHEDULERS

    values, i = {}, np.arange(6, dtype="float64").reshape(1, 1, 2, 3)
    for name, kind in SCHEDULERS.items():
        scheduler = kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        scheduler.set_timesteps(10)
        x = np.cos(i) * float(scheduler.init_noise_sigma)
        for t in scheduler.timesteps:
            noise = 0.3 * scheduler.scale_model_input(x, t) + 0.2 * np.sin(float(t) / 100.0 + i)
            x = scheduler.step(noise, t, x).prev_sample
        values[f"{name}, ten steps"] = x.ravel().tolist()
    return values


def sample(x) -> list:
    """Values at positions spread evenly over an array, in which no axis is favoured."""
    flat = x.ravel()
    return [float(flat[(n * 7919) % flat.size]) for n in range(POSITIONS)]


def record():
    """Writes the record, from float64. For maintainers, after a change that is meant to change the results."""
    record = {"model": model_values("float64"), "schedulers": scheduler_values()}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


# ----- the cases of the ONNX standard --------------------------------------------------------------------------------------


def foreign() -> list:
    """One check for each set of rungs: as many cases as expected pass. Each wrong case has a check of its own."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("onnx")
    except PackageNotFoundError:
        found = "no onnx"
    if found != "1.22.0":
        why = f"the cases are read from the package onnx 1.22.0, here is {found}; later versions hold no cases"
        raise UsageError("the ONNX suite is not installed", why, "pip install onnx==1.22.0, or minisd with the extra: pip install 'minisd[test]'")
    from ..onnx_suite.cases import EXPECTED, SETS, collect, verdict

    checks, wanted = [], sum(count for reason, count in EXPECTED.items() if reason.startswith("passed"))
    for rungs in SETS:
        results, wrong = [], []
        for name in collect():
            try:
                results.append(verdict(name, rungs))
            except AssertionError as difference:
                message = next(line for line in str(difference).splitlines() if line.strip())
                wrong.append({"name": f"{name}, {rungs} rungs", "ok": False, "error": math.inf, "allowed": 0.0, "note": message})
        passed = sum(result.startswith("passed") for result in results)
        note = f"cases do not pass; {passed} do, {len(results) - passed} ask for what no op of ours is"
        checks += [{"name": f"ONNX cases, {rungs} rungs", "ok": passed >= wanted, "error": float(wanted - passed), "allowed": 0.0, "note": note}, *wrong]
    return checks


# ----- a model against itself ----------------------------------------------------------------------------------------------


def oracle(model: str, variant: str | None, device: str = "cpu") -> list:
    """Four guided steps and the decoder at a small size, in float32 against float64: every layer within its budget."""
    from .. import ops
    from ..compare import diff
    from ..pipeline import StableDiffusionPipeline
    from ..tracing import trace
    from .trace import first_noise

    pipe = StableDiffusionPipeline.from_pretrained(model, variant=variant, device=device, dtype="float32")
    size = dict.fromkeys(("width", "height"), 8 * pipe.vae.config.downscale)
    noise = first_noise(pipe, SEED, **size)
    with tempfile.TemporaryDirectory(prefix="minisd-verify-") as folder:
        files = [Path(folder, f"{dtype}.safetensors") for dtype in ("float32", "float64")]
        for file in files:
            exact = pipe if file.stem == "float32" else pipe.astype("float64")
            with trace(exact, to=file), ops.using(profile="exact"):
                exact(PROMPT, latents=noise, num_inference_steps=4, output_type="np", **size)
        result = diff(*files)
    first, checks = result.first_divergence(), []
    for part in ("text_encoder", "unet", "vae"):
        rows = [row for row in result.rows if row.name.startswith(f"{part}.") or row.name == part]
        row = next((row for row in rows if row.wrong), max(rows, key=lambda row: row.l2 / row.allowed if row.allowed else 0.0))
        note = f"{len(rows)} layers; {'wrong first' if row.wrong else 'nearest to its budget'}: {row.name}"
        checks.append({"name": f"{part} in float32 against float64", "ok": not row.wrong, "error": row.l2, "allowed": row.allowed, "note": note})
    if first is not None:
        checks.append({"name": f"first divergence: {first.label}", "ok": False, "error": first.l2, "allowed": first.allowed, "note": first.note})
    return checks
