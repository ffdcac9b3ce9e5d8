"""The image-to-image and inpainting runs that are compared with diffusers: shared by the golden file, the plain tests and the live ones."""

from pathlib import Path

import numpy as np

from .tiny_folder import EMBEDDED, write_tiny_sd2

PROMPT = "a cat on a blue background"
SCHEDULERS = ("DDIMScheduler", "LMSDiscreteScheduler", "PNDMScheduler")
PIPELINES = {"img2img": "StableDiffusionImg2ImgPipeline", "inpaint": "StableDiffusionInpaintPipeline"}


def picture(height: int = 66, width: int = 79, seed: int = 0):
    """A PIL image of soft waves with hard edges, of a size that no VAE likes."""
    from PIL import Image

    y, x = np.mgrid[:height, :width] / 12.0
    phase = np.arange(3) * 2.1 + seed
    waves = 0.5 + 0.4 * np.sin(y[..., None] + np.cos(x[..., None] + phase) * 2 + phase)
    waves[(y - 3) ** 2 + (x - 3) ** 2 < 2 + seed] = (0.9, 0.3, 0.1)
    return Image.fromarray(np.rint(255 * waves).astype("uint8"))


def mask(height: int = 66, width: int = 79, mode: str = "L"):
    """A PIL image with a white disc whose rim is grey: white is repainted."""
    from PIL import Image

    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - 0.4 * height, x - 0.6 * width) - 0.3 * height
    return Image.fromarray(np.rint(255 * np.clip(0.5 - distance / 4, 0, 1)).astype("uint8")).convert(mode)


def case(task: str, scheduler: str, steps: int = 6, *, channels: int = 4, seed=32, prompt=PROMPT, pictures: int = 1, masks="L", **options) -> dict:
    """One run. seed: a number, or one for each picture; masks: the mode of the mask."""
    images = [picture(seed=i) for i in range(pictures)]
    source = {"image": images if pictures > 1 else images[0], **({"mask_image": mask(mode=masks)} if task == "inpaint" else {})}
    return {"task": task, "channels": channels, "scheduler": scheduler, "seed": seed, "prompt": prompt,
            "options": {"num_inference_steps": steps, "guidance_scale": 2.0, **source, **options}}  # fmt: skip


CASES = {
    **{f"img2img-{s.removesuffix('Scheduler')}": case("img2img", s, strength=0.6) for s in SCHEDULERS},
    **{f"inpaint-{s.removesuffix('Scheduler')}": case("inpaint", s, strength=0.6) for s in SCHEDULERS},
    **{f"inpaint9-{s.removesuffix('Scheduler')}": case("inpaint", s, channels=9, strength=0.6) for s in SCHEDULERS},
    "img2img-whole": case("img2img", "DDIMScheduler", 3, strength=1.0),
    "img2img-default-strength": case("img2img", "LMSDiscreteScheduler", 3),
    "img2img-rounding": case("img2img", "DDIMScheduler", 50, strength=0.06, guidance_scale=1.0),
    "img2img-batch": case("img2img", "DDIMScheduler", 4, strength=0.5, prompt=[PROMPT, "an apple"], pictures=2, num_images_per_prompt=2),
    "img2img-seeds": case("img2img", "DDIMScheduler", 4, strength=0.5, prompt=[PROMPT, "an apple"], seed=(1, 2), eta=0.7),
    "inpaint-whole": case("inpaint", "LMSDiscreteScheduler", 3),
    "inpaint-eta": case("inpaint", "DDIMScheduler", 4, strength=0.8, eta=0.7),
    "inpaint-no-guidance": case("inpaint", "PNDMScheduler", 3, guidance_scale=1.0, height=48, width=64),
    "inpaint-batch": case("inpaint", "DDIMScheduler", 4, prompt=[PROMPT, "an apple"], strength=0.8, seed=(1, 2), masks="RGB"),
    "inpaint9-whole": case("inpaint", "DDIMScheduler", 3, channels=9, eta=0.7),
    "inpaint9-batch": case("inpaint", "PNDMScheduler", 3, channels=9, prompt=[PROMPT, "an apple"], seed=(1, 2), masks="1"),
}  # fmt: skip


def paint(pipe, case: dict) -> np.ndarray:
    """uint8 [B, H, W, 3] from minisd's pipeline for the case's model."""
    import minisd

    pipe = getattr(minisd, PIPELINES[case["task"]]).from_pipe(pipe)
    pipe.scheduler = getattr(minisd.schedulers, case["scheduler"]).from_config(pipe.scheduler.config)
    seed = case["seed"] if isinstance(case["seed"], int) else list(case["seed"])
    return np.stack([np.asarray(image) for image in pipe(case["prompt"], seed=seed, **case["options"]).images])


def model_folder(model, scratch: Path) -> Path:
    """model: "embedded", or the channels of a tiny random UNet: 4, or 9 for inpainting."""
    return EMBEDDED if model == "embedded" else write_tiny_sd2(scratch / f"tiny{model}", in_channels=model)
