"""Image to image: the loop begins in the middle, with a picture under as much noise as is left there.

    pipe = StableDiffusionImg2ImgPipeline.from_pretrained("tiny")                 # or from_pipe(another pipeline): no weights are loaded again
    image = pipe("a red apple", image="photo.png", strength=0.6, seed=32).images[0]

SDEdit, Meng et al., arXiv:2108.01073. diffusers `StableDiffusionImg2ImgPipeline`. docs/editing.md has the arithmetic.
"""

from collections.abc import Iterator

from .image_input import picture_size, preprocess_image, read_pictures
from .pipeline import StableDiffusionPipeline, Start, Step, tile
from .request import first_index


class StableDiffusionImg2ImgPipeline(StableDiffusionPipeline):
    """Pictures from a picture and a prompt: the parts and the loop of `StableDiffusionPipeline`, begun in the middle.

    image: a path, a PIL image, an array or a list of these, or latents: see `image_input.read_pictures`
    strength: 0 … 1, the share of the steps that are run (default 0.8): 1 leaves next to nothing of the picture
    start_step: instead of it, the index of the first timestep, as in fast.ai's Deep Dive
    height, width: to resize to (default: the picture's own, cut down to multiples of 8)
    """

    default_strength = 0.8

    def steps(
        self, prompt=None, image=None, strength: float | None = None, *, start_step: int | None = None, height: int | None = None,
        width: int | None = None, **options,
    ) -> Iterator[Step]:  # fmt: skip
        """The denoising loop as a generator. One generator draws the latents of the picture first, then the noise over them."""
        vae = self.vae.config
        pictures = read_pictures(image, vae.latent_channels)
        height, width = picture_size(pictures, height, width, vae.downscale)
        strength = self.default_strength if strength is None and start_step is None else strength

        def start(request, generator):
            timesteps = self.scheduler.timesteps
            index = first_index(request.num_inference_steps, len(timesteps), strength, start_step)
            self.scheduler.set_begin_index(index)
            latents = tile(self.encode_image(preprocess_image(pictures, height, width), generator), request.batch)
            return Start(self.scheduler.add_noise(latents, self.draw_noise(request, generator), timesteps[index]), index)

        return self.denoise(prompt, start, height=height, width=width, pictures=len(pictures), **options)
