"""Fixtures that more than one folder of tests uses."""

from pathlib import Path

import numpy as np
import pytest

from minisd import StableDiffusionPipeline
from tests.cudasim import counts

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden_ops() -> dict:
    """tests/golden/ops.npz: "<op>/<case>/truth" in float64 and "<op>/<case>/torch" in float32, by tools/make_golden_ops.py."""
    with np.load(GOLDEN / "ops.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="session")
def loaded():
    """The embedded pipeline, loaded once."""
    return StableDiffusionPipeline.from_pretrained("tiny")


@pytest.fixture
def pipe(loaded):
    """The embedded pipeline, with its own scheduler before each test."""
    kept = loaded.scheduler
    yield loaded
    loaded.scheduler = kept


def pytest_terminal_summary(terminalreporter):
    """What was compiled and simulated, above pytest's own last lines."""
    if line := counts.summary():
        terminalreporter.write_line(line)
