"""Whole models and the gradients that are compared with torch's: the inputs, what is pulled back, and how minisd computes it."""

from pathlib import Path

import numpy as np

from minisd import vjp
from minisd.guidance import blue_loss
from tests.tiny_models import CONFIGS, SIZES, make_inputs, random

FILE = Path(__file__).parents[2] / "golden" / "gradients.npz"
# "vae" is cut here into its two halves; "blue" is the decoder with the Deep Dive's loss on its pixels.
CASES = ("vae_decode", "vae_encode", "vae_blue", *(name for name in CONFIGS if name != "vae"))


def model_name(case: str) -> str:
    return "vae" if case.startswith("vae") else case


def make_case(case: str) -> dict:
    """{input: float32 array}, of one picture or sentence; the whole ids of CLIP stay whole."""
    inputs = make_inputs(model_name(case), SIZES[model_name(case)], 1)
    return {key: inputs[key] for key in (("x",) if case == "vae_encode" else ("z",))} if case.startswith("vae") else inputs


def pulled_back(case: str, shape) -> np.ndarray:
    """The gradient of the output: float32 numbers."""
    return random(f"gradient of {case}").standard_normal(shape).astype("float32")


def gradients(case: str, model, inputs: dict) -> dict:
    """{input: minisd's gradient} in the model's dtype."""
    dtype = model.dtype
    given = {key: value.astype(dtype) if value.dtype.kind == "f" else value for key, value in inputs.items()}
    if case == "vae_blue":
        pixels, pullback = vjp.decode(model, given["z"])
        _, d_unit = blue_loss(0.9)((pixels / 2 + 0.5).transpose(0, 2, 3, 1))
        return {"z": pullback(200.0 * d_unit.transpose(0, 3, 1, 2) / 2)}
    if case.startswith("vae"):
        (key,) = given
        y, pullback = (vjp.decode if key == "z" else vjp.encode)(model, given[key])
        return {key: pullback(pulled_back(case, y.shape).astype(dtype))}
    if case.startswith("unet"):
        y, pullback = vjp.unet(model, *given.values())
        return dict(zip(("sample", "encoder_hidden_states"), pullback(pulled_back(case, y.shape).astype(dtype))))
    e, pull_tables = vjp.embeddings(model, given["input_ids"])
    y, pullback = vjp.encode_embeddings(model, e)
    de = pullback(pulled_back(case, y.shape).astype(dtype))
    pull_tables(de)
    return {"embeddings": de}
