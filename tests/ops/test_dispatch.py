"""Which rung runs, who decides, and what is said about it."""

import asyncio
import sys
import threading
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from minisd import ops
from minisd.errors import ContractError, UsageError
from minisd.ops.dispatch import PROFILES, RUNGS, dispatch, explaining, rung

ALL = [pytest.param(r, id=f"{op}/{r.name}") for op, ladder in RUNGS.items() for r in ladder]
X, W3, W1 = np.ones((1, 4, 4, 2), "float32"), np.ones((3, 2, 3, 3), "float32"), np.ones((3, 2, 1, 1), "float32")


def runs(op, *args, **kwargs) -> str:
    """The name of the rung that `explain` says would run."""
    (line,) = [line for line in ops.explain(op, *args, **kwargs).splitlines() if line.endswith("RUNS")]
    return line.split()[0]


@pytest.fixture
def toy(monkeypatch):
    """An op of three rungs that answer with their own name: "plain", "fast" (numerics fast) and "picky" (only length 3)."""
    monkeypatch.setitem(RUNGS, "toy", [])
    rung("toy", "plain", owner="any")(lambda x: "plain")
    rung("toy", "fast", owner="numpy", numerics="fast")(lambda x: "fast")
    rung("toy", "picky", owner="numpy", refuses=lambda x: None if len(x) == 3 else "takes three numbers")(lambda x: "picky")
    rung("toy", "device", owner="cupy")(lambda x: "device")
    return lambda n=1: dispatch("toy", np.zeros(n))


@pytest.mark.parametrize("r", ALL)
def test_every_rung_says_what_it_is(r):
    assert r.idea and len(r.idea) <= 140, "the first line of the docstring is the idea"
    assert r.numerics in PROFILES
    assert r.owner in ("any", "numpy", "cupy")
    assert r.numerics == "exact" or "e-" in r.run.__doc__, "a fast rung writes its error bound into its docstring"


@pytest.mark.parametrize("op", sorted(RUNGS))
def test_the_ladder_begins_with_the_reference_and_names_are_unique(op):
    names = [r.name for r in RUNGS[op]]
    assert names[0] == "reference" and RUNGS[op][0].owner == "any" and RUNGS[op][0].numerics == "exact"
    assert len(set(names)) == len(names)
    assert all(r.op == op for r in RUNGS[op])


def test_the_last_rung_that_takes_the_input_runs(toy):
    assert toy(3) == "picky"
    assert toy(2) == "fast"
    assert runs("conv2d", X, W1, padding=0) == "pointwise"
    assert runs("conv2d", X, W3, padding=0) == "im2col"
    assert runs("conv2d", X.astype("float16"), W3.astype("float16"), padding=0) == "reference"


def test_using_chooses_one_rung(toy):
    with ops.using(toy="plain"):
        assert toy(3) == "plain"
    assert toy(3) == "picky"


def test_using_nests_and_the_inner_one_wins(toy):
    with ops.using(toy="plain", conv2d="reference"):
        with ops.using(toy="fast"):
            assert toy() == "fast"
            assert runs("conv2d", X, W3, padding=0) == "reference", "the outer choice for another op still holds"
        assert toy() == "plain"


def test_using_ends_with_an_error(toy):
    with pytest.raises(ZeroDivisionError):
        with ops.using(toy="plain"):
            1 / 0
    assert toy(3) == "picky"


def test_profile_exact_leaves_fast_rungs_out(toy):
    with ops.using(profile="exact"):
        assert toy(1) == "plain" and toy(3) == "picky"
        with ops.using(profile="fast"):
            assert toy(1) == "fast"
        with ops.using(toy="fast"):
            assert toy(1) == "fast", "a rung that is asked for by name runs in any profile"


def test_a_chosen_rung_that_refuses_is_an_error_with_its_reason(toy):
    with ops.using(toy="picky"), pytest.raises(UsageError) as caught:
        toy(2)
    assert "no implementation of toy" in caught.value.what
    assert "takes three numbers" in caught.value.why and "asks for another" in caught.value.why
    with ops.using(conv2d="pointwise"), pytest.raises(UsageError, match="is for 1×1 kernels"):
        ops.conv2d(X, W3, padding=1)


def test_a_lesson_runs_only_where_it_is_asked_for(toy):
    rung("toy", "lesson", owner="any", lesson=True)(lambda x: "lesson")
    assert toy() == "fast"
    with ops.using(profile="exact"):
        assert toy() == "plain"
    with ops.using(toy="lesson"):
        assert toy() == "lesson"
    with explaining():
        assert "· is a lesson: runs where ops.using(toy='lesson') asks for it" in toy()


def test_the_rungs_of_another_owner_never_run(toy):
    with ops.using(toy="device"), pytest.raises(UsageError, match="is for cupy arrays, these are numpy's"):
        toy()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"conv2d": "winograd"}, "conv2d has no rung 'winograd'"),
        ({"convolution": "im2col"}, "no such op"),
        ({"profile": "precise"}, "no profile is called 'precise'"),
    ],
)
def test_unknown_names_are_refused_at_once(arguments, message):
    with pytest.raises(UsageError, match=message) as caught:
        with ops.using(**arguments):
            pytest.fail("the block must not run")
    assert caught.value.fix


def test_a_refused_using_changes_nothing(toy):
    with pytest.raises(UsageError):
        with ops.using(toy="plain", conv2d="winograd"):
            pass
    assert toy(3) == "picky"


def test_a_choice_is_local_to_its_thread(toy):
    seen = []
    with ops.using(toy="plain"):
        thread = threading.Thread(target=lambda: seen.append(toy(3)))
        thread.start()
        thread.join()
        assert toy(3) == "plain"
    assert seen == ["picky"]


def test_a_choice_is_local_to_its_task(toy):
    async def choose(name, inside, leave):
        with ops.using(toy=name):
            inside.set()
            await leave.wait()
            return toy()

    async def two():
        a, b = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(choose("plain", a, b), choose("fast", b, a))

    assert asyncio.run(two()) == ["plain", "fast"]


def test_explain_lists_the_ladder_slow_to_fast():
    lines = ops.explain("conv2d").splitlines()
    assert lines[0] == "conv2d"
    assert [line.split()[:3] for line in lines[1:]] == [[r.name, r.owner, r.numerics] for r in RUNGS["conv2d"]]
    assert all(r.idea in line for r, line in zip(RUNGS["conv2d"], lines[1:]))


def test_explain_with_a_call_gives_one_verdict_a_rung():
    lines = dict((line.split()[0], line) for line in ops.explain("conv2d", X, W3, padding=1).splitlines()[1:])
    assert lines["im2col"].endswith("· RUNS")
    assert lines["reference"].endswith("· slower than the one that runs")
    assert lines["pointwise"].endswith("· is for 1×1 kernels, stride 1, no padding")
    with ops.using(conv2d="reference"):
        assert runs("conv2d", X, W3, padding=1) == "reference"


def test_explain_takes_keywords_alone():
    assert runs("linear", x=np.ones((2, 2)), w=np.ones((2, 2))) == "gemm"


def test_explain_checks_the_contract_and_runs_nothing(toy):
    with pytest.raises(ValueError, match="does not fit"):
        ops.explain("linear", np.ones((2, 3)), np.ones((2, 2)))
    called = []
    rung("toy", "loud", owner="any")(lambda x: called.append(x))
    with explaining():
        assert "loud" in toy()
    assert not called


def test_explain_of_no_op():
    with pytest.raises(UsageError, match="no op is called 'convolve'") as caught:
        ops.explain("convolve")
    assert "conv2d" in caught.value.fix


def test_after_explain_ops_run_again():
    ops.explain("silu", X)
    assert isinstance(ops.silu(X), np.ndarray)


def test_explain_adds_the_details_of_the_rung_that_runs(monkeypatch):
    """How it would cut the work; a rung that refuses, or is not reached, is not asked."""
    def never(*args, **kwargs):
        raise AssertionError("asked without need")

    changed = [replace(r, details=(lambda x: f"{x.size} numbers") if r.name == "in_place" else never) for r in RUNGS["silu"]]
    monkeypatch.setitem(RUNGS, "silu", changed)
    assert "· RUNS: 6 numbers" in ops.explain("silu", np.zeros((2, 3), "float32"))


def test_an_array_of_another_owner_is_named_also_among_the_keywords(monkeypatch):
    class DeviceArray(np.ndarray):
        pass

    module = ModuleType("cupy")
    module.ndarray = DeviceArray
    monkeypatch.setitem(sys.modules, "cupy", module)
    x = np.ones((2, 2), "float32")
    with pytest.raises(ContractError, match="skip belongs to cupy, the first argument to numpy"):
        ops.linear(x, x, skip=x.view(DeviceArray))
    assert ops.attention(*[x[None, None]] * 3, scale=np.float64(0.5)).dtype == np.float32, "a NumPy scalar is no array of NumPy's"
