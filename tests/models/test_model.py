"""What the three models share: dtype, size, their word for themselves."""

import numpy as np
import pytest

from minisd.backend import to_numpy
from minisd.errors import ContractError, NumericError, ResourceError, UsageError
from minisd.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from minisd.models.model import cast, check_dtype
from minisd.params import Params
from tests.cudasim.cupy_stand_in import reference_gpu
from tests.goldens import golden
from tests.numerics import relative_l2
from tests.tiny_folder import write_tiny_sd2
from tests.tiny_models import CONFIGS, make_weights


@pytest.mark.parametrize("name", CONFIGS)
def test_float64_has_the_same_weights_in_the_same_layout(name):
    model = golden(name).model("float32")
    wide = model.astype("float64")
    assert (model.dtype, wide.dtype) == (np.float32, np.float64) and wide.config == model.config
    tensors = dict(model.params.items())
    assert len(tensors) == len(golden(name).shapes)
    for key, w in wide.params.items():
        assert w.dtype == np.float64 and np.array_equal(w, tensors[key])
        assert w.ndim != 4 or w.transpose(2, 3, 1, 0).flags.c_contiguous, key


def test_astype_copies():
    model = golden("vae").model("float32")
    for dtype in ("float32", "float64"):
        assert not any(np.shares_memory(a, b) for (_, a), (_, b) in zip(model.astype(dtype).params.items(), model.params.items()))


def test_the_weights_are_those_of_the_reference():
    weights = make_weights(golden("unet_sd1").shapes)
    params = dict(golden("unet_sd1").model("float32").params.items())
    assert params.keys() == weights.keys() and all(np.array_equal(params[key], weights[key]) for key in weights)


def test_its_size():
    model = golden("vae").model("float32")
    count = sum(int(np.prod(shape)) for shape in golden("vae").shapes.values())
    assert model.num_parameters() == count
    assert repr(model) == f"AutoencoderKL({count:,} parameters, float32)"


def test_dtypes_the_cpu_computes_in():
    assert [check_dtype(d) for d in ("float32", np.float64, np.dtype("float32"))] == ["float32", "float64", "float32"]
    for dtype in ("float16", np.float16):
        with pytest.raises(UsageError, match="float16 cannot be computed on the CPU"):
            check_dtype(dtype)
    for dtype in ("bfloat16", "int32", "fp32"):
        with pytest.raises(UsageError, match="is not known"):
            check_dtype(dtype)
    assert check_dtype("float16", "cuda:0") == "float16"


# ----- on a GPU ------------------------------------------------------------------------------------------------------------

CLASSES = {cls.component: cls for cls in (UNet2DConditionModel, AutoencoderKL, CLIPTextModel)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_sd2(tmp_path_factory.mktemp("sd2"))


def sample(channels: int = 4):
    return np.random.RandomState(0).randn(1, channels, 4, 4).astype("float32")


@pytest.mark.parametrize("component", CLASSES)
def test_weights_go_to_the_device_as_they_are_read(folder, component):
    """Default float16 there; convolutions keep the layout that the kernels want; astype and to give the same."""
    host = CLASSES[component].from_pretrained(folder)
    with reference_gpu(count=2) as cupy:
        loaded = CLASSES[component].from_pretrained(folder, device="cuda:1")
        assert (loaded.device, loaded.dtype, loaded.host_dtype) == ("cuda:1", np.float16, np.float32)
        assert repr(loaded) == repr(host).replace("float32", "float16, cuda:1")
        moved = host.astype("float32")
        assert moved.to("cuda:1", "float16") is moved and host.device == "cpu"
        for (name, a), (_, b), (_, w) in zip(loaded.params.items(), moved.params.items(), host.params.items()):
            assert isinstance(a, cupy.ndarray) and np.array_equal(a.get(), b.get()) and np.array_equal(a.get(), w.astype("float16")), name
            assert all(x.ndim != 4 or x.transpose(2, 3, 1, 0).flags.c_contiguous for x in (a, b)), name
        assert moved.to("cuda:1") is moved and moved.to("cuda:0").device == "cuda:0" and moved.dtype == np.float16
        assert moved.to("cuda:1", "float32").dtype == np.float32 and moved.device == "cuda:1"
        back = moved.to("cpu")
    assert all(np.array_equal(w, v.astype("float16")) for (_, w), (_, v) in zip(back.params.items(), host.params.items()))
    assert all(w.ndim != 4 or w.transpose(2, 3, 1, 0).flags.c_contiguous for _, w in back.params.items())


def test_what_a_device_cannot_hold_or_compute_is_refused(folder):
    with reference_gpu(free=1 << 20):
        with pytest.raises(ResourceError, match="the unet does not fit on cuda:0"):
            UNet2DConditionModel.from_pretrained(folder, device="cuda")
        unet = UNet2DConditionModel.from_pretrained(folder)
        with pytest.raises(ResourceError, match="the unet does not fit on cuda:0"):
            unet.to("cuda")
        assert unet.device == "cpu"
        vae = AutoencoderKL.from_pretrained(folder, device="cuda", dtype="float16")
        with pytest.raises(UsageError, match="float16 cannot be computed on the CPU") as caught:
            vae.to("cpu")
        assert '.to("cpu", "float32")' in caught.value.fix
        with pytest.raises(UsageError, match="weights cannot be resident as float16 on cuda:0") as caught:
            AutoencoderKL.from_pretrained(folder, device="cuda", resident="float16")
        assert "dtype float16" in caught.value.fix


def test_a_weight_beyond_float16_is_named(folder):
    vae = AutoencoderKL.from_pretrained(folder)
    weights = dict(vae.params.items())
    weights["decoder.conv_in.bias"] = np.full_like(weights["decoder.conv_in.bias"], 7e4)
    vae.params = Params.from_state_dict(weights, "vae")
    with reference_gpu(), pytest.raises(NumericError, match="vae.decoder.conv_in.bias has values beyond float16") as caught:
        vae.to("cuda", "float16")
    assert caught.value.layer == "vae.decoder.conv_in" and vae.device == "cpu" and "float32" in caught.value.fix


def test_infinities_of_the_weights_stay_what_they_are():
    """NaN weights are studied with allow_nonfinite=True: a change of dtype does not refuse them."""
    assert np.isinf(cast(np.array([np.inf, 1.0], "float32"), "float16", "w")[0])
    assert cast(np.zeros((0, 3), "float32"), "float16", "w").dtype == np.float16


def test_the_result_has_owner_and_dtype_of_the_input(folder):
    z = sample()
    truth = AutoencoderKL.from_pretrained(folder).decode(z)
    with reference_gpu() as cupy:
        vae = AutoencoderKL.from_pretrained(folder, device="cuda")
        for x in (z, z.astype("float16"), cupy.asarray(z), cupy.asarray(z.astype("float16"))):
            y, encoded = vae.decode(x), vae.encode(vae.decode(x)).mode()
            assert type(y) is type(encoded) is type(x) and y.dtype == encoded.dtype == x.dtype
            assert relative_l2(to_numpy(y), truth) <= 4e-3  # of random weights, of which the quiet channels are rounded first
        drawn = vae.encode(vae.decode(cupy.asarray(z))).sample(3)
        assert isinstance(drawn, cupy.ndarray) and drawn.dtype == np.float32
        with pytest.raises(ContractError, match="z is float64, the weights are float16"):
            vae.decode(z.astype("float64"))


def test_owners_may_differ_between_the_inputs(folder):
    """The prompt can stay on the device while the latents come from the host."""
    context = np.random.RandomState(1).randn(1, 7, 22).astype("float32")
    with reference_gpu() as cupy:
        unet = UNet2DConditionModel.from_pretrained(folder, device="cuda")
        both = unet(sample(), 17, context)
        assert np.array_equal(unet(sample(), np.array([17.0]), cupy.asarray(context)), both)
        assert np.array_equal(unet(cupy.asarray(sample()), cupy.asarray(17), context).get(), both)


def test_ids_give_float32_on_the_host_and_the_models_dtype_on_the_device(folder):
    ids = [[0, 5, 7, 2]]
    with reference_gpu() as cupy:
        clip = CLIPTextModel.from_pretrained(folder, device="cuda")
        y, on_device = clip(ids), clip(cupy.asarray(np.array(ids)))
        assert y.dtype == np.float32 and on_device.dtype == np.float16 and np.array_equal(on_device.get(), y)
        assert np.array_equal(clip.encode_embeddings(clip.embeddings(ids)), y), "bit by bit, across the border"
        assert [h.dtype for h in clip.hidden_states(ids)] == [np.float32] * 4


def test_arrays_of_another_device_are_refused(folder):
    host = AutoencoderKL.from_pretrained(folder)
    with reference_gpu(count=2) as cupy:
        vae = AutoencoderKL.from_pretrained(folder, device="cuda:1")
        with pytest.raises(ContractError, match="z is on cuda:0, the model on cuda:1"):
            vae.decode(cupy.asarray(sample()))
        with pytest.raises(ContractError, match="z is on cuda:0, the model on cpu") as caught:
            host.decode(cupy.asarray(sample()))
        assert "to_device(z, 'cpu')" in caught.value.fix
