"""The network parts of `tools/gpu_report.py` at toy size, on a stand-in for CuPy; torch's side on a stand-in for its CUDA."""

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from gpu_report_parts import baselines, models
from gpu_report_parts.record import Skip

import minisd
from minisd.checkpoint import component_shapes
from tests.benchmark.cupy_clock import Clock
from tests.tools.test_gpu_report_kernels import Record

TOY = {
    "unet": dict(sample_size=8, cross_attention_dim=8, attention_head_dim=2, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
                 down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
    "vae": dict(block_out_channels=(8, 8), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                latent_channels=4, sample_size=16, norm_num_groups=4),
    "text_encoder": dict(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, hidden_act="quick_gelu"),
}  # fmt: skip
SMALL = {"sample": (2, 4, 8, 8), "context": (2, 7, 8), "latents": (1, 4, 8, 8)}


@pytest.fixture
def toy(monkeypatch):
    random = np.random.RandomState(0)
    monkeypatch.setattr(models, "CONFIGS", TOY)
    monkeypatch.setattr(baselines, "CONFIGS", TOY)
    given = {name: random.randn(*shape).astype("float16") for name, shape in SMALL.items()}
    for module in (models, baselines):
        monkeypatch.setattr(module, "inputs", lambda: given)
    monkeypatch.setitem(sys.modules, "cupy", Clock())


@pytest.mark.parametrize("component", models.CONFIGS)
def test_weights_are_drawn_as_torch_draws_them(component, toy):
    w, again = models.weights(component), models.weights(component)
    assert {name: a.shape for name, a in w.items()} == component_shapes(models.config_of(component))
    assert all(a.dtype == np.float16 and np.array_equal(a, again[name]) for name, a in w.items())
    norm = next(name for name in w if "norm" in name and name.endswith(".weight"))
    assert (w[norm] == 1).all() and (w[norm.replace(".weight", ".bias")] == 0).all()
    matrix = next(name for name, a in w.items() if a.ndim > 1 and "embedding" not in name)
    bound = np.prod(w[matrix].shape[1:]) ** -0.5
    assert 0.8 * bound < np.abs(w[matrix]).max() <= bound * 1.001


def test_a_unet_step(toy):
    record = Record(quick=False)
    models.unet(record)
    assert record.result["eager"]["times"] == 20 and record.result["relative_l2_to_float32"] < 1e-2
    if hasattr(minisd.models, "Once"):
        assert record.result["graph"]["relative_l2_to_eager"] < 1e-2 and not record.result["graph"]["recorded"]  # not a GPU
    else:
        assert "no CUDA graph" in record.result["graph"]["skipped"]


def test_a_decode(toy):
    record = Record()
    models.vae(record)
    assert record.result["decode"]["wall_ms"] > 0


def test_a_pipeline_without_devices_makes_no_picture(toy, monkeypatch):
    monkeypatch.delattr(minisd.StableDiffusionPipeline, "to", raising=False)
    with pytest.raises(Skip, match="runs on the CPU only"):
        models.image(Record())


# ----- torch ---------------------------------------------------------------------------------------------------------------------


def test_torch_that_is_not_there_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for part in (baselines.ops, baselines.eager, baselines.compiled):
        with pytest.raises(Skip, match="torch is not installed"):
            part(Record())


class Event:
    now = 0.0

    def __init__(self, enable_timing):
        pass

    def record(self):
        Event.now += 1.0
        self.at = Event.now

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return end.at - self.at


class Context:
    """Anything that is entered and left."""

    def __init__(self, *args):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def wait_stream(self, other):
        pass

    def replay(self):
        pass


@pytest.fixture
def torch(monkeypatch):
    """torch, whose CUDA is its CPU."""
    torch = pytest.importorskip("torch", reason="the `reference` extra is not installed")
    fakes = dict(
        Event=Event, Stream=Context, stream=Context, graph=Context, CUDAGraph=Context, current_stream=Context, synchronize=lambda: None,
        empty_cache=lambda: None, get_device_properties=lambda device: types.SimpleNamespace(L2_cache_size=1),
    )  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(baselines, "need_torch", lambda: torch)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    real = torch.nn.Module.to
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args, **kwargs: real(self, *(a for a in args if a != "cuda"), **kwargs))
    return torch


@pytest.mark.reference
def test_torch_without_a_gpu_is_a_reason(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Skip, match="sees no GPU"):
        baselines.ops(Record())


@pytest.mark.reference
def test_torchs_ops(torch, monkeypatch):
    from minisd.benchmark.calls import FORMS

    monkeypatch.setattr(baselines, "convolutions", lambda: {(1, 4, 3, 4, 3, 1): 2})
    small = {"attention": (1, 1, 3, 3, 8), "group_norm": (1, 2, 32, 32), "conv2d": (1, 4, 3, 4), "linear": (3, 4, 5)}
    small |= {"geglu": (3, 4), "layer_norm": (3, 4)}
    for op, numbers in small.items():
        monkeypatch.setitem(FORMS, op, replace(FORMS[op], presets={"small": numbers}))
    record = Record(quick=False)
    baselines.ops(record)
    assert record.result["conv2d 1,4,3,4,3,1"]["cudnn"]["ms"] > 0 and record.result["group_norm small"].keys() == {"channels_last", "channels_first"}
    assert record.result["linear small"]["cublas"]["how"].startswith("graph of") and record.result["geglu small"]["torch"]["ms"] > 0
    assert record.result["attention small"].keys() == {"flash_attention", "cudnn_attention", "efficient_attention"}


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")
def test_diffusers_networks_have_the_same_weights(torch, toy, monkeypatch):
    """And so the same results as ours: the two sides of the comparison compute one thing."""
    record = Record(quick=False)
    baselines.eager(record)
    assert record.result["unet"]["wall_ms"] > 0 and record.result["vae"]["times"] == 20 and record.result["relative_l2_to_float32"] < 1e-2
    torch_model = baselines.network(torch, __import__("diffusers"), "unet", "float32")
    given = models.inputs()
    with torch.inference_mode():
        theirs = torch_model(torch.from_numpy(given["sample"]).float(), 500, torch.from_numpy(given["context"]).float(), return_dict=False)[0].numpy()
    from minisd.benchmark.gpu import Gpu

    ours = models.build("unet", Gpu()).astype("float32")(given["sample"].astype("float32"), 500, given["context"].astype("float32"))
    assert models.difference(ours, theirs) < 1e-5


@pytest.mark.reference
def test_the_names_of_the_full_size_are_diffusers_names(torch):
    diffusers = pytest.importorskip("diffusers")
    for component, cls in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
        with torch.device("meta"):
            model = cls(**models.CONFIGS[component])
        assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == component_shapes(models.config_of(component))


@pytest.mark.reference
def test_without_diffusers(torch, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(Skip, match="diffusers is not installed"):
        baselines.eager(Record())
