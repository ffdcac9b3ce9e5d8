"""Who is told what, when a layer returns; and how a NaN is followed to its origin."""

import inspect
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from minisd.errors import NumericError, UsageError
from minisd.params import Params
from minisd.tracing import Event, check_finite, checking, layer, listen, listening, tap, trace

P = Params.from_state_dict({"a.w": np.float32(2), "a.b.w": np.float32(3), "c.w": np.float32(5)}, path="net")


@layer
def scale(p, x, *, power=1):
    """y = w x."""
    return p.w**power * x


@layer
def nested(p, x):
    return tap(p, "product", scale(p.b, x)) + 1


def array(*values):
    return np.array(values, dtype="float32")


def test_a_layer_is_its_function():
    assert scale(P.a, 4.0) == 8.0 and scale(P.a, 4.0, power=2) == 16.0
    assert scale.__name__ == "scale" and scale.__doc__ == "y = w x."
    assert list(inspect.signature(scale).parameters) == ["p", "x", "power"]


def test_layers_report_under_their_path_in_the_order_of_their_return():
    with trace() as seen:
        y = nested(P.a, array(1, 2))
    assert list(seen) == ["net.a.b", "net.a/product", "net.a"]
    assert seen["net.a.b"].tolist() == [3.0, 6.0] and seen["net.a"] is y
    assert [event.kind for event in seen.events.values()] == ["scale", "tap", "nested"]
    assert seen.calls == {"net.a.b": 1, "net.a/product": 1, "net.a": 1}
    assert all(event.seconds >= 0.0 for event in seen.events.values())
    assert [name for name, _ in seen.items()] == list(seen) and len(seen) == 3 and "net.a" in seen and "net.z" not in seen


def test_an_event_carries_what_went_in_and_came_out():
    events = []
    x = array(1)
    with listen(events.append):
        y = scale(P.c, x, power=1)
    (event,) = events
    assert isinstance(event, Event) and (event.name, event.kind) == ("net.c", "scale")
    assert event.output is y and len(event.inputs) == 1 and event.inputs[0] is x, "the parameters are no input"


def test_images_are_read_in_the_layout_of_diffusers():
    """Inside [B, H, W, C], in a trace [B, C, H, W]; tokens and taps as they are."""
    x = np.zeros((1, 2, 3, 4), dtype="float32")
    with trace() as seen:
        scale(P.c, x)
        tap(P.c, "probs", x)
        scale(P.a.b, x[0])
    assert seen.events["net.c"].output.shape == (1, 2, 3, 4)
    assert seen["net.c"].shape == (1, 4, 2, 3) and seen["net.c/probs"].shape == (1, 2, 3, 4) and seen["net.a.b"].shape == (2, 3, 4)


@pytest.mark.parametrize(
    "patterns, names",
    [
        ((), ["net.a.b", "net.a/product", "net.a", "net.c"]),
        (("net.a",), ["net.a"]),
        (("net.a*",), ["net.a.b", "net.a/product", "net.a"]),
        (("*.c", "*/product"), ["net.a/product", "net.c"]),
        (("net.[ac]",), ["net.a", "net.c"]),
        (("NET.*",), []),
        ((SimpleNamespace(trace_patterns=("net.a", "other.*")),), ["net.a"]),
        ((SimpleNamespace(trace_patterns=("*",)), "*.c"), ["net.c"]),
    ],
)
def test_patterns_choose_names(patterns, names):
    with trace(*patterns) as seen:
        nested(P.a, array(1))
        scale(P.c, array(1))
    assert list(seen) == names


def test_the_last_call_is_kept_and_all_are_counted():
    with trace() as seen:
        scale(P.c, array(1))
        scale(P.c, array(2))
    assert seen["net.c"] == 10.0 and seen.calls["net.c"] == 2


def test_listeners_nest_and_both_hear():
    with trace("*.c") as outer:
        scale(P.c, array(1))
        with trace("*.c") as inner:
            scale(P.c, array(2))
    assert inner["net.c"] == 10.0 and inner.calls == {"net.c": 1} and outer.calls == {"net.c": 2}


def test_nobody_hears_outside_the_block():
    assert not listening()
    with pytest.raises(ZeroDivisionError):
        with trace() as seen:
            assert listening()
            1 / 0
    assert not listening()
    scale(P.c, array(1))
    assert len(seen) == 0


def test_other_threads_are_not_heard():
    with trace() as seen:
        thread = threading.Thread(target=lambda: scale(P.c, array(1)))
        thread.start()
        thread.join()
    assert len(seen) == 0


def test_a_layer_that_fails_reports_nothing_and_its_error_is_its_own():
    @layer
    def fails(p, x):
        raise ValueError("here")

    with trace() as seen, pytest.raises(ValueError, match="here"):
        fails(P.c, 1.0)
    assert len(seen) == 0


def test_the_error_of_a_listener_stops_the_run():
    def refuse(event):
        raise FloatingPointError(event.name)

    with listen(refuse), pytest.raises(FloatingPointError, match="net.a.b"):
        nested(P.a, array(1))


def test_tap_returns_what_it_reports():
    x = np.zeros(1)
    assert tap(P.c, "x", x) is x
    with trace() as seen:
        assert tap(P.c, "x", x) is x
    assert seen["net.c/x"] is x


def test_table_has_one_aligned_line_a_layer():
    with trace() as seen:
        scale(P.c, np.zeros((2, 30, 4), dtype="float32"))
        nested(P.a, np.zeros(7, dtype="float64"))
    lines = seen.table().splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["net.c", "scale", "2×30×4", "float32"],
        ["net.a.b", "scale", "7", "float64"],
        ["net.a/product", "tap", "7", "float64"],
        ["net.a", "nested", "7", "float64"],
    ]
    assert len({line.index("float") for line in lines}) == 1
    with trace("nothing") as empty:
        pass
    assert empty.table() == ""


def test_save_writes_names_and_arrays(tmp_path):
    from safetensors.numpy import load_file

    with trace() as seen:
        scale(P.c, np.arange(24, dtype="float32").reshape(1, 2, 3, 4))
        nested(P.a, np.arange(3, dtype="float64"))
    seen.save(tmp_path / "run.safetensors")
    saved = load_file(tmp_path / "run.safetensors")
    assert set(saved) == set(seen)
    for name, y in seen.items():
        assert saved[name].dtype == y.dtype and np.array_equal(saved[name], y)


def test_check_finite_lets_a_healthy_result_through_after_one_run():
    calls = []

    def compute():
        calls.append(1)
        return scale(P.c, array(1))

    assert check_finite(compute, "the UNet")[0] == 5.0
    assert len(calls) == 1


@pytest.mark.filterwarnings("ignore:overflow")
def test_check_finite_names_the_first_layer_that_makes_infinity():
    """net.a.b overflows inside net.a; net.c after it only passes the infinity on."""
    with pytest.raises(NumericError) as caught:
        check_finite(lambda: scale(P.c, nested(P.a, array(1, 2e38))), "the UNet", step=3)
    e = caught.value
    assert (e.layer, e.step) == ("net.a.b", 3)
    assert e.what == "net.a.b (scale): 1 of 2 values are NaN or Inf"
    assert "2e+38" in e.why and "3.4e+38" in e.why


def test_check_finite_when_the_input_was_already_bad():
    with pytest.raises(NumericError, match="came out of the UNet") as caught:
        check_finite(lambda: scale(P.c, array(np.nan)), "the UNet", step=1)
    assert (caught.value.layer, caught.value.step) == (None, 1)


def test_an_event_carries_names_options_and_parameters():
    events = []
    skips = [array(1), array(2)]

    @layer
    def takes(p, x, skips, *, size):
        skips.pop()
        return x

    with listen(events.append):
        takes(P.c, array(3), skips, size=(1, 2))
    (event,) = events
    assert event.names == ("x", "skips", "size") and event.options == {"size": (1, 2)} and event.params is P.c
    assert len(event.inputs[1]) == 2 and len(skips) == 1, "a list is seen as it was before the call"


def test_a_lazy_tap_is_made_only_for_who_asks_for_taps():
    made = []

    def probs():
        made.append(1)
        return array(7)

    assert tap(P.c, "probs", probs) is probs
    for patterns in (("*",), ("net.c",), ("*/other",)):
        with trace(*patterns) as seen:
            tap(P.c, "probs", probs)
        assert not made and len(seen) == 0
    with trace("net.*/probs") as seen, trace("*"):
        tap(P.c, "probs", probs)
    assert made == [1] and seen["net.c/probs"][0] == 7.0


def test_save_writes_a_manifest(tmp_path):
    from minisd.tracefile import TraceFile

    with trace("*.c") as seen:
        scale(P.c, array(1, 2))
        scale(P.c, array(3, 4))
    seen.save(tmp_path / "run.safetensors")
    (row,) = TraceFile(tmp_path / "run.safetensors").rows
    assert (row["key"], row["kind"], row["shape"], row["mean"]) == ("net.c", "scale", [2], 17.5)


def overflows():
    return scale(P.c, nested(P.a, array(1, 2e38)))


@pytest.mark.filterwarnings("ignore:overflow")
def test_checks_off_blocks_and_ops():
    assert not np.isfinite(_checked("off")).all()
    calls = []

    def counted():
        calls.append(1)
        return overflows()

    for level, runs in (("blocks", 2), ("ops", 1)):
        calls.clear()
        with checking(level), pytest.raises(NumericError) as caught:
            check_finite(counted, "the UNet", step=2)
        assert (caught.value.layer, caught.value.step, len(calls)) == ("net.a.b", 2, runs)
    with pytest.raises(UsageError, match="no check 'all'"), checking("all"):
        pass


def _checked(level):
    with checking(level):
        return check_finite(overflows, "the UNet")


@pytest.mark.filterwarnings("ignore:overflow")
def test_ops_sees_what_a_later_layer_hides():
    """An infinity whose reciprocal is 0 never reaches the end of the block."""

    @layer
    def reciprocal(p, x):
        return np.float32(1) / x

    def compute():
        return reciprocal(P.c, overflows())

    assert np.isfinite(check_finite(compute, "the UNet")).all()
    with checking("ops"), pytest.raises(NumericError, match=r"net\.a\.b \(scale\)"):
        check_finite(compute, "the UNet")
