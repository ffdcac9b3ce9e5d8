"""The numbers that fast.ai's “Stable Diffusion Deep Dive” prints with the official SD 1.4 weights; needs them on disk.

    MINISD_SD14=/path/to/stable-diffusion-v1-4  pytest -m weights
"""

import os

import numpy as np
import pytest

from minisd import CLIPTextModel, CLIPTokenizer

FOLDER = os.environ.get("MINISD_SD14")
pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(FOLDER is None, reason="needs the official SD 1.4 folder: set MINISD_SD14 to it"),
]

PROMPT = "A picture of a puppy"
PUPPY, CAT = 6829, 2368
# First three and last three numbers of the rows 0, 1, 2 and 74, 75, 76 of the output.
OUTPUT = {
    0: [-0.3884, 0.0229, -0.0522, -0.4899, -0.3066, 0.0675],
    1: [0.0290, -1.3258, 0.3085, -0.5257, 0.9768, 0.6652],
    2: [0.6942, 0.3538, 1.0991, -1.5716, -1.2643, -0.0121],
    74: [-0.0221, -0.0053, -0.0089, -0.7303, -1.3830, -0.3011],
    75: [-0.0062, -0.0246, 0.0065, -0.7326, -1.3745, -0.2953],
    76: [-0.0536, 0.0269, 0.0444, -0.7159, -1.3634, -0.3075],
}
OUTPUT_WITH_CAT = {
    74: [-0.6034, -0.5322, 0.0629, -0.3964, 0.0877, -0.9558],
    76: [-0.6393, -0.4703, 0.1103, -0.3904, 0.1351, -0.9726],
}
POSITION_EMBEDDING = {0: [0.0016, 0.0020, 0.0002, -0.0013, 0.0008, 0.0015], 76: [0.0330, 0.0281, 0.0289, 0.0160, 0.0102, -0.0310]}


@pytest.fixture(scope="module")
def ids():
    return CLIPTokenizer.from_pretrained(FOLDER, subfolder="tokenizer")(PROMPT).input_ids


@pytest.fixture(scope="module")
def text_encoder():
    return CLIPTextModel.from_pretrained(FOLDER, subfolder="text_encoder")


def ends(row) -> np.ndarray:
    return np.concatenate((row[:3], row[-3:]))


def test_position_embedding(text_encoder):
    for i, printed in POSITION_EMBEDDING.items():
        np.testing.assert_allclose(ends(text_encoder.position_embedding[i]), printed, atol=6e-5)


def test_output(text_encoder, ids):
    output = text_encoder(ids)
    assert output.shape == (1, 77, 768)
    for i, printed in OUTPUT.items():
        np.testing.assert_allclose(ends(output[0, i]), printed, atol=1.1e-4)


def test_a_puppy_becomes_a_cat(text_encoder, ids):
    swapped = np.where(ids == PUPPY, CAT, ids)
    output = text_encoder.encode_embeddings(text_encoder.embeddings(swapped))
    for i in (0, 1, 2):  # before the swapped token nothing changes
        np.testing.assert_allclose(ends(output[0, i]), OUTPUT[i], atol=1.1e-4)
    for i, printed in OUTPUT_WITH_CAT.items():
        np.testing.assert_allclose(ends(output[0, i]), printed, atol=1.1e-4)
