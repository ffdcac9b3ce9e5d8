"""Toy kernels, written in the tests of the simulator, and run in it."""

import numpy as np
import pytest

from minisd.ops.cuda.kernel import instantiate, source
from tests.cudasim import simulator
from tests.cudasim.simulator import BACKWARD, FORWARD, SHUFFLED, compile_text, run_text


@pytest.fixture
def launch(tmp_path):
    """launch(text, *args, …): compiles the kernel `toy` in `text` and runs it; lists become float32 arrays."""

    def run(text, *args, grid=1, block=32, shared=0, ways=(FORWARD, BACKWARD, SHUFFLED)):
        path = tmp_path / "toy.cu"
        path.write_text(text, encoding="utf-8")
        simulator.kernels.source.cache_clear()
        instantiate.cache_clear()
        instance = instantiate(str(path), "toy", ())
        text = source(str(path)).replace(str(path), path.name)  # so that the cache knows it in the next test
        f = getattr(compile_text(text, (instance,)), simulator.symbol(instance))
        arguments = [np.array(a, "float32") if isinstance(a, list) else a if p.pointer or p.tensor_map else p.dtype.type(a)
                     for p, a in zip(instance.parameters, args)]  # fmt: skip
        run_text(f, instance, (grid, 1, 1), (block, 1, 1), arguments, shared, ways)
        return arguments

    return run


def array(*shape, fill=np.nan, dtype="float32"):
    return np.full(shape, fill, dtype)
