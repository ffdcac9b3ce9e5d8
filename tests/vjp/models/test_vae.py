"""The autoencoder, backwards, against torch's recorded gradients."""

import numpy as np
import pytest

from minisd import vjp
from minisd.errors import ContractError
from tests.goldens import golden
from tests.numerics import relative_l2
from tests.tiny_models import make_inputs
from tests.vjp.models import golden as recorded
from tests.vjp.models.cases import FILE, gradients, make_case


@pytest.mark.parametrize("case", ["vae_decode", "vae_encode", "vae_blue"])
def test_gradients_are_torchs(case):
    recorded.check(case)


def test_the_blue_loss_of_the_deep_dive():
    """Relative L2 distance to torch.autograd through the decoder: 1e-5 in float32, 1e-10 in float64, with the rungs that make pictures."""
    with np.load(FILE, allow_pickle=False) as file:
        plain, truth = file["vae_blue/z/torch"], file["vae_blue/z/truth"]
    model = golden("vae").model
    assert relative_l2(gradients("vae_blue", model("float32"), make_case("vae_blue"))["z"], plain) <= 1e-5
    assert relative_l2(gradients("vae_blue", model("float64"), make_case("vae_blue"))["z"], truth) <= 1e-10


@pytest.mark.parametrize("name, method", [("z", "decode"), ("x", "encode")])
def test_the_value_is_that_of_the_forward_pass(name, method):
    vae, x = golden("vae").model("float32"), make_inputs("vae")[name]
    y, pullback = getattr(vjp, method)(vae, x)
    assert np.array_equal(y, vae.decode(x) if method == "decode" else np.concatenate((vae.encode(x).mean, y[:, 4:]), axis=1))
    first = pullback(y)
    assert first.dtype == np.float32 and np.array_equal(first, pullback(y)), "a pullback can be called again"


def test_wrong_inputs_and_gradients_are_refused():
    vae, z = golden("vae").model("float32"), make_inputs("vae")["z"]
    with pytest.raises(ContractError, match="z is float64, the weights are float32"):
        vjp.decode(vae, z.astype("float64"))
    with pytest.raises(ContractError, match=r"x has the shape"):
        vjp.encode(vae, z)
    pixels, pullback = vjp.decode(vae, z)
    with pytest.raises(ContractError, match=r"the gradient is float32 \[2, 4, .*\], the value float32 \[2, 3, "):
        pullback(z)
    with pytest.raises(ContractError, match=r"the gradient is float64"):
        pullback(pixels.astype("float64"))
