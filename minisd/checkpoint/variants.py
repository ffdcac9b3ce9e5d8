"""Which files hold the weights of a component: single or in shards, plain or of a variant, in a folder or on the hub.

    diffusion_pytorch_model.safetensors          diffusion_pytorch_model.fp16.safetensors
    diffusion_pytorch_model.safetensors.index.json + diffusion_pytorch_model-00001-of-00002.safetensors, …

The plain file is float32, the variant fp16 has half the bytes. Only names are looked at here, so that the hub can be asked
for exactly the files that are needed.
"""

import re
from collections.abc import Iterable

from ..errors import ModelFileError
from .report import some
from .safetensors_file import FETCH_AGAIN, PICKLE_FIX

STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
FALLBACK = "fp16"  # SD 1.5-inpainting has no other safetensors for its UNet and VAE


def available(names: Iterable[str], component: str) -> dict[str | None, str]:
    """{variant: file}, the plain weights under None. For shards it is their index; a single file wins over one."""
    single = rf"{STEMS[component]}(?:\.(\w+))?\.safetensors"
    # Where the variant stands in an index's name has changed between releases of diffusers.
    patterns = (rf"{single}\.index\.json", rf"{STEMS[component]}\.safetensors\.index(?:\.(\w+))?\.json", single)
    names = sorted(names)
    return {
        match[1]: name for pattern in patterns for name in names if (match := re.fullmatch(pattern, name, re.ASCII))
    }


def choose_weights(
    names: Iterable[str], component: str, variant: str | None, *, where: str, mixture: bool = False
) -> tuple[str, str]:
    """The file to read, or the index of its shards, and a note for the user where it is not quite what was asked for.

    mixture: other components have the variant, so that this one may do without it.
    Raises ModelFileError with what there is.
    """
    names = list(names)
    there = available(names, component)
    if variant in there:
        return there[variant], ""
    if variant is None and FALLBACK in there:
        return there[FALLBACK], f"{component}: there is no full-precision file; reading the variant {FALLBACK}"
    if variant is not None and mixture and None in there:
        file = there[None]
        return (
            file,
            f"{component}: there is no variant {variant}; reading {file} beside {variant} files of other components",
        )
    if there:
        asked = f"no variant {variant!r}" if variant else "only variants of the weights"
        choices = " or ".join("no variant" if v is None else f"variant={v!r}" for v in there)
        raise ModelFileError(f"{where} has {asked}", f"it has {some(sorted(there.values()))}", f"ask for {choices}")
    wanted = f"{STEMS[component]}.safetensors"
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        what = f"{where} holds its weights only as a pickle: {some(pickles)}"
        recipe = PICKLE_FIX.replace("FILE.bin", pickles[0]).replace("FILE.safetensors", wanted)
        raise ModelFileError(what, "a pickle can run code when it is opened", recipe)
    why = f"expected {wanted}; it holds {some(names) or 'nothing'}"
    raise ModelFileError(f"{where} holds no weights", why, FETCH_AGAIN)


def shards(names: Iterable[str], index: str) -> list[str]:
    """The shards of an index: stem-00001-of-00002.safetensors, the variant before or behind the numbers."""
    stem, _, rest = index.partition(".")
    variants = [part for part in rest.split(".") if part not in ("safetensors", "index", "json")]
    v = rf"\.{variants[0]}" if variants else ""
    pattern = rf"{stem}(?:{v}-\d+-of-\d+|-\d+-of-\d+{v})\.safetensors"
    return sorted(name for name in names if re.fullmatch(pattern, name, re.ASCII))
