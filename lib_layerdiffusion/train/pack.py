"""Put finished runs together as one small model folder: half precision, with each run's configuration and log."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save

from ..refusal import Parser, Refusal
from .dataset import Sprite, find_prompts, read_sprites
from .recipe import LAYER_FILES, PARTS, RECIPE, add_places

# transformers 5 writes the text encoder's keys without it; it reads both, and older versions only this
TEXT_PREFIX = "text_model."
LOCAL_KEYS = ("_name_or_path", "training")  # of a part's config: what the folder `training` tells, and local paths


def read_config(run: Path) -> str:
    """The run's configuration as JSON, without the folders that the data lay in."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    named = {key: Path(value).name for key in ("data", "backgrounds") if (value := config.get(key))}
    return json.dumps(config | named, sort_keys=True)


def write_half(source: Path, target: Path, config: str, prefix: str = "") -> None:
    """Copy a safetensors file in half precision with the run's configuration in its metadata.

    `prefix`: what every key has to begin with.
    """
    with safe_open(source, framework="pt") as file:
        keys: list[str] = list(file.keys())
        state = {key: file.get_tensor(key) for key in keys}
        metadata = dict(file.metadata() or {})
    state = {prefix + key.removeprefix(prefix): value for key, value in state.items()}
    state = {key: value.half().contiguous() if value.is_floating_point() else value for key, value in state.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    metadata["training_config"] = config
    target.write_bytes(save(state, metadata))


def pack(runs: Path, data: Path, backgrounds: Path, out: Path, earlier: Path | None = None) -> int:
    """Write the model folder anew; returns its size in bytes.

    `earlier`: a packed model whose parts and records stand in for runs that aren't finished.
    """
    if out.exists() and any(out.iterdir()) and not (out / "model_index.json").exists():
        raise Refusal(f"{out} holds something else than a model; name a folder that is new, empty or a model's.")
    for run in [training.run for training in RECIPE] if earlier is None else []:
        if not _is_finished(runs / run):
            raise Refusal(f"The run {runs / run} isn't finished; train it first, or name an earlier model.")
    fresh = out.with_name(f"{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    _pack_pipeline(fresh, runs, earlier)
    _pack_records(fresh, runs, earlier)
    if _is_finished(runs / PARTS["unet"]):
        _write_captions(fresh / "captions.json", read_sprites(data))
        _write_captions(fresh / "backgrounds.json", read_sprites(backgrounds))
    elif earlier is not None:
        for file in earlier.glob("*s.json"):
            shutil.copy(file, fresh)
    if out.exists():
        shutil.rmtree(out)
    fresh.rename(out)
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def _is_finished(run: Path) -> bool:
    return (run / "model").is_dir()


def _pack_pipeline(out: Path, runs: Path, earlier: Path | None) -> None:
    base = runs / PARTS["unet"]
    if _is_finished(base):
        shutil.copy(base / "model" / "model_index.json", out)
        shutil.copytree(base / "model" / "scheduler", out / "scheduler")
        shutil.copytree(base / "tokenizer", out / "tokenizer")  # in the form that every transformers reads
    elif earlier is not None:
        shutil.copy(earlier / "model_index.json", out)
        for folder in ("scheduler", "tokenizer"):
            shutil.copytree(earlier / folder, out / folder)
    for folder, run in PARTS.items():
        if _is_finished(runs / run):
            inside = runs / run / "model" / folder
            _pack_part(inside if inside.is_dir() else runs / run / "model", out / folder, read_config(runs / run))
        elif earlier is not None:
            shutil.copytree(earlier / folder, out / folder)
    (out / "layer_model").mkdir()
    for name, run in LAYER_FILES.items():
        made = f"{name}.safetensors"
        if _is_finished(runs / run):
            write_half(runs / run / "model" / made, out / "layer_model" / made, read_config(runs / run))
        elif earlier is not None and (earlier / "layer_model" / made).exists():
            shutil.copy(earlier / "layer_model" / made, out / "layer_model")


def _pack_part(source: Path, out: Path, config: str) -> None:
    """One folder of a pipeline in half precision, without local paths in its settings."""
    out.mkdir()
    for file in sorted(source.iterdir()):
        if file.suffix == ".safetensors":
            write_half(file, out / file.name, config, TEXT_PREFIX if out.name == "text_encoder" else "")
        else:
            settings = json.loads(file.read_text(encoding="utf-8"))
            kept = {key: value for key, value in settings.items() if key not in LOCAL_KEYS}
            (out / file.name).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _pack_records(out: Path, runs: Path, earlier: Path | None) -> None:
    """Configuration and log of every run."""
    for run in [training.run for training in RECIPE]:
        if _is_finished(runs / run):
            (out / "training" / run).mkdir(parents=True)
            (out / "training" / run / "config.json").write_text(read_config(runs / run) + "\n", encoding="utf-8")
            shutil.copy(runs / run / "log.csv", out / "training" / run)
        elif earlier is not None and (earlier / "training" / run).is_dir():
            shutil.copytree(earlier / "training" / run, out / "training" / run)


def _write_captions(path: Path, sprites: list[Sprite]) -> None:
    kinds = {sprite.text: sprite.kind for sprite in find_prompts(sprites)}
    captions = [{"caption": caption, "kind": kind} for caption, kind in kinds.items()]
    path.write_text(json.dumps(captions, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str]) -> int:
    """Command `layerdiffusion train pack`."""
    parser = Parser(prog="layerdiffusion train pack", description=__doc__)
    add_places(parser)
    parser.add_argument("--out", type=Path, required=True, help="model folder to write; an existing one is replaced")
    parser.add_argument("--earlier", type=Path, help="packed model whose parts stand in for unfinished runs")
    given = parser.parse_args(argv)
    size = pack(given.runs, given.data, given.backgrounds, given.out, given.earlier)
    print(f"{size / 1e6:.1f} MB in {given.out}")
    return 0
