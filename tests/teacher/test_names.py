"""What our traces call a layer leads to the reference's class and arguments, and nothing is called two things."""

from minisd.teacher import NOT_LAYERS, OUR_CUTS, OURS, OURS_ELSEWHERE, OWN, TABLE, reference_class, reference_names


def test_our_kinds_lead_to_the_references_classes():
    assert {OUR_CUTS.get(kind, kind) for kind, _ in [*OURS.values(), *OURS_ELSEWHERE.values()]} <= set(TABLE)
    assert set(OUR_CUTS) == set(OWN) and not set(TABLE) & (set(OWN) | NOT_LAYERS)
    for name, kind, expected in (
        ("unet.mid_block", "mid_block", "UNetMidBlock2DCrossAttn"), ("vae.decoder.mid_block", "mid_block", "UNetMidBlock2D"),
        ("text_encoder.text_model.encoder", "encoder", "CLIPEncoder"), ("vae.encoder", "encoder", "Encoder"),
        ("unet.conv_in", "conv2d", "Conv2d"), ("unet.conv_in", "Conv2d", "Conv2d"), ("x", "SiLU", "SiLU"),
    ):  # fmt: skip
        assert reference_class({"name": name, "kind": kind}) == expected
    resnet = {"name": "unet.mid_block.resnets.0", "kind": "resnet_block"}
    assert reference_names(resnet, {"x": "a", "t_emb": "b"}) == {"input_tensor": "a", "temb": "b"}
    assert reference_names({**resnet, "kind": "ResnetBlock2D"}, {"input_tensor": "a"}) == {"input_tensor": "a"}
