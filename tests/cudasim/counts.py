"""What the tests of the kernels have done, for the last lines of pytest."""

from collections import Counter

COUNTED: Counter = Counter()


def summary() -> str:
    """One line; empty where no kernel was compiled and none ran."""
    what = {
        "compiled": "kernels compiled for an architecture", "launches": "launches simulated, each in up to three thread orders",
        "mistakes": "mistakes reported by the simulator, which tests had planted",
    }  # fmt: skip
    return ", ".join(f"{COUNTED[key]:,} {words}" for key, words in what.items()) if COUNTED else ""
