"""The command line as a person meets it."""

import sys

import pytest

from tests.test_cli import run


@pytest.fixture
def minisd(capsys, tmp_path, monkeypatch):
    """minisd("diff", …) -> (exit code, stdout, stderr), in an empty folder, without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "cupy", None)  # importing it fails

    return lambda *args: run(capsys, *args)
