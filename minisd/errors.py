"""Every error a user can meet says three things: what is wrong, why, and what to do about it.

Each class also derives from the builtin that a caller of a library expects (`except ValueError` keeps working) and carries
the exit code of the command line, so the table of exit codes is this file.

    0 done · 1 `diff`/`verify` found a difference · 2 usage · 3 file · 4 resources · 5 numeric · 6 network, cache, token
    70 a bug in minisd · 130 interrupted
"""


class MinisdError(Exception):
    """what: one line naming the thing at fault. why: the cause. fix: a command or an action."""

    exit_code = 70

    def __init__(self, what: str, why: str = "", fix: str = ""):
        self.what, self.why, self.fix = what, why, fix
        super().__init__(what, why, fix)

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why:  {self.why}")
        if self.fix:
            lines.append(f"  fix:  {self.fix}")
        return "\n".join(lines)


class UsageError(MinisdError, ValueError):
    """An argument that cannot be meant: a size that is no multiple of 8, a NaN guidance, an empty list of prompts."""

    exit_code = 2


class ModelFileError(MinisdError, ValueError):
    """A weights, config, tokenizer or image file that is broken, incomplete, unsafe or of another kind."""

    exit_code = 3


class ResourceError(MinisdError, MemoryError):
    """Not enough memory or disk, or no GPU."""

    exit_code = 4


class NumericError(MinisdError, FloatingPointError):
    """NaN or Inf, in the weights or first seen behind a layer. `layer` and `step` say where, when known."""

    exit_code = 5

    def __init__(self, what: str, why: str = "", fix: str = "", *, layer: str | None = None, step: int | None = None):
        super().__init__(what, why, fix)
        self.layer, self.step = layer, step


class FetchError(MinisdError, OSError):
    """The hub, the network, the cache or a token."""

    exit_code = 6


class ContractError(MinisdError, ValueError):
    """An op or a model was called with shapes, dtypes or arrays that its contract does not allow."""

    exit_code = 70
