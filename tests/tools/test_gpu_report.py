"""`tools/gpu_report.py` without a GPU: the plan, what is resumed, what a stopped or broken part leaves, and how it refuses. Parts are made up."""

import importlib
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gpu_report
import gpu_report_parts
import pytest
from gpu_report import PARTS, QUICK_BUDGET, Part, child, finished, main, run_part
from gpu_report_parts import tables
from gpu_report_parts.record import Record, Skip

HERE = {"gpu": "a GPU of the tests", "driver": 1}
DEVICE = {"status": "done", "reason": "", "seconds": 1.0, "quick": False, "result": {"environment": HERE}}


@pytest.fixture
def program(monkeypatch, tmp_path, capsys):
    """run("--parts", …) -> (exit code, the file of results, stdout, stderr); no child runs, `answers` says what each part found."""
    asked, answers = [], {}

    def part(name, seconds, quick, scratch):
        asked.append((name, round(seconds), quick))
        return answers.get(name, {**DEVICE, "quick": quick, **({} if name == "device" else {"result": {name: 1}})})

    monkeypatch.setattr(gpu_report, "run_part", part)
    monkeypatch.setattr(tables, "write", lambda data: asked.append("tables"))

    def run(*arguments):
        path = tmp_path / "results.json"
        code = main([*arguments, "--results", str(path)])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err, data=json.loads(path.read_text()) if path.exists() else {})

    return SimpleNamespace(run=run, asked=asked, answers=answers)


def test_the_plan(capsys):
    assert main(["--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*PARTS, "together"]
    assert main(["--plan", "--quick", "--parts", "device,torch_compile"]) == 0
    out = capsys.readouterr().out
    assert "not in the short form" in out and f"{PARTS['device'].quick} s" in out.splitlines()[-1]


def test_the_short_form_fits_eight_minutes():
    assert sum(part.quick for part in PARTS.values()) <= QUICK_BUDGET - 60  # a minute for starting 16 processes
    assert all(part.full >= part.quick and part.full <= 570 for part in PARTS.values())


@pytest.mark.parametrize("name", PARTS)
def test_every_part_is_a_function(name):
    module, _, function = PARTS[name].run.partition(":")
    assert callable(getattr(importlib.import_module(f"gpu_report_parts.{module}"), function))


def test_parts_are_run_in_order_and_kept(program):
    done = program.run("--parts", "probe,unet")
    assert done.code == 0 and [a[0] for a in program.asked[:-1]] == ["device", "probe", "unet"] and program.asked[-1] == "tables"
    assert set(done.data) == {"probe", "unet"} and done.data["probe"]["environment"] == HERE and done.data["probe"]["date"]
    assert "UNet step" in done.out and "not measured" in done.out


def test_what_is_measured_is_not_measured_again(program):
    program.run("--parts", "probe,unet", "--quick")
    program.asked.clear()
    program.run("--parts", "probe,unet", "--quick", "--resume")
    assert [a[0] for a in program.asked[:-1]] == ["device"]
    program.asked.clear()
    program.run("--parts", "probe,unet", "--resume")  # the long form is more than the short one
    assert [a[0] for a in program.asked[:-1]] == ["device", "probe", "unet"]


@pytest.mark.parametrize("entry, quick, expected", [
    (None, False, False), ({"status": "done", "environment": HERE, "quick": False}, True, True),
    ({"status": "done", "environment": HERE, "quick": True}, False, False), ({"status": "skipped", "environment": HERE, "quick": False}, False, True),
    ({"status": "partial", "environment": HERE, "quick": False}, False, False),
    ({"status": "failed", "environment": HERE, "quick": False}, False, False),
    ({"status": "done", "environment": {**HERE, "driver": 2}, "quick": False}, False, False),
])  # fmt: skip
def test_what_counts_as_measured(entry, quick, expected):
    assert finished(entry, HERE, quick) is expected


def test_the_budget_ends_the_run_and_says_so(program):
    done = program.run("--parts", "probe,unet", "--budget", "15")
    assert done.data == {} and "left out, the budget is spent" in done.out and done.code == 0
    program.asked.clear()
    program.run("--parts", "unet", "--budget", "60")
    assert program.asked[1] == ("unet", 50, False)  # less than its own limit


def test_a_part_of_the_long_form_alone(program):
    done = program.run("--parts", "torch_compile,probe", "--quick")
    assert set(done.data) == {"probe"}


def test_without_a_gpu(program):
    program.answers["device"] = {**DEVICE, "status": "failed", "reason": "no GPU was found\n  why:  …\n  fix:  …"}
    done = program.run()
    assert done.code == 2 and done.err.startswith("error: no GPU was found\n  why:") and "fix:" in done.err and done.data == {}
    assert program.run("--tables").code == 0


def test_a_part_that_does_not_exist(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--parts", "probe,nonsense"])
    assert stop.value.code == 2 and "no part is called nonsense" in capsys.readouterr().err


# ----- a part in its process -----------------------------------------------------------------------------------------------------


@pytest.fixture
def made_up(monkeypatch):
    """PARTS["probe"] is a function of the test."""

    def use(function):
        module = SimpleNamespace(function=function)
        monkeypatch.setitem(sys.modules, "gpu_report_parts.made_up", module)
        monkeypatch.setattr(gpu_report_parts, "made_up", module, raising=False)
        monkeypatch.setitem(PARTS, "probe", Part("made_up:function", "", 1, 1))

    return use


def outcome(path: Path) -> tuple:
    found = json.loads(path.read_text())
    return found["status"], found["reason"], found["result"]


def test_what_a_part_leaves(made_up, tmp_path, capfd):
    path = tmp_path / "part.json"

    def whole(record):
        record.put("a", 1.5)
        assert outcome(path) == ("partial", "stopped", {"a": 1.5})  # if it were stopped here

    def skipped(record):
        raise Skip("torch is not installed")

    def broken(record):
        record.put("a", 1)
        raise ValueError("no")

    cases = {whole: ("done", "", {"a": 1.5}), skipped: ("skipped", "torch is not installed", {}), broken: ("failed", "ValueError: no", {"a": 1})}
    for function, expected in cases.items():
        made_up(function)
        child("probe", path, 10, False)
        assert outcome(path) == expected
    assert "Traceback" in capfd.readouterr().err


def test_a_part_stops_at_its_time(made_up, tmp_path):
    def slow(record):
        for item in record.each([("conv2d", "unet-64"), "b", "c"]):
            record.put(str(item), 1)
            record.end = time.monotonic() - 1

    made_up(slow)
    child("probe", tmp_path / "part.json", 10, False)
    status, reason, result = outcome(tmp_path / "part.json")
    assert (status, reason) == ("partial", "out of time") and result["not reached"] == ["b", "c"] and len(result) == 2


def test_a_number_that_json_does_not_have_is_an_error(tmp_path):
    record = Record(tmp_path / "part.json", 10, False)
    record.put("a", 1.0)
    with pytest.raises(ValueError):
        record.put("b", float("nan"))
    assert outcome(tmp_path / "part.json")[2] == {"a": 1.0}


def test_the_processes_of_parts(tmp_path, monkeypatch):
    """Real ones: the device part fails in words where there is no GPU, and a part that hangs is ended with what it had."""
    found = run_part("device", 60, True, tmp_path / "results.json")
    assert found["status"] in ("failed", "done") and found["seconds"] > 0
    if found["status"] == "failed":
        assert "fix:" in found["reason"] and "Traceback" not in found["reason"]

    script = tmp_path / "hangs.py"
    script.write_text('''
import json, sys, time
path = sys.argv[sys.argv.index("--results") + 1]
open(path, "w").write(json.dumps({"status": "partial", "reason": "stopped", "result": {"a": 1}}))
time.sleep(60 if sys.argv[sys.argv.index("--child") + 1] == "unet" else 0)
sys.exit(3)
''')
    monkeypatch.setattr(gpu_report, "__file__", str(script))
    monkeypatch.setattr(gpu_report, "GRACE", 0)
    found = run_part("unet", 1, False, tmp_path / "results.json")
    assert (found["status"], found["reason"], found["result"]) == ("partial", "stopped after 1 s", {"a": 1})
    found = run_part("vae", 30, False, tmp_path / "results.json")
    assert (found["status"], found["reason"], found["result"]) == ("failed", "the process ended with code 3", {"a": 1})
    assert not list(tmp_path.glob("results.json*"))
