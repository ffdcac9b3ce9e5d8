"""What a caller asks for, checked before any weights are read: every value that cannot be meant is refused by name.

diffusers lets a third of these through (0 steps divides by zero, −1 steps "succeeds", a NaN guidance silently means none, a size of 0
silently means the default); here each is an error that says what, why and what to do.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

from .config import UNetConfig, VAEConfig
from .errors import ResourceError, UsageError

log = logging.getLogger("minisd")
MAX_SEED = 2**64 - 1


def check_prompts(prompt, name: str = "prompt") -> list[str]:
    """A prompt or a list of prompts as a list of valid strings."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)) or not prompts:
        raise UsageError(f"{name} is {prompt!r}", "a prompt is a text; a list of prompts holds at least one", "give a text, which may be empty")
    for text in prompts:
        if not isinstance(text, str):
            raise UsageError(f"{name} holds {text!r}", "a prompt is a text", "give a text, which may be empty")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the {name} is not valid Unicode at position {error.start}",
                "it holds half of a surrogate pair, as bytes that are no UTF-8 become on a command line",
                "type the prompt again, or save it as UTF-8",
            ) from None
    return list(prompts)


def check_integer(value, name: str, low: int, high: int | None, unit: str = "") -> int:
    """An integer in low … high; a bool, a float or a NaN is refused."""
    whole = isinstance(value, int) and not isinstance(value, bool) or hasattr(value, "dtype") and value.dtype.kind in "iu" and value.ndim == 0
    if not whole or value < low or (high is not None and value > high):
        limits = f"{low} … {high}" if high is not None else f"{low} or more"
        raise UsageError(f"{name} is {value!r}", f"it must be a whole number, {limits}{unit}", f"choose {name} from {limits}")
    return int(value)


def check_guidance(value) -> float:
    """A finite guidance scale. Above 1 it guides; from 0 to 1 there is nothing to guide with, as in diffusers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) and not hasattr(value, "__float__") or not math.isfinite(value):
        raise UsageError(f"guidance_scale is {value!r}", "it scales the difference between two predictions and must be finite", "use about 5 to 9")
    if 0.0 <= value <= 1.0:
        log.info("guidance_scale %g: the prompt is used without classifier-free guidance", value)
    elif value < 0.0:
        log.warning("guidance_scale %g is negative: the picture is pushed away from the prompt", value)
    return float(value)


def check_seed(value) -> int:
    """A seed as torch takes it: 0 … 2⁶⁴−1."""
    return check_integer(value, "seed", 0, MAX_SEED)


def check_size(value, name: str, multiple: int) -> int:
    """A height or width in pixels that the VAE can make: a positive multiple of its down-scaling."""
    size = check_integer(value, name, 1, 1 << 20, " pixels")
    if size % multiple:
        below, above = size // multiple * multiple, (size // multiple + 1) * multiple
        near = f"{below} or {above}" if below else str(above)
        raise UsageError(f"{name} is {size}", f"latents are {multiple} times smaller than pixels, so it must be a multiple of {multiple}", f"use {near}")
    return size


def first_index(num_inference_steps: int, timesteps: int, strength: float | None = None, start_step: int | None = None) -> int:
    """The index in `scheduler.timesteps` at which image to image begins: start_step itself, or from the strength s, as diffusers,

        N − int(N·s)        the last int(N·s) of N steps are run; int cuts off, so 0.58 of 50, in floats 28.999…, is 28

    timesteps: how many the scheduler has (PNDM: N + 1).
    """
    if strength is not None and start_step is not None:
        raise UsageError("give either strength or start_step", "both say where the run begins", "leave one of them out")
    if start_step is not None:
        return check_integer(start_step, "start_step", 0, timesteps - 1)
    if isinstance(strength, bool) or not hasattr(strength, "__float__") or not 0.0 <= strength <= 1.0:
        raise UsageError(f"strength is {strength!r}", "it is the share of the steps that are run", "choose strength from 0 … 1")
    steps = int(num_inference_steps * strength)
    if steps == 0:
        least = math.ceil(100 / num_inference_steps) / 100
        raise UsageError(
            f"strength {strength:g} of {num_inference_steps} steps is no step at all",
            f"int({num_inference_steps} · {strength:g}) steps are run",
            f"use a strength of at least {least:g}, or more steps",
        )
    return num_inference_steps - steps


@dataclass(frozen=True)
class Request:
    """One run of the pipeline, checked. `prompts` is None where embeddings are given instead."""

    prompts: list | None
    negative_prompts: list | None
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    num_images_per_prompt: int
    count: int  # prompts, or rows of prompt_embeds

    @property
    def guided(self) -> bool:
        return self.guidance_scale > 1.0 or self.guidance_scale < 0.0

    @property
    def batch(self) -> int:
        return self.count * self.num_images_per_prompt

    @classmethod
    def check(
        cls, unet: UNetConfig, vae: VAEConfig, *, prompt=None, negative_prompt=None, prompt_embeds=None, negative_prompt_embeds=None,
        height=None, width=None, num_inference_steps=50, num_train_timesteps=1000, guidance_scale=7.5, num_images_per_prompt=1, inpaint=False,
    ) -> "Request":  # fmt: skip
        """Checks everything that needs only the configs of the model. inpaint: a mask is given. Raises UsageError."""
        masked = unet.in_channels == 2 * vae.latent_channels + 1
        if unet.in_channels != vae.latent_channels and not (masked and inpaint):
            raise UsageError(
                f"this UNet takes {unet.in_channels} channels, the latents have {vae.latent_channels}",
                "9 channels are an inpainting model (latents, mask, masked picture), 8 a pix2pix model",
                "give a picture and a mask: StableDiffusionInpaintPipeline, or -i and --mask" if masked else "use a text-to-image model",
            )
        if (prompt is None) == (prompt_embeds is None):
            raise UsageError("give either a prompt or prompt_embeds", f"{'neither' if prompt is None else 'both'} were given", "leave one of them out")
        prompts = None if prompt is None else check_prompts(prompt)
        count = len(prompts) if prompts is not None else len(prompt_embeds)

        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise UsageError("give either negative_prompt or negative_prompt_embeds", "both were given", "leave one of them out")
        negative = None if negative_prompt_embeds is not None else check_prompts("" if negative_prompt is None else negative_prompt, "negative_prompt")
        if negative is not None and len(negative) not in (1, count):
            raise UsageError(f"{len(negative)} negative prompts for {count} prompts", "", "give one, or one for each prompt")
        negative = negative * count if negative is not None and len(negative) == 1 else negative
        for embeds, name in ((prompt_embeds, "prompt_embeds"), (negative_prompt_embeds, "negative_prompt_embeds")):
            width_text = set(unet.per_block("cross_attention_dim"))
            if embeds is not None and (embeds.ndim != 3 or len(embeds) != count or embeds.shape[2] not in width_text):
                raise UsageError(f"{name} has the shape {list(embeds.shape)}", f"expected [{count}, tokens, {' or '.join(map(str, width_text))}]",
                                 "text_encoder(tokenizer(prompt).input_ids) gives such an array")  # fmt: skip

        default = unet.sample_size if isinstance(unet.sample_size, tuple) else (unet.sample_size, unet.sample_size)
        return cls(
            prompts, negative,
            check_size(default[0] * vae.downscale if height is None else height, "height", vae.downscale),
            check_size(default[1] * vae.downscale if width is None else width, "width", vae.downscale),
            check_integer(num_inference_steps, "num_inference_steps", 1, num_train_timesteps),
            check_guidance(guidance_scale),
            check_integer(num_images_per_prompt, "num_images_per_prompt", 1, None),
            count,
        )  # fmt: skip


def activation_bytes(
    request: Request, vae: VAEConfig, unet: UNetConfig, itemsize: int = 4, freed: int = 0, pictures: int = 0, two_passes: bool = False
) -> int:
    """The most that a run holds besides the weights, in bytes: an estimate from the two widest places.

    VAE: the last up block works at full size on the second-narrowest width; input, norm, result, skip and the workers' buffers live
    at once. UNet: three times that at latent size, on the width of a concatenated skip, and all the skips. freed: bytes of weights that are
    released before the decoder runs. SD 1.5 at 512×512, measured: 0.66 GB in the UNet, 1.30 GB in the decoder.
    pictures: how many the encoder reads at once, at full size on its narrowest width. two_passes: the halves of guidance run one by one.
    """
    latent = request.height * request.width // vae.downscale**2
    wide = vae.block_out_channels[min(1, len(vae.block_out_channels) - 1)]
    decode = request.batch * request.height * request.width * wide * 5 * itemsize
    rows = request.batch * (2 if request.guided and not two_passes else 1)
    denoise = rows * latent * unet.block_out_channels[0] * 60 * itemsize
    encode = pictures * request.height * request.width * vae.block_out_channels[0] * 5 * itemsize
    return max(denoise, decode - freed, encode)


def available_bytes() -> int | None:
    """Memory that this process may still take: the machine's, or its container's if that is less. None where nobody says."""
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
        limit, used = (Path("/sys/fs/cgroup", f).read_text().strip() for f in ("memory.max", "memory.current"))
        if limit != "max":
            limits.append(int(limit) - int(used))
    except (OSError, ValueError):
        pass  # another system, or no container
    return min(limits) if limits else None


def check_memory(needed: int, request: Request, weights: int = 0, device: str = "cpu", available: int | None = None):
    """Refuses a run that cannot fit, before the kernel kills it without a word. needed, weights and available in bytes.

    available: what is free where it runs; by default this process's memory
    """
    available = available_bytes() if available is None else available
    if available is not None and needed + weights > available:
        fits = math.sqrt(max(available - weights, 0) / needed) if needed else 0
        size = f"a size of about {int(request.width * fits) // 64 * 64}×{int(request.height * fits) // 64 * 64} fits"
        where, free = ("memory", "free memory") if device == "cpu" else (f"memory on {device}", "end other programs on the GPU, or use --device cpu")
        raise ResourceError(
            f"{request.width}×{request.height} × {request.batch} needs about {_gb(needed + weights)} of {where}, {_gb(available)} are free",
            f"{_gb(weights)} for the weights, {_gb(needed)} for the activations",
            f"choose a smaller picture or batch ({size}), or {free}" if fits * min(request.width, request.height) >= 64 else free,
        )


def _gb(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n < 1e12 else f"{n / 1e12:.1f} TB"
