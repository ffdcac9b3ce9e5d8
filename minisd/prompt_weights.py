"""Prompts with weights, (a word:1.2), and of any length: the mode "a1111", as the documentation of AUTOMATIC1111's web UI describes it.

    (word)  × 1.1        ((word))  × 1.21        [word]  ÷ 1.1        (word:1.5)  × 1.5        \\( \\) \\[ \\]  the signs themselves
    BREAK   fills the chunk up; what follows begins another one

Tokens are cut into chunks of 75. Each chunk gets its own <|startoftext|>, <|endoftext|> and padding, goes through the text encoder alone,
and the results stand one behind the other: the UNet's attention takes any number of vectors. A weight w multiplies the vector of its
token, and then the whole chunk is brought back to the mean that it had:

    z′ = w · z · mean(z) / mean(w · z)                z, z′ [77, C], w [77, 1]

If no weight differs from 1, z′ is z bit by bit. Not done here: [from:to:when] and [a|b], which change the prompt during the run, AND, and
moving a whole phrase to the next chunk. Source: the wiki of stable-diffusion-webui, "Attention/emphasis", "Infinite prompt length", "BREAK keyword".
"""

import re

import numpy as np

from .errors import UsageError

STEP = 1.1
MAX_DEPTH = 100
SIGNS = re.compile(r"(\\[()\[\]\\]|[()\[\]])")
NUMBER = re.compile(r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*$")
CLOSES = {")": "(", "]": "["}


def parse(prompt: str) -> list[tuple[str, float]]:
    """A prompt as pieces with weights: "a (red:1.2) fox" -> [("a ", 1.0), ("red", 1.2), (" fox", 1.0)]; the BREAK of the text stays in it.

    A bracket that is never closed counts to the end; one that was never opened is an ordinary sign.
    """
    pieces: list[list] = []  # [text, weight]
    opened: list[tuple[str, int]] = []  # (bracket, the number of pieces before it)

    def close(sign: str, factor: float):
        _, first = opened.pop()
        for piece in pieces[first:]:
            piece[1] *= factor

    for part in SIGNS.split(prompt):
        if part in ("(", "["):
            if len(opened) == MAX_DEPTH:
                raise UsageError(f"more than {MAX_DEPTH} brackets inside each other", "", "write the weight as a number: (word:1.5)")
            opened.append((part, len(pieces)))
        elif part in CLOSES and opened and opened[-1][0] == CLOSES[part]:
            number = NUMBER.search(pieces[-1][0]) if part == ")" and len(pieces) > opened[-1][1] else None
            if number:
                pieces[-1][0] = pieces[-1][0][: number.start()]
            close(part, float(number[1]) if number else STEP if part == ")" else 1 / STEP)
        elif part:
            pieces.append([part[1:] if part[0] == "\\" and len(part) == 2 else part, 1.0])
    while opened:
        close(opened[-1][0], STEP if opened[-1][0] == "(" else 1 / STEP)
    return _joined(pieces)


def _joined(pieces: list) -> list[tuple[str, float]]:
    """Neighbours of one weight are one piece, so that a word is not cut by an escape."""
    result: list[tuple[str, float]] = []
    for text, weight in pieces:
        if text and result and result[-1][1] == weight:
            result[-1] = result[-1][0] + text, weight
        elif text:
            result.append((text, weight))
    return result


def chunks(prompt: str, tokenizer, length: int = 75) -> list[tuple[list[int], list[float]]]:
    """The prompt's token ids with their weights, cut into chunks of at most `length`; at least one, which may be empty."""
    result: list[tuple[list[int], list[float]]] = [([], [])]
    for text, weight in parse(prompt):
        for i, part in enumerate(re.split(r"\s*\bBREAK\b\s*", text)):
            if i:
                result.append(([], []))
            for token in _ids(part, tokenizer):
                if len(result[-1][0]) == length:
                    result.append(([], []))
                result[-1][0].append(token)
                result[-1][1].append(weight)
    return result


def _ids(text: str, tokenizer) -> list[int]:
    rows = tokenizer(text, padding=False, truncation=False).input_ids
    return list(map(int, rows[0][1:-1]))


def encode_weighted(tokenizer, text_encoder, prompts: list[str], *, clip_skip: int | None = None, at_least: int = 1):
    """Prompts with weights -> [B, 77·N, C], N the number of chunks of the longest; shorter ones are filled up with empty chunks."""
    length = text_encoder.config.max_position_embeddings - 2
    cut = [chunks(prompt, tokenizer, length) for prompt in prompts]
    count = max(at_least, *map(len, cut))
    rows = [row + [([], [])] * (count - len(row)) for row in cut]
    ids, weights = (np.stack([[frame(tokenizer, chunk, length)[k] for chunk in row] for row in rows]) for k in (0, 1))
    z = text_encoder(ids.reshape(-1, length + 2), clip_skip=clip_skip)
    z = weigh(z, weights.reshape(-1, length + 2).astype(z.dtype.name))
    return z.reshape(len(prompts), count * (length + 2), -1)


def frame(tokenizer, chunk: tuple, length: int) -> tuple[np.ndarray, np.ndarray]:
    """A chunk with its two ends and padding: ids [length + 2] int64, and weights, which are 1 for all that was added."""
    ids, weights = chunk
    padding = length - len(ids)
    framed = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] + [tokenizer.pad_token_id] * padding
    return np.array(framed, dtype=np.int64), np.array([1.0, *weights] + [1.0] * (padding + 1))


def weigh(z, weights):
    """z′ = w · z · mean(z) / mean(w · z), chunk by chunk.        z [N, 77, C], weights [N, 77] -> [N, 77, C]"""
    changed = (weights != 1).any(axis=1)
    if not changed.any():
        return z
    result = z.copy()
    scaled = z[changed] * weights[changed][:, :, None]
    before, after = (x.mean(axis=(1, 2), keepdims=True) for x in (z[changed], scaled))
    if (after == 0).any():
        raise UsageError("the weights make the mean of a chunk 0", "the mode a1111 divides by it", "change one of the weights a little")
    result[changed] = scaled * (before / after)
    return result
