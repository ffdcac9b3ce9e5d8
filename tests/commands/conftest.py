"""The command line as a person meets it."""

import pytest

from tests.test_cli import run


@pytest.fixture
def minisd(capsys, tmp_path, monkeypatch):
    """minisd("diff", …) -> (exit code, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)

    return lambda *args: run(capsys, *args)
