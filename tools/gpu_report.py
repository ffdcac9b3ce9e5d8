"""What a GPU makes of the kernels, in one command that can be stopped at any time and taken up again.

    python tools/gpu_report.py --plan                       # which parts there are, and how long each may take
    python tools/gpu_report.py --quick                      # the short form of every part, in 8 minutes
    python tools/gpu_report.py                              # all of it, into docs/gpu_report.json and the tables of docs/kernels
    python tools/gpu_report.py --resume --budget 540        # what is still missing, as much as 9 minutes allow
    python tools/gpu_report.py --parts unet,torch_unet --results elsewhere.json
    python tools/gpu_report.py --tables                     # only writes the tables again; needs no GPU

Every part runs in a process of its own with a limit of time, and writes what it has after each measurement: a part that breaks or is stopped
loses one measurement, and harms no other part. Weights and inputs are random, from fixed seeds: nothing is downloaded. torch and diffusers,
the baselines, are used where they are installed. Exit code 2 where there is no GPU.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from gpu_report_parts import acceptance, tables  # noqa: E402
from gpu_report_parts.record import Record, Skip, write_json  # noqa: E402

from minisd.errors import MinisdError  # noqa: E402

RESULTS = ROOT / "docs" / "gpu_report.json"
GRACE = 10  # seconds between a part's limit, which it looks at itself, and the end of its process
QUICK_BUDGET = 480


@dataclass(frozen=True)
class Part:
    """`run` is "module:function" below gpu_report_parts; its limits are in seconds. quick = 0: not in the short form."""

    run: str
    what: str
    full: int
    quick: int


PARTS = {
    "device": Part("device:device", "the GPU and the versions", 30, 20),
    "ceilings": Part("device:ceilings", "cuBLAS at 8192³ in float16, copy bandwidth beyond the L2 cache", 60, 20),
    "probe": Part("kernels:probe", "every PTX wrapper on fixed numbers against the simulator's golden answers, bit for bit", 90, 20),
    "correctness": Part("kernels:correctness", "every rung on the cases of the tests, against float64", 420, 50),
    "conv2d": Part("ladders:conv2d", "the ladders of conv2d and upsample_conv2d", 300, 35),
    "unet_convolutions": Part("ladders:unet_convolutions", "all 3 × 3 convolutions of a UNet step", 120, 25),
    "attention": Part("ladders:attention", "the ladder of attention", 240, 25),
    "gemm": Part("ladders:gemm", "the ladders of linear and feed_forward", 180, 25),
    "group_norm": Part("ladders:group_norm", "the ladder of group_norm", 180, 25),
    "others": Part("ladders:others", "layer norm, softmax, activations", 180, 15),
    "variants": Part("ladders:variants", "tiles and parts of K that launchers can be given", 240, 0),
    "unet": Part("models:unet", "a UNet step, kernel by kernel and as a graph", 240, 40),
    "vae": Part("models:vae", "a VAE decode", 120, 15),
    "image": Part("models:image", "a picture in 50 steps, from token ids to pixels", 120, 25),
    "torch_ops": Part("baselines:ops", "torch: cuDNN, SDPA by each backend, group norm + SiLU", 300, 40),
    "torch_unet": Part("baselines:eager", "diffusers in eager mode: UNet step and VAE decode", 240, 35),
    "torch_compile": Part("baselines:compiled", "diffusers under torch.compile, max-autotune", 570, 0),
}


def child(name: str, path: Path, seconds: float, quick: bool):
    """One part, in this process."""
    module, _, function = PARTS[name].run.partition(":")
    record = Record(path, seconds, quick)
    try:
        getattr(importlib.import_module(f"gpu_report_parts.{module}"), function)(record)
        unreached = "not reached" in record.result
        record.write("partial" if unreached else "done", "out of time" if unreached else "")
    except Skip as reason:
        record.write("skipped", str(reason))
    except MinisdError as problem:  # says what to do
        record.write("failed", str(problem))
    except Exception as problem:
        traceback.print_exc()
        record.write("failed", f"{type(problem).__name__}: {problem}")


def run_part(name: str, seconds: float, quick: bool, scratch: Path) -> dict:
    """One part in a process of its own -> {status, reason, seconds, result}."""
    path = scratch.with_name(f"{scratch.name}.{name}")
    path.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--child", name, "--results", str(path), "--seconds", str(seconds), *(["--quick"] if quick else [])]
    start, process = time.monotonic(), subprocess.Popen(command, start_new_session=True)
    stopped, code = "", None
    try:
        code = process.wait(seconds + GRACE)
    except subprocess.TimeoutExpired:
        stopped = f"stopped after {seconds + GRACE:.0f} s"
    finally:  # on Ctrl-C too
        if code is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"status": "failed", "reason": "nothing was measured", "result": {}}
    path.unlink(missing_ok=True)
    if stopped:
        found |= {"status": "partial" if found["result"] else "failed", "reason": stopped}
    elif code:
        found |= {"status": "failed", "reason": f"the process ended with code {code}"}
    return {**found, "seconds": round(time.monotonic() - start, 1), "quick": quick}


def finished(entry: dict | None, environment: dict, quick: bool) -> bool:
    """Whether a part is measured, on this machine and at least as long as asked for now."""
    return bool(entry) and entry["status"] in ("done", "skipped") and entry["environment"] == environment and entry["quick"] <= quick


def plan(parts, quick: bool) -> str:
    limit = {name: PARTS[name].quick if quick else PARTS[name].full for name in parts}
    lines = [f"{name:<18} {limit[name]:>4} s  {PARTS[name].what}" if limit[name] else f"{name:<18}    –    not in the short form" for name in parts]
    return "\n".join([*lines, f"{'together at most':<18} {sum(limit.values()):>4} s"])


def measure(parts, options, data: dict) -> int:
    """Runs the parts that are asked for, and writes `data` after each. Returns the exit code."""
    end = time.monotonic() + (options.budget or (QUICK_BUDGET if options.quick else 86400))
    device = run_part("device", PARTS["device"].full, options.quick, options.results)
    if device["status"] != "done":
        print(f"error: {device['reason']}", file=sys.stderr)
        return 2
    environment = device["result"]["environment"]
    for name in parts:
        limit = PARTS[name].quick if options.quick else PARTS[name].full
        if not limit or (options.resume and name != "device" and finished(data.get(name), environment, options.quick)):
            continue
        left = end - time.monotonic() - GRACE
        if left < min(limit, 10):
            print(f"{name}: left out, the budget is spent; --resume goes on here", flush=True)
            continue
        print(f"{name}: {PARTS[name].what}", flush=True)
        entry = device if name == "device" else run_part(name, min(limit, left), options.quick, options.results)
        data[name] = {**entry, "environment": environment, "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime())}
        write_json(options.results, data)
        print(f"  {entry['status']}{': ' + entry['reason'] if entry['reason'] else ''}, {entry['seconds']} s", flush=True)
    return 0


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", help=f"of {','.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="the short form of every part")
    parser.add_argument("--resume", action="store_true", help="leave out what was measured on this GPU with these versions")
    parser.add_argument("--budget", type=float, help=f"seconds for all of it; with --quick {QUICK_BUDGET}")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of the measurements; default: docs/gpu_report.json")
    parser.add_argument("--plan", action="store_true", help="only say which parts there are")
    parser.add_argument("--tables", action="store_true", help="only write the tables again")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.results = options.results.resolve()
    parts = options.parts.split(",") if options.parts else list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    if options.plan:
        print(plan(parts, options.quick))
        return 0
    if options.child:
        child(options.child, options.results, options.seconds, options.quick)
        return 0

    data = json.loads(options.results.read_text(encoding="utf-8")) if options.results.exists() else {}
    code = 0 if options.tables else measure(parts, options, data)
    if code == 0:
        tables.write(data)
        print(acceptance.text(data))
    return code


if __name__ == "__main__":
    sys.exit(main())
