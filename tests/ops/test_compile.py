"""The cache of cubins and the resource report; and, where NVRTC is installed, every kernel for every architecture."""

import json

import pytest

from minisd.errors import ResourceError
from minisd.ops import cuda  # noqa: F401  declares the kernels
from minisd.ops.cuda import compile as module
from minisd.ops.cuda import nvrtc
from minisd.ops.cuda.compile import ARCHITECTURES, OPTIONS, Resources, build, cache_folder, cache_key, compile_instances, resource_report, target
from minisd.ops.cuda.hopper import GEMM
from minisd.ops.cuda.kernel import KERNELS
from minisd.ops.cuda.norm import GROUP_NAIVE
from tests.cudasim.counts import COUNTED

INSTANCE = GROUP_NAIVE("half")
LOG = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4fastv' for 'sm_80'
ptxas info    : Function properties for _Z4fastv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 2048 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_Z4slowv' for 'sm_80'
ptxas info    : Function properties for _Z4slowv
    64 bytes stack frame, 24 bytes spill stores, 40 bytes spill loads
ptxas info    : Used 255 registers, 380 bytes cmem[0]
"""


def test_the_report_of_ptxas():
    assert resource_report(LOG) == {"_Z4fastv": Resources(96, 2048, 0, 0), "_Z4slowv": Resources(255, 0, 64, 64)}
    assert resource_report("") == {}


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A compiler that counts its calls; the cache in a fresh folder."""
    calls = []

    def compile_program(text, name, expressions, options):
        calls.append(options[0])
        return b"\x7fELF", {e: "_Z4fastv" for e in expressions}, LOG

    monkeypatch.setenv("MINISD_KERNEL_CACHE", str(tmp_path))
    monkeypatch.setattr(nvrtc, "compile_program", compile_program)
    monkeypatch.setattr(nvrtc, "version", lambda: "13.0")
    monkeypatch.setattr(nvrtc, "include_folder", lambda: tmp_path)
    monkeypatch.setattr(module, "_headers_hash", lambda: "headers")
    return calls


def test_a_kernel_is_compiled_once(compiler, tmp_path):
    first, second = build(INSTANCE, "sm_90"), build(INSTANCE, "sm_90")
    assert first == second and compiler == ["-arch=sm_90"]
    assert first.path.parent == tmp_path and first.path.read_bytes() == b"\x7fELF"
    assert (first.name, first.resources) == ("_Z4fastv", Resources(96, 2048, 0, 0))
    build(INSTANCE, "sm_80")
    assert compiler == ["-arch=sm_90", "-arch=sm_80"]


def test_hoppers_own_instructions_are_compiled_for_hopper_alone(compiler):
    assert target(GEMM.file, "sm_90") == "sm_90a" and target(INSTANCE.file, "sm_90") == "sm_90"
    assert {target(GEMM.file, arch) for arch in ARCHITECTURES if arch != "sm_90"} == {None}
    build(GEMM(160, 2), "sm_90")
    assert compiler == ["-arch=sm_90a"]
    with pytest.raises(ResourceError, match=r"gemm_wgmma<160, 2> cannot run on sm_100"):
        build(GEMM(160, 2), "sm_100")


def test_half_a_cache_entry_is_none(compiler):
    cubin = build(INSTANCE, "sm_90")
    cubin.path.unlink()
    assert build(INSTANCE, "sm_90") == cubin and len(compiler) == 2


def test_the_report_is_kept_beside_the_cubin(compiler):
    report = json.loads(build(INSTANCE, "sm_90").path.with_suffix(".json").read_text())
    assert report["name"] == "_Z4fastv" and report["resources"]["registers"] == 96


CHANGES = {
    "the text or one of its headers": lambda m: m.setattr(module, "source", lambda file: "another text"),
    "the compiler": lambda m: m.setattr(nvrtc, "version", lambda: "12.9"),
    "CUDA's headers": lambda m: m.setattr(module, "_headers_hash", lambda: "others"),
    "an option": lambda m: m.setattr(module, "OPTIONS", (*OPTIONS, "-use_fast_math")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_everything_that_matters_is_in_the_key(compiler, monkeypatch, change):
    before = cache_key(INSTANCE, "sm_90")
    assert cache_key(INSTANCE, "sm_90") == before != cache_key(INSTANCE, "sm_80")
    assert cache_key(GROUP_NAIVE("float"), "sm_90") != before
    CHANGES[change](monkeypatch)
    assert cache_key(INSTANCE, "sm_90") != before


def test_the_cache_lies_in_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("MINISD_KERNEL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "minisd" / "kernels"
    monkeypatch.setenv("MINISD_KERNEL_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


# ----- with NVRTC ----------------------------------------------------------------------------------------------------------------

needs_nvrtc = pytest.mark.skipif(
    not nvrtc.find("lib/libnvrtc.so.1[23]", "lib64/libnvrtc.so.1[23]"), reason="NVRTC is not installed: pip install -e '.[kernels]'"
)
FILES = sorted({k.file for k in KERNELS})
STACK = {"timestep/1_table.cu": "sin and cos of large doubles reduce their argument in an array"}


@pytest.mark.kernels
@needs_nvrtc
@pytest.mark.parametrize("file, arch", [(file, target(file, arch)) for file in FILES for arch in ARCHITECTURES if target(file, arch)])
def test_every_kernel_compiles_for_every_architecture_without_spills(file, arch):
    instances = [i for k in KERNELS if k.file == file for i in k.all()]
    cubin, names, log = compile_instances(file, instances, arch)
    assert cubin[:4] == b"\x7fELF"
    report = resource_report(log)
    assert set(names) == {i.expression for i in instances} and set(names.values()) == set(report)
    for expression, name in names.items():
        used = report[name]
        assert 0 < used.registers <= 255 and used.shared_bytes <= 48 << 10, (expression, used)
        assert used.spill_bytes == 0 and (used.stack_bytes == 0 or file in STACK), (expression, used)
    assert "warning" not in log.replace("ptxas info", "") and "Performance Loss" not in log, log
    COUNTED["compiled"] += len(names)


@pytest.mark.kernels
@needs_nvrtc
def test_a_real_cubin_goes_through_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MINISD_KERNEL_CACHE", str(tmp_path))
    cubin = build(INSTANCE, "sm_90")
    assert cubin.path.read_bytes()[:4] == b"\x7fELF" and cubin.name.startswith("_Z") and cubin.resources.registers > 0
    assert build(INSTANCE, "sm_90") == cubin
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.kernels
@needs_nvrtc
def test_an_error_shows_the_compilers_words(monkeypatch):
    monkeypatch.setattr(module, "source", lambda file: '#line 7 "toy.cu"\n__global__ void toy(int n) { return m; }')
    with pytest.raises(ResourceError, match="does not compile") as caught:
        compile_instances("toy.cu", [], "sm_90")
    assert 'toy.cu(7): error: identifier "m" is undefined' in caught.value.why
