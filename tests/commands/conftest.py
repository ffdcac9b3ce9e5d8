"""The command line as a person meets it."""

import pytest

from minisd import cli


@pytest.fixture
def minisd(capsys, tmp_path, monkeypatch):
    """minisd("diff", …) -> (exit code, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        code = 0
        try:
            cli.main(list(args))
        except SystemExit as exit:
            code = exit.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run
