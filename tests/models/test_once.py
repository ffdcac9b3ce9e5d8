"""What a run computes once: the same numbers as computing it at each step, never those of another prompt, timestep or weight."""

from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest

from minisd import ops, trace
from minisd.models import Once
from minisd.models.once import KEYS_AND_VALUES, TIME_PROJECTIONS, modules
from minisd.params import record_reads
from tests.goldens import golden
from tests.tiny_models import CONFIGS, build, make_inputs

UNETS = ("unet_sd1", "unet_sd2", "unet_inpainting")
every_unet = pytest.mark.parametrize("name", UNETS)


def inputs(name, batch=2):
    made = make_inputs(name, batch=batch)
    return made["sample"], made["encoder_hidden_states"]


@contextmanager
def counted(monkeypatch):
    """How often each weight is multiplied with, by its shape and sum."""
    counts, linear = Counter(), ops.linear

    def counting(x, w, b=None, **options):
        counts[id(w)] += 1
        return linear(x, w, b, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ops, "linear", counting)
        yield counts


@every_unet
@pytest.mark.parametrize("images", [1, 2])
def test_a_run_gives_the_bits_that_its_steps_give(name, images):
    """Image by image or both halves of guidance at once; timesteps that were announced or not, and one that comes twice."""
    model, (sample, context) = golden(name).model("float32"), inputs(name)
    once = Once([981.0, 501.25, 7.0])
    for t in (981, 501.25, np.int64(501), 7.0, 981):
        assert np.array_equal(model(sample[:images], t, context, once), model(sample[:images], t, context))


@every_unet
def test_keys_values_and_projections_are_computed_once(name, monkeypatch):
    model, (sample, context) = golden(name).model("float32"), inputs(name)
    once = Once()
    with counted(monkeypatch) as counts:
        for t in (981, 501, 501):
            model(sample, t, context, once)
    for ending, times in [(KEYS_AND_VALUES, 1), (TIME_PROJECTIONS, 2), (("attn2.to_q",), 3)]:
        layers = modules(model.params, ending)
        assert layers and {counts[id(p.weight)] for p in layers} == {times}


def test_the_two_passes_of_guidance_have_a_prompt_each(monkeypatch):
    model, (sample, context) = golden("unet_sd1").model("float32"), inputs("unet_sd1")
    once = Once()
    with counted(monkeypatch) as counts:
        for t in (981, 501):
            for half in np.split(context, 2):
                y = model(sample[:1], t, half, once)
    assert np.array_equal(y, model(sample[:1], 501, context[1:]))
    assert {counts[id(p.weight)] for p in modules(model.params, KEYS_AND_VALUES)} == {2}
    assert {counts[id(p.weight)] for p in modules(model.params, TIME_PROJECTIONS)} == {2}


def test_another_prompt_is_seen_even_if_it_is_written_over_the_old_one():
    model, (sample, context) = golden("unet_sd1").model("float32"), inputs("unet_sd1")
    once, context = Once(), context.copy()
    for change in (lambda c: c, lambda c: c * 0.5, lambda c: c[:, :7], lambda c: c[::-1].copy()):
        context = change(context)
        assert np.array_equal(model(sample, 7, context, once), model(sample, 7, context))
    context[0, 3, 2] += 1e-3  # one number, in place
    assert np.array_equal(model(sample, 7, context, once), model(sample, 7, context))


@pytest.mark.parametrize("layer", ["attn2.to_k", "attn2.to_v", "time_emb_proj", "time_embedding.linear_1"])
def test_other_weights_are_seen(layer):
    model = build("unet_sd1", CONFIGS["unet_sd1"])
    sample, context = inputs("unet_sd1")
    once = Once()
    before = model(sample, 7, context, once)
    name = next(name for name, _ in model.params.leaves() if name.endswith(f"{layer}.weight"))
    kept = model.params
    model.params = kept.replace({name: 1.5 * dict(kept.leaves())[name]})
    after = model(sample, 7, context, once)
    assert np.array_equal(after, model(sample, 7, context)) and not np.array_equal(after, before)
    model.params = kept
    assert np.array_equal(model(sample, 7, context, once), before)


def test_other_rungs_are_seen():
    """In the middle of a run: the exact profile takes no product that was made by a fast one."""
    model, (sample, context) = golden("unet_sd1").model("float32"), inputs("unet_sd1")
    once, answers = Once(), []
    for profile in ("fast", "exact", "fast"):
        with ops.using(profile=profile):
            answers.append(model(sample, 7, context, once))
            assert np.array_equal(answers[-1], model(sample, 7, context))
    assert not np.array_equal(*answers[:2])


def test_another_size_batch_dtype_or_model_is_seen():
    one, two = golden("unet_sd1").model("float32"), golden("unet_sd1").model("float64")
    sample, context = inputs("unet_sd1")
    once = Once([7])
    for model, x, c in [
        (one, sample, context), (one, sample[:1], context[:1]), (one, sample[:1], context), (one, sample[..., :8], context),
        (two, sample.astype("float64"), context.astype("float64")), (one, sample, context),
    ]:  # fmt: skip
        assert np.array_equal(model(x, 7, c, once), model(x, 7, c))


def test_several_timesteps_at_once_are_computed_as_ever():
    model, (sample, context) = golden("unet_sd1").model("float32"), inputs("unet_sd1")
    for t in ([7.0, 981.0], [7.0, 7.0], [7.0]):
        assert np.array_equal(model(sample, t, context, Once()), model(sample, t, context))


def test_who_listens_sees_every_layer_at_every_step():
    model, (sample, context) = golden("unet_sd1").model("float32"), inputs("unet_sd1")
    once = Once()
    model(sample[:1], 7, context, once)
    with trace() as seen, record_reads() as reads:
        y = model(sample[:1], 981, context, once)
    assert np.array_equal(y, model(np.concatenate((sample[:1],) * 2), 981, context))
    with trace() as plain:
        model(np.concatenate((sample[:1],) * 2), 981, context)
    assert list(seen) == list(plain) and all(np.array_equal(seen[path], plain[path]) for path in plain)
    assert reads == {f"unet.{tensor}" for tensor in golden("unet_sd1").shapes}


def test_wrong_inputs_are_refused_as_ever():
    model, (sample, context) = golden("unet_sd1").model("float32"), inputs("unet_sd1")
    once = Once()
    model(sample, 7, context, once)
    for wrong in [(sample[:, :3], 7, context), (sample[[0, 0, 0]], 7, context), (sample, [1, 2, 3], context), (sample, 7, context.astype("float64"))]:
        with pytest.raises(Exception) as plain:
            model(*wrong)
        with pytest.raises(type(plain.value)) as error:
            model(*wrong, once)
        assert str(error.value) == str(plain.value)
