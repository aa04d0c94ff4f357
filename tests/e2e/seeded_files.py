"""Write seeded files of full shape for a WebUI, in half precision: checkpoints, layer files, a LoRA, a ControlNet.

`python -m tests.e2e.seeded_files <folder of the WebUI> [sdxl]`: SD1.5 takes 6 GB on disk, SDXL 10 GB more.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from lib_layerdiffusion.embedded import EMBEDDED_FOLDER
from lib_layerdiffusion.modes import MODES
from lib_layerdiffusion.transparent_vae import TransparentDecoder, TransparentEncoder
from lib_layerdiffusion.weights.patches import FILE_PREFIX
from tests import seeded
from tests.e2e.server import CHECKPOINTS, CONTROL, LORA, is_forge
from tests.full_unets import UNETS, make_meta_unet
from tests.tiny_models import attention_shapes, ldm_names

BIG_WIDTH, BIG_DEPTH = 1280, 32  # of SDXL's second text encoder
RANK = 8  # of the seeded low-rank patches
TEXT_ENCODER = CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                              num_attention_heads=12, hidden_act="quick_gelu", projection_dim=768)  # fmt: skip
CLIP_NUMBERS = {
    "a</w>": 320,
    "red</w>": 736,
    "apple</w>": 3055,
    "leaf</w>": 7232,
    "<|startoftext|>": 49406,
    "<|endoftext|>": 49407,
}
OTHER_NUMBERS = 40000  # and above
TEXT_ENCODER_NAME = "openai/clip-vit-large-patch14"  # a folder of that name replaces a download
VAE_CHANNELS, VAE_LEVELS, VAE_DEPTH = 128, (1, 2, 4, 4), 2
FILES = {  # layer file -> frames, control
    "layer_sd15_transparent_attn": (1, False),
    "layer_sd15_joint": (3, False),
    "layer_sd15_fg2bg": (2, True),
    "layer_sd15_bg2fg": (2, True),
}
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def list_unet(family: str) -> Shapes:
    """The UNet's parameters in the LDM layout."""
    unet = make_meta_unet(UNETS[family])
    for ldm, name in ldm_names(unet).items():
        yield ldm, tuple(unet.get_parameter(name).shape)


def list_text_encoder(prefix: str) -> Shapes:
    """CLIP ViT-L/14's text model."""
    with torch.device("meta"):
        model = CLIPTextModel(TEXT_ENCODER)
    for name, value in model.state_dict().items():
        inner = name.removeprefix("text_model.")
        if not inner.endswith("position_ids"):
            yield f"{prefix}.transformer.text_model.{inner}", tuple(value.shape)


def list_big_text_encoder(prefix: str) -> Shapes:
    """OpenCLIP ViT-bigG/14's text model, in OpenCLIP's layout."""
    width = BIG_WIDTH
    yield f"{prefix}.model.token_embedding.weight", (49408, width)
    yield f"{prefix}.model.positional_embedding", (77, width)
    yield f"{prefix}.model.text_projection", (width, width)
    layers = {"attn.in_proj_": (3 * width, width), "attn.out_proj.": (width, width)}
    layers |= {"mlp.c_fc.": (4 * width, width), "mlp.c_proj.": (width, 4 * width)}
    for index in range(BIG_DEPTH):
        block = f"{prefix}.model.transformer.resblocks.{index}"
        for name, shape in layers.items():
            yield f"{block}.{name}weight", shape
            yield f"{block}.{name}bias", shape[:1]
        for norm in ("ln_1", "ln_2"):
            yield f"{block}.{norm}.weight", (width,)
            yield f"{block}.{norm}.bias", (width,)
    yield f"{prefix}.model.ln_final.weight", (width,)
    yield f"{prefix}.model.ln_final.bias", (width,)


def list_vae() -> Shapes:
    """The KL autoencoder's parameters in the LDM layout."""
    widths = [VAE_CHANNELS * factor for factor in VAE_LEVELS]
    yield from _conv("encoder.conv_in", 3, VAE_CHANNELS)
    before = VAE_CHANNELS
    for level, width in enumerate(widths):
        for block in range(VAE_DEPTH):
            yield from _resnet(f"encoder.down.{level}.block.{block}", before, width)
            before = width
        if level < len(widths) - 1:
            yield from _conv(f"encoder.down.{level}.downsample.conv", width, width)
    for part, outputs in (("encoder", 8), ("decoder", 3)):
        yield from _resnet(f"{part}.mid.block_1", widths[-1], widths[-1])
        yield from _norm(f"{part}.mid.attn_1.norm", widths[-1])
        for leaf in ("q", "k", "v", "proj_out"):
            yield from _conv(f"{part}.mid.attn_1.{leaf}", widths[-1], widths[-1], 1)
        yield from _resnet(f"{part}.mid.block_2", widths[-1], widths[-1])
        last = widths[-1] if part == "encoder" else widths[0]
        yield from _norm(f"{part}.norm_out", last)
        yield from _conv(f"{part}.conv_out", last, outputs)
    yield from _conv("quant_conv", 8, 8, 1)
    yield from _conv("post_quant_conv", 4, 4, 1)
    yield from _conv("decoder.conv_in", 4, widths[-1])
    before = widths[-1]
    for level in reversed(range(len(widths))):
        for block in range(VAE_DEPTH + 1):
            yield from _resnet(f"decoder.up.{level}.block.{block}", before, widths[level])
            before = widths[level]
        if level:
            yield from _conv(f"decoder.up.{level}.upsample.conv", widths[level], widths[level])


def _conv(name: str, before: int, after: int, kernel: int = 3) -> Shapes:
    yield f"first_stage_model.{name}.weight", (after, before, kernel, kernel)
    yield f"first_stage_model.{name}.bias", (after,)


def _norm(name: str, width: int) -> Shapes:
    yield f"first_stage_model.{name}.weight", (width,)
    yield f"first_stage_model.{name}.bias", (width,)


def _resnet(name: str, before: int, after: int) -> Shapes:
    yield from _norm(f"{name}.norm1", before)
    yield from _conv(f"{name}.conv1", before, after)
    yield from _norm(f"{name}.norm2", after)
    yield from _conv(f"{name}.conv2", after, after)
    if before != after:
        yield from _conv(f"{name}.nin_shortcut", before, after, 1)


def write_checkpoint(folder: Path, family: str) -> Path:
    """Write the whole checkpoint, tensor by tensor in half precision."""
    path = folder / f"{CHECKPOINTS[family]}.safetensors"
    if path.exists():
        return path
    shapes = [(f"model.{FILE_PREFIX}{name}", shape) for name, shape in list_unet(family)] + [*list_vae()]
    if family == "sdxl":
        first = "conditioner.embedders.0"
        shapes += [*list_text_encoder(first), *list_big_text_encoder("conditioner.embedders.1")]
    else:
        first = "cond_stage_model"
        shapes += list_text_encoder(first)
    # a gain below 1 keeps the many residual branches of a random network in half precision's range
    state = {name: _half(seeded.tensor(name, shape, 1, gain=0.5)) for name, shape in shapes}
    state[f"{first}.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if family == "sdxl":
        state["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6, dtype=torch.float16)
    save_file(state, path)
    return path


def write_patch_files(folder: Path) -> None:
    """Write all patch files of SDXL: each has low-rank or full changes, and some a widened first convolution."""
    unet = dict(list_unet("sdxl"))
    for mode in MODES:
        if mode.family != "sdxl":
            continue
        attention = [name for name in unet if ".attn" in name and name.endswith(".weight")]
        outside = [name for name in unet if ".transformer_blocks." not in name]
        shapes: dict[str, tuple[int, ...]] = {}
        if mode.name == "foreground":
            for name in attention:
                shapes |= _low_rank(f"{FILE_PREFIX}{name}::lora::{{}}", unet[name])
        else:
            wanted = outside if mode.name == "foreground_conv" else outside[: len(outside) // 4]
            shapes = {f"{FILE_PREFIX}{name}::diff::0": unet[name] for name in wanted}
        if mode.inputs:
            out, own, *kernel = unet["input_blocks.0.0.weight"]
            shapes[f"{FILE_PREFIX}input_blocks.0.0.weight::diff::0"] = (out, own + 4 * len(mode.inputs), *kernel)
        _write(folder, mode.file, shapes)


def _low_rank(key: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {key.format(0): (shape[0], RANK), key.format(1): (RANK, shape[1])}


def write_lora(folder: Path) -> None:
    """Write a user's LoRA for SD1.5 on attention and convolutions, with the key names that trainers use."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in list_unet("sd15"):
        module = name.removesuffix(".weight")
        attention = module.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))
        if attention or module.endswith(("in_layers.2", "out_layers.3")):
            key = f"lora_unet_{module.replace('.', '_')}"
            shapes[f"{key}.lora_up.weight"] = (shape[0], RANK, *[1] * (len(shape) - 2))
            shapes[f"{key}.lora_down.weight"] = (RANK, *shape[1:])
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, LORA, shapes)


def write_control(folder: Path) -> None:
    """Write a ControlNet for SD1.5 in diffusers' layout, which Forge and sd-webui-controlnet read."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        network = ControlNetModel(**UNETS["sd15"])
    _write(folder, CONTROL, {name: value.shape for name, value in network.state_dict().items()})


def write_text_encoder(folder: Path) -> None:
    """Write what AUTOMATIC1111 would download: the text encoder's configuration and a tokenizer.

    It is the embedded model's, with CLIP's numbers for the words of the usual request: other WebUIs ship CLIP's own.
    """
    shutil.copytree(EMBEDDED_FOLDER / "tokenizer", folder, dirs_exist_ok=True)
    TEXT_ENCODER.save_pretrained(folder)
    vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text("utf-8"))
    renumbered = {token: CLIP_NUMBERS.get(token, OTHER_NUMBERS + number) for token, number in vocabulary.items()}
    (folder / "vocab.json").write_text(json.dumps(renumbered), "utf-8")


def write_layer_files(folder: Path) -> None:
    """Write all layer files of SD1.5, with a small effect, so that results stay finite."""
    folder.mkdir(parents=True, exist_ok=True)
    unet = make_meta_unet(UNETS["sd15"])
    for name, (frames, control) in FILES.items():
        _write(folder, name, attention_shapes(unet, frames, control, rank=256))
    for prefix in ("layer_sd15_", ""):
        for name, network in (("decoder", TransparentDecoder), ("encoder", TransparentEncoder)):
            with torch.device("meta"):
                shapes = {key: value.shape for key, value in network().state_dict().items()}
            _write(folder, f"{prefix}vae_transparent_{name}", shapes)


def _write(folder: Path, name: str, shapes: Mapping[str, Sequence[int]]) -> None:
    path = folder / f"{name}.safetensors"
    if not path.exists():
        save_file({key: _half(seeded.tensor(key, shape, 2, gain=0.3)) for key, shape in shapes.items()}, path)


def _half(value: Tensor | None) -> Tensor:
    assert value is not None
    return value.half()


def _main(webui: Path, families: list[str]) -> None:
    models = webui / "models"
    (models / "Stable-diffusion").mkdir(parents=True, exist_ok=True)
    write_layer_files(models / "layer_model")
    write_lora(models / "Lora")
    write_control(models / "ControlNet")
    if "sdxl" in families:
        write_patch_files(models / "layer_model")
    for family in ("sd15", *families):
        write_checkpoint(models / "Stable-diffusion", family)
    if not is_forge(webui):
        write_text_encoder(webui / TEXT_ENCODER_NAME)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2:])
