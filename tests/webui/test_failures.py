"""What fails elsewhere when users do these things: here it works, or is refused with a sentence that names the cure.

Never an ordinary image as if nothing had been: and after every test both models' weights, hooks and plain images are as
before (the fixture `families` sees to it).
"""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch

from lib_layerdiffusion.modes import MODES
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.shared_attention import AttentionSharingUnit
from lib_layerdiffusion.transparent_vae import TransparentDecoder
from tests.webui.families import disc, given, modes_of
from tests.webui.jobs import encode_image

pytestmark = pytest.mark.slow

ALIASES = {(mode.family, mode.name): mode.alias for mode in MODES}


def test_together_with_a_batch_of_one_gives_a_whole_set(families):
    assert modes_of(families.images({"mode": "together", "views": 1})) == ["RGBA", "RGB", "RGB"]


def test_each_image_of_a_set_names_its_layer(families):
    """By a list: Forge Classic writes an answer's parameters as JSON, and a function in them ended the request."""
    answer = families.ask({"mode": "together", "views": 1}, batch_size=2, n_iter=2)
    info, layers = json.loads(answer.json()["info"]), ["foreground", "background", "blend"] * 4
    assert info["extra_generation_params"]["layerdiffusion_layer"] == layers
    for layer, text in zip(layers, info["infotexts"], strict=True):
        assert f"layerdiffusion_layer: {layer}," in text


def test_together_as_a_list_with_a_batch_of_one_is_told_the_right_number(families):
    assert "use 3" in families.refusal([True, ALIASES["sd15", "together"]])
    assert modes_of(families.images([True, ALIASES["sd15", "together"]], batch_size=3)) == ["RGBA", "RGB", "RGB", "RGB"]


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.inputs], ids=lambda mode: mode.name)
def test_a_forgotten_image_is_asked_for(families, mode):
    families.load(mode.family)
    sentence = families.refusal({"mode": mode.name})
    assert all(f"{role}_image" in sentence for role in mode.inputs)


@pytest.mark.parametrize(
    "mode", [mode for mode in MODES if mode.family == "sdxl" and mode.inputs], ids=lambda m: m.name
)
def test_a_batch_of_two_from_a_given_image_on_sdxl(families, mode):
    families.load("sdxl")
    images = {f"{role}_image": given(seed=index) for index, role in enumerate(mode.inputs)}
    layers = {"mode": mode.name, "views": 1, **images}
    both = families.images(layers, batch_size=2)
    assert modes_of(both) == ["RGB" if mode.transparent_frame is None else "RGBA"] * 2
    (second,) = families.images(layers, seed=2)
    assert np.abs(np.asarray(both[1]).astype(int) - np.asarray(second)).max() <= 1
    changed = layers | {f"{mode.inputs[0]}_image": given("RGB", seed=9)}
    assert families.images(changed)[0].tobytes() != both[0].tobytes()


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_size_that_is_not_a_multiple_of_64(families, family):
    families.load(family)
    (image,) = families.images({"views": 1}, width=264, height=200)
    assert (image.mode, image.size) == ("RGBA", (264, 200))


@pytest.mark.parametrize(
    ("family", "other", "mode"),
    [
        ("sdxl", "sd15", "together"),
        ("sd15", "sdxl", "foreground_conv"),
        ("sd15", "sdxl", "foreground_to_blend"),
    ],
)
@pytest.mark.parametrize("after_layers", [False, True])
def test_a_mode_of_the_other_family_is_refused_by_name(families, family, other, mode, after_layers):
    families.load(family)
    if after_layers:
        families.images({"views": 1})
    sentence = families.refusal([True, ALIASES[other, mode]])
    assert {"sd15": "load an SD1.5", "sdxl": "load an SDXL"}[other] in sentence


@pytest.mark.parametrize("after_layers", [False, True])
def test_the_other_family_s_method_for_a_foreground_means_the_loaded_model_s(families, after_layers):
    if after_layers:
        families.images({"views": 1})
    (own,) = families.images({"outputs": ["rgba"]})
    assert own.mode == "RGBA"
    theirs = families.images([True, ALIASES["sdxl", "foreground"]])
    assert theirs[0].tobytes() == own.tobytes()


def test_the_other_family_s_file_under_this_one_s_name_is_refused(families, every_file, tmp_path):
    for path in every_file.iterdir():
        (tmp_path / path.name).symlink_to(path.resolve())
    wrong = tmp_path / "layer_xl_transparent_attn.safetensors"
    wrong.unlink()
    wrong.symlink_to((every_file / "layer_sd15_transparent_attn.safetensors").resolve())
    families.load("sdxl")
    families.webui.shared.cmd_opts.layerdiffusion_dir = str(tmp_path)
    sentence = families.refusal({})
    assert "layer_xl_transparent_attn.safetensors is the wrong file" in sentence
    assert "like layer_sd15_transparent_attn" in sentence
    families.webui.shared.cmd_opts.layerdiffusion_dir = str(every_file)


class Lora:
    """A user's LoRA on all projections of an attention layer, merged into the weights as WebUIs do, by a prompt's tag.

    As in Forge it stays merged until a prompt without the tag comes.
    """

    def __init__(self, webui: Any) -> None:
        networks = webui.module("extra_networks")

        class Network(networks.ExtraNetwork):
            def activate(network, p: Any, params_list: Any) -> None:
                self.set(p.sd_model.model.diffusion_model, bool(params_list))

            def deactivate(network, p: Any) -> None:
                """Kept, see above."""

        self.merged: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        networks.register_extra_network(Network("lora"))

    def set(self, unet: Any, wanted: bool) -> None:
        while self.merged:
            parameter, before = self.merged.pop()
            parameter.data = before
        for name, parameter in unet.named_parameters():
            if wanted and ".attn" in name and name.endswith("weight"):
                self.merged.append((parameter, parameter.data))
                parameter.data = parameter.data + 0.3 * torch.linspace(-1, 1, parameter.numel()).view_as(parameter)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_user_s_lora_on_the_same_attention_layers(families, family):
    families.load(family)
    lora, tagged = Lora(families.webui), "a cat <lora:style:1>"
    plain, plain_lora = families.images(), families.images(prompt=tagged)
    layers = families.images({"views": 1})
    with_lora = families.images({"views": 1}, prompt=tagged)
    assert with_lora[0].mode == "RGBA"
    assert with_lora[0].tobytes() != layers[0].tobytes()
    assert families.images({"views": 1}, prompt=tagged) == with_lora
    assert families.images({"views": 1}) == layers
    assert families.images(prompt=tagged) == plain_lora
    assert families.images() == plain
    lora.set(families.webui.model.model.diffusion_model, True)  # the same, as if it were the checkpoint's own
    families.webui.module("extra_networks").extra_network_registry.clear()
    merged = families.images({"views": 1})
    lora.set(families.webui.model.model.diffusion_model, False)
    # patches are joined with weights that stay and added to those that change, which rounds otherwise
    assert np.abs(np.subtract(merged[0], with_lora[0], dtype=int)).max() <= 1


def test_a_user_s_lora_in_the_first_plain_image_after_layers(families):
    Lora(families.webui)
    before = families.images(prompt="a cat <lora:style:1>")
    families.images({"views": 1})
    assert families.images(prompt="a cat <lora:style:1>") == before
    assert families.images() != before


@pytest.fixture
def refine(families):
    """Let another model stand in for the loaded one after the first step, as WebUIs do for a refiner."""
    callbacks = families.webui.module("script_callbacks")

    def switch(channels: int) -> None:
        def put_in_place(params: Any) -> None:
            if params.sampling_step == 1:
                families.webui.load(other, "refiner")
                params.denoiser.model = families.webui.shared.sd_model

        other = copy.deepcopy(families.pipes["sd15"])
        other.unet.register_to_config(in_channels=channels)
        callbacks.callback_map["cfg_denoiser"].insert(0, put_in_place)
        own.append(put_in_place)

    own: list[Any] = []
    yield switch
    for callback in own:
        callbacks.callback_map["cfg_denoiser"].remove(callback)
    families.load("sd15")


@pytest.mark.parametrize("mode", ["foreground", "together"])
def test_a_refiner_with_a_unet_of_its_own_makes_layers_too(families, refine, mode):
    families.load("sd15")
    without = families.images({"mode": mode, "views": 1}, steps=3)
    refine(channels=4)  # a copy of the checkpoint, so that nothing may change
    refined = families.images({"mode": mode, "views": 1}, steps=3)
    assert families.webui.shared.sd_model.sd_checkpoint_info.title == "refiner"
    assert [image.tobytes() for image in refined] == [image.tobytes() for image in without]


@pytest.mark.parametrize("go_on", [False, True])
def test_what_turns_out_within_the_network_only(families, monkeypatch, go_on):
    """As when another extension cuts the image into parts there."""
    monkeypatch.setitem(families.webui.shared.opts.data, "layerdiffusion_go_on", go_on)
    (plain,) = families.images()

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise Refusal("Another extension cuts the image into parts: switch that off.")

    monkeypatch.setattr(AttentionSharingUnit, "begin", refuse)
    if go_on:
        (image,) = families.images({})
        assert image.tobytes() == plain.tobytes()
    else:
        assert "into parts" in families.refusal({})


@pytest.mark.parametrize("go_on", [False, True])
def test_a_refiner_that_does_not_fit(families, refine, monkeypatch, go_on):
    monkeypatch.setitem(families.webui.shared.opts.data, "layerdiffusion_go_on", go_on)
    refine(channels=9)
    if go_on:
        assert modes_of(families.images({"views": 1}, steps=3)) == ["RGB"]
    else:
        assert "9" in families.refusal({"views": 1}, steps=3)


@pytest.mark.parametrize("mode", ["foreground", "together"])
def test_an_extension_that_plays_the_hooks_on_copies(families, mode):
    """As ADetailer does: one copy of the job is ended at the first picture, another begun at the last."""

    def play(_script: Any, p: Any, *_others: Any) -> None:
        if p.batch_index == 0:
            p.scripts.postprocess(copy.copy(p), families.webui.module("processing").Processed(p, []))
        if p.batch_index == p.batch_size - 1:
            another = copy.copy(p)
            p.scripts.before_process(another)
            p.scripts.process(another)

    without = families.images({"mode": mode, "views": 1}, batch_size=2)
    base, always = families.webui.scripts.Script, families.webui.scripts.AlwaysVisible
    about = {"title": lambda _: "copies", "show": lambda *_: always, "postprocess_image": play}
    families.webui.add(type("Copies", (base,), about), True)
    images = families.images({"mode": mode, "views": 1}, batch_size=2)
    assert [image.tobytes() for image in images] == [image.tobytes() for image in without]
    assert modes_of(images) == modes_of(without)


def test_each_family_is_decoded_by_its_own_decoder(families, monkeypatch):
    used: list[float] = []
    decode = TransparentDecoder.decode

    def note(decoder: TransparentDecoder, *args: Any, **named: Any) -> Any:
        used.append(sum(float(value.double().sum()) for value in decoder.parameters()))
        return decode(decoder, *args, **named)

    monkeypatch.setattr(TransparentDecoder, "decode", note)
    images = []
    for family in ("sdxl", "sd15", "sdxl", "sd15"):
        families.load(family)
        images += families.images({"views": 1})
    store = families.webui.extension.store()
    files = [store.load(name) for name in ("vae_transparent_decoder", "layer_sd15_vae_transparent_decoder")]
    expected = [sum(float(value.double().sum()) for value in file.values()) for file in files]
    assert expected[0] != expected[1]
    assert used == pytest.approx(expected * 2)
    assert images[:2] == images[2:]


def test_a_prompt_of_200_tokens_with_short_additional_prompts(families):
    prompts = {"foreground_prompt": "b", "background_prompt": "c", "blend_prompt": "d"}
    layers = {"mode": "together", "views": 1, **prompts}
    images = families.images(layers, prompt="a b c d, " * 40)
    assert modes_of(images) == ["RGBA", "RGB", "RGB"]
    assert families.images(layers, prompt="a b c d, " * 39 + "a b c z, ") != images


# -- what its API and its other ways do wrong


def test_images_sent_as_text_are_used(families):
    families.load("sdxl")
    first = [families.images({"mode": "foreground_to_blend", "foreground_image": given(seed=seed)}) for seed in (1, 2)]
    assert first[0] != first[1]


def test_a_method_that_does_not_exist_is_refused(families):
    assert "There is no layer mode 'Generate all'" in families.refusal([True, "Generate all"])


def test_hires_fix_is_transparent_in_the_larger_size(families):
    for upscaler in ("Latent", "Lanczos"):
        (image,) = families.images({"views": 1}, enable_hr=True, hr_upscaler=upscaler, hr_scale=1.5)
        assert (image.mode, image.size) == ("RGBA", (96, 96))


def test_an_init_image_without_alpha_is_accepted(families):
    start = encode_image(disc("RGB"))
    (image,) = families.images({"views": 1}, "img2img", init_images=[start], denoising_strength=0.5)
    assert image.mode == "RGBA"
