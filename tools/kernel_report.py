"""Writes the tables of docs/kernels/: what each CUDA kernel takes of a GPU, as the compiler reports it. Needs NVRTC, and no GPU.

    python tools/kernel_report.py                       rewrites what stands between the markers of every page
    python tools/kernel_report.py --arch sm_120         for another architecture (repeat it for several)
"""

import re
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from minisd.ops import cuda  # noqa: E402, F401  declares the kernels
from minisd.ops.cuda import nvrtc  # noqa: E402
from minisd.ops.cuda.compile import ARCHITECTURES, compile_instances, resource_report, target  # noqa: E402
from minisd.ops.cuda.kernel import KERNELS  # noqa: E402

PAGES = sorted((ROOT / "docs" / "kernels").glob("*.md"))
MARKERS = re.compile(r"(<!-- kernels:(\w+): by tools/kernel_report.py -->\n).*?(<!-- /kernels -->)", re.DOTALL)


def table(op: str, architectures) -> str:
    """Every instance of the kernels of one folder: registers a thread on each architecture (–: not for that one), spilled bytes, static
    shared memory."""
    lines = [f"| kernel | {' | '.join(f'registers, {arch}' for arch in architectures)} | spills | static shared bytes |\n",
             f"|---|{'---:|' * (len(architectures) + 2)}\n"]  # fmt: skip
    for file in sorted({k.file for k in KERNELS if k.file.startswith(f"{op}/")}):
        instances = [i for k in KERNELS if k.file == file for i in k.all()]
        reports = []
        for arch in architectures:
            if not target(file, arch):
                reports.append({})
                continue
            _, names, log = compile_instances(file, instances, target(file, arch))
            found = resource_report(log)
            reports.append({expression: found[name] for expression, name in names.items()})
        for i in instances:
            registers = " | ".join(str(r[i.expression].registers) if r else "–" for r in reports)
            used = [report[i.expression] for report in reports if report]
            if not used:
                continue
            lines.append(f"| {file.partition('/')[2]}: `{i.expression}` | {registers} | {max(u.spill_bytes for u in used)} | {used[0].shared_bytes} |\n")
    return f"NVRTC {nvrtc.version()}:\n\n{''.join(lines)}"


@click.command()
@click.option("--arch", "architectures", multiple=True, default=("sm_80", "sm_90"), type=click.Choice(ARCHITECTURES), help="Compile for this one.")
def main(architectures):
    """Rewrites the tables of docs/kernels."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = MARKERS.sub(lambda m: m[1] + table(m[2], architectures) + m[3], text)
        page.write_text(new, encoding="utf-8")
        click.echo(f"{page.relative_to(ROOT)}: {len(MARKERS.findall(text))} table(s)", err=True)


if __name__ == "__main__":
    main()
