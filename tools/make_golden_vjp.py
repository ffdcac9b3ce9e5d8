"""Writes tests/golden/gradients.npz: gradients of the inputs of tiny models by torch.autograd, float64 truth and float32.

    python tools/make_golden_vjp.py        # from the root of the repository, with the `reference` extra
"""

import sys
from pathlib import Path

import diffusers
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.reference.gradients import torch_gradients  # noqa: E402
from tests.reference.record import exact, tiny_reference  # noqa: E402
from tests.tiny_models import CONFIGS  # noqa: E402
from tests.vjp.models.cases import CASES, FILE, make_case, model_name  # noqa: E402


def main():
    torch.set_num_threads(1)
    results = {"made_with": np.array(f"torch {torch.__version__}, diffusers {diffusers.__version__}")}
    for case in CASES:
        model, _ = tiny_reference(model_name(case), CONFIGS[model_name(case)])
        for kind, reference in (("truth", exact(model)), ("torch", model)):
            of_inputs, _ = torch_gradients(case, reference, make_case(case))
            results |= {f"{case}/{key}/{kind}": gradient for key, gradient in of_inputs.items()}
    np.savez_compressed(FILE, **results)
    print(f"{FILE.name}: {len(CASES)} cases, {FILE.stat().st_size / 1000:.0f} kB, {results['made_with']}")


if __name__ == "__main__":
    main()
