"""Every UNet parameter has one LDM name, and every key of the published formats finds its parameter."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from lib_layerdiffusion.hosts.ldm_names import name_modules, translate
from tests.full_unets import UNETS, make_meta_unet
from tests.tiny_models import ldm_names

SD15_WIDTHS, SDXL_WIDTHS, NARROW_WIDTHS = (320, 640, 1280, 1280), (320, 640, 1280), (64, 64, 96, 96)
SD15, SDXL = UNETS["sd15"], UNETS["sdxl"]
NARROW: dict[str, Any] = {"block_out_channels": NARROW_WIDTHS, "cross_attention_dim": 96, "norm_num_groups": 8}
ATTENTION_BLOCKS_SD15 = [
    *[f"input_blocks.{n}.1" for n in (1, 2, 4, 5, 7, 8)],
    *[f"output_blocks.{n}.1" for n in range(3, 12)],
    "middle_block.1",
]


@pytest.fixture(scope="module", params=[SD15, SDXL, NARROW], ids=["sd15", "sdxl", "narrow"])
def unet(request: pytest.FixtureRequest) -> UNet2DConditionModel:
    return make_meta_unet(request.param)


def test_every_parameter_has_exactly_one_ldm_name_and_back(unet: UNet2DConditionModel) -> None:
    parameters = [name for name, _ in unet.named_parameters()]
    names = ldm_names(unet)
    # The narrow UNet's second level is as wide as its first: no skip_connection, two tensors fewer.
    assert (
        len(parameters)
        == {SD15_WIDTHS: 686, SDXL_WIDTHS: 1680, NARROW_WIDTHS: 684}[tuple(unet.config["block_out_channels"])]
    )
    assert sorted(names.values()) == sorted(parameters)
    assert not [name for name in names if name.startswith("unnamed")]
    table = name_modules(unet.config)
    assert {name: translate(name, table) for name in names} == names


def test_ldm_names_are_those_of_diffusers_own_conversion(unet: UNet2DConditionModel) -> None:
    parameters = dict(unet.named_parameters())
    checkpoint = {f"model.diffusion_model.{ldm}": parameters[name] for ldm, name in ldm_names(unet).items()}
    config = dict(unet.config)
    if config["addition_embed_type"]:
        config["class_embed_type"], config["addition_embed_type"] = None, "text_time"
    converted = convert_ldm_unet_checkpoint(checkpoint, config)
    assert set(converted) == set(parameters)
    assert all(converted[name] is parameter for name, parameter in parameters.items())


def test_names_of_layers_per_block_given_as_a_list() -> None:
    config = dict(make_meta_unet(NARROW).config)
    assert name_modules({**config, "layers_per_block": [2, 2, 2, 2]}) == name_modules(config)


def test_unknown_names_translate_to_nothing() -> None:
    table = name_modules(make_meta_unet(NARROW).config)
    for name in ("input_blocks.12.0.in_layers.0.weight", "double_blocks.0.img_attn.qkv.weight", "", "out"):
        assert translate(name, table) is None


@pytest.mark.slow
def test_sdxl_attention_file_finds_every_projection() -> None:
    """layer_xl_transparent_attn: 1,120 tensors = up and down of each of the 560 attention projections."""
    unet = make_meta_unet(SDXL)
    depth = {4: 2, 5: 2, 7: 10, 8: 10}
    blocks = {f"input_blocks.{n}.1": depth[n] for n in depth} | {"middle_block.1": 10}
    blocks |= {f"output_blocks.{n}.1": 10 if n < 3 else 2 for n in range(6)}
    keys = [
        f"{block}.transformer_blocks.{k}.{attention}.{projection}.weight"
        for block, count in blocks.items()
        for k in range(count)
        for attention in ("attn1", "attn2")
        for projection in ("to_q", "to_k", "to_v", "to_out.0")
    ]
    table = name_modules(unet.config)
    parameters = dict(unet.named_parameters())
    found = {translate(key, table) for key in keys}
    assert len(keys) * 2 == 1120
    assert found == {n for n in parameters if ".attn" in n and n.endswith(".weight")}


def test_sdxl_conv_file_finds_everything_but_q_k_v() -> None:
    """layer_xl_transparent_conv: differences of all parameters but to_q, to_k and to_v, in the LDM layout of SDXL."""
    keys = ["time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2", "input_blocks.0.0", "out.0", "out.2"]
    keys += ["input_blocks.3.0.op", "input_blocks.6.0.op", "output_blocks.2.2.conv", "output_blocks.5.2.conv"]
    resnets = [f"input_blocks.{n}.0" for n in (1, 2, 4, 5, 7, 8)] + ["middle_block.0", "middle_block.2"]
    resnets += [f"output_blocks.{n}.0" for n in range(9)]
    leaves = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3")
    keys += [f"{resnet}.{leaf}" for resnet in resnets for leaf in leaves]
    widened = [f"input_blocks.{n}.0" for n in (4, 7)] + [f"output_blocks.{n}.0" for n in range(9)]
    keys += [f"{resnet}.skip_connection" for resnet in widened]
    depth = {"middle_block.1": 10} | {f"input_blocks.{n}.1": d for n, d in {4: 2, 5: 2, 7: 10, 8: 10}.items()}
    depth |= {f"output_blocks.{n}.1": 10 if n < 3 else 2 for n in range(6)}
    parts = ("norm1", "norm2", "norm3", "attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2")
    for block, count in depth.items():
        keys += [f"{block}.norm", f"{block}.proj_in", f"{block}.proj_out"]
        keys += [f"{block}.transformer_blocks.{k}.{part}" for k in range(count) for part in parts]
    unet = make_meta_unet(SDXL)
    table = name_modules(unet.config)
    found = [translate(f"{key}.{kind}", table) for key in keys for kind in ("weight", "bias")]
    expected = {
        name for name, _ in unet.named_parameters() if not name.endswith(("to_q.weight", "to_k.weight", "to_v.weight"))
    }
    assert len(found) == len(set(found)) == 1260
    assert set(found) == expected


@pytest.mark.parametrize("config", [SD15, NARROW], ids=["sd15", "narrow"])
def test_sd15_attention_files_find_their_32_modules(config: dict[str, Any]) -> None:
    """hookers.layers.0..31: attn1 and attn2 of the 16 transformer blocks."""
    unet = make_meta_unet(config)
    table = name_modules(unet.config)
    modules = dict(unet.named_modules())
    names = [f"{b}.transformer_blocks.0.{a}" for b in ATTENTION_BLOCKS_SD15 for a in ("attn1", "attn2")]
    found = {translate(name, table) for name in names}
    assert len(found) == 32
    assert found == {name for name in modules if name.endswith((".attn1", ".attn2"))}
