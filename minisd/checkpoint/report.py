"""What a load did to the files' tensors: which were renamed, left out, cast; which were not expected."""

from dataclasses import asdict, dataclass, field

FLOATS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}  # the format's names of what weights may be


@dataclass
class LoadReport:
    """`str()` is for people, `to_dict()` for --json.

    resident: "float16" where matrices and kernels stay so in memory
    files: names of the files read        tensors, bytes: how many there are in memory now, in `dtype`
    source_dtypes: {"F16": 686}, how they were stored        renamed: {reason: {name in the file: official name}}
    dropped: {reason: names left out on purpose}        missing, unexpected: names, compared with the config
    nonfinite: {name: count of NaN and Inf}, empty unless they were allowed
    """

    component: str
    dtype: str
    files: list[str] = field(default_factory=list)
    tensors: int = 0
    bytes: int = 0
    source_dtypes: dict[str, int] = field(default_factory=dict)
    renamed: dict[str, dict[str, str]] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    nonfinite: dict[str, int] = field(default_factory=dict)
    resident: str | None = None

    @property
    def cast(self) -> dict[str, int]:
        """{"F16": 686}: how many tensors changed their dtype while they were read."""
        return {stored: count for stored, count in self.source_dtypes.items() if FLOATS[stored] != self.dtype}

    @property
    def headline(self) -> str:
        files = ", ".join(self.files) or "memory"
        stored = ", ".join(self.source_dtypes)
        kept = f", kept as {self.resident}" if self.resident not in (None, self.dtype) else ""
        return f"{self.component}: {self.tensors:,} tensors, {in_bytes(self.bytes)} from {files} ({stored} → {self.dtype}{kept})"

    def add(self, name: str, stored: str, size: int, nonfinite: int):
        """Notes a loaded tensor: how it was stored ("F16"), and its size in bytes as loaded."""
        self.tensors += 1
        self.bytes += size
        self.source_dtypes[stored] = self.source_dtypes.get(stored, 0) + 1
        if nonfinite:
            self.nonfinite[name] = nonfinite

    def __str__(self) -> str:
        lines = [self.headline]
        lines += [f"  renamed {len(names)} ({reason})" for reason, names in self.renamed.items()]
        lines += [f"  left out {len(names)} ({reason})" for reason, names in self.dropped.items()]
        if self.unexpected:
            lines.append(f"  unexpected, left out: {some(self.unexpected)}")
        if self.nonfinite:
            lines.append(f"  NaN or Inf in: {some([f'{name} ({count:,})' for name, count in self.nonfinite.items()])}")
        return "\n".join(lines)

    def to_dict(self) -> dict:
        return {**asdict(self), "cast": self.cast}


def in_bytes(count: int) -> str:
    """3440000000 -> "3.44 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"


def some(names: list[str], limit: int = 5) -> str:
    """The first few of a list, and how many more there are."""
    shown = ", ".join(shorten(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit:,} more"


def shorten(name: str) -> str:
    """A name out of a file, fit to be printed: control characters escaped, at most 120 characters."""
    text = repr(name)[1:-1]
    return text if len(text) <= 120 else f"{text[:100]}… ({len(name):,} characters)"
