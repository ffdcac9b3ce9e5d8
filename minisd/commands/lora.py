"""`minisd lora`: how much a LoRA changes each weight of a model."""

import dataclasses
import json

import click


@click.command("lora")
@click.argument("files", nargs=-1, required=True, metavar="FILE[:SCALE]...")
@click.option("-m", "--model", default="tiny", show_default=True, help="“tiny”, a folder in diffusers' layout, a single file, or a hub id.")
@click.option("--variant", help="File variant to read, such as fp16.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(files, model, variant, as_json):
    """Print ‖ΔW‖ / ‖W‖ of every weight that the LoRAs in FILEs change, the largest first. W′ = W + SCALE · alpha / r · B A."""
    from ..adapters import Plans
    from ..checkpoint import component_shapes, read_component_config, resolve
    from ..pipeline import StableDiffusionPipeline

    folder = resolve(model, variant=variant)
    unet, text = (read_component_config(folder, part) for part in ("unet", "text_encoder"))
    shapes = {"unet": component_shapes(unet), "text_encoder": component_shapes(text)}
    plans = Plans.check(files, (), shapes, unet.layers_per_block)
    pipe = StableDiffusionPipeline.from_pretrained(folder, variant=variant)
    names = [typed for typed, _, _ in plans.loras]
    for typed, file, _ in plans.loras:
        pipe.load_lora_weights(file, adapter_name=typed)
    pipe.set_adapters(names, [scale for _, _, scale in plans.loras])
    report = pipe.lora_report()
    click.echo(json.dumps({"weights": list(map(dataclasses.asdict, report))}, ensure_ascii=False) if as_json else report)
