"""Whether there is a GPU that computes: every way to miss it says what, why, and what to do. With a stand-in for CuPy."""

import importlib
import importlib.metadata
import logging
import sys

import numpy as np
import pytest

from minisd import gpu
from minisd.errors import ResourceError, UsageError
from tests.cudasim.cupy_stand_in import OutOfMemoryError, reference_gpu, stand_in


@pytest.fixture(autouse=True)
def one_wheel(monkeypatch):
    """Whatever is installed here: the metadata knows one CuPy, the environment hides nothing."""
    monkeypatch.setattr(gpu, "installed", lambda: ["cupy-cuda13x 14.2.0"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize("said, device", [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1"), ("auto", "cuda:0")])
def test_a_word_becomes_a_device(said, device):
    with reference_gpu(count=2):
        assert gpu.choose(said) == device


@pytest.mark.parametrize("word", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA", "mps", "", None, 0])
def test_other_words_are_refused(word):
    with reference_gpu(), pytest.raises(UsageError, match="there is no device") as caught:
        gpu.choose(word)
    assert "cuda:1" in caught.value.fix


def test_a_gpu_beyond_the_last_one():
    with reference_gpu(count=2), pytest.raises(UsageError, match="there is no GPU cuda:2") as caught:
        gpu.choose("cuda:2")
    assert caught.value.why == "visible are cuda:0 … cuda:1"


def refusal(**facts) -> ResourceError:
    """What asking for a GPU says on a machine of these facts."""
    with stand_in(**facts), pytest.raises(ResourceError) as caught:
        gpu.choose("cuda")
    error = caught.value
    assert error.what and error.why and error.fix, "what, why and fix"
    return error


def test_no_driver():
    error = refusal(status=35, driver=0)
    assert error.what == "there is no NVIDIA driver" and "install the driver" in error.fix


def test_a_driver_that_is_older_than_the_wheel():
    error = refusal(status=35, driver=12040, runtime=13020)
    assert error.what == "the driver is too old for cupy-cuda13x" and error.why == "it knows CUDA up to 12.4, cupy-cuda13x needs 13.0"
    assert error.fix == 'pip uninstall -y cupy-cuda13x, then pip install "minisd[cuda12]"'
    assert refusal(status=35, driver=11040, runtime=13000).fix == "update the driver", "no wheel of ours is old enough"
    assert refusal(status=35, driver=12020, runtime=12090).fix == "update the driver", "it has cuda12 already"


def test_no_gpu_is_visible(monkeypatch):
    assert "nvidia-smi -L" in refusal(status=100).fix
    assert "nvidia-smi -L" in refusal(count=0).fix
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    error = refusal(status=100)
    assert error.why == "CUDA_VISIBLE_DEVICES is ''" and "unset CUDA_VISIBLE_DEVICES" in error.fix


def test_another_error_of_cuda_is_handed_on():
    error = refusal(status=3)
    assert error.what == "CUDA cannot be started" and "cudaError 3" in error.why


def test_a_gpu_that_is_too_old():
    error = refusal(capability="75", name="Tesla T4")
    assert error.what == "Tesla T4 has compute capability 7.5" and "8.0" in error.why and "cpu" in error.fix


def test_cupy_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # so that importing it raises ModuleNotFoundError
    monkeypatch.setattr(gpu, "installed", lambda: [])
    with pytest.raises(ResourceError, match="CuPy is not installed") as caught:
        gpu.choose("cuda")
    assert "minisd[cuda13]" in caught.value.fix and "minisd[cuda12]" in caught.value.fix


def test_cupy_that_cannot_be_imported(monkeypatch):
    def broken(name):
        raise ImportError("libcudart.so.13: cannot open shared object file\nand a page of advice")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ResourceError, match="CuPy cannot be imported") as caught:
        gpu.load_cupy()
    assert caught.value.why == "libcudart.so.13: cannot open shared object file" and "uninstall -y cupy-cuda13x" in caught.value.fix


def test_both_wheels_are_refused_before_either_is_imported(monkeypatch):
    monkeypatch.undo()

    def version(name):
        if name in ("cupy-cuda12x", "cupy-cuda13x"):
            return "14.2.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail("imported"))
    with pytest.raises(ResourceError, match="CuPy is installed 2 times: cupy-cuda13x 14.2.0, cupy-cuda12x 14.2.0") as caught:
        gpu.choose("cuda")
    assert caught.value.fix.startswith("pip uninstall -y cupy-cuda13x cupy-cuda12x")


@pytest.mark.parametrize("runtime, extra", [(13000, "minisd[cuda13]"), (12090, "minisd[cuda12]")])
def test_no_compiler(monkeypatch, runtime, extra):
    def missing():
        raise ResourceError("CUDA's headers are not installed", "no cuda_fp16.h", "")

    monkeypatch.setattr(gpu.nvrtc, "include_folder", missing)
    error = refusal(runtime=runtime)
    assert error.what == "CUDA's headers are not installed" and extra in error.fix and "[ctk]" in error.fix


def test_no_cublas():
    error = refusal(cublas=False)
    assert error.what == "cuBLAS is not installed" and "minisd[cuda13]" in error.fix
    assert error.why == 'Failure finding "libcublasLt.so.13": No such file: libcublasLt.so.13', "its first line"


def test_a_compiler_that_is_newer_than_the_driver(monkeypatch):
    monkeypatch.setattr(gpu.nvrtc, "include_folder", lambda: None)
    monkeypatch.setattr(gpu.nvrtc, "version", lambda: "13.5")
    error = refusal(driver=12040, runtime=12000)
    assert error.what == "the compiler is newer than the driver" and "minisd[cuda12]" in error.fix
    with stand_in(driver=13000):
        assert gpu.choose("cuda") == "cuda:0", "of one major release, any compiler will do"


def test_auto_takes_the_cpu_and_says_why_in_one_line(caplog):
    with stand_in(status=35, driver=0), caplog.at_level(logging.WARNING, logger="minisd"):
        assert gpu.choose("auto") == "cpu"
    (record,) = caplog.records
    assert record.getMessage() == "on the CPU, because there is no NVIDIA driver; for the GPU: install the driver; `nvidia-smi` then shows the GPU"


def test_what_a_recipe_says_of_it():
    with reference_gpu(count=2, name="NVIDIA H100", driver=13010, runtime=13000, pooled=2 << 30):
        facts = gpu.describe("cuda:1")
    assert facts["name"] == "NVIDIA H100" and facts["device"] == "cuda:1" and facts["compute capability"] == "9.0"
    assert (facts["driver"], facts["runtime"], facts["cupy"]) == ("CUDA 13.1", "CUDA 13.0", "cupy-cuda13x 14.2.0")
    assert facts["memory free"] == "19.3 of 25.8 GB", "what the pool keeps can be had again"


def test_weights_that_do_not_fit_are_refused():
    with reference_gpu(free=3 << 30, pooled=1 << 30):
        gpu.check_room("cuda:0", 4 << 30, "the unet")
        with pytest.raises(ResourceError, match="the unet does not fit on cuda:0") as caught:
            gpu.check_room("cuda:0", (4 << 30) + 1, "the unet")
    assert "4.29 GB for the weights, of 25.77 GB are 4.29 free" in caught.value.why and "float16" in caught.value.fix
    gpu.check_room("cpu", 1 << 60, "anything")


def test_running_out_of_memory_says_what_helps():
    with reference_gpu(free=1 << 30, pooled=0), pytest.raises(ResourceError, match="out of memory on cuda:0") as caught:
        with gpu.running_on("cuda:0"):
            raise OutOfMemoryError("Out of memory allocating 123,456 bytes (allocated so far: 789 bytes).")
    assert "allocating 123,456 bytes" in caught.value.why and "1.07 free" in caught.value.why
    assert "--two-passes" in caught.value.fix and isinstance(caught.value, MemoryError)


def test_running_makes_it_the_current_device():
    with reference_gpu(count=3) as cupy:
        with gpu.running_on("cuda:2"):
            assert cupy.cuda.Device().id == 2
        with gpu.running_on("cpu"):
            assert cupy.cuda.Device().id == 0


def test_the_cpu_asks_for_no_cupy(monkeypatch):
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail("imported"))
    assert gpu.choose("cpu") == "cpu" and gpu.free_bytes("cpu") is None
    with gpu.running_on("cpu"):
        assert np.zeros(1) == 0
