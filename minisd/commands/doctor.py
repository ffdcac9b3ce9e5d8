"""`minisd doctor`: the facts about this installation that belong into an issue."""

import json
import os
import platform
import sys

import click


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json):
    """Print versions, BLAS, threads, memory, cache, and whether the embedded weights are whole. Exit code 1 where something is broken."""
    found = examine()
    if as_json:
        click.echo(json.dumps(found))
    else:
        width = max(map(len, found))
        for name, value in found.items():
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            click.echo(f"{name:<{width}}  {text or '–'}")
    sys.exit(0 if found["problems"] == [] else 1)


def examine() -> dict:
    """Everything, and `problems`, a list of sentences."""
    import numpy as np

    from .. import __version__
    from ..blas import kernel
    from ..checkpoint.report import in_bytes
    from ..gpu import installed
    from ..request import available_bytes

    problems: list = []
    free = available_bytes()
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "minisd": __version__,
        "python": f"{platform.python_version()} {platform.python_implementation()}",
        "system": platform.platform(),
        "libraries": libraries(problems),
        "blas": f"{blas.get('name')} {blas.get('version')}, kernel {kernel() or 'unknown'}",
        "threads": {"cores": usable_cores(), **{name: os.environ[name] for name in THREADS if name in os.environ}},
        "memory free": "unknown" if free is None else in_bytes(free),
        "product of matrices": product(problems),
        "embedded model": embedded(problems),
        "cache": cache(),
        "cupy": ", ".join(installed()) or "not installed",
        "gpu": graphics(problems),
        "kernels": kernels(),
        "problems": problems,
    }


THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_CORETYPE")


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def libraries(problems: list) -> dict:
    """The versions of what minisd needs."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("numpy", "safetensors", "tokenizers", "huggingface_hub", "pillow", "click", "tqdm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
            problems.append(f"{name} is not installed")
    return found


def product(problems: list) -> str:
    """The error of one float32 matrix product against float64: a broken BLAS, or one that computes in less, shows here."""
    import numpy as np

    random = np.random.RandomState(0)
    a, b = (random.standard_normal((257, 257)) for _ in "ab")
    a, b = a.astype("float32"), b.astype("float32")
    truth = a.astype("float64") @ b.astype("float64")
    error = float(np.linalg.norm(a @ b - truth) / np.linalg.norm(truth))
    if not error <= 1e-6:
        problems.append(f"float32 matrix products are {error:.1e} off; expected about 2e-7")
    return f"relative error {error:.1e} in float32"


def embedded(problems: list) -> str:
    """Whether every tensor of the embedded model is there, of the right shape, and finite."""
    from ..errors import MinisdError
    from ..pipeline import StableDiffusionPipeline

    try:
        return f"whole: {StableDiffusionPipeline.from_pretrained('tiny')!r}"
    except MinisdError as error:
        problems.append(f"the embedded model: {error.what}")
        return "broken"


def graphics(problems: list) -> dict | str:
    """What GPU is used, or why none is. CuPy that is there and cannot be used is a problem; a machine without it has none."""
    from .. import gpu
    from ..errors import MinisdError

    try:
        return gpu.describe(gpu.choose("cuda"))
    except MinisdError as error:
        if gpu.installed():
            problems.append(f"the GPU: {error.what}")
        return f"not used: {error.what} ({error.why}); fix: {error.fix}"


def kernels() -> dict:
    """What the CUDA kernels are compiled with, and where they are kept."""
    from ..errors import ResourceError
    from ..ops.cuda import nvrtc
    from ..ops.cuda.compile import cache_folder

    try:
        compiler = nvrtc.version()
        headers = str(nvrtc.include_folder())
    except ResourceError as error:
        return {"compiler": f"none: {error.what}"}
    folder = cache_folder()
    return {"nvrtc": compiler, "headers": headers, "kept in": str(folder), "compiled": len(list(folder.glob("*.cubin")))}


def cache() -> dict:
    """Where hub models are kept."""
    from huggingface_hub import constants

    folder = constants.HF_HUB_CACHE
    return {"folder": str(folder), "exists": os.path.isdir(folder), "offline": bool(constants.HF_HUB_OFFLINE)}
