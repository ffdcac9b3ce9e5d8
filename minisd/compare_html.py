"""A comparison as one static page: the tree of blocks and layers, coloured by how much of its budget each one used."""

import html
import math

from .compare import Diff, Row

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 78em; color: #222; }
h1 { font-size: 1.3em; } pre { white-space: pre-wrap; background: #f4f4f4; padding: .8em; border-radius: 4px; }
details { margin-left: 1.2em; } summary { cursor: pointer; } .leaf { margin-left: 2.3em; }
.swatch { display: inline-block; width: .9em; height: .9em; border-radius: 2px; margin-right: .5em; vertical-align: -1px; }
.numbers { color: #666; font: 12px ui-monospace, monospace; margin-left: .8em; } .wrong { font-weight: 600; }
"""


def page(result: Diff) -> str:
    """HTML without scripts and without anything to fetch. Blocks that hold a layer which is off by itself are open."""
    first = result.first_divergence()
    title = "No divergence" if first is None else f"First divergence: {first.label}"
    body = "".join(_branch(name, node) for name, node in _tree(result.rows).items())
    scale = ((0.01, "a hundredth of the budget"), (0.3, "a third"), (1.0, "all"), (10.0, "ten times"))
    legend = " ".join(f"{_swatch(share)}{text}" for share, text in scale)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>\n'
        f"<h1>{html.escape(title)}</h1>\n<pre>{html.escape(result.headline())}</pre>\n<p>{legend}</p>\n{body}</html>\n"
    )


def used(row: Row) -> float:
    """The share of its budget that a row's error is; ∞ for what cannot be measured."""
    if row.verdict in ("SHAPE", "NAN") or not math.isfinite(row.l2):
        return math.inf
    return row.l2 / row.allowed if row.allowed else (math.inf if row.l2 else 0.0)


def colour(share: float) -> str:
    """From green at a hundredth of the budget over yellow at all of it to red at ten times."""
    place = 1.0 if share == math.inf else min(max((math.log10(max(share, 1e-9)) + 2.0) / 3.0, 0.0), 1.0)
    return f"hsl({120.0 * (1.0 - place):.0f} 65% 45%)"


def _tree(rows: list) -> dict:
    """Nested by the parts of the names, in the order of execution; the calls of a layer lie under the key ""."""
    root: dict = {}
    for row in rows:
        node = root
        for part in row.name.replace("/", ".").split("."):
            node = node.setdefault(part, {})
        node.setdefault("", []).append(row)
    return root


def _branch(name: str, node: dict) -> str:
    own, children = node.get("", []), {key: child for key, child in node.items() if key}
    lines = "".join(_line(name, row) for row in own)
    if not children:
        return "".join(f'<div class="leaf">{_line(name, row)}</div>\n' for row in own)
    below = list(_rows(node))
    opened = " open" if any(row.wrong for row in below) else ""
    head = lines or f"{_swatch(max(map(used, below)))}{html.escape(name)}"
    return f"<details{opened}><summary>{head}</summary>\n{''.join(_branch(key, child) for key, child in children.items())}</details>\n"


def _rows(node: dict):
    for key, child in node.items():
        yield from child if key == "" else _rows(child)


def _line(name: str, row: Row) -> str:
    step = f" step {row.call}" if row.call else ""
    errors = f"L2 {row.l2:.2e} of {row.allowed:.2e} · max {row.max_abs:.2e} at {list(row.worst)}"
    numbers = f"{'×'.join(map(str, row.shape))} · {errors} · {row.verdict} {row.note}"
    ratio = "" if row.ratio is None else f" · r {row.ratio:.2f}"
    style = ' class="wrong"' if row.wrong else ""
    return f'{_swatch(used(row))}<span{style}>{html.escape(name + step)}</span><span class="numbers">{html.escape(numbers + ratio)}</span> '


def _swatch(share: float) -> str:
    return f'<span class="swatch" style="background:{colour(share)}"></span>'
