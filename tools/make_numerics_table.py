"""Writes the closeness table of docs/numerics.md: every layer kind, ours and torch's float32 against float64.

    python tools/make_numerics_table.py            rewrites what stands between the markers
    python tools/make_numerics_table.py --check    only says whether it would change, by the kinds and counts, not by the last digit

Needs no torch: the golden files hold torch's float32 results and the float64 truth, on the inputs that every module was given.
"""

import re
import sys
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from minisd.compare import own_budget  # noqa: E402
from minisd.teacher import compute  # noqa: E402
from tests.goldens import golden  # noqa: E402
from tests.tiny_models import CONFIGS  # noqa: E402

PAGE = ROOT / "docs" / "numerics.md"
BEGIN, END = "<!-- closeness: by tools/make_numerics_table.py -->\n", "<!-- /closeness -->"
HEAD = "| layer | modules | ours | torch | r median | r largest | budget |\n|---|---:|---:|---:|---:|---:|---:|\n"


def measured() -> dict:
    """{kind: [(error of ours, error of torch, budget)]}, relative L2 against float64, a pair for each recorded module."""
    pairs: dict = {}
    for name in CONFIGS:
        file = golden(name)
        for record in file.records.values():
            ours = compute(file.model("float32"), record.kind, record.path, record.inputs)
            y, plain, truth = (np.concatenate(parts) for parts in (
                [a.ravel()[keep].astype("float64") for a, keep in zip(ours, record.positions)], [a.astype("float64") for a in record.plain], record.truth
            ))  # fmt: skip
            size = np.linalg.norm(truth)
            weight = file.shapes.get(f"{record.path}.weight", ())
            budget = own_budget(record.kind, int(np.prod(weight[1:])) if record.kind in ("Linear", "Conv2d") else 0, "float32")
            pairs.setdefault(record.kind, []).append((np.linalg.norm(y - truth) / size, np.linalg.norm(plain - truth) / size, budget))
    return pairs


def table(pairs: dict) -> str:
    """Sorted by name; the last line is the median of all modules."""
    lines = [line(kind, pairs[kind]) for kind in sorted(pairs)]
    return HEAD + "".join(lines) + line("**all**", [pair for kind in sorted(pairs) for pair in pairs[kind]])


def line(kind: str, pairs: list) -> str:
    ours, torch, budget = np.array(pairs).T
    ratios = ours[torch > 0] / torch[torch > 0]
    r = ("–", "–") if not ratios.size else (f"{np.median(ratios):.2f}", f"{ratios.max():.2f}")
    return f"| {kind} | {len(pairs)} | {np.median(ours):.1e} | {np.median(torch):.1e} | {r[0]} | {r[1]} | {budget.max():.1e} |\n"


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if the table is of other kinds or counts.")
def main(check):
    """Rewrites the table of docs/numerics.md."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    old, after = rest.split(END)
    new = table(measured())
    if check:
        sys.exit(0 if kinds(old) == kinds(new) else "docs/numerics.md is out of date: run tools/make_numerics_table.py")
    PAGE.write_text(f"{before}{BEGIN}{new}{END}{after}", encoding="utf-8")
    click.echo(f"{PAGE}: {len(kinds(new))} kinds", err=True)


def kinds(lines: str) -> list:
    return re.findall(r"^\| ([\w.*]+) \| (\d+) \|", lines, re.MULTILINE)


if __name__ == "__main__":
    main()
