"""Every weight is found under its name in every dialect; what is no LoRA is named; LDM's numbering against the official key lists."""

import pytest

from minisd.adapters.lora_names import ldm_name, resolve, spellings
from minisd.checkpoint.shapes import clip_text_shapes, unet_shapes
from minisd.config import CLIPTextConfig, UNetConfig
from minisd.errors import ModelFileError

SD1 = {"unet": unet_shapes(UNetConfig()), "text_encoder": clip_text_shapes(CLIPTextConfig())}
KNOWN = spellings(SD1, 2)
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0"
FC1 = "text_model.encoder.layers.11.mlp.fc1"
V = "text_model.encoder.layers.0.self_attn.v_proj"

NAMES = {
    f"unet.{Q}.lora_A.weight": ("unet", Q, "down"),
    f"unet.{Q}.lora_B.weight": ("unet", Q, "up"),
    f"unet.{Q}.lora_A.default.weight": ("unet", Q, "down"),
    f"base_model.model.{Q}.lora_B.weight": ("unet", Q, "up"),
    f"unet.{Q}.lora.down.weight": ("unet", Q, "down"),
    f"unet.{OUT}.lora.up.weight": ("unet", OUT, "up"),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight": ("unet", Q, "down"),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight": ("unet", Q, "up"),
    "up_blocks.1.attentions.2.transformer_blocks.0.attn2.processor.to_out_lora.down.weight": ("unet", OUT, "down"),
    f"lora_unet_{Q.replace('.', '_')}.lora_down.weight": ("unet", Q, "down"),
    f"lora_unet_{OUT.replace('.', '_')}.alpha": ("unet", OUT, "alpha"),
    "lora_unet_mid_block_resnets_1_time_emb_proj.lora_up.weight": ("unet", "mid_block.resnets.1.time_emb_proj", "up"),
    "lora_unet_conv_in.lora_down.weight": ("unet", "conv_in", "down"),
    "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight": ("unet", Q, "down"),
    "lora_unet_output_blocks_5_1_transformer_blocks_0_attn2_to_out_0.lora_up.weight": ("unet", OUT, "up"),
    "lora_unet_middle_block_2_emb_layers_1.alpha": ("unet", "mid_block.resnets.1.time_emb_proj", "alpha"),
    f"text_encoder.{V}.lora_A.weight": ("text_encoder", V, "down"),
    "text_encoder.encoder.layers.0.self_attn.v_proj.lora_B.weight": ("text_encoder", V, "up"),
    f"text_encoder.{V}.lora_linear_layer.down.weight": ("text_encoder", V, "down"),
    "text_encoder.text_model.encoder.layers.0.self_attn.to_v_lora.up.weight": ("text_encoder", V, "up"),
    "lora_te_text_model_encoder_layers_0_self_attn_v_proj.lora_up.weight": ("text_encoder", V, "up"),
    "lora_te_text_model_encoder_layers_11_mlp_fc1.alpha": ("text_encoder", FC1, "alpha"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_a_dialect_is_a_weight(name):
    component, module, role = NAMES[name]
    assert resolve(name, KNOWN) == (component, f"{module}.weight", role)


def test_no_two_weights_share_a_spelling():
    count = 0
    for component, tensors in SD1.items():
        for tensor, shape in tensors.items():
            if tensor.endswith(".weight") and len(shape) > 1 and "embeddings." not in tensor:
                module = tensor.removesuffix(".weight")
                short = {"unet": "unet", "text_encoder": "te"}[component]
                assert KNOWN[f"{component}.{module}"] == KNOWN[f"lora_{short}_{module.replace('.', '_')}"] == (component, tensor)
                count += 1
    assert count == len(set(KNOWN.values())) == 282 + 72  # 192 in the transformers, 90 convolutions and embeddings of time; q k v out fc1 fc2


LDM = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_2": "time_embed.2", "conv_out": "out.2",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2", "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.attentions.1.proj_in": "input_blocks.5.1.proj_in", "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.4.0.skip_connection",
    "down_blocks.3.resnets.1.conv2": "input_blocks.11.0.out_layers.3", "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": "middle_block.1.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.0.resnets.2.conv1": "output_blocks.2.0.in_layers.2", "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv", "up_blocks.3.attentions.2.proj_out": "output_blocks.11.1.proj_out",
}  # fmt: skip


@pytest.mark.parametrize("module", LDM)
def test_names_of_ldm(module):
    """As they stand in v1-5-pruned-emaonly.safetensors."""
    attended = {name.partition(".attentions.")[0] for name in SD1["unet"] if ".attentions." in name}
    assert ldm_name(module, 2, attended) == LDM[module]
    assert KNOWN["lora_unet_" + LDM[module].replace(".", "_")] == ("unet", f"{module}.weight")


@pytest.mark.parametrize("name", ["lora_unet_xyz.lora_down.weight", f"unet.{Q}.weight", "alpha", "", f"{Q}.lora_A.weight.extra", f"{Q}.lora_A.bias2",
                                  "text_encoder.text_model.embeddings.token_embedding.lora_A.weight"])  # fmt: skip
def test_other_names_are_nobodys(name):
    assert resolve(name, KNOWN) is None


OTHERS = {
    "LoHa": f"lora_unet_{Q.replace('.', '_')}.hada_w1_a",
    "LoKr": f"lora_unet_{Q.replace('.', '_')}.lokr_w2",
    "Tucker": "lora_unet_conv_in.lora_mid.weight",
    "DoRA": f"unet.{Q}.lora_magnitude_vector",
    "DoRA (a": f"lora_unet_{Q.replace('.', '_')}.dora_scale",
    "OFT": f"lora_unet_{Q.replace('.', '_')}.oft_blocks",
    "GLoRA": f"lora_unet_{Q.replace('.', '_')}.a1.weight",
    "IA³": f"lora_unet_{Q.replace('.', '_')}.on_input",
    "full difference": "lora_unet_conv_in.diff",
    "biases": f"unet.{Q}.lora_B.bias",
    "token embedding": "text_encoder.embeddings.token_embedding.lora_embedding_A",
    "VeRA": f"unet.{Q}.vera_lambda_b",
}


@pytest.mark.parametrize("method", OTHERS)
def test_other_methods_are_refused_by_name(method):
    with pytest.raises(ModelFileError) as caught:
        resolve(OTHERS[method], KNOWN)
    assert method in caught.value.what and OTHERS[method] in caught.value.why
