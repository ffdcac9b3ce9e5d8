"""cuBLAS's matrix product of float16, summed in float32, also where it is recorded into a CUDA graph.

CuPy's @ is this product, but refuses to be recorded (CuPy 14.2, its issue 6290); and since it sets the stream of its handle before each call, which
takes the handle's workspace away, cuBLAS would allocate memory inside of the graph. A recording has a handle and a workspace of its own, and
calls the library through ctypes.
"""

import ctypes
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property

from .device import device

WORKSPACE = 32 << 20  # bytes: what NVIDIA recommends for Hopper, more than other GPUs need
OP_N, OP_T, R_16F, COMPUTE_32F, GEMM_DEFAULT = 0, 1, 2, 68, -1  # library_types.h, cublas_api.h


def library() -> ctypes.CDLL:
    """The libcublas that CuPy uses: loaded once in a process, it is found again by its name."""
    cuda = device().cupy.cuda
    cuda.device.get_cublas_handle()
    return ctypes.CDLL(f"libcublas.so.{cuda.runtime.runtimeGetVersion() // 1000}")


class Blas:
    """A handle on one stream, with a workspace; both are made for the first product, and kept as long as the graph."""

    def __init__(self, stream):
        self.stream = stream

    @cached_property
    def library(self):
        return library()

    @cached_property
    def workspace(self):
        return device().empty((WORKSPACE,), "uint8")

    @cached_property
    def handle(self) -> ctypes.c_void_p:
        handle, address = ctypes.c_void_p(), ctypes.c_void_p(self.workspace.data.ptr)
        check(self.library.cublasCreate_v2(ctypes.byref(handle)))
        check(self.library.cublasSetStream_v2(handle, ctypes.c_void_p(self.stream.ptr)))
        check(self.library.cublasSetWorkspace_v2(handle, address, ctypes.c_size_t(WORKSPACE)))
        return handle

    def product(self, x, w):
        """x Wᵀ of float16 arrays: x [M, K], w [N, K] -> [M, N]. cuBLAS counts by columns: to it this is yᵀ = W xᵀ, of arrays [K, N] and [K, M]."""
        dev, (M, K), N = device(), x.shape, len(w)
        x, y = dev.contiguous(x), dev.empty((M, N), x.dtype)
        stored_by_columns = w.T.flags.c_contiguous and not w.flags.c_contiguous  # a 1×1 convolution
        w, op, row = (w, OP_N, N) if stored_by_columns else (dev.contiguous(w), OP_T, K)
        a, b, c = (ctypes.c_void_p(array.data.ptr) for array in (w, x, y))
        one, zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        check(self.library.cublasGemmEx(
            self.handle, op, OP_N, N, M, K, ctypes.byref(one), a, R_16F, row, b, R_16F, K,
            ctypes.byref(zero), c, R_16F, N, COMPUTE_32F, GEMM_DEFAULT,
        ))  # fmt: skip
        return y

    def __del__(self):
        if "handle" in self.__dict__ and not sys.is_finalizing():  # by then the GPU's context may be gone
            self.library.cublasDestroy_v2(self.handle)


def check(status: int):
    if status:
        raise RuntimeError(f"cuBLAS returns status {status}")


_RECORDING: ContextVar[Blas | None] = ContextVar("minisd_cublas_recording", default=None)


@contextmanager
def recorded_on(stream):
    """Inside the block products can be recorded on this stream. Yields what has to live as long as the graph."""
    blas = Blas(stream)
    token = _RECORDING.set(blas)
    try:
        yield blas
    finally:
        _RECORDING.reset(token)


def product(x, w):
    """x Wᵀ of float16 arrays, summed in float32.        x [M, K], w [N, K] -> [M, N]"""
    blas = _RECORDING.get()
    return x @ w.T if blas is None else blas.product(x, w)
