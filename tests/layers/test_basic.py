"""The layers with one weight and one bias, against torch's modules."""

from tests.goldens import check, every_record_of, golden

KINDS = ("Conv2d", "Linear", "GroupNorm", "LayerNorm", "Embedding")


@every_record_of(*KINDS)
def test_computes_what_the_reference_computes(name, path):
    check(golden(name), path)
