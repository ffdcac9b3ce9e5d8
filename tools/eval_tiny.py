"""Scores a tiny model through minisd itself: background colour, noun, what guidance adds, sharpness of the VAE; saves the grids to look at.

    python tools/eval_tiny.py --work tiny-work --model tiny

Needs npm for the drawings, and no torch. Colour: the median of the 3-pixel frame is nearest to the asked one of the twelve. Noun: of all
drawings at all training places, laid over that frame colour, the asked one is nearest to the picture (half size, squared error); a
soft blob of the right outline passes, so look at the grids too.

Three sets of prompts. Seen: pairs of noun and background that training showed. Held out: pairs that the last training never showed; a
checkpoint it started from may have seen them. Clean: held-out pairs of the nouns in FRESH, which no checkpoint before has ever seen.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
from tiny_data import FRESH, SIZE, compose, draw_pairs, load_sprites, prompt_of, save_grid, scores

from minisd import StableDiffusionPipeline


def paint(pipe, pairs, guidance: float, seed: int = 100) -> np.ndarray:
    """One uint8 picture [64, 64, 3] for each (noun, colour), 25 steps of DDIM, each with a seed of its own."""
    run = dict(num_inference_steps=25, guidance_scale=guidance)
    return np.stack([np.asarray(pipe(prompt_of(n, c), seed=seed + i, **run).images[0]) for i, (n, c) in enumerate(pairs)])


def share(right) -> float:
    return round(float(np.mean(right)), 3)


def score(pipe, sets: dict, guidance: float, sprites, folder: Path) -> dict:
    """For each set of prompts: how many, and the shares of pictures with the right background and with the right noun."""
    result = {}
    for name, pairs in sets.items():
        start = time.time()
        pictures = paint(pipe, pairs, guidance)
        colour, noun = scores(pictures, pairs, sprites)
        save_grid(pictures, folder / f"eval-guidance-{guidance:g}-{name.replace(' ', '-')}.png", 10)
        result[name] = {"prompts": len(pairs), "colour": share(colour), "noun": share(noun), "seconds each": round((time.time() - start) / len(pairs), 2)}
        print(f"guidance {guidance:g}, {name}: {json.dumps(result[name])}", flush=True)
    return result


def reconstruction_psnr(vae, sprites, grid: Path) -> float:
    """dB, from the mean squared error over 120 composites that training never drew; the latent is the mean."""
    rng = np.random.default_rng(10**6)
    pictures = np.stack([compose(rng, sprites, n, c) for n, c in draw_pairs(rng, 120, unseen=True)])
    x = (pictures.transpose(0, 3, 1, 2) / 127.5 - 1.0).astype("float32")
    y = np.concatenate([vae.decode(vae.encode(part).mode()) for part in np.split(x, 12)])
    output = np.rint((y.transpose(0, 2, 3, 1).clip(-1, 1) + 1.0) * 127.5).astype("uint8")
    save_grid(np.stack([pictures[:40], output[:40]], 1).reshape(-1, SIZE, SIZE, 3), grid, 10)
    return round(10 * math.log10(255**2 / np.mean((pictures.astype("float64") - output) ** 2)), 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads, grids and eval.json")
    parser.add_argument("--model", default="tiny", help="what minisd takes as a model")
    parser.add_argument("--count", type=int, default=100, help="prompts of each set at full guidance")
    parser.add_argument("--baseline", type=int, default=30, help="of them, again at guidance 1, from the seen and the clean ones")
    parser.add_argument("--guidance", type=float, default=5.0)
    args = parser.parse_args()
    (args.work / "grids").mkdir(parents=True, exist_ok=True)
    sprites, rng = load_sprites(args.work), np.random.default_rng(2024)
    sets = {
        "seen": draw_pairs(rng, args.count),
        "clean": draw_pairs(rng, args.count, unseen=True, nouns=FRESH),
        "held out": draw_pairs(rng, args.count, unseen=True),
    }
    few = {name: sets[name][: args.baseline] for name in ("seen", "clean")}
    pipe = StableDiffusionPipeline.from_pretrained(args.model)

    result = {"psnr": reconstruction_psnr(pipe.vae, sprites, args.work / "grids/eval-vae.png")}
    print(json.dumps(result), flush=True)
    result |= {f"guidance {g:g}": score(pipe, s, g, sprites, args.work / "grids") for g, s in ((args.guidance, sets), (1.0, few))}
    (args.work / "eval.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
