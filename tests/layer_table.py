"""Which layer of ours answers for which module of the reference: the table of `minisd diff --teacher`, as the tests know it."""

from minisd.teacher import NOT_LAYERS, PUBLIC, TABLE, Site, compute, input_names

__all__ = ["NOT_LAYERS", "PUBLIC", "TABLE", "Site", "compute", "input_names"]
