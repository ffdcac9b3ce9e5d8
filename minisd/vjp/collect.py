"""Gradients of the parameters, for whoever asks: `with parameter_gradients() as gradients: pullback(dy)`.

A pullback gives the gradients of its inputs. Those of the weights cost as much again, so they are computed only inside this block, and
are found under the names that the weights have in the checkpoint, behind the component's own: "unet.conv_in.weight".
"""

from contextlib import contextmanager
from contextvars import ContextVar

_COLLECTED: ContextVar[dict | None] = ContextVar("minisd_vjp_parameter_gradients", default=None)


@contextmanager
def parameter_gradients():
    """Collects into a flat dict {name: gradient, shaped like the tensor}, summed where a layer is pulled back more than once."""
    token = _COLLECTED.set({})
    try:
        yield _COLLECTED.get()
    finally:
        _COLLECTED.reset(token)


def of_layer(p, names, pullback):
    """The pullback of an op that was given the tensors `names` of p: it returns dx, and hands the others to whoever collects."""

    def pull(dy):
        collected = _COLLECTED.get()
        if collected is None:
            return pullback(dy)
        dx, *gradients = pullback(dy, wrt_params=True)
        keep(p, dict(zip(names, gradients)))
        return dx

    return pull


def keep(p, gradients: dict):
    """Adds the gradients of tensors of p, by their names in p; None stands for a tensor that the layer does without."""
    collected = _COLLECTED.get()
    for name, gradient in gradients.items() if collected is not None else ():
        if gradient is not None:
            path = f"{p.path}.{name}" if p.path else name
            collected[path] = collected[path] + gradient if path in collected else gradient
