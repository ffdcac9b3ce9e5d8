"""Records tests/golden/pictures.npz: what diffusers paints with the embedded model and with a tiny SD 2-like one, at a fixed seed.

Run from the repository with the `reference` extra installed:  python -m tools.make_golden_pictures
"""

import tempfile
from pathlib import Path

import click
import diffusers
import numpy as np
import torch
import transformers

from tests.picture_cases import CASES, MODELS, model_folder

diffusers.utils.logging.set_verbosity_error()


def paint(pipe, case: dict) -> np.ndarray:
    """uint8 [B, H, W, 3] from diffusers in float32, noise from torch's CPU generator."""
    pipe.scheduler = getattr(diffusers, case["scheduler"]).from_config(pipe.scheduler.config)
    images = pipe(case["prompt"], num_inference_steps=case["steps"], generator=torch.manual_seed(case["seed"]), **case["options"]).images
    return np.stack([np.asarray(image) for image in images])


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("tests/golden/pictures.npz"), show_default=True)
def main(out: Path):
    """Paint every case of tests/picture_cases.py with diffusers and store the pixels."""
    pictures = {}
    with tempfile.TemporaryDirectory() as scratch:
        for model in MODELS:
            folder = model_folder(model, Path(scratch))
            pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
            pipe.set_progress_bar_config(disable=True)
            for name, case in CASES.items():
                if case["model"] == model:
                    pictures[name] = paint(pipe, case)
                    click.echo(f"{name}: {pictures[name].shape}, mean {pictures[name].mean():.1f}, deviation {pictures[name].std():.1f}")
    versions = f"diffusers {diffusers.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    np.savez_compressed(out, versions=np.array(versions), **pictures)


if __name__ == "__main__":
    main()
