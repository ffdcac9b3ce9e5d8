"""Tables and acceptance lines from a made-up report, and from none."""

import re

import pytest
from gpu_report_parts import acceptance, tables
from gpu_report_parts.predictions import PREDICTED
from tests.tools.sample_report import sample

from minisd import ops


def by_name(data) -> dict:
    return {line.name: line for line in acceptance.lines(data)}


def test_acceptance_of_the_sample():
    lines = by_name(sample())
    verdicts = {name: line.met for name, line in lines.items()}
    assert verdicts == {
        "PTX wrappers as in the simulator": True, "rungs right on the tests' cases": True, "UNet step, to diffusers eager": True,
        "UNet step, to torch.compile max-autotune": None, "UNet step on an H200": True, "group norm + SiLU beyond 60 MB": True,
        "3 × 3 convolutions of a step, to cuDNN": False, "attention 4096², heads of 40, to the best SDPA": False,
    }  # fmt: skip
    assert lines["UNet step, to diffusers eager"].measured == "2.00× (16 ms / 8 ms)"
    assert lines["UNet step, to torch.compile max-autotune"].measured == "torch_compile: torch is not installed"
    assert lines["group norm + SiLU beyond 60 MB"].measured == "75 %"
    assert lines["3 × 3 convolutions of a step, to cuDNN"].measured == "0.88× (0.7 ms / 0.8 ms)"
    assert lines["attention 4096², heads of 40, to the best SDPA"].measured == "0.80× (0.4 ms / 0.5 ms)"


def test_what_makes_a_line_unknown():
    data = sample()
    data["unet_convolutions"]["result"]["not reached"] = ["2,16,1280,1280,3,1"]
    del data["torch_ops"]["result"]["attention unet-64"]
    data["device"]["environment"] = data["unet"]["environment"] = {"gpu": "Imaginary A100"}
    lines = by_name(data)
    assert lines["3 × 3 convolutions of a step, to cuDNN"].met is None
    assert lines["attention 4096², heads of 40, to the best SDPA"].measured == "attention, torch_ops: the numbers are missing"
    assert lines["UNet step on an H200"].met is None and "8.00 ms on Imaginary A100" in lines["UNet step on an H200"].measured
    data = sample()
    data["probe"]["result"]["wrong"] = {"mma": "differs"}
    data["correctness"]["result"]["wrong"] = 2
    lines = by_name(data)
    assert lines["PTX wrappers as in the simulator"].met is False and lines["rungs right on the tests' cases"].met is False


def test_a_step_without_a_graph_is_the_launched_one():
    data = sample()
    data["unet"]["result"]["graph"] = {"skipped": "no"}
    assert acceptance.step_ms(data) == 20.0 and acceptance.step_ms({}) is None


def test_nothing_measured_is_said():
    assert all(line.met is None and "has not run" in line.measured for line in acceptance.lines({}))
    assert "not measured" in acceptance.text({})
    for name, make in tables.TABLES.items():
        text = make({})
        assert text.endswith("\n") and (name == "acceptance" or text.startswith("Not measured yet: `python tools/gpu_report.py")), name


def test_every_table_of_the_sample_is_one():
    for name, make in tables.TABLES.items():
        rows = [line for line in make(sample()).splitlines() if line.startswith("|")]
        assert name in ("others", "conv2d") or len(rows) > 2, name
        assert len({line.count("|") for line in rows}) <= 1 or name in ("others", "conv2d"), name


def test_a_ladder():
    text = tables.TABLES["attention"](sample())
    assert "Imaginary H200, 2000-01-01, driver 1, nvrtc 0.0: attention, torch_ops." in text
    assert "| attention unet-64 | **flash** | 2.0e-04 | 0.5 | 200 TFLOP/s | 13–28 % | 25 % |" in text
    assert "| attention unet-64 | SDPA cuDNN |  | 0.4 | 250 TFLOP/s |  | 31 % |" in text
    assert "- attention unet-64, other: wrong" in text and "naive" not in text and "¹" not in text
    assert "0.02 ¹" in tables.TABLES["gemm"](sample()) and "launched call by call" in tables.TABLES["gemm"](sample())


def test_the_other_tables():
    data = sample()
    assert "| all, as often as they occur | 4 |  | 0.8 |  | 0.7 | 0.88× |" in tables.TABLES["convolutions"](data)
    assert "| conv2d unet-64 | 0.21 | fused, 128×160 0.2; fused, 64×64 0.4 |" in tables.TABLES["variants"](data)
    step = tables.TABLES["step"](data)
    assert "| VAE decode, 512 × 512 | 12.3 | 8 |" in step and "UNet step, diffusers" in step
    assert "- torch_compile: skipped, torch is not installed\n" in step
    assert "| cuBLAS, 8192³, float16 | 800 TFLOP/s |" in tables.TABLES["device"](data)


@pytest.mark.parametrize("x, text", [(None, "–"), (0.01234, "0.0123"), (12.3456, "12.3"), (1234.5, "1234"), (0.5, "0.5")])
def test_numbers(x, text):
    assert tables.number(x) == text


def test_pages_are_rewritten_between_their_markers(tmp_path):
    page = tmp_path / "page.md"
    marked = "<!-- gpu:device -->\nold\n<!-- /gpu:device -->\nbetween\n<!-- gpu:step -->\n<!-- /gpu:step -->\n"
    page.write_text(f"before\n{marked}after <!-- kernels -->\n", "utf-8")
    tables.write({}, tmp_path)
    text = page.read_text("utf-8")
    assert "old" not in text and text.count("Not measured yet") == 2 and text.startswith("before\n") and text.endswith("after <!-- kernels -->\n")
    tables.write({}, tmp_path)
    assert page.read_text("utf-8") == text
    tables.write(sample(), tmp_path)
    assert "Imaginary" in page.read_text("utf-8") and "between" in page.read_text("utf-8")


def test_the_pages_of_the_project_have_tables_and_no_made_up_number():
    found = {}
    for page in tables.PAGES.glob("*.md"):
        text = page.read_text("utf-8")
        for mark in tables.MARKERS.finditer(text):
            assert mark[2] not in found, f"the table {mark[2]} stands on {found[mark[2]]} and on {page.name}"
            found[mark[2]] = page.name
        assert text.count("<!-- gpu:") == len(tables.MARKERS.findall(text)), f"{page.name}: a marker without its end"
        assert "Imaginary" not in text
    assert set(tables.TABLES) - {"step"} <= set(found) <= set(tables.TABLES)


def test_predictions_are_of_rungs_and_are_ranges():
    names = {op: {r.name for r in ladder} for op, ladder in ops.RUNGS.items()}
    assert set(PREDICTED) <= set(names)
    for op, rungs in PREDICTED.items():
        for share in rungs.values():
            low, high = map(float, re.fullmatch(r"([\d.]+)–([\d.]+)", share).groups())
            assert 0 < low < high <= 100
