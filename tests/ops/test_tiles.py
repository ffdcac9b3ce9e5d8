"""How a product is cut: the constants of the kernels, the plan for Stable Diffusion's shapes, and that no cut loses a slice."""

import re
from pathlib import Path

import pytest

from minisd.ops.cuda.device import MAX_SHARED
from minisd.ops.cuda.kernel import source
from minisd.ops.cuda.tiles import BK, LARGE, NOTHING, PAD, SKIP, SMALL, STAGES, TILES, WIDE, convolutions, parts_of, plan, predicted, predicted_library, products

PAGES = Path(__file__).parents[2] / "docs" / "kernels"


def test_the_constants_are_those_of_the_kernel():
    assert f"BK = {BK}, STAGES = {STAGES}, PAD = {PAD}" in re.sub(r" BM = BM_, BN = BN_,", "", source("gemm/4_mma.cu"))


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_tiles_fit_into_every_gpu(tile):
    assert max(tile.shared_bytes(by_k=True), tile.shared_bytes(by_k=False)) <= MAX_SHARED
    assert tile.threads in (128, 256) and tile.WM % 16 == tile.WN % 8 == 0
    assert tile.BM * (tile.BN // 2 + PAD) * 2 <= tile.shared_bytes(by_k=False), "the results of GEGLU lie where the slices were"


@pytest.mark.parametrize("side, C, parts", [(64, 320, 1), (32, 640, 2), (16, 1280, 4), (8, 1280, 16)])
def test_every_level_of_the_unet_is_128_blocks_on_an_h100(side, C, parts):
    M = 2 * side * side
    assert plan(M, C, 9 * C // BK, 132) == (WIDE, parts) and WIDE.count(M, C) * parts == 128


def test_the_pages_show_the_plans():
    for page, table in (("conv2d.md", convolutions(132)), ("conv2d.md", convolutions(108)), ("gemm.md", products(132))):
        assert table in (PAGES / page).read_text(encoding="utf-8"), f"docs/kernels/{page} should have the table\n{table}"


def test_the_library_has_no_idle_processors_and_pays_for_a_pass():
    bare = predicted_library(8192, 320, 320, 132, NOTHING)
    assert predicted_library(8192, 320, 640, 132, NOTHING) - bare == pytest.approx(0.69 * 10 * 128 / 132)
    assert predicted_library(8192, 320, 320, 132, SKIP) - bare == pytest.approx(5 + 6 * 128 / 132)


def test_tiles_of_products_that_are_not_cut():
    assert plan(8192, 768, 24, 132, most_parts=1) == (LARGE, 1)
    assert plan(128, 1280, 40, 132, most_parts=1) == (SMALL, 1), "8 blocks of the large tile would leave most processors idle"
    assert plan(8192, 2560, 10, 132, most_parts=1) == (WIDE, 1)


@pytest.mark.parametrize("slices", [1, 2, 9, 10, 17, 360])
def test_parts_share_all_slices_and_none_is_empty(slices):
    for wanted in range(1, slices + 1):
        each, parts = parts_of(slices, wanted)
        assert parts <= wanted and (parts - 1) * each < slices <= parts * each


@pytest.mark.parametrize("processors", [1, 16, 46, 108, 132, 170])
def test_the_plan_is_the_best_of_all(processors):
    for M, N, slices in ((128, 1280, 360), (512, 1280, 40), (60, 80, 30), (8192, 320, 90), (1, 8, 1)):
        tile, parts = plan(M, N, slices, processors)
        assert parts <= slices
        best = predicted(tile, parts, M, N, slices, processors)
        assert all(best <= predicted(t, p, M, N, slices, processors) for t in TILES for p in (1, 2, 3, 4, 8, 16) if p <= slices)


def test_one_processor_never_cuts():
    """More blocks than processors gain nothing by more blocks."""
    assert all(plan(M, 640, 180, 1)[1] == 1 for M in (64, 128, 2048))
