"""A CUDA kernel as it stands in its .cu file: the text, the header block that explains it, and the signature it is launched by.

    FLASH = Kernel("attention/4_flash.cu", "flash", instances=[(40,), (64,)])
    FLASH(40).expression        # "flash<40>", the name NVRTC is asked for
    FLASH(40).parameters        # read off the text: q is a const half*, S an int, …

The text is the only source of the signature: a launcher and its kernel cannot disagree about a type.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ...errors import ContractError

FOLDER = Path(__file__).parent / "kernels"
HEADER_FIELDS = ("Idea", "Differs", "Work split", "Global traffic", "Limits", "Numerics", "Source")
TYPES = {"half": np.dtype("float16"), "float": np.dtype("float32"), "double": np.dtype("float64"), "int": np.dtype("int32")}
OF_DTYPE = {dtype: name for name, dtype in TYPES.items()}


@cache
def source(file: str) -> str:
    """The text of a kernel file with the project's own headers in place of their #include lines: all there is to compile and to hash."""
    return _inlined(file, set())


def _inlined(file: str, seen: set) -> str:
    if file in seen:
        return ""
    seen.add(file)
    lines = [f'#line 1 "{file}"']
    for number, line in enumerate((FOLDER / file).read_text(encoding="utf-8").splitlines(), 1):
        own = re.fullmatch(r'#include "([\w./]+)"', line)
        lines += [_inlined(own[1], seen), f'#line {number + 1} "{file}"'] if own else [line]
    return "\n".join(lines)


def for_hopper(file: str) -> bool:
    """Whether a file is for compute capability 9.0 and no other: it uses the instructions of hopper.cuh."""
    return '#line 1 "hopper.cuh"' in source(file)


def header(file: str) -> dict:
    """The header block of a kernel file: Idea, Differs (from the rung below), Work split, Global traffic, Limits, Numerics, Source."""
    fields, name = {}, None
    for line in (FOLDER / file).read_text(encoding="utf-8").splitlines():
        if not line.startswith("//"):
            break
        start = re.match(rf"// ({'|'.join(HEADER_FIELDS)}): *(.*)", line)
        name = start[1] if start else name
        if name:
            fields[name] = f"{fields[name]} {line[2:].strip()}" if name in fields else start[2]
    return fields


@dataclass(frozen=True)
class Parameter:
    """One argument of a kernel: a pointer to an array of `dtype`, a number of it, or a tensor map of such an array (`tensor_map.py`)."""

    name: str
    dtype: np.dtype
    pointer: bool
    const: bool  # the kernel does not write to it
    optional: bool  # null is allowed
    tensor_map: bool = False


@dataclass(frozen=True)
class Instance:
    """A kernel with its template arguments: what is compiled, and what is launched."""

    file: str
    expression: str  # "flash<40>"
    parameters: tuple[Parameter, ...]
    cluster: int = 1  # blocks, neighbours along x, that run at the same time and reach into each other's shared memory


KERNELS: list["Kernel"] = []  # every one that is declared


@dataclass(frozen=True)
class Kernel:
    """A `__global__` function of a file below `kernels/`, and every list of template arguments that its launcher asks for."""

    file: str
    name: str
    instances: tuple = ((),)

    def __post_init__(self):
        KERNELS.append(self)

    def __call__(self, *template) -> Instance:
        """The instance with these template arguments: "half" or "float" for a type, a number, a truth value."""
        if template not in self.instances:
            raise ContractError(f"{self.file}: {self.name} has no instance {template}", "", f"the instances are {list(self.instances)}")
        return instantiate(self.file, self.name, template)

    def all(self) -> list[Instance]:
        """Every instance."""
        return [self(*template) for template in self.instances]


@cache
def instantiate(file: str, name: str, template: tuple) -> Instance:
    """The instance `name<template…>`, its parameters read off the text of the file."""
    names, declared, cluster = _declaration(file, name)
    cluster = int(dict(zip(names, template)).get(cluster, cluster))
    types = TYPES | {n: TYPES[value] for n, value in zip(names, template) if value in TYPES}
    arguments = ", ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in template)
    return Instance(file, f"{name}<{arguments}>" if template else name, tuple(_parameter(text, types) for text in declared), cluster)


def _declaration(file: str, name: str) -> tuple[list[str], list[str], str]:
    """The names of the template's parameters, the parameters, and how many blocks a cluster has, each as text."""
    found = re.search(rf"(?:template *<([^>]*)>\s*)?__global__ void(?: __launch_bounds__\([^()]*(?:\([^()]*\)[^()]*)*\))?"
                      rf"(?: __cluster_dims__\((\w+), 1, 1\))?\s+{name}\(([^)]*)\)",
                      (FOLDER / file).read_text(encoding="utf-8"))  # fmt: skip
    if not found:
        raise ContractError(f"{file} declares no kernel {name}", "", 'one is written `__global__ void name(…)`, after its template, if any')
    names = [part.split()[-1] for part in (found[1] or "").split(",") if part.strip()]
    return names, [part.strip() for part in found[3].split(",")], found[2] or "1"


def _parameter(text: str, types: dict) -> Parameter:
    """`const T* __restrict__ x`, `half* y`, `const float* OPTIONAL b`, `int n` or `const __grid_constant__ TensorMap x`."""
    mapped = re.fullmatch(r"const __grid_constant__ TensorMap (\w+)", text)
    if mapped:
        return Parameter(mapped[1], TYPES["half"], pointer=False, const=True, optional=False, tensor_map=True)
    found = re.fullmatch(r"(const )?(\w+)(\*)?((?: __restrict__| OPTIONAL)*) (\w+)", text)
    if not found or found[2] not in types:
        raise ContractError(f"the kernel parameter `{text}` cannot be read", "", f"write `const T* __restrict__ name`; types: {', '.join(types)}")
    return Parameter(found[5], types[found[2]], bool(found[3]), bool(found[1]), "OPTIONAL" in found[4])
