"""Inpainting: where the mask is white the picture is painted anew, where it is black it stays.

    pipe = StableDiffusionInpaintPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-inpainting")
    image = pipe("a red hat", image="photo.png", mask_image="hat.png", seed=32).images[0]

Two ways, told apart by the UNet. Trained for it, it has nine input channels and sees [latents, mask, latents of the picture with a hole] in
every step. Any other model is guided from outside: after every step the latents under the black of the mask are replaced by the picture's,
under the noise of the next timestep. diffusers `StableDiffusionInpaintPipeline`; RePaint, arXiv:2201.09865, without its jumps.
"""

from collections.abc import Iterator

import numpy as np

from . import rng
from .errors import UsageError
from .image_input import check_masks, preprocess_image, preprocess_mask, read_masks, read_pictures, shrink_mask
from .pipeline import StableDiffusionPipeline, Start, Step, tile
from .request import Request, first_index


class StableDiffusionInpaintPipeline(StableDiffusionPipeline):
    """Parts of pictures painted anew: the parts and the loop of `StableDiffusionPipeline`, with a mask.

    image: a path, a PIL image, an array or a list of these: see `image_input.read_pictures`        mask_image: likewise, white is repainted
    masked_image_latents [B, 4, H/8, W/8]: of the picture with a hole, instead of encoding it        latents: noise of your own
    strength: 0 … 1, the share of the steps that are run (default 1: begin with pure noise)        start_step: instead of it, the index of the
    first timestep        height, width: to resize to (default: the model's own size, as in diffusers)
    """

    default_strength = 1.0

    def steps(
        self, prompt=None, image=None, mask_image=None, masked_image_latents=None, height: int | None = None, width: int | None = None, *,
        strength: float | None = None, start_step: int | None = None, latents=None, **options,
    ) -> Iterator[Step]:  # fmt: skip
        """The denoising loop as a generator. One generator draws the picture's latents if they are needed, the noise, the masked picture's."""
        vae = self.vae.config
        if image is None or mask_image is None:
            raise UsageError("inpainting needs image and mask_image", "white parts of the mask are painted anew", "for a picture alone use image to image")
        pictures, masks = read_pictures(image, vae.latent_channels), read_masks(mask_image)
        strength = self.default_strength if strength is None and start_step is None else strength

        def start(request, generator):
            index = first_index(request.num_inference_steps, len(self.scheduler.timesteps), strength, start_step)
            self.scheduler.set_begin_index(index)
            picture, mask = (prepare(x, request.height, request.width) for prepare, x in ((preprocess_image, pictures), (preprocess_mask, masks)))
            check_masks(masks, pictures, mask, vae.downscale)
            return self.begin(request, generator, index, picture, mask, masked_image_latents, latents)

        return self.denoise(prompt, start, height=height, width=width, pictures=len(pictures), **options)

    def begin(self, request: Request, generator, index: int, picture, mask, masked_image_latents=None, latents=None) -> Start:
        """The start of a run at timesteps[index]: picture [B, 3, H, W] in −1 … 1 or latents, mask [B, 1, H, W] of 0 and 1."""
        scheduler, f = self.scheduler, self.vae.config.downscale
        trained = self.unet.config.in_channels != self.vae.config.latent_channels
        if not trained or latents is None and index > 0:
            known = tile(self.encode_image(picture, share(generator, picture)), request.batch)
        noise = self.draw_noise(request, generator, latents)
        if latents is not None or index == 0:  # all of the schedule is run: nothing but noise
            x = noise * scheduler.init_noise_sigma
        else:
            x = scheduler.add_noise(known, noise, scheduler.timesteps[index])

        m = shrink_mask(mask, request.height // f, request.width // f).astype(self.host_dtype)
        m = tile(m, request.batch, "mask_image")
        if trained:
            if masked_image_latents is None:
                masked_image_latents = self.encode_hole(picture, mask, generator)
            return Start(x, index, channels=np.concatenate((m, tile(masked_image_latents, request.batch)), axis=1))

        def keep(x, i):
            """(1 − m)·known + m·x, the known latents under the noise of the timestep that comes next."""
            rest = scheduler.timesteps[i + 1 :]
            return (1 - m) * (scheduler.add_noise(known, noise, rest[0]) if len(rest) else known) + m * x

        if masked_image_latents is None:  # diffusers encodes the hole and ignores it: what it draws is missing for eta > 0
            rng.randn((max(len(picture), len(mask)), *known.shape[1:]), share(generator, picture, mask), dtype=self.host_dtype.name)
        return Start(x, index, after_step=keep)

    def encode_hole(self, picture, mask, generator) -> np.ndarray:
        """Latents of the picture with grey (0) where it is to be repainted."""
        if picture.shape[2:] != mask.shape[2:]:
            raise UsageError("image is an array of latents", "an inpainting model sees the pixels around the hole", "give a picture, or masked_image_latents too")
        hole = picture * (mask < 0.5)
        return self.encode_image(hole, share(generator, hole))

    def check(self, **request) -> Request:
        """Checks the arguments of a run; a UNet of nine channels is welcome here."""
        return super().check(inpaint=True, **request)


def share(generator, *arrays):
    """Of one generator for each picture of a batch, those that draw for as many pictures as were given; a single one draws for all."""
    return generator[: max(map(len, arrays))] if isinstance(generator, list) else generator
