"""The command line: parses the words, runs one command, and turns what goes wrong into a sentence and an exit code."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import Field
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

from lib_layerdiffusion.embedded import EMBEDDED, usual_guidance
from lib_layerdiffusion.hosts.samplers import SAMPLERS, SCHEDULES
from lib_layerdiffusion.options import EDGES, FIELDS, parse_field
from lib_layerdiffusion.planning import LARGEST_SEED, MAX_SIZE, MIN_SIZE, STEPS
from lib_layerdiffusion.refusal import Parser, Refusal, integer, lacks_memory, lacks_space, real, refuse_path
from lib_layerdiffusion.scene import SCENE_FIELDS
from lib_layerdiffusion.version import __version__

STRENGTH = 0.75  # of image to image, as in WebUIs
EXIT_OK, EXIT_ERROR, EXIT_REFUSED, EXIT_INTERRUPTED = 0, 1, 2, 130
OPTIONAL_PACKAGES = {
    "diffusers",
    "transformers",
    "tqdm",
    "accelerate",
    "webdataset",
    "tomli",
    "pydantic",
    "huggingface_hub",
    "gradio",
    "ray",
    "rectpack",
    "spandrel",
    "uvicorn",
}


def run() -> NoReturn:
    """Run the command line as a program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 internal error, 2 refused, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("lib_layerdiffusion").setLevel(logging.DEBUG if debug else logging.INFO)
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")  # what libraries tell developers is not for users
            return _dispatch(words)
    except Refusal as refusal:
        return _say(str(refusal), EXIT_REFUSED)
    except OSError as error:
        if error.filename is None or isinstance(error, ConnectionError):
            return _fault(error, debug)
        return _say(str(refuse_path(error.filename, error)), EXIT_REFUSED)
    except KeyboardInterrupt:
        return _say("Interrupted; every file that was written is whole.", EXIT_INTERRUPTED)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OPTIONAL_PACKAGES:
            return _fault(error, debug)
        name = package.replace("_", "-")
        return _say(f"The Python package {name} is missing; install it with: pip install {name}", EXIT_REFUSED)
    except Exception as error:  # noqa: BLE001 the outermost frame, where a traceback becomes a sentence
        return _fault(error, debug)


def _dispatch(words: list[str]) -> int:
    """Give training its words untouched, and parse all others."""
    match words:
        case ["train", *rest]:
            return _delegate("lib_layerdiffusion.train", rest)
        case ["harmlessness", *rest]:
            return _delegate("lib_layerdiffusion.train.harmlessness", rest)
        case ["webui", *rest]:
            return _delegate("lib_layerdiffusion.stand_in.command", rest)
        case ["export", *rest]:  # the command's earlier name
            return _execute(["export-checkpoint", *rest])
        case _:
            return _execute(words)


def _execute(words: list[str]) -> int:
    """Parse the words and run the command that they name."""
    parser = build_parser()
    try:
        arguments = parser.parse_args(words)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    from lib_layerdiffusion.cli import commands, demo

    place = demo if arguments.command == "demo" else commands
    execute: Callable[[argparse.Namespace], int] = getattr(place, arguments.command.replace("-", "_"))
    return execute(arguments)


def _delegate(module: str, words: list[str]) -> int:
    """Run the `main(words)` of a module that is imported only now."""
    command: Callable[[list[str]], int | None] = importlib.import_module(module).main
    try:
        return command([word for word in words if word != "--debug"]) or EXIT_OK
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else EXIT_OK if done.code is None else EXIT_REFUSED


def _say(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr)
    return code


def _fault(error: Exception, debug: bool) -> int:
    """Report an error that nobody expected; the traceback is for --debug."""
    if lacks_memory(error):
        cure = "choose a smaller --width, --height or --batch, or --views 1"
        return _say(f"There is not enough memory for this; {cure}.", EXIT_REFUSED)
    if lacks_space(error):
        return _say("The disk is full; free some space or choose another folder.", EXIT_REFUSED)
    if debug:
        logging.getLogger(__name__).error("Unexpected error", exc_info=error)
    reason = next(iter(str(error).splitlines()), "")
    hint = "see the traceback above" if debug else "run the command again with --debug to see where"
    return _say(f"Unexpected {type(error).__name__}: {reason.rstrip('.')}; {hint}.", EXIT_ERROR)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands; needs no heavy import."""
    parser = Parser(prog="layerdiffusion", description="Transparent images and layers from Stable Diffusion.")
    parser.add_argument("--version", action="version", version=f"layerdiffusion {__version__}")
    shared = Parser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an unexpected error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, parents=[shared], help=text, description=text)
        made.set_defaults(command=name)
        return made

    _add_demo(command("demo", "Show what the embedded model makes: a picture of each word, layers, a scene."))
    _add_generate(command("generate", "Make transparent images from prompts."))
    _add_scene(command("scene", "Make a background and foregrounds that fit it, each as a layer of its own."))
    _add_encode(command("encode", "Turn images into latents that carry their transparency."))
    _add_decode(command("decode", "Turn latents into transparent images."))
    _add_composite(command("composite", "Put layers over a colour, a checkerboard or an image."))
    _add_upscale(command("upscale", "Enlarge transparent images without a fringe at their edges."))
    _add_edges(command("edges", "Clean the edges of transparent images."))
    _add_atlas(command("atlas", "Put images on one sheet for a game engine, with JSON that says where each lies."))
    _add_animate(command("animate", "Make an animation with transparency of images, one after the other."))
    _add_export(command("export-checkpoint", "Write an SD1.5 model of any width as a checkpoint for AUTOMATIC1111."))
    _add_doctor(command("doctor", "Say what is installed, found, missing or damaged, and how to fix it."))
    for name, text in (
        ("train", "Train transparent encoders, decoders and layer weights (`train --help`)."),
        ("harmlessness", "Measure how much an encoder's offset disturbs a VAE (`harmlessness --help`)."),
        ("webui", "Open a small WebUI page with the extension and the embedded model (`webui --help`)."),
    ):
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=EMBEDDED,
        metavar="MODEL",
        help="'embedded' (default), a diffusers folder, or a .safetensors checkpoint of SD1.5 or SDXL",
    )
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="folder of the layer weight files")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    parser.add_argument("--offline", action="store_true", help="never download; name the missing file instead")


def _add_option(parser: argparse.ArgumentParser, option: Field[Any], short: bool = True) -> None:
    """Add the flag of an option, made from its description; where it isn't given, the value is None.

    short: let an image's flag do without "-image", too.
    """
    about, flag = option.metadata, f"--{option.name.replace('_', '-')}"
    settings: dict[str, Any] = {"type": _read_option(option), "metavar": option.name.rpartition("_")[2].upper()}
    default: Any = option.default
    names, values, choices = [flag], "", ", ".join(map(str, about.get("choices", ())))
    match about["kind"]:
        case "number":
            settings["metavar"] = "NUMBER"
            values = f" {about['minimum']:g} to {about['maximum']:g}, default {option.default:g}."
        case "choice":
            values = f" One of {choices}; default {option.default}."
        case "choices":
            settings |= {"nargs": "+", "metavar": "OUTPUT"}
            values = f" One or more of {choices}; default {' '.join(default)}."
        case "image":
            names += [flag.removesuffix("-image")] if short else []
            settings["type"] = Path
        case "texts":
            settings |= {"type": str, "nargs": "+", "metavar": "TEXT"}
        case "switch":
            settings = {"action": "store_const", "const": not default, "dest": option.name}
            names = [f"--no-{flag.removeprefix('--')}"] if default else names
            values = " This flag switches it off." if default else ""
        case _:
            settings["metavar"] = "TEXT"
    parser.add_argument(*names, help=(about["help"] + values).replace("%", "%%"), **settings)


def _read_option(option: Field[Any]) -> Callable[[str], Any]:
    """Make an argument type for the values of an option."""

    def read(text: str) -> Any:
        try:
            return parse_field(option, text)
        except Refusal as refusal:
            raise argparse.ArgumentTypeError(str(refusal)) from None

    return read


def _add_out(parser: argparse.ArgumentParser, folder: str) -> None:
    parser.add_argument("--out", type=_read_folder, default=Path(folder), metavar="FOLDER", help=f"default: {folder}")


def _read_folder(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is an address, which only `generate --prompts` can write to")
    return Path(text)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=integer(0, LARGEST_SEED), help="seed of the first image (default: a random one)")
    parser.add_argument("--steps", type=integer(1, 1000), default=STEPS, help=f"sampling steps (default {STEPS})")
    usual = f"default {usual_guidance(''):g}, embedded model {usual_guidance(EMBEDDED):g}"
    parser.add_argument("--cfg", type=real(1, 30), default=None, help=f"guidance; 1 is none ({usual})")


def _add_whole_sampling(parser: argparse.ArgumentParser) -> None:
    _add_sampling(parser)
    parser.add_argument("--sampler", metavar="NAME", help=f"one of {', '.join(SAMPLERS)} (default: the model's own)")
    text = f"schedule type: one of {', '.join(SCHEDULES)}; it may also stand at the sampler's end (DPM++ 2M Karras)"
    parser.add_argument("--scheduler", metavar="TYPE", help=text)
    for side in ("--width", "--height"):
        parser.add_argument(side, type=integer(MIN_SIZE, MAX_SIZE), help="in pixels (default: the model's own size)")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    _add_sampling(parser)
    _add_option(parser, FIELDS["views"])
    _add_out(parser, "demo-output")
    parser.add_argument("--count", type=integer(1, 1000), help="only the pictures of so many words")


def _add_generate(parser: argparse.ArgumentParser) -> None:
    text = "one image or set of layers for each; @FILE and - (stdin) have one on each line"
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help=text)
    text = (
        "a table of what to make: .csv, .jsonl, or a text with a prompt on each line (- is stdin). What is finished "
        "stands in a manifest in the output folder; given again, the command makes the rest"
    )
    parser.add_argument("--prompts", dest="table", metavar="FILE", help=text)
    text = "of a row's files, from {row}, {seed}, {number}, {prompt}, {mode} and {name} (with --prompts)"
    parser.add_argument("--name", metavar="TEMPLATE", help=text)
    text = "processes that share the rows of --prompts, each with a model of its own (default: 1)"
    parser.add_argument("--workers", type=integer(1, 1000), default=1, help=text)
    text = (
        "share the rows of --prompts among --workers on a Ray cluster: its address, `auto` for a running one that Ray "
        "finds, or `local` for one that ends with the command"
    )
    parser.add_argument("--ray", metavar="ADDRESS", help=text)
    parser.add_argument("--negative", default="", metavar="PROMPT", help="what the image should not show")
    parser.add_argument(
        "--batch", type=integer(1, 64), default=1, help="sets of layers for each prompt, with seeds counting up"
    )
    _add_whole_sampling(parser)
    text = "start from this image and its transparency (image to image); the size is then its own"
    parser.add_argument("--image", type=Path, metavar="IMAGE", help=text)
    text = "with --image: paint anew what is white here; what is black keeps its colour and transparency (inpainting)"
    parser.add_argument("--mask", type=Path, metavar="IMAGE", help=text)
    text = f"with --image: how much of it changes, 0 to 1 (default {STRENGTH:g})"
    parser.add_argument("--strength", type=real(0, 1), metavar="NUMBER", help=text)
    text = "default: outputs; with --prompts also an address that fsspec knows, such as s3://bucket/folder"
    parser.add_argument(
        "--out",
        type=lambda out: out if "://" in out else Path(out),
        default=Path("outputs"),
        metavar="FOLDER",
        help=text,
    )
    _add_model(parser)
    for name, option in FIELDS.items():
        if name != "enabled":  # the command is there to make layers
            _add_option(parser, option, short=name != "preview_image")  # --preview would read as a switch
    parser.add_argument("--checker", action="store_true", help="the same as adding checker to --outputs")
    parser.epilog = "docs/modes.md has a table of the layer modes."


def _add_scene(parser: argparse.ArgumentParser) -> None:
    text = "put after each layer's own prompt, such as a style or a light"
    parser.add_argument("prompt", nargs="?", default="", metavar="PROMPT", help=text)
    parser.add_argument("--negative", default="", metavar="PROMPT", help="what the layers should not show")
    _add_whole_sampling(parser)
    _add_out(parser, "outputs")
    _add_model(parser)
    for name, option in SCENE_FIELDS.items():
        if name != "controlnet_units":  # a WebUI's
            _add_option(parser, option, short=False)
    parser.epilog = "docs/scenes.md says how the layers are made."


def _add_encode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="images, or folders of them")
    _add_out(parser, "outputs")
    _add_model(parser)


def _add_decode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "latents", nargs="+", type=Path, metavar="LATENT", help="files that `encode` wrote, or folders of them"
    )
    for name in ("views", *EDGES):
        _add_option(parser, FIELDS[name])
    _add_out(parser, "outputs")
    _add_model(parser)


def _add_composite(parser: argparse.ArgumentParser) -> None:
    text = "bottom layer first; of folders, the images of one name are put together, and a single image is in each"
    parser.add_argument("layers", nargs="+", type=Path, metavar="IMAGE", help=text)
    parser.add_argument(
        "--over",
        default="checker",
        help="'checker' (default), a colour like white or #3366cc, or an image, which is cropped to fit",
    )
    _add_out(parser, "outputs")


def _add_upscale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="images, or folders of them")
    parser.add_argument("--by", type=real(0.05, 16), metavar="FACTOR", help="scale of both sides (default: 2)")
    parser.add_argument("--width", type=integer(1, 2**15), help="in pixels; alone, the height follows")
    parser.add_argument("--height", type=integer(1, 2**15), help="in pixels; alone, the width follows")
    text = "file of an upscaling model such as ESRGAN or SwinIR (default: Lanczos interpolation)"
    parser.add_argument("--upscaler", type=Path, metavar="FILE", help=text)
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    _add_out(parser, "outputs")


def _add_edges(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="images with alpha, or folders of them")
    for name in EDGES:
        _add_option(parser, FIELDS[name])
    _add_out(parser, "outputs")
    parser.epilog = "docs/assets.md says what each option is for."


def _add_atlas(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="images, or folders of them")
    parser.add_argument("--name", default="atlas", help="of the two files (default: atlas)")
    text = "hash (default) or array of TexturePacker's JSON, or libgdx, whose text ends in .atlas"
    parser.add_argument("--form", choices=("hash", "array", "libgdx"), default="hash", help=text)
    parser.add_argument("--no-trim", dest="trim", action="store_false", help="keep invisible borders")
    text = "bring all to the largest width and height, each in the middle"
    parser.add_argument("--common-canvas", action="store_true", help=text)
    parser.add_argument("--padding", type=integer(0, 64), default=2, help="empty pixels between images (default: 2)")
    text = "pixels by which the outermost ones are repeated, for opaque tiles (default: 0)"
    parser.add_argument("--extrude", type=integer(0, 64), default=0, help=text)
    text = "0 to 1 from the left top corner (default: 0.5 0.5)"
    parser.add_argument("--pivot", type=real(0, 1), nargs=2, metavar=("X", "Y"), default=(0.5, 0.5), help=text)
    parser.add_argument("--power-of-two", action="store_true", help="sides of 256, 512, 1024 ... pixels")
    text = "of a sheet, in pixels; what doesn't fit goes to further sheets (default: 4096)"
    parser.add_argument("--max-side", type=integer(16, 16384), default=4096, help=text)
    _add_out(parser, "outputs")


def _add_animate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="of one size, in their order, or folders")
    parser.add_argument("--name", default="animation", help="of the file (default: animation)")
    parser.add_argument("--format", choices=("png", "webp"), default="png", help="APNG (default) or lossless WebP")
    parser.add_argument("--fps", type=real(0.1, 100), default=12, help="images in a second (default: 12)")
    parser.add_argument("--loops", type=integer(0, 65535), default=0, help="how often it runs; 0 (default): for ever")
    _add_out(parser, "outputs")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", type=Path, metavar="MODELS", help="the `models` folder of AUTOMATIC1111")
    parser.add_argument("--model", default=EMBEDDED, help="'embedded' (default), or a diffusers folder of SD1.5")
    parser.add_argument("--name", help="of the checkpoint (default: layerdiffusion-embedded, or the folder's name)")
    text = "where the layer files go (default: MODELS/layer_model/NAME, where the extension finds them)"
    parser.add_argument("--layers", type=Path, metavar="FOLDER", help=text)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="folder of the layer weight files")
