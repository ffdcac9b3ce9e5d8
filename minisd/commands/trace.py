"""`minisd trace`: a run with every intermediate under its official name, written to a file or shown as a table."""

import json
from pathlib import Path

import click

from ..errors import UsageError
from .options import device_option, dtype_option


@click.command("trace")
@click.argument("prompt")
@click.option("--at", multiple=True, metavar="PATTERN", help="Which layers, such as 'unet.*attn2*'; can be repeated. Default: all.")
@click.option("-o", "--output", help="The .safetensors file (with --stats: .json); default trace.safetensors, or none with --stats or --table.")
@click.option("-m", "--model", default="tiny", show_default=True, help="“tiny”, a folder in diffusers' layout, a single file, or a hub id.")
@click.option("-n", "--negative", default="", help="What the picture should move away from.")
@click.option("-s", "--seed", type=int, default=0, show_default=True)
@click.option("--steps", type=int, default=2, show_default=True, help="Denoising steps.")
@click.option("--cfg-scale", type=float, default=7.5, show_default=True)
@click.option("-W", "--width", type=int, help="Pixels; default: what the model was trained for.")
@click.option("-H", "--height", type=int, help="Pixels; default: what the model was trained for.")
@click.option("--scheduler", help="ddim, lms or pndm; default: the model's own.")
@device_option("cpu")
@dtype_option("float64 makes the truth for `diff --truth`")
@click.option("--variant", help="File variant to read, such as fp16.")
@click.option("--inputs", is_flag=True, help="Also what every layer was given, for `diff --teacher`.")
@click.option("--stats", is_flag=True, help="Only shapes, ranges and moments, not the arrays.")
@click.option("--table", "show_table", is_flag=True, help="Print a line for every layer.")
@click.option("--check", type=click.Choice(["blocks", "ops", "off"]), default="blocks", show_default=True, help="Where to look for NaN and infinity.")
@click.option("--profile", type=click.Choice(["exact", "fast"]), default="exact", show_default=True, help="Which rungs compute; pictures are made by “fast”.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(prompt, at, output, stats, show_table, as_json, force, **options):
    """Record what every layer computes on the way from PROMPT to the picture.

    Names are those of diffusers' modules; an @ and a number behind them say which step. Images are stored as [B, C, H, W].
    """
    from .. import ops
    from ..image import free_name
    from ..request import check_seed
    from ..tracing import checking, trace

    if output is None and not stats and not show_table:
        output = "trace.safetensors"
    if options["inputs"] and (stats or output is None):
        raise UsageError("--inputs without arrays to keep", "inputs are stored in a .safetensors file", "give -o run.safetensors, without --stats")
    path = None if output is None else Path(output) if force else free_name(Path(output))
    pipe = load(options)
    size = dict(width=options["width"], height=options["height"])
    noise = first_noise(pipe, check_seed(options["seed"]), **size)
    recipe = {"prompt": prompt, **options, "device": pipe.device, "dtype": str(pipe.dtype), "scheduler": type(pipe.scheduler).__name__}
    listening = trace(pipe, *at, to=path, inputs=options["inputs"], stats=stats or path is None, recipe=recipe)
    with listening as recorder, checking(options["check"]), ops.using(profile=options["profile"]):
        pipe(
            prompt, negative_prompt=options["negative"], latents=noise, num_inference_steps=options["steps"], guidance_scale=options["cfg_scale"],
            output_type="np", **size,
        )  # fmt: skip
        if not recorder.rows:
            raise UsageError(f"no layer is called {' or '.join(at)}", "", "minisd trace PROMPT --table shows their names; * matches dots too")
    if as_json:
        click.echo(json.dumps({"path": path and str(path), **(recorder.manifest if stats or show_table else {"rows": len(recorder.rows)})}))
    elif show_table or path is None:
        click.echo(recorder.table())
    else:
        click.echo(path)


def load(options: dict):
    """The pipeline with the scheduler that was asked for."""
    from ..checkpoint import resolve
    from ..pipeline import StableDiffusionPipeline
    from ..schedulers import SCHEDULERS

    if options["scheduler"] not in (None, *SCHEDULERS):
        raise UsageError(f"there is no scheduler {options['scheduler']!r}", "", f"use one of {', '.join(SCHEDULERS)}")
    scheduler = None
    if options["scheduler"]:
        scheduler = SCHEDULERS[options["scheduler"]].from_pretrained(resolve(options["model"], variant=options["variant"]), "scheduler")
    where = {name: options[name] for name in ("device", "dtype") if name in options}
    return StableDiffusionPipeline.from_pretrained(options["model"], variant=options["variant"], scheduler=scheduler, **where)


def first_noise(pipe, seed: int, width=None, height=None):
    """The float32 noise of a seed, in every dtype: torch draws other numbers in float64, and the truth must begin where the run began."""
    from .. import rng

    request, f = pipe.check(prompt="", width=width, height=height), pipe.vae.config.downscale
    shape = (1, pipe.unet.config.in_channels, request.height // f, request.width // f)
    return rng.randn(shape, rng.Generator(seed), dtype="float32")
