"""The stand-in calls a script's hooks in the order, with the arguments and with the traps of real WebUIs."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.slow

IN_ONE_BATCH = [
    "before_process_batch",
    "after_extra_networks_activate",
    "process_batch",
    "process_before_every_sampling",
    "post_sample",
    "postprocess_batch",
    "postprocess_batch_list",
    "postprocess_image",
    "postprocess_maskoverlay",
    "postprocess_image_after_composite",
]
HOOKS = [
    "before_process",
    "process",
    "before_process_init_images",
    "before_hr",
    "on_mask_blend",
    *IN_ONE_BATCH,
    "postprocess",
]


def make_probe(webui: Any, first: bool = False, **overrides: Any) -> list[tuple[str, Any, tuple[Any, ...], dict]]:
    """Add a script that notes every call of a hook; `overrides` are functions (p, *args, **named) called with it."""
    calls: list[tuple[str, Any, tuple[Any, ...], dict[str, Any]]] = []

    def note(name: str) -> Any:
        def hook(self: Any, p: Any, *args: Any, **named: Any) -> None:
            calls.append((name, p, args, named))
            if name in overrides:
                overrides[name](p, *args, **named)

        return hook

    base = webui.scripts.Script
    about = {"title": lambda self: "Probe", "show": lambda self, is_img2img: webui.scripts.AlwaysVisible}
    webui.add(type("Probe", (base,), about | {name: note(name) for name in HOOKS}), first)
    return calls


def names_of(calls: list[Any]) -> list[str]:
    return [name for name, *_ in calls]


def find(calls: list[Any], name: str) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    return [(p, args, named) for each, p, args, named in calls if each == name]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def noise_image(mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> Image.Image:
    channels = len(mode)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], channels), dtype=np.uint8), mode)


def test_hooks_of_text_to_image_come_in_the_order_of_the_hosts(webui):
    calls = make_probe(webui)
    webui.txt2img(n_iter=2)
    assert names_of(calls) == ["before_process", "process", *IN_ONE_BATCH, *IN_ONE_BATCH, "postprocess"]


def test_shapes_of_what_hooks_are_given(webui):
    calls = make_probe(webui)
    webui.txt2img(batch_size=2, n_iter=2, width=128)
    parser = webui.module("prompt_parser")
    for number, (_, _, named) in enumerate(find(calls, "process_batch")):
        assert named["batch_number"] == number
        assert named["prompts"] == ["red apple"] * 2
        assert named["seeds"] == [1 + 2 * number, 2 + 2 * number]
    for _, _, named in find(calls, "process_before_every_sampling"):
        assert set(named) == {"x", "noise", "c", "uc"}
        assert named["x"].shape == named["noise"].shape == (2, 4, 8, 16)
        assert isinstance(named["c"], parser.MulticondLearnedConditioning)
        assert len(named["c"].batch) == len(named["uc"]) == 2
    for p, (args,), _ in find(calls, "post_sample"):
        assert args.samples.shape == (2, 4, 8, 16)
        assert p.sampler is not None
    for _, _, named in find(calls, "postprocess_batch"):
        assert named["images"].shape == (2, 3, 64, 128)
        assert 0 <= named["images"].min() <= named["images"].max() <= 1
    for _, (args,), _ in find(calls, "postprocess_batch_list"):
        assert [image.shape for image in args.images] == [(3, 64, 128)] * 2
    indexes = [args.index for _, (args,), _ in find(calls, "postprocess_image_after_composite")]
    assert indexes == [0, 1, 2, 3]
    assert [args.index for _, (args,), _ in find(calls, "postprocess_maskoverlay")] == [0, 1, 0, 1]
    (_, (processed,), _) = find(calls, "postprocess")[0]
    assert len(processed.images) == len(processed.infotexts) == 4


@pytest.mark.parametrize(("name", "times"), [("Forge", 2), ("A1111", 1)])
@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_hires_fix_samples_again_and_hands_on_decoded_images(webui, name, times, upscaler):
    webui.act_like(name)
    samplers: list[Any] = []
    calls = make_probe(webui, process_before_every_sampling=lambda p, **named: samplers.append(p.sampler))
    processed = webui.txt2img(enable_hr=True, hr_upscaler=upscaler, hr_scale=1.5, steps=2)
    order = names_of(calls)
    assert order.count("process_before_every_sampling") == 1 + times
    first = order.index("process_before_every_sampling")
    assert order[first + 1 : first + 3 + times] == [
        "after_extra_networks_activate",
        "before_hr",
        *["process_before_every_sampling"] * times,
    ]
    assert samplers[0] is not samplers[-1]
    assert find(calls, "process_before_every_sampling")[-1][2]["x"].shape == (1, 4, 12, 12)
    (p, (args,), _) = find(calls, "post_sample")[0]
    assert args.samples.already_decoded
    assert [sample.shape for sample in args.samples] == [(3, 96, 96)]
    assert p.sampler is None
    assert processed.images[0].size == (96, 96)


def test_image_to_image_encodes_after_process(webui):
    calls = make_probe(webui)
    webui.img2img(init_images=[noise_image()], batch_size=2)
    assert names_of(calls) == [
        "before_process",
        "process",
        "before_process_init_images",
        *IN_ONE_BATCH,
        *IN_ONE_BATCH[-3:],
        "postprocess",
    ]
    ((p, (about,), _),) = find(calls, "before_process_init_images")
    assert set(about) == {"crop_region", "image_mask"}
    ((_, _, named),) = find(calls, "process_before_every_sampling")
    assert named["x"] is p.init_latent
    assert torch.equal(named["x"][0] > 0, named["x"][1] > 0) or named["x"].shape[0] == 2


@pytest.mark.parametrize("only_masked", [False, True])
def test_inpainting_blends_at_each_step_and_pastes_back(webui, only_masked):
    calls = make_probe(webui)
    start, mask = noise_image(size=(96, 96)), Image.new("L", (96, 96))
    mask.paste(255, (40, 40, 72, 72))
    settings = {"inpaint_full_res": only_masked, "mask_blur": 0, "width": 96, "height": 96, "steps": 4}
    processed = webui.img2img(init_images=[start], mask=mask, denoising_strength=1.0, **settings)
    finals = [args.is_final_blend for _, (args,), _ in find(calls, "on_mask_blend")]
    assert finals == [False] * (len(finals) - 1) + [True]
    assert len(finals) >= 4
    (_, (overlay,), _) = find(calls, "postprocess_maskoverlay")[0]
    assert overlay.mask_for_overlay.mode == "L"
    assert overlay.overlay_image.mode == "RGBA"
    box = (32, 32) if only_masked else (96, 96)
    p = processed.p
    assert (p.paste_to[2:] if p.paste_to else p.mask_for_overlay.size) == box
    difference = np.abs(pixels(processed.images[0]) - pixels(start)).max(-1)
    assert difference[:40].max() <= 1
    assert difference[44:68, 44:68].mean() > 10


def test_like_a1111_there_is_less(webui):
    webui.act_like("A1111")
    calls = make_probe(webui)
    processed = webui.img2img(init_images=[noise_image()])
    assert "before_process_init_images" not in names_of(calls)
    for attribute in ("latents_after_sampling", "pixels_after_sampling"):
        assert not hasattr(processed.p, attribute)
    assert all(not hasattr(args, "index") for _, (args,), _ in find(calls, "postprocess_image"))


def test_an_exception_in_a_hook_is_logged_and_the_job_continues(webui, caplog):
    def fail(p: Any, *args: Any, **named: Any) -> None:
        raise ValueError("spilled milk")

    calls = make_probe(webui, **dict.fromkeys(HOOKS, fail))
    with caplog.at_level(logging.ERROR):
        processed = webui.txt2img()
    assert len(processed.images) == 1
    assert "Error running process_batch" in caplog.text
    assert "spilled milk" in caplog.text
    assert names_of(calls)[-1] == "postprocess"


def test_an_exception_in_sampling_skips_the_rest(webui):
    def break_sampler(p: Any, **named: Any) -> None:
        def sample(*args: Any, **more: Any) -> None:
            raise ValueError("spilled milk")

        p.sampler.sample = sample

    calls = make_probe(webui, process_before_every_sampling=break_sampler)
    with pytest.raises(ValueError, match="spilled milk"):
        webui.txt2img()
    assert names_of(calls)[-1] == "process_before_every_sampling"


def test_settings_of_a_job_come_after_before_process_and_only_known_ones_are_put_back(webui):
    opts, seen = webui.shared.opts, []
    opts.set("jpeg_quality", 70)
    make_probe(
        webui,
        before_process=lambda p, *args: (
            seen.append(opts.jpeg_quality) or p.override_settings.update(webp_lossless=True)
        ),
        process=lambda p, *args: seen.append((opts.jpeg_quality, opts.webp_lossless)),
    )
    webui.txt2img(override_settings={"jpeg_quality": 33})
    assert seen == [70, (33, True)]
    assert opts.jpeg_quality == 70
    assert opts.webp_lossless is True  # never set before, so it stays: a quirk of WebUIs


def test_the_same_seed_gives_the_same_image_wherever_it_is_in_a_batch(webui):
    for sampler in ("Euler", "Euler a", "DPM++ 2M Karras", "DDIM"):
        one = webui.txt2img(seed=5, sampler_name=sampler)
        again = webui.txt2img(seed=5, sampler_name=sampler)
        batch = webui.txt2img(seed=4, batch_size=2, sampler_name=sampler)
        assert one.images[0].tobytes() == again.images[0].tobytes()
        assert np.abs(pixels(one.images[0]) - pixels(batch.images[1])).max() <= 1
        assert batch.images[0].tobytes() != batch.images[1].tobytes()


def test_it_samples_what_diffusers_samples(webui, embedded_pipeline):
    calls = make_probe(webui)
    webui.txt2img(prompt="frog", negative_prompt="pizza", sampler_name="DDIM", steps=5, cfg_scale=4.0)
    ((_, _, named),) = find(calls, "process_before_every_sampling")
    expected = embedded_pipeline(
        "frog",
        negative_prompt="pizza",
        latents=named["x"],
        num_inference_steps=5,
        guidance_scale=4.0,
        output_type="latent",
    ).images
    ((_, (args,), _),) = find(calls, "post_sample")
    assert torch.allclose(args.samples, expected, atol=1e-4)


def unet_rows(webui: Any, **fields: Any) -> list[torch.Tensor]:
    """The conditions [rows, tokens, C] of each call of the UNet."""
    seen: list[torch.Tensor] = []
    unet = webui.model.model.diffusion_model

    def note(module: Any, args: Any, named: dict[str, Any]) -> None:
        seen.append(named["encoder_hidden_states"])

    with unet.register_forward_pre_hook(note, with_kwargs=True):
        webui.txt2img(steps=1, **fields)
    return seen


@pytest.mark.parametrize(("name", "rows"), [("Forge", 1), ("A1111", 2)])
def test_cfg_1(webui, name, rows):
    webui.act_like(name)
    calls = make_probe(webui)
    assert [len(each) for each in unet_rows(webui, cfg_scale=1)] == [rows]
    ((_, _, named),) = find(calls, "process_before_every_sampling")
    assert (named["uc"] is None) == (name == "Forge")


@pytest.mark.parametrize(("name", "uncond"), [("Forge", slice(0, 2)), ("A1111", slice(2, 4))])
def test_rows_are_ordered_as_in_the_host(webui, name, uncond):
    webui.act_like(name)
    (rows,) = unet_rows(webui, prompt=["frog", "pizza"], negative_prompt="star", batch_size=2)
    expected = webui.model.get_learned_conditioning(["star", "star"])
    assert torch.allclose(rows[uncond], expected, atol=1e-5)


def test_prompts_of_different_length_take_two_calls(webui):
    shapes = [tuple(each.shape) for each in unet_rows(webui, prompt="frog " * 45)]
    assert [shape[:2] for shape in shapes] == [(1, 77), (1, 154)]


@pytest.mark.parametrize(("name", "rows"), [("Forge", "xyxy"), ("A1111", "xxyy")])
def test_prompts_with_and_have_several_parts(webui, name, rows):
    webui.act_like(name)
    calls = make_probe(webui)
    prompts = ["frog AND pizza :0.5", "star AND glow"]
    (conds,) = unet_rows(webui, prompt=prompts, batch_size=2)
    ((_, _, named),) = find(calls, "process_before_every_sampling")
    assert [[part.weight for part in parts] for parts in named["c"].batch] == [[1.0, 0.5], [1.0, 1.0]]
    parts = conds[2:] if name == "Forge" else conds[:4]
    own = webui.model.get_learned_conditioning(["frog ", " pizza", "star ", " glow"])
    order = [0, 2, 1, 3] if rows == "xyxy" else [0, 1, 2, 3]
    assert torch.allclose(parts, own[order], atol=1e-5)


def test_interrupt_and_skip(webui):
    state = webui.shared.state
    webui.shared.opts.set("samples_save", True)

    def after(step: int, act: Any) -> None:
        callbacks = webui.module("script_callbacks")
        callbacks.callback_map["cfg_denoiser"] = [lambda params: act() if params.sampling_step == step else None]

    after(1, state.interrupt)
    processed = webui.txt2img(n_iter=3, do_not_save_samples=False)
    assert len(processed.images) == 1
    assert not hasattr(processed.images[0], "already_saved_as")
    after(1, state.skip)
    assert len(webui.txt2img(n_iter=3).images) == 3


def test_styles_and_tags(webui):
    webui.shared.prompt_styles.styles["sky"] = webui.module("styles").PromptStyle("sky", "{prompt}, blue sky", "rain")
    calls = make_probe(webui)
    networks, active = webui.module("extra_networks"), []

    class Lora(networks.ExtraNetwork):
        def activate(self, p: Any, params_list: Any) -> None:
            active.append([params.items for params in params_list])

        def deactivate(self, p: Any) -> None:
            active.append("off")

    networks.register_extra_network(Lora("lora"))
    processed = webui.txt2img(prompt="frog <lora:shiny:0.8>", styles=["sky"])
    ((_, _, named),) = find(calls, "process_batch")
    assert named["prompts"] == ["frog , blue sky"]
    assert active == [[["shiny", "0.8"]], "off"]
    assert processed.infotexts[0].startswith("frog <lora:shiny:0.8>, blue sky\nNegative prompt: rain\n")


def test_infotexts_are_written_and_read(webui):
    utils = webui.module("infotext_utils")
    values = {"Odd": 'a "b", c: d\n\u00e4', "List": ["one", "two"], "Size of": "3x4", "None": None}
    values["Function"] = lambda index, prompt_text, **_: f"{prompt_text} {index}"
    make_probe(webui, process=lambda p, *args: p.extra_generation_params.update(values))
    processed = webui.txt2img(prompt="frog\nsits", negative_prompt="a: b", batch_size=2)
    params = utils.parse_generation_parameters(processed.infotexts[1])
    expected = {"Prompt": "frog\nsits", "Negative prompt": "a: b", "Odd": 'a "b", c: d\n\u00e4', "List": "two"}
    expected |= {"Function": "frog\nsits 1", "Seed": "2", "Size-1": "64", "Size of-1": "3", "Size of-2": "4"}
    assert expected.items() <= params.items()
    assert "None" not in params


@pytest.mark.parametrize("option", ["Alpha", "None", "RGB"])
def test_saving_writes_into_alpha_as_forge_does(webui, option, tmp_path):
    def make_transparent(p: Any, args: Any) -> None:
        args.image = Image.new("RGBA", args.image.size, (1, 2, 3, 7))

    make_probe(webui, postprocess_image_after_composite=make_transparent)
    webui.shared.opts.set("stealth_pnginfo_option", option)
    settings = {"do_not_save_samples": False, "outpath_samples": str(tmp_path)}
    if option == "RGB":
        with pytest.raises(ValueError, match="too many values"):
            webui.txt2img(**settings)
        return
    processed = webui.txt2img(**settings)
    (path,) = tmp_path.iterdir()
    assert processed.images[0].already_saved_as == str(path)
    saved = Image.open(path)
    assert saved.info["parameters"] == processed.infotexts[0]
    alpha = np.asarray(saved)[..., 3]
    assert alpha.min() >= 254 if option == "Alpha" else (alpha == 7).all()


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_other_formats_drop_alpha_but_keep_the_infotext(webui, kind, tmp_path):
    images = webui.module("images")
    path, _ = images.save_image(
        Image.new("RGBA", (8, 8)), str(tmp_path), "", 1, "frog", kind, info="frog\nSteps: 1, \u00e4"
    )
    image = Image.open(path)
    assert image.mode == "RGB"
    assert images.read_info_from_image(image)[0] == "frog\nSteps: 1, \u00e4"


def test_a_grid_comes_first_if_it_is_wanted(webui, tmp_path):
    processed = webui.txt2img(batch_size=2, do_not_save_grid=False, outpath_grids=str(tmp_path))
    assert processed.index_of_first_image == 1
    assert len(processed.images) == len(processed.infotexts) == 3
    assert processed.images[0].size == (128, 64)


def test_another_family_can_be_loaded(webui, sdxl):
    webui.load(sdxl)
    assert webui.shared.sd_model.is_sdxl
    calls = make_probe(webui)
    image = webui.txt2img(prompt="a, b", steps=2).images[0]
    assert image.size == (64, 64)
    ((_, _, named),) = find(calls, "process_before_every_sampling")
    assert set(named["c"].batch[0][0].schedules[0].cond) == {"crossattn", "vector"}
    tokens, _, pooled, _ = sdxl.encode_prompt("a, b", device="cpu", do_classifier_free_guidance=False)
    cond = webui.model.get_learned_conditioning(["a, b"])
    assert torch.allclose(cond["crossattn"], tokens, atol=1e-5)
    assert torch.allclose(cond["vector"][:, :-6], pooled, atol=1e-5)


def test_stopping_leaves_nothing(embedded_pipeline, tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from lib_layerdiffusion.stand_in.launch import install_modules, stop; install_modules();"
        "import modules.rng; assert modules.__file__; stop(); assert 'modules' not in sys.modules\n"
        "try:\n    import modules\nexcept ModuleNotFoundError: print('gone')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "gone\n"


def test_freed_memory_is_given_back_after_each_job(webui, monkeypatch):
    """After one that fails, too."""
    calls: list[None] = []
    monkeypatch.setattr(webui.module("devices"), "torch_gc", lambda: calls.append(None))
    webui.txt2img()
    with pytest.raises(TypeError):
        webui.txt2img(steps="many")
    assert len(calls) == 2
