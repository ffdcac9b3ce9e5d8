"""What is read off a kernel's text: its headers in place, its header block, its signature."""

import re
from pathlib import Path

import numpy as np
import pytest

from minisd.errors import ContractError
from minisd.ops import cuda  # noqa: F401  declares the kernels
from minisd.ops.cuda.kernel import FOLDER, HEADER_FIELDS, KERNELS, Kernel, for_hopper, header, instantiate, source

FILES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.glob("*/*.cu"))
every_file = pytest.mark.parametrize("file", FILES)


@every_file
def test_every_file_has_the_header_block(file):
    fields = header(file)
    assert tuple(fields) == HEADER_FIELDS
    assert all(len(text) > 3 for text in fields.values())
    lowest = file.partition("/")[2].startswith("1_")
    assert lowest == (fields["Differs"] == "the lowest rung.") and (lowest or "rung" in fields["Differs"])


@every_file
def test_files_are_numbered_rungs(file):
    op, _, name = file.partition("/")
    assert re.fullmatch(r"[1-9]_[a-z0-9_]+\.cu", name)
    numbers = sorted(f.partition("/")[2][0] for f in FILES if f.startswith(f"{op}/"))
    assert numbers == [str(i + 1) for i in range(len(numbers))]


@every_file
def test_every_kernel_of_a_file_is_declared_by_a_launcher(file):
    defined = re.findall(r"__global__ void(?: __launch_bounds__\(.*\))?\s+(\w+)\(", (FOLDER / file).read_text(encoding="utf-8"))
    assert defined and sorted(defined) == sorted(k.name for k in KERNELS if k.file == file)


DOUBLES = {"timestep/1_table.cu": "its phases are formed in double on purpose"}


@pytest.mark.parametrize("file", [*FILES, *sorted(path.name for path in FOLDER.glob("*.cuh"))])
def test_no_double_slips_in(file):
    """0.5 without an f makes the whole expression double: 64 times slower on most GPUs."""
    if file in DOUBLES:
        return
    code = re.sub(r"//.*|asm.*?;", "", (FOLDER / file).read_text(encoding="utf-8"))
    assert not re.findall(r"\b\d+\.\d*(?:e[+-]?\d+)?(?![\df.e])|\bdouble\b", code)


@every_file
def test_lines_are_not_long(file):
    assert max(map(len, (FOLDER / file).read_text(encoding="utf-8").splitlines())) <= 150


@pytest.mark.parametrize("op", ["attention", "conv2d", "gemm", "group_norm"])
def test_the_page_of_a_ladder_lists_its_kernels(op):
    """The tables are written by tools/kernel_report.py; a kernel that is missing there was added without it."""
    page = (Path(__file__).parents[2] / "docs" / "kernels" / f"{op}.md").read_text(encoding="utf-8")
    assert [i.expression for k in KERNELS if k.file.startswith(f"{op}/") for i in k.all() if f"`{i.expression}`" not in page] == []


def test_no_two_instances_are_the_same():
    instances = [i for k in KERNELS for i in k.all()]
    assert len(set(instances)) == len(instances)


TEXT = """
template <typename T, int D>
__global__ void __launch_bounds__((D / 8) * 32, 2) toy(const T* __restrict__ x, const float* __restrict__ OPTIONAL b, half* y, int n,
                                          float eps) {}
"""


@pytest.fixture
def toy(tmp_path):
    path = tmp_path / "toy.cu"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def test_the_signature_is_read_off_the_text(toy):
    instance = instantiate(toy, "toy", ("half", 40))
    assert instance.expression == "toy<half, 40>"
    assert [(p.name, p.dtype.name, p.pointer, p.const, p.optional) for p in instance.parameters] == [
        ("x", "float16", True, True, False), ("b", "float32", True, True, True), ("y", "float16", True, False, False),
        ("n", "int32", False, False, False), ("eps", "float32", False, False, False),
    ]  # fmt: skip
    assert instantiate(toy, "toy", ("float", 8)).parameters[0].dtype == np.float32
    assert instantiate(toy, "toy", ("float", True)).expression == "toy<float, true>"


def test_a_tensor_map_is_a_parameter_of_its_own_kind(tmp_path):
    path = tmp_path / "boxes.cu"
    path.write_text("__global__ void __launch_bounds__(384, 1)\nboxes(const __grid_constant__ TensorMap x, half* y) {}", encoding="utf-8")
    x, y = instantiate(str(path), "boxes", ()).parameters
    assert (x.name, x.dtype.name, x.pointer, x.const, x.tensor_map) == ("x", "float16", False, True, True) and not y.tensor_map


@pytest.mark.parametrize("size, template, cluster", [("2", (), 2), ("CLUSTER", (4,), 4)])
def test_clusters_are_read_off_the_text(tmp_path, size, template, cluster):
    path = tmp_path / "toy.cu"
    text = f"__global__ void __launch_bounds__(32) __cluster_dims__({size}, 1, 1)\ntoy(int n) {{}}"
    path.write_text("template <int CLUSTER>\n" * bool(template) + text, encoding="utf-8")
    assert instantiate(str(path), "toy", template).cluster == cluster


def test_files_for_hopper_are_known_by_what_they_include():
    assert for_hopper("gemm/6_wgmma.cu") and not for_hopper("gemm/4_mma.cu")


def test_a_kernel_that_is_not_there(toy):
    with pytest.raises(ContractError, match="declares no kernel flash"):
        instantiate(toy, "flash", ())


def test_a_parameter_that_cannot_be_read(tmp_path):
    path = tmp_path / "odd.cu"
    path.write_text("__global__ void odd(size_t n) {}", encoding="utf-8")
    with pytest.raises(ContractError, match="`size_t n` cannot be read"):
        instantiate(str(path), "odd", ())


def test_only_declared_instances_are_given_out(toy):
    kernel = Kernel(toy, "toy", (("half", 40),))
    KERNELS.remove(kernel)
    assert kernel("half", 40) == kernel.all()[0]
    with pytest.raises(ContractError, match=r"no instance \('half', 41\)"):
        kernel("half", 41)


def test_headers_are_put_in_place_once():
    text = source("group_norm/2_shuffles.cu")
    assert text.count("struct Moments {") == 1 and text.count("__device__ __forceinline__ float warp_sum") == 1
    assert not re.search(r'^#include "', text, re.MULTILINE) and "#include <cuda_fp16.h>" in text


def test_errors_will_name_the_line_of_the_file():
    lines = source("group_norm/2_shuffles.cu").splitlines()
    at = next(i for i, line in enumerate(lines) if "group_norm_shuffles(" in line)
    marker = max(i for i, line in enumerate(lines[:at]) if line.startswith("#line"))
    number, name = re.fullmatch(r'#line (\d+) "(.*)"', lines[marker]).groups()
    original = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    assert original[int(number) - 1 + at - marker - 1] == lines[at]
