"""docs/looking.md is true: its programs run, and its commands exist."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "looking.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_run(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "docs/looking.md", "exec"), {})  # noqa: S102
    assert ("save" not in program) == (not list(tmp_path.iterdir()))


def test_commands_and_functions_exist():
    from minisd import viz
    from minisd.commands.plot import command

    assert set(re.findall(r"minisd plot (\w+)", PAGE)) == set(command.commands)
    assert {name for name in re.findall(r"viz\.(\w+)", PAGE)} <= set(viz.__all__)
