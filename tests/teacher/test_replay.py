"""Every layer that our traces hold can be computed again from its recorded inputs, alone."""

import inspect

import numpy as np
import pytest

from minisd import trace
from minisd.teacher import TABLE, reference_class, replay
from minisd.tracefile import TraceFile

from ..test_compare import run
from ..tiny_models import CONFIGS, build, make_inputs


@pytest.fixture(scope="module", params=list(CONFIGS))
def recorded(request, tmp_path_factory):
    model = build(request.param, CONFIGS[request.param])
    path = tmp_path_factory.mktemp(request.param) / "run.safetensors"
    with trace(to=path, inputs=True):
        run(model, make_inputs(request.param, batch=2))
    return model, TraceFile(path)


def test_a_replayed_layer_gives_the_bits_of_the_run(recorded):
    """The same arithmetic on the same inputs; a block that nobody listens to may fuse two steps, so only nearly the same bits."""
    model, file = recorded
    for row in file.rows:
        y = replay(model, row, file.__getitem__)
        assert y is not None, f"{row['name']} ({row['kind']}) has no teacher"
        expected = file[row["key"]]
        assert y.shape == expected.shape and y.dtype == expected.dtype, row["name"]
        assert np.linalg.norm(y - expected) <= 1e-5 * np.linalg.norm(expected), row["name"]


def test_inputs_are_cast_to_the_models_dtype_but_for_timesteps(recorded, monkeypatch):
    """LMS asks for fractions of a timestep, which float32 cannot hold."""
    model, file = recorded
    given = {}

    def spy(site, **inputs):
        given.update({name: x.dtype.name for name, x in inputs.items()})
        return np.zeros(1, dtype=model.dtype)

    kind = reference_class(file.rows[-1])
    spy.__signature__ = inspect.signature(TABLE[kind])
    monkeypatch.setitem(TABLE, kind, spy)
    replay(model, file.rows[-1], lambda key: file[key].astype("float64"))
    assert given and all(dtype == ("float64" if name == "timestep" else "float32") for name, dtype in given.items())


def test_what_no_layer_answers_for_is_none(recorded):
    model, file = recorded
    row = file.rows[0]
    assert replay(model, {**row, "kind": "Dropout"}, file.__getitem__) is None
    assert replay(model, {key: value for key, value in row.items() if key != "inputs"}, file.__getitem__) is None
