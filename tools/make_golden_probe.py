"""Writes tests/golden/ptx_probe.npz: what the simulator says each PTX instruction of the kernels answers. Needs g++ and CUDA's headers.

    python tools/make_golden_probe.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from minisd.ops.cuda.device import on_device  # noqa: E402
from minisd.ops.cuda.probe import probe  # noqa: E402
from tests.cudasim.simulator import Simulator  # noqa: E402

PATH = ROOT / "tests" / "golden" / "ptx_probe.npz"

if __name__ == "__main__":
    with on_device(Simulator()):
        answers = probe(np.asarray)
    np.savez_compressed(PATH, **answers)
    print(f"{PATH.relative_to(ROOT)}: {', '.join(answers)}")
