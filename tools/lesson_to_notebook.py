"""Turns a lesson, a Python file with `# %%` marks, into a Jupyter notebook.

    python tools/lesson_to_notebook.py docs/lessons/*.py [-o FOLDER]

A cell begins with `# %%`, a text with `# %% [markdown]`; tags=["…"] behind it become the cell's tags. jupytext reads the same files.
"""

import json
import re
from pathlib import Path

import click

MARK = re.compile(r"^# %%(?P<markdown> \[markdown\])?(?: tags=(?P<tags>\[.*\]))?$", re.MULTILINE)


def notebook(lesson: str) -> dict:
    """The text of a lesson as a notebook of format 4.5; what stands before the first mark is not allowed."""
    marks = list(MARK.finditer(lesson))
    if not marks or lesson[: marks[0].start()].strip():
        raise click.ClickException("the lesson does not begin with a `# %%` mark")
    cells = []
    for i, (mark, following) in enumerate(zip(marks, [*marks[1:], None])):
        source = lesson[mark.end() : following.start() if following else None].strip("\n")
        if mark["markdown"]:
            source = "\n".join(line.removeprefix("#").removeprefix(" ") for line in source.splitlines())
        cell = {"id": f"cell-{i}", "cell_type": "markdown" if mark["markdown"] else "code", "source": source.splitlines(keepends=True)}
        cell["metadata"] = {"tags": json.loads(mark["tags"])} if mark["tags"] else {}
        cells.append(cell if mark["markdown"] else cell | {"execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5}


@click.command()
@click.argument("lessons", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder of the notebooks; default: beside each lesson.")
def main(lessons, output):
    """Writes a notebook for each lesson and prints its path."""
    for lesson in lessons:
        folder = output or lesson.parent
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{lesson.stem}.ipynb"
        path.write_text(json.dumps(notebook(lesson.read_text(encoding="utf-8")), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        click.echo(path)


if __name__ == "__main__":
    main()
