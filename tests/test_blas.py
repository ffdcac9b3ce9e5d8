"""The choice of OpenBLAS's kernel: by the processor's own words, never over the user's, never too late without saying so."""

import logging
import os
import subprocess
import sys

import pytest

from minisd import blas

AVX512 = "fpu sse2 avx avx2 avx512f avx512dq avx512cd avx512bw avx512vl"


def cpuinfo(vendor="AuthenticAMD", family=26, flags=AVX512):
    one = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 17\npower management:\nflags\t\t: {flags}\n"
    return f"{one}\n{one}"


@pytest.mark.parametrize(
    "described, kernel",
    [
        (cpuinfo(), "SkylakeX"),  # Zen 5
        (cpuinfo(family=25), "Haswell"),  # Zen 4
        (cpuinfo(family=25, flags="fpu sse2 avx avx2"), None),  # Zen 3
        (cpuinfo(flags=AVX512.replace("avx512cd", "")), None),  # one instruction missing: the kernel would die of it
        (cpuinfo(vendor="GenuineIntel", family=6), None),  # OpenBLAS knows Intel's
        ("processor\t: 0\nFeatures\t: fp asimd\n", None),  # ARM
        ("", None),
    ],
)
def test_the_kernel_for_a_processor(described, kernel):
    assert blas.best_kernel(described) == kernel


def run(code, **env):
    """The standard output of a fresh interpreter."""
    kept = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    done = subprocess.run([sys.executable, "-c", code], env={**kept, **env}, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


def test_choosing_imports_no_numpy():
    out, _ = run("import sys, minisd.blas as b; b.choose_kernel(); print('numpy' in sys.modules)")
    assert out == "False"


def test_what_is_chosen_runs():
    out, _ = run("import minisd.blas as b; chosen = b.choose_kernel(); import numpy; print(chosen in (None, b.kernel()) or b.kernel() is None)")
    assert out == "True"


def test_the_user_comes_first():
    out, _ = run("import os, minisd.blas as b; print(b.choose_kernel(), os.environ['OPENBLAS_CORETYPE'])", OPENBLAS_CORETYPE="Nehalem")
    assert out == "Nehalem Nehalem"


def test_too_late_is_said_once(monkeypatch, caplog):
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    monkeypatch.setattr(blas, "best_kernel", lambda text: "SkylakeX")
    monkeypatch.setattr(blas, "kernel", lambda: "Haswell")
    blas._say_too_late.cache_clear()
    with caplog.at_level(logging.WARNING, "minisd.blas"):
        blas.choose_kernel()
        blas.choose_kernel()
    if os.path.exists("/proc/cpuinfo"):
        assert len(caplog.records) == 1 and "OPENBLAS_CORETYPE=SkylakeX" in caplog.text
    assert "OPENBLAS_CORETYPE" not in os.environ


def test_blas_gets_its_threads_back():
    get = blas._openblas("get_num_threads")
    if get is None:
        pytest.skip("this NumPy has another BLAS than OpenBLAS")
    before = get()
    with blas.one_thread() as workers:
        assert workers == before and get() == 1
        with blas.one_thread() as nested:
            assert nested == before and get() == 1
        assert get() == 1
    assert get() == before
