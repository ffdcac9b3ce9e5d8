"""CLIP's text encoder: its parts and the whole against transformers; causality, embeddings of one's own, refusals."""

import numpy as np
import pytest

from minisd.errors import ContractError
from minisd.params import record_reads
from tests.goldens import check, every_record_of, golden
from tests.numerics import assert_close_f64
from tests.tiny_models import make_inputs

KINDS = ("CLIPTextEmbeddings", "CLIPEncoder", "CLIPTextModel")
CLIPS = ("clip_quick_gelu", "clip_gelu")
every_clip = pytest.mark.parametrize("name", CLIPS)


def model_and_ids(name, T=13):
    return golden(name).model("float32"), make_inputs(name, (T,))["input_ids"]


@every_record_of(*KINDS)
def test_computes_what_the_reference_computes(name, path):
    check(golden(name), path)


@every_clip
def test_one_forward_reads_every_tensor(name):
    clip, ids = model_and_ids(name)
    with record_reads() as reads:
        clip(ids)
    assert reads == {f"text_encoder.text_model.{tensor}" for tensor in golden(name).shapes}


@every_clip
@pytest.mark.parametrize("T", [1, 13, 77])
def test_encoding_the_embeddings_is_the_whole_forward_bit_by_bit(name, T):
    clip, ids = model_and_ids(name, T)
    x = clip.embeddings(ids)
    assert np.array_equal(x, clip.token_embedding[ids] + clip.position_embedding[:T])
    assert np.array_equal(clip.encode_embeddings(x), clip(ids))


@every_clip
def test_a_token_changes_nothing_before_it(name):
    """The mask is causal: rows before the edit keep every bit, the edited one and all behind it change."""
    clip, ids = model_and_ids(name)
    for place in (0, 5, 12):
        edited = clip.embeddings(ids)
        edited[:, place] += 0.01
        before, after = clip(ids), clip.encode_embeddings(edited)
        same = (before == after).all(axis=-1)
        assert same[:, :place].all() and not same[:, place:].any()


@every_clip
def test_a_prompt_may_be_mixed_from_two_tokens(name):
    clip, ids = model_and_ids(name)
    x = clip.embeddings(ids)
    first, second = clip.token_embedding[[3, 4]]
    x[:, 6] = 0.5 * first + 0.5 * second + clip.position_embedding[6]
    mixed = clip.encode_embeddings(x)
    assert mixed.shape == x.shape and mixed.dtype == x.dtype
    assert np.array_equal(mixed[:, :6], clip(ids)[:, :6]) and not np.array_equal(mixed[:, 6:], clip(ids)[:, 6:])


@every_clip
def test_hidden_states_are_the_embeddings_and_every_layer(name):
    clip, ids = model_and_ids(name)
    states = clip.hidden_states(ids)
    assert len(states) == clip.config.num_hidden_layers + 1
    assert np.array_equal(states[0], clip.embeddings(ids))
    assert not np.array_equal(states[-1], clip(ids))  # the final layer norm is behind them


@every_clip
def test_a_batch_is_its_prompts(name):
    clip, ids = golden(name).model("float64"), make_inputs(name)["input_ids"]
    assert_close_f64(clip(ids)[1:], clip(ids[1:]), name=name, tolerance=1e-13)


def test_the_tables_are_the_weights():
    clip, _ = model_and_ids("clip_gelu")
    assert clip.token_embedding.shape == (60, 28) and clip.position_embedding.shape == (77, 28)


def test_ids_may_be_lists():
    clip, ids = model_and_ids("clip_gelu")
    assert np.array_equal(clip(ids.tolist()), clip(ids)) and np.array_equal(clip(ids.astype("int32")), clip(ids))


@pytest.mark.parametrize(
    "ids, complaint",
    [
        (np.zeros((1, 78), dtype="int64"), r"shape \[1, 78\].*\n.*T from 1 to 77"),
        (np.zeros((1, 0), dtype="int64"), r"shape \[1, 0\]"),
        (np.zeros(77, dtype="int64"), r"shape \[77\]"),
        (np.array([[60]]), "60 … 60 lie outside the table of 60 rows"),
        (np.array([[-1]]), "-1 … -1 lie outside"),
        (np.zeros((1, 5), dtype="float32"), "float32, not integers"),
    ],
)
def test_wrong_ids_are_refused(ids, complaint):
    with pytest.raises(ContractError, match=complaint):
        golden("clip_gelu").model("float32")(ids)


@pytest.mark.parametrize(
    "shape, dtype, complaint",
    [
        ((1, 5, 29), "float32", r"embeddings has the shape \[1, 5, 29\], not \[any, any, 28\]"),
        ((5, 28), "float32", r"embeddings has the shape \[5, 28\]"),
        ((1, 5, 28), "float64", "embeddings is float64, the weights are float32"),
    ],
)
def test_wrong_embeddings_are_refused(shape, dtype, complaint):
    with pytest.raises(ContractError, match=complaint):
        golden("clip_gelu").model("float32").encode_embeddings(np.zeros(shape, dtype=dtype))
