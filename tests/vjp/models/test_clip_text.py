"""CLIP's text transformer, backwards, against torch's recorded gradients of the embeddings."""

import numpy as np
import pytest

from minisd import vjp
from tests.goldens import golden
from tests.tiny_models import CONFIGS, make_inputs
from tests.vjp.models import golden as recorded

CLIPS = [name for name in CONFIGS if name.startswith("clip")]


@pytest.mark.parametrize("case", CLIPS)
def test_gradients_are_torchs(case):
    recorded.check(case)


@pytest.mark.parametrize("name", CLIPS)
def test_the_value_is_that_of_the_forward_pass_and_causality_holds_backwards(name):
    model, ids = golden(name).model("float32"), make_inputs(name)["input_ids"]
    e, _ = vjp.embeddings(model, ids)
    context, pullback = vjp.encode_embeddings(model, e)
    assert np.array_equal(e, model.embeddings(ids)) and np.array_equal(context, model(ids))
    dcontext = np.zeros_like(context)
    dcontext[:, 4] = 1.0
    de = pullback(dcontext)
    assert de[:, :5].any() and not de[:, 5:].any(), "token 4 depends on itself and those before it"


@pytest.mark.parametrize("name", CLIPS)
def test_every_parameter_gets_a_gradient_of_its_shape(name):
    model, ids = golden(name).model("float32"), make_inputs(name)["input_ids"]
    e, pull_tables = vjp.embeddings(model, ids)
    context, pullback = vjp.encode_embeddings(model, e)
    with vjp.parameter_gradients() as gradients:
        pull_tables(pullback(context))
    assert {path: g.shape for path, g in gradients.items()} == {f"text_encoder.{path}": w.shape for path, w in model.params.items()}
