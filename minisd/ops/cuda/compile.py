"""Kernels compiled on first use and kept on disk: text -> cubin for one architecture, with the report of what it uses.

    cubin = build(FLASH(40), "sm_90")
    cubin.resources            # Resources(registers=96, spill_bytes=0, …)

A cubin is found again by the hash of all that it was made from: the text with its headers, CUDA's own headers, the options, the
architecture and the compiler's version. It is machine code: unlike PTX it loads on drivers older than the compiler.
"""

import hashlib
import json
import logging
import os
import re
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from ...errors import ResourceError
from . import nvrtc
from .kernel import Instance, for_hopper, source

log = logging.getLogger("minisd")
OPTIONS = ("-std=c++17", "-Xptxas=-v", "-lineinfo", "-default-device")
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")  # A100, RTX 30, RTX 40, H100, B200, RTX 50


@dataclass(frozen=True)
class Resources:
    """What one thread (registers, stack, spills) and one block (shared memory without the dynamic part) of a kernel takes."""

    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int  # stores and loads: registers that did not fit and live in slow memory


@dataclass(frozen=True)
class Cubin:
    """Machine code on disk, the mangled name of its kernel, and the compiler's report."""

    path: Path
    name: str
    resources: Resources


def cache_folder() -> Path:
    """$MINISD_KERNEL_CACHE, or minisd/kernels in the user's cache folder."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("MINISD_KERNEL_CACHE") or user / "minisd" / "kernels")


@cache
def _headers_hash() -> str:
    """CUDA's headers may be of another release than the compiler: they are part of what a cubin is made from."""
    folder = nvrtc.include_folder()
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in ("cuda_fp16.h", "cuda_fp16.hpp"))).hexdigest()


def target(file: str, arch: str) -> str | None:
    """What a file is compiled for on a GPU of `arch`: that, or "sm_90a" for Hopper's own instructions; None where there are none."""
    return ("sm_90a" if arch == "sm_90" else None) if for_hopper(file) else arch


def cache_key(instance: Instance, arch: str) -> str:
    """The hash of everything that the cubin depends on."""
    parts = (source(instance.file), instance.expression, arch, *OPTIONS, nvrtc.version(), _headers_hash())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def build(instance: Instance, arch: str) -> Cubin:
    """The cubin of one kernel instance for a GPU of "sm_90" and the like: from the cache, else compiled. No GPU is needed."""
    wanted, arch = arch, target(instance.file, arch)
    if arch is None:
        raise ResourceError(f"{instance.expression} cannot run on {wanted}", "it is made of instructions that only sm_90 has", "use another rung")
    stem = cache_folder() / f"{re.sub(r'[^0-9A-Za-z]+', '_', instance.expression)}-{arch}-{cache_key(instance, arch)}"
    path, report = stem.with_suffix(".cubin"), stem.with_suffix(".json")
    if not (path.exists() and report.exists()):
        start = time.perf_counter()
        cubin, names, report_text = compile_instances(instance.file, [instance], arch)
        name = names[instance.expression]
        log.info("compiled %s for %s in %.1f s; kept in %s", instance.expression, arch, time.perf_counter() - start, path.parent)
        _write(path, cubin)
        _write(report, json.dumps({"name": name, "resources": asdict(resource_report(report_text)[name])}).encode())
    facts = json.loads(report.read_text(encoding="utf-8"))
    return Cubin(path, facts["name"], Resources(**facts["resources"]))


def compile_instances(file: str, instances: list[Instance], arch: str) -> tuple[bytes, dict[str, str], str]:
    """Several instances of one file in one program, for "sm_90", "sm_90a" and the like -> (cubin, {expression: mangled name}, log)."""
    options = [f"-arch={arch}", *OPTIONS, f"-I{nvrtc.include_folder()}"]
    return nvrtc.compile_program(source(file), file, [i.expression for i in instances], options)


def resource_report(log: str) -> dict[str, Resources]:
    """What `ptxas -v` says of each kernel, by mangled name."""
    report = {}
    for part in log.split("Compiling entry function '")[1:]:
        def number(pattern, part=part):
            found = re.search(pattern, part)
            return int(found[1]) if found else 0

        report[part.partition("'")[0]] = Resources(
            registers=number(r"Used (\d+) registers"), shared_bytes=number(r"(\d+) bytes smem"), stack_bytes=number(r"(\d+) bytes stack frame"),
            spill_bytes=number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        )  # fmt: skip
    return report


def _write(path: Path, content: bytes):
    """Whole or not at all, also when two processes compile the same kernel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)
