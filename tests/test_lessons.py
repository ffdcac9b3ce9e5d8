"""docs/lessons: every lesson runs on the embedded model and its asserts hold, its notebook is the same program, and the table of contents is true."""

import ast
import importlib.util
import os
import re
from pathlib import Path

import pytest

from .clip_vocab import write_tokenizer

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "lessons"
LESSONS = sorted(path.name for path in FOLDER.glob("*.py"))
TABLE = (FOLDER / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (t?\d+) \| (.+?) \| (.+?) \| (.+?) \|$", TABLE, re.MULTILINE)

spec = importlib.util.spec_from_file_location("lesson_to_notebook", ROOT / "tools" / "lesson_to_notebook.py")
lesson_to_notebook = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lesson_to_notebook)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("clip"), "sd1")


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_runs_and_holds(name, vocabulary, tmp_path, monkeypatch):
    """With CLIP's vocabulary, so that the token numbers of the walkthroughs are checked too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINISD_CLIP_TOKENIZER", str(vocabulary))
    for variable in ("MINISD_SD14", "MINISD_SD21"):
        monkeypatch.delenv(variable, raising=False)
    exec(compile((FOLDER / name).read_text(encoding="utf-8"), name, "exec"), {"__name__": "__main__"})  # noqa: S102
    assert not list(tmp_path.iterdir())  # a lesson leaves nothing lying about


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_asserts_what_it_says_and_ends_with_three_exercises(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    checks = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Assert) or isinstance(n, ast.Attribute) and n.attr.startswith("assert_")]
    assert len(checks) >= 20
    assert 'tags=["official"]' in text
    exercises = text.rpartition("# ## Exercises")[2]
    assert re.findall(r"^# (\d)\. ", exercises, re.MULTILINE) == ["1", "2", "3"] and "# %%" not in exercises


@pytest.mark.parametrize("name", LESSONS)
def test_a_notebook_is_the_same_program(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    cells = lesson_to_notebook.notebook(text)["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(text))
    assert cells[0]["cell_type"] == "markdown" and cells[0]["source"][0].startswith("# Lesson ")
    assert len(cells) == text.count("\n# %%") + 1 and len({cell["id"] for cell in cells}) == len(cells)
    assert any(cell["metadata"].get("tags") == ["official"] for cell in cells)
    for cell in cells:
        assert set(cell) == {"id", "cell_type", "source", "metadata"} | ({"execution_count", "outputs"} if cell["cell_type"] == "code" else set())


def test_a_notebook_cell_keeps_its_lines():
    cells = lesson_to_notebook.notebook('# %% [markdown]\n# # Title\n#\n# text\n\n# %% tags=["official"]\nx = 1\n\n\ny = 2\n')["cells"]
    assert [cell["source"] for cell in cells] == [["# Title\n", "\n", "text"], ["x = 1\n", "\n", "\n", "y = 2"]]


def test_the_table_has_every_row_of_the_walkthroughs_once():
    """Fifty-one things that they do (50 and 51, the safety checker and the watermark, are none of these lessons'), and nine traps."""
    assert [number for number, *_ in ROWS] == [*map(str, [*range(1, 50), 52, 53]), *(f"t{i}" for i in range(1, 10))]


@pytest.mark.parametrize("number, what, places, tests", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_leads_to_a_section_and_to_a_test(number, what, places, tests):
    found = re.findall(r"\[(\d) §(\d+)\]\((\w+\.py)\)", places)
    assert found and len(found) == places.count("](")
    for lesson, section, name in found:
        assert name.startswith(f"{lesson}_") and re.search(rf"^# ## {section}\. ", (FOLDER / name).read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"`([\w/.]+)(?:::(\w+))?`", tests)
    assert named and len(named) == tests.count("`") // 2
    for path, function in named:
        assert not function or f"\ndef {function}(" in (ROOT / path).read_text(encoding="utf-8")
        assert (ROOT / path).is_file()


def test_every_lesson_is_in_the_table():
    assert {name for name in LESSONS if f"]({name})" in TABLE} == set(LESSONS) and len(LESSONS) == 5


def test_notebooks_are_written_beside_the_lessons_or_into_a_folder(tmp_path):
    from click.testing import CliRunner

    result = CliRunner().invoke(lesson_to_notebook.main, [str(FOLDER / "0_parts.py"), "-o", str(tmp_path / "new")])
    assert result.exit_code == 0 and os.listdir(tmp_path / "new") == ["0_parts.ipynb"]
    assert result.output.startswith(str(tmp_path))
    (tmp_path / "no.py").write_text("x = 1\n# %%\n")
    assert CliRunner().invoke(lesson_to_notebook.main, [str(tmp_path / "no.py")]).exit_code == 1
