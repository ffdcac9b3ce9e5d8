"""`Params`: the checkpoint as a tree that is read by attribute, so that code has no names but the checkpoint's own.

    p = Params.from_state_dict({"conv_in.weight": w, "conv_in.bias": b}, path="unet")
    p.conv_in.weight          the array                     p.conv_in.path          "unet.conv_in"
    p.down_blocks[0].resnets  numbered children by index    "conv_shortcut" in p    structure by presence
"""

from contextlib import contextmanager
from contextvars import ContextVar

from .errors import ModelFileError
from .resident import read

_READS: ContextVar[set | None] = ContextVar("minisd_params_reads", default=None)


class Params:
    """A read-only view of a flat state dict below a dotted path.

    The path of a view is the name of the module in diffusers' `named_modules()`, behind the component's own name.
    Views are built once and cost one dictionary look-up each.
    """

    __slots__ = ("path", "_children")

    def __init__(self, path: str, children: dict):
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "_children", children)

    @classmethod
    def from_state_dict(cls, tensors: dict, path: str = "") -> "Params":
        """Cut {"a.b.weight": array, …} into a tree. `path` names the root, for example "unet"."""
        tree: dict = {}
        for name, tensor in tensors.items():
            *parents, leaf = name.split(".")
            node = tree
            for part in parents:
                node = node.setdefault(part, {})
                if not isinstance(node, dict):
                    raise _two_meanings(name)
            if leaf in node:
                raise _two_meanings(name)
            node[leaf] = tensor

        def view(node: dict, path: str) -> Params:
            dot = f"{path}." if path else ""
            return cls(path, {k: view(v, dot + k) if isinstance(v, dict) else v for k, v in node.items()})

        return view(tree, path)

    def __getattr__(self, name: str):
        if name.startswith("__"):  # copy, pickle and inspect probe for these
            raise AttributeError(name)
        try:
            child = self._children[name]
        except KeyError:
            raise ModelFileError(
                f"{self._name_of(name)} is missing from the weights",
                f"{self.path or 'the root'} holds {', '.join(self._children) or 'nothing'}",
                "fetch the model again, or check that config.json belongs to these weights",
            ) from None
        if not isinstance(child, Params):
            reads = _READS.get()
            if reads is not None:
                reads.add(self._name_of(name))
        return read(child)

    def _name_of(self, child: str) -> str:
        return f"{self.path}.{child}" if self.path else child

    def __getitem__(self, index: int) -> "Params":
        return getattr(self, str(index))

    def __contains__(self, name: str) -> bool:
        return name in self._children

    def __len__(self) -> int:
        return len(self._children)

    def __iter__(self):
        """The numbered children in order: `for resnet in p.resnets`."""
        return (self[i] for i in range(len(self)))

    def get(self, name: str, default=None):
        """The child, or `default` where the checkpoint has none: `p.get("bias")`."""
        return getattr(self, name) if name in self._children else default

    def items(self, prefix: str = ""):
        """Every tensor below, as (dotted name, array) in the order of the state dict."""
        return ((name, read(leaf)) for name, leaf in self.leaves(prefix))

    def leaves(self, prefix: str = ""):
        """Every tensor below as it is kept in memory, which may be narrower than what it is read as: (dotted name, array or HalfWeight)."""
        for name, child in self._children.items():
            if isinstance(child, Params):
                yield from child.leaves(f"{prefix}{name}.")
            else:
                yield prefix + name, child

    def map(self, f) -> "Params":
        """The same tree with every tensor replaced by f(tensor): a change of dtype or of device."""
        return Params(self.path, {k: v.map(f) if isinstance(v, Params) else f(read(v)) for k, v in self._children.items()})

    def replace(self, tensors: dict) -> "Params":
        """The same tree with other leaves for some tensors, by their names in `items`; all others are shared with this one."""
        mine = dict(self.leaves())
        if unknown := [name for name in tensors if name not in mine]:
            raise KeyError(f"{self.path} has no {unknown[0]}")
        return Params.from_state_dict({**mine, **tensors}, self.path)

    def __setattr__(self, name, *value):
        raise TypeError("Params is a read-only view; build a new state dict, or use map()")

    __delattr__ = __setattr__

    def __reduce__(self):  # copy and pickle would set the attributes one by one
        return Params, (self.path, self._children)

    def __dir__(self):  # for completion: p.down_blocks[0].<tab>
        return [*super().__dir__(), *self._children]

    def __repr__(self) -> str:
        return f"Params({self.path or '<root>'}: {', '.join(self._children)})"


def _two_meanings(name: str) -> ModelFileError:
    why = "one of the two would hide the other"
    return ModelFileError(f"the weights have {name} both as a tensor and as the prefix of others", why, "fetch the model again")


@contextmanager
def record_reads():
    """Collects the path of every tensor that is read inside the block: a forward pass must read them all."""
    token = _READS.set(set())
    try:
        yield _READS.get()
    finally:
        _READS.reset(token)
