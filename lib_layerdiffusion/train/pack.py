"""Put finished runs together as one small model folder: half precision, with each run's configuration and log."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from ..refusal import Refusal
from .dataset import find_prompts, read_sprites

PARTS = {  # folder of the pipeline -> run that made it
    "unet": "base",
    "text_encoder": "base",
    "vae": "autoencoder_room",
}
LAYER_FILES = {
    "layer_sd15_transparent_attn": "foreground",
    "layer_sd15_vae_transparent_decoder": "transparency_last",
    "layer_sd15_vae_transparent_encoder": "transparency",
}

# transformers 5 writes the text encoder's keys without it; it reads both, and older versions only this
TEXT_PREFIX = "text_model."
LOCAL_KEYS = ("_name_or_path", "training")  # of a part's config: what the folder `training` tells, and local paths
RUNS = (
    "autoencoder",
    "autoencoder_room",
    "base",
    "foreground",
    "transparency_start",
    "transparency_room",
    "transparency",
    "transparency_decoder",
    "transparency_edges",
    "transparency_last",
)


def read_config(run: Path) -> str:
    """The run's configuration as JSON, without the folder that the data lay in."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    return json.dumps(config | {"data": Path(config["data"]).name}, sort_keys=True)


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
    save_file(state, target, metadata)


def pack(runs: Path, data: Path, out: Path) -> int:
    """Write the model folder anew; returns its size in bytes."""
    if out.exists() and any(out.iterdir()) and not (out / "model_index.json").exists():
        raise Refusal(f"{out} holds something else than a model; name a folder that is new, empty or a model's.")
    for run in RUNS:
        if not (runs / run / "model").is_dir():
            raise Refusal(f"The run {runs / run} isn't finished; train it first.")
    fresh = out.with_name(f"{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    _fill(fresh, runs, data)
    if out.exists():
        shutil.rmtree(out)
    fresh.rename(out)
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def _fill(out: Path, runs: Path, data: Path) -> None:
    base = runs / "base" / "model"
    out.mkdir(parents=True)
    shutil.copy(base / "model_index.json", out)
    shutil.copytree(base / "scheduler", out / "scheduler")
    shutil.copytree(runs / "base" / "tokenizer", out / "tokenizer")  # in the form that every transformers reads
    for folder, run in PARTS.items():
        source = base / folder if run == "base" else runs / run / "model"
        for file in sorted(source.iterdir()):
            if file.suffix == ".safetensors":
                prefix = TEXT_PREFIX if folder == "text_encoder" else ""
                write_half(file, out / folder / file.name, read_config(runs / run), prefix)
            else:
                settings = json.loads(file.read_text(encoding="utf-8"))
                kept = {key: value for key, value in settings.items() if key not in LOCAL_KEYS}
                (out / folder).mkdir(exist_ok=True)
                (out / folder / file.name).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    for name, run in LAYER_FILES.items():
        made = runs / run / "model" / f"{name}.safetensors"
        write_half(made, out / "layer_model" / made.name, read_config(runs / run))
    for run in RUNS:
        (out / "training" / run).mkdir(parents=True)
        (out / "training" / run / "config.json").write_text(read_config(runs / run) + "\n", encoding="utf-8")
        shutil.copy(runs / run / "log.csv", out / "training" / run)
    prompts = {sprite.text: sprite.kind for sprite in find_prompts(read_sprites(data))}
    captions = [{"caption": caption, "kind": kind} for caption, kind in prompts.items()]
    (out / "captions.json").write_text(json.dumps(captions, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str]) -> int:
    """Command `layerdiffusion train pack`."""
    parser = argparse.ArgumentParser(prog="layerdiffusion train pack", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--data", type=Path, default=Path("sprites.zip"), help="the training archive")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write; an existing one is replaced")
    given = parser.parse_args(argv)
    print(f"{pack(given.runs, given.data, given.out) / 1e6:.1f} MB in {given.out}")
    return 0
