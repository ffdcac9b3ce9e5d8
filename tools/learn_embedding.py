"""Teaches the embedded model a word for a colour that it has none for, and writes what came of it into docs/gradients.md.

    python tools/learn_embedding.py -o olive.safetensors        # some minutes on two cores; nothing is downloaded

The lesson: pictures that the model itself paints on white, with the white replaced by olive. The examination, with nouns that were not
in the lesson: the denoising loss at fixed timesteps and noises, and the frame's colour in pictures painted from noise.
"""

import argparse
import re
import time
from pathlib import Path

import numpy as np

from minisd import StableDiffusionPipeline
from minisd.learn import denoising_loss, encode_with, latents_of, learn_embedding, save_embedding

PAGE = Path(__file__).resolve().parent.parent / "docs" / "gradients.md"
OLIVE = np.array([0.47, 0.49, 0.16], dtype="float32")
LESSON = ("star", "heart", "apple", "whale", "robot", "cat", "house", "ghost")
EXAM = ("fox", "tree", "rocket", "pig")
TOKEN, INIT = "<olive>", "green"
PROMPT = "a {} on a {} background"
SAMPLER = dict(num_inference_steps=20, guidance_scale=5.0, output_type="np")


def frame(picture):
    """The median colour of the outermost three pixels.        [H, W, 3] -> [3]"""
    inside = np.zeros(picture.shape[:2], dtype=bool)
    inside[3:-3, 3:-3] = True
    return np.median(picture[~inside], axis=0)


def on_olive(pipe, nouns, seed: int) -> np.ndarray:
    """The nouns as the model paints them on white, with the white of the frame, and what is near it, replaced.        -> [N, H, W, 3]"""
    pictures = pipe([PROMPT.format(noun, "white") for noun in nouns], seed=seed, **SAMPLER).images
    for picture in pictures:
        white = frame(picture)
        share = np.exp(-((picture - white) ** 2).sum(axis=-1, keepdims=True) / (2 * 0.12**2))
        picture += share * (OLIVE - white)
    return pictures.clip(0, 1).astype("float32")


def exam_loss(pipe, z, contexts) -> float:
    """The mean denoising loss over ten timesteps, the same noises for whoever is examined."""
    losses = []
    for i, t in enumerate(range(50, 1000, 100)):
        noise = np.random.RandomState(i).standard_normal(z.shape).astype(z.dtype)
        losses.append(denoising_loss(pipe, z, contexts, np.full(len(z), t), noise)[0])
    return float(np.mean(losses))


def colour_error(pipe, contexts) -> float:
    """How far the frames of pictures painted from noise are from olive: the mean over pictures of the distance in RGB, 0 … 1."""
    negative = pipe.encode_prompt([""] * len(contexts))
    pictures = pipe(prompt_embeds=contexts, negative_prompt_embeds=negative, seed=7, **SAMPLER).images
    return float(np.mean([np.linalg.norm(frame(picture) - OLIVE) for picture in pictures]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, help="where to write the learned word (safetensors)")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--words", nargs="*", default=["green", "brown", "yellow", "gray"], help="known colours to compare with")
    args = parser.parse_args()
    pipe = StableDiffusionPipeline.from_pretrained("tiny")
    pictures, z = on_olive(pipe, LESSON, seed=1), latents_of(pipe, on_olive(pipe, EXAM, seed=2))

    start, losses = time.process_time(), []

    def on_step(i, loss):
        losses.append(loss)
        if i % 10 == 9:
            print(f"step {i + 1}: loss {np.mean(losses[-10:]):.4f}", flush=True)

    e = learn_embedding(pipe, pictures, [PROMPT.format(noun, TOKEN) for noun in LESSON], TOKEN, init=INIT, steps=args.steps, on_step=on_step)
    seconds = time.process_time() - start
    if args.output:
        save_embedding(args.output, TOKEN, e)

    candidates = {f"“{word}”": pipe.encode_prompt([PROMPT.format(noun, word) for noun in EXAM]) for word in args.words}
    candidates[f"{TOKEN}, learned"] = np.concatenate([encode_with(pipe, PROMPT.format(noun, TOKEN), TOKEN, e, init=INIT) for noun in EXAM])
    lines = [
        f"{len(LESSON)} pictures, {args.steps} steps of 4 from “{INIT}”, {seconds:.0f} s of CPU; examined with {', '.join(EXAM)}.", "",
        "| the background's word | denoising loss | distance of the frame from olive |", "|---|---|---|",
    ]  # fmt: skip
    for word, contexts in candidates.items():
        lines.append(f"| {word} | {exam_loss(pipe, z, contexts):.4f} | {colour_error(pipe, contexts):.3f} |")
    print("\n".join(lines))
    if PAGE.exists():
        between = r"(<!-- learned -->\n).*?(<!-- /learned -->)"
        text = "\n".join(lines)
        PAGE.write_text(re.sub(between, lambda m: f"{m[1]}{text}\n{m[2]}", PAGE.read_text("utf-8"), flags=re.S), "utf-8")


if __name__ == "__main__":
    main()
