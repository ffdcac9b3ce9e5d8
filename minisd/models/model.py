"""What the three models share: parameters with a config, loading, and a change of dtype."""

import numpy as np

from ..errors import ContractError, UsageError
from ..params import Params


class Model:
    """A config, the weights, and `__call__` on arrays in [B, C, H, W]. `component` is the sub-folder's official name."""

    component: str
    adapters = None  # the LoRAs on these weights, if any: an `adapters.lora.Stack`

    def __init__(self, config, params: Params, report=None):
        self.config, self.params, self.report = config, params, report

    @classmethod
    def from_pretrained(
        cls, folder, subfolder: str | None = None, *, variant: str | None = None, dtype: str = "float32", resident: str | None = None
    ):
        """Loads config.json and the safetensors weights of this component from a folder in diffusers' layout.

        folder: the pipeline's folder, or the component's own. dtype: "float32", or "float64" for the oracle.
        resident: "float16" keeps the weights in half the memory and widens each one, exactly, when it is used.
        Raises ModelFileError for a broken, incomplete or unsafe file, NumericError for NaN weights.
        """
        from ..checkpoint import load_component

        loaded = load_component(folder, cls.component, subfolder=subfolder, dtype=check_dtype(dtype), variant=variant, resident=resident)
        return cls(loaded.config, loaded.params, loaded.report)

    @property
    def dtype(self) -> np.dtype:
        return next(leaf.dtype for _, leaf in self.params.leaves())

    def astype(self, dtype: str):
        """The same model in another dtype. float64 is the oracle: float32 weights are represented exactly in it."""
        dtype = check_dtype(dtype)
        plain = self.params if self.adapters is None else self.params.replace(self.adapters.originals)
        model = type(self)(self.config, plain.map(lambda w: w.astype(dtype, order="K")), self.report)
        model.adapters = None if self.adapters is None else self.adapters.onto(model)
        return model

    def num_parameters(self) -> int:
        return sum(leaf.size for _, leaf in self.params.leaves())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_parameters():,} parameters, {self.dtype})"


def check_dtype(dtype) -> str:
    """The name of a dtype that the CPU can compute in."""
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name == "float16":
        why = "NumPy has no float16 matrix product; files in float16 are read into float32 exactly"
        raise UsageError("float16 cannot be computed on the CPU", why, "leave dtype at float32")
    if name not in ("float32", "float64"):
        raise UsageError(f"dtype {name!r} is not known", "", "use float32 or float64")
    return name


def expect_input(model: Model, name: str, x, shape: tuple):
    """x has the model's dtype and this shape, where None stands for any size."""
    if x.ndim != len(shape) or any(want is not None and want != have for want, have in zip(shape, x.shape)):
        wanted = "[" + ", ".join("any" if n is None else str(n) for n in shape) + "]"
        raise ContractError(f"{type(model).__name__}: {name} has the shape {list(x.shape)}, not {wanted}", "", "see the shapes in its docstring")
    if x.dtype != model.dtype:
        raise ContractError(
            f"{type(model).__name__}: {name} is {x.dtype}, the weights are {model.dtype}",
            "nothing is promoted silently",
            f"{name}.astype({model.dtype.name!r}), or model.astype({x.dtype.name!r})",
        )
