"""Writes the closeness tables of docs/numerics.md: every layer kind, ours and torch's float32 against float64.

    python tools/make_numerics_table.py                rewrites the table of the small models between its markers
    python tools/make_numerics_table.py --check        only says whether it would change, by the kinds and counts, not by the last digit
    python tools/make_numerics_table.py --full-size    runs the UNet of SD 1.5 with random weights, and rewrites the other table

The first needs no torch: the golden files hold torch's float32 results and the float64 truth, on the inputs that every module was given.
--full-size needs the `reference` extra, 10 GB of memory and some ten minutes of one core.
"""

import re
import sys
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from minisd import ops  # noqa: E402
from minisd.compare import own_budget  # noqa: E402
from minisd.teacher import compute  # noqa: E402
from tests.goldens import golden  # noqa: E402
from tests.tiny_models import CONFIGS  # noqa: E402

PAGE = ROOT / "docs" / "numerics.md"
BEGIN, END = "<!-- closeness: by tools/make_numerics_table.py -->\n", "<!-- /closeness -->"
FULL_BEGIN, FULL_END = "<!-- full size: by tools/make_numerics_table.py --full-size -->\n", "<!-- /full size -->"
FULL_HEAD = "| layer | modules | torch | exact | r median | r largest | fast | r median | r largest |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n"
HEAD = "| layer | modules | ours | torch | r median | r largest | budget |\n|---|---:|---:|---:|---:|---:|---:|\n"


def measured() -> dict:
    """{kind: [(error of ours, error of torch, budget)]}, relative L2 against float64, a pair for each recorded module."""
    pairs: dict = {}
    for name in CONFIGS:
        file = golden(name)
        for record in file.records.values():
            with ops.using(profile="exact"):
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


def measured_at_full_size() -> list:
    """The Closeness of every module of the UNet of SD 1.5, on one picture of 64×64 latents; weights as diffusers draws them."""
    import torch

    from tests.reference.closeness import stream
    from tools.bench_cpu import our_model, torch_model

    torch.set_num_threads(1)
    reference = torch_model("unet")
    given = torch.Generator().manual_seed(1)
    sample, context = torch.randn((1, 4, 64, 64), generator=given), torch.randn((1, 77, 768), generator=given)
    return stream(reference, our_model(reference, "unet"), lambda: reference(sample, 500, context))


def full_size_table(rows: list) -> str:
    """A line a kind, by name; the last line is all modules."""
    groups = [(kind, [row for row in rows if row.kind == kind]) for kind in sorted({row.kind for row in rows})]
    return FULL_HEAD + "".join(full_size_line(kind, members) for kind, members in [*groups, ("**all**", rows)])


def full_size_line(kind: str, rows: list) -> str:
    cells = [kind, str(len(rows)), f"{np.median([row.torch for row in rows]):.1e}"]
    for profile in ("exact", "fast"):
        ratios = [row.ratio[profile] for row in rows]
        cells += [f"{np.median([row.ours[profile] for row in rows]):.1e}", f"{np.median(ratios):.2f}", f"{max(ratios):.2f}"]
    return f"| {' | '.join(cells)} |\n"


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if the table is of other kinds or counts.")
@click.option("--full-size", is_flag=True, help="The table of the UNet of SD 1.5 instead; needs torch and 10 GB.")
def main(check, full_size):
    """Rewrites a table of docs/numerics.md."""
    begin, end = (FULL_BEGIN, FULL_END) if full_size else (BEGIN, END)
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    old, after = rest.split(end)
    new = full_size_table(measured_at_full_size()) if full_size else table(measured())
    if check:
        sys.exit(0 if kinds(old) == kinds(new) else "docs/numerics.md is out of date: run tools/make_numerics_table.py")
    PAGE.write_text(f"{before}{begin}{new}{end}{after}", encoding="utf-8")
    click.echo(f"{PAGE}: {len(kinds(new))} kinds", err=True)


def kinds(lines: str) -> list:
    return re.findall(r"^\| ([\w.*]+) \| (\d+) \|", lines, re.MULTILINE)


if __name__ == "__main__":
    main()
