"""Which GPU this is, with which versions, and the two ceilings that everything else is compared with."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("cupy-cuda13x", "cupy-cuda12x", "numpy", "torch", "diffusers", "triton")


def installed() -> dict:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Which state of the repository is measured, if this is a checkout."""
    try:
        return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def device(record):
    """The facts of the GPU. `environment` is what two measurements must have in common to stand beside each other."""
    from minisd.benchmark.gpu import Gpu
    from minisd.ops.cuda import nvrtc

    gpu = Gpu()
    p, runtime = gpu.properties, gpu.cupy.cuda.runtime
    record.result["environment"] = {
        "gpu": gpu.name, "driver": runtime.driverGetVersion(), "nvrtc": nvrtc.version(), "python": platform.python_version(), **installed(),
    }  # fmt: skip
    record.put("device", {
        "name": gpu.name, "capability": f"{p['major']}.{p['minor']}", "multiprocessors": p["multiProcessorCount"], "memory": p["totalGlobalMem"],
        "l2_bytes": p["l2CacheSize"], "clock_khz": p.get("clockRate"), "commit": commit(),
    })  # fmt: skip


def ceilings(record):
    """Measured at the beginning and at the end of a few seconds of load: a GPU that gets hot gets slower."""
    from minisd.benchmark.gpu import Gpu

    gpu = Gpu()
    for dtype in ("float16", "float32"):
        roof = gpu.roof(dtype)
        record.put(dtype, {"flops": roof.flops, "bandwidth": roof.bandwidth})
    roof = gpu.roof("float16")
    record.put("float16 again", {"flops": roof.flops, "bandwidth": roof.bandwidth})
