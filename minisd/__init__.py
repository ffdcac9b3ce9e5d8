"""Stable Diffusion from scratch in pure NumPy, tested layer by layer against diffusers.

    from minisd import StableDiffusionPipeline
    image = StableDiffusionPipeline.from_pretrained("tiny")("a red apple", num_inference_steps=25, seed=32).images[0]

Public names are loaded when they are first used, so that `import minisd` and `minisd --help` cost nothing.
"""

import importlib
import logging

__version__ = "0.1.0"

_HOMES = {
    "AutoencoderKL": "models",
    "CLIPTextModel": "models",
    "CLIPTokenizer": "tokenizer",
    "DDIMScheduler": "schedulers",
    "Generator": "rng",
    "LMSDiscreteScheduler": "schedulers",
    "MinisdError": "errors",
    "PNDMScheduler": "schedulers",
    "StableDiffusionImg2ImgPipeline": "img2img",
    "StableDiffusionInpaintPipeline": "inpaint",
    "StableDiffusionPipeline": "pipeline",
    "UNet2DConditionModel": "models",
    "diff": "compare",
    "experiments": None,
    "ops": None,
    "schedulers": None,
    "trace": "tracing",
    "viz": None,
}
__all__ = sorted(_HOMES)

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'minisd' has no attribute {name!r}")
    home = _HOMES[name]
    if home is None:
        return importlib.import_module(f".{name}", __name__)
    return getattr(importlib.import_module(f".{home}", __name__), name)


def __dir__():
    return sorted({*globals(), *__all__})
