"""Three lines, an exit code, and the builtin that callers expect."""

import copy
import pickle

import pytest

from minisd import errors

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.MinisdError)]
TABLE = {
    "MinisdError": (70, Exception),
    "UsageError": (2, ValueError),
    "ModelFileError": (3, ValueError),
    "ResourceError": (4, MemoryError),
    "NumericError": (5, FloatingPointError),
    "FetchError": (6, OSError),
    "ContractError": (70, ValueError),
}
every_class = pytest.mark.parametrize("error", CLASSES, ids=lambda c: c.__name__)


def test_the_table_is_complete():
    assert {c.__name__ for c in CLASSES} == set(TABLE)


@every_class
def test_exit_code_builtin_and_docstring(error):
    code, builtin = TABLE[error.__name__]
    assert error.exit_code == code and issubclass(error, builtin) and error.__doc__
    assert f"{code} " in errors.__doc__


@every_class
def test_three_lines(error):
    e = error("unet.conv_in.weight is missing", "the file was cut off", "fetch it again")
    assert str(e).splitlines() == ["unet.conv_in.weight is missing", "  why:  the file was cut off", "  fix:  fetch it again"]
    assert (e.what, e.why, e.fix) == ("unet.conv_in.weight is missing", "the file was cut off", "fetch it again")


@every_class
def test_empty_lines_are_left_out(error):
    assert str(error("what")) == "what"
    assert str(error("what", fix="do this")) == "what\n  fix:  do this"
    assert str(error("what", "because")) == "what\n  why:  because"


@every_class
def test_it_is_caught_as_its_builtin(error):
    with pytest.raises(TABLE[error.__name__][1], match="what"):
        raise error("what", "why", "fix")


@every_class
def test_it_survives_a_process_border(error):
    """multiprocessing pickles exceptions; OSError has its own idea of three arguments."""
    for twin in (pickle.loads(pickle.dumps(error("what", "why", "fix"))), copy.copy(error("what", "why", "fix"))):
        assert type(twin) is error and str(twin) == "what\n  why:  why\n  fix:  fix"


def test_numeric_errors_say_where():
    e = errors.NumericError("NaN", layer="unet.mid_block", step=7)
    assert (e.layer, e.step) == ("unet.mid_block", 7)
    assert (errors.NumericError("NaN").layer, errors.NumericError("NaN").step) == (None, None)
    twin = pickle.loads(pickle.dumps(e))
    assert (twin.layer, twin.step) == ("unet.mid_block", 7)
