"""`minisd doctor`: facts for an issue, and what is broken."""

import json

import numpy as np

import minisd as package
from minisd.commands import doctor
from minisd.errors import ModelFileError


def test_a_healthy_installation(minisd, monkeypatch):
    monkeypatch.setattr("minisd.gpu.installed", lambda: [])  # a CuPy without its GPU is a problem
    code, out, _ = minisd("doctor", "--json")
    found = json.loads(out)
    assert code == 0 and found["problems"] == [] and found["minisd"] == package.__version__
    assert found["libraries"]["numpy"] == np.__version__ and "missing" not in found["libraries"].values()
    assert found["threads"]["cores"] >= 1 and found["blas"] and found["embedded model"].startswith("whole")
    code, out, _ = minisd("doctor")
    assert code == 0 and [line.split("  ")[0] for line in out.splitlines()] == list(found)


def test_a_broken_model_is_a_problem(minisd, monkeypatch):
    def refuse(*args, **kwargs):
        raise ModelFileError("unet.conv_in.weight is missing")

    monkeypatch.setattr(package.StableDiffusionPipeline, "from_pretrained", refuse)
    code, out, _ = minisd("doctor", "--json")
    assert code == 1 and json.loads(out)["problems"] == ["the embedded model: unet.conv_in.weight is missing"]


def test_a_missing_library_and_a_coarse_blas_are_problems(monkeypatch):
    import importlib.metadata

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    problems = []
    assert doctor.libraries(problems)["tqdm"] == "missing" and "numpy is not installed" in problems

    class Coarse(np.random.RandomState):
        def standard_normal(self, shape):
            return super().standard_normal(shape) * np.nan

    problems = []
    monkeypatch.setattr(np.random, "RandomState", Coarse)
    assert "nan" in doctor.product(problems) and len(problems) == 1
