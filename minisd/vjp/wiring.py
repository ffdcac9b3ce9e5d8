"""How pullbacks are joined into longer ones, and what a public one refuses."""

from ..errors import ContractError


class Chain:
    """Steps that follow each other: `y` is the value so far, `pullback(dy)` goes back through all of them."""

    def __init__(self, x):
        self.y, self.pulls = x, []

    def then(self, layer, p, **options):
        """y ← layer(p, y)."""
        self.y, pull = layer(p, self.y, **options)
        self.pulls.append(pull)

    def pullback(self, dy):
        for pull in reversed(self.pulls):
            dy = pull(dy)
        return dy


def public(y, pullback):
    """y and its pullback, which refuses a gradient that is not like y."""

    def checked(dy):
        if dy.shape != y.shape or dy.dtype != y.dtype:
            what = f"the gradient is {dy.dtype} {list(dy.shape)}, the value {y.dtype} {list(y.shape)}"
            raise ContractError(what, "a gradient has one number for each number of the value", "give one like the value, in its dtype")
        return pullback(dy)

    return y, checked


def expect_host(model):
    """Gradients are made for NumPy arrays. Raises ContractError for a model on a GPU."""
    if model.device != "cpu":
        what = f"gradients of the {model.component} on {model.device}"
        raise ContractError(what, "they are computed on the CPU only", f'move it first: {model.component}.to("cpu", "float32")')
