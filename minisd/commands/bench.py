"""`minisd bench`: the ladder of an op, measured on this machine."""

import json

import click



@click.group("bench", invoke_without_command=True)
@click.pass_context
def command(context):
    """Measure the ladder of an op. Without a subcommand: which ops, rungs and shapes there are."""
    if context.invoked_subcommand is None:
        from .. import ops
        from ..benchmark.calls import FORMS

        for name, form in FORMS.items():
            click.echo(f"{name:<17} {' → '.join(dict.fromkeys(r.name for r in ops.RUNGS[name]))}")
            click.echo(f"{'':<17} {','.join(form.names)}: {' '.join(form.presets)}")
        click.echo("\nminisd bench op conv2d --shape unet-64")


@command.command("op")
@click.argument("name")
@click.option("--impl", default="all", show_default=True, help="Rungs, separated by commas.")
@click.option("--shape", "shapes", multiple=True, help="A name of `minisd bench`, or numbers: 2,64,320,320. Can be repeated; default: the first.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(["float16", "float32", "float64"]), help="Default: float32 on the CPU, float16 on the GPU.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Each runs every rung once, behind one to warm up.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="No messages on the way.")
def bench_op(name, impl, shapes, device, dtype, rounds, as_json, quiet):
    """Every rung of the op NAME, beside each other: error to float64, median time, and the share of what this machine can do at most.

    The roof is measured in the same run: a large matrix product, and a copy beyond the cache. A rung that is wrong is not timed.
    """
    from ..benchmark.calls import Call, form
    from ..benchmark.ladder import chosen, measure

    presets = form(name).presets
    names = [part.strip() for part in impl.split(",") if part.strip()]
    chosen(name, names)
    calls = {shape: Call.of(name, shape) for shape in shapes or [next(iter(presets))]}
    dtype = dtype or ("float32" if device == "cpu" else "float16")
    machine = machine_of(device)
    say = (lambda line: None) if quiet else (lambda line: click.echo(line, err=True))
    ladders, roof = [], None
    for shape, call in calls.items():
        ladders.append((shape, measure(call, machine=machine, dtype=dtype, names=names, rounds=rounds, roof=roof, say=say)))
        roof = ladders[-1][1].roof
    if as_json:
        click.echo(json.dumps({"ladders": [{"preset": shape if shape in presets else None, **ladder.to_dict()} for shape, ladder in ladders]}))
    else:
        click.echo("\n\n".join(text(shape, ladder) for shape, ladder in ladders))


def machine_of(device: str):
    """Raises ResourceError where there is no GPU."""
    if device == "cpu":
        from ..benchmark.machine import Cpu

        return Cpu()
    from ..benchmark.gpu import Gpu

    return Gpu()


def text(shape: str, ladder) -> str:
    """The ladder as a table, as the rungs are registered, ">" before the one that models run; then those that were left out."""
    products = ladder.flop > 0
    size = f"{1e-9 * ladder.flop:.3g} GFLOP, " if products else ""
    lines = [
        f"{ladder.op} {shape} ({ladder.shape}), {ladder.dtype}: {size}{1e-6 * ladder.nbytes:.3g} MB",
        f"{ladder.machine}; roof: {1e-9 * ladder.roof.flops:.4g} GFLOP/s, {1e-9 * ladder.roof.bandwidth:.4g} GB/s",
        f"  {'rung':<16} {'error':>8} {'ms':>10} {'GFLOP/s' if products else 'GB/s':>10} {'of roof':>8}",
    ]
    for row in (r for r in ladder.rows if not r.left_out):
        rate = row.gflops if products else row.gbs
        mark = ">" if row.rung == ladder.runs else " "
        lines.append(f"{mark} {row.rung:<16} {row.error:>8.1e} {row.ms:>10.4g} {rate:>10.4g} {100 * row.of_roof:>6.1f} %  {row.idea}")
    left_out = [f"  {row.rung:<16} {row.left_out}" for row in ladder.rows if row.left_out]
    return "\n".join([*lines, *(["left out:", *left_out] if left_out else [])])


