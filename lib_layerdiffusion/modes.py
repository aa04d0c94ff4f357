"""The layer modes: one row per mode and base-model family."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from lib_layerdiffusion.refusal import Refusal, list_choices

Family = Literal["sd15", "sdxl"]
Role = Literal["foreground", "background", "blend"]
Kind = Literal["attention_sharing", "patches"]

ROLES: tuple[Role, ...] = get_args(Role)
FAMILIES: dict[Family, str] = {"sd15": "SD1.5", "sdxl": "SDXL"}


@dataclass(frozen=True)
class Mode:
    """What is generated from what, by which published file, on which base model."""

    name: str
    label: str  # what the user wants, for a page
    family: Family
    file: str  # key in weights.WEIGHTS, without ".safetensors"
    kind: Kind
    alias: str  # how existing API clients name the mode, in any case and without "(need batch size N)"
    inputs: tuple[Role, ...] = ()  # condition images, in the order of the concatenated channels
    frames: tuple[Role, ...] = ("foreground",)  # images that are denoised together, one set
    transparent_frame: int | None = 0  # index into frames; None: every frame is opaque
    decoder: str | None = None
    encoder: str | None = None
    first_conv_channels: int = 4  # input channels that the file's first conv expects: latent + 4 per condition
    suggested_stop_at: float = 1.0  # what a page fills in for "stop at" when the mode is picked


_SD15_VAE = ("layer_sd15_vae_transparent_decoder", "layer_sd15_vae_transparent_encoder")
_SDXL_VAE = ("vae_transparent_decoder", "vae_transparent_encoder")

MODES: tuple[Mode, ...] = (
    Mode(
        "foreground",
        "Transparent foreground",
        "sd15",
        "layer_sd15_transparent_attn",
        "attention_sharing",
        "(SD1.5) Only Generate Transparent Image (Attention Injection)",
        decoder=_SD15_VAE[0],
        encoder=_SD15_VAE[1],
    ),
    Mode(
        "together",
        "Foreground and background together",
        "sd15",
        "layer_sd15_joint",
        "attention_sharing",
        "(SD1.5) Generate Everything Together",
        frames=("foreground", "background", "blend"),
        decoder=_SD15_VAE[0],
        encoder=_SD15_VAE[1],
    ),
    Mode(
        "foreground_to_background",
        "Background for my foreground",
        "sd15",
        "layer_sd15_fg2bg",
        "attention_sharing",
        "(SD1.5) From Foreground to Background",
        inputs=("foreground",),
        frames=("background", "blend"),
        transparent_frame=None,
    ),
    Mode(
        "background_to_foreground",
        "Foreground for my background",
        "sd15",
        "layer_sd15_bg2fg",
        "attention_sharing",
        "(SD1.5) From Background to Foreground",
        inputs=("background",),
        frames=("foreground", "blend"),
        decoder=_SD15_VAE[0],
        encoder=_SD15_VAE[1],
    ),
    Mode(
        "foreground",
        "Transparent foreground",
        "sdxl",
        "layer_xl_transparent_attn",
        "patches",
        "(SDXL) Only Generate Transparent Image (Attention Injection)",
        decoder=_SDXL_VAE[0],
        encoder=_SDXL_VAE[1],
    ),
    Mode(
        "foreground_conv",
        "Transparent foreground (convolution file)",
        "sdxl",
        "layer_xl_transparent_conv",
        "patches",
        "(SDXL) Only Generate Transparent Image (Conv Injection)",
        decoder=_SDXL_VAE[0],
        encoder=_SDXL_VAE[1],
    ),
    Mode(
        "foreground_to_blend",
        "Blend around my foreground",
        "sdxl",
        "layer_xl_fg2ble",
        "patches",
        "(SDXL) From Foreground to Blending",
        inputs=("foreground",),
        frames=("blend",),
        transparent_frame=None,
        first_conv_channels=8,
    ),
    Mode(
        "foreground_blend_to_background",
        "Background from my foreground and blend",
        "sdxl",
        "layer_xl_fgble2bg",
        "patches",
        "(SDXL) From Foreground and Blending to Background",
        inputs=("foreground", "blend"),
        frames=("background",),
        transparent_frame=None,
        first_conv_channels=12,
        suggested_stop_at=0.5,
    ),
    Mode(
        "background_to_blend",
        "Blend over my background",
        "sdxl",
        "layer_xl_bg2ble",
        "patches",
        "(SDXL) From Background to Blending",
        inputs=("background",),
        frames=("blend",),
        transparent_frame=None,
        first_conv_channels=8,
    ),
    Mode(
        "background_blend_to_foreground",
        "Foreground from my background and blend",
        "sdxl",
        "layer_xl_bgble2fg",
        "patches",
        "(SDXL) From Background and Blending to Foreground",
        inputs=("background", "blend"),
        decoder=_SDXL_VAE[0],
        encoder=_SDXL_VAE[1],
        first_conv_channels=12,
    ),
)

MODE_NAMES: tuple[str, ...] = tuple(dict.fromkeys(mode.name for mode in MODES))


def name_mode(text: str) -> str:
    """The mode's name, whether `text` is that name or the reference extension's method string; Refusal otherwise."""
    wanted = _fold(text)
    for mode in MODES:
        if wanted in (_fold(mode.name), _fold(mode.alias)):
            return mode.name
    raise Refusal(f"There is no layer mode {text[:60]!r}: {list_choices(text, MODE_NAMES)}.")


def any_row(name: str) -> Mode:
    """The mode's row in one of its families: for what is the same in all, such as its inputs and frames."""
    return next(mode for mode in MODES if mode.name == name)


def find_mode(name: str, family: str) -> Mode:
    """The row for a mode (by name or alias) on a base-model family; Refusal that lists what the family has."""
    name = name_mode(name)
    if family not in FAMILIES:
        raise Refusal(
            f"There are no LayerDiffusion weights for {family or 'unknown'} models: load an SD1.5 or SDXL checkpoint."
        )
    rows = [mode for mode in MODES if mode.family == family]
    for mode in rows:
        if mode.name == name:
            return mode
    others = ", ".join(FAMILIES[mode.family] for mode in MODES if mode.name == name)
    raise Refusal(
        f"Layer mode {name!r} exists for {others} only, and the loaded model is {FAMILIES[family]}: "
        f"load an {others} checkpoint, or choose one of {', '.join(mode.name for mode in rows)}."
    )


def _fold(text: str) -> str:
    """Case, punctuation and the note on batch sizes dropped."""
    text = re.sub(r"\(need batch size \d+\)", "", text.casefold())
    return " ".join(re.findall(r"[a-z0-9.]+", text.replace("_", " ")))
