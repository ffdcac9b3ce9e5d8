"""Options that several commands have: where to compute, and in what."""

import click

ITEMSIZE = {"float16": 2, "float32": 4, "float64": 8}  # bytes of a number, by the names that --dtype takes
DEVICE_HELP = "cpu; cuda, cuda:1, …: an NVIDIA GPU, see docs/gpu.md; auto: the first GPU, else the CPU and a line that says why."


def device_option(default: str):
    """--device"""
    return click.option("--device", default=default, show_default=True, metavar="DEVICE", help=DEVICE_HELP)


def dtype_option(purpose: str = "float64 is the oracle"):
    """--dtype; None, when it is not given, stands for the default of the device."""
    text = f"{purpose}; float16 needs a GPU. Default: float32 on the CPU, float16 on a GPU."
    return click.option("--dtype", type=click.Choice(list(ITEMSIZE)), help=text)
