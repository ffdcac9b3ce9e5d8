"""Gradients by hand against torch.autograd, live: every input and every parameter of tiny models, and a learned word read by diffusers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from minisd import StableDiffusionPipeline, ops, vjp  # noqa: E402
from minisd.learn import encode_with, save_embedding  # noqa: E402
from tests.goldens import allowed  # noqa: E402
from tests.numerics import assert_close_f64, assert_faithful  # noqa: E402
from tests.reference.gradients import torch_gradients  # noqa: E402
from tests.reference.record import exact, tiny_reference  # noqa: E402
from tests.tiny_folder import EMBEDDED  # noqa: E402
from tests.tiny_models import CONFIGS, build  # noqa: E402
from tests.vjp.models.cases import CASES, gradients, make_case, model_name  # noqa: E402

pytestmark = pytest.mark.reference


@pytest.mark.parametrize("case", CASES)
def test_every_input_and_every_parameter(case):
    """Inputs by the project's rule. Parameters one by one: float32 within three times torch's own L2 error, small tensors being many; float64 exact."""
    name = model_name(case)
    reference, shapes = tiny_reference(name, CONFIGS[name])
    model, inputs = build(name, CONFIGS[name], shapes), make_case(case)
    truth, of_parameters = torch_gradients(case, exact(reference), inputs)
    plain, plain_of_parameters = torch_gradients(case, reference, inputs)
    largest = max(map(np.linalg.norm, of_parameters.values()))
    with ops.using(profile="exact"):
        for dtype in ("float32", "float64"):
            with vjp.parameter_gradients() as collected:
                ours = gradients(case, model.astype(dtype), inputs)
            collected = {path.partition(".")[2]: g for path, g in collected.items()}
            known = {path if path in of_parameters else path.removeprefix("text_model."): path for path in collected}
            assert known.keys() == of_parameters.keys()
            for key in truth:
                if dtype == "float64":
                    assert_close_f64(ours[key], truth[key], name=f"{case}: d{key}")
                else:
                    assert_faithful(ours[key], truth[key], plain[key], name=f"{case}: d{key}", factor=allowed(truth[key].size))
            for theirs, path in known.items():
                error, of_torch = (np.linalg.norm(g - of_parameters[theirs]) for g in (collected[path], plain_of_parameters[theirs]))
                if dtype == "float64":  # some are 0, as that of a key's bias, which moves all scores of a query alike
                    assert error <= 1e-10 * largest, f"{case}: {path}"
                else:
                    assert error <= 3 * of_torch + 1e-7 * largest, f"{case}: {path}"


@pytest.mark.parametrize("vectors", [1, 2])
def test_diffusers_reads_a_learned_word(vectors, tmp_path):
    """The same vectors of the prompt: one token more in its vocabulary for each vector."""
    diffusers = pytest.importorskip("diffusers")
    pipe = StableDiffusionPipeline.from_pretrained("tiny")
    width = pipe.text_encoder.config.hidden_size
    e = np.random.RandomState(0).standard_normal((vectors, width)).astype("float32") * pipe.text_encoder.token_embedding.std()
    save_embedding(tmp_path / "learned_embeds.safetensors", "<new>", e)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(EMBEDDED, safety_checker=None, requires_safety_checker=False)
    theirs.text_encoder.float()
    theirs.load_textual_inversion(tmp_path, weight_name="learned_embeds.safetensors")
    prompt = "a cat on a <new> background"
    with torch.no_grad():
        expected, _ = theirs.encode_prompt(prompt, "cpu", 1, False)
    ours = encode_with(pipe, prompt, "<new>", e, init="green")
    assert np.linalg.norm(ours - expected.numpy()) <= 1e-5 * np.linalg.norm(ours)
