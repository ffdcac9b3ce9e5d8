"""Two traces side by side: which layer is the first that left its error budget?

    result = diff("ours.safetensors", "reference.safetensors")      # free running: a layer's error includes what it inherited
    result = diff(pipe, "reference.safetensors")                    # teacher forced: every layer is fed what the reference recorded
    print(result.first_divergence())

The error of a layer is its relative L2 distance ‖ours − ref‖ / ‖ref‖; its budget is a number of unit roundoffs u (2⁻²⁴ in float32)
that follows from what it computes (`own_budget`). Everything is written `error <= allowed`, so that NaN fails.

    free running      also GROWTH times the largest error before it. Beyond that an error is inherited if the inputs were off already,
                      where both traces hold them, else if it is at most GROWTH times an error that was beyond its budget
    teacher forced    also WIDER times the distance of our float32 result from our float64 one; every error is a layer's own
    with a truth      the budget and FACTOR times the reference's own distance from the float64 truth
"""

import math
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from .checkpoint.names import COMPONENTS, from_ldm, is_ldm, official_name
from .errors import UsageError
from .measures import coarser, cosine, like, ratio, relative
from .models.model import Model
from .teacher import NOT_LAYERS, reference_class, reference_names, replay
from .tracefile import TraceFile, key

GROWTH = 4.0  # from one layer to the next; norms divide by small deviations, residual sums cancel
ANGLES = 250.0  # u: sin(tω) of t = 1000 inherits 1000 u from the rounding of tω, in the quarter of the channels where ω is large
WIDER = 4.0
FACTOR = 2.0
WORST = 32.0  # max|error| / max|ref| may be this many times the allowed relative L2
# In units of u, both sides' errors together. Layers that hold others have more roundings behind each other.
BUDGETS = {
    "Embedding": 1.0, "CLIPTextEmbeddings": 2.0, "GroupNorm": 16.0, "LayerNorm": 16.0, "GEGLU": 32.0, "TimestepEmbedding": 32.0,
    "Timesteps": ANGLES, "CLIPEncoder": 256.0, "CLIPTextModel": 256.0, "UNet2DConditionModel": 256.0, "Encoder": 256.0, "Decoder": 256.0,
    "AutoencoderKL.encode": 256.0, "AutoencoderKL.decode": 256.0,
}  # fmt: skip
BLOCK = 64.0  # resnets, attention, transformers and the blocks of the models


def own_budget(kind: str, reduction: int, dtype) -> float:
    """The relative L2 distance that rounding alone explains between two right computations of one layer on the same inputs.

    A sum of K products in blocks, as every BLAS forms it, errs by about √K / 2 in the mean: (8 + √K / 2) u for a matrix product or a
    convolution with K = `reduction`; the other kinds have a constant.        dtype: the coarser of the two
    """
    u = float(np.finfo(dtype).eps) / 2.0
    return u * (8.0 + math.sqrt(reduction) / 2.0 if reduction else BUDGETS.get(kind, BLOCK))


@dataclass(frozen=True)
class Row:
    """One call of one layer.

    l2: of ours against ref, or against the truth where there is one        ours, ref: both values where they differ most
    ratio: r = err(ours, truth) / err(ref, truth)
    """

    name: str
    call: int
    kind: str
    shape: tuple
    verdict: str  # "ok"; "DIFFERS" by itself; "inherits" from one that differs; "SHAPE"; "NAN"
    l2: float = math.nan
    allowed: float = math.nan
    max_abs: float = math.nan
    worst: tuple = ()
    ours: float = math.nan
    ref: float = math.nan
    cosine: float = math.nan
    ulp: float = math.nan
    ratio: float | None = None
    note: str = ""

    @property
    def label(self) -> str:
        return f"{self.name} (step {self.call})" if self.call else self.name

    @property
    def wrong(self) -> bool:
        return self.verdict not in ("ok", "inherits")

    def to_dict(self) -> dict:
        return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in asdict(self).items()}


@dataclass
class Diff:
    """rows in execution order; the names that only one side has."""

    mode: str  # "free running" or "teacher forced"
    rows: list = field(default_factory=list)
    only_ours: list = field(default_factory=list)
    only_ref: list = field(default_factory=list)

    @property
    def same(self) -> bool:
        return not any(row.verdict != "ok" for row in self.rows)

    def first_divergence(self) -> Row | None:
        """The first layer, in order of execution, whose error rounding does not explain."""
        return next((row for row in self.rows if row.wrong), None)

    def median_ratio(self) -> float | None:
        ratios = [row.ratio for row in self.rows if row.ratio is not None and math.isfinite(row.ratio)]
        return float(np.median(ratios)) if ratios else None

    def headline(self) -> str:
        first, n = self.first_divergence(), len(self.rows)
        if first is None:
            worst = max(self.rows, key=lambda row: row.l2 / row.allowed if row.allowed else 0.0)
            text = f"no divergence in {n} layers, {self.mode}; nearest to its budget: {worst.label}, {worst.l2:.2e} of {worst.allowed:.2e}"
        else:
            values = f"at {list(first.worst)} ours {first.ours:.9g}, ref {first.ref:.9g}"
            fault = first.note or f"relative L2 {first.l2:.2e}, allowed {first.allowed:.2e}; {values}"
            count = sum(row.wrong for row in self.rows)
            text = f"first divergence, {self.mode}: {first.label} ({first.kind or 'unknown kind'}): {fault}"
            text += f"\n{count} of {n} layers are off by themselves, {sum(row.verdict == 'inherits' for row in self.rows)} inherit"
        ratios = [row.ratio for row in self.rows if row.ratio is not None]
        if ratios:
            text += f"\ncloseness r = err(ours) / err(ref): median {self.median_ratio():.2f}, largest {max(ratios):.2f}"
        for names, side in ((self.only_ours, "ours"), (self.only_ref, "the reference")):
            if names:
                text += f"\n{len(names)} names only in {side}: {', '.join(names[:4])}{' …' if len(names) > 4 else ''}"
        return text

    def table(self, rows=None) -> str:
        """A line a layer."""
        head = ("verdict", "name", "step", "shape", "rel L2", "allowed", "max abs", "worst at", "ours", "ref", "1−cosine", "ULP", "r")
        lines = [head, *(_cells(row) for row in (self.rows if rows is None else rows))]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)

    def __str__(self) -> str:
        return f"{self.headline()}\n\n{self.table()}"

    def to_dict(self) -> dict:
        """For --json, which has no NaN: what could not be measured is None."""
        first = self.first_divergence()
        return {
            "mode": self.mode, "same": self.same, "first_divergence": first and first.to_dict(), "median_ratio": self.median_ratio(),
            "only_ours": self.only_ours, "only_ref": self.only_ref, "rows": [row.to_dict() for row in self.rows],
        }  # fmt: skip

    def to_html(self) -> str:
        """One static page: the tree of layers, coloured by error."""
        from .compare_html import page

        return page(self)


def _cells(row: Row) -> tuple:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    place = row.verdict, row.name, str(row.call), "×".join(map(str, row.shape))
    errors = f"{row.l2:.2e}", f"{row.allowed:.2e}", f"{row.max_abs:.2e}"
    values = ",".join(map(str, row.worst)), f"{row.ours:.7g}", f"{row.ref:.7g}"
    return (*place, *errors, *values, f"{1.0 - row.cosine:.1e}", f"{row.ulp:.3g}", ratio)


# ----- the comparison ------------------------------------------------------------------------------------------------------


def diff(ours, ref, *, truth=None, rtol: float | None = None, atol: float = 0.0) -> Diff:
    """Compares two traces, layer by layer.

    ours, ref: trace files. If ours is a pipeline or a model instead, each of its layers is run on the inputs that ref recorded.
    truth: a float64 trace of the same run, which tells who is nearer to it
    rtol, atol: instead of the budgets, relative L2 <= rtol and max|ours − ref| <= atol + rtol · max|ref|
    Raises UsageError where there is nothing to compare, ModelFileError for broken files.
    """
    ref = TraceFile(ref)
    if isinstance(ours, Model) or hasattr(ours, "trace_patterns"):
        if truth is not None:
            raise UsageError("a truth beside a model", "teacher forced, the model's own float64 is the truth", "leave the truth out")
        return _teacher_forced(_models(ours), ref, rtol, atol)
    return _free_running(TraceFile(ours), ref, TraceFile(truth) if truth is not None else None, rtol, atol)


def official_layers(names) -> dict:
    """{name of a layer in a trace: its name in today's official files}: LDM numbers its blocks otherwise, transformers 5 leaves out
    text_model., old VAEs say query for to_q. A container of LDM's own, such as input_blocks.1, keeps its name."""
    ldm = from_ldm(name for name in names if is_ldm(name))
    return {name: ldm[name][0] if len(ldm.get(name, ())) == 1 else _official_layer(name) for name in names}


def _official_layer(name: str) -> str:
    component, dot, rest = name.partition(".")
    if component not in COMPONENTS or not rest or component == "text_encoder" and rest.startswith("text_model"):
        return name
    official = official_name(component, f"{rest}.weight")[0] or f"{rest}.weight"
    return f"{component}.{official.removesuffix('.weight')}"


def _by_place(rows: list) -> dict:
    official = official_layers({row["name"] for row in rows})
    return {(official[row["name"]], row["call"]): row for row in rows}


def _free_running(ours: TraceFile, ref: TraceFile, truth: TraceFile | None, rtol, atol) -> Diff:
    result = Diff("free running")
    mine, theirs, exact = _by_place(ours.rows), _by_place(ref.rows), _by_place(truth.rows) if truth else {}
    places = [place for place in mine if place in theirs]  # in our order of execution: that of a foreign file may be alphabetical
    result.only_ours, result.only_ref = (_names_only_in(a, b) for a, b in ((mine, theirs), (theirs, mine)))
    if not places:
        why = f"{next(iter(mine))[0]} …; {next(iter(theirs))[0]} …"
        raise UsageError(f"{ours.path} and {ref.path} have no layer in common", why, "trace the same model in both")
    healthy, sick = 0.0, 0.0  # the largest errors so far: of the layers within their budgets, and of all
    for place in places:
        a, b = ours[mine[place]["key"]], ref[theirs[place]["key"]]
        row = mine[place] if mine[place]["kind"] else theirs[place]
        y = truth[exact[place]["key"]] if place in exact else None
        measured = _measure(place, row, a, b, y)
        budget = own_budget(reference_class(row), row.get("reduction", 0), coarser(a, b))
        if place[0].startswith("unet.time_embedding"):
            budget += ANGLES * float(np.finfo(coarser(a, b)).eps) / 2.0  # its input is no layer, and rounded already
        allowed = max(budget, GROWTH * healthy)
        if measured.ratio is not None:
            error = _error_of_reference(b, y, truth, place)
            measured = replace(measured, l2=relative(like(a, y), y))
            allowed = budget + FACTOR * error
        measured = _judged(measured, allowed, b, rtol, atol)
        if math.isfinite(measured.l2):
            if measured.wrong:
                off = _inputs_are_off(ours, mine[place], ref, theirs[place], measured.allowed)
                if off if off is not None else healthy < sick and measured.l2 <= GROWTH * sick:
                    measured = replace(measured, verdict="inherits")
            sick = max(sick, measured.l2)
            healthy = healthy if measured.verdict != "ok" else max(healthy, measured.l2)
        result.rows.append(measured)
    return result


def _inputs_are_off(ours: TraceFile, mine: dict, ref: TraceFile, theirs: dict, allowed: float) -> bool | None:
    """Whether a layer was given something else already, so that its error is not its own; None where the traces do not know."""
    a, b = (reference_names(row, row.get("inputs", {})) for row in (mine, theirs))
    pairs = [(ours[a[name]], ref[b[name]]) for name in a if name in b and isinstance(a[name], str)]
    pairs = [(like(x, y), y) for x, y in pairs if like(x, y).shape == y.shape]
    return any(not relative(x, y) <= allowed for x, y in pairs) if pairs else None


def _error_of_reference(b, y, truth: TraceFile, place: tuple) -> float:
    error = relative(like(b, y), y)
    if not error <= 0.1:
        why = f"at {key(*place)} the reference is {error:.2g} away from it, which no rounding explains"
        raise UsageError(f"{truth.path} is not the truth of this run", why, "trace the same prompt, seed, steps and size with --dtype float64")
    return error


def _names_only_in(a: dict, b: dict) -> list:
    return [key(*place) for place, row in a.items() if place not in b and row["kind"] not in NOT_LAYERS]


def _teacher_forced(models: dict, ref: TraceFile, rtol, atol) -> Diff:
    result = Diff("teacher forced")
    exact = {name: model if model.dtype == np.float64 else model.astype("float64") for name, model in models.items()}
    official = official_layers({row["name"] for row in ref.rows})
    for row in ref.rows:
        name = official[row["name"]]
        model = models.get(name.partition(".")[0])
        place, row = (name, row["call"]), {**row, "name": name}
        a = None if model is None else replay(model, row, ref.__getitem__)
        if a is None:
            result.only_ref += [] if row["kind"] in NOT_LAYERS else [key(*place)]
            continue
        b = ref[row["key"]]
        measured, dtype = _measure(place, row, a, b, None), coarser(a, b)
        budget = own_budget(reference_class(row), row.get("reduction", 0), dtype)
        if measured.verdict == "ok":
            y = replay(exact[model.component], row, ref.__getitem__)
            mine, theirs = relative(a, y), relative(like(b, y), y)
            budget = max(budget * _conditioning(model, row, ref), WIDER * mine)
            measured = replace(measured, ratio=ratio(mine, theirs))
        result.rows.append(_judged(measured, budget, b, rtol, atol))
    if not result.rows:
        fix = "record it with inputs: trace(…, inputs=True), minisd trace --inputs, or the program of minisd dump-script"
        raise UsageError(f"{ref.path} has no inputs that a layer could be fed", "teacher forcing needs what every layer was given", fix)
    return result


def _models(ours) -> dict:
    return {ours.component: ours} if isinstance(ours, Model) else {m.component: m for m in (ours.text_encoder, ours.unet, ours.vae)}


def _conditioning(model: Model, row: dict, ref: TraceFile) -> float:
    """How much a norm enlarges the rounding of its input: √(1 + μ²/(σ² + ε)), root mean square over groups or tokens; 1 for other layers."""
    kind = reference_class(row)
    if kind not in ("GroupNorm", "LayerNorm"):
        return 1.0
    x = ref[next(iter(row["inputs"].values()))].astype("float64")
    groups = x.reshape(x.shape[0], model.config.norm_num_groups, -1) if kind == "GroupNorm" else x
    return math.sqrt(1.0 + float((groups.mean(axis=-1) ** 2 / (groups.var(axis=-1) + 1e-6)).mean()))


# ----- measures of two arrays ----------------------------------------------------------------------------------------------


def _measure(place: tuple, row: dict, a, b, truth) -> Row:
    name, call = place
    common = dict(name=name, call=call, kind=row["kind"], shape=tuple(b.shape))
    a = like(a, b)
    if a.shape != b.shape:
        return Row(**common, verdict="SHAPE", note=f"ours has the shape {list(a.shape)}, the reference {list(b.shape)}")
    x, y = a.astype("float64"), b.astype("float64")
    bad = [int((~np.isfinite(v)).sum()) for v in (x, y)]
    if any(bad):
        same = np.array_equal(x, y, equal_nan=True)
        note = "" if same else f"{bad[0]:,} NaN or Inf in ours, {bad[1]:,} in the reference"
        return Row(**common, verdict="NAN", note=note or f"both have the same {bad[0]:,} NaN or Inf")
    if not x.size:
        return Row(**common, verdict="ok", l2=0.0, max_abs=0.0, cosine=1.0, ulp=0.0)
    error = np.abs(x - y)
    worst = np.unravel_index(int(np.argmax(error)), error.shape)
    dtype = coarser(a, b)
    spacing = float(np.spacing(np.abs(y[worst]).astype(dtype)))
    return Row(
        **common, verdict="ok", l2=relative(x, y), max_abs=float(error[worst]),
        worst=tuple(map(int, worst)), ours=float(x[worst]), ref=float(y[worst]),
        cosine=cosine(x, y), ulp=float(error[worst]) / spacing,
        ratio=None if truth is None else ratio(relative(like(x, truth), truth), relative(like(y, truth), truth)),
    )  # fmt: skip


def _judged(row: Row, allowed: float, b, rtol, atol) -> Row:
    """The row with its verdict; rtol, where given, takes the place of what is allowed."""
    if row.verdict != "ok":
        return row
    allowed = allowed if rtol is None else rtol
    size = float(np.abs(b).max(initial=0.0))
    largest = atol + rtol * size if rtol is not None else WORST * allowed * size
    fine = row.l2 <= allowed and row.max_abs <= largest if row.max_abs else True
    return replace(row, allowed=allowed, verdict="ok" if fine else "DIFFERS")
