"""From a prompt to a picture: text → ids → context → denoise, step by step → latents → pixels.

    pipe = StableDiffusionPipeline.from_pretrained("tiny")
    image = pipe("a red apple on a blue background", num_inference_steps=25, seed=32).images[0]

    for step in pipe.steps("a red apple", num_inference_steps=25, seed=32):     # the same loop, open to be watched and changed
        step.latents = edit(step.latents)
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from . import gpu, rng
from .adapters import LoraLoaderMixin, TextualInversionLoaderMixin
from .backend import to_numpy
from .errors import UsageError
from .image import latents_to_unit, unit_to_pil
from .loading import NETWORKS, LoadingMixin
from .models import AutoencoderKL, CLIPTextModel, Once, UNet2DConditionModel
from .prompts import check_prompt_options, count_vectors, encode
from .request import Request, activation_bytes, check_memory, check_seed
from .tracing import check_finite

OUTPUT_TYPES = ("pil", "np", "latent")


@dataclass
class Step:
    """One turn of the denoising loop. Assign to `latents` and the next step goes on from there.

    index: 0, 1, 2 … in this run (PNDM has one more step than asked for, image to image fewer)        t: the timestep that the UNet was told
    latents: x after this step [B, 4, H, W]        noise_pred: the guided prediction, of the scheduler's prediction_type
    pred_original_sample: the picture that the UNet has in mind at this step, as latents
    """

    index: int
    t: float
    latents: np.ndarray
    noise_pred: np.ndarray
    pred_original_sample: np.ndarray


@dataclass(frozen=True)
class Start:
    """Where the loop begins and what it does besides: text to image, image to image and inpainting differ in nothing else.

    latents: x at timesteps[index] [B, 4, H, W]        index: of the first timestep, in scheduler.timesteps
    channels: what the UNet sees beside the latents, such as a mask [B, C, H, W]        after_step(x, i): replaces the latents after timesteps[i]
    """

    latents: np.ndarray
    index: int = 0
    channels: np.ndarray | None = None
    after_step: Callable | None = None


@dataclass(frozen=True)
class Output:
    """images: PIL images, or an array [B, H, W, 3] in 0 … 1, or the latents [B, 4, H/8, W/8], by output_type."""

    images: object


def classifier_free_guidance(uncond, cond, scale, rescale=0.0):
    """ε = ε_uncond + s · (ε_cond − ε_uncond): away from what the empty prompt predicts, towards the prompt.

    Ho & Salimans, arXiv:2207.12598. rescale φ > 0 brings the deviation back to that of ε_cond: Lin et al., arXiv:2305.08891, eq. 15–16.
    """
    guided = uncond + scale * (cond - uncond)
    if rescale:
        axes = tuple(range(1, guided.ndim))
        deviations = cond.std(axis=axes, keepdims=True, ddof=1) / guided.std(axis=axes, keepdims=True, ddof=1)  # as torch's std
        guided = rescale * (guided * deviations) + (1.0 - rescale) * guided
    return guided


class StableDiffusionPipeline(LoadingMixin, TextualInversionLoaderMixin, LoraLoaderMixin):
    """The five parts of Stable Diffusion and the loop that joins them. Every part can be replaced: `pipe.scheduler = …`."""

    def __init__(self, *, vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer, unet: UNet2DConditionModel, scheduler, name: str = ""):
        self.vae, self.text_encoder, self.tokenizer, self.unet, self.scheduler = vae, text_encoder, tokenizer, unet, scheduler
        self.name = name

    @property
    def trace_patterns(self) -> tuple:
        return tuple(f"{part}*" for part in NETWORKS)

    # ----- the parts of a run ----------------------------------------------------------------------------------------------

    def encode_prompt(self, prompt: list[str], *, clip_skip: int | None = None, prompt_weights: str | None = None, tokens: int | None = None):
        """Texts to the vectors that the UNet attends to.        -> [B, 77, C], or with prompt_weights="a1111" [B, 77·N, C]

        clip_skip: how many of the last layers to leave out        tokens: T other than 77; with prompt_weights, how many there are at least
        """
        prompt = [self.maybe_convert_prompt(text) for text in prompt]
        options = dict(clip_skip=clip_skip, prompt_weights=prompt_weights, tokens=tokens)
        return check_finite(lambda: encode(self.tokenizer, self.text_encoder, prompt, **options), "the text encoder")

    def draw_noise(self, request: Request, generator=None, latents=None) -> np.ndarray:
        """Standard normal noise of the size asked for, or the given noise.        -> [B, 4, H/8, W/8]"""
        f = self.vae.config.downscale
        shape = (request.batch, self.vae.config.latent_channels, request.height // f, request.width // f)
        if latents is None:
            return rng.randn(shape, generator, dtype=self.host_dtype.name)
        if latents.shape != shape:
            raise UsageError(f"latents has the shape {list(latents.shape)}", "", f"give {list(shape)} for this size and batch")
        return to_numpy(latents).astype(self.host_dtype)

    def prepare_latents(self, request: Request, generator=None, latents=None) -> np.ndarray:
        """Noise at the scale at which the scheduler begins.        -> [B, 4, H/8, W/8]"""
        return self.draw_noise(request, generator, latents) * self.scheduler.init_noise_sigma

    def predict_noise(
        self, latents, t, context, guidance_scale: float, guidance_rescale: float = 0.0, two_passes: bool = False, once: Once | None = None
    ):
        """The UNet's guided prediction at one step.

        latents [B, 4, H, W], already scaled for the model; context [2B, T, C], the negative prompts first, or [B, T, C] without guidance.
        two_passes: the two halves one after the other, in half the memory; equal to the doubled batch but for rounding.
        once: of the run that this step belongs to, to save what does not change from step to step
        """
        if len(context) == len(latents):
            return self.unet(latents, t, context, once)
        if two_passes:
            halves = [self.unet(latents, t, half, once) for half in np.split(context, 2)]
        else:
            halves = np.split(self.unet(latents, t, context, once), 2)
        return classifier_free_guidance(*halves, guidance_scale, guidance_rescale)

    def encode_image(self, image, generator=None) -> np.ndarray:
        """Pixels in −1 … 1 to latents at the UNet's scale, drawn from the encoder's distribution; latents stay as they are.

        [B, 3, 8H, 8W] -> [B, 4, H, W]        generator: one for all, or a list of one for each; a list longer than B begins again with
        the first picture, as diffusers does.
        """
        image = image.astype(self.host_dtype)
        if image.shape[1] == self.vae.config.latent_channels:
            return image

        def moments():
            posterior = self.vae.encode(image)
            return np.stack((posterior.mean, posterior.std))

        mean, std = check_finite(moments, "the VAE encoder")
        if isinstance(generator, list) and len(generator) > 1:
            mean, std = tile(mean, len(generator)), tile(std, len(generator))
        return self.vae.config.scaling_factor * (mean + std * rng.randn(mean.shape, generator, dtype=self.host_dtype.name))

    def decode_latents(self, latents) -> np.ndarray:
        """Latents to pixels in 0 … 1.        [B, 4, H, W] -> [B, 8H, 8W, 3]"""
        z = latents / self.vae.config.scaling_factor
        return latents_to_unit(check_finite(lambda: self.vae.decode(z), "the VAE decoder"))

    # ----- the run ---------------------------------------------------------------------------------------------------------

    def steps(self, prompt=None, *, height: int | None = None, width: int | None = None, latents=None, **options) -> Iterator[Step]:
        """The denoising loop as a generator: yields a `Step` after each one; takes what `__call__` takes.

        Everything is checked, and the prompt encoded, before the first step is asked for.
        """

        def start(request, generator):
            return Start(self.prepare_latents(request, generator, latents))

        return self.denoise(prompt, start, height=height, width=width, **options)

    def denoise(
        self, prompt, start, *, height: int | None, width: int | None, num_inference_steps: int = 50, guidance_scale: float = 7.5,
        negative_prompt=None, num_images_per_prompt: int = 1, eta: float = 0.0, generator=None, seed=None, prompt_embeds=None,
        negative_prompt_embeds=None, guidance_rescale: float = 0.0, two_passes: bool = False, callback_on_step_end=None,
        clip_skip: int | None = None, prompt_weights: str | None = None, pictures: int = 0,
    ) -> Iterator[Step]:  # fmt: skip
        """The loop that all pipelines share, as `steps`. start(request, generator) -> Start, called when the timesteps are chosen.

        pictures: how many of them `start` encodes.
        """
        request = self.check(
            prompt=prompt, negative_prompt=negative_prompt, prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
            height=height, width=width, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
        )  # fmt: skip
        check_prompt_options(prompt_weights, clip_skip, self.text_encoder.config.num_hidden_layers)
        needed = activation_bytes(request, self.vae.config, self.unet.config, self.dtype.itemsize, pictures=pictures, two_passes=two_passes)
        check_memory(needed, request, device=self.device, available=gpu.free_bytes(self.device))
        generator = make_generators(generator, seed, request.batch)
        scheduler = self.scheduler
        scheduler.set_timesteps(request.num_inference_steps)
        start = start(request, generator)
        context = self._context(request, prompt_embeds, negative_prompt_embeds, clip_skip, prompt_weights)
        accepted = inspect.signature(scheduler.step).parameters  # only DDIM takes eta and a generator
        options = {name: value for name, value in (("eta", eta), ("generator", generator)) if name in accepted}
        timesteps = scheduler.timesteps[start.index :]
        once = Once(timesteps)

        def loop(x, context):
            for i, t in enumerate(timesteps):
                x_in = scheduler.scale_model_input(x, t)
                x_in = x_in if start.channels is None else np.concatenate((x_in, start.channels), axis=1)
                noise_pred = check_finite(
                    lambda: self.predict_noise(x_in, t, context, request.guidance_scale, guidance_rescale, two_passes, once),
                    f"the UNet, step {i + 1} of {len(timesteps)}", step=i,
                )  # fmt: skip
                result = scheduler.step(noise_pred, t, x, **options)
                x0 = getattr(result, "pred_original_sample", None)
                x0 = scheduler.predict(noise_pred, t, x)[0] if x0 is None else x0  # PNDM's step does not say
                x = result.prev_sample if start.after_step is None else start.after_step(result.prev_sample, start.index + i)
                step = Step(i, t.item(), x, noise_pred, x0)
                if callback_on_step_end is not None:
                    changed = callback_on_step_end(self, i, t, {"latents": step.latents, "prompt_embeds": context}) or {}
                    step.latents, context = changed.get("latents", step.latents), changed.get("prompt_embeds", context)
                yield step
                x = step.latents

        return loop(start.latents, context)

    def __call__(self, prompt=None, *source, output_type: str = "pil", **options) -> Output:
        """Makes pictures.

        prompt: a text or a list of texts        negative_prompt: what to move away from (default "")
        height, width: pixels (default: what the model was trained for)        num_inference_steps: 1 … 1000
        guidance_scale: above 1 the picture follows the prompt more closely than the data did        guidance_rescale: 0 … 1
        seed: 0 … 2⁶⁴−1, one for each picture as a list, or None for fresh noise; torch's `manual_seed(seed)` on the CPU gives the same picture
        generator: a `minisd.Generator`, or one for each picture, instead of a seed        num_images_per_prompt
        clip_skip: leaves the last n layers of the text encoder out, for the prompt        prompt_weights: "a1111" reads (word:1.2), see docs/prompts.md
        latents [B, 4, H/8, W/8]: noise of your own        prompt_embeds, negative_prompt_embeds [B, T, C]: instead of texts
        eta: DDIM's share of fresh noise        two_passes: guidance in two UNet calls, in less memory
        output_type: "pil", "np" ([B, H, W, 3] in 0 … 1) or "latent"
        callback_on_step_end(pipe, index, t, {"latents", "prompt_embeds"}): may return a dict with either of them changed
        source: what the pipelines that begin with a picture take next, `image` and so on: see their `steps`
        """
        if output_type not in OUTPUT_TYPES:
            raise UsageError(f"output_type is {output_type!r}", "", f"use one of {', '.join(OUTPUT_TYPES)}")
        x = None
        for step in self.steps(prompt, *source, **options):
            x = step.latents
        return Output(x if output_type == "latent" else self.to_images(x, output_type))

    def to_images(self, latents, output_type: str = "pil"):
        """Latents to pictures of the given type."""
        pixels = self.decode_latents(latents)
        return pixels if output_type == "np" else unit_to_pil(pixels)

    def check(self, **request) -> Request:
        """Checks the arguments of a run against this model's configs. Raises UsageError."""
        return Request.check(self.unet.config, self.vae.config, num_train_timesteps=self.scheduler.config.num_train_timesteps, **request)

    def _context(self, request: Request, prompt_embeds, negative_prompt_embeds, clip_skip=None, prompt_weights=None) -> np.ndarray:
        """[negative, positive] prompt vectors, each repeated for its pictures; only the positive ones without guidance."""
        texts = [*(request.prompts or []), *(request.negative_prompts or [] if request.guided else [])]
        tokens = count_vectors(self.tokenizer, self.text_encoder, map(self.maybe_convert_prompt, texts), prompt_weights)
        if prompt_embeds is None:
            cond = self.encode_prompt(request.prompts, clip_skip=clip_skip, prompt_weights=prompt_weights, tokens=tokens)
        else:
            cond = to_numpy(prompt_embeds).astype(self.host_dtype)
            tokens = cond.shape[1]
        cond = cond.repeat(request.num_images_per_prompt, axis=0)
        if not request.guided:
            return cond
        if negative_prompt_embeds is None:  # as in diffusers, no layer is skipped for it
            uncond = self.encode_prompt(request.negative_prompts, prompt_weights=prompt_weights, tokens=tokens)
        else:
            uncond = to_numpy(negative_prompt_embeds).astype(self.host_dtype)
        uncond = uncond.repeat(request.num_images_per_prompt, axis=0)
        if uncond.shape != cond.shape:
            raise UsageError(f"negative prompt vectors {list(uncond.shape)} beside {list(cond.shape)}", "", "make both for the same number of tokens")
        return np.concatenate((uncond, cond))

    def __repr__(self) -> str:
        parts = (repr(self.name), f"{self.unet.num_parameters():,} UNet parameters", type(self.scheduler).__name__, str(self.dtype))
        return f"{type(self).__name__}({', '.join(parts)}{'' if self.device == 'cpu' else f', {self.device}'})"


def tile(x, batch: int, name: str = "image"):
    """x [B, …] repeated as a whole to [batch, …], as diffusers does: pictures a, b for four prompts are a, b, a, b."""
    if len(x) == 0 or batch % len(x):
        raise UsageError(f"{len(x)} pictures in {name} for a batch of {batch}", "", "give one, or a number that divides the batch")
    return x if len(x) == batch else np.concatenate([x] * (batch // len(x)))


def make_generators(generator, seed, batch: int):
    """The generator of a run from a seed or a list of seeds. One seed for a batch draws it from one stream, as in diffusers."""
    if generator is not None and seed is not None:
        raise UsageError("give either a seed or a generator", "both were given", "leave one of them out")
    if isinstance(seed, (list, tuple)):
        if len(seed) != batch:
            raise UsageError(f"{len(seed)} seeds for {batch} pictures", "", "give one seed for the batch, or one for each picture")
        return [rng.Generator(check_seed(s)) for s in seed]
    if seed is not None:
        return rng.Generator(check_seed(seed))
    return generator if generator is not None else rng.Generator(rng.fresh_seed())
