"""Names and arguments that users' code calls: what is here may grow, but nothing of it may go or change its place."""

from __future__ import annotations

import importlib
import inspect

import pytest

SIGNATURES = {
    "lib_layerdiffusion.layer_diffusion": "pipe, mode, weights, **options",
    "lib_layerdiffusion.layer_scene": "pipe, prompt",
    "lib_layerdiffusion.cli.run": "",
    "lib_layerdiffusion.injection.posterior": "vae, fn",
    "lib_layerdiffusion.injection.shared_attention": "unet, units",
    "lib_layerdiffusion.injection.side_path": "unet, patches, strength, concat",
    "lib_layerdiffusion.layers.Layer": "name, image, role, offset",
    "lib_layerdiffusion.layers.LayerStack": "layers, size, infotext",
    "lib_layerdiffusion.layers.composite": "layers, background",
    "lib_layerdiffusion.layers.fit": "image, size, mode",
    "lib_layerdiffusion.layers.pad_rgb": "image",
    "lib_layerdiffusion.options.LayerOptions.from_dict": "values",
    "lib_layerdiffusion.options.LayerOptions.from_positional": "values",
    "lib_layerdiffusion.shared_attention.AttentionSharingUnit": "attention, frames, control, rank",
    "lib_layerdiffusion.shared_attention.AttentionSharingUnit.forward": "self, h, context",
    "lib_layerdiffusion.shared_attention.ControlEncoder.forward": "self, image",
    "lib_layerdiffusion.transparent_vae.TransparentDecoder": "widths, head_dim, groups",
    "lib_layerdiffusion.transparent_vae.TransparentDecoder.decode": "self, pixel, latent, views",
    "lib_layerdiffusion.transparent_vae.TransparentDecoder.forward": "self, pixel, latent",
    "lib_layerdiffusion.transparent_vae.TransparentEncoder.forward": "self, x",
    "lib_layerdiffusion.weights.WeightStore": "folders, download_to, offline, endpoint",
}


def find(path: str) -> object:
    """The object at a dotted path, whose module is its longest part that can be imported."""
    names = path.split(".")
    for length in range(len(names) - 1, 0, -1):
        try:
            found: object = importlib.import_module(".".join(names[:length]))
        except ModuleNotFoundError:
            continue
        for name in names[length:]:
            found = getattr(found, name)
        return found
    raise AssertionError(path)


@pytest.mark.parametrize(("path", "wanted"), SIGNATURES.items(), ids=list(SIGNATURES))
def test_arguments_keep_their_names_and_places(path: str, wanted: str) -> None:
    parameters = inspect.signature(find(path)).parameters.values()  # pyright: ignore[reportArgumentType]
    names = [f"**{each.name}" if each.kind is each.VAR_KEYWORD else each.name for each in parameters]
    assert ", ".join(names[: len(wanted.split(", "))] if wanted else names) == wanted
    assert all(
        each.default is not each.empty or each.kind is each.VAR_KEYWORD
        for each in list(parameters)[len(wanted.split(", ")) if wanted else 0 :]
    ), "a new argument needs a default"


def test_networks_are_named_where_they_were() -> None:
    from lib_layerdiffusion import transparent_vae, views

    assert transparent_vae.Cancelled is views.Cancelled
    assert transparent_vae.Progress is views.Progress
