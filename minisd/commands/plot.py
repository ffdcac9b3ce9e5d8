"""`minisd plot`: schedules as SVG, latents, noise levels, prompt vectors and attention as PNG."""

import json
from pathlib import Path

import click

from ..errors import UsageError
from .options import device_option, dtype_option
from .trace import first_noise, load

MODEL = click.option("-m", "--model", default="tiny", show_default=True, help="“tiny”, a folder in diffusers' layout, a single file, or a hub id.")
PICTURE = click.option("-i", "--image", help="A picture in place of a prompt: png, jpg, webp, bmp, tiff, gif or ppm.")
FORCE = click.option("--force", is_flag=True, help="Overwrite the output.")


def run_options(command):
    """The options of a plot that needs a run of the pipeline."""
    for option in reversed((
        MODEL,
        click.option("-n", "--negative", default="", help="What the picture should move away from."),
        click.option("-s", "--seed", type=int, default=0, show_default=True),
        click.option("--steps", type=int, default=15, show_default=True, help="Denoising steps."),
        click.option("--cfg-scale", type=float, default=7.5, show_default=True),
        click.option("-W", "--width", type=int, help="Pixels; default: what the model was trained for."),
        click.option("-H", "--height", type=int, help="Pixels; default: what the model was trained for."),
        click.option("--scheduler", help="ddim, lms or pndm; default: the model's own."),
        click.option("--variant", help="File variant to read, such as fp16."),
        device_option("cpu"),
        dtype_option(),
        FORCE,
    )):  # fmt: skip
        command = option(command)
    return command


@click.group("plot")
def command():
    """Pictures of what happens inside. Each prints the path of the file that it writes."""


@command.command()
@click.option("--scheduler", "names", multiple=True, help="ddim, lms or pndm; can be repeated. Default: all of them.")
@click.option("--steps", type=int, default=15, show_default=True, help="Denoising steps.")
@click.option("--quantity", type=click.Choice(["sigma", "alpha", "timestep"]), default="sigma", show_default=True, help="σ, ᾱ or t of every step.")
@click.option("--log", is_flag=True, help="A logarithmic axis.")
@click.option("-o", "--output", default="schedule.svg", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers too: index, timestep, sigma and alpha of every step.")
@MODEL
@FORCE
def schedule(names, steps, quantity, log, output, as_json, model, force):
    """How the noise falls from step to step, one curve for each sampler, as SVG."""
    from ..checkpoint import resolve
    from ..schedulers import SCHEDULERS
    from ..viz import schedule_plot, schedule_table

    unknown = [name for name in names if name not in SCHEDULERS]
    if unknown:
        raise UsageError(f"there is no scheduler {unknown[0]!r}", "", f"use {', '.join(SCHEDULERS)}")
    path = output_path(output, ".svg", force)
    folder, schedulers = resolve(model), {}
    for name in names or SCHEDULERS:
        schedulers[name] = SCHEDULERS[name].from_pretrained(folder, "scheduler")
        schedulers[name].set_timesteps(steps)
    path.write_text(schedule_plot(schedulers, quantity, log), encoding="utf-8")
    tables = {name: schedule_table(scheduler) for name, scheduler in schedulers.items()}
    click.echo(json.dumps({"path": str(path), **tables}) if as_json else path)


@command.command()
@click.argument("prompt", required=False)
@PICTURE
@click.option("-o", "--output", default="latents.png", show_default=True)
@run_options
def latents(prompt, image, output, force, **options):
    """The four channels of the picture of PROMPT, or of the one named by -i, in grey: 0 in the middle, the same grey is the same number."""
    from ..viz import latent_channels

    path, _, x0, _ = start_with_latents(prompt, image, output, force, options)
    save(latent_channels(x0), path)


@command.command()
@click.argument("prompt", required=False)
@PICTURE
@click.option("--at", "indices", type=int, multiple=True, help="Index of a step; can be repeated. Default: eight of them.")
@click.option("-o", "--output", default="noise.png", show_default=True)
@run_options
def noise(prompt, image, indices, output, force, **options):
    """The picture of PROMPT, or the one named by -i, with the noise of several steps, decoded: what the UNet is given to see."""
    from ..viz import noise_levels

    path, pipe, x0, noise = start_with_latents(prompt, image, output, force, options, indices)
    last = len(pipe.scheduler.timesteps) - 1
    save(noise_levels(pipe, x0, noise, indices or sorted({round(i * last / 7) for i in range(8)})), path)


@command.command()
@click.argument("prompt")
@click.option("-o", "--output", default="prompt.png", show_default=True)
@MODEL
@FORCE
def prompt(prompt, output, model, force):
    """The 77 vectors that the UNet gets for PROMPT: a row for each token, blue below 0, red above."""
    from ..viz import embedding

    path, pipe, _ = start(output, force, {"model": model, "scheduler": None, "variant": None})
    save(embedding(pipe.encode_prompt([prompt])), path)


@command.command()
@click.argument("prompt")
@click.option("-o", "--output", default="attention.png", show_default=True)
@run_options
def attention(prompt, output, force, **options):
    """Where the picture of PROMPT looked at which word: cross-attention averaged over heads, layers and steps."""
    from ..viz import attention_picture, word_maps

    path, pipe, run = start(output, force, options)
    save(attention_picture(*word_maps(pipe, prompt, **run)), path)


# ----- shared --------------------------------------------------------------------------------------------------------------


def start(output, force: bool, options: dict) -> tuple:
    """(path to write, pipeline, the arguments of its run); what can be refused is refused before the weights are read."""
    from ..request import check_seed

    path, seed = output_path(output, ".png", force), check_seed(options.get("seed", 0))
    pipe = load(options)
    if "steps" not in options:
        return path, pipe, {}
    size = {name: options[name] for name in ("width", "height")}
    run = dict(num_inference_steps=options["steps"], guidance_scale=options["cfg_scale"], negative_prompt=options["negative"], **size)
    return path, pipe, {**run, "latents": first_noise(pipe, seed, **size)}


def start_with_latents(prompt, image, output, force: bool, options: dict, indices=()) -> tuple:
    """(path, pipeline, latents, noise): the latents of the prompt's picture or of an existing one, and the noise of the seed.

    indices: of steps, refused before anything is computed if there are none such.
    """
    from ..image_input import picture_size, preprocess_image, read_pictures
    from ..rng import Generator

    if (prompt is None) == (image is None):
        raise UsageError("give either a prompt or a picture", f"{'neither' if image is None else 'both'} were given", 'minisd plot … "a cat", or -i photo.png')
    pictures = None if image is None else read_pictures(image)
    path, pipe, run = start(output, force, options)
    pipe.scheduler.set_timesteps(options["steps"])
    for index in indices:
        pipe.scheduler.at(index=index)
    if pictures is None:
        return path, pipe, pipe(prompt, output_type="latent", **run).images, run["latents"]
    height, width = picture_size(pictures, options["height"], options["width"], pipe.vae.config.downscale)
    x0 = pipe.encode_image(preprocess_image(pictures, height, width), Generator(options["seed"]))
    return path, pipe, x0, first_noise(pipe, options["seed"], width, height)


def output_path(output, suffix: str, force: bool) -> Path:
    from ..image import check_output

    return check_output(output, force=force, formats={suffix: ""})


def save(image, path: Path):
    from ..image import save_image

    save_image(image, path)
    click.echo(path)
