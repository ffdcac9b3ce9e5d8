"""The UNet, backwards, against torch's recorded gradients of the latents and of the prompt's vectors."""

import numpy as np
import pytest

from minisd import vjp
from minisd.errors import ContractError
from minisd.params import record_reads
from tests.goldens import golden
from tests.tiny_models import CONFIGS, make_inputs
from tests.vjp.models import golden as recorded

UNETS = [name for name in CONFIGS if name.startswith("unet")]


@pytest.mark.parametrize("case", UNETS)
def test_gradients_are_torchs(case):
    recorded.check(case)


@pytest.mark.parametrize("name", UNETS)
def test_the_value_is_that_of_the_forward_pass(name):
    model, inputs = golden(name).model("float32"), make_inputs(name)
    noise, pullback = vjp.unet(model, **inputs)
    assert np.array_equal(noise, model(**inputs))
    dx, dcontext = pullback(noise)
    assert dx.dtype == dcontext.dtype == np.float32
    assert dx.shape == inputs["sample"].shape and dcontext.shape == inputs["encoder_hidden_states"].shape


@pytest.mark.parametrize("name", UNETS)
def test_every_parameter_gets_a_gradient_of_its_shape(name):
    model, inputs = golden(name).model("float32"), make_inputs(name)
    noise, pullback = vjp.unet(model, **inputs)
    with vjp.parameter_gradients() as gradients, record_reads():
        pullback(noise)
    assert {path: g.shape for path, g in gradients.items()} == {f"unet.{path}": w.shape for path, w in model.params.items()}


def test_the_timestep_is_checked_as_in_the_forward_pass():
    model, inputs = golden("unet_sd1").model("float32"), make_inputs("unet_sd1")
    with pytest.raises(ContractError, match="3 timesteps for 2 samples"):
        vjp.unet(model, inputs["sample"], np.arange(3), inputs["encoder_hidden_states"])
