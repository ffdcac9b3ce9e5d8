"""The tables of docs/cpu.md and docs/conv.md, between their markers, from what `bench_cpu.py` has measured."""

import re
import statistics
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
TITLES = {
    "text": "text encoder, 2 × 77 tokens", "vae_encode": "VAE encode, 512 × 512", "vae_decode": "VAE decode, 512 × 512",
    "unet": "UNet step, batch 2, 64 × 64", "picture": "20-step picture, 512 × 512",
}  # fmt: skip
MEMORY = {"unet": "UNet, load and one step", "vae": "VAE, load and one decode"}


def median(entry: dict, name: str):
    return statistics.median(entry["seconds"][name]) if entry.get("seconds", {}).get(name) else None


def machines(data: dict, parts) -> list[str]:
    """A line for every machine and day: which parts were measured there."""
    lines: dict = {}
    for part in parts:
        if part in data:
            e = data[part]["environment"]
            where = (
                f"{e['cpu']}, {e['threads']} threads, NumPy {e['numpy']} with OpenBLAS kernel {e['blas_kernel']}, torch {e['torch']}, {e['date']}"
            )
            lines.setdefault(where, []).append(f"{part.removeprefix('errors_')} {e['load_average_at_start']:.1f}")
    return [f"{where}; load average before each part: {', '.join(parts)}.\n" for where, parts in lines.items()]


def row(*cells) -> str:
    return f"| {' | '.join(cells)} |"


def table(title: str, columns, rows) -> list[str]:
    return [row(title, *columns), "|---" * (len(columns) + 1) + "|", *rows, ""] if rows else []


def models(data: dict) -> str:
    rows = []
    for part, title in TITLES.items():
        if part in data:
            ours, exact, torch, last, half = (median(data[part], n) for n in ("minisd", "minisd exact", "torch fp32", "torch channels_last", "torch bf16"))
            cells = [f"{t:.2f}" if t else "–" for t in (ours, exact, torch, last, half)]
            rows.append(row(title, *cells, *(f"**{t / ours:.2f}×**" if t else "–" for t in (torch, half))))
    lines = [*machines(data, TITLES), *table("seconds (median)", ("minisd", "exact", "torch fp32", "channels_last", "bf16", "fp32 / minisd", "bf16 / minisd"), rows)]

    names, rows = ("minisd", "minisd exact", "torch fp32", "torch bf16"), []
    for part, title in TITLES.items():
        errors = data.get(f"errors_{part}", {}).get("relative_l2_to_float64", {})
        if errors:
            rows.append(row(title, *(f"{errors[n]:.1e}" if n in errors else "–" for n in names)))
    lines += table("relative L2 error to float64", names, rows)

    names, rows = ("minisd", "minisd, resident float16", "torch fp32", "torch channels_last", "torch bf16"), []
    for part, title in MEMORY.items():
        peaks = data.get("memory", {}).get(part, {})
        if peaks:
            rows.append(row(title, *(f"{peaks[n]['VmHWM'] / 1e9:.2f}" if n in peaks else "–" for n in names)))
    return "\n".join(lines + table("peak memory, GB (VmHWM)", names, rows)).rstrip()


def ladder(data: dict, part: str, shape_of) -> str:
    rows = []
    for key, entry in data.get(part, {}).items():
        if key != "environment":
            shape = shape_of(key)
            for name in entry["seconds"]:
                t = median(entry, name)
                speed = f"{entry['gflop'] / t:.0f}" if entry["gflop"] else "–"
                rows.append(row(shape, name, f"{1e3 * t:.1f}", speed, f"{entry['megabytes']:.0f}", f"{entry['relative_l2_to_float64'][name]:.1e}"))
                shape = ""
    if not rows:
        return f"Not measured yet: `python tools/bench_cpu.py {part}`."
    columns = ("rung", "ms", "GFLOP/s", "MB", "error to float64")
    return "\n".join([*machines(data, [part]), *table("shape", columns, rows)]).rstrip()


def conv_shape(key: str) -> str:
    op, B, side, C, C_out = key.split()
    return f"{B} × {side}² {C} → {C_out}" + (" doubled" if op == "upsample_conv2d" else "")


def write_tables(data: dict):
    """Replaces what stands between <!-- bench:NAME --> and <!-- /bench:NAME -->."""
    for page, mark, text in (
        ("cpu.md", "cpu", models(data)), ("cpu.md", "ops", ladder(data, "ops", str)), ("conv.md", "conv", ladder(data, "conv", conv_shape)),
    ):  # fmt: skip
        path = DOCS / page
        between = rf"(<!-- bench:{mark} -->\n).*?(<!-- /bench:{mark} -->)"
        path.write_text(re.sub(between, lambda m: f"{m[1]}{text}\n{m[2]}", path.read_text("utf-8"), flags=re.S), "utf-8")
