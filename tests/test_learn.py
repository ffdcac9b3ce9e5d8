"""Learning a word: the gradient of its vector, its places in prompts, Adam, the file, and that a few steps lower the loss."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from minisd import StableDiffusionPipeline
from minisd.errors import UsageError
from minisd.learn import Adam, Words, denoising_loss, encode_with, latents_of, learn_embedding, save_embedding, spread_timesteps
from tests.tiny_folder import write_tiny_sd2
from tests.vjp.projection import arrays, check

PROMPTS = ["a cat on a <new> background", "<new>"]


@pytest.fixture(scope="module")
def sd2(tmp_path_factory):
    return StableDiffusionPipeline.from_pretrained(write_tiny_sd2(tmp_path_factory.mktemp("sd2") / "model"), dtype="float64")


@pytest.fixture(scope="module")
def tiny():
    return StableDiffusionPipeline.from_pretrained("tiny")


def test_the_words_places(sd2):
    words = Words.put(sd2, PROMPTS, "<new>", "green", 2)
    (green,) = {words.ids[b, t] for b, t in zip(words.row, words.place)}
    assert green == words.init_id and (words.ids == green).sum() == 4
    assert words.row.tolist() == [0, 0, 1, 1] and words.place.tolist() == [5, 6, 1, 2] and words.part.tolist() == [0, 1, 0, 1]
    picked = words.of([1, 1, 0])
    assert picked.row.tolist() == [0, 0, 1, 1, 2, 2] and np.array_equal(picked.ids, words.ids[[1, 1, 0]])


def test_with_the_vector_of_a_known_word_it_is_that_word(sd2):
    e = Words.put(sd2, PROMPTS[:1], "<new>", "green", 1).start(sd2)
    ours = encode_with(sd2, PROMPTS[0], "<new>", e, init="green")
    assert np.array_equal(ours, sd2.encode_prompt(["a cat on a green background"]))


def test_the_gradient_of_the_vectors(sd2):
    """From the loss of the UNet back to two vectors, one of which stands in three places."""
    words = Words.put(sd2, PROMPTS, "<new>", "green", 2)
    z, noise = arrays("z", (2, 4, 6, 7), (2, 4, 6, 7))

    def f(e):
        context, pull_text = words.encode(sd2, e)
        loss, pull_loss = denoising_loss(sd2, z, context, np.array([7, 930]), noise)
        return np.array([loss]), lambda dy: dy[0] * pull_text(pull_loss())

    check(f, words.start(sd2), name="vectors", h=1e-6, tolerance=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_loss_is_that_of_the_prediction_type(sd2, kind):
    """The target, and the noisy latents, are those of the scheduler's own add_noise and get_velocity."""
    pipe = StableDiffusionPipeline.from_pretrained("tiny")
    pipe.scheduler = type(pipe.scheduler).from_config({**pipe.scheduler.config, "prediction_type": kind})
    z, noise = (a.astype("float32") for a in arrays("z", (2, 4, 16, 16), (2, 4, 16, 16)))
    t, context = np.array([7, 930]), pipe.encode_prompt(["a cat", "a dog"])
    target = {"epsilon": noise, "sample": z, "v_prediction": pipe.scheduler.get_velocity(z, noise, t)}[kind]
    expected = ((pipe.unet(pipe.scheduler.add_noise(z, noise, t), t, context) - target) ** 2).mean()
    assert denoising_loss(pipe, z, context, t, noise)[0] == pytest.approx(expected, rel=1e-5)


def test_adam_by_hand():
    """The first move is the rate itself, whatever the gradient; a gradient of 0 moves nothing from rest."""
    adam = Adam((2,), 0.1)
    assert np.allclose(adam.step(np.array([3.0, -1e-3])), [0.1, -0.1], rtol=1e-4)
    second = adam.step(np.array([3.0, 0.0]))
    m, v = -0.1e-3 * 0.9 / (1 - 0.9**2), 1e-9 * 0.999 / (1 - 0.999**2)
    assert np.allclose(second, [0.1, 0.1 * m / (np.sqrt(v) + 1e-8)], rtol=1e-9)


def test_timesteps_cover_the_schedule():
    t = spread_timesteps(np.random.default_rng(0), 5, 1000)
    assert t.dtype == np.int64 and (t // 200).tolist() == [0, 1, 2, 3, 4]


def test_a_few_steps_lower_the_loss(tiny, tmp_path):
    """One picture without background colour, one timestep's worth of noise: after four steps the loss on noises never seen is lower."""
    picture = np.full((2, 64, 64, 3), 0.5, dtype="float32")
    picture[:, 16:48, 16:48] = (0.5, 0.9, 0.1)
    losses = []
    e = learn_embedding(
        tiny, picture, "a star on a <lime> background", "<lime>", init="red", steps=4, batch=2, learning_rate=0.1, on_step=lambda i, loss: losses.append(loss)
    )
    z, noise = latents_of(tiny, picture), np.random.default_rng(99).standard_normal((2, 4, 16, 16)).astype("float32")

    def held_out(context):
        return denoising_loss(tiny, z, context.repeat(2, axis=0), np.array([800, 900]), noise)[0]

    before = held_out(tiny.encode_prompt(["a star on a red background"]))
    assert len(losses) == 4 and held_out(encode_with(tiny, "a star on a <lime> background", "<lime>", e, init="red")) <= 0.97 * before
    save_embedding(tmp_path / "lime.safetensors", "<lime>", e)
    assert np.array_equal(load_file(tmp_path / "lime.safetensors")["<lime>"], e[0])
    save_embedding(tmp_path / "two.safetensors", "<two>", np.concatenate((e, e)))
    assert load_file(tmp_path / "two.safetensors")["<two>"].shape == (2, e.shape[1])


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(prompts=["a <x>"]), "1 prompts for 2 pictures"),
        (dict(prompts="a cat"), "every prompt holds"),
        (dict(prompts="a green <x>"), "only in its place"),
        (dict(init="olive"), "cannot stand for the word"),
        (dict(init="green cat"), "2 tokens long"),
        (dict(vectors=0), "vectors = 0"),
        (dict(vectors=90), "fit into 77 tokens"),
        (dict(steps=0), "steps = 0"),
        (dict(pictures=np.zeros((2, 64, 64, 3), "uint8")), "no float array"),
        (dict(pictures=np.zeros((2, 64, 64), "float32")), "no float array"),
    ],
)
def test_what_cannot_be_meant_is_refused(tiny, change, words):
    given = dict(pictures=np.zeros((2, 64, 64, 3), "float32"), prompts="a <x>", token="<x>", init="green", steps=1)
    with pytest.raises(UsageError, match=words):
        learn_embedding(tiny, **{**given, **change})
