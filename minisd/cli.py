"""The command line. `minisd "a prompt"` is `minisd generate "a prompt"`.

Data goes to stdout, messages and the progress bar to stderr. What can be refused is refused before any weights are read. Only click is
imported here at the top: `minisd --help` must not wait for NumPy.
"""

import importlib
import json
import logging
import math
import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from . import __version__
from .blas import choose_kernel
from .commands.options import ITEMSIZE, device_option, dtype_option
from .errors import MinisdError, UsageError

log = logging.getLogger("minisd")
INTERRUPTED = 130
MODEL_HELP = "“tiny” (embedded), a folder in diffusers' layout, a single .safetensors or .ckpt, or a hub id: stable-diffusion-v1-5/stable-diffusion-v1-5."
COMMANDS = ("bench", "diff", "doctor", "dump-script", "inspect", "lora", "plot", "tokens", "trace", "verify")  # each in a file of commands/, loaded when it is asked for
EPILOG = "Exit codes: 0 done, 1 diff or verify found a difference, 2 usage, 3 file, 4 memory or disk, 5 NaN, 6 network, 70 bug, 130 interrupted. MINISD_DEBUG=1 shows tracebacks."


class PromptGroup(click.Group):
    """A group whose first word is a prompt unless it is the name of a command or an option of the group."""

    def list_commands(self, ctx):
        return sorted([*super().list_commands(ctx), *COMMANDS])

    def get_command(self, ctx, name):
        if name not in COMMANDS:
            return super().get_command(ctx, name)
        return importlib.import_module(f".commands.{name.replace('-', '_')}", __package__).command

    def parse_args(self, ctx, args):
        if args and args[0] not in self.list_commands(ctx) and args[0] not in ("--help", "-h", "--version"):
            args = ["generate", *args]
        return super().parse_args(ctx, args)


@click.group(cls=PromptGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}, epilog=EPILOG)
@click.version_option(__version__, prog_name="minisd")
def cli():
    """Stable Diffusion in NumPy, or on an NVIDIA GPU.  minisd "a red apple on a blue background"  makes a picture without network or GPU."""


@cli.command(epilog=EPILOG)
@click.argument("prompt")
@click.option("-m", "--model", default="tiny", show_default=True, help=MODEL_HELP)
@click.option("-n", "--negative", default="", help="What the picture should move away from.")
@click.option("-i", "--image", help="Begin with this picture: png, jpg, webp, bmp, tiff, gif or ppm.")
@click.option("--mask", help="With -i: repaint where this picture is white, keep where it is black.")
@click.option("--strength", type=float, help="With -i: share of the steps to run, 0 … 1. Default: 0.8, with --mask 1.")
@click.option("--start-step", type=int, help="With -i: index of the first step, instead of --strength.")
@click.option("--compat/--no-compat", default=True, show_default=True, help="With -i: lms and pndm begin as in diffusers, or with the right weights.")
@click.option("-s", "--seed", type=int, default=-1, show_default=True, help="0 … 2^64−1; −1 takes a random one and prints it.")
@click.option("--steps", type=int, default=25, show_default=True, help="Denoising steps.")
@click.option("--cfg-scale", type=float, default=7.5, show_default=True, help="Guidance; 0 … 1 turns it off.")
@click.option("-W", "--width", type=int, help="Pixels; default: the picture's with -i, else what the model was trained for.")
@click.option("-H", "--height", type=int, help="Pixels; default: the picture's with -i, else what the model was trained for.")
@click.option("--scheduler", help="ddim, lms or pndm; default: the model's own.")
@click.option("--lora", "loras", multiple=True, metavar="FILE[:SCALE]", help="A LoRA to merge into the weights; can be repeated. SCALE: default 1.")
@click.option("--embedding", "embeddings", multiple=True, metavar="FILE", help="A textual inversion: a word for the prompt; can be repeated.")
@click.option("--prompt-weights", type=click.Choice(["a1111"]), help="Read (word:1.2), ((word)) and [word], and long prompts in chunks of 75.")
@click.option("--clip-skip", type=int, help="Leave the last layers of the text encoder out, as diffusers counts: 1 leaves one out.")
@click.option("--eta", type=float, default=0.0, show_default=True, help="Fresh noise in each DDIM step, 0 … 1.")
@device_option("auto")
@click.option("--resident", type=click.Choice(["float32", "float16"]),
              help="On the CPU, float16: keep the weights in half the memory; same numbers, 5 to 10 % slower.")  # fmt: skip
@dtype_option()
@click.option("--two-passes", is_flag=True, help="Guidance as two passes of the UNet, one after the other: less memory, more time.")
@click.option("--variant", help="File variant to read, such as fp16.")
@click.option("--exact", is_flag=True, help="Only implementations of the numerics class “exact”.")
@click.option("--check", type=click.Choice(["blocks", "ops", "off"]), default="blocks", show_default=True, help="Where to look for NaN and infinity.")
@click.option("-o", "--output", default="minisd.png", show_default=True, help="png, webp, jpg, bmp or tiff; numbered if it exists.")
@click.option("--frames", help="Also save every step, where it stands and what it has in mind: a .gif, .webp, .png or .mp4, or a folder.")
@click.option("--preview", is_flag=True, help="Frames by a linear map of the latents instead of the VAE: square pixels, at no cost.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("--no-metadata", is_flag=True, help="Do not write the recipe into the PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the path.")
@click.option("-q", "--quiet", is_flag=True, help="No messages, no progress bar.")
def generate(**options):
    """Make a picture from PROMPT and print its path."""
    quiet, as_json = options["quiet"], options["as_json"]
    say = (lambda text: None) if quiet else (lambda text: click.echo(text, err=True))
    plan = Plan.check(options)
    say(plan.describe())

    start = time.perf_counter()
    pipe = plan.load()
    say(f"loaded in {time.perf_counter() - start:.1f} s")
    from . import ops, tracing

    start = time.perf_counter()
    with ops.using(profile="exact" if options["exact"] else "fast"), tracing.checking(options["check"]), stop_after_step() as stop:
        latents, kept = run_steps(pipe, plan, stop, quiet)
        pipe.unet = None  # its work is done, and its weights make room for the decoder
        seconds = time.perf_counter() - start
        path = plan.save(pipe, latents, kept, partial=stop.asked)
    say(f"{len(kept)} steps in {seconds:.1f} s" if not stop.asked else f"interrupted after {len(kept)} steps; saved what there was")
    click.echo(json.dumps({"path": str(path), "seconds": round(seconds, 3), **plan.recipe(pipe)}, ensure_ascii=False) if as_json else path)
    if stop.asked:
        sys.exit(INTERRUPTED)


@cli.command(epilog=EPILOG)
@click.argument("repo")
@click.option("--variant", help="File variant to fetch, such as fp16.")
@click.option("--revision", help="Branch, tag or commit.")
def fetch(repo, variant, revision):
    """Download the hub model REPO once, for later use without network, and print its folder."""
    from .checkpoint import resolve

    click.echo(resolve(repo, variant=variant, revision=revision))


# ----- a run of `generate` -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The checked options of a run: everything that can be refused has been, and no weights are in memory yet."""

    options: dict
    seed: int
    output: Path
    frames: Path | None
    folder: Path
    scheduler: object
    request: object
    edit: object  # the picture to begin with
    first: int  # the index of the first timestep
    adapters: object  # the checked LoRAs and learned words
    weights: int  # bytes
    activations: int  # bytes

    @classmethod
    def check(cls, o: dict) -> "Plan":
        """Checks the options, first those that need no model, then those that need its configs."""
        from . import gpu, image, rng
        from .adapters import Plans
        from .checkpoint import component_shapes, read_component_config, read_model_index, resolve
        from .edit import Edit
        from .loading import load_scheduler, load_tokenizer
        from .models.model import check_dtype, check_residence, default_dtype
        from .prompts import check_prompt_options
        from .request import Request, activation_bytes, check_memory, check_prompts, check_seed
        from .schedulers import SCHEDULERS

        check_prompts(o["prompt"])
        seed = rng.fresh_seed() if o["seed"] == -1 else check_seed(o["seed"])
        if not 0.0 <= o["eta"] <= 1.0:
            raise UsageError(f"eta is {o['eta']}", "it is the share of fresh noise in each step", "choose eta from 0 … 1")
        if o["scheduler"] not in (None, *SCHEDULERS):
            raise UsageError(f"there is no scheduler {o['scheduler']!r}", "", f"use one of {', '.join(SCHEDULERS)}")
        device = gpu.choose(o["device"], say=log.info)
        dtype = check_dtype(o["dtype"] or default_dtype(device), device)
        check_residence(o["resident"], device)
        o = {**o, "device": device, "dtype": dtype}
        output = image.check_output(o["output"], force=o["force"])
        frames = Path(o["frames"]) if o["frames"] else None
        if o["preview"] and not frames:
            raise UsageError("--preview without --frames", "it says how the frames are made", "add --frames steps.gif")
        if frames and frames.suffix:
            frames = image.check_output(frames, force=o["force"], formats=image.ANIMATIONS)
        edit = Edit.check(o)

        folder = resolve(o["model"], variant=o["variant"])
        read_model_index(folder)
        if o["scheduler"]:
            scheduler = SCHEDULERS[o["scheduler"]].from_pretrained(folder, "scheduler")
        else:
            scheduler = load_scheduler(folder)
        unet, vae, text = (read_component_config(folder, part) for part in ("unet", "vae", "text_encoder"))
        height, width = edit.size(o["height"], o["width"], vae.downscale)
        request = Request.check(
            unet, vae, prompt=o["prompt"], negative_prompt=o["negative"], height=height, width=width, num_inference_steps=o["steps"],
            num_train_timesteps=scheduler.config.num_train_timesteps, guidance_scale=o["cfg_scale"], inpaint=edit.inpaint,
        )  # fmt: skip
        scheduler, first = edit.adapt(scheduler, request.num_inference_steps)
        check_prompt_options(o["prompt_weights"], o["clip_skip"], text.num_hidden_layers)
        itemsize = ITEMSIZE[dtype]
        kept = 2 if o["resident"] == "float16" else itemsize
        shapes = {"unet": component_shapes(unet), "text_encoder": component_shapes(text)}
        adapters = Plans.check(o["loras"], o["embeddings"], shapes, unet.layers_per_block)
        if adapters.words:
            adapters.expect_new_words(load_tokenizer(folder))
        unet_bytes, *others = (kept * sum(map(math.prod, component_shapes(config).values())) for config in (unet, vae, text))
        weights = unet_bytes + sum(others) + kept * adapters.touched(shapes)  # merging keeps the originals for a moment
        options = dict(freed=unet_bytes, pictures=0 if edit.picture is None else 1, two_passes=o["two_passes"])
        activations = activation_bytes(request, vae, unet, itemsize, **options)
        check_memory(activations, request, weights, device, gpu.free_bytes(device))
        edit.check_mask(request.height, request.width, vae.downscale)
        return cls(o, seed, output, frames, folder, scheduler, request, edit, first, adapters, weights, activations)

    def describe(self) -> str:
        r, o = self.request, self.options
        gigabytes = (self.weights + self.activations) / 1e9
        where = f" · {' under '.join(name for name, _ in self.edit.files)}, from step {self.first}" if self.edit.files else ""
        return (
            f"{o['model']} · {r.width}×{r.height} · {o['steps']} steps of {type(self.scheduler).__name__}{where} · guidance {r.guidance_scale:g} · "
            f"seed {self.seed} · {o['dtype']} on {o['device']} · about {gigabytes:.1f} GB of memory"
        )

    def load(self):
        o = self.options
        load = dict(device=o["device"], dtype=o["dtype"], variant=o["variant"], resident=o["resident"])
        pipe = self.edit.pipeline.from_pretrained(self.folder, scheduler=self.scheduler, **load)
        self.adapters.apply(pipe)
        return pipe

    def recipe(self, pipe) -> dict:
        """Everything that made the picture."""
        import numpy as np

        o, r = self.options, self.request
        from . import blas, gpu
        from .checkpoint import file_sha256

        where = {"device": "cpu"}
        if o["device"] != "cpu":
            facts = gpu.describe(o["device"])
            where = {"device": o["device"], "gpu": facts["name"], "cupy": facts["cupy"], "driver": facts["driver"]}
        library = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return {
            "prompt": o["prompt"], "negative_prompt": o["negative"], "model": o["model"],
            **({"model_sha256": file_sha256(self.folder)} if self.folder.is_file() else {}), "seed": self.seed, "steps": r.num_inference_steps,
            "cfg_scale": r.guidance_scale, "scheduler": type(pipe.scheduler).__name__, "eta": o["eta"], "width": r.width, "height": r.height,
            **self.edit.recipe,
            **{name: o[name] for name in ("prompt_weights", "clip_skip", "two_passes") if o[name]}, **self.adapters.recipe(),
            "rng": "torch-cpu", "dtype": str(pipe.dtype), **where, "profile": "exact" if o["exact"] else "fast", "minisd": __version__,
            "numpy": np.__version__, "blas": f"{library.get('name')} {library.get('version')} {blas.kernel() or ''}".strip(),
        }  # fmt: skip

    def save(self, pipe, latents, kept: list, partial: bool):
        """Decodes and writes the picture, and the frames if asked for; an interrupted run writes name.partial.png."""
        from . import image

        picture = pipe.to_images(latents)[0]
        path = image.free_name(self.output.with_suffix(f".partial{self.output.suffix}")) if partial else self.output
        image.save_image(picture, path, None if self.options["no_metadata"] else self.recipe(pipe))
        if self.frames:
            from .viz import fit_preview, frames

            image.save_animation(frames(pipe, kept, fit_preview(pipe.vae) if self.options["preview"] else None), self.frames)
        return path


def run_steps(pipe, plan: Plan, stop, quiet: bool):
    """Runs the loop under a progress bar. Returns the last latents, and every `Step`."""
    from tqdm import tqdm

    o, r = plan.options, plan.request
    steps = pipe.steps(
        o["prompt"], negative_prompt=o["negative"], seed=plan.seed, num_inference_steps=o["steps"], guidance_scale=o["cfg_scale"],
        eta=o["eta"], width=r.width, height=r.height, clip_skip=o["clip_skip"], prompt_weights=o["prompt_weights"], two_passes=o["two_passes"],
        **plan.edit.arguments,
    )  # fmt: skip
    latents, kept = None, []
    total = len(pipe.scheduler.timesteps) - plan.first
    for step in tqdm(steps, total=total, unit="step", file=sys.stderr, disable=True if quiet else None, leave=False):
        latents = step.latents
        kept.append(step)
        if stop.asked:
            break
    return latents, kept


@contextmanager
def stop_after_step():
    """Inside the block the first Ctrl-C asks to stop after this step; the second one stops at once."""

    class Stop:
        asked = False

    def ask(signum, frame):
        Stop.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        click.echo("\nstopping after this step (Ctrl-C again stops at once)", err=True)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield Stop
    finally:
        signal.signal(signal.SIGINT, before)


# ----- errors --------------------------------------------------------------------------------------------------------------


def main(args: list[str] | None = None):
    """Runs the command line and exits with the code of the table in `errors.py`."""
    args = sys.argv[1:] if args is None else args
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    if "-q" not in args and "--quiet" not in args:
        logging.getLogger("minisd").setLevel(logging.INFO)
    if "numpy" not in sys.modules:  # OpenBLAS chooses its kernel while NumPy is imported
        choose_kernel()
    try:
        cli.main(args, prog_name="minisd", standalone_mode=False)
    except MinisdError as error:
        fail(args, error, error.exit_code)
    except click.ClickException as error:
        fail(args, error, error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except MemoryError as error:
        fail(args, MinisdError("out of memory", str(error), "choose a smaller picture with -W and -H"), 4)
    except Exception as error:
        if os.environ.get("MINISD_DEBUG"):
            raise
        fix = "please report it with the command you ran; MINISD_DEBUG=1 shows the traceback"
        fail(args, MinisdError(f"a bug in minisd: {type(error).__name__}: {error}", "this should not happen", fix), 70)


def fail(args, error, code: int):
    """Prints the error, as JSON on stdout if asked for, else in three lines on stderr, and exits."""
    if os.environ.get("MINISD_DEBUG"):
        import traceback

        traceback.print_exception(error)
    if "--json" in args:
        what = {k: getattr(error, k, "") for k in ("what", "why", "fix")} if isinstance(error, MinisdError) else {"what": error.format_message()}
        click.echo(json.dumps({"error": {**what, "exit_code": code}}))
    elif isinstance(error, MinisdError):
        click.echo(f"error: {error}".encode("utf-8", "backslashreplace").decode(), err=True)
    else:
        error.show()
    sys.exit(code)
