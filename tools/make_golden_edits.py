"""Records tests/golden/edits.npz: what diffusers makes of a picture, and of a picture and a mask, with tiny random models at a fixed seed.

Run from the repository with the `reference` extra installed:  python -m tools.make_golden_edits
"""

import tempfile
import warnings
from pathlib import Path

import click
import diffusers
import numpy as np
import torch
import transformers

from tests.edit_cases import CASES, PIPELINES, model_folder

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()


def load(task: str, folder):
    """diffusers' pipeline for a task, in float32."""
    pipe = getattr(diffusers, PIPELINES[task]).from_pretrained(folder, safety_checker=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe, case: dict) -> np.ndarray:
    """uint8 [B, H, W, 3] from diffusers, noise from torch's CPU generator."""
    pipe.scheduler = getattr(diffusers, case["scheduler"]).from_config(pipe.scheduler.config)
    seeds = case["seed"]
    generator = torch.manual_seed(seeds) if isinstance(seeds, int) else [torch.Generator().manual_seed(seed) for seed in seeds]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one picture serves several prompts
        images = pipe(case["prompt"], generator=generator, **case["options"]).images
    return np.stack([np.asarray(image) for image in images])


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("tests/golden/edits.npz"), show_default=True)
def main(out: Path):
    """Run every case of tests/edit_cases.py with diffusers and store the pixels."""
    pictures = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {channels: model_folder(channels, Path(scratch)) for channels in (4, 9)}
        for name, case in CASES.items():
            pictures[name] = paint(load(case["task"], folders[case["channels"]]), case)
            click.echo(f"{name}: {pictures[name].shape}, mean {pictures[name].mean():.1f}, deviation {pictures[name].std():.1f}")
    versions = f"diffusers {diffusers.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    np.savez_compressed(out, versions=np.array(versions), **pictures)


if __name__ == "__main__":
    main()
