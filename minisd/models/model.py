"""What the three models share: parameters with a config, loading, a change of dtype or device, and the border of a call."""

import math

import numpy as np

from .. import gpu
from ..backend import device_of, host_dtype, to_device
from ..errors import ContractError, NumericError, UsageError
from ..params import Params


class Model:
    """A config, the weights, and `__call__` on arrays in [B, C, H, W]. `component` is the sub-folder's official name.

    The border. A model on the CPU takes NumPy arrays of its own dtype. A model on a GPU takes NumPy and CuPy arrays, brings them to its device,
    and a float16 model rounds float32 to its own dtype. The result has the owner and the dtype of the call's first array: NumPy float32 in,
    NumPy float32 out; CuPy float16 in, CuPy float16 out, and no copy. Token ids have no dtype to follow: NumPy ids give `host_dtype`.
    """

    component: str
    adapters = None  # the LoRAs on these weights, if any: an `adapters.lora.Stack`

    def __init__(self, config, params: Params, report=None):
        self.config, self.params, self.report = config, params, report

    @classmethod
    def from_pretrained(
        cls, folder, subfolder: str | None = None, *, device: str = "cpu", dtype: str | None = None, variant: str | None = None,
        resident: str | None = None,
    ):  # fmt: skip
        """Loads config.json and the safetensors weights of this component from a folder in diffusers' layout.

        folder: the pipeline's folder, or the component's own. device: "cpu", "cuda", "cuda:1", or "auto"
        dtype: "float32", "float64" for the oracle, on a GPU also "float16"; default: float32 on the CPU, float16 on a GPU
        resident: "float16" keeps the weights in half the memory and widens each one, exactly, when it is used; on the CPU only.
        Raises ModelFileError for a broken, incomplete or unsafe file, NumericError for NaN weights, ResourceError for a GPU that cannot be used.
        """
        from ..checkpoint import component_bytes, load_component

        device = gpu.choose(device)
        dtype = check_dtype(default_dtype(device) if dtype is None else dtype, device)
        check_residence(resident, device)
        if device != "cpu":
            gpu.check_room(device, component_bytes(folder, cls.component, dtype, subfolder), f"the {cls.component}")
        options = dict(subfolder=subfolder, dtype=dtype, variant=variant, resident=resident, device=device)
        with gpu.running_on(device):
            loaded = load_component(folder, cls.component, **options)
        return cls(loaded.config, loaded.params, loaded.report)

    @property
    def dtype(self) -> np.dtype:
        return next(leaf.dtype for _, leaf in self.params.leaves())

    @property
    def host_dtype(self) -> np.dtype:
        """Of the arrays that stand for this model's inputs and results on the host: float32 beside a float16 model, else its own."""
        return host_dtype(self.dtype)

    @property
    def device(self) -> str:
        """ "cpu", or "cuda:0", "cuda:1", …"""
        return device_of(next(leaf for _, leaf in self.params.leaves()))

    def astype(self, dtype: str):
        """The same model in another dtype. float64 is the oracle: float32 weights are represented exactly in it."""
        return self._copy_into(type(self)(self.config, self.params, self.report), self.device, check_dtype(dtype, self.device))

    def to(self, device: str | None = None, dtype: str | None = None):
        """Moves this model, in place as in torch, to a device, to a dtype, or both, and returns it: `unet.to("cuda", "float16")`.

        Its LoRAs go with it. Raises ResourceError where it does not fit, NumericError for a weight beyond float16.
        """
        device = self.device if device is None else gpu.choose(device)
        dtype = check_dtype(self.dtype if dtype is None else dtype, device)
        if (device, dtype) == (self.device, self.dtype.name):
            return self
        if device != self.device:
            gpu.check_room(device, self.num_parameters() * np.dtype(dtype).itemsize, f"the {self.component}")
        return self._copy_into(self, device, dtype)

    def _copy_into(self, model, device: str, dtype: str):
        """Gives `model` copies of these weights, and the LoRAs, on a device and in a dtype; convolutions stay channels-last in memory."""
        plain = self.params if self.adapters is None else self.params.replace(self.adapters.originals)

        def copied(name, w):
            stays = w.dtype == dtype and device != self.device  # then the move makes the copy
            return to_device(w if stays else cast(w, dtype, f"{self.component}.{name}"), device)

        with gpu.running_on(device), gpu.running_on(self.device):  # cast where they are; `to_device` looks after the rest
            weights = {name: copied(name, w) for name, w in plain.items()}
            adapters, model.params = self.adapters, Params.from_state_dict(weights, plain.path)
            model.adapters = None if adapters is None else adapters.onto(model)
        return model

    def num_parameters(self) -> int:
        return sum(leaf.size for _, leaf in self.params.leaves())

    def __repr__(self) -> str:
        where = "" if self.device == "cpu" else f", {self.device}"
        return f"{type(self).__name__}({self.num_parameters():,} parameters, {self.dtype}{where})"

    # ----- the border of a call ------------------------------------------------------------------------------------------------

    def running(self):
        """The context in which this model's ops run: its device is CuPy's current one."""
        return gpu.running_on(self.device)

    def take(self, name: str, x, shape: tuple):
        """An argument of a call, on this model's device and in its dtype. shape: None stands for any size. Raises ContractError."""
        here, there = self.device, device_of(x)
        if here == "cpu":
            expect_input(self, name, x, shape)
            return x
        expect_shape(self, name, x, shape)
        if there not in ("cpu", here):
            raise _elsewhere(self, name, x)
        if x.dtype not in (self.dtype, self.host_dtype):
            raise _wrong_dtype(self, name, x)
        return to_device(x.astype(self.dtype, copy=False), here)

    def give_back(self, y, like):
        """The result of a call, where its first argument `like` was and in the dtype of that; ids on the host get `host_dtype` of a GPU's model."""
        there = device_of(like)
        dtype = like.dtype if like.dtype.kind == "f" else self.dtype if there == self.device else self.host_dtype
        return to_device(y, there).astype(dtype, copy=False)


def default_dtype(device: str) -> str:
    """float32 on the CPU, float16 on a GPU: what each of them is fast in."""
    return "float32" if device == "cpu" else "float16"


def check_dtype(dtype, device: str = "cpu") -> str:
    """The name of a dtype that the device can compute in."""
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name == "float16" and device == "cpu":
        why = "NumPy has no float16 matrix product; files in float16 are read into float32 exactly"
        raise UsageError("float16 cannot be computed on the CPU", why, 'use dtype float32; for a model on a GPU: .to("cpu", "float32")')
    if name not in ("float16", "float32", "float64"):
        raise UsageError(f"dtype {name!r} is not known", "", f"use float32 or float64{'' if device == 'cpu' else ', or float16'}")
    return name


def check_residence(resident: str | None, device: str):
    """Weights that are widened at each use are made for the CPU. Raises UsageError."""
    if resident is not None and device != "cpu":
        why = "on a GPU float16 weights are computed with as they are, and need no widening"
        raise UsageError(f"weights cannot be resident as {resident} on {device}", why, "leave resident out, and choose dtype float16")


def cast(w, dtype: str, name: str):
    """A weight in a dtype and its own layout: a copy. Raises NumericError where it is finite and would become infinite."""
    with np.errstate(over="ignore"):
        y = w.astype(dtype, order="K")
    if y.itemsize < w.itemsize and not _finite(y) and _finite(w):
        why = f"the largest is {float(abs(w).max()):.3g}, the limit {float(np.finfo(dtype).max):.3g}"
        raise NumericError(f"{name} has values beyond {dtype}", why, "choose dtype float32", layer=name.rpartition(".")[0])
    return y


def _finite(x) -> bool:
    return math.isfinite(float(abs(x).max())) if x.size else True


def expect_shape(model: Model, name: str, x, shape: tuple):
    """x has this shape, where None stands for any size."""
    if x.ndim != len(shape) or any(want is not None and want != have for want, have in zip(shape, x.shape)):
        wanted = "[" + ", ".join("any" if n is None else str(n) for n in shape) + "]"
        raise ContractError(f"{type(model).__name__}: {name} has the shape {list(x.shape)}, not {wanted}", "", "see the shapes in its docstring")


def expect_input(model: Model, name: str, x, shape: tuple):
    """x lives where the model does, and has the model's dtype and this shape, where None stands for any size."""
    expect_shape(model, name, x, shape)
    if device_of(x) != model.device:
        raise _elsewhere(model, name, x)
    if x.dtype != model.dtype:
        raise _wrong_dtype(model, name, x)


def _elsewhere(model: Model, name: str, x) -> ContractError:
    what = f"{type(model).__name__}: {name} is on {device_of(x)}, the model on {model.device}"
    return ContractError(what, "", f"minisd.backend.to_device({name}, {model.device!r}), or model.to({device_of(x)!r})")


def _wrong_dtype(model: Model, name: str, x) -> ContractError:
    return ContractError(
        f"{type(model).__name__}: {name} is {x.dtype}, the weights are {model.dtype}",
        "nothing is promoted silently",
        f"{name}.astype({model.dtype.name!r}), or model.astype({x.dtype.name!r})",
    )
