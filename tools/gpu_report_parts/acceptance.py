"""What the kernels are to reach, as lines that are met, missed, or not measured for a reason that is said."""

from dataclasses import dataclass

LARGE = 60e6  # bytes of a tensor that no cache holds


@dataclass(frozen=True)
class Line:
    """`met` is None where nothing can be said."""

    name: str
    wanted: str
    measured: str
    met: bool | None

    @property
    def verdict(self) -> str:
        return {True: "met", False: "missed", None: "not measured"}[self.met]


def result(data: dict, part: str) -> dict:
    return data.get(part, {}).get("result", {})


def why_not(data: dict, *parts: str) -> str:
    """The reason of the first of these parts that has none of what was looked for."""
    for part in parts:
        entry = data.get(part)
        if entry is None:
            return f"{part} has not run"
        if entry["reason"]:
            return f"{part}: {entry['reason'].splitlines()[0]}"
    return f"{', '.join(parts)}: the numbers are missing"


def ratio(name: str, wanted: float, above, below, data: dict, parts) -> Line:
    """How many times faster we are: above / below, both in ms."""
    if not above or not below:
        return Line(name, f"≥ {wanted:g}×", why_not(data, *parts), None)
    return Line(name, f"≥ {wanted:g}×", f"{above / below:.2f}× ({above:.3g} ms / {below:.3g} ms)", above / below >= wanted)


def step_ms(data: dict) -> float | None:
    """One UNet step of both halves of guidance by the wall clock: replayed as a graph if there is one, else launched."""
    steps = result(data, "unet")
    return steps.get("graph", {}).get("wall_ms") or steps.get("eager", {}).get("wall_ms")


def row_of(ladder: dict) -> dict | None:
    """The rung that models run, if it was timed."""
    found = [row for row in ladder.get("rows", ()) if row["rung"] == ladder["runs"] and row["ms"]]
    return found[0] if found else None


def sdpa_ms(found: dict) -> float | None:
    return min((entry["ms"] for entry in found.values() if "ms" in entry), default=None)


def convolutions(data: dict) -> tuple[float | None, float | None]:
    """ms of all 3 × 3 convolutions of a step: cuDNN's, ours; None unless every shape was measured by both."""
    ours, torch = result(data, "unet_convolutions"), result(data, "torch_ops")
    shapes = {key: entry for key, entry in ours.items() if isinstance(entry, dict) and "times" in entry}
    theirs = {key: torch.get(f"conv2d {key}", {}).get("cudnn", {}).get("ms") for key in shapes}
    if not shapes or "not reached" in ours or not all(theirs.values()) or not all(entry["ms"] for entry in shapes.values()):
        return None, None
    return sum(e["times"] * theirs[k] for k, e in shapes.items()), sum(e["times"] * e["ms"] for e in shapes.values())


def large_norms(data: dict) -> list[float]:
    """Shares of the copy bandwidth, of tensors that no cache holds."""
    rows = [(ladder, row_of(ladder)) for key, ladder in result(data, "group_norm").items() if key.startswith("group_norm ")]
    return [row["of_roof"] for ladder, row in rows if row and ladder["nbytes"] > 2 * LARGE]


def lines(data: dict) -> list[Line]:
    gpu = data.get("device", {}).get("environment", {}).get("gpu", "")
    step, eager, compiled = step_ms(data), *(result(data, part).get("unet", {}).get("wall_ms") for part in ("torch_unet", "torch_compile"))
    attention = row_of(result(data, "attention").get("attention unet-64", {}))
    norms = large_norms(data)
    probe, correct = result(data, "probe"), result(data, "correctness")
    return [
        Line("PTX wrappers as in the simulator", "all", f"{len(probe['wrong'])} of {len(probe['asked'])} differ" if "wrong" in probe else
             why_not(data, "probe"), not probe["wrong"] if "wrong" in probe else None),
        Line("rungs right on the tests' cases", "all", f"{correct['wrong']} of {len(correct['rungs'])} wrong, {correct['checks']} checks"
             if "checks" in correct else why_not(data, "correctness"), correct["wrong"] == 0 if "checks" in correct else None),
        ratio("UNet step, to diffusers eager", 1.5, eager, step, data, ("unet", "torch_unet")),
        ratio("UNet step, to torch.compile max-autotune", 0.8, compiled, step, data, ("unet", "torch_compile")),
        Line("UNet step on an H200", "≤ 9.5 ms", f"{step:.2f} ms on {gpu}" if step else why_not(data, "unet"),
             step <= 9.5 if step and "H200" in gpu else None),
        Line("group norm + SiLU beyond 60 MB", "≥ 70 % of copying", f"{100 * min(norms):.0f} %" if norms else why_not(data, "group_norm"),
             min(norms) >= 0.7 if norms else None),
        ratio("3 × 3 convolutions of a step, to cuDNN", 0.9, *convolutions(data), data, ("unet_convolutions", "torch_ops")),
        ratio("attention 4096², heads of 40, to the best SDPA", 1.0, sdpa_ms(result(data, "torch_ops").get("attention unet-64", {})),
              attention and attention["ms"], data, ("attention", "torch_ops")),
    ]  # fmt: skip


def text(data: dict) -> str:
    found = lines(data)
    width = max(len(line.name) for line in found)
    return "\n".join(f"{line.name:<{width}}  {line.wanted:<18} {line.verdict:<13} {line.measured}" for line in found)
