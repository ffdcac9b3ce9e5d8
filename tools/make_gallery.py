"""Paints docs/first-picture.png and docs/gallery.png, the pictures of the README, with the embedded model and minisd alone.

Run from the repository:  python -m tools.make_gallery
"""

from pathlib import Path

import click
import numpy as np
from PIL import Image

from minisd import StableDiffusionPipeline

FIRST = ("a panda on a yellow background", dict(seed=1))  # the README's first command, at its defaults
GALLERY = (
    "a panda on a yellow background", "a frog on a gray background", "a fox on a blue background", "a rocket on a white background",
    "a ghost on a purple background", "a bus on a green background", "a house on a turquoise background", "a cupcake on a brown background",
    "a gift on a black background", "a television on a red background", "a target on a pink background", "a santa on a green background",
)  # fmt: skip
COLUMNS, SCALE = 6, 2


def paint(pipe, prompt: str, **options) -> np.ndarray:
    """uint8 [64, 64, 3] as the command line paints it: 25 steps, and its defaults but for the options."""
    return np.asarray(pipe(prompt, num_inference_steps=25, **options).images[0])


@click.command()
@click.option("--docs", type=click.Path(path_type=Path, file_okay=False, exists=True), default=Path("docs"), show_default=True)
def main(docs: Path):
    """Paint the fixed prompts and seeds and write the two files."""
    pipe = StableDiffusionPipeline.from_pretrained("tiny")
    pictures = [paint(pipe, prompt, seed=1, guidance_scale=5.0) for prompt in GALLERY]
    rows = [np.concatenate(pictures[i : i + COLUMNS], axis=1) for i in range(0, len(pictures), COLUMNS)]
    strip = np.concatenate(rows).repeat(SCALE, 0).repeat(SCALE, 1)  # nearest neighbour: the pixels stay visible
    Image.fromarray(strip).save(docs / "gallery.png", optimize=True)
    Image.fromarray(paint(pipe, FIRST[0], **FIRST[1])).save(docs / "first-picture.png", optimize=True)


if __name__ == "__main__":
    main()
