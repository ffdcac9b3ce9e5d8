"""The runs whose pictures are compared with diffusers, pixel by pixel: shared by the golden file, the plain tests and the live ones."""

from pathlib import Path

from .tiny_folder import EMBEDDED, write_tiny_sd2

MODELS = ("embedded", "tiny_sd2")
PROMPT = "a cat on a blue background"
SCHEDULERS = ("DDIMScheduler", "LMSDiscreteScheduler", "PNDMScheduler")


def case(model: str, scheduler: str, steps: int, *, seed: int = 32, prompt=PROMPT, **options) -> dict:
    # Official configs say skip_prk_steps; the embedded one, written by DDIM, does not, and PNDM then begins with Runge–Kutta.
    return {"model": model, "scheduler": scheduler, "steps": steps, "seed": seed, "prompt": prompt, "options": options}


CASES = {
    f"{model}-{scheduler.removesuffix('Scheduler')}-{steps}": case(model, scheduler, steps)
    for model in MODELS for scheduler in SCHEDULERS for steps in (10, 25)
} | {
    "embedded-negative-prompt": case("embedded", "DDIMScheduler", 10, negative_prompt="a red background"),
    "embedded-no-guidance": case("embedded", "DDIMScheduler", 10, guidance_scale=1.0),
    "embedded-rescaled-guidance": case("embedded", "DDIMScheduler", 10, guidance_rescale=0.7),
    "embedded-eta": case("embedded", "DDIMScheduler", 10, eta=0.8),
    "embedded-wide": case("embedded", "DDIMScheduler", 10, height=48, width=80),
    "embedded-two-prompts": case("embedded", "LMSDiscreteScheduler", 10, prompt=[PROMPT, "an apple on a green background"]),
    "embedded-two-pictures": case("embedded", "PNDMScheduler", 10, num_images_per_prompt=2),
    "tiny_sd2-one-step": case("tiny_sd2", "DDIMScheduler", 1, seed=7),
}  # fmt: skip


def model_folder(model: str, scratch: Path) -> Path:
    return EMBEDDED if model == "embedded" else write_tiny_sd2(scratch / model)
