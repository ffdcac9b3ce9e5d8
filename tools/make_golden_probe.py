"""Writes tests/golden/ptx_probe.npz and ptx_probe_hopper.npz: what the simulator says each PTX instruction of the kernels answers. Needs g++ and CUDA's headers.

    python tools/make_golden_probe.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from minisd.ops.cuda import probe, probe_hopper  # noqa: E402
from minisd.ops.cuda.device import on_device  # noqa: E402
from tests.cudasim.simulator import Simulator  # noqa: E402

FOLDER = ROOT / "tests" / "golden"

if __name__ == "__main__":
    with on_device(Simulator(capability=probe_hopper.CAPABILITY)):
        for name, module in (("ptx_probe.npz", probe), ("ptx_probe_hopper.npz", probe_hopper)):
            answers = module.probe(np.asarray)
            np.savez_compressed(FOLDER / name, **answers)
            print(f"{name}: {'; '.join(answers)}")
