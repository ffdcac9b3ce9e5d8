"""How a timestep becomes an embedding, against diffusers' modules."""

from tests.goldens import check, every_record_of, golden

KINDS = ("Timesteps", "TimestepEmbedding")


@every_record_of(*KINDS)
def test_computes_what_the_reference_computes(name, path):
    check(golden(name), path)
