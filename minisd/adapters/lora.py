"""LoRA on a model: W′ = W + Σ_a weight_a · scale_a · B_a A_a, for the weights that the files name.

The sum is made once, when something changes, and not in every forward pass. The original arrays are kept aside, untouched: to take a
LoRA away is to put them back, so the model is then the same to the last bit.

    pipe.load_lora_weights("ink.safetensors", adapter_name="ink")
    pipe.set_adapters(["ink", "gold"], [0.8, 0.3])
    print(pipe.lora_report())
    pipe.unload_lora_weights()
"""

from dataclasses import dataclass

import numpy as np

from ..backend import beside, host_dtype, like, to_numpy
from ..errors import UsageError
from ..resident import read
from .lora_file import LoraFile, LoraLayer, check_lora

COMPONENTS = ("unet", "text_encoder")


def add_lora(w, layers: list):
    """W′ = W + Σ weight · ΔW in the layout of W.        layers: [(LoraLayer, weight), …] -> a new array

    The sum of a float16 weight is made in float32 and rounded once. ΔW is computed on the host.
    """
    if not layers:
        return w
    wide = host_dtype(w.dtype)
    with beside(w):
        result = w.astype(wide, order="K")
        for layer, weight in layers:
            result += like(weight * layer.delta(w.shape, wide.name), result)
        return result.astype(w.dtype, order="K", copy=False)


class Stack:
    """The LoRAs on one model: `layers` {adapter: {weight: LoraLayer}}, `active` {adapter: its weight}, and the original arrays."""

    def __init__(self, model):
        self.model = model
        self.layers: dict[str, dict[str, LoraLayer]] = {}
        self.active: dict[str, float] = {}
        self.fused: dict[str, float] | None = None  # what `fuse_lora` fixed; it counts instead of `active`
        self.enabled = True
        self.originals: dict = {}

    def load(self, adapter: str, layers: dict):
        """Adds an adapter and makes it the only active one, as diffusers does."""
        weights = dict(self.model.params.leaves())
        self.originals |= {name: weights[name] for name in layers if name not in self.originals}
        self.layers[adapter] = layers
        self.active = {adapter: 1.0}
        self.merge()

    def applied(self) -> dict[str, float]:
        return self.fused if self.fused is not None else self.active if self.enabled else {}

    def merge(self):
        """Computes every touched weight anew from its original."""
        applied = {adapter: weight for adapter, weight in self.applied().items() if weight != 0.0}
        merged = {}
        for name, w in self.originals.items():
            layers = [(self.layers[a][name], weight) for a, weight in applied.items() if name in self.layers[a]]
            merged[name] = add_lora(read(w), layers) if layers else w
        self.model.params = self.model.params.replace(merged)

    def onto(self, model):
        """The same LoRAs on another model with the same original weights in another dtype."""
        other = Stack(model)
        other.layers, other.active, other.fused, other.enabled = dict(self.layers), dict(self.active), self.fused, self.enabled
        weights = dict(model.params.leaves())
        other.originals = {name: weights[name] for name in self.originals}
        other.merge()
        return other

    def report(self, component: str) -> list:
        """One `Effect` for every adapter that is applied and every weight it touches."""
        rows = []
        for adapter, weight in self.applied().items():
            for name, layer in self.layers[adapter].items():
                w = to_numpy(read(self.originals[name])).astype("float64")
                size = float(np.linalg.norm(w))
                change = abs(weight) * float(np.linalg.norm(layer.delta(w.shape, "float64")))
                rows.append(Effect(adapter, f"{component}.{name}", layer.rank, weight * layer.scale, change / size if size else np.inf))
        return rows


@dataclass(frozen=True)
class Effect:
    """What an adapter does to one weight. scale: all factors before B A        ratio: ‖ΔW‖ / ‖W‖ (Frobenius)"""

    adapter: str
    weight: str
    rank: int
    scale: float
    ratio: float


class LoraReport(list):
    """A list of `Effect`s; printed, a table with the largest effect first."""

    def __str__(self) -> str:
        rows = sorted(self, key=lambda row: -row.ratio)
        width = max((len(row.weight) for row in rows), default=6)
        lines = [f"{'weight':<{width}}  rank     scale  ‖ΔW‖/‖W‖  adapter"]
        return "\n".join(lines + [f"{r.weight:<{width}}  {r.rank:>4}  {r.scale:>8.4g}  {r.ratio:>9.2e}  {r.adapter}" for r in rows])


class LoraLoaderMixin:
    """The pipeline's part; names and meaning are those of diffusers' `StableDiffusionLoraLoaderMixin`."""

    def load_lora_weights(self, path, adapter_name: str | None = None):
        """Loads a LoRA and makes it the only active one, with weight 1. path: a file, a folder, or a checked `LoraFile`.

        Raises ModelFileError for what is no plain LoRA for this model, before anything is changed.
        """
        names = {name for stack in self._stacks().values() for name in stack.layers}
        adapter = adapter_name or f"default_{len(names)}"
        if adapter in names:
            raise UsageError(f"there is an adapter {adapter!r} already", "", "choose another adapter_name, or call unload_lora_weights() first")
        self._expect_unfused()
        if not isinstance(path, LoraFile):
            shapes = {part: {name: w.shape for name, w in getattr(self, part).params.items()} for part in COMPONENTS}
            path = check_lora(path, shapes, self.unet.config.layers_per_block)
        for part, layers in path.read().layers.items():
            model = getattr(self, part)
            model.adapters = model.adapters or Stack(model)
            model.adapters.load(adapter, layers)

    def set_adapters(self, adapter_names, adapter_weights=None):
        """Which adapters are active, and how strongly: one weight for all, or a list; a number, {"unet": …, "text_encoder": …}, or None for 1."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = list(adapter_weights) if isinstance(adapter_weights, (list, tuple)) else [adapter_weights] * len(names)
        if len(names) != len(weights):
            raise UsageError(f"{len(weights)} weights for {len(names)} adapters", "", "give one number, or one for each adapter")
        self._expect_known(names)
        self._expect_unfused()
        active = {part: {name: _weight_for(part, name, weight) for name, weight in zip(names, weights)} for part in COMPONENTS}
        for part, stack in self._stacks().items():
            stack.active = {name: weight for name, weight in active[part].items() if name in stack.layers}
            stack.merge()

    def get_active_adapters(self) -> list[str]:
        """The names of the active adapters, also while `disable_lora` keeps them from the weights."""
        return list(dict.fromkeys(name for stack in self._stacks().values() for name in stack.active))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """{"unet": names of all loaded adapters, "text_encoder": …}"""
        return {part: list(stack.layers) for part, stack in self._stacks().items()}

    def disable_lora(self):
        """The original weights, to the last bit, until `enable_lora`."""
        self._enable(False)

    def enable_lora(self):
        """The active adapters again."""
        self._enable(True)

    def fuse_lora(self, components=COMPONENTS, lora_scale: float = 1.0, adapter_names=None):
        """Fixes the given adapters (default: the active ones) into the weights, their effect times `lora_scale`.

        After that `unload_lora_weights` forgets the adapters and the original arrays, and keeps the fused weights; `unfuse_lora` undoes it.
        """
        self._expect_unfused()
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        self._expect_known(names or [])
        scale = _weight_for("", "lora_scale", lora_scale)
        for part, stack in self._stacks().items():
            if part in components:
                chosen = stack.active if names is None else [name for name in names if name in stack.layers]
                stack.fused = {name: scale * stack.active.get(name, 1.0) for name in chosen}
                stack.merge()

    def unfuse_lora(self):
        """Undoes `fuse_lora`: the active adapters with their own weights again."""
        for stack in self._stacks().values():
            stack.fused = None
            stack.merge()

    def delete_adapters(self, adapter_names):
        """Forgets these adapters."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._expect_known(names)
        self._expect_unfused()
        for stack in self._stacks().values():
            stack.layers = {name: layers for name, layers in stack.layers.items() if name not in names}
            stack.active = {name: weight for name, weight in stack.active.items() if name not in names}
            stack.merge()

    def unload_lora_weights(self):
        """Forgets all adapters. The weights are the original arrays again, unless `fuse_lora` fixed others: then those stay."""
        for part, stack in self._stacks().items():
            if stack.fused is None:
                stack.active = {}
                stack.merge()
            getattr(self, part).adapters = None

    def lora_report(self) -> LoraReport:
        """How much each adapter changes each weight, ‖ΔW‖ / ‖W‖."""
        return LoraReport(row for part, stack in self._stacks().items() for row in stack.report(part))

    def _stacks(self) -> dict[str, Stack]:
        return {part: model.adapters for part in COMPONENTS if (model := getattr(self, part)) is not None and model.adapters is not None}

    def _enable(self, enabled: bool):
        for stack in self._stacks().values():
            stack.enabled = enabled
            stack.merge()

    def _expect_known(self, names):
        known = {name for stack in self._stacks().values() for name in stack.layers}
        if unknown := [name for name in names if name not in known]:
            raise UsageError(f"there is no adapter {unknown[0]!r}", f"loaded are: {', '.join(sorted(known)) or 'none'}", "use one of them")

    def _expect_unfused(self):
        if any(stack.fused is not None for stack in self._stacks().values()):
            raise UsageError("the adapters are fused into the weights", "", "call unfuse_lora() first, or unload_lora_weights() to keep what is fused")


def _weight_for(part: str, name: str, weight) -> float:
    """The finite weight of an adapter on one component."""
    weight = 1.0 if weight is None else weight
    if isinstance(weight, dict):
        if unknown := [key for key in weight if key not in COMPONENTS]:
            raise UsageError(f"the weight of {name!r} names {unknown[0]!r}", "single blocks cannot be weighed", f"use {' and '.join(COMPONENTS)}")
        weight = weight.get(part, 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float, np.integer, np.floating)) or not np.isfinite(weight):
        raise UsageError(f"the weight of {name!r} is {weight!r}", "it must be a finite number", "use 0 … 1, or a little more")
    return float(weight)
