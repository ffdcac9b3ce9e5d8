"""The restricted machine: it builds what torch writes, and refuses everything else by name, having run nothing."""

import pickle
import pickletools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisd.checkpoint.pickles import STEPS, Machine, Refused, Tensor

from .torch_bytes import encode, program, storage_address, tensor

X = np.arange(12, dtype="float32").reshape(3, 4)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(values)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_plain_values_come_back(value):
    """By Python's own writer, which uses the memo for texts; equal texts that are one object share it."""
    try:
        assert Machine(pickle.dumps(value, protocol=2)).run() == value
    except Refused as refused:  # of two equal containers that happen to be one object
        assert "stands in two places" in str(refused)
    assert Machine(program(value)).run() == value


def test_a_tensor_is_an_address_and_a_view():
    found = Machine(program({"<cat>": X, "n": 300})).run()
    assert found["n"] == 300
    assert (found["<cat>"].storage.dtype, found["<cat>"].storage.count, found["<cat>"].shape, found["<cat>"].stride) == ("float32", 12, (3, 4), (4, 1))


def parameter_dict(parameters: bytes) -> bytes:
    """nn.ParameterDict, as the first textual inversion files have it: an object, filled from its state."""
    state = b"}(" + encode("training", {}) + b"\x88" + encode("_parameters", {}) + parameters
    state += encode("_non_persistent_buffers_set", {}) + b"c__builtin__\nset\n(](etRu"
    return b"\x80\x02ctorch.nn.modules.container\nParameterDict\n)\x81" + state + b"b."


PARAMETER = b"ctorch._utils\n_rebuild_parameter\n(" + tensor(X, {}) + b"\x88ccollections\nOrderedDict\n)RtR"
PARAMETERS = parameter_dict(b"}(" + encode("*", {}) + PARAMETER + b"u")


def test_a_parameter_dict_is_its_parameters():
    found = Machine(PARAMETERS).run()
    assert list(found) == ["*"] and isinstance(found["*"], Tensor)


def test_state_of_an_ordered_dict_is_left_out():
    code = b"ccollections\nOrderedDict\n)R(" + encode("a", {}) + b"K\x01u}" + encode("_metadata", {}) + b"}sb"
    assert Machine(b"\x80\x02" + code + b".").run() == {"a": 1}


def test_every_instruction_has_a_name_in_python():
    assert {pickletools.code2op[code].name for code in STEPS} >= {"GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID", "BINGET", "MARK"}


class Evil:
    """Pickled, this is a program that makes a file."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def calls(module: str, name: str, argument: str = "touch owned") -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + encode(argument, {}) + b"tR."


SHARED = b"](K\x01eq\x00"
TENSOR = program(X)
HOSTILE = {
    "os.system": (calls("os", "system"), "the name os.system"),
    "posix.system": (calls("posix", "system"), "the name posix.system"),
    "eval": (calls("__builtin__", "eval"), "the name __builtin__.eval"),
    "exec of Python 3": (calls("builtins", "exec"), "the name builtins.exec"),
    "getattr": (calls("__builtin__", "getattr"), "the name __builtin__.getattr"),
    "subprocess": (calls("subprocess", "Popen"), "the name subprocess.Popen"),
    "torch.load again": (calls("torch.serialization", "load"), "the name torch.serialization.load"),
    "torch.hub": (calls("torch.hub", "load"), "the name torch.hub.load"),
    "a name with a dot": (calls("collections", "OrderedDict.__init__"), "OrderedDict.__init__"),
    "a module with a blank": (calls("collections OrderedDict", ""), "the name collections.OrderedDict"),
    "control characters": (calls("os\x1b[2J", "system"), r"os\\x1b\[2J.system"),
    "copyreg": (calls("copy_reg", "_reconstructor"), "the name copy_reg._reconstructor"),
    "numpy objects": (calls("numpy.core.multiarray", "_reconstruct"), "the name numpy.core.multiarray._reconstruct"),
    "numpy scalar": (calls("numpy.core.multiarray", "scalar"), "the name numpy.core.multiarray.scalar"),
    "codecs": (calls("_codecs", "encode"), "the name _codecs.encode"),
    "an object's own __reduce__": (pickle.dumps(Evil(exec, "open('owned', 'w')"), protocol=2), "the name __builtin__.exec"),
    "nested calls": (pickle.dumps(Evil(getattr, Evil(__import__, "os"), "system"), protocol=2), "the name __builtin__.getattr"),
    "protocol 4": (pickle.dumps(Evil(exec, "1"), protocol=4), "protocol 2"),
    "protocol 0": (pickle.dumps(Evil(exec, "1"), protocol=0), "protocol 2"),
    "stack global": (b"\x80\x02" + encode("os", {}) + encode("system", {}) + b"\x93(" + encode("id", {}) + b"tR.", "the instruction STACK_GLOBAL"),
    "inst": (b"\x80\x02(" + encode("id", {}) + b"ios\nsystem\n.", "the instruction INST"),
    "obj": (b"\x80\x02(ccollections\nOrderedDict\no.", "the instruction OBJ"),
    "newobj_ex": (b"\x80\x02ccollections\nOrderedDict\n)}\x92.", "the instruction NEWOBJ_EX"),
    "extension": (b"\x80\x02\x82\x01.", "the instruction EXT1"),
    "text persistent id": (b"\x80\x02Pos.system\n.", "the instruction PERSID"),
    "long4": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "the instruction LONG4"),
    "text number": (b"\x80\x02I" + b"9" * 5000 + b"\n.", "the instruction INT"),
    "unknown": (b"\x80\x02\xfe.", "the instruction 0xfe"),
    "a storage is called": (b"\x80\x02ctorch\nFloatStorage\n)R.", "a call of torch.FloatStorage"),
    "a text is called": (b"\x80\x02" + encode("os.system", {}) + b")R.", "not on its stack"),
    "too many arguments": (b"\x80\x02ccollections\nOrderedDict\n(K\x01K\x02tR.", "with 2 arguments"),
    "new of a function": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)\x81.", "a new torch._utils._rebuild_tensor_v2"),
    "an ordered dict with pairs": (b"\x80\x02ccollections\nOrderedDict\n](](K\x01K\x02ee\x85R.", "an OrderedDict made from a list"),
    "a list in itself": (b"\x80\x02]q\x00h\x00a.", "stands in two places"),
    "a billion laughs": (b"\x80\x02" + SHARED + b"".join(b"](h%c" % i * 10 + b"eq%c" % (i + 1) for i in range(9)) + b".", "stands in two places"),
    "tuples that double": (b"\x80\x02K\x01\x85q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(60)) + b".", "stands in two places"),
    "memo of nothing": (b"\x80\x02h\x07.", "nobody has stored"),
    "an unhashable key": (b"\x80\x02}](K\x01eK\x02s.", "whose keys"),
    "an odd dictionary": (b"\x80\x02}(K\x01u.", "whose keys"),
    "append to a number": (b"\x80\x02K\x01K\x02a.", "not on its stack"),
    "build a text": (b"\x80\x02" + encode("x", {}) + b"}b.", "not on its stack"),
    "the mark is taken": (b"\x80\x02((t.", "leaves things behind"),
    "no mark": (b"\x80\x02K\x01t.", "not on its stack"),
    "empty stack": (b"\x80\x02.", "not on its stack"),
    "a huge text": (b"\x80\x02X\xff\xff\xff\x7fab.", "ends too early"),
    "no text": (b"\x80\x02X\x02\x00\x00\x00\xff\xfe.", "no UTF-8"),
    "a name without an end": (b"\x80\x02c" + b"a" * 300 + b"\n", "without an end"),
    "cut": (TENSOR[:-20], "ends too early|without an end"),
    "empty": (b"", "ends too early"),
    "an address that is a text": (b"\x80\x02" + encode("os.system", {}) + b"Q.", "not on its stack"),
    "an address of a file": (b"\x80\x02(" + encode("module", {}) + b"ctorch\nFloatStorage\n" + encode("/x/y", {}) * 2 + b"K\x01tQ.", "an address"),
    "an address with a list": (b"\x80\x02(" + encode("storage", {}) + b"]" + encode("0", {}) * 2 + b"K\x01tQ.", "an address"),
    "a storage of a function": (b"\x80\x02" + storage_address("FloatStorage", "0", 1).replace(b"ctorch\nFloatStorage", b"c__builtin__\nset") + b".", "a storage of"),
    "minus one number": (b"\x80\x02" + storage_address("FloatStorage", "0", -1) + b".", "with -1 numbers"),
    "two meanings of a storage": (program([X, X.astype("int32")]).replace(encode("1", {}), encode("0", {})), "two meanings"),
    "an offset": (b"\x80\x02" + tensor(X, {}, offset=1) + b".", "leaves its storage"),
    "a negative offset": (b"\x80\x02" + tensor(X, {}, offset=-1) + b".", "no lists of sizes"),
    "a shape beyond": (b"\x80\x02" + tensor(X, {}, shape=(4, 4)) + b".", "leaves its storage"),
    "a stride beyond": (b"\x80\x02" + tensor(X, {}, stride=(5, 1)) + b".", "leaves its storage"),
    "a negative stride": (b"\x80\x02" + tensor(X, {}, stride=(-4, 1)) + b".", "no lists of sizes"),
    "one number a billion times": (b"\x80\x02" + tensor(X, {}, shape=(10**9,), stride=(0,)) + b".", "leaves its storage"),
    "a shape of 2^70": (b"\x80\x02" + tensor(X, {}, shape=(2**70,), stride=(1,)) + b".", "leaves its storage"),
    "a shape of floats": (b"\x80\x02" + tensor(X, {}, shape=(3.0, 4.0)) + b".", "no lists of sizes"),
    "a shape that is a number": (b"\x80\x02" + tensor(X, {}, shape=12) + b".", "no lists of sizes"),
    "nine dimensions": (b"\x80\x02" + tensor(X, {}, shape=(1,) * 9, stride=(1,) * 9) + b".", "no lists of sizes"),
    "parameters that are a list": (parameter_dict(b"](K\x01e"), "a ParameterDict without parameters"),
    "a tensor of nothing": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))\x89NtR.", "without a storage"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_are_refused_by_name(name, tmp_path, monkeypatch):
    code, message = HOSTILE[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=message):
        Machine(code).run()
    assert not list(tmp_path.iterdir()), "the program ran"


@given(st.data())
@settings(max_examples=250, deadline=None, derandomize=True)
def test_broken_bytes_are_refused_and_nothing_else_happens(data):
    """Whatever is done to a good program: a value, or Refused; never another exception."""
    code = bytearray(data.draw(st.sampled_from((TENSOR, PARAMETERS, program({"a": [1, (2.5, None)], "b": "c"})))))
    for _ in range(data.draw(st.integers(1, 4))):
        code[data.draw(st.integers(0, len(code) - 1))] = data.draw(st.integers(0, 255))
    try:
        Machine(bytes(code)).run()
    except Refused:
        pass
