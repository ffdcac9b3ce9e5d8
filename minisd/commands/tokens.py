"""`minisd tokens`: what the text encoder is told of a prompt, token by token."""

import json

import click


@click.command("tokens")
@click.argument("prompt")
@click.option("-m", "--model", default="tiny", show_default=True, help="“tiny”, a folder in diffusers' layout, a single file, or a hub id.")
@click.option("--embedding", "embeddings", multiple=True, metavar="FILE", help="A textual inversion: a word for the prompt; can be repeated.")
@click.option("--prompt-weights", type=click.Choice(["a1111"]), help="Also show the weights of (word:1.2), chunk by chunk.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(prompt, model, embeddings, prompt_weights, as_json):
    """Print the id and the spelling of every token of PROMPT. </w> is the end of a word; no weights are read.

    With --prompt-weights every line begins with the number of its chunk and ends with its weight.
    """
    from ..adapters.textual_inversion import expand_words, read_textual_inversion
    from ..checkpoint import read_component_config, resolve
    from ..loading import load_tokenizer
    from ..prompts import weighted_table

    folder = resolve(model)
    tokenizer = load_tokenizer(folder)
    positions = read_component_config(folder, "text_encoder").max_position_embeddings
    for path in embeddings:
        tokenizer.add_tokens(list(read_textual_inversion(path).tokens))
    prompt = expand_words(prompt, tokenizer)
    if prompt_weights is None:
        rows = [{"id": number, "token": token} for number, token in tokenizer.table(prompt)]
    else:
        rows = [{"chunk": i, "id": number, "token": token, "weight": w} for i, number, token, w in weighted_table(tokenizer, prompt, positions - 2)]
    if as_json:
        click.echo(json.dumps({"tokens": rows, "limit": positions}, ensure_ascii=False))
        return
    for row in rows:
        chunk, weight = (f"{row['chunk']}  ", f"  {row['weight']:.4g}") if prompt_weights else ("", "")
        click.echo(f"{chunk}{row['id']:>5}  {row['token']}{weight}")
    if prompt_weights is None and len(rows) > positions:
        click.echo(f"{len(rows) - positions} tokens too many: the text encoder reads {positions}, ends included; --prompt-weights a1111 cuts chunks", err=True)
