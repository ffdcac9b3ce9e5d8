"""Records the golden files of the layers and models from torch, diffusers and transformers: tests/golden/{unet_*,vae,clip_*}.npz.

    python tools/make_golden.py --out tests/golden

Needs the `reference` extra. The float64 truth of a module is the module itself in double precision, fed its float32 inputs; only
diffusers' sinusoidal timestep embedding, which stays in float32 there, is replaced by the same formula in float64.
"""

import re
import sys
from pathlib import Path

import click
import diffusers
import numpy as np
import torch
import transformers
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import goldens  # noqa: E402
from tests.reference.record import exact, record_posterior, record_run, tiny_reference, truth  # noqa: E402
from tests.tiny_models import CONFIGS, make_inputs, random  # noqa: E402

LEAVES = {"Conv2d", "Linear", "GroupNorm", "LayerNorm", "Embedding"}
BATCH = {"unet_sd2": 2, "clip_quick_gelu": 2, "clip_gelu": 2}  # the others record one sample
SEED = 32


def representatives(calls: dict) -> list:
    """The first module of every role in every block, and the first of every role of a leaf in the whole model.

    The role is the path without the indices of blocks and layers: "attentions.transformer_blocks.attn1.to_q".
    """
    chosen = {}
    for path, call in calls.items():
        block = re.match(r"((encoder|decoder)\.)?(down_blocks|up_blocks|mid_block)(\.\d+)?", path)
        rest = path[block.end() :] if block else path
        role = re.sub(r"\.\d+", "", rest)
        stage = block[3] if block else ""
        place = stage if call.kind in LEAVES else block and block[0]
        chosen.setdefault((call.kind, role, place), call)
    return list(chosen.values())


def posterior_samples(moments: np.ndarray) -> dict:
    """diffusers' `sample` with a torch generator. The float64 truth of the float32 one has the same, float32 noise."""

    def sample(parameters):
        return DiagonalGaussianDistribution(parameters).sample(torch.Generator().manual_seed(SEED)).numpy()

    parameters = torch.from_numpy(moments)
    posterior = DiagonalGaussianDistribution(parameters.double())
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(SEED))
    return {
        "moments": moments,
        "seed": np.array(SEED),
        "sample": sample(parameters),
        "sample_truth": (posterior.mean + posterior.std * noise.double()).numpy(),
        "sample_float64": sample(parameters.double()),
    }


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=goldens.FOLDER, help="The folder to write to.")
@click.option("--only", "names", type=click.Choice(list(CONFIGS)), multiple=True, help="Write this file only (can be repeated).")
def main(out: Path, names: tuple):
    """Writes the golden files and prints their sizes."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    for name in names or CONFIGS:
        model, shapes = tiny_reference(name, CONFIGS[name])
        in_float64 = exact(model)
        calls = representatives(record_run(name, model, make_inputs(name, batch=BATCH.get(name, 1))))
        extras = {}
        if name == "vae":
            moments = 40.0 * random("moments").standard_normal((2, 8, 3, 5)).astype("float32")  # beyond both clamps of logvar
            calls.append(record_posterior(moments))
            extras = posterior_samples(moments)
        records = [(call.path, call.kind, call.inputs, truth(in_float64, call), call.plain) for call in calls]
        file = out / f"{name}.npz"
        versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}"
        note = f"tools/make_golden.py with {versions}"
        goldens.write(file, note=note, config=CONFIGS[name], shapes=shapes, records=records, extras=extras)
        click.echo(f"{file}: {len(records)} modules, {file.stat().st_size / 1024:.0f} KB", err=True)


if __name__ == "__main__":
    main()
