"""`minisd diff`: two traces, or a model against a trace; the first wrong layer on top. Exit code 1 where they differ."""

import json
import sys
from pathlib import Path

import click

from ..errors import UsageError


@click.command("diff")
@click.argument("files", nargs=-1, required=True, metavar="[OURS] REF")
@click.option("--teacher", is_flag=True, help="Feed every layer of the model -m what REF recorded, so that each error is the layer's own.")
@click.option("-m", "--model", default="tiny", show_default=True, help="For --teacher: “tiny”, a folder in diffusers' layout, a single file, or a hub id.")
@click.option("--variant", help="For --teacher: file variant of the model, such as fp16.")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True, help="For --teacher.")
@click.option("--profile", type=click.Choice(["exact", "fast"]), default="exact", show_default=True, help="For --teacher: which rungs compute.")
@click.option("--truth", help="A float64 trace of the same run: who is nearer to it?")
@click.option("--rtol", type=float, help="One relative tolerance instead of the budgets of each kind of layer.")
@click.option("--atol", type=float, default=0.0, help="Beside --rtol: allowed max|ours − ref|.")
@click.option("--html", "page", help="Also write one static page: the tree of layers, coloured by error.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Only the first divergence, no table.")
def command(files, teacher, model, variant, dtype, profile, truth, rtol, atol, page, as_json, quiet):
    """Compare the trace OURS with REF, layer by layer, or with --teacher a model with REF.

    The first divergence stands on top: the first layer whose error rounding does not explain. Make traces with `minisd trace`, or of
    the reference with the program that `minisd dump-script` prints.
    """
    if len(files) != (1 if teacher else 2):
        wanted = "one trace: minisd diff --teacher -m MODEL ref.safetensors" if teacher else "two traces: minisd diff ours.safetensors ref.safetensors"
        raise UsageError(f"{len(files)} files given", "", f"give {wanted}")
    if page and not Path(page).resolve().parent.is_dir():
        raise UsageError(f"{page}: its folder does not exist", "", f"mkdir -p {Path(page).parent}")
    from .. import ops
    from ..compare import diff
    from ..pipeline import StableDiffusionPipeline

    ours = StableDiffusionPipeline.from_pretrained(model, dtype=dtype, variant=variant) if teacher else files[0]
    with ops.using(profile=profile):
        result = diff(ours, files[-1], truth=truth, rtol=rtol, atol=atol)
    if page:
        Path(page).write_text(result.to_html(), encoding="utf-8")
    click.echo(json.dumps(result.to_dict()) if as_json else result.headline() if quiet else str(result))
    sys.exit(0 if result.same else 1)
