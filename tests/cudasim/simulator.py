"""The tests' device: runs the kernels' own text on NumPy arrays, by g++ and cudasim.h, behind the same launch as the GPU.

    with on_device(Simulator()): y = group_norm_naive(x, w, b, …)      # a launcher of minisd/ops/cuda, unchanged
    with gpu_ladder(): y = ops.group_norm(x, w, b, …)                  # the façade chooses as it would on a GPU

Every array lies between pages that cannot be touched, inputs cannot be written to, outputs begin as NaN, and each launch runs in three
thread orders that have to agree to the last bit. Whatever the kernel does wrong is a SimulatorError.
"""

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from minisd.ops.cuda import kernel as kernels
from minisd.ops.cuda import nvrtc
from minisd.ops.cuda.compile import cache_folder
from minisd.ops.cuda.device import Device, on_device
from minisd.ops.cuda.kernel import Instance
from minisd.ops.cuda.tensor_map import ALIGNMENT, NBYTES, TensorMap
from minisd.ops.dispatch import RUNGS
from tests.cudasim.counts import COUNTED

HEADERS = [Path(__file__).with_name(name) for name in ("cudasim.h", "cudasim_hopper.h")]
FORWARD, BACKWARD, SHUFFLED = range(3)
FLAGS = ["-std=c++17", "-O1", "-w", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-ffp-contract=off", "-fsanitize=undefined",
         "-fno-sanitize=vptr,null,return,nonnull-attribute", "-fsanitize-undefined-trap-on-error"]  # fmt: skip
PAGE = 4096
READ, WRITE, PRIVATE_ANONYMOUS = 1, 2, 0x22
MAP = np.dtype({  # sim::TensorMap; axis 0 is the innermost
    "names": ["base", "stride", "size", "box", "rank", "row_bytes"], "formats": ["u8", ("i8", 5), ("u4", 5), ("u4", 5), "u4", "u4"],
    "offsets": [0, 8, 48, 68, 88, 92], "itemsize": NBYTES,
})  # fmt: skip


class SimulatorError(AssertionError):
    """A kernel did what a GPU does not forgive: a race, an access out of bounds, a deadlock."""

    def __init__(self, *message):
        COUNTED["mistakes"] += 1
        super().__init__(*message)


def why_not() -> str | None:
    """The reason why kernels cannot be simulated here, or None."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "the simulator of CUDA kernels needs Linux on x86-64"
    if not shutil.which("g++"):
        return "the simulator of CUDA kernels needs g++"
    if not nvrtc.find("include/cuda_fp16.h") or not nvrtc.find("include/crt/host_config.h") or not nvrtc.find("include/nv/target"):
        return "the simulator of CUDA kernels needs CUDA's headers: pip install -e '.[kernels]'"
    return None


needs_simulator = [pytest.mark.kernels, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]  # pytestmark of a test file


class Simulator(Device):
    """Kernels on the CPU. `ways` are the thread orders of each launch; more than one must give equal bits. It says that it is a GPU of
    the given compute capability, 90 for Hopper's kernels.
    """

    array_type = np.ndarray

    def __init__(self, ways=(FORWARD, BACKWARD, SHUFFLED), capability=0):
        self.ways, self.capability = ways, capability
        self.launches = []  # the expressions of the kernels that ran

    def empty(self, shape, dtype):
        return np.full(shape, np.nan, dtype)

    def contiguous(self, x):
        return np.ascontiguousarray(x).reshape(x.shape)  # it makes [1] of a number without axes

    def run(self, instance: Instance, grid, block, arguments: list, shared: int):
        self.launches.append(instance.expression)
        run_text(function(instance), instance, grid, block, arguments, shared, self.ways)


@contextmanager
def gpu_ladder(device=None):
    """Inside the block the façade has for NumPy arrays the rungs that it has for CuPy's, and they run on the simulator."""
    device, ladders = device or Simulator(), {op: list(ladder) for op, ladder in RUNGS.items()}
    for ladder in RUNGS.values():
        ladder[:] = [replace(r, owner="numpy") if r.owner == "cupy" else r for r in ladder if r.owner != "numpy" and r.name != "cublas"]
    try:
        with on_device(device):
            yield device
    finally:
        for op, ladder in ladders.items():
            RUNGS[op][:] = ladder


def run_text(f, instance: Instance, grid, block, arguments: list, shared: int, ways):
    """One launch in each of the thread orders; the results of all are compared, then written to the arrays."""
    COUNTED["launches"] += 1
    results = []
    for way in ways:
        with Buffers(instance, arguments, at_end=way != BACKWARD) as buffers:
            size = (ctypes.c_uint * 8)(*grid, *block, shared, instance.cluster)
            message, address = ctypes.create_string_buffer(1024), ctypes.c_uint64()
            f(size, way, buffers.pointers(), message, ctypes.byref(address))
            if message.value:
                raise SimulatorError(f"{instance.expression}: {message.value.decode()}{buffers.describe(address.value)}")
            buffers.check_margins()
            results.append(buffers.results())
    for name, first in results[0].items():
        for way, other in zip(ways, results):
            if not np.array_equal(first, other[name]):
                raise SimulatorError(f"{instance.expression}: a race: {name} depends on the order of the threads (order {way})")
    for parameter, array in zip(instance.parameters, arguments):
        if parameter.name in results[0]:
            array[...] = results[0][parameter.name].view(array.dtype).reshape(array.shape)


@cache
def libc() -> ctypes.CDLL:
    """mmap, mprotect and munmap with their types."""
    c = ctypes.CDLL(None)
    c.mmap.restype = ctypes.c_void_p
    c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    c.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    c.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return c


class Buffers:
    """The arguments of one launch in memory of their own, each array with an untouchable page before and behind it."""

    def __init__(self, instance: Instance, arguments: list, at_end: bool):
        self.instance, self.arguments, self.at_end = instance, arguments, at_end
        self.maps = []  # (parameter, first byte of the array, its bytes, start of the map, its length)
        self.values = []

    def __enter__(self):
        for parameter, a in zip(self.instance.parameters, self.arguments):
            self.values.append(self._map(parameter, a) if parameter.tensor_map else self._array(parameter, a) if isinstance(a, np.ndarray) else a)
        return self

    def __exit__(self, *_):
        for _, _, _, start, length in self.maps:
            libc().munmap(start, length)

    def _map(self, parameter, m: TensorMap) -> np.ndarray:
        """The simulator's struct for a copy of the memory that the mapped view lies in."""
        a, rank = m.array, m.array.ndim
        extent = sum((n - 1) * stride for n, stride in zip(a.shape, a.strides)) + a.itemsize
        struct = aligned(MAP)
        struct["base"], struct["rank"], struct["row_bytes"] = self._array(parameter, memory(a.ctypes.data, extent)), rank, m.swizzle
        for name, values in (("stride", a.strides), ("size", a.shape), ("box", m.box)):
            struct[name][0, :rank] = values[::-1]
        return struct

    def _array(self, parameter, a) -> int:
        room = max(PAGE, -(-a.nbytes // PAGE) * PAGE)
        start = libc().mmap(None, room + 2 * PAGE, READ | WRITE, PRIVATE_ANONYMOUS, -1, 0)
        inside = start + PAGE
        begin = inside + (room - a.nbytes) // 16 * 16 if self.at_end else inside
        memory(inside, room)[:] = 0xFF  # NaN, beside the array too
        memory(begin, a.nbytes)[:] = a.reshape(-1).view(np.uint8)
        for address, length, rights in ((start, PAGE, 0), (inside, room, READ if parameter.const else READ | WRITE), (inside + room, PAGE, 0)):
            libc().mprotect(address, length, rights)
        self.maps.append((parameter, begin, a.nbytes, start, room + 2 * PAGE))
        return begin

    def pointers(self):
        """void** to the arguments."""
        cells = [v if p.tensor_map else np.array([0 if v is None else v], np.uint64 if p.pointer else p.dtype)
                 for p, v in zip(self.instance.parameters, self.values)]  # fmt: skip
        self.cells = cells  # kept alive
        return (ctypes.c_void_p * len(cells))(*(c.ctypes.data for c in cells))

    def results(self) -> dict:
        """The bytes of every array that the kernel may write to, by the name of the parameter."""
        return {p.name: memory(begin, n).copy() for p, begin, n, _, _ in self.maps if not p.const}

    def check_margins(self):
        """The bytes between an array and its page are as they were."""
        for p, begin, n, start, length in self.maps:
            for a, b in ((start + PAGE, begin), (begin + n, start + length - PAGE)):
                if b > a and not (memory(a, b - a) == 0xFF).all():
                    raise SimulatorError(f"{self.instance.expression}: out of bounds: {p.name} was written beside its {n} bytes")

    def describe(self, address: int) -> str:
        """Which array an address belongs to."""
        for p, begin, n, start, length in self.maps:
            if start <= address < start + length:
                return f" byte {address - begin} of {p.name}, which has {n} bytes" + (" and is const" if p.const else "")
        return ""


def aligned(dtype: np.dtype) -> np.ndarray:
    """One element of zeros at an address that is a multiple of ALIGNMENT."""
    room = np.zeros(dtype.itemsize + ALIGNMENT, np.uint8)
    begin = -room.ctypes.data % ALIGNMENT
    return room[begin : begin + dtype.itemsize].view(dtype)


def memory(address: int, nbytes: int) -> np.ndarray:
    """The bytes at an address, as an array."""
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.uint8)


# ----- compiling: a shared library for each kernel file, kept in the user's cache ------------------------------------------------


def symbol(instance: Instance) -> str:
    return "run_" + re.sub(r"[^0-9A-Za-z]+", "_", instance.expression).strip("_")


def function(instance: Instance):
    """The compiled kernel instance. All instances of a file that a launcher declares are compiled together."""
    return getattr(library(instance.file), symbol(instance))


@cache
def library(file: str) -> ctypes.CDLL:
    return compile_text(kernels.source(file), tuple(i for k in kernels.KERNELS if k.file == file for i in k.all()))


def compile_text(text: str, instances: tuple[Instance, ...]) -> ctypes.CDLL:
    """Kernel text -> loaded library with one exported function for each instance."""
    text += "\n" + "\n".join(f"SIM_EXPORT({symbol(i)}, {i.expression})" for i in instances) + "\n"
    folder = header_folder()
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"
    if not path.exists():
        gxx(["-shared", "-include", "cudasim.h", "-x", "c++", "-"], path, folder, text)
    return ctypes.CDLL(str(path))


@cache
def header_folder() -> Path:
    """A folder of the cache for these headers and flags, with the headers compiled in advance."""
    include = nvrtc.include_folder()
    release = (include / "cuda_fp16.h").read_bytes()
    version = subprocess.run(["g++", "--version"], capture_output=True, check=True).stdout
    parts = [*(h.read_bytes() for h in HEADERS), release, version, *(f.encode() for f in FLAGS)]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]
    folder = cache_folder() / f"cudasim-{key}"
    if not (folder / "cudasim.h.gch").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for header in HEADERS:
            shutil.copyfile(header, folder / header.name)
        gxx(["-x", "c++-header", "cudasim.h"], folder / "cudasim.h.gch", folder)
    return folder


def gxx(arguments: list[str], output: Path, folder: Path, text: str = ""):
    """Runs g++; the output appears whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        command = ["g++", *FLAGS, f"-I{nvrtc.include_folder()}", *arguments, "-o", file.name]
        done = subprocess.run(command, input=text, text=True, capture_output=True, cwd=folder)
    if done.returncode:
        os.unlink(file.name)
        raise SimulatorError(f"{' '.join(command)}\n{done.stderr[:4000]}")
    os.replace(file.name, output)
