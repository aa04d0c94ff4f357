"""What each command of the command line does; imported only when one runs, because it needs torch."""

from __future__ import annotations

import argparse
import logging
import math
import re
import secrets
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib_layerdiffusion import upscaling
from lib_layerdiffusion.cli import STRENGTH, bulk
from lib_layerdiffusion.cli.destination import open_destination
from lib_layerdiffusion.cli.files import Attempts, find_files, leave_out_results, list_place, natural
from lib_layerdiffusion.cli.progress import progress_bar
from lib_layerdiffusion.cli.table import NAME, TABLE_LIMIT, plan_jobs, read_common, read_table
from lib_layerdiffusion.doctor import examine
from lib_layerdiffusion.edges import Edges, clean_edges
from lib_layerdiffusion.embedded import EMBEDDED, EMBEDDED_FOLDER, a1111_checkpoint, model_path, usual_guidance
from lib_layerdiffusion.embedded.gallery import find_unknown_words, read_words, tell_unknown_words
from lib_layerdiffusion.export import animation, png, whole_job
from lib_layerdiffusion.export.atlas import AtlasOptions, is_sheet
from lib_layerdiffusion.export.atlas import list_files as list_atlas_files
from lib_layerdiffusion.export.atlas import write as write_atlas
from lib_layerdiffusion.export.names import slug
from lib_layerdiffusion.export.output_folder import OutputFolder
from lib_layerdiffusion.hosts.diffusers import LayerDiffusion, layer_diffusion
from lib_layerdiffusion.hosts.diffusers_scene import layer_scene
from lib_layerdiffusion.hosts.pipelines import load_pipeline, pick_device, start_from_image
from lib_layerdiffusion.hosts.samplers import read_names, set_sampler
from lib_layerdiffusion.image_file import ENDINGS, MAX_PIXELS, is_animated, read_image, read_size
from lib_layerdiffusion.infotext import mark_layer
from lib_layerdiffusion.latent_file import LatentFile, read_latent
from lib_layerdiffusion.layers import Layer, LayerStack, check_work, fit
from lib_layerdiffusion.layers import composite as put_over
from lib_layerdiffusion.modes import ROLES, Role, any_row
from lib_layerdiffusion.options import EDGES, FIELDS, LayerOptions, check_text
from lib_layerdiffusion.outputs import WRITERS, list_files, list_outputs
from lib_layerdiffusion.planning import LARGEST_SEED, MIN_SIZE, check_options, check_size, count_sets
from lib_layerdiffusion.refusal import Refusal, using_path
from lib_layerdiffusion.scene import SCENE_FIELDS, Scene
from lib_layerdiffusion.upscaling import load_upscaler
from lib_layerdiffusion.weights import WeightStore, cache_folder

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

PROMPTS_LIMIT = 2**20  # bytes of a file of prompts
PROMPTS_CURE = "name a text file after @, or write the prompt itself"
TABLE_CURE = "name a .csv, .jsonl or text file after --prompts, or - for standard input"
EMBEDDED_CHECKPOINT = "layerdiffusion-embedded"


def generate(arguments: argparse.Namespace) -> int:
    """Make the layers of each prompt and seed, and write them as soon as they are there."""
    if arguments.table is not None:
        return _generate_table(arguments)
    if not arguments.prompts:
        raise Refusal("There is no prompt: write one, or name a table of them with --prompts.")
    if arguments.ray is not None or isinstance(arguments.out, str):
        raise Refusal("Ray and addresses as --out are for many pictures: put the prompts into a table, --prompts FILE.")
    prompts = _read_prompts(arguments.prompts)
    check_text("The negative prompt", arguments.negative)
    read_names(arguments.sampler, arguments.scheduler)  # a wrong name is refused before anything is loaded
    options = _read_options(arguments)
    sets = count_sets(any_row(options.mode), options, arguments.batch)
    _check_outputs(options)
    if reason := whole_job.why_not(options, any_row(options.mode)):
        raise Refusal(reason)
    whole_job.check_packages(options)
    check_size(arguments.width or MIN_SIZE, arguments.height or MIN_SIZE)
    start = _read_start(arguments)
    store = _store(arguments)
    first = secrets.randbelow(LARGEST_SEED + 1) if arguments.seed is None else arguments.seed
    seeds = [(first + index) % (LARGEST_SEED + 1) for index in range(sets)]
    settings = _whole_sampling(arguments)
    with OutputFolder(arguments.out) as out:
        pipe = _load_sampling(arguments)
        if start:
            pipe = start_from_image(pipe, masked="mask_image" in start)
        if arguments.model == EMBEDDED:
            _warn_of_unknown_words([*prompts, *(options.prompt(role) for role in ROLES)])
        # Outputs, and what is made of all pictures, are written here; the library makes the layers.
        written_here = ("outputs", "preview_image", "batch_counts", "atlas", "animation")
        own = {name: getattr(LayerOptions, name) for name in written_here}
        job = whole_job.WholeJob()
        with layer_diffusion(pipe, weights=store, **{**options.to_dict(), **own}) as ld:
            for prompt in prompts:
                with progress_bar(prompt) as progress:
                    stacks = ld.batch([prompt] * sets, seeds, progress=progress, **settings, **start)
                for seed, stack in zip(seeds, stacks, strict=True):
                    stem = f"{seed}-{slug(prompt)}"
                    path = _write_outputs(out, stem, stack, options)
                    for layer in stack.layers if whole_job.list_wanted(options) else ():
                        if layer.role == "foreground":
                            job.add(layer.image, path or out.path / f"{stem}.png")
    _make_whole_job(job, options)
    return 0


def _make_whole_job(job: whole_job.WholeJob, options: LayerOptions) -> None:
    """Write the sheet and the animation of all pictures, and tell their paths on stdout."""
    made, failed = job.make(options)
    for file in chain.from_iterable(each.files for each in made):
        print(file, flush=True)
    if failed:
        raise Refusal(" ".join(failed))


def _generate_table(arguments: argparse.Namespace) -> int:
    """Make what a table asks for and isn't in the output folder yet."""
    if arguments.prompts:
        raise Refusal("Prompts are given twice: put them into the table of --prompts, or leave that out.")
    table: str = arguments.table
    content = sys.stdin.buffer.read() if table == "-" else _read_file(Path(table), TABLE_CURE, TABLE_LIMIT)
    rows = read_table("Standard input" if table == "-" else table, content)
    sampler, scheduler = read_names(arguments.sampler, arguments.scheduler)
    options = _read_options(arguments)
    if names := whole_job.list_wanted(options):
        raise Refusal(
            f"A table's rows are made on their own, so there is no {' and no '.join(names)}: leave that out, and put "
            "the pictures together afterwards, by `layerdiffusion atlas` or `layerdiffusion animate`."
        )
    if _given(options) or arguments.image or arguments.mask or arguments.strength is not None:
        raise Refusal("A table's rows can't start from images: leave --prompts out for such a mode.")
    weights = None if arguments.weights is None else str(arguments.weights)
    identity = {"name": arguments.model, "weights": weights, "sampler": sampler, "scheduler": scheduler}
    common = read_common(arguments.seed, options, _whole_sampling(arguments), identity)
    jobs = plan_jobs(rows, common, arguments.name or NAME)
    store = _store(arguments)
    model = bulk.Model(
        model_path(arguments.model),
        tuple(store.folders),
        cache_folder(),
        arguments.offline,
        arguments.device,
        arguments.sampler,
        arguments.scheduler,
    )
    if arguments.model == EMBEDDED:
        _warn_of_unknown_words([*{job.prompt for job in jobs}])
    with open_destination(arguments.out) as out:
        work = bulk.Work(jobs, model, out, arguments.batch, arguments.workers, arguments.ray)
        bulk.run(work, report=partial(print, flush=True))
    return 0


def scene(arguments: argparse.Namespace) -> int:
    """Make the layers of a scene and write them; also what is complete when it ends early."""
    read_names(arguments.sampler, arguments.scheduler)
    options = _read_scene(arguments)
    store = _store(arguments)
    seed = secrets.randbelow(LARGEST_SEED + 1) if arguments.seed is None else arguments.seed
    settings = _whole_sampling(arguments)
    title = options.background or arguments.prompt or "scene"
    with OutputFolder(arguments.out) as out:
        pipe = _load_sampling(arguments)
        if arguments.model == EMBEDDED:
            _warn_of_unknown_words([arguments.prompt, options.background, *options.foregrounds])
        with progress_bar(title) as progress:
            made = layer_scene(
                pipe, arguments.prompt, seed=seed, weights=store, progress=progress, **settings, **options.to_dict()
            )
        stem = f"{seed}-{slug(title)}"
        for name, image in made.pictures(options.outputs):
            _write(out, f"{stem}-{slug(name)}", image, mark_layer(made.stack.infotext, name))
        _write_files(out, stem, made.stack, options.outputs)
    for sentence in made.notes:
        logger.warning("%s", sentence)
    if made.error is not None:
        raise made.error
    return 0


def encode(arguments: argparse.Namespace) -> int:
    """Write the adjusted latent of each image."""
    attempts = Attempts(find_files(arguments.images, ENDINGS, "images"))
    with _codec(arguments) as (load, out):
        for path, rgba in attempts.read(_read_encodable):
            ld = load()
            height, width = rgba.shape[:2]
            with attempts.trying(path):
                latent = ld.to_latent(_enlarge(rgba))
                print(out.write(slug(path.stem), ".safetensors", LatentFile(latent, width, height).save), flush=True)
    attempts.finish()
    return 0


def decode(arguments: argparse.Namespace) -> int:
    """Write the transparent image in each latent."""
    wanted = _read_edges(arguments)
    attempts = Attempts(find_files(arguments.latents, [".safetensors"], "latents"))
    with _codec(arguments, views=arguments.views) as (load, out):
        for path, file in attempts.read(_read_decodable):
            ld = load()
            with attempts.trying(path):
                image = ld.from_latent(file.latent)[: file.height, : file.width]
                _write(out, slug(path.stem), clean_edges(image, wanted))
    attempts.finish()
    return 0


def composite(arguments: argparse.Namespace) -> int:
    """Write the layers, bottom first, over a colour, a checkerboard or an image; of folders, those of each name."""
    attempts = Attempts(_find_composable(arguments.layers, arguments.out))
    with using_path(arguments.over):
        is_image = bool(Path(arguments.over).suffix) or Path(arguments.over).is_file()
    over = read_image(arguments.over) if is_image else arguments.over
    with OutputFolder(arguments.out) as out:
        for paths, layers in attempts.read(_read_layers):
            behind = over if isinstance(over, str) else fit(over, layers[0].image.shape[1::-1])
            with attempts.trying(paths):
                _write(out, f"{_join_stems(paths)}-composite", put_over(layers, behind))
    attempts.finish()
    return 0


def upscale(arguments: argparse.Namespace) -> int:
    """Write each image in its larger size."""
    if arguments.by is not None and (arguments.width or arguments.height):
        raise Refusal("The size is given twice: choose --by, or --width and --height.")
    attempts = Attempts(_find_upscalable(arguments.images, arguments.out))
    load = cache(lambda: load_upscaler(arguments.upscaler, pick_device(arguments.device)))

    def read(path: Path) -> Pixels:
        _choose_size(path, read_size(path), arguments)  # what becomes too large is refused before it is decoded
        return read_image(path)

    with OutputFolder(arguments.out) as out:
        for path, image in attempts.read(read):
            enlarge = load() if arguments.upscaler else None
            with attempts.trying(path):
                size = _choose_size(path, image.shape[1::-1], arguments)
                _write(out, f"{slug(path.stem)}-{size[0]}x{size[1]}", upscaling.upscale(image, size, enlarge))
    attempts.finish()
    return 0


def edges(arguments: argparse.Namespace) -> int:
    """Write each image with cleaner edges."""
    wanted = _read_edges(arguments)
    if wanted.off:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in EDGES)
        raise Refusal(f"No option says what to do to the edges: give one or more of {flags}.")
    attempts = Attempts(_find_cleanable(arguments.images, arguments.out))
    with OutputFolder(arguments.out) as out:
        for path, image in attempts.read(_read_cleanable):
            with attempts.trying(path):
                _write(out, f"{slug(path.stem)}-edges", clean_edges(image, wanted))
    attempts.finish()
    return 0


def atlas(arguments: argparse.Namespace) -> int:
    """Write sheets of all images with their JSON; renews earlier ones of this name."""
    names = [field.name for field in fields(AtlasOptions)]
    options = AtlasOptions(**{name: value for name, value in vars(arguments).items() if name in names})
    pictures: dict[str, Pixels] = {}
    found = leave_out_results(find_files(arguments.images, ENDINGS, "images"), is_sheet)
    for path, picture in _read_all(found):
        if path.name in pictures:
            raise Refusal(f"Two images are called {path.name}, and an atlas finds them by their names: rename one.")
        pictures[path.name] = picture
    with OutputFolder(arguments.out) as out:
        path = out.path / slug(arguments.name)
        sheets = write_atlas(pictures, path, options, keep=found)
        print(*list_atlas_files(path, len(sheets), options.form), sep="\n")
    return 0


def animate(arguments: argparse.Namespace) -> int:
    """Write all images as one animation."""
    earlier = re.compile(re.escape(slug(arguments.name)) + r"(-\d+)?\.(png|webp)")
    is_own = _make_place_check(arguments.images, arguments.out)
    found = leave_out_results(
        find_files(arguments.images, ENDINGS, "images"),
        lambda path: is_own(path) and bool(earlier.fullmatch(path.name)) and is_animated(path),
    )
    frames = [frame for _, frame in _read_all(found)]
    write = partial(animation.write, frames, fps=arguments.fps, loops=arguments.loops)
    with OutputFolder(arguments.out) as out:
        print(out.write(slug(arguments.name), f".{arguments.format}", write))
    return 0


def _find_upscalable(places: Sequence[Path], out: Path) -> list[Path]:
    """The images, without those that have name and size of what an earlier run made of another one."""
    found = find_files(places, ENDINGS, "images")
    stems = {slug(path.stem) for path in found}
    is_own = _make_place_check(places, out)

    def is_result(path: Path) -> bool:
        name = re.fullmatch(r"(.+)-(\d+)x(\d+)(?:-\d+)?\.png", path.name)
        if not name or name[1] not in stems or not is_own(path):
            return False
        try:
            return read_size(path) == (int(name[2]), int(name[3]))
        except Refusal:  # is told when it is read
            return False

    return leave_out_results(found, is_result)


def _find_cleanable(places: Sequence[Path], out: Path) -> list[Path]:
    """The images, without those that have the name of what an earlier run made of another one."""
    found = find_files(places, ENDINGS, "images")
    return leave_out_results(found, _make_name_check("edges", {slug(path.stem) for path in found}, places, out))


def _make_name_check(word: str, stems: Collection[str], places: Collection[Path], out: Path) -> Callable[[Path], bool]:
    """Make the function that says whether a file is called as `STEM-word` is in the output folder."""
    is_own = _make_place_check(places, out)

    def is_result(path: Path) -> bool:
        name = re.fullmatch(rf"(.+)-{word}(?:-\d+)?\.png", path.name)
        return name is not None and name[1] in stems and is_own(path)

    return is_result


def _make_place_check(places: Collection[Path], out: Path) -> Callable[[Path], bool]:
    """Make the function that says whether a file lies in the output folder and wasn't named itself."""
    with using_path(out):
        folder = out.resolve()
    return lambda path: path not in places and path.parent.resolve() == folder


def _read_all(paths: Sequence[Path]) -> list[tuple[Path, Pixels]]:
    """All images of what becomes one file. Each that can't be read is told; then a Refusal, as one would be missing."""
    attempts = Attempts(paths)
    images = list(attempts.read(read_image))
    attempts.finish()
    return images


def _read_edges(arguments: argparse.Namespace) -> Edges:
    return Edges.from_dict({name: getattr(arguments, name) for name in EDGES})


def _read_cleanable(path: Path) -> Pixels:
    rgba = read_image(path)
    if rgba[..., 3].min() == 255:
        raise Refusal(f"{path} has no transparency, so it has no edges to clean: name a picture with alpha.")
    return rgba


def _read_encodable(path: Path) -> Pixels:
    rgba = read_image(path)
    check_size(*_enlarge(rgba).shape[1::-1])
    return rgba


def _read_decodable(path: Path) -> LatentFile:
    file = read_latent(path)
    check_size(*(8 * side for side in file.latent.shape[:1:-1]))
    return file


def _match_names(places: Sequence[Path]) -> list[tuple[Path, ...]]:
    """The layers of each picture, bottom first: of folders the files with one name, without ending, and each file."""
    listed = [list_place(place, ENDINGS, "images") for place in places]
    folders = {place: files for place, files in zip(places, listed, strict=True) if place.is_dir()}
    if not folders:
        return [tuple(places)]
    names: dict[str, str] = {}
    for place, files in folders.items():
        for path in files:
            names.setdefault(path.stem, path.name)
        if len({path.stem for path in files}) < len(files):
            twice = next(path.stem for path in files if sum(path.stem == other.stem for other in files) > 1)
            raise Refusal(f"Two images in {place} are called {twice}, and layers are found by their names: rename one.")
    by_stem = {place: {path.stem: path for path in files} for place, files in folders.items()}
    return [  # a name that a folder lacks is refused like every file that isn't there
        tuple(by_stem[place].get(stem, place / name) if place in by_stem else place for place in places)
        for stem, name in sorted(names.items(), key=lambda item: natural(item[0]))
    ]


def _find_composable(places: Sequence[Path], out: Path) -> list[tuple[Path, ...]]:
    """The layers of each picture, without those that have the name of what an earlier run made of others."""
    groups = _match_names(places)
    is_result = _make_name_check("composite", {_join_stems(paths) for paths in groups}, places, out)
    kept = set(leave_out_results([*dict.fromkeys(chain(*groups))], is_result))
    return [paths for paths in groups if kept.issuperset(paths)]


def _join_stems(paths: Sequence[Path]) -> str:
    return slug("-".join(dict.fromkeys(path.stem for path in paths)))


def _read_layers(paths: Sequence[Path]) -> list[Layer]:
    """Layers of one size."""
    lying = [read_size(path) for path in paths]
    check_work(max(lying, key=math.prod), lying)
    layers = [Layer(str(path), read_image(path), "foreground") for path in paths]
    sizes = {layer.name: f"{layer.image.shape[1]}x{layer.image.shape[0]}" for layer in layers}
    if len(set(sizes.values())) > 1:
        named = ", ".join(f"{name} is {size}" for name, size in sizes.items())
        raise Refusal(f"Layers must have one size, but {named}; resize them first.")
    return layers


def _choose_size(path: Path, size: tuple[int, int], arguments: argparse.Namespace) -> tuple[int, int]:
    """The width and height that an image of this size is brought to; Refusal when they are too large."""
    by = arguments.by or 2
    if arguments.width or arguments.height:
        by = min(
            wanted / side for wanted, side in zip((arguments.width, arguments.height), size, strict=True) if wanted
        )
    width, height = (max(1, round(side * by)) for side in size)
    width, height = arguments.width or width, arguments.height or height
    if width * height > MAX_PIXELS:
        raise Refusal(
            f"{path} would have {width}x{height} pixels, more than the {MAX_PIXELS} allowed: choose a smaller size."
        )
    return width, height


def export_checkpoint(arguments: argparse.Namespace) -> int:
    """Write a model's checkpoint and layer files into a WebUI's folder of models, and their paths on stdout."""
    model, models = model_path(arguments.model), arguments.models
    if not model.is_dir():
        raise Refusal(
            f"{model} is a checkpoint already: copy it into {models}, or name a diffusers folder with --model."
        )
    if not (models / "Stable-diffusion").is_dir():
        raise Refusal(f"There is no folder {models / 'Stable-diffusion'}: name the `models` folder of AUTOMATIC1111.")
    name = arguments.name or (EMBEDDED_CHECKPOINT if arguments.model == EMBEDDED else model.resolve().name)
    for path in a1111_checkpoint.write(model, models, arguments.layers or models / "layer_model" / name, name):
        print(path)
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """Print what is found, missing or damaged; 1 if anything stops a generation."""
    folders = [arguments.weights] if arguments.weights else []
    findings = list(examine(WeightStore(folders, download_to=cache_folder()), EMBEDDED_FOLDER))
    for finding in findings:
        print(finding)
    return int(any(finding.state == "broken" for finding in findings))


def _load_sampling(arguments: argparse.Namespace) -> Any:
    """Load the model, with the wanted sampler."""
    pipe = load_pipeline(model_path(arguments.model), device=arguments.device, offline=arguments.offline)
    set_sampler(pipe, arguments.sampler, arguments.scheduler)
    return pipe


def _sampling(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    return {"steps": arguments.steps, "cfg": usual_guidance(model) if arguments.cfg is None else arguments.cfg}


def _whole_sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that a call of the library takes, where all of them have flags."""
    asked = {"negative_prompt": arguments.negative, "width": arguments.width, "height": arguments.height}
    return _sampling(arguments, arguments.model) | asked


def _read_options(arguments: argparse.Namespace) -> LayerOptions:
    """Read the layer options and the given images; Refusal when one of them is wrong."""
    values = {name: value for name, value in vars(arguments).items() if name in FIELDS and value is not None}
    values |= {name: read_image(value) for name, value in values.items() if FIELDS[name].metadata["kind"] == "image"}
    outputs = chain(*values.get("outputs", [LayerOptions.outputs]), ["checker"] if arguments.checker else [])
    return LayerOptions.from_dict({**values, "outputs": tuple(outputs)})


def _read_start(arguments: argparse.Namespace) -> dict[str, Any]:
    """What image to image and inpainting start from; empty where no image is given."""
    if arguments.image is None:
        for name in ("mask", "strength"):
            if getattr(arguments, name) is not None:
                raise Refusal(f"--{name} needs an image to start from: name it with --image.")
        return {}
    strength = STRENGTH if arguments.strength is None else arguments.strength
    start = {"image": read_image(arguments.image), "strength": strength}
    return start if arguments.mask is None else start | {"mask_image": read_image(arguments.mask)}


def _read_scene(arguments: argparse.Namespace) -> Scene:
    """Read the options of a scene and the given images; Refusal when one of them is wrong."""
    values = {name: value for name, value in vars(arguments).items() if name in SCENE_FIELDS and value is not None}
    values |= {name: read_image(value) for name, value in values.items() if name.endswith("_image")}
    if "outputs" in values:
        values["outputs"] = [*chain(*values["outputs"])]
    return Scene.from_dict(values)


def _read_prompts(words: Sequence[str]) -> list[str]:
    """The prompts: each word is one, "@FILE" has one on each line of a text file, and "-" on each line of stdin."""
    prompts: list[str] = []
    for word in words:
        if word == "-":
            prompts += _read_lines("Standard input", sys.stdin.buffer.read(PROMPTS_LIMIT + 1))
        elif word.startswith("@"):
            prompts += _read_lines(word[1:], _read_file(Path(word[1:])))
        else:
            prompts.append(word)
    for prompt in prompts:
        check_text("The prompt", prompt)
    return prompts


def _read_file(path: Path, cure: str = PROMPTS_CURE, limit: int = PROMPTS_LIMIT) -> bytes:
    with using_path(path):
        if not path.is_file():
            raise Refusal(f"There is no file {path} of prompts: {cure}.")
        with path.open("rb") as file:
            return file.read(limit + 1)


def _read_lines(name: str, content: bytes) -> list[str]:
    if len(content) > PROMPTS_LIMIT:
        raise Refusal(f"{name} has more than the {PROMPTS_LIMIT} bytes of prompts that are read: split it up.")
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise Refusal(f"{name} isn't a text in UTF-8: save it as one, with a prompt on each line.") from None
    if not any(lines):
        raise Refusal(f"{name} has no prompts: write one on each line.")
    return [line for line in lines if line]


def _warn_of_unknown_words(prompts: Sequence[str]) -> None:
    if unknown := find_unknown_words(prompts, words := read_words(EMBEDDED_FOLDER)):
        logger.warning("%s", tell_unknown_words(unknown, words))


def _check_outputs(options: LayerOptions) -> None:
    """Refuse options that don't go together, and outputs of which nothing would come, before anything is loaded."""
    check_options(options)
    there = list_outputs(any_row(options.mode), _given(options))
    if not {*there} & {*options.outputs}:
        raise Refusal(
            f"Layer mode {options.mode!r} makes none of the outputs {', '.join(options.outputs)}: choose among "
            f"{', '.join(there)} with --outputs."
        )


def _given(options: LayerOptions) -> dict[Role, Pixels]:
    """The images that were given, as they were read."""
    return {role: image for role in ROLES if isinstance(image := options.image(role), np.ndarray)}


def _store(arguments: argparse.Namespace) -> WeightStore:
    """Search --weights, then the model's own folder, then the cache, where downloads go."""
    model = model_path(arguments.model)
    given: Path | None = arguments.weights
    with using_path(given or model):
        if given and not given.is_dir():
            raise Refusal(f"There is no folder {given}; --weights takes the folder of the layer weight files.")
        folders = [folder for folder in (given, model / "layer_model") if folder and folder.is_dir()]
    return WeightStore(folders, download_to=cache_folder(), offline=arguments.offline)


@contextmanager
def _codec(
    arguments: argparse.Namespace, **options: Any
) -> Iterator[tuple[Callable[[], LayerDiffusion], OutputFolder]]:
    """What loads the model, when something is there to use it on, and the output folder for `encode` and `decode`."""
    store = _store(arguments)
    with OutputFolder(arguments.out) as out, ExitStack() as opened:

        @cache
        def load() -> LayerDiffusion:
            pipe = load_pipeline(model_path(arguments.model), device=arguments.device, offline=arguments.offline)
            return opened.enter_context(layer_diffusion(pipe, weights=store, **options))

        yield load, out


def _enlarge(rgba: Pixels) -> Pixels:
    """Add transparent pixels on the right and below, up to the smallest size that models take."""
    height, width = rgba.shape[:2]
    return np.pad(rgba, ((0, max(0, MIN_SIZE - height)), (0, max(0, MIN_SIZE - width)), (0, 0)))


def _write_outputs(out: OutputFolder, stem: str, stack: LayerStack, options: LayerOptions) -> Path | None:
    """Write the wanted layers of a set, its previews and its layered files, and tell their paths on stdout.

    Returns the path of the file that is called as the set; None when it isn't wanted.
    """
    called: Path | None = None
    given: dict[Role, Pixels] = {
        role: fit(image, stack.size, options.resize_mode) for role, image in _given(options).items()
    }
    image = options.preview_image
    behind = fit(image, stack.size, options.resize_mode) if isinstance(image, np.ndarray) else None
    for addition, ending, write in list_files(stack, options.outputs, given, behind):
        path = out.write(f"{stem}{addition}", ending, write)
        print(path, flush=True)
        called = path if (addition, ending) == ("", ".png") else called
    return called


def _write_files(out: OutputFolder, stem: str, stack: LayerStack, outputs: Collection[str]) -> None:
    """Write the wanted layered files and tell their paths on stdout."""
    for name, write in WRITERS.items():
        if name in outputs:
            print(out.write(stem, f".{name}", partial(write, stack)), flush=True)


def _write(out: OutputFolder, stem: str, image: LayerStack | Pixels, infotext: str | None = None) -> None:
    """Write a PNG under a new name and tell its path on stdout."""
    print(out.write(stem, ".png", lambda path: png.write(image, path, infotext)), flush=True)
