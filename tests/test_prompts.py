"""Prompts as arrays: swaps, mixtures, ways between two prompts; clip_skip; and causality, which says where an edit can be seen."""

import re
from pathlib import Path

import numpy as np
import pytest

from minisd import StableDiffusionPipeline
from minisd.errors import ContractError, UsageError
from minisd.prompts import embed, lerp, mix, slerp

from .goldens import golden
from .numerics import relative_l2
from .tiny_folder import write_tiny_sd2
from .tiny_models import make_inputs

PROMPT = "a cat on a blue background"


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return StableDiffusionPipeline.from_pretrained(write_tiny_sd2(tmp_path_factory.mktemp("model")))


@pytest.fixture
def clip():
    return golden("clip_quick_gelu").model("float32")


@pytest.fixture
def ids():
    return make_inputs("clip_quick_gelu")["input_ids"]


def test_without_replacements_it_is_the_embedding_module(clip, ids):
    assert np.array_equal(embed(clip, ids), clip.embeddings(ids))
    assert np.array_equal(embed(clip, ids.tolist()), clip.embeddings(ids))


def test_a_swapped_token_is_the_other_prompt(pipe):
    """puppy -> cat: with the row of the other token it is the other prompt, bit by bit."""
    cat, dog = (pipe.tokenizer(f"a {animal} on a blue background").input_ids for animal in ("cat", "dog"))
    (a,), (b,) = cat[cat != dog], dog[cat != dog]
    x = embed(pipe.text_encoder, cat, {int(a): pipe.text_encoder.token_embedding[b]})
    assert np.array_equal(pipe.text_encoder.encode_embeddings(x), pipe.encode_prompt(["a dog on a blue background"]))


def test_a_token_changes_nothing_before_its_place(clip, ids):
    token = int(ids[0, 5])
    place = int(np.flatnonzero(ids[0] == token)[0])
    edited = clip.encode_embeddings(embed(clip, ids[:1], {token: mix(clip, {3: 0.5, 4: 0.5})}))
    same = (edited == clip(ids[:1])).all(axis=-1)[0]
    assert same[:place].all() and not same[place:].any()


def test_every_place_of_a_token_is_replaced(clip):
    x = embed(clip, [[5, 7, 5, 2]], {5: np.zeros(30, dtype="float32")})
    assert np.array_equal(x[0, [0, 2]], clip.position_embedding[[0, 2]])
    assert np.array_equal(x[0, [1, 3]], clip.embeddings([[5, 7, 5, 2]])[0, [1, 3]])


def test_mix_is_its_equation(clip):
    E = clip.token_embedding
    assert np.array_equal(mix(clip, {3: 0.5, 4: 0.5}), np.float32(0.5) * E[3] + np.float32(0.5) * E[4])
    assert mix(clip, {3: 1}).dtype == E.dtype and np.array_equal(mix(clip, {3: 1.0}), E[3])


@pytest.mark.parametrize("between", [lerp, slerp])
def test_the_ends_of_a_way_are_the_prompts(between):
    a, b = np.random.RandomState(0).standard_normal((2, 1, 77, 8)).astype("float32")
    assert relative_l2(between(a, b, 0.0), a) <= 1e-6 and relative_l2(between(a, b, 1.0), b) <= 1e-6
    assert between(a, b, 0.3).dtype == np.float32
    np.testing.assert_allclose(between(a, b, 0.3), between(b, a, 0.7), rtol=1e-4, atol=1e-6)


def test_half_a_lerp_is_the_average(pipe):
    a, b = (pipe.encode_prompt([f"a {animal} on a blue background"]) for animal in ("cat", "dog"))
    assert relative_l2(lerp(a, b, 0.5), (a + b) / 2) <= 1e-7


@pytest.mark.parametrize("axis", [-1, None])
def test_slerp_goes_along_the_arc(axis):
    a, b = np.random.RandomState(1).standard_normal((2, 5, 6))
    scale = np.linalg.norm(b, axis=axis, keepdims=True) / np.linalg.norm(a, axis=axis, keepdims=True)
    a = a * scale  # on one sphere the length stays, and equal steps are equal angles
    way = [slerp(a, b, t, axis) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    lengths = [np.linalg.norm(x, axis=axis) for x in way]
    np.testing.assert_allclose(lengths, [lengths[0]] * 5, rtol=1e-12)
    steps = [np.linalg.norm(x - y, axis=axis) for x, y in zip(way, way[1:])]
    np.testing.assert_allclose(steps, [steps[0]] * 4, rtol=1e-12)


def test_slerp_of_parallel_and_zero_vectors_is_finite():
    a = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], dtype="float32")
    b = np.array([[2.0, 0.0], [1.0, 1.0], [-1.0, 0.0]], dtype="float32")
    assert np.isfinite(slerp(a, b, 0.25)).all()
    np.testing.assert_allclose(slerp(a, b, 0.25)[0], [1.25, 0.0])


def test_clip_skip_is_a_hidden_state_behind_the_final_norm(clip, ids):
    """As float64 says it by hand; 0 is no skip at all."""
    from minisd.layers.basic import layer_norm

    states, norm = clip.hidden_states(ids), clip.params.text_model.final_layer_norm
    assert np.array_equal(clip(ids, clip_skip=0), clip(ids)) and np.array_equal(clip(ids, clip_skip=None), clip(ids))
    for n in range(len(states)):
        assert np.array_equal(clip(ids, clip_skip=n), layer_norm(norm, states[-(n + 1)], eps=clip.config.layer_norm_eps))
    assert not np.array_equal(clip(ids, clip_skip=1), clip(ids))
    with pytest.raises(ContractError, match="clip_skip is 4"):
        clip(ids, clip_skip=4)


# ----- in the pipeline -----------------------------------------------------------------------------------------------------


def latents(pipe, *args, **options):
    return pipe(*args, num_inference_steps=1, seed=3, output_type="latent", **options).images


def test_clip_skip_changes_the_prompt_but_not_the_negative_one(pipe):
    """As in diffusers."""
    cond, uncond = pipe.encode_prompt([PROMPT], clip_skip=1), pipe.encode_prompt([""])
    assert np.array_equal(latents(pipe, PROMPT, clip_skip=1), latents(pipe, prompt_embeds=cond, negative_prompt_embeds=uncond))
    assert np.array_equal(latents(pipe, PROMPT, clip_skip=0), latents(pipe, PROMPT))
    assert not np.array_equal(latents(pipe, PROMPT, clip_skip=1), latents(pipe, PROMPT))


def test_the_negative_prompt_is_as_long_as_the_given_vectors(pipe):
    ids = pipe.tokenizer(PROMPT, padding=False).input_ids
    assert latents(pipe, prompt_embeds=pipe.text_encoder(ids)).shape == (1, 4, 16, 16)


def test_given_vectors_longer_than_77_need_negative_ones(pipe):
    long = pipe.encode_prompt(["cat " * 100], prompt_weights="a1111")
    with pytest.raises(UsageError, match="same number of tokens"):
        latents(pipe, prompt_embeds=long)
    assert np.isfinite(latents(pipe, prompt_embeds=long, negative_prompt_embeds=np.zeros_like(long))).all()


WRONG = {
    "no such token": (lambda clip: embed(clip, [[1, 2]], {60: np.zeros(30)}), "no token has the id 60"),
    "true": (lambda clip: mix(clip, {True: 1.0}), "no token has the id True"),
    "not in the prompt": (lambda clip: embed(clip, [[1, 2]], {3: np.zeros(30)}), "token 3 is not in the prompt"),
    "a short vector": (lambda clip: embed(clip, [[1, 2]], {2: np.zeros(29)}), r"shape \[29\]"),
    "nothing": (lambda clip: mix(clip, {}), "nothing to mix"),
    "shapes": (lambda clip: lerp(np.zeros((1, 77, 8)), np.zeros((1, 76, 8)), 0.5), r"\[1, 77, 8\] and \[1, 76, 8\]"),
    "slerp of shapes": (lambda clip: slerp(np.zeros(3), np.zeros(4), 0.5), "the shapes"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_refused(clip, name):
    call, message = WRONG[name]
    with pytest.raises(UsageError, match=message):
        call(clip)


@pytest.mark.parametrize("options, message", [
    (dict(clip_skip=-1), "clip_skip is -1"), (dict(clip_skip=99), r"choose 0 … \d"), (dict(clip_skip=True), "clip_skip is True"),
    (dict(clip_skip=1.0), "clip_skip is 1.0"), (dict(prompt_weights="comfy"), "prompt_weights is 'comfy'"),
])  # fmt: skip
def test_options_are_refused_before_anything_runs(pipe, monkeypatch, options, message):
    monkeypatch.setattr(type(pipe.text_encoder), "__call__", lambda *a, **k: pytest.fail("the text encoder ran"))
    with pytest.raises(UsageError, match=message):
        latents(pipe, PROMPT, **options)


def test_the_page_about_prompts_runs(tmp_path, monkeypatch):
    page = Path(__file__).parents[1] / "docs" / "prompts.md"
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    exec(re.sub(r"num_inference_steps=\d", "num_inference_steps=1", "".join(blocks)), {})
