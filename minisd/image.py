"""Pictures at the border: arrays to PIL and PNG files, and the recipe that travels inside a PNG."""

import json
import os
from pathlib import Path

import numpy as np

from .backend import array_module, to_numpy
from .errors import ResourceError, UsageError
from .video import check_video, write_mp4

FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}
ANIMATIONS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG", ".mp4": "MP4"}  # MP4 needs the extra "video"


def latents_to_unit(pixels):
    """What the VAE decodes, −1 … 1, as pixels in 0 … 1.        [B, 3, H, W] -> [B, H, W, 3]"""
    return (pixels / 2 + 0.5).clip(0, 1).transpose(0, 2, 3, 1)


def unit_to_uint8(pixels) -> np.ndarray:
    """0 … 1 to 0 … 255, rounded half to even as diffusers does; several ports cut off instead and are one too dark half the time."""
    return array_module(pixels).rint(pixels * 255).astype("uint8")


def unit_to_pil(pixels) -> list:
    """[B, H, W, C] in 0 … 1, C = 3 or 1 -> PIL images."""
    from PIL import Image

    return [Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in to_numpy(unit_to_uint8(pixels))]


# ----- files ---------------------------------------------------------------------------------------------------------------


def check_output(path, force: bool = False, formats: dict = FORMATS) -> Path:
    """A path that can be written: known suffix, existing folder, permission; a free numbered name if the file exists already."""
    path = Path(path)
    if path.suffix.lower() not in formats:
        raise UsageError(f"{path}: cannot write {path.suffix or 'a file without suffix'}", "", f"use one of {', '.join(formats)}")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist", "", f"mkdir -p {path.parent}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: cannot be written", "it is a folder, or its folder is read-only", "choose another path with -o")
    if path.suffix.lower() == ".mp4":
        check_video()
    return path if force else free_name(path)


def free_name(path: Path) -> Path:
    """The first of fox.png, fox-1.png, fox-2.png … that does not exist."""
    free, n = path, 0
    while free.exists():
        n += 1
        free = path.with_name(f"{path.stem}-{n}{path.suffix}")
    return free


def save_image(image, path, recipe: dict | None = None):
    """Writes a picture, whole or not at all: to a temporary file beside it first, then renamed. PNGs carry the recipe."""
    path = Path(path)
    options = {"format": FORMATS[path.suffix.lower()]}
    if options["format"] == "PNG" and recipe is not None:
        options["pnginfo"] = png_recipe(recipe)
    _write_whole(path, lambda file: image.save(file, **options))


def save_animation(images: list, path, milliseconds: int = 120):
    """Writes pictures as an animated GIF, WebP, PNG or MP4, the last one held for a second; or as numbered PNGs if `path` is a folder."""
    path = Path(path)
    if path.suffix.lower() not in ANIMATIONS:
        path.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(images):
            save_image(image, path / f"{i:04d}.png")
        return
    if path.suffix.lower() == ".mp4":
        fps = 1000 / milliseconds
        _replace_whole(path, lambda temporary: write_mp4(images, temporary, fps, hold=round(fps)))
        return
    durations = [milliseconds] * (len(images) - 1) + [1000]
    options = dict(format=ANIMATIONS[path.suffix.lower()], save_all=True, append_images=images[1:], duration=durations, loop=0)
    _write_whole(path, lambda file: images[0].save(file, **options))


def _write_whole(path: Path, write):
    """`write(file)` into a file that gets its name only when it is complete and on the disk."""

    def to_disk(temporary):
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())

    _replace_whole(path, to_disk)


def _replace_whole(path: Path, write):
    """`write(temporary path)`, then renamed to `path`; nothing is left behind if it fails."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise ResourceError(f"{path}: could not be written", error.strerror or str(error), "free some disk space, or choose another path with -o") from None
    finally:
        temporary.unlink(missing_ok=True)


# ----- the recipe ----------------------------------------------------------------------------------------------------------


def png_recipe(recipe: dict):
    """Two PNG text chunks: `parameters` as A1111 and others write it, and `minisd`, everything as JSON."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("parameters", a1111_parameters(recipe))
    info.add_itxt("minisd", json.dumps(recipe, ensure_ascii=False))
    return info


def a1111_parameters(recipe: dict) -> str:
    """The recipe in the form that most tools read."""
    negative = f"\nNegative prompt: {recipe['negative_prompt']}" if recipe["negative_prompt"] else ""
    strength = recipe.get("strength", (recipe["steps"] - recipe.get("start_step", 0)) / recipe["steps"])
    denoising = f"Denoising strength: {strength:g}, " if "image" in recipe else ""
    return (
        f"{recipe['prompt']}{negative}\nSteps: {recipe['steps']}, Sampler: {recipe['scheduler']}, CFG scale: {recipe['cfg_scale']:g}, "
        f"Seed: {recipe['seed']}, Size: {recipe['width']}x{recipe['height']}, Model: {recipe['model']}, {denoising}RNG: {recipe['rng']}, "
        f"Version: minisd {recipe['minisd']}"
    )


def read_recipe(path) -> dict | None:
    """The recipe that minisd wrote into a PNG, or None."""
    from PIL import Image

    with Image.open(path, formats=["PNG"]) as image:
        image.load()  # text chunks may stand behind the pixels
        text = image.text.get("minisd")
    return json.loads(text) if text else None
