"""Prompts as arrays: what can be done between a text and the vectors that the UNet attends to.

    ids = tokenizer(prompt).input_ids                 [B, T]       6829 is puppy</w>
    x = E[ids] + P[0 … T−1]                           [B, T, C]    `embed`: one row of each table, added; here tokens can be swapped
    context = final_layer_norm(layers(x))             [B, T, C]    text_encoder.encode_embeddings(x); here prompts can be mixed

    x = embed(text_encoder, ids, {6829: text_encoder.token_embedding[2368]})          the cat in place of the puppy
    x = embed(text_encoder, ids, {6829: mix(text_encoder, {6829: 0.5, 42194: 0.5})})  half a puppy, half a skunk
    context = lerp(pipe.encode_prompt(["a mouse"]), pipe.encode_prompt(["a leopard"]), 0.65)
    image = pipe(prompt_embeds=context, seed=32).images[0]

The layers are causal: a token changes nothing before its place, and everything from there on.
"""

import math

import numpy as np

from .backend import array_module, like, to_numpy
from .errors import UsageError
from .prompt_weights import chunks, encode_weighted

MODES = ("a1111",)


def check_prompt_options(prompt_weights, clip_skip, layers: int):
    """The mode of weights is known, and a text encoder of so many layers has enough of them to skip. Raises UsageError."""
    if prompt_weights not in (None, *MODES):
        raise UsageError(f"prompt_weights is {prompt_weights!r}", "a prompt means other things in other programs", f"use {' or '.join(MODES)}, or leave it out")
    whole = isinstance(clip_skip, (int, np.integer)) and not isinstance(clip_skip, bool)
    if clip_skip is not None and not (whole and 0 <= clip_skip <= layers):
        raise UsageError(f"clip_skip is {clip_skip!r}", f"this text encoder has {layers} layers", f"choose 0 … {layers}; 1 leaves the last one out")


def encode(tokenizer, text_encoder, prompts: list[str], *, clip_skip=None, prompt_weights=None, tokens=None):
    """Texts -> context [B, T, C]: T is `tokens`, or what the text encoder can take; with prompt_weights a multiple of that."""
    check_prompt_options(prompt_weights, clip_skip, text_encoder.config.num_hidden_layers)
    positions = text_encoder.config.max_position_embeddings
    if prompt_weights is None:
        return text_encoder(tokenizer(prompts, max_length=min(tokens or positions, positions)).input_ids, clip_skip)
    return encode_weighted(tokenizer, text_encoder, prompts, clip_skip=clip_skip, at_least=-(-(tokens or 1) // positions))


def count_vectors(tokenizer, text_encoder, prompts, prompt_weights=None) -> int:
    """How many vectors the longest of the prompts becomes: the text encoder's 77; with prompt_weights 77 for each chunk."""
    positions = text_encoder.config.max_position_embeddings
    if prompt_weights is None:
        return positions
    return positions * max((len(chunks(prompt, tokenizer, positions - 2)) for prompt in prompts), default=1)


def weighted_table(tokenizer, prompt: str, length: int = 75) -> list[tuple]:
    """What the mode a1111 makes of a prompt: (chunk, id, token, weight) for every token, without ends and padding."""
    cut = enumerate(chunks(prompt, tokenizer, length))
    return [(i, number, tokenizer.convert_ids_to_tokens(number), w) for i, (ids, weights) in cut for number, w in zip(ids, weights)]


def embed(text_encoder, ids, replacements: dict | None = None):
    """What the first layer reads, with some tokens replaced: x = E[ids] + P, E[i] = replacements[i] where that is given.

    ids [B, T] integers, replacements {id: vector [C]} -> [B, T, C]        without replacements it is text_encoder.embeddings(ids), bit by bit
    """
    ids = np.asarray(ids)
    x = text_encoder.embeddings(ids)
    table, positions = text_encoder.token_embedding, text_encoder.position_embedding
    for token, vector in (replacements or {}).items():
        places = ids == _row(token, table)
        if not places.any():
            raise UsageError(f"the token {token} is not in the prompt", "so nothing would be replaced", "tokenizer.table(prompt) shows its tokens")
        vector = like(vector, x)
        if vector.shape != table.shape[1:]:
            raise UsageError(f"the vector for token {token} has the shape {list(vector.shape)}", "", f"give {list(table.shape[1:])}, like a row of token_embedding")
        b, t = places.nonzero()
        x[b, t] = vector + like(positions[t], x)
    return x


def mix(text_encoder, weights: dict):
    """A token between tokens: Σ wᵢ E[i].        weights {id: number} -> [C], on the host"""
    table = text_encoder.token_embedding
    if not weights:
        raise UsageError("nothing to mix", "", "give {id: weight, …}")
    rows = ((to_numpy(table[_row(token, table)]), w) for token, w in weights.items())
    return sum(float(w) * row.astype(text_encoder.host_dtype, copy=False) for row, w in rows)


def lerp(a, b, t: float):
    """(1 − t) · a + t · b, along the straight line.        a, b of one shape -> the same; t = 0.5 is the average"""
    _same_shape(a, b)
    return (1.0 - t) * a + t * b


def slerp(a, b, t: float, axis: int | None = -1):
    """Along the arc between a and b, at constant speed: (sin((1 − t) θ) a + sin(t θ) b) / sin θ, θ the angle between them.

    a, b of one shape -> the same. axis −1: every vector has its own angle; None: the whole array is one vector, as for noise. Where a and b
    are parallel within rounding it is `lerp`. Shoemake, SIGGRAPH 1985.
    """
    _same_shape(a, b)
    xp, options = array_module(a, b), dict(axis=axis, keepdims=True)
    norms = xp.sqrt((a * a).sum(**options) * (b * b).sum(**options))
    cosine = xp.clip((a * b).sum(**options) / xp.where(norms == 0, 1, norms), -1.0, 1.0)
    angle = xp.arccos(cosine)
    sine = xp.sin(angle)
    straight = sine < math.sqrt(np.finfo(a.dtype).eps)
    safe = xp.where(straight, 1, sine)
    wa = xp.where(straight, 1.0 - t, xp.sin((1.0 - t) * angle) / safe).astype(a.dtype)
    wb = xp.where(straight, t, xp.sin(t * angle) / safe).astype(a.dtype)
    return wa * a + wb * b


def _row(token, table) -> int:
    """A token id, if the table has it."""
    if isinstance(token, bool) or not isinstance(token, (int, np.integer)) or not 0 <= token < len(table):
        raise UsageError(f"no token has the id {token!r}", f"ids run from 0 to {len(table) - 1}", "tokenizer.table(prompt) shows them")
    return int(token)


def _same_shape(a, b):
    if a.shape != b.shape:
        raise UsageError(f"arrays of the shapes {list(a.shape)} and {list(b.shape)}", "", "encode both prompts to the same number of tokens")
