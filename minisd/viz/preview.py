"""What latents look like, without the VAE: one linear map from a latent pixel to a colour.

    preview = fit_preview(pipe.vae)          # three small pictures through the decoder, once
    preview(latents)                         # PIL images at the size of the latents, for nothing

Tools for SD 1.x carry such a map as a table of 4 × 3 numbers. It belongs to one VAE; here it is fitted to whichever VAE is there, by least
squares on what its decoder makes of random latents: mosaics with squares of 1, 2 and 4 latent pixels, because a decoder answers to
the neighbourhood too. On pictures of the embedded model it is 18.8 dB from the decoded ones, where the best linear map for just
those pictures is 19.5 dB away; edges are lost, colours and places are right.
"""

from dataclasses import dataclass

import numpy as np

from ..backend import host_dtype, to_numpy
from ..image import latents_to_unit, unit_to_pil
from ..rng import Generator

SIZE, CELLS = 16, (1, 2, 4)  # of the mosaics, in latent pixels


@dataclass(frozen=True)
class Preview:
    """rgb = z·matrix + offset, in −1 … 1.        matrix [C, 3], offset [3], for latents at the scale of the UNet"""

    matrix: np.ndarray
    offset: np.ndarray

    def pixels(self, latents) -> np.ndarray:
        """[B, C, H, W] -> [B, 3, H, W], −1 … 1 but for overshoots."""
        z = to_numpy(latents).astype(self.matrix.dtype)
        return np.einsum("bchw,cd->bdhw", z, self.matrix) + self.offset[:, None, None]

    def __call__(self, latents, scale: int = 1) -> list:
        """[B, C, H, W] -> PIL images, each latent pixel a square of `scale` pixels."""
        return unit_to_pil(latents_to_unit(self.pixels(latents)).repeat(scale, axis=1).repeat(scale, axis=2))


def fit_preview(vae, seed: int = 0) -> Preview:
    """The linear map nearest to the decoder: min Σ ‖z·M + b − decode(z)‖² over mosaics of random latents, the decoded picture averaged to latent size."""
    C, f = vae.config.latent_channels, vae.config.downscale
    generator = Generator(seed)
    mosaics = [generator.randn((1, C, SIZE // n, SIZE // n)).repeat(n, axis=2).repeat(n, axis=3) for n in CELLS]
    z = np.concatenate(mosaics).astype(host_dtype(vae.dtype))
    pixels = to_numpy(vae.decode(z / vae.config.scaling_factor)).clip(-1, 1)
    colours = pixels.reshape(len(z), 3, SIZE, f, SIZE, f).mean(axis=(3, 5))
    rows = _per_pixel(z)
    rows = np.concatenate((rows, np.ones_like(rows[:, :1])), axis=1)
    solution = np.linalg.lstsq(rows, _per_pixel(colours))[0]
    return Preview(solution[:-1], solution[-1])


def _per_pixel(x: np.ndarray) -> np.ndarray:
    """[B, C, H, W] -> [B·H·W, C]"""
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])
