"""How the embedded model is made: its runs in their order, what each starts from, and what is packed of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..modes import find_mode

ENCODER = "layer_sd15_vae_transparent_encoder"
DECODER = "layer_sd15_vae_transparent_decoder"


@dataclass(frozen=True)
class Training:
    """One run, by the configuration of its name in `embedded/`."""

    run: str
    stage: str  # the command, which is also the module
    inputs: Mapping[str, str] = field(default_factory=dict)  # option -> what an earlier run made, inside the runs
    backgrounds: bool = False  # whether it sees the archive of backgrounds too

    def find_inputs(self, runs: Path, data: Path, backgrounds: Path) -> dict[str, Path]:
        """The options that name files."""
        shown = {"data": data} | ({"backgrounds": backgrounds} if self.backgrounds else {})
        return shown | {option: runs / place for option, place in self.inputs.items()}


def _model(run: str, file: str | None = None) -> str:
    return f"{run}/model" if file is None else f"{run}/model/{file}.safetensors"


def _transparency(run: str, autoencoder: str, before: str | None = None, **more: str) -> Training:
    """A run whose networks are those of the run before it, further trained."""
    inputs = {"autoencoder": _model(autoencoder)}
    if before is not None:
        inputs |= {"start_encoder": _model(before, ENCODER), "start_decoder": _model(before, DECODER)}
    return Training(run, "transparency", inputs | more)


# the encoder that no later run changes, and the pipeline that gives the decoder sampled latents
OFFSET = {"encoder": _model("transparency_corners", ENCODER)}
SAMPLER = {"sampler": _model("base_scenes"), "sampler_weights": _model("foreground_scenes")}
SAMPLER_LAST = {"sampler": _model("base_last"), "sampler_weights": _model("foreground_end")}
SAMPLER_FINE = {"sampler": _model("base_last"), "sampler_weights": _model("foreground_fine")}


def _name_file(mode: str) -> str:
    return find_mode(mode, "sd15").file


# the foreground's part of a file with several frames
SHAPES = {"start_foreground": _model("foreground_end", _name_file("foreground"))}


def _layers(run: str, mode: str, base: str, before: str | None = None, **more: str) -> Training:
    """The file of a mode on a base, begun anew or from what the run before it made."""
    inputs = {"base": _model(base)} | OFFSET | more
    if before is not None:
        inputs["start"] = _model(before, _name_file(mode))
    return Training(run, "finetune", inputs, backgrounds=mode != "foreground")


RECIPE: tuple[Training, ...] = (
    Training("autoencoder", "autoencoder"),
    Training("autoencoder_room", "autoencoder", {"start": _model("autoencoder")}),
    _transparency("transparency_start", "autoencoder"),
    Training(
        "transparency_room",
        "transparency",
        {"autoencoder": _model("autoencoder_room"), "start_decoder": _model("transparency_start", DECODER)},
    ),
    _transparency("transparency", "autoencoder_room", "transparency_room"),
    _transparency("transparency_decoder", "autoencoder_room", "transparency"),
    _transparency("transparency_edges", "autoencoder_room", "transparency_decoder"),
    _transparency("transparency_last", "autoencoder_room", "transparency_edges"),
    Training(
        "autoencoder_sharp",
        "autoencoder",
        {"start": _model("autoencoder_room"), "encoder": _model("transparency", ENCODER)},
        backgrounds=True,
    ),
    _transparency("transparency_sharp", "autoencoder_sharp", "transparency_last"),
    _transparency("transparency_corners", "autoencoder_sharp", "transparency_sharp"),
    _transparency("transparency_picture", "autoencoder_sharp", "transparency_corners"),
    Training("base", "base", {"autoencoder": _model("autoencoder")}),
    Training(
        "base_scenes", "base", {"autoencoder": _model("autoencoder_sharp"), "start": _model("base")}, backgrounds=True
    ),
    Training("foreground", "finetune", {"base": _model("base"), "encoder": _model("transparency", ENCODER)}),
    _layers("foreground_scenes", "foreground", "base_scenes", "foreground"),
    _transparency("transparency_sampled", "autoencoder_sharp", "transparency_picture", **SAMPLER),
    _transparency("transparency_clean", "autoencoder_sharp", "transparency_sampled"),
    _layers("together", "together", "base_scenes"),
    _layers("foreground_to_background", "foreground_to_background", "base_scenes"),
    _layers("background_to_foreground", "background_to_foreground", "base_scenes"),
    Training("autoencoder_crisp", "autoencoder", {"start": _model("autoencoder_sharp")} | OFFSET, backgrounds=True),
    Training(
        "base_last",
        "base",
        {"autoencoder": _model("autoencoder_sharp"), "start": _model("base_scenes")},
        backgrounds=True,
    ),
    _layers("foreground_last", "foreground", "base_last", "foreground_scenes"),
    _transparency("transparency_crisp", "autoencoder_crisp", "transparency_clean", **SAMPLER),
    _transparency("transparency_final", "autoencoder_crisp", "transparency_crisp"),
    _transparency("transparency_narrow", "autoencoder_crisp", "transparency_final", **SAMPLER),
    _transparency("transparency_narrower", "autoencoder_crisp", "transparency_narrow", **SAMPLER),
    _transparency("transparency_end", "autoencoder_crisp", "transparency_narrower"),
    _layers("together_last", "together", "base_last", "together"),
    _layers("background_to_foreground_last", "background_to_foreground", "base_last", "background_to_foreground"),
    _layers("foreground_to_background_last", "foreground_to_background", "base_last", "foreground_to_background"),
    _layers("together_end", "together", "base_last", "together_last"),
    _layers("background_to_foreground_end", "background_to_foreground", "base_last", "background_to_foreground_last"),
    _layers("foreground_to_background_end", "foreground_to_background", "base_last", "foreground_to_background_last"),
    _layers("foreground_to_background_fine", "foreground_to_background", "base_last", "foreground_to_background_end"),
    _layers("foreground_end", "foreground", "base_last", "foreground_last"),
    _layers("foreground_fine", "foreground", "base_last", "foreground_end"),
    _layers("together_shaped", "together", "base_last", "together_end", **SHAPES),
    _layers(
        "background_to_foreground_shaped",
        "background_to_foreground",
        "base_last",
        "background_to_foreground_end",
        **SHAPES,
    ),
    _layers("foreground_to_background_close", "foreground_to_background", "base_last", "foreground_to_background_fine"),
    _layers(
        "foreground_to_background_closer", "foreground_to_background", "base_last", "foreground_to_background_close"
    ),
    Training("autoencoder_keen", "autoencoder", {"start": _model("autoencoder_crisp")} | OFFSET, backgrounds=True),
    _transparency("transparency_keen", "autoencoder_keen", "transparency_narrower", **SAMPLER_LAST),
    _transparency("transparency_tight", "autoencoder_keen", "transparency_keen"),
    _transparency("transparency_agreeing", "autoencoder_keen", "transparency_tight", **SAMPLER_FINE),
    _transparency("transparency_trim", "autoencoder_keen", "transparency_agreeing"),
    _transparency("transparency_tidy", "autoencoder_keen", "transparency_trim", **SAMPLER_FINE),
)

PARTS = {  # folder of the pipeline -> run that made it
    "unet": "base_last",
    "text_encoder": "base_last",
    "vae": "autoencoder_keen",
}
LAYER_FILES = {
    _name_file("foreground"): "foreground_fine",
    _name_file("together"): "together_shaped",
    _name_file("foreground_to_background"): "foreground_to_background_closer",
    _name_file("background_to_foreground"): "background_to_foreground_shaped",
    DECODER: "transparency_tidy",
    ENCODER: "transparency",
}


def add_places(parser: argparse.ArgumentParser) -> None:
    """The options that say where archives and runs lie."""
    parser.add_argument("--data", type=Path, default=Path("sprites.zip"), help="archive made by `train sprites`")
    parser.add_argument("--backgrounds", type=Path, default=Path("backgrounds.zip"), help="the one made beside it")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs; finished ones are kept")
