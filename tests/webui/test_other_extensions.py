"""The script in the stand-in together with another extension's, which changes attention or prompts as some do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_layerdiffusion.shared_attention import attend
from tests.webui.families import Families, modes_of

pytestmark = pytest.mark.slow

FRAMES = {"foreground": ["RGBA"], "together": ["RGBA", "RGB", "RGB"]}


def split_at(part: float, module: Any) -> Callable[..., Tensor]:
    """Cross-attention in which the first part of the tokens sees the first half of the words, the rest the second."""

    def forward(hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        x, tokens = hidden_states, max(1, int(part * hidden_states.shape[1]))
        outputs = [
            attend(module.to_q(x), module.to_k(words), module.to_v(words), module.heads)
            for words in encoder_hidden_states.chunk(2, dim=1)
        ]
        outputs = [module.to_out[1](module.to_out[0](output)) for output in outputs]
        return torch.cat([outputs[0][:, :tokens], outputs[1][:, tokens:]], dim=1)

    return forward


def pass_through(module: Any) -> Callable[..., Tensor]:
    return type(module).forward.__get__(module)


def read_weights(module: Any) -> Callable[..., Tensor]:
    return lambda hidden_states, *_args, **_kwargs: nn.functional.linear(hidden_states, module.to_q.weight)


class Regions:
    """Installs `make(module)` in every cross-attention at `process`, and takes it out at `postprocess`."""

    def __init__(self, families: Families, first: bool) -> None:
        self.make: Callable[[Any], Callable[..., Tensor]] | None = None
        regions, webui = self, families.webui
        self.webui = webui

        class Script(webui.scripts.Script):
            def title(self) -> str:
                return "Regions"

            def show(self, is_img2img: bool) -> Any:
                return webui.scripts.AlwaysVisible

            def process(self, _p: Any, *_args: Any) -> None:
                if regions.make is not None:
                    for module in regions.modules:
                        module.forward = regions.make(module)

            def postprocess(self, _p: Any, _processed: Any, *_args: Any) -> None:
                regions.remove()

        webui.add(Script, first=first)

    @property
    def modules(self) -> list[Any]:
        return [m for name, m in self.webui.model.model.diffusion_model.named_modules() if name.endswith(".attn2")]

    def remove(self) -> None:
        for module in self.modules:
            vars(module).pop("forward", None)


@pytest.fixture(params=[True, False], ids=["theirs first", "ours first"])
def regions(families: Families, request: pytest.FixtureRequest) -> Iterator[Regions]:
    regions = Regions(families, request.param)
    yield regions
    regions.make = None
    regions.remove()


@pytest.mark.parametrize("mode", FRAMES)
def test_regions_keep_their_effect(families: Families, regions: Regions, mode: str) -> None:
    without = families.images({"mode": mode})
    answers: list[list[bytes]] = []
    for part in (0.25, 0.75):
        regions.make = lambda module, part=part: split_at(part, module)
        images = families.images({"mode": mode})
        assert modes_of(images) == FRAMES[mode]
        answers.append([image.tobytes() for image in images])
    regions.make = pass_through
    assert families.images({"mode": mode}) == without
    for frame, one, other in zip(without, *answers, strict=True):
        assert frame.tobytes() != one != other


def test_what_can_t_be_composed_is_refused(families: Families, regions: Regions) -> None:
    regions.make = read_weights
    assert "computes the UNet's attention by itself" in families.refusal({"mode": "foreground"})


@pytest.mark.parametrize("first", [True, False])
def test_and_that_another_extension_writes_is_refused(families: Families, first: bool) -> None:
    """As Regional Prompter's calculation "Latent" does, in `process`, before or after this extension's."""
    webui, added = families.webui, " AND a leaf"

    class Combine(webui.scripts.Script):
        def title(self) -> str:
            return "Combine"

        def show(self, is_img2img: bool) -> Any:
            return webui.scripts.AlwaysVisible

        def process(self, p: Any, *_args: Any) -> None:
            p.all_prompts = [f"{prompt}{added}" for prompt in p.all_prompts]

    webui.add(Combine, first=first)
    assert "AND in the prompt" in families.refusal({"mode": "together"})
    assert modes_of(families.images({"mode": "foreground"})) == ["RGBA"]
    added = ""
