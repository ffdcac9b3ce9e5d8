"""Where the compiler is looked for, and what is said when it is not there. What it compiles: test_compile.py."""

import sys

import pytest

from minisd.errors import ResourceError
from minisd.ops.cuda import nvrtc


@pytest.fixture
def nowhere(monkeypatch):
    """A machine without CUDA."""
    monkeypatch.setattr(nvrtc, "roots", lambda: [])
    for f in (nvrtc.include_folder, nvrtc.library, nvrtc.version):
        f.cache_clear()
    yield
    for f in (nvrtc.include_folder, nvrtc.library, nvrtc.version):
        f.cache_clear()


@pytest.mark.parametrize("ask, what", [(nvrtc.library, "NVRTC is not installed"), (nvrtc.include_folder, "headers are not installed")])
def test_without_cuda_the_error_says_what_to_install(nowhere, ask, what):
    with pytest.raises(ResourceError, match=what) as caught:
        ask()
    assert "minisd[kernels]" in caught.value.fix and "CUDA_PATH" in caught.value.fix


def test_wheels_come_before_the_toolkit(monkeypatch, tmp_path):
    (tmp_path / "site/nvidia/cu13/include").mkdir(parents=True)
    (tmp_path / "site/nvidia/cu13/include/cuda_fp16.h").touch()
    (tmp_path / "toolkit/include").mkdir(parents=True)
    (tmp_path / "toolkit/include/cuda_fp16.h").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "toolkit"))
    assert nvrtc.find("include/cuda_fp16.h") == tmp_path / "site/nvidia/cu13/include/cuda_fp16.h"
    monkeypatch.setattr(sys, "path", [])
    assert nvrtc.find("include/cuda_fp16.h") == tmp_path / "toolkit/include/cuda_fp16.h"
    assert nvrtc.find("include/no_such_file.h") is None
