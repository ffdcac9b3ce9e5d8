"""The tables of docs/kernels between `<!-- gpu:NAME -->` and `<!-- /gpu:NAME -->`, from what was measured; where nothing was, they say so."""

import re
from pathlib import Path

from minisd.ops import RUNGS

from . import acceptance
from .acceptance import result
from .predictions import PREDICTED

PAGES = Path(__file__).resolve().parents[2] / "docs" / "kernels"
MARKERS = re.compile(r"(<!-- gpu:(\w+) -->\n).*?(<!-- /gpu:\2 -->)", re.DOTALL)
NOT_YET = "Not measured yet: `python tools/gpu_report.py{parts}`.\n"
NAMES = {
    "flash_attention": "SDPA flash", "cudnn_attention": "SDPA cuDNN", "efficient_attention": "SDPA efficient", "cudnn": "cuDNN", "cublas": "torch",
    "channels_last": "torch, channels last", "channels_first": "torch, channels first",
}  # fmt: skip


def row(*cells) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"


def table(columns, rows) -> str:
    return row(*columns) + "|" + "---|" * len(columns) + "\n" + "".join(row(*cells) for cells in rows)


def number(x, digits: int = 3) -> str:
    """As many digits as matter; – for nothing."""
    if x is None:
        return "–"
    return f"{x:.{digits}g}" if abs(x) < 10**digits else f"{x:.0f}"


def machines(data: dict, parts) -> str:
    """Where and when these parts were measured, a line each."""
    lines: dict = {}
    for part in parts:
        entry = data.get(part)
        if entry and entry["result"]:
            e = entry["environment"]
            versions = ", ".join(f"{name} {value}" for name, value in e.items() if name != "gpu")
            lines.setdefault(f"{e['gpu']}, {entry['date'].split()[0]}, {versions}", []).append(part + (" (short form)" if entry["quick"] else ""))
    return "".join(f"{where}: {', '.join(parts)}.\n" for where, parts in lines.items())


def predicted(*ops) -> str:
    """The table before anything was measured: the rungs that there are."""
    rungs = {op: [r.name for r in RUNGS[op] if r.owner == "cupy"] for op in ops}
    rows = [(op, rung, f"{share} %", "–") for op in ops for rung, share in PREDICTED.get(op, {}).items() if rung in rungs[op]]
    if not rows:
        return ""
    return table(("op", "rung", "predicted, of the roof", "measured"), rows)


def rate(flop: int, nbytes: int, ms: float) -> str:
    return f"{1e-9 * flop / ms:.0f} TFLOP/s" if flop else f"{1e-6 * nbytes / ms:.0f} GB/s"


def ladder_rows(key: str, entry: dict, baselines: dict):
    """The lines of one shape: our rungs, then torch's."""
    op, _, _ = key.partition(" ")
    flop, nbytes, roof = entry["flop"], entry["nbytes"], entry["roof"]
    for r in entry["rows"]:
        if r["ms"]:
            name = f"**{r['rung']}**" if r["rung"] == entry["runs"] else r["rung"]
            ms = number(r["ms"]) + ("" if r["how"].startswith("graph") else " ¹")
            guess = PREDICTED.get(op, {}).get(r["rung"])
            yield key, name, f"{r['error']:.1e}", ms, rate(flop, nbytes, r["ms"]), f"{guess} %" if guess else "–", f"{100 * r['of_roof']:.0f} %"
    for name, baseline in baselines.items():
        if "ms" in baseline:
            ms, least = baseline["ms"], 1e3 * max(flop / roof["flops"], nbytes / roof["bandwidth"])
            yield key, NAMES.get(name, name), "", number(ms), rate(flop, nbytes, ms), "", f"{100 * least / ms:.0f} %"


def ladder(data: dict, part: str, *ops) -> str:
    """Shapes and rungs with error, time, rate, and the share of the roof that was predicted and that was measured; torch below them."""
    torch = result(data, "torch_ops")
    found = {key: entry for key, entry in result(data, part).items() if key.partition(" ")[0] in ops and "rows" in entry}
    rows = [cells for key, entry in found.items() for cells in ladder_rows(key, entry, torch.get(key, {}))]
    if not rows:
        guesses = predicted(*ops)
        return NOT_YET.format(parts=f" --parts device,{part},torch_ops") + ("\n" + guesses if guesses else "")
    every = [(key, r["rung"], r["left_out"]) for key, entry in found.items() for r in entry["rows"]]
    wrong = [f"- {key}, {rung}: {reason}\n" for key, rung, reason in every if reason.startswith(("wrong", "failed"))]
    columns = ("shape", "rung", "error", "ms", "rate", "predicted, of the roof", "measured")
    called = "\n¹ launched call by call, because it cannot be recorded: the time of a launch is in it where that is longer.\n"
    note = called if any("¹" in cells[3] for cells in rows) else ""
    return machines(data, (part, "torch_ops")) + "\n" + table(columns, rows) + note + ("\n" + "".join(wrong) if wrong else "")


def convolutions(data: dict) -> str:
    """All 3 × 3 convolutions of a step beside cuDNN."""
    ours, torch = result(data, "unet_convolutions"), result(data, "torch_ops")
    rows = []
    for key, entry in ours.items():
        if isinstance(entry, dict) and "times" in entry:
            B, side, C, O, _, stride = key.split(",")
            cudnn = torch.get(f"conv2d {key}", {}).get("cudnn", {}).get("ms")
            share = f"{100 * entry['of_roof']:.0f} %" if entry["ms"] else entry["left_out"]
            ratio = f"{cudnn / entry['ms']:.2f}×" if cudnn and entry["ms"] else "–"
            shape = f"{B} × {side}² {C} → {O}{', stride 2' if stride == '2' else ''}"
            rows.append((shape, entry["times"], entry["rung"], number(entry["ms"]), share, number(cudnn), ratio))
    if not rows:
        return NOT_YET.format(parts=" --parts device,unet_convolutions,torch_ops")
    total = acceptance.convolutions(data)
    if total[0]:
        times, ratio = sum(cells[1] for cells in rows), f"{total[0] / total[1]:.2f}×"
        rows.append(("all, as often as they occur", times, "", number(total[1]), "", number(total[0]), ratio))
    columns = ("shape", "times a step", "rung", "ms", "of the roof", "cuDNN, ms", "cuDNN / minisd")
    return machines(data, ("unet_convolutions", "torch_ops")) + "\n" + table(columns, rows)


def variants(data: dict) -> str:
    """The three fastest of what a launcher can be told, for each shape, beside what it chooses."""
    rows = []
    for key, found in result(data, "variants").items():
        if isinstance(found, dict):
            times = sorted((t, name) for name, t in found.items() if isinstance(t, (int, float)))
            chosen = found.get("what the façade takes")
            others = [f"{name} {number(t)}" for t, name in times if name != "what the façade takes"][:3]
            rows.append((key, number(chosen), "; ".join(others)))
    if not rows:
        return NOT_YET.format(parts=" --parts device,variants")
    return machines(data, ("variants",)) + "\n" + table(("shape", "the façade's choice, ms", "the fastest variants, ms"), rows)


def step(data: dict) -> str:
    """Networks and a picture, beside torch."""
    unet, vae, image = (result(data, part) for part in ("unet", "vae", "image"))
    eager, compiled = (result(data, part) for part in ("torch_unet", "torch_compile"))
    rows = []

    def line(title, entry):
        if entry and "ms" in entry:
            rows.append((title, number(entry["ms"]), number(entry["wall_ms"])))

    line("UNet step, launched kernel by kernel", unet.get("eager"))
    line("UNet step, prompt and time projected once, one CUDA graph", unet.get("graph"))
    line("UNet step, and what both halves of guidance share computed once", unet.get("graph", {}).get("shared"))
    line("UNet step, diffusers", eager.get("unet"))
    line("UNet step, torch.compile max-autotune", compiled.get("unet"))
    line("VAE decode, 512 × 512", vae.get("decode"))
    line("VAE decode, diffusers", eager.get("vae"))
    line("VAE decode, torch.compile max-autotune", compiled.get("vae"))
    if "seconds" in image:
        rows.append(("picture in 50 steps, token ids to pixels", "", number(1e3 * image["seconds"]["median"])))
    parts = ("unet", "vae", "image", "torch_unet", "torch_compile")
    unfinished = {part: data[part] for part in parts if data.get(part, {}).get("reason")}
    reasons = "".join(f"- {part}: {entry['status']}, {entry['reason'].splitlines()[0]}\n" for part, entry in unfinished.items())
    if not rows:
        return NOT_YET.format(parts="") + ("\n" + reasons if reasons else "")
    return machines(data, parts) + "\n" + table(("float16", "ms on the device", "ms by the clock"), rows) + ("\n" + reasons if reasons else "")


def device(data: dict) -> str:
    facts, roofs = result(data, "device").get("device"), result(data, "ceilings")
    if not facts or "float16" not in roofs:
        return NOT_YET.format(parts=" --parts device,ceilings")
    roof = roofs["float16"]
    rows = [
        ("GPU", f"{facts['name']}, {facts['multiprocessors']} multiprocessors, capability {facts['capability']}"),
        ("L2 cache", f"{facts['l2_bytes'] / 1e6:.0f} MB"), ("cuBLAS, 8192³, float16", f"{1e-12 * roof['flops']:.0f} TFLOP/s"),
        ("copy, bytes read and written", f"{1e-12 * roof['bandwidth']:.2f} TB/s"), ("state of the repository", facts.get("commit") or "–"),
    ]  # fmt: skip
    return table(("", "measured"), rows)


def accepted(data: dict) -> str:
    return table(("", "wanted", "", "measured"), [(line.name, line.wanted, line.verdict, line.measured) for line in acceptance.lines(data)])


TABLES = {
    "device": device, "acceptance": accepted, "step": step, "convolutions": convolutions, "variants": variants,
    "attention": lambda data: ladder(data, "attention", "attention"), "conv2d": lambda data: ladder(data, "conv2d", "conv2d", "upsample_conv2d"),
    "gemm": lambda data: ladder(data, "gemm", "linear", "feed_forward"), "group_norm": lambda data: ladder(data, "group_norm", "group_norm"),
    "others": lambda data: ladder(data, "others", "layer_norm", "softmax", "silu", "gelu", "quick_gelu", "geglu"),
}  # fmt: skip


def write(data: dict, pages: Path = PAGES):
    """Rewrites what stands between the markers of every page."""
    for page in sorted(pages.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        new = MARKERS.sub(lambda m: m[1] + TABLES[m[2]](data) + m[3], text)
        if new != text:
            page.write_text(new, encoding="utf-8")
