"""Options that several commands have."""

import click
import numpy as np

from minisd.commands.options import ITEMSIZE, device_option, dtype_option


@click.command()
@device_option("auto")
@dtype_option("why not")
def command(device, dtype):
    click.echo(f"{device} {dtype}")


def run(*args) -> tuple:
    from click.testing import CliRunner

    result = CliRunner().invoke(command, args)
    return result.exit_code, result.output


def test_device_and_dtype():
    assert run() == (0, "auto None\n")
    assert run("--device", "cuda:1", "--dtype", "float16") == (0, "cuda:1 float16\n")
    assert run("--dtype", "int8")[0] == 2
    assert "why not; float16 needs a GPU" in " ".join(run("--help")[1].split())


def test_sizes():
    assert all(np.dtype(name).itemsize == size for name, size in ITEMSIZE.items())
