"""`minisd inspect`: what a file or folder is, without running it: header, shapes, dtypes, NaN, family; of a PNG the command that made it."""

import json
import shlex
from pathlib import Path

import click

from ..errors import UsageError


@click.command("inspect")
@click.argument("target", metavar="FILE|FOLDER|PNG")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(target, as_json):
    """Say what TARGET is: a safetensors file (weights, a whole model, a trace), a .ckpt, a model's folder, “tiny”, a hub id, or a PNG of minisd."""
    path = Path(target).expanduser()
    if path.is_file():
        found = picture(path) if path.suffix.lower() == ".png" else tensors(path)
    else:
        found = folder(target)
    click.echo(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(describe(found)))


def picture(path: Path) -> dict:
    """The recipe in a PNG, and the command that makes the picture again."""
    from PIL import Image, UnidentifiedImageError

    from ..errors import ModelFileError
    from ..image import read_recipe

    try:
        with Image.open(path) as image:
            size = list(image.size)
        recipe = read_recipe(path)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ModelFileError(f"{path} is no readable PNG", str(error), "check the file") from None
    if recipe is None:
        why = f"it is a picture of {size[0]}×{size[1]}"
        raise UsageError(f"{path} holds no recipe of minisd", why, "only PNGs made without --no-metadata have one")
    return {"kind": "picture", "path": str(path), "size": size, "command": make_again(recipe), "recipe": recipe}


def make_again(recipe: dict) -> str:
    """The command line that makes the picture of a recipe."""
    words = ["minisd", "generate"]
    flags = {"--model": "model", "--negative": "negative_prompt", "--image": "image", "--mask": "mask", "--strength": "strength",
             "--start-step": "start_step", "--seed": "seed", "--steps": "steps", "--cfg-scale": "cfg_scale", "--eta": "eta", "--width": "width",
             "--height": "height", "--device": "device", "--dtype": "dtype",
             "--prompt-weights": "prompt_weights", "--clip-skip": "clip_skip"}  # fmt: skip
    for flag, name in flags.items():
        if recipe.get(name) not in (None, ""):
            words += [flag, str(recipe.get(name))]
    words += ["--two-passes"] if recipe.get("two_passes") else []
    words += ["--no-compat"] if recipe.get("compat") is False else []
    for lora in recipe.get("loras", []):
        words += ["--lora", f"{lora.get('file')}:{lora.get('scale')}"]
    for word in recipe.get("embeddings", []):
        words += ["--embedding", str(word.get("file"))]
    scheduler = str(recipe.get("scheduler", "")).removesuffix("Scheduler").removesuffix("Discrete").lower()
    words += ["--scheduler", scheduler] if scheduler else []
    words += ["--exact"] if recipe.get("profile") == "exact" else []
    return shlex.join([*words, "--", str(recipe.get("prompt", ""))])


def tensors(path: Path) -> dict:
    """Names, shapes and dtypes of a safetensors file; which values are NaN or infinite; what it probably is."""
    from ..checkpoint.names import from_ldm, is_ldm
    from ..checkpoint.single_file import read_tensors
    from ..tracefile import read_manifest, statistics

    header, _ = read_tensors(path)
    manifest = read_manifest(path) if path.suffix == ".safetensors" else None
    official = from_ldm(header) if not manifest and any(map(is_ldm, header)) else {}
    rows, bad = [], {}
    for name, tensor in header.items():
        rows.append({"name": name, "dtype": tensor.dtype, "shape": list(tensor.shape), **({"official": list(official[name])} if official else {})})
        x = tensor.read()
        s = statistics(x) if x.dtype.kind == "f" else {"nan": 0, "inf": 0}
        if s["nan"] or s["inf"]:
            bad[name] = s["nan"] + s["inf"]
    kind = "trace" if manifest else "weights"
    about = whole(path) if official else family(header)
    found = {"kind": kind, "path": str(path), "bytes": path.stat().st_size, "family": about, "nonfinite": bad}
    if manifest:
        found |= {"recipe": manifest.get("recipe"), "versions": manifest.get("versions"), "family": f"{len(manifest['rows'])} calls of layers"}
    return {**found, "tensors": rows}


def whole(path: Path) -> str:
    """Which family a checkpoint with LDM's names belongs to, or why it belongs to none."""
    from ..checkpoint import open_single_file
    from ..errors import ModelFileError

    try:
        single = open_single_file(path)
        single.require("unet", "vae", "text_encoder")
    except ModelFileError as error:
        return f"{error.what}; {error.why}"
    return f"a whole model, {single.family.name}, {single.scheduler['prediction_type']}; official names behind the arrows"


def family(header: dict) -> str:
    """A guess from names and shapes."""
    if "conv_in.weight" in header and any(name.startswith("down_blocks.") for name in header):
        widths = sorted({t.shape[1] for name, t in header.items() if name.endswith("attn2.to_k.weight")})
        text = {768: "SD 1.x", 1024: "SD 2.x"}.get(widths[0] if len(widths) == 1 else 0, f"text width {' or '.join(map(str, widths)) or 'unknown'}")
        channels = header["conv_in.weight"].shape[1]
        inputs = {4: "text to image", 9: "inpainting", 8: "pix2pix"}.get(channels, f"{channels} channels in")
        return f"UNet of diffusers, {text}, {inputs}"
    if "decoder.conv_in.weight" in header:
        return "VAE of diffusers"
    if any(name.endswith("embeddings.token_embedding.weight") for name in header):
        return "CLIP text encoder of transformers"
    if any("lora" in name for name in header):
        return "a LoRA"
    return "unknown"


def folder(target: str) -> dict:
    """The parts of a model's folder, with counts and dtypes; only headers are read."""
    from ..checkpoint import component_shapes, read_component_config, read_model_index, resolve
    from ..checkpoint.folder import listing
    from ..checkpoint.safetensors_file import read_header

    root = resolve(target)
    index, parts = read_model_index(root), []
    for component in ("text_encoder", "unet", "vae"):
        shapes = component_shapes(read_component_config(root, component))
        for name in [name for name in listing(root / component) if name.endswith(".safetensors")]:
            header = read_header(root / component / name)
            parts.append({
                "component": component, "file": name, "tensors": len(header), "expected": len(shapes),
                "dtypes": sorted({t.dtype for t in header.values()}), "bytes": (root / component / name).stat().st_size, "family": family(header),
            })  # fmt: skip
    return {"kind": "model", "path": str(root), "classes": {k: v for k, v in index.items() if not k.startswith("_")}, "parts": parts}


def describe(found: dict) -> list:
    """For people."""
    if found["kind"] == "picture":
        lines = [f"{found['path']}: a picture of {found['size'][0]}×{found['size'][1]}", found["command"]]
        return lines + [f"  {name}: {value}" for name, value in found["recipe"].items()]
    if found["kind"] == "model":
        lines = [f"{found['path']}: a pipeline", *(f"  {part}: {name}" for part, name in found["classes"].items())]
        for p in found["parts"]:
            count = f"{p['tensors']} tensors ({p['expected']} expected), {', '.join(p['dtypes'])}, {p['bytes']:,} bytes"
            lines.append(f"  {p['component']}/{p['file']}: {count}: {p['family']}")
        return lines
    lines = [f"{found['path']}: {found['kind']}, {found['bytes']:,} bytes, {len(found['tensors'])} tensors: {found['family']}"]
    for t in found["tensors"]:
        arrow = f"  → {', '.join(t['official']) or 'not used'}" if "official" in t else ""
        lines.append(f"  {t['name']}  {t['dtype']}  {'×'.join(map(str, t['shape'])) or 'scalar'}{arrow}")
    lines += [f"  NaN or Inf in {name}: {count:,}" for name, count in found["nonfinite"].items()] or ["  all values are finite"]
    return lines
