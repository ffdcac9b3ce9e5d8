"""Resnets and changes of size, against diffusers' modules."""

from tests.goldens import check, every_record_of, golden

KINDS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")


@every_record_of(*KINDS)
def test_computes_what_the_reference_computes(name, path):
    check(golden(name), path)
