"""The checkpoint as a tree: paths, presence, order, reads."""

import copy
import threading

import numpy as np
import pytest

from minisd.errors import ModelFileError
from minisd.params import Params, record_reads

NAMES = (
    "conv_in.weight", "conv_in.bias", "blocks.0.norm.weight", "blocks.1.norm.weight", "blocks.1.conv_shortcut.weight",
    "blocks.10.norm.weight", "blocks.2.norm.weight",
)  # fmt: skip
STATE = {name: np.full(2, i, dtype="float32") for i, name in enumerate(NAMES)}


@pytest.fixture
def p():
    return Params.from_state_dict(STATE, path="unet")


def test_a_leaf_is_the_array_itself(p):
    assert p.conv_in.weight is STATE["conv_in.weight"]
    assert p.blocks[1].conv_shortcut.weight is STATE["blocks.1.conv_shortcut.weight"]


def test_the_path_is_the_name_in_the_checkpoint(p):
    assert (p.path, p.conv_in.path, p.blocks[1].conv_shortcut.path) == ("unet", "unet.conv_in", "unet.blocks.1.conv_shortcut")
    bare = Params.from_state_dict(STATE)
    assert (bare.path, bare.conv_in.path) == ("", "conv_in")


def test_presence_is_structure(p):
    assert "conv_shortcut" in p.blocks[1] and "conv_shortcut" not in p.blocks[0]
    assert p.blocks[1].get("conv_shortcut").path == "unet.blocks.1.conv_shortcut"
    assert p.blocks[0].get("conv_shortcut") is None and p.blocks[0].get("bias", 7) == 7


def test_numbered_children_come_in_the_order_of_their_numbers():
    """The file says 0, 1, 10, 2; the network says 0, 1, 2, …, 10."""
    state = {f"blocks.{i}.w": np.float32(i) for i in (0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9)}
    p = Params.from_state_dict(state)
    assert len(p.blocks) == 11
    assert [block.w for block in p.blocks] == list(range(11))


def test_items_are_the_state_dict(p):
    assert list(p.items()) == [(name, STATE[name]) for name in (*NAMES[:2], *NAMES[2:])]
    assert [name for name, _ in p.blocks.items()] == [n.removeprefix("blocks.") for n in NAMES[2:]]
    assert [name for name, _ in p.conv_in.items("unet.conv_in.")] == ["unet.conv_in.weight", "unet.conv_in.bias"]


def test_map_makes_a_new_tree(p):
    doubled = p.map(lambda w: w.astype("float64") * 2)
    assert [(n, w.tolist()) for n, w in doubled.items()] == [(n, (2 * w).tolist()) for n, w in STATE.items()]
    assert doubled.blocks[1].path == "unet.blocks.1" and doubled.conv_in.weight.dtype == np.float64
    assert p.conv_in.weight.dtype == np.float32


def test_a_missing_tensor_is_named_with_its_neighbours(p):
    with pytest.raises(ModelFileError) as caught:
        p.conv_in.scale
    assert caught.value.what == "unet.conv_in.scale is missing from the weights"
    assert "weight, bias" in caught.value.why
    with pytest.raises(ModelFileError, match=r"unet\.blocks\.3 is missing"):
        p.blocks[3]


def test_a_missing_tensor_at_the_root_without_a_path():
    with pytest.raises(ModelFileError) as caught:
        Params.from_state_dict(STATE).conv_out
    assert caught.value.what == "conv_out is missing from the weights"
    assert caught.value.why.startswith("the root holds conv_in")


def test_a_gap_in_the_numbers_is_named():
    p = Params.from_state_dict({"blocks.0.w": np.zeros(1), "blocks.2.w": np.zeros(1)}, path="vae")
    with pytest.raises(ModelFileError, match=r"vae\.blocks\.1 is missing"):
        list(p.blocks)


@pytest.mark.parametrize("names", [("a", "a.b"), ("a.b", "a"), ("x.a.b.c", "x.a.b")])
def test_a_name_cannot_be_tensor_and_module_at_once(names):
    """Otherwise one of the two would be lost without a word."""
    with pytest.raises(ModelFileError, match="both"):
        Params.from_state_dict({name: np.zeros(1) for name in names})


def test_read_only(p):
    with pytest.raises(TypeError, match="read-only"):
        p.conv_in = 1
    with pytest.raises(TypeError, match="read-only"):
        p.conv_in.weight = np.zeros(2)
    with pytest.raises(TypeError):
        p["conv_in"] = 1
    with pytest.raises(TypeError, match="read-only"):
        del p.path


def test_a_copy_is_possible(p):
    """copy and pickle probe for dunder names; a model in a dataclass or a process pool is copied."""
    twin = copy.deepcopy(p)
    assert list(twin.items())[0][0] == "conv_in.weight" and twin.blocks[1].path == "unet.blocks.1"
    assert twin.conv_in.weight is not p.conv_in.weight and np.array_equal(twin.conv_in.weight, p.conv_in.weight)


def test_repr_shows_path_and_children(p):
    assert repr(p) == "Params(unet: conv_in, blocks)"
    assert repr(Params.from_state_dict({})) == "Params(<root>: )"


def test_tab_completion_offers_the_children(p):
    assert {"conv_in", "blocks", "path", "items"} <= set(dir(p))


def test_reads_are_recorded_as_full_names(p):
    with record_reads() as reads:
        p.conv_in.weight
        p.conv_in.get("bias")
        p.blocks[1].norm
        "conv_shortcut" in p.blocks[1]
    assert reads == {"unet.conv_in.weight", "unet.conv_in.bias"}, "only tensors, and only those that were read"
    p.blocks[0].norm.weight
    assert len(reads) == 2, "nothing is recorded outside the block"


def test_reads_without_a_path_are_the_names_of_the_state_dict():
    p = Params.from_state_dict({"scale": np.zeros(1), "a.b": np.zeros(1)})
    with record_reads() as reads:
        p.scale, p.a.b
    assert reads == {"scale", "a.b"}


def test_recording_is_local_to_its_thread_and_nests(p):
    with record_reads() as outer:
        thread = threading.Thread(target=lambda: p.conv_in.weight)
        thread.start()
        thread.join()
        assert outer == set()
        with record_reads() as inner:
            p.conv_in.weight
        p.conv_in.bias
    assert inner == {"unet.conv_in.weight"} and outer == {"unet.conv_in.bias"}


def test_replace_shares_what_it_does_not_change(p):
    new = np.zeros((3, 3))
    other = p.replace({"blocks.1.norm.weight": new})
    assert other.blocks[1].norm.weight is new and other.conv_in.weight is p.conv_in.weight and other.path == p.path
    assert p.blocks[1].norm.weight is STATE["blocks.1.norm.weight"] and [n for n, _ in other.items()] == [n for n, _ in p.items()]
    with pytest.raises(KeyError, match="unet has no blocks.7"):
        p.replace({"blocks.7": new})
