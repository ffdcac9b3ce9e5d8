"""torch's side of `tools/gpu_report.py`, on torch's CPU in place of its CUDA: it runs, and has the weights and the results of ours."""

import sys
import types
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="the `reference` extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the `reference` extra is not installed")

from minisd.benchmark.calls import FORMS  # noqa: E402
from minisd.benchmark.gpu import Gpu  # noqa: E402
from minisd.checkpoint import component_shapes  # noqa: E402
from tests.tools.test_gpu_report_kernels import Record  # noqa: E402
from tests.tools.test_gpu_report_models import baselines, models, toy  # noqa: E402, F401  puts the tools on the path

from gpu_report_parts.record import Skip  # noqa: E402  isort: skip

pytestmark = pytest.mark.reference


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
def cuda(monkeypatch):
    """torch's CUDA is its CPU."""
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


def test_torch_without_a_gpu_is_a_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Skip, match="sees no GPU"):
        baselines.ops(Record())


def test_torchs_ops(cuda, monkeypatch):
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


@pytest.mark.filterwarnings("ignore")
def test_diffusers_networks_have_the_same_weights(cuda, toy):  # noqa: F811
    """And so the same results as ours: the two sides of the comparison compute one thing."""
    record = Record(quick=False)
    baselines.eager(record)
    assert record.result["unet"]["wall_ms"] > 0 and record.result["vae"]["times"] == 20 and record.result["relative_l2_to_float32"] < 1e-2
    torch_model = baselines.network(torch, diffusers, "unet", "float32")
    given = models.inputs()
    with torch.inference_mode():
        theirs = torch_model(torch.from_numpy(given["sample"]).float(), 500, torch.from_numpy(given["context"]).float(), return_dict=False)[0].numpy()
    ours = models.build("unet", Gpu()).astype("float32")(given["sample"].astype("float32"), 500, given["context"].astype("float32"))
    assert models.difference(ours, theirs) < 1e-5


def test_the_names_of_the_full_size_are_diffusers_names():
    for component, cls in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
        with torch.device("meta"):
            model = cls(**models.CONFIGS[component])
        assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == component_shapes(models.config_of(component))


def test_without_diffusers(cuda, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(Skip, match="diffusers is not installed"):
        baselines.eager(Record())
