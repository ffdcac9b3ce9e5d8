"""The three networks of Stable Diffusion, each driven by its config.json: wiring only, the arithmetic is in `layers` and `ops`."""

from .clip_text import CLIPTextModel
from .once import Once
from .unet import UNet2DConditionModel
from .vae import AutoencoderKL

__all__ = ["AutoencoderKL", "CLIPTextModel", "Once", "UNet2DConditionModel"]
