"""Textual inversion and LoRA, live: files written by torch, PEFT and diffusers, loaded by both, the same ids, vectors and pictures."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402

from minisd import StableDiffusionPipeline  # noqa: E402
from tests.numerics import assert_faithful, relative_l2  # noqa: E402
from tests.picture_cases import model_folder  # noqa: E402
from tests.test_pipeline import assert_same_picture  # noqa: E402

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]
PROMPT = "a cat on a blue background"


@pytest.fixture(scope="module", params=["embedded", "tiny_sd2"])
def folder(request, tmp_path_factory):
    return model_folder(request.param, tmp_path_factory.mktemp("model"))


def theirs_from(folder):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pair(folder):
    return StableDiffusionPipeline.from_pretrained(folder), theirs_from(folder)


def assert_same_pictures(ours, theirs, prompt=PROMPT):
    """A picture of four steps, and the latents behind it."""
    options = dict(num_inference_steps=4, guidance_scale=2.0, output_type="latent")  # more guidance enlarges rounding errors, too
    x = ours(prompt, seed=5, **options).images
    reference = theirs(prompt, generator=torch.manual_seed(5), **options).images
    assert relative_l2(x, reference.numpy()) <= 1e-4
    with torch.no_grad():
        decoded = theirs.vae.decode(reference / theirs.vae.config.scaling_factor).sample
    picture = np.asarray(theirs.image_processor.postprocess(decoded)[0])
    assert_same_picture(np.asarray(ours.to_images(x)[0])[None], picture[None])
    return x


# ----- textual inversion ---------------------------------------------------------------------------------------------------


def files(width: int, scratch) -> dict:
    """{kind: (path, word)} of every form that torch and safetensors write."""
    one, three = 0.02 * torch.randn(width), 0.02 * torch.randn(3, width)
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(three)})
    a1111 = {"string_to_token": {"*": 265}, "string_to_param": {"*": three.half()}, "name": "birb", "step": 5000, "sd_checkpoint": None, "sd_checkpoint_name": "x"}
    kinds = {
        "one.bin": ({"<birb>": one}, "<birb>"),
        "three.bin": ({"<birb>": three}, "<birb>"),
        "row of a table.bin": ({"<birb>": torch.randn(50, width)[7]}, "<birb>"),
        "bf16.bin": ({"<birb>": three.bfloat16()}, "<birb>"),
        "parameter.bin": ({"<birb>": torch.nn.Parameter(one)}, "<birb>"),
        "a1111.pt": (a1111, "birb"),
        "first.pt": ({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters, "name": "birb"}, "birb"),
    }
    found = {}
    for name, (value, word) in kinds.items():
        torch.save(value, scratch / name)
        torch.save(value, scratch / f"legacy {name}", _use_new_zipfile_serialization=False)
        found |= {name: (scratch / name, word), f"legacy {name}": (scratch / f"legacy {name}", word)}
    save_file({"<birb>": three.half()}, scratch / "three.safetensors")
    return found | {"three.safetensors": (scratch / "three.safetensors", "<birb>")}


def test_every_form_of_textual_inversion(pair, tmp_path):
    """Ids and table after loading are diffusers', bit by bit; after unloading they are what they were."""
    ours, theirs = pair
    before = ours.text_encoder.token_embedding
    for kind, (path, word) in files(before.shape[1], tmp_path).items():
        ours.load_textual_inversion(path)
        contents = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only="first" not in kind)
        theirs.load_textual_inversion(contents)
        prompts = [f"a {word} toy", f"{word}", "a cat", f"two {word},{word} and {word}"]
        expected = theirs.tokenizer(theirs.maybe_convert_prompt(prompts, theirs.tokenizer), padding="max_length", max_length=77).input_ids
        assert ours.tokenizer([ours.maybe_convert_prompt(p) for p in prompts]).input_ids.tolist() == expected, kind
        table = theirs.text_encoder.get_input_embeddings().weight.detach().numpy()
        np.testing.assert_array_equal(ours.text_encoder.token_embedding, table, err_msg=kind)
        ours.unload_textual_inversion()
        theirs.unload_textual_inversion()
        np.testing.assert_array_equal(ours.text_encoder.token_embedding, before)
        assert len(ours.tokenizer) == len(theirs.tokenizer)


def test_a_picture_with_a_learned_word(pair, tmp_path):
    ours, theirs = pair
    path, word = files(ours.text_encoder.config.hidden_size, tmp_path)["three.bin"]
    plain = assert_same_pictures(ours, theirs)
    for pipe in (ours, theirs):
        pipe.load_textual_inversion(str(path))
    assert relative_l2(assert_same_pictures(ours, theirs, f"a {word} on a blue background"), plain) > 1e-3


# ----- clip_skip -----------------------------------------------------------------------------------------------------------


def test_clip_skip_is_the_hidden_state_and_the_final_norm(pair):
    """diffusers' rule by hand: its pipeline asks transformers 5 for `text_encoder.text_model`, which is gone."""
    ours, theirs = pair
    ids = ours.tokenizer(PROMPT).input_ids
    with torch.no_grad():
        states = theirs.text_encoder(torch.from_numpy(ids), output_hidden_states=True).hidden_states
        double = theirs_from(theirs.config._name_or_path).text_encoder.double()
        exact = double(torch.from_numpy(ids), output_hidden_states=True).hidden_states
        for n in range(len(states)):
            plain = theirs.text_encoder.final_layer_norm(states[-(n + 1)]).numpy()
            truth = double.final_layer_norm(exact[-(n + 1)]).numpy()
            assert_faithful(ours.encode_prompt([PROMPT], clip_skip=n), truth, plain, name=f"clip_skip {n}")


# ----- LoRA ----------------------------------------------------------------------------------------------------------------

# In kohya's files diffusers 0.42.1 loses q, k and v of the text encoder where fc1 is there and out_proj is not; real files have all of them.
TARGETS = {
    "attention": (["to_q", "to_k", "to_v", "to_out.0"], ["q_proj", "out_proj"]),
    "everything": (["to_q", "to_out.0", "proj_in", "ff.net.0.proj", "ff.net.2", "conv1", "conv_shortcut", "time_emb_proj", "conv_in", "linear_1"], ["v_proj", "out_proj", "fc1", "fc2"]),
}  # fmt: skip


def train(folder, out, targets="attention", *, metadata=True, seed=0, **options):
    """A LoRA with random matrices, saved by diffusers; big enough to change the picture."""
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe, states = theirs_from(folder), {}
    torch.manual_seed(seed)
    for part, names in zip(("unet", "text_encoder"), TARGETS[targets]):
        model = getattr(pipe, part)
        model.add_adapter(LoraConfig(**{"r": 4, "lora_alpha": 4, "target_modules": names, "init_lora_weights": False, **options}))
        states[part] = {name: 0.3 * x for name, x in get_peft_model_state_dict(model).items()}
    meta = _collate_lora_metadata({"unet": pipe.unet, "text_encoder": pipe.text_encoder}) if metadata else {}
    pipe.save_lora_weights(out, unet_lora_layers=states["unet"], text_encoder_lora_layers=states["text_encoder"], **meta)
    return out


@pytest.mark.parametrize(
    "targets, options",
    [
        ("attention", dict(metadata=False)),
        ("attention", dict(lora_alpha=9, alpha_pattern={"to_k": 3, "q_proj": 1}, rank_pattern={"to_k": 2})),
        ("everything", dict(lora_alpha=2, use_rslora=True)),
    ],
)
def test_a_lora_of_peft_is_the_same_picture(pair, folder, tmp_path, targets, options):
    ours, theirs = pair
    plain = assert_same_pictures(ours, theirs)
    train(folder, tmp_path, targets, **options)
    for pipe in pair:
        pipe.load_lora_weights(str(tmp_path), adapter_name="a")
    changed = assert_same_pictures(ours, theirs)
    assert relative_l2(changed, plain) > 1e-3
    ours.unload_lora_weights()
    np.testing.assert_array_equal(ours(PROMPT, seed=5, num_inference_steps=4, guidance_scale=2.0, output_type="latent").images, plain)


def test_two_adapters_weights_fuse_and_unfuse(pair, folder, tmp_path):
    """Unfused at lora_scale 1 only: after another one diffusers 0.42.1 keeps the scale in the weights of its adapters."""
    for name, seed in (("a", 0), ("b", 1)):
        train(folder, tmp_path / name, seed=seed)
    seen = []
    for action in (
        lambda pipe: pipe.load_lora_weights(str(tmp_path / "a"), adapter_name="a"),
        lambda pipe: pipe.load_lora_weights(str(tmp_path / "b"), adapter_name="b"),
        lambda pipe: pipe.set_adapters(["a", "b"], [0.7, 0.4]),
        lambda pipe: pipe.set_adapters("a", 0.5),
        lambda pipe: pipe.fuse_lora(),
        lambda pipe: pipe.unfuse_lora(),
        lambda pipe: pipe.disable_lora(),
        lambda pipe: pipe.enable_lora(),
        lambda pipe: pipe.fuse_lora(lora_scale=0.5),
        lambda pipe: pipe.unload_lora_weights(),
    ):
        for pipe in pair:
            action(pipe)
        assert sorted(pair[0].get_active_adapters()) == sorted(pair[1].get_active_adapters())
        assert pair[0].get_list_adapters() == pair[1].get_list_adapters()
        seen.append(assert_same_pictures(*pair))
    assert relative_l2(seen[0], seen[1]) > 1e-3 and relative_l2(seen[2], seen[3]) > 1e-4


def kohya(folder, lora, alpha: float) -> dict:
    """The file of `train` under kohya's names."""
    tensors = load_file(lora / "pytorch_lora_weights.safetensors")
    result = {}
    for name, x in tensors.items():
        component, _, rest = name.partition(".")
        module, role = rest.replace(".lora_A.", ".lora_down.").replace(".lora_B.", ".lora_up.").replace(".lora_linear_layer.down.", ".lora_down.").replace(
            ".lora_linear_layer.up.", ".lora_up.").split(".lora_")  # fmt: skip
        module = module if component == "unet" else f"text_model.{module.removeprefix('text_model.')}"
        stem = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[component] + module.replace(".", "_")
        result[f"{stem}.lora_{role}"] = x.contiguous()
        result[f"{stem}.alpha"] = torch.tensor(alpha)
    return result


@pytest.mark.parametrize("targets", TARGETS)
def test_a_lora_of_kohya_is_the_same_picture(pair, folder, tmp_path, targets):
    ours, theirs = pair
    train(folder, tmp_path, targets)
    save_file(kohya(folder, tmp_path, alpha=6.0), tmp_path / "kohya.safetensors")
    ours.load_lora_weights(tmp_path / "kohya.safetensors")
    theirs.load_lora_weights(str(tmp_path), weight_name="kohya.safetensors")
    assert_same_pictures(ours, theirs)


def test_a_lora_of_peft_alone(pair, folder, tmp_path):
    """`get_peft_model(unet).save_pretrained`: adapter_model.safetensors with the config beside it."""
    from peft import LoraConfig, get_peft_model

    ours, theirs = pair
    torch.manual_seed(0)
    model = get_peft_model(theirs.unet, LoraConfig(r=3, lora_alpha=7, target_modules=["to_q", "conv2"], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == 7
    ours.load_lora_weights(tmp_path)
    assert_same_pictures(ours, theirs)
