"""docs/library.md: every example runs, with tiny models and few steps, and every public call is in one."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
from safetensors.torch import save_file

from lib_layerdiffusion import embedded, export
from lib_layerdiffusion.image_file import read_image
from lib_layerdiffusion.options import OUTPUTS
from tests.tiny_models import attention_file, decoder_file, encoder_file, make_sd15, make_tokenizer

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).parents[2] / "docs" / "library.md"
README = Path(__file__).parents[2] / "README.md"
STEPS = 2  # instead of what the examples say
EXPORTS = [module.name for module in iter_modules(export.__path__) if module.name != "output_folder"]
# Modules all of whose public functions and classes are for users.
WHOLE_MODULES = (
    "lib_layerdiffusion",
    *(f"{export.__name__}.{name}" for name in EXPORTS),
    "lib_layerdiffusion.edges",
    "lib_layerdiffusion.image_file",
    "lib_layerdiffusion.latent_file",
    "lib_layerdiffusion.layers",
    "lib_layerdiffusion.refusal",
)
# Classes whose public methods are for users.
CLASSES = (
    ("lib_layerdiffusion.hosts.diffusers", "LayerDiffusion"),
    ("lib_layerdiffusion.options", "LayerOptions"),
    ("lib_layerdiffusion.weights", "WeightStore"),
    ("lib_layerdiffusion.transparent_vae", "TransparentDecoder"),
    ("lib_layerdiffusion.transparent_vae", "TransparentEncoder"),
)
INNER = {  # public for the package's own modules
    "check_packages",
    "check_rgba",
    "check_settings",
    "check_size",
    "check_work",
    "integer",
    "is_animated",
    "is_sheet",
    "lacks_memory",
    "lacks_space",
    "list_choices",
    "list_files",
    "list_wanted",
    "Made",
    "measure",
    "name_new_sheets",
    "name_sheets",
    "open_image",
    "paint",
    "Parser",
    "plain",
    "read_colour",
    "read_meta",
    "read_size",
    "real",
    "refuse_path",
    "show_path",
    "spread",
    "why_not",
    "to_bytes",
    "to_float",
    "using_path",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the examples run in: with a reader's own model, which is also the embedded one here."""
    monkeypatch.chdir(tmp_path)
    pipe = make_sd15(make_tokenizer(tmp_path))
    model = tmp_path / "my-sd15"
    pipe.save_pretrained(model)
    files = model / "layer_model"
    files.mkdir()
    states = {
        "layer_sd15_transparent_attn": attention_file(pipe.unet, 1),
        "layer_sd15_joint": attention_file(pipe.unet, 3),
        "layer_sd15_fg2bg": {name: value.half() for name, value in attention_file(pipe.unet, 2, control=True).items()},
        "layer_sd15_vae_transparent_decoder": decoder_file(),
        "layer_sd15_vae_transparent_encoder": encoder_file(),
    }
    for name, state in states.items():
        save_file(state, files / f"{name}.safetensors")
    monkeypatch.setattr(embedded, "EMBEDDED_FOLDER", model)
    return tmp_path


def blocks(document: Path = DOCUMENT) -> list[tuple[int, str]]:
    """The Python examples, each with the number of lines above it."""
    text = document.read_text("utf-8")
    found = re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


def test_the_examples_run_in_one_session(folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for above, text in blocks():
        quick = re.sub(r"\b(steps|num_inference_steps)=20\b", rf"\1={STEPS}", text)
        exec(compile("\n" * above + quick, DOCUMENT, "exec"), names)  # a failure names the document's line
    for name in (
        "apple.png",
        "picture-1.png",
        "together-blend.png",
        "apple-again.png",
        "table.psd",
        "frog.png",
        "scene.ora",
    ):
        assert (folder / name).stat().st_size > 0


def test_the_example_of_the_readme_runs(folder: Path) -> None:
    ((above, text),) = blocks(README)
    quick = text.replace("path/to/an/sd15/folder", "my-sd15").replace("seed=1", f"seed=1, steps={STEPS}")
    exec(compile("\n" * above + quick, README, "exec"), {"__name__": "__main__"})
    assert read_image(folder / "bottle.png").shape == (64, 64, 4)


def test_every_public_call_is_in_an_example() -> None:
    code = "\n".join(text for _, text in blocks())
    calls = {name for module in WHOLE_MODULES for name in public(import_module(module), module)}
    for module, name in CLASSES:
        owner = getattr(import_module(module), name)
        calls |= {name for name, value in vars(owner).items() if is_call(value) and not name.startswith("_")}
    missing = sorted(name for name in calls - INNER if not re.search(rf"\b{name}\b", code))
    taken = " ".join(re.findall(r"from lib_layerdiffusion\.export(.*)", code))  # of `export`, or of a module of it
    missing += [name for name in EXPORTS if not re.search(rf"\b{name}\b", taken)]
    assert not missing


def test_every_output_is_listed() -> None:
    for page in (DOCUMENT, DOCUMENT.with_name("api.md")):
        text = page.read_text("utf-8")
        assert [output for output in OUTPUTS if f"`{output}`" not in text] == []


def test_every_option_and_setting_is_explained() -> None:
    text = DOCUMENT.read_text("utf-8")
    options = import_module("lib_layerdiffusion.options").LayerOptions
    batch = inspect.signature(import_module("lib_layerdiffusion.hosts.diffusers").LayerDiffusion.batch)
    settings = [name for name, each in batch.parameters.items() if each.kind is inspect.Parameter.KEYWORD_ONLY]
    for name in (*options().to_dict(), *settings):
        assert re.search(rf"^\|.*`{name}`.*\|.*\|.*\|$", text, re.MULTILINE), name


def public(module: Any, name: str) -> list[str]:
    """A module's own functions and classes, and what it offers by `__all__`."""
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == name and callable(value)]
    return [key for key in {*own, *getattr(module, "__all__", ())} if not key.startswith("_")]


def is_call(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, classmethod | staticmethod)
