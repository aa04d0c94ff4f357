"""Classes that an exported yaml names, on doubles of `ldm` that build norms and widths as it does."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import nn

from lib_layerdiffusion.embedded.a1111_checkpoint import describe
from lib_layerdiffusion.refusal import Refusal

NAME = "lib_layerdiffusion.embedded.narrow_ldm"


class Levels(nn.Module):
    """Convolutions and 32-group norms of `multiple * width` channels, from either side."""

    def __init__(self, width: int, multiples: list[int]) -> None:
        super().__init__()
        widths = [width * multiples[0], *(multiple * width for multiple in multiples[1:])]
        self.norms = nn.ModuleList(nn.GroupNorm(32, channels, eps=1e-6) for channels in widths)


class UNetModel(Levels):
    def __init__(self, model_channels: int, channel_mult: list[int], **params: Any) -> None:
        super().__init__(model_channels, channel_mult)
        self.params = params


class AutoencoderKL(Levels):
    def __init__(self, ddconfig: dict[str, Any], lossconfig: dict[str, Any], embed_dim: int) -> None:
        super().__init__(ddconfig["ch"], ddconfig["ch_mult"])
        if embed_dim == 0:
            raise ValueError("no latents")


class FrozenCLIPEmbedder:
    def __init__(self, version: str) -> None:
        self.version = version


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The module, with doubles of `ldm` and of the WebUI's list of checkpoints; `folder` is where those lie."""
    (tmp_path / "models").mkdir()
    listed = [tmp_path / "elsewhere" / "big.safetensors", tmp_path / "models" / "renamed.safetensors"]
    doubles = {
        "ldm.models.autoencoder": {"AutoencoderKL": AutoencoderKL},
        "ldm.modules.diffusionmodules.openaimodel": {"UNetModel": UNetModel},
        "ldm.modules.encoders.modules": {"FrozenCLIPEmbedder": FrozenCLIPEmbedder},
        "modules.sd_models": {"checkpoints_list": {path.name: SimpleNamespace(filename=str(path)) for path in listed}},
    }
    for name, contents in doubles.items():
        for end in range(1, name.count(".") + 2):
            parent = ".".join(name.split(".")[:end])
            if parent not in doubles:
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module, raising=False)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    module = importlib.import_module(NAME)
    module.folder = tmp_path / "models"
    yield module
    sys.modules.pop(NAME, None)


def read_norms(model: Levels) -> list[tuple[int, int]]:
    return [(norm.num_groups, norm.num_channels) for norm in model.norms]


def test_yaml_of_the_embedded_model_builds(narrow: Any, embedded_model: Path) -> None:
    params = describe(embedded_model, "own-text")["model"]["params"]
    built = {}
    for part in ("unet_config", "first_stage_config"):
        module, _, name = params[part]["target"].rpartition(".")
        assert module == NAME
        built[part] = getattr(narrow, name)(**params[part]["params"])
    assert read_norms(built["unet_config"]) == [(8, 64), (8, 64), (8, 96), (8, 96)]
    assert read_norms(built["first_stage_config"]) == [(4, 24), (4, 48), (4, 64), (4, 64)]
    assert isinstance(built["unet_config"], UNetModel)
    assert built["unet_config"].params["context_dim"] == 96
    assert {norm.eps for norm in built["unet_config"].norms} == {1e-6}


def test_other_models_get_their_own_groups(narrow: Any) -> None:
    narrow.NarrowUNet([8, 8], 2)
    with pytest.raises(ValueError, match="no latents"):
        narrow.NarrowAutoencoder([8, 8], 2, {}, lossconfig={}, embed_dim=0)
    assert nn.GroupNorm(32, 64).num_groups == 32


def test_text_encoder_is_found_next_to_a_checkpoint_of_any_name(narrow: Any) -> None:
    with pytest.raises(Refusal, match="own-text"):
        narrow.open_text_encoder("own-text")
    (narrow.folder / "own-text").mkdir()
    encoder = narrow.open_text_encoder("own-text")
    assert type(encoder) is FrozenCLIPEmbedder
    assert encoder.version == str(narrow.folder / "own-text")
