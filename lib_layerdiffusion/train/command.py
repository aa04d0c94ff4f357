"""The trainings on the command line: `layerdiffusion train ...`."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
from pathlib import Path

from ..refusal import Refusal
from .config import read_config

STAGES = {  # command, which is also the module -> configuration class
    "autoencoder": "AutoencoderConfig",
    "transparency": "TransparencyConfig",
    "base": "BaseConfig",
    "finetune": "FinetuneConfig",
}
TOOLS = ("sprites", "pack", "evaluate")  # modules of this package with a main(argv)
EMBEDDED = {  # run, which is also the configuration -> stage
    "autoencoder": "autoencoder",
    "autoencoder_room": "autoencoder",
    "transparency_start": "transparency",
    "transparency_room": "transparency",
    "transparency": "transparency",
    "transparency_decoder": "transparency",
    "transparency_edges": "transparency",
    "transparency_last": "transparency",
    "base": "base",
    "foreground": "finetune",
}


def _go_on_from(run: str) -> dict[str, str]:
    file = f"{run}/model/layer_sd15_vae_transparent_{{}}.safetensors"
    starts = {f"start_{network}": file.format(network) for network in ("encoder", "decoder")}
    return {"autoencoder": "autoencoder_room/model", **starts}


# which options of a stage name what another run made
MADE_BEFORE = {
    "autoencoder_room": {"start": "autoencoder/model"},
    "transparency_start": {"autoencoder": "autoencoder/model"},
    "transparency_room": {
        "autoencoder": "autoencoder_room/model",
        "start_decoder": "transparency_start/model/layer_sd15_vae_transparent_decoder.safetensors",
    },
    "transparency": _go_on_from("transparency_room"),
    "transparency_decoder": _go_on_from("transparency"),
    "transparency_edges": _go_on_from("transparency_decoder"),
    "transparency_last": _go_on_from("transparency_edges"),
    "base": {"autoencoder": "autoencoder/model"},
    "foreground": {
        "base": "base/model",
        "encoder": "transparency/model/layer_sd15_vae_transparent_encoder.safetensors",
    },
}

USAGE = f"""layerdiffusion train COMMAND ...

commands:
  sprites       build the training archive from the emoji packages
  autoencoder   train a small KL autoencoder
  transparency  train the transparent encoder and decoder against a frozen autoencoder
  base          train a narrow Stable Diffusion 1.5 on a frozen autoencoder
  finetune      teach a frozen UNet adjusted latents: low-rank patches or attention sharing
  pack          put finished runs together as one small model folder
  evaluate      measure a packed model
  embedded      all of it: {", ".join(EMBEDDED)}, then pack

`layerdiffusion train COMMAND --help` tells each one's options."""


def train_stage(stage: str, config: Path | None, overrides: list[str], out: Path) -> None:
    """Run one training into the folder `out`, resuming what is there."""
    module = importlib.import_module(f"{__package__}.{stage}")
    module.train(read_config(getattr(module, STAGES[stage]), config, overrides), out)


def train_embedded(data: Path, runs: Path, out: Path) -> None:
    """Make the embedded model from the archive, by the configurations that lie beside this file."""
    from accelerate import PartialState

    from .pack import pack

    for run, stage in EMBEDDED.items():
        if not (runs / run / "model").exists():
            paths = {"data": data} | {option: runs / path for option, path in MADE_BEFORE.get(run, {}).items()}
            overrides = [f"{option}={json.dumps(path.as_posix())}" for option, path in paths.items()]
            train_stage(stage, Path(__file__).with_name("embedded") / f"{run}.toml", overrides, runs / run)
    if PartialState().is_main_process:
        pack(runs, data, out)


def main(argv: list[str]) -> int:
    """Run one command; returns the exit code."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger(__package__).setLevel(logging.INFO)
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    command, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command in TOOLS:
        return importlib.import_module(f"{__package__}.{command}").main(rest)
    parser = argparse.ArgumentParser(prog=f"layerdiffusion train {command}")
    if command == "embedded":
        parser.add_argument("--data", type=Path, default=Path("sprites.zip"), help="archive made by `train sprites`")
        parser.add_argument(
            "--runs", type=Path, default=Path("runs"), help="folder of the runs; finished ones are kept"
        )
        parser.add_argument("--out", type=Path, required=True, help="model folder to write")
        given = parser.parse_args(rest)
        train_embedded(given.data, given.runs, given.out)
        return 0
    if command not in STAGES:
        raise Refusal(
            f"There is no training command {command}; choose from {', '.join([*STAGES, *TOOLS, 'embedded'])}."
        )
    parser.add_argument("--config", type=Path, help="TOML file; without it, the defaults")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an unfinished one is resumed")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options laid over the file, in TOML notation"
    )
    given = parser.parse_args(rest)
    train_stage(command, given.config, given.overrides, given.out)
    return 0
