"""The GPU: whether there is one that computes, how much room it has; and if there is none, why, and what to do about it.

    choose("cuda")         # "cuda:0", or an error that says what is missing
    choose("auto")         # the same, or "cpu" and one line that says why

CuPy is imported when a GPU is asked for, and not before.
"""

import importlib
import importlib.metadata
import logging
import os
import re
from contextlib import contextmanager

from .backend import index_of
from .errors import MinisdError, ResourceError, UsageError
from .ops.cuda import nvrtc
from .ops.cuda.device import OLDEST

log = logging.getLogger("minisd")

WHEELS = ("cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy")  # all of them are the module `cupy`
INSTALL = 'pip install "minisd[cuda13]", or for a driver older than 580 "minisd[cuda12]"'
INSUFFICIENT_DRIVER, NO_DEVICE = 35, 100  # cudaError_t


def choose(device, say=log.warning) -> str:
    """ "cpu" or "cuda:N" from what a user says: cpu, cuda (the first one), cuda:N, or auto: the first GPU, else the CPU and a line that says why.

    Raises UsageError for another word or a GPU that is not there, ResourceError for what is missing on the way to it.
    """
    if device == "auto":
        try:
            return find_gpu(0)
        except MinisdError as reason:
            say("on the CPU, because %s; for the GPU: %s", reason.what, reason.fix)
            return "cpu"
    if device == "cpu":
        return "cpu"
    named = re.fullmatch(r"cuda(?::(\d{1,3}))?", str(device))
    if not named:
        raise UsageError(f"there is no device {device!r}", "", "use cpu, cuda, cuda:1 (the second GPU), or auto")
    return find_gpu(int(named[1] or 0))


def find_gpu(index: int) -> str:
    """ "cuda:N", if everything is there that a kernel needs: CuPy, a driver, this GPU, a compiler and its headers."""
    cupy = load_cupy()
    count = count_gpus(cupy)
    if index >= count:
        visible = "visible is cuda:0" if count == 1 else f"visible are cuda:0 … cuda:{count - 1}"
        raise UsageError(f"there is no GPU cuda:{index}", visible, "choose one of them; `nvidia-smi -L` lists all")
    capability = cupy.cuda.Device(index).compute_capability
    if int(capability) < OLDEST:
        what = f"{name_of(cupy, index)} has compute capability {dotted(capability)}"
        why = f"the kernels use instructions of {dotted(str(OLDEST))} (RTX 30, A100) and newer"
        raise ResourceError(what, why, "use --device cpu, or device=\"cpu\"")
    check_libraries(cupy)
    return f"cuda:{index}"


def installed() -> list[str]:
    """The wheels of CuPy that are installed, with their versions: ["cupy-cuda13x 14.2.0"]. Asks the metadata, and imports nothing."""
    found = []
    for name in WHEELS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def load_cupy():
    """The module. Raises ResourceError where it is missing, there twice, or broken."""
    wheels = installed()
    if len(wheels) > 1:
        names = [wheel.split()[0] for wheel in wheels]
        why = "both are the module cupy: the files of one have replaced those of the other"
        raise ResourceError(f"CuPy is installed {len(wheels)} times: {', '.join(wheels)}", why, f"pip uninstall -y {' '.join(names)}, then {INSTALL}")
    try:
        return importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise ResourceError(f"CuPy cannot be imported: {error}", f"installed is {wheels or 'no wheel of it'}", INSTALL) from None
        raise ResourceError("CuPy is not installed", "it moves arrays to the GPU and launches the kernels there", INSTALL) from None
    except ImportError as error:
        wheel = wheels[0].split()[0] if wheels else "cupy"
        raise ResourceError("CuPy cannot be imported", first_line(error), f"pip uninstall -y {wheel}, then {INSTALL}") from None


def count_gpus(cupy) -> int:
    """How many GPUs can be seen, one at least."""
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        raise _no_gpu(cupy, error.status, str(error)) from None
    if not count:
        raise _no_gpu(cupy, NO_DEVICE, "")
    return count


def _no_gpu(cupy, status: int, message: str) -> ResourceError:
    driver = cupy.cuda.runtime.driverGetVersion()  # the newest CUDA that it knows; 0 without a driver
    if status == INSUFFICIENT_DRIVER and not driver:
        fix = "install the driver; `nvidia-smi` then shows the GPU"
        return ResourceError("there is no NVIDIA driver", "without one no program can reach a GPU", fix)
    if status == INSUFFICIENT_DRIVER:
        needed = cupy.cuda.runtime.runtimeGetVersion()
        wheel = (installed() or ["this CuPy"])[0].split()[0]
        fix = f'pip uninstall -y {wheel}, then pip install "minisd[cuda12]"' if needed >= 13000 > driver >= 12000 else "update the driver"
        return ResourceError(f"the driver is too old for {wheel}", f"it knows CUDA up to {release(driver)}, {wheel} needs {needed // 1000}.0", fix)
    if status == NO_DEVICE:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None:
            return ResourceError("no GPU is visible", f"CUDA_VISIBLE_DEVICES is {hidden!r}", "unset CUDA_VISIBLE_DEVICES, or set it to 0")
        return ResourceError("no GPU is visible", "the driver knows of none", "check `nvidia-smi -L`; a container needs --gpus all")
    return ResourceError("CUDA cannot be started", message, "check that `nvidia-smi` works, and that no program has stopped the GPU")


def check_libraries(cupy):
    """cuBLAS, NVRTC and CUDA's headers are there, and the driver knows what they compile for."""
    major = 12 if cupy.cuda.runtime.runtimeGetVersion() < 13000 else 13
    fix = f'pip install "minisd[cuda{major}]": its CuPy comes with [ctk], which brings them'
    try:
        getattr(cupy.cuda, "cublas")  # CuPy looks for the library when it is first asked for this module
    except ImportError as error:
        raise ResourceError("cuBLAS is not installed", first_line(error), fix) from None
    try:
        nvrtc.include_folder()
        compiler = nvrtc.version()
    except ResourceError as error:
        raise ResourceError(error.what, f"{error.why}; the kernels are compiled on first use", fix) from None
    driver = cupy.cuda.runtime.driverGetVersion()
    if int(compiler.partition(".")[0]) > driver // 1000:
        why = f"NVRTC is of CUDA {compiler}, the driver knows CUDA up to {release(driver)} and would not load what it compiles"
        fix = f'pip uninstall -y nvidia-cuda-nvrtc, then pip install "minisd[cuda{driver // 1000}]"'
        raise ResourceError("the compiler is newer than the driver", why, fix)


def first_line(error: Exception) -> str:
    """Of a message that goes on for a page."""
    return next(iter(str(error).strip().splitlines()), "it does not say why")


def release(number: int) -> str:
    """12040 -> "12.4": how CUDA counts."""
    return f"{number // 1000}.{number % 1000 // 10}"


def dotted(capability: str) -> str:
    """ "90" -> "9.0"."""
    return f"{capability[:-1]}.{capability[-1]}"


def name_of(cupy, index: int) -> str:
    """What the maker calls it: "NVIDIA H100 80GB HBM3"."""
    return cupy.cuda.runtime.getDeviceProperties(index)["name"].decode()


def describe(device: str) -> dict:
    """What an issue or a recipe has to say of a GPU."""
    import cupy

    index, runtime = index_of(device), cupy.cuda.runtime
    free, total = memory(device)
    return {
        "name": name_of(cupy, index), "device": device, "compute capability": dotted(cupy.cuda.Device(index).compute_capability),
        "driver": f"CUDA {release(runtime.driverGetVersion())}", "runtime": f"CUDA {release(runtime.runtimeGetVersion())}",
        "cupy": (installed() or [f"cupy {cupy.__version__}"])[0], "nvrtc": nvrtc.version(),
        "memory free": f"{free / 1e9:.1f} of {total / 1e9:.1f} GB",
    }  # fmt: skip


# ----- memory --------------------------------------------------------------------------------------------------------------


def memory(device: str) -> tuple[int, int]:
    """Bytes that can still be allocated on a GPU, and all it has. What CuPy's pool keeps for later counts as free."""
    import cupy

    with cupy.cuda.Device(index_of(device)):
        free, total = cupy.cuda.runtime.memGetInfo()
        return free + cupy.get_default_memory_pool().free_bytes(), total


def free_bytes(device: str) -> int | None:
    """What can still be allocated on a GPU; None for the CPU, whose memory `request.available_bytes` knows."""
    return None if device == "cpu" else memory(device)[0]


def check_room(device: str, needed: int, what: str):
    """Refuses weights that do not fit, before the first of them is read. `needed` in bytes; on the CPU the system says so itself."""
    if device == "cpu":
        return
    free, total = memory(device)
    if needed > free:
        why = f"{needed / 1e9:.2f} GB for the weights, of {total / 1e9:.2f} GB are {free / 1e9:.2f} free"
        fix = "use dtype float16, end other programs on the GPU (`nvidia-smi` lists them), or use the CPU"
        raise ResourceError(f"{what} does not fit on {device}", why, fix)


@contextmanager
def running_on(device: str):
    """Inside the block CuPy's current device is this one, and running out of its memory is an error that says what helps. On the CPU: nothing."""
    if device == "cpu":
        yield
        return
    import cupy

    with cupy.cuda.Device(index_of(device)):
        try:
            yield
        except cupy.cuda.memory.OutOfMemoryError as error:
            free, total = memory(device)
            why = f"{str(error).rstrip('.')}; of {total / 1e9:.2f} GB are {free / 1e9:.2f} free"
            fix = "use float16, a smaller picture or batch, or two passes for guidance (--two-passes, two_passes=True)"
            raise ResourceError(f"out of memory on {device}", why, fix) from error
