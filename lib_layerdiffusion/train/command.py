"""The trainings on the command line: `layerdiffusion train ...`."""

from __future__ import annotations

import importlib
import json
import logging
from pathlib import Path

from ..export.output_folder import OutputFolder
from ..refusal import Parser, Refusal, list_choices
from .config import read_config
from .recipe import RECIPE, add_places

STAGES = {  # command, which is also the module -> configuration class
    "autoencoder": "AutoencoderConfig",
    "transparency": "TransparencyConfig",
    "base": "BaseConfig",
    "finetune": "FinetuneConfig",
}
TOOLS = ("sprites", "pack", "evaluate")  # modules of this package with a main(argv)
USAGE = f"""layerdiffusion train COMMAND ...

commands:
  sprites       build the training archive from the emoji packages
  autoencoder   train a small KL autoencoder
  transparency  train the transparent encoder and decoder against a frozen autoencoder
  base          train a narrow Stable Diffusion 1.5 on a frozen autoencoder
  finetune      teach a frozen UNet adjusted latents: low-rank patches or attention sharing
  pack          put finished runs together as one small model folder
  evaluate      measure a packed model
  embedded      all of it: {", ".join(training.run for training in RECIPE)}, then pack

`layerdiffusion train COMMAND --help` tells each one's options."""


def train_stage(stage: str, config: Path | None, overrides: list[str], out: Path) -> None:
    """Run one training into the folder `out`, resuming what is there."""
    module = importlib.import_module(f"{__package__}.{stage}")
    settings = read_config(getattr(module, STAGES[stage]), config, overrides)
    with OutputFolder(out):  # one that can't be written to is refused before any data is read
        module.train(settings, out)


def train_embedded(data: Path, backgrounds: Path, runs: Path, out: Path | None, only: str | None = None) -> None:
    """Make the embedded model from the archives, by the recipe and the configurations in `embedded/`.

    Finished runs are kept. `only`: one run alone, whose inputs are there; it is trained, or lengthened, and not packed.
    """
    from accelerate import PartialState

    from .pack import pack

    if only is not None and only not in [training.run for training in RECIPE]:
        raise Refusal(f"There is no run {only}; {list_choices(only, [training.run for training in RECIPE])}.")
    for training in RECIPE:
        if training.run == only or (only is None and not (runs / training.run / "model").exists()):
            paths = training.find_inputs(runs, data, backgrounds)
            overrides = [f"{option}={json.dumps(path.as_posix())}" for option, path in paths.items()]
            config = Path(__file__).with_name("embedded") / f"{training.run}.toml"
            train_stage(training.stage, config, overrides, runs / training.run)
    if only is None and out is not None and PartialState().is_main_process:
        pack(runs, data, backgrounds, out)


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
    parser = Parser(prog=f"layerdiffusion train {command}")
    if command == "embedded":
        add_places(parser)
        parser.add_argument("--out", type=Path, help="model folder to write; without it nothing is packed")
        parser.add_argument("--only", metavar="RUN", help="train or lengthen this run alone")
        given = parser.parse_args(rest)
        train_embedded(given.data, given.backgrounds, given.runs, given.out, given.only)
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
