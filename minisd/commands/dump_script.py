"""`minisd dump-script`: a short program for torch and diffusers that writes the same kind of trace from the reference."""

import re

import click

from ..errors import UsageError

PROGRAM = '''"""Writes what every module of diffusers' Stable Diffusion is given and returns.        python dump.py [OUT.safetensors]

Printed by `minisd dump-script`; needs torch, diffusers, transformers and safetensors, not minisd. Compare with
    minisd trace PROMPT … -o ours.safetensors; minisd diff ours.safetensors OUT.safetensors
    minisd diff --teacher -m MODEL OUT.safetensors
"""
import inspect, json, sys

import diffusers, torch, transformers
from safetensors.torch import save_file

MODEL, PROMPT, NEGATIVE = @MODEL@, @PROMPT@, @NEGATIVE@
SEED, STEPS, GUIDANCE, DTYPE, SIZE = @SEED@, @STEPS@, @GUIDANCE@, torch.@DTYPE@, @SIZE@
tensors, rows, calls, known = {}, [], {}, {}


def keep(key, x):  # equal inputs are stored once
    x = x.detach().cpu().contiguous().clone()
    content = tuple(x.shape), str(x.dtype), hash(x.numpy().tobytes())
    if known.setdefault(content, key) == key:
        tensors[key] = x
    return known[content]


def hook_for(name):
    def hook(module, args, kwargs, output):
        call = calls[name] = calls.get(name, -1) + 1
        key = f"{name}@{call}" if call else name
        inputs, options = {}, {}
        for k, v in inspect.signature(module.forward).bind(*args, **kwargs).arguments.items():
            if torch.is_tensor(v):
                inputs[k] = keep(f"{key}<{k}", v)
            elif isinstance(v, (tuple, list)) and v and all(map(torch.is_tensor, v)):
                inputs[k] = [keep(f"{key}<{k}.{i}", x) for i, x in enumerate(v)]
            elif isinstance(v, (int, float, str, tuple)):
                options[k] = v
        while not torch.is_tensor(output):  # of a tuple or a model output the first
            output = output[0]
        tensors[key] = output.detach().cpu().contiguous().clone()
        weight = getattr(module, "weight", None)
        products = weight[0].numel() if weight is not None and weight.ndim > 1 and "Embedding" not in type(module).__name__ else 0
        rows.append(dict(key=key, name=name, call=call, kind=type(module).__name__, shape=list(output.shape), dtype=str(output.dtype)[6:],
                         reduction=products, inputs=inputs, options=options))
    return hook


load = getattr(diffusers.StableDiffusionPipeline, "from_single_file" if MODEL.endswith((".safetensors", ".ckpt")) else "from_pretrained")
pipe = load(MODEL, safety_checker=None, requires_safety_checker=False).to(DTYPE)
for part in ("text_encoder", "unet", "vae"):
    for name, module in getattr(pipe, part).named_modules():
        module.register_forward_hook(hook_for(f"{part}.{name}" if name else part), with_kwargs=True)
f = pipe.vae_scale_factor
shape = 1, pipe.unet.config.in_channels, *(SIZE.get(side, pipe.unet.config.sample_size * f) // f for side in ("height", "width"))
noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED)).to(DTYPE)  # drawn in float32: float64 would be other numbers
pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=noise, **SIZE)
versions = {m.__name__: m.__version__ for m in (torch, diffusers, transformers)}
recipe = dict(model=MODEL, prompt=PROMPT, negative=NEGATIVE, seed=SEED, steps=STEPS, cfg_scale=GUIDANCE, **SIZE)
manifest = dict(format=1, versions=versions, recipe=recipe, rows=rows)
out = sys.argv[1] if len(sys.argv) > 1 else "reference.safetensors"
save_file(tensors, out, metadata={"format": "pt", "minisd": json.dumps(manifest)})
print(f"{out}: {len(rows)} calls of {len(calls)} modules")
'''


@click.command("dump-script")
@click.argument("prompt", default="a red apple on a blue background")
@click.option("-m", "--model", default="tiny", show_default=True, help="“tiny”, a folder in diffusers' layout, a single file, or a hub id.")
@click.option("-n", "--negative", default="", help="What the picture should move away from.")
@click.option("-s", "--seed", type=int, default=0, show_default=True)
@click.option("--steps", type=int, default=2, show_default=True)
@click.option("--cfg-scale", type=float, default=7.5, show_default=True)
@click.option("-W", "--width", type=int, help="Pixels; default: what the model was trained for.")
@click.option("-H", "--height", type=int, help="Pixels; default: what the model was trained for.")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True, help="float64 for `diff --truth`.")
def command(prompt, model, negative, seed, steps, cfg_scale, width, height, dtype):
    """Print a program that writes the reference's trace: run it where torch and diffusers are, without minisd.

    It runs PROMPT with the same model, seed and scheduler as `minisd trace` does, and records the inputs and the output of every module.
    """
    if not 0 <= seed < 2**64 or steps < 1:
        raise UsageError(f"seed {seed}, {steps} steps", "", "choose a seed from 0 … 2^64−1 and at least one step")
    click.echo(program(prompt, model, negative, seed, steps, cfg_scale, width, height, dtype), nl=False)


def program(prompt, model="tiny", negative="", seed=0, steps=2, cfg_scale=7.5, width=None, height=None, dtype="float32") -> str:
    """The text of the program. The embedded model is given as its folder, hub models by their id."""
    from ..checkpoint import resolve

    size = {name: value for name, value in (("width", width), ("height", height)) if value is not None}
    folder = str(resolve(model)) if model == "tiny" else model
    values = {"MODEL": folder, "PROMPT": prompt, "NEGATIVE": negative, "SEED": seed, "STEPS": steps, "GUIDANCE": cfg_scale, "SIZE": size}
    texts = {**{name: repr(value) for name, value in values.items()}, "DTYPE": dtype}
    return re.sub("@([A-Z]+)@", lambda found: texts[found[1]], PROGRAM)
