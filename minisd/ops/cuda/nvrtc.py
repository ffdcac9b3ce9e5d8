"""NVIDIA's run-time compiler, called through ctypes: CUDA C++ text -> machine code for one kind of GPU. It needs no GPU and no driver.

The library comes with `pip install nvidia-cuda-nvrtc nvidia-cuda-runtime` (the extra `kernels`), with CuPy's `[ctk]` extra, or with a CUDA toolkit.
"""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

from ...errors import ResourceError

FIX = 'pip install "minisd[kernels]", or set CUDA_PATH to the folder of a CUDA toolkit'


def roots() -> list[Path]:
    """Where CUDA may be installed, wheels first: …/site-packages/nvidia/cu13, $CUDA_PATH, /usr/local/cuda*."""
    wheels = [root for entry in sys.path for root in sorted(Path(entry or ".", "nvidia").glob("*"), reverse=True)]
    named = [Path(os.environ[name]) for name in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(name)]
    return [*wheels, *named, Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]


def find(*patterns: str) -> Path | None:
    """The first file below one of the roots that fits a pattern."""
    return next((path for root in roots() for pattern in patterns for path in sorted(root.glob(pattern), reverse=True)), None)


@cache
def include_folder() -> Path:
    """The folder that holds cuda_fp16.h."""
    found = find("include/cuda_fp16.h")
    if not found:
        raise ResourceError("CUDA's headers are not installed", "no cuda_fp16.h in the wheels, in $CUDA_PATH or in /usr/local/cuda", FIX)
    return found.parent


@cache
def library() -> ctypes.CDLL:
    """libnvrtc, loaded once."""
    found = find("lib/libnvrtc.so.1[23]", "lib64/libnvrtc.so.1[23]")
    if not found:
        raise ResourceError("NVRTC is not installed", "no libnvrtc in the wheels, in $CUDA_PATH or in /usr/local/cuda", FIX)
    return ctypes.CDLL(str(found))


@cache
def version() -> str:
    """NVRTC's version, "13.0"."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


class CompileError(ResourceError):
    """The text does not compile. `why` is the compiler's own log."""


def compile_program(text: str, name: str, expressions: list[str], options: list[str]) -> tuple[bytes, dict[str, str], str]:
    """CUDA C++ text -> (cubin, {expression: its mangled name}, the compiler's log). `expressions` are the kernels that are wanted."""
    lib, program = library(), ctypes.c_void_p()
    _check(lib.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None), name)
    try:
        for expression in expressions:
            _check(lib.nvrtcAddNameExpression(program, expression.encode()), expression)
        encoded = [option.encode() for option in options]
        failed = lib.nvrtcCompileProgram(program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded))
        log = _bytes(lib.nvrtcGetProgramLogSize, lib.nvrtcGetProgramLog, program).rstrip(b"\0").decode(errors="replace")
        if failed:
            raise CompileError(f"{name} does not compile with {' '.join(options)}", log, "the line numbers are those of the named files")
        return _bytes(lib.nvrtcGetCUBINSize, lib.nvrtcGetCUBIN, program), {e: _lowered(program, e) for e in expressions}, log
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


def _check(code: int, what: str):
    if code:
        raise CompileError(f"NVRTC refuses {what!r}", f"error {code}", "report this: a kernel's name should not be able to fail")


def _bytes(size_of, read, program) -> bytes:
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    read(program, buffer)
    return buffer.raw  # all of it: a cubin without its last byte is one that the driver loads and the disassembler refuses


def _lowered(program, expression: str) -> str:
    name = ctypes.c_char_p()
    _check(library().nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(name)), expression)
    return name.value.decode()
