"""The diffusers host on tiny real pipelines: what it makes, what it refuses, and that it leaves no trace."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from lib_layerdiffusion import infotext, layer_diffusion
from lib_layerdiffusion.hosts.diffusers import DiffusersHost
from lib_layerdiffusion.hosts.prompts import encode_prompts
from lib_layerdiffusion.layers import pad_rgb
from lib_layerdiffusion.options import LayerOptions
from lib_layerdiffusion.planning import Facts, plan
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.session import Session
from lib_layerdiffusion.transparent_vae import Cancelled, TransparentEncoder
from lib_layerdiffusion.weights import WeightStore
from tests.tiny_models import attention_file, make_controlnet_pipeline, make_sd15_unet
from tests.webui.panel_host import parse_infotext

pytestmark = pytest.mark.slow

FAST: dict[str, Any] = {"steps": 2, "width": 64, "height": 64}


@pytest.fixture(params=["sd15", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def fingerprint(pipe: Any) -> dict[str, Any]:
    """Everything of a pipeline that has to be the same afterwards, bit for bit."""
    print_ = {"attributes": sorted(pipe.__dict__), "config": dict(pipe.config)}
    print_["scheduler"] = (type(pipe.scheduler), dict(pipe.scheduler.config))
    for part, model in pipe.components.items():
        if not isinstance(model, torch.nn.Module):
            continue
        digest = hashlib.sha256()
        for name, tensor in model.state_dict().items():
            digest.update(f"{name} {tensor.dtype}".encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
        print_[part] = digest.hexdigest()
        print_[f"{part} modules"] = [
            (name, list(module._forward_hooks), list(module._forward_pre_hooks), sorted(module.__dict__))
            for name, module in model.named_modules()
        ]
        print_[f"{part} processors"] = {name: id(processor) for name, processor in processors(model).items()}
    return print_


def processors(model: Any) -> dict[str, Any]:
    return getattr(model, "attn_processors", {})


def last_latents(ld: Any, *prompts: str, **settings: Any) -> torch.Tensor:
    """Generate and return what the pipeline sampled, before decoding."""
    seen: list[torch.Tensor] = []

    def keep(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        seen.append(kwargs["latents"].clone())
        return kwargs

    ld.batch(prompts or ["a cat"], callback_on_step_end=keep, **{**FAST, **settings})
    return seen[-1]


def plain_latents(pipe: Any, prompt: str, seed: int, steps: int = 2, size: tuple[int, int] = (64, 64)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    common = {"num_inference_steps": steps, "guidance_scale": 7.0, "negative_prompt": "", "output_type": "latent"}
    return pipe(prompt, width=size[0], height=size[1], generator=generator, **common).images


def rgba_image(width: int, height: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    image[: height // 2, :, 3] = 0
    return image


# -- what is made


@pytest.mark.parametrize("size", [(64, 64), (192, 64), (70, 101)])
def test_foreground_is_an_rgba_image_of_the_size_asked_for(pipe: Any, layer_files: Path, size: tuple[int, int]) -> None:
    with layer_diffusion(pipe, weights=layer_files, views=1) as ld:
        stack = ld("a cat", seed=3, steps=2, width=size[0], height=size[1])
    (layer,) = stack.layers
    assert (layer.role, layer.image.shape, layer.image.dtype) == ("foreground", (size[1], size[0], 4), np.uint8)
    assert stack.size == size
    assert len(np.unique(layer.image[..., 3])) > 2


def test_default_size_is_the_checkpoints_own(sd15: Any, layer_files: Path) -> None:
    with layer_diffusion(sd15, weights=layer_files, views=1) as ld:
        assert ld("a cat", steps=1).size == (64, 64)


@pytest.mark.parametrize(
    ("family", "mode"), [("sd15", "foreground"), ("sdxl", "foreground"), ("sdxl", "foreground_conv")]
)
def test_weight_scales_the_files_effect_from_none(
    family: str, mode: str, layer_files: Path, request: pytest.FixtureRequest
) -> None:
    pipe = request.getfixturevalue(family)
    plain = plain_latents(pipe, "a cat", seed=0)
    distance = {}
    for weight in (0.0, 0.5, 1.0):
        with layer_diffusion(pipe, mode, weights=layer_files, views=1, weight=weight) as ld:
            distance[weight] = float((last_latents(ld) - plain).abs().max())
    assert distance[0.0] < 1e-4
    assert 0.01 < distance[0.5] < distance[1.0]


def test_alpha_comes_from_the_decoder_on_vae_space_latents(sd15: Any, layer_files: Path) -> None:
    with layer_diffusion(sd15, weights=layer_files, views=1) as ld:
        stack = ld("a cat", seed=5, **FAST)
        latents = last_latents(ld, seeds=[5])
        image = ld.decode(latents)
    assert np.array_equal(stack.layers[0].image, image)
    from lib_layerdiffusion.transparent_vae import TransparentDecoder

    decoder = TransparentDecoder.from_state_dict(
        load_file(layer_files / "layer_sd15_vae_transparent_decoder.safetensors")
    )
    z = latents / 0.18215
    with torch.no_grad():
        pixels = (sd15.vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
        decoded = decoder(pixels, z)[0].clamp(0, 1)
    expected = (decoded[[1, 2, 3, 0]].permute(1, 2, 0) * 255).round().byte().numpy()
    assert np.abs(image.astype(int) - expected).max() <= 1


def test_together_makes_three_layers_with_their_own_prompts(
    sd15: Any, layer_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[list[str]] = []
    encode = StableDiffusionPipeline.encode_prompt

    def note(self: Any, prompt: list[str], *args: Any, **kwargs: Any) -> Any:
        prompts.append(prompt)
        return encode(self, prompt, *args, **kwargs)

    monkeypatch.setattr(StableDiffusionPipeline, "encode_prompt", note)
    options = {"foreground_prompt": "a cat", "background_prompt": "a room"}
    with layer_diffusion(sd15, "together", weights=layer_files, views=1, **options) as ld:
        stacks = ld.batch(["best", "worst"], [1, 8], **FAST)
    assert prompts == [["a cat, best", "a room, best", "best", "a cat, worst", "a room, worst", "worst"]]
    for stack in stacks:
        assert [layer.role for layer in stack.layers] == ["blend", "background", "foreground"]
        alpha = {layer.role: layer.image[..., 3].min() for layer in stack.layers}
        assert alpha["background"] == alpha["blend"] == 255 > alpha["foreground"]


def test_frames_of_a_set_see_each_other(sd15: Any, layer_files: Path) -> None:
    """Another prompt for the background changes the foreground, through the shared attention only."""
    with layer_diffusion(sd15, "together", weights=layer_files, views=1, background_prompt="a room") as ld:
        one = last_latents(ld, seeds=[1])
    with layer_diffusion(sd15, "together", weights=layer_files, views=1, background_prompt="xyz 123") as ld:
        other = last_latents(ld, seeds=[1])
    assert float((one - other)[0].abs().max()) > 1e-4


@pytest.mark.parametrize(
    ("family", "mode"), [("sd15", "foreground"), ("sd15", "together"), ("sdxl", "foreground_conv")]
)
def test_a_seed_gives_the_same_bytes_and_does_not_depend_on_the_batch(
    family: str, mode: str, layer_files: Path, request: pytest.FixtureRequest
) -> None:
    pipe = request.getfixturevalue(family)
    with layer_diffusion(pipe, mode, weights=layer_files, views=1) as ld:
        single = ld("a cat", seed=7, **FAST)
        again = ld("a cat", seed=7, **FAST)
        batch = ld.batch(["a dog", "a cat", "a bird"], [1, 7, 9], **FAST)
    for one, same, member, other in zip(single.layers, again.layers, batch[1].layers, batch[0].layers, strict=True):
        assert one.image.tobytes() == same.image.tobytes()
        assert np.abs(one.image.astype(int) - member.image).mean() < 1  # of 255: a random network enlarges rounding
        assert np.abs(one.image.astype(int) - other.image).mean() > 10


def test_views_as_needed_are_told_as_such(sd15: Any, layer_files: Path) -> None:
    """A random network's views don't agree, so it is all eight."""
    seen: list[tuple[int, int]] = []
    with layer_diffusion(sd15, weights=layer_files, views=0) as ld:
        needed = ld("a cat", seed=7, progress=lambda *report: seen.append(report), **FAST)
    with layer_diffusion(sd15, weights=layer_files) as ld:
        eight = ld("a cat", seed=7, **FAST)
    assert np.array_equal(needed.layers[0].image, eight.layers[0].image)
    assert needed.infotext.endswith("layerdiffusion_views: 0")
    assert seen[-1] == (FAST["steps"] + 8, FAST["steps"] + 8)


def test_infotext_names_what_made_the_image(sd15: Any, layer_files: Path) -> None:
    with layer_diffusion(sd15, weights=layer_files, views=2, weight=0.75) as ld:
        text = ld("a cat", "a dog", seed=7, cfg=3.5, **FAST).infotext
    assert text.splitlines()[:2] == ["a cat", "Negative prompt: a dog"]
    for part in ("Steps: 2", "Sampler: DDIM", "CFG scale: 3.5", "Seed: 7", "Size: 64x64"):
        assert part in text
    assert text.endswith(
        "Size: 64x64, layerdiffusion_mode: foreground, layerdiffusion_weight: 0.75, layerdiffusion_views: 2"
    )


def test_infotext_gives_back_every_option(sdxl: Any, layer_files: Path) -> None:
    options = {"stop_at": 0.5, "resize_mode": "fill", "blend_prompt": 'a "b", c: d', "outputs": ["blend"]}
    given = {"foreground_image": rgba_image(64, 64)}
    with layer_diffusion(sdxl, "foreground_to_blend", weights=layer_files, **options, **given) as ld:
        params = parse_infotext(ld("a cat", **FAST).infotext)
    read = infotext.read(params)
    assert LayerOptions.from_dict(read) == LayerOptions(mode="foreground_to_blend", **options)
    assert infotext.gives_image(params, "foreground_image")


@pytest.mark.parametrize(
    ("outputs", "roles"),
    [(["rgba"], ["foreground"]), (["background", "rgba"], ["background", "foreground"]), (["blend"], ["blend"])],
)
def test_a_stack_has_the_layers_that_are_asked_for(
    sd15: Any, layer_files: Path, outputs: list[str], roles: list[str]
) -> None:
    with layer_diffusion(sd15, "together", weights=layer_files, views=1) as ld:
        every = {layer.role: layer.image.tobytes() for layer in ld("a cat", **FAST).layers}
    with layer_diffusion(sd15, "together", weights=layer_files, views=1, outputs=outputs) as ld:
        layers = ld("a cat", **FAST).layers
    assert [layer.role for layer in layers] == roles
    assert all(layer.image.tobytes() == every[layer.role] for layer in layers)


def test_outputs_that_a_mode_does_not_make_are_refused(sd15: Any, layer_files: Path) -> None:
    options = {"outputs": ["background", "blend"]}
    with pytest.raises(Refusal, match="none of the outputs background, blend: choose among rgba"):
        layer_diffusion(sd15, weights=layer_files, **options).__enter__()


def test_guidance_off_runs_one_row_per_image(sd15: Any, layer_files: Path) -> None:
    rows: list[int] = []
    handle = sd15.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    with handle, layer_diffusion(sd15, "together", weights=layer_files, views=1) as ld:
        ld("a cat", cfg=1.0, **FAST)
        ld("a cat", cfg=2.0, **FAST)
    assert rows == [3, 3, 6, 6]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_after_stop_at_the_unet_is_the_plain_one(
    family: str, layer_files: Path, request: pytest.FixtureRequest
) -> None:
    pipe = request.getfixturevalue(family)
    calls: list[tuple[float, tuple[Any, ...], dict[str, Any], torch.Tensor]] = []

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((float(args[1]), args, kwargs, output[0]))

    handle = pipe.unet.register_forward_hook(note, with_kwargs=True)
    with handle, layer_diffusion(pipe, weights=layer_files, views=1, start_at=0.2, stop_at=0.5) as ld:
        ld("a cat", steps=8, width=64, height=192)
    differs = {}
    for timestep, args, kwargs, output in calls:
        with torch.no_grad():
            differs[timestep] = not torch.equal(pipe.unet(*args, **kwargs)[0], output)
    assert differs == {timestep: 0.5 * 999 <= timestep <= 0.8 * 999 for timestep in differs}
    assert len(set(differs.values())) == 2


# -- conditions


def test_concat_mode_depends_on_its_image_for_every_image_of_a_batch(sdxl: Any, layer_files: Path) -> None:
    latents = []
    for image in (rgba_image(64, 64), Image.new("RGBA", (50, 80), "red")):
        with layer_diffusion(sdxl, "foreground_to_blend", weights=layer_files, foreground_image=image) as ld:
            latents.append(last_latents(ld, "a cat", "a dog", seeds=[1, 2]))
            assert [layer.role for layer in ld("a cat", **FAST).layers] == ["blend"]
    assert (latents[0] - latents[1]).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_concat_mode_with_two_images_makes_a_transparent_foreground(sdxl: Any, layer_files: Path) -> None:
    images = {"background_image": rgba_image(64, 64), "blend_image": rgba_image(64, 64)[::-1]}
    with layer_diffusion(sdxl, "background_blend_to_foreground", weights=layer_files, views=1, **images) as ld:
        (layer,) = ld("a cat", steps=2, width=70, height=130).layers
    assert (layer.role, layer.image.shape) == ("foreground", (130, 70, 4))
    assert layer.image[..., 3].min() < 255


@pytest.mark.parametrize(
    ("mode", "given"), [("foreground_to_background", "foreground"), ("background_to_foreground", "background")]
)
def test_control_mode_depends_on_its_image(sd15: Any, control_files: Path, mode: str, given: str) -> None:
    latents = []
    for image in (rgba_image(70, 101), Image.new("RGBA", (50, 80), "red")):
        with layer_diffusion(sd15, mode, weights=control_files, views=1, **{f"{given}_image": image}) as ld:
            latents.append(last_latents(ld, "a cat", "a dog", seeds=[1, 2], steps=1, width=70, height=101))
    assert (latents[0] - latents[1]).abs().amax(dim=(1, 2, 3)).min() > 1e-3


# -- image to image and transparency in the latent


@pytest.mark.parametrize("size", [(64, 64), (70, 101)])
def test_encode_gives_mean_plus_std_times_offset_of_the_image_on_grey(
    sd15: Any, layer_files: Path, size: tuple[int, int]
) -> None:
    rgba = rgba_image(*size)
    before = fingerprint(sd15)
    with layer_diffusion(sd15, weights=layer_files, views=1) as ld:
        latent = ld.encode(rgba)
        assert ld.decode(latent).shape == (8 * latent.shape[2], 8 * latent.shape[3], 4)
    assert fingerprint(sd15) == before
    rows, columns = (-size[1] % 8, -size[0] % 8)
    rgba = np.pad(rgba, ((0, rows), (0, columns), (0, 0)), mode="edge")
    encoder = TransparentEncoder.from_state_dict(
        load_file(layer_files / "layer_sd15_vae_transparent_encoder.safetensors")
    )
    alpha = rgba[..., 3:].astype(np.float32) / 255
    to_tensor = lambda image: torch.from_numpy(image.transpose(2, 0, 1)[None].copy())  # noqa: E731
    with torch.no_grad():
        offset = 300 * encoder(to_tensor(np.concatenate([alpha, pad_rgb(rgba)], axis=2)))
        posterior = sd15.vae.encode(to_tensor((rgba[..., :3] / np.float32(127.5) - 1) * alpha)).latent_dist
    assert float(offset.std()) > 0.1
    torch.testing.assert_close(latent / 0.18215, posterior.mean + posterior.std * offset, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline])
def test_image_to_image_starts_from_transparency(kind: Any, layer_files: Path, request: pytest.FixtureRequest) -> None:
    base = request.getfixturevalue("sdxl" if "XL" in kind.__name__ else "sd15")
    pipe = kind(**base.components)
    pipe.set_progress_bar_config(disable=True)
    opaque, transparent = rgba_image(70, 101), rgba_image(70, 101)
    opaque[..., 3] = 255
    with layer_diffusion(pipe, weights=layer_files, views=1) as ld:
        results = [ld("a cat", image=image, strength=0.5, steps=4) for image in (transparent, opaque)]
        pair = ld.batch(["a cat", "a dog"], image=Image.fromarray(transparent), strength=0.5, steps=4)
        plain = ld("a cat", image=Image.new("RGB", (70, 101)), strength=0.5, steps=4)
    assert [stack.size for stack in results] == [(70, 101)] * 2
    assert not np.array_equal(results[0].layers[0].image, results[1].layers[0].image)
    assert np.abs(pair[0].layers[0].image.astype(int) - results[0].layers[0].image).max() <= 2
    assert plain.size == (64, 96)


def test_a_transparent_start_may_be_a_list_an_array_or_a_path(sd15: Any, layer_files: Path, tmp_path: Path) -> None:
    pipe = StableDiffusionImg2ImgPipeline(**sd15.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    rgba = rgba_image(64, 64)
    opaque = np.dstack([rgba[..., :3], np.full((64, 64), 255, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(opaque[..., :3]).save(tmp_path / "b.png")
    settings: dict[str, Any] = {"strength": 0.5, "steps": 2}
    with layer_diffusion(pipe, weights=layer_files, views=1) as ld:

        def make(image: Any) -> np.ndarray[Any, Any]:
            stack = ld("a cat", image=image, **settings)
            assert stack.size == (64, 64)
            return stack.layers[0].image

        single, plain = make(rgba), make(Image.fromarray(opaque[..., :3]))
        for image in ([Image.fromarray(rgba)], rgba[None] / np.float32(255), rgba / 255, [str(tmp_path / "a.png")]):
            assert np.abs(make(image).astype(int) - single).max() <= 1
        for image in (tmp_path / "b.png", opaque[..., :3], [opaque[..., :3]]):
            assert np.array_equal(make(image), plain)
        pair = ld.batch(["a cat", "a cat"], [0, 0], image=[rgba, opaque], **settings)
        assert np.abs(pair[0].layers[0].image.astype(int) - single).max() <= 1
        assert not np.array_equal(pair[1].layers[0].image, pair[0].layers[0].image)
        for image, sentence in (
            ([rgba, rgba, rgba], "3 images to start from and 1 prompts"),
            (rgba * 1.0, "must be in 0..1"),
            ([rgba, torch.zeros(1, 3, 64, 64)], "A Tensor can't be used with a mask or among"),
        ):
            with pytest.raises(Refusal, match=sentence):
                make(image)


INPAINTING = {"sd15": StableDiffusionInpaintPipeline, "sdxl": StableDiffusionXLInpaintPipeline}


def inpaint_pipe(family: str, request: pytest.FixtureRequest) -> Any:
    pipe = INPAINTING[family](**request.getfixturevalue(family).components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("alpha", ["transparent", "opaque"])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_inpainting_keeps_what_is_not_masked_byte_for_byte(
    family: str, alpha: str, layer_files: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """At a size that isn't a whole number of latent cells; black keeps, white is the layer, grey is between them."""
    pipe = inpaint_pipe(family, request)
    start = rgba_image(70, 101)
    if alpha == "opaque":
        start[..., 3] = 255
    mask = np.zeros((101, 70), np.uint8)
    mask[20:60, 10:50], mask[60:80, 10:50] = 255, 128
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with layer_diffusion(pipe, weights=layer_files, views=1) as ld:

        def make(image: Any, mask_image: Any) -> np.ndarray[Any, Any]:
            (stack,) = ld.batch(["a cat"], [3], image=image, mask_image=mask_image, strength=0.7, steps=3)
            assert stack.size == (70, 101)
            return stack.layers[0].image

        layer = make(start, mask > 0)  # sampled as with the grey mask, which pipelines take for white from the half on
        before = fingerprint(pipe)
        made = make(start, mask)
        kinds: tuple[Any, ...] = (Image.fromarray(mask), tmp_path / "mask.png", mask / 255, [np.dstack([mask] * 3)])
        for each in kinds if (family, alpha) == ("sd15", "opaque") else ():
            assert np.array_equal(make(Image.fromarray(start), each), made)
        pair = ld.batch(["a cat"] * 2, [3, 4], image=start, mask_image=[mask, mask == 255], strength=0.7, steps=3)
    assert fingerprint(pipe) == before
    assert np.array_equal(made[mask == 0], start[mask == 0])
    for share in (128, 255):
        assert not np.array_equal(made[mask == share], start[mask == share])
    assert made[mask == 255][:, 3].std() > 0  # of the layer's own alpha
    assert np.array_equal(made[mask == 255], layer[mask == 255])
    top, bottom, share = (each[mask == 128] / 255 for each in (layer, start, np.dstack([mask])))
    total = top[:, 3] * share[:, 0] + bottom[:, 3] * (1 - share[:, 0])
    colour = top[:, :3] * top[:, 3:] * share + bottom[:, :3] * bottom[:, 3:] * (1 - share)
    assert np.abs(made[mask == 128][:, 3] / 255 - total).max() < 0.003
    seen = total > 0.05
    assert np.abs(made[mask == 128][seen, :3] / 255 - (colour / np.maximum(total, 0.01)[:, None])[seen]).max() < 0.003
    assert np.abs(pair[0].layers[0].image.astype(int) - made).max() <= 2
    assert np.array_equal(pair[1].layers[0].image[mask < 255], start[mask < 255])


def test_the_start_s_transparency_reaches_the_sampling(sd15: Any, layer_files: Path) -> None:
    """Two starts that differ in their alpha alone, painted over as a whole, are sampled from other latents."""
    pipe = StableDiffusionInpaintPipeline(**sd15.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    first = rgba_image(64, 64)
    second = first.copy()
    second[..., 3] //= 2
    with layer_diffusion(pipe, weights=layer_files, views=1) as ld:
        made = [
            ld("a cat", image=image, mask_image=np.full((64, 64), 255, np.uint8), strength=0.3, steps=4).layers[0].image
            for image in (first, second)
        ]
    assert not np.array_equal(*made)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_several_layers_are_painted_into_an_opaque_start(
    family: str, layer_files: Path, request: pytest.FixtureRequest
) -> None:
    start, mask = rgba_image(64, 64), np.zeros((64, 64), np.uint8)
    start[..., 3], mask[:, 32:] = 255, 255
    mode = {"sd15": "together", "sdxl": "foreground_to_blend"}[family]
    pipe = inpaint_pipe(family, request)
    with layer_diffusion(pipe, mode, weights=layer_files, views=1, foreground_image=rgba_image(64, 64)) as ld:
        stack = ld("a cat", image=start, mask_image=mask, strength=0.5, steps=2)
    assert len(stack.layers) == {"sd15": 3, "sdxl": 1}[family]
    for layer in stack.layers:
        assert np.array_equal(layer.image[:, :32], start[:, :32])
        assert not np.array_equal(layer.image[:, 32:], start[:, 32:])


def test_what_inpainting_can_not_take_is_refused(sd15: Any, layer_files: Path) -> None:
    pipe = StableDiffusionInpaintPipeline(**sd15.components, requires_safety_checker=False)
    rgba, mask = rgba_image(64, 64), Image.new("L", (64, 64), 255)
    with layer_diffusion(pipe, weights=layer_files) as ld:
        for given, said in (
            ({"mask_image": torch.zeros(1, 1, 64, 64)}, "A Tensor can't be used with a mask"),
            ({"mask_image": [mask] * 3}, "There are 3 masks and 1 prompts"),
            ({"mask_image": mask, "image": None}, "mask_image needs an image"),
            ({"mask_image": mask, "padding_mask_crop": 8}, "crop the image and the mask yourself"),
            ({"mask_image": mask, "strength": 0.1}, "2 steps at strength 0.1 are none"),
            ({"mask_image": mask, "strength": float("nan")}, "strength must be a number from 0 to 1"),
            ({"mask_image": "nowhere.png"}, "nowhere.png"),
        ):
            with pytest.raises(Refusal, match=said):
                ld("a cat", **{"image": rgba, "steps": 2, **given})
    wide = make_sd15_unet(in_channels=9)
    nine = StableDiffusionInpaintPipeline(**sd15.components | {"unet": wide}, requires_safety_checker=False)
    with pytest.raises(Refusal, match="takes 9 channels, as inpainting and edit checkpoints do"):
        DiffusersHost(nine)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_prompts_of_any_length_weights_and_embeddings(
    family: str, layer_files: Path, request: pytest.FixtureRequest
) -> None:
    pipe = request.getfixturevalue(family)
    steps = {"steps": 1}
    with layer_diffusion(pipe, weights=layer_files, views=1) as ld:
        plain, long, other, weighed = (
            last_latents(ld, prompt, seeds=[1], **steps) for prompt in ("ab", "a" * 80, "a" * 79 + "b", "a(b:1.5)")
        )
        assert not torch.equal(long, other)
        assert not torch.equal(plain, weighed)
        made = encode_prompts(pipe, ["ab"])
        given = {"prompt_embeds": made.states} | ({} if made.pooled is None else {"pooled_prompt_embeds": made.pooled})
        torch.testing.assert_close(last_latents(ld, "unread", seeds=[1], **steps, **given), plain)
        for wrong in ({"prompt_embeds": made.states[:, :5]}, {"negative_prompt_embeds": made.states}):
            with pytest.raises(Refusal, match="give"):
                ld("ab", **{**FAST, **given, "prompt_embeds": None, **wrong})


def test_several_layers_from_a_transparent_start_are_refused(sd15: Any, layer_files: Path) -> None:
    pipe = StableDiffusionImg2ImgPipeline(**sd15.components, requires_safety_checker=False)
    with layer_diffusion(pipe, "together", weights=layer_files) as ld, pytest.raises(Refusal, match="foreground"):
        ld("a cat", image=rgba_image(64, 64), strength=0.5)


# -- no trace


@pytest.mark.parametrize("mode", ["foreground", "together", "foreground_conv", "foreground_to_blend"])
def test_the_pipeline_is_the_same_after_a_run(mode: str, layer_files: Path, request: pytest.FixtureRequest) -> None:
    pipe = request.getfixturevalue("sdxl" if mode in ("foreground_conv", "foreground_to_blend") else "sd15")
    plain_latents(pipe, "a cat", seed=0)  # what any run leaves on a pipeline
    before, plain = fingerprint(pipe), plain_latents(pipe, "a cat", seed=0)
    with layer_diffusion(pipe, mode, weights=layer_files, views=1, foreground_image=rgba_image(64, 64)) as ld:
        ld.batch(["a cat", "a dog"], **FAST)
        assert torch.equal(plain_latents(pipe, "a cat", seed=0), plain)
    assert fingerprint(pipe) == before


class Broken(Exception):
    """What goes wrong in the middle of the sampling."""


@pytest.mark.parametrize("mode", ["foreground", "together", "foreground_conv", "foreground_to_blend"])
def test_the_pipeline_is_the_same_after_an_exception(
    mode: str, layer_files: Path, request: pytest.FixtureRequest
) -> None:
    pipe = request.getfixturevalue("sdxl" if mode in ("foreground_conv", "foreground_to_blend") else "sd15")
    plain = plain_latents(pipe, "a cat", seed=0)
    before = fingerprint(pipe)

    def fail(*args: Any) -> None:
        raise Broken

    settings = {"weights": layer_files, "foreground_image": rgba_image(64, 64), "stop_at": 0.5}
    with pytest.raises(Broken), layer_diffusion(pipe, mode, **settings) as ld:
        ld("a cat", callback_on_step_end=fail, **FAST)
    assert fingerprint(pipe) == before
    handle = pipe.unet.mid_block.register_forward_hook(fail)
    with handle, pytest.raises(Broken), layer_diffusion(pipe, mode, **settings) as ld:
        ld("a cat", **FAST)
    assert fingerprint(pipe) == before
    assert torch.equal(plain_latents(pipe, "a cat", seed=0), plain)


def test_half_precision_vae_is_decoded_in_float32_and_put_back(sd15: Any, layer_files: Path) -> None:
    vae = sd15.vae
    exact = {name: value.clone() for name, value in vae.state_dict().items()}
    latents, seen = torch.randn(1, 4, 8, 8), []
    try:
        vae.half()
        before = fingerprint(sd15)
        handle = vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
        with handle:
            DiffusersHost(sd15).decode(latents)
        assert seen == [torch.float32]
        assert fingerprint(sd15) == before
    finally:
        vae.float().load_state_dict(exact)


def test_controlnet_pipeline_works_and_is_untouched(sd15: Any, layer_files: Path) -> None:
    pipe = make_controlnet_pipeline(sd15)
    settings: dict[str, Any] = {"steps": 1, "width": 64, "height": 128}
    images = [Image.new("RGB", (64, 128), colour) for colour in ("black", "white")]
    pipe("a cat", image=images[0], num_inference_steps=1, output_type="latent")
    before = fingerprint(pipe)
    for mode in ("foreground", "together"):
        with layer_diffusion(pipe, mode, weights=layer_files, views=1) as ld:
            black, white = (last_latents(ld, image=image, **settings) for image in images)
        assert not torch.equal(black, white)
    assert fingerprint(pipe) == before


# -- progress


def test_progress_counts_to_its_total(sd15: Any, layer_files: Path) -> None:
    seen: list[tuple[int, int]] = []
    with layer_diffusion(sd15, weights=layer_files, views=4) as ld:
        ld.batch(["a cat", "a dog"], progress=lambda done, total: seen.append((done, total)), **FAST)
    assert {total for _, total in seen} == {6}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[0] == (1, 6)
    assert seen[-1] == (6, 6)


@pytest.mark.parametrize("stop", [1, 3])
def test_progress_cancels_sampling_and_decoding(sd15: Any, layer_files: Path, stop: int) -> None:
    before = fingerprint(sd15)
    with layer_diffusion(sd15, weights=layer_files) as ld, pytest.raises(Cancelled):
        ld("a cat", progress=lambda done, total: done < stop, **FAST)
    assert {key: value for key, value in fingerprint(sd15).items() if "mod" in key} == {
        key: value for key, value in before.items() if "mod" in key
    }


# -- what is refused


def test_files_of_another_family_are_refused_before_anything_runs(sd15: Any, layer_files: Path, tmp_path: Path) -> None:
    ran: list[int] = []
    state = load_file(layer_files / "layer_sd15_transparent_attn.safetensors")
    wide = {name: torch.cat([value, value]) if "temporal_i.weight" in name else value for name, value in state.items()}
    save_file(wide, tmp_path / "layer_sd15_transparent_attn.safetensors")
    for name in ("layer_sd15_vae_transparent_decoder", "layer_sd15_vae_transparent_encoder"):
        (tmp_path / f"{name}.safetensors").symlink_to(layer_files / f"{name}.safetensors")
    before = fingerprint(sd15)
    handle = sd15.unet.register_forward_hook(lambda *args: ran.append(1))
    with handle, layer_diffusion(sd15, weights=tmp_path) as ld, pytest.raises(Refusal):
        ld("a cat", **FAST)
    assert not ran
    assert fingerprint(sd15) == before


def test_patches_that_the_unet_does_not_have_are_refused_before_anything_runs(
    sdxl: Any, layer_files: Path, tmp_path: Path
) -> None:
    ran: list[int] = []
    state = load_file(layer_files / "layer_xl_transparent_attn.safetensors")
    renamed = {name.replace("input_blocks.8", "input_blocks.11"): value for name, value in state.items()}
    save_file(renamed, tmp_path / "layer_xl_transparent_attn.safetensors")
    (tmp_path / "vae_transparent_decoder.safetensors").symlink_to(layer_files / "vae_transparent_decoder.safetensors")
    handle = sdxl.unet.register_forward_hook(lambda *args: ran.append(1))
    with handle, layer_diffusion(sdxl, weights=tmp_path) as ld, pytest.raises(Refusal, match=r"input_blocks\.11"):
        ld("a cat", **FAST)
    assert not ran


def test_sampling_that_gives_nan_is_refused(sd15: Any, layer_files: Path) -> None:
    def spoil(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"latents": kwargs["latents"] * float("nan")}

    with layer_diffusion(sd15, weights=layer_files) as ld, pytest.raises(Refusal, match="float32"):
        ld("a cat", callback_on_step_end=spoil, **FAST)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"prompt": 7}, "prompt"),
        ({"negative_prompt": ["a"]}, "negative prompt"),
        ({"cfg": float("nan")}, "cfg"),
        ({"cfg": -1}, "cfg"),
        ({"steps": 0}, "steps"),
        ({"steps": 1000}, "takes at most 999 steps"),
        ({"steps": 10**5000}, "takes at most 999 steps"),
        ({"steps": "4"}, "steps must be a whole number"),
        ({"strength": "much"}, "strength must be a number"),
        ({"width": 8}, "width"),
        ({"height": 64.5}, "height"),
        ({"num_images_per_prompt": 2}, "one prompt for each image"),
        ({"generator": None}, "seed"),
        ({"strenght": 0.5}, "strenght"),
    ],
)
def test_bad_requests_are_refused(sd15: Any, layer_files: Path, call: dict[str, Any], message: str) -> None:
    with layer_diffusion(sd15, weights=layer_files) as ld, pytest.raises(Refusal, match=message):
        ld(**{"prompt": "a cat", **FAST, **call})


def test_bad_batches_are_refused(sd15: Any, layer_files: Path) -> None:
    with layer_diffusion(sd15, weights=layer_files) as ld:
        for prompts, seeds in (([], None), ("a cat", None), (["a cat"], [1, 2])):
            with pytest.raises(Refusal):
                ld.batch(prompts, seeds, **FAST)


def test_bad_options_and_weights_are_refused_at_once(sd15: Any, sdxl: Any, tmp_path: Path) -> None:
    for pipe, options, message in (
        (sd15, {"mode": "foreground_conv"}, "SDXL"),
        (sdxl, {"mode": "together"}, "SD1.5"),
        (sd15, {"mode": "nonsense"}, "nonsense"),
        (sd15, {"wieght": 1}, "weight"),
        (sd15, {"weight": 3}, "weight"),
        (sd15, {"weights": tmp_path / "absent"}, "absent"),
    ):
        with pytest.raises(Refusal, match=message), layer_diffusion(pipe, **options):
            pass


def test_missing_files_are_named(sd15: Any, tmp_path: Path) -> None:
    with layer_diffusion(sd15, weights=tmp_path) as ld, pytest.raises(Refusal, match="layer_sd15_transparent_attn"):
        ld("a cat", **FAST)


def test_weights_in_the_pipelines_folder_are_found(sd15: Any, layer_files: Path, tmp_path: Path) -> None:
    sd15.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "layer_model").symlink_to(layer_files)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    with layer_diffusion(pipe, views=1) as ld:
        assert ld("a cat", **FAST).size == (64, 64)


def changed(pipe: Any, part: str, **config: Any) -> SimpleNamespace:
    """The pipeline's parts, one of them with another config."""
    parts = {"unet": pipe.unet, "vae": pipe.vae, "scheduler": pipe.scheduler}
    parts[part] = SimpleNamespace(config={**getattr(pipe, part).config, **config}, quant_conv=None)
    return SimpleNamespace(**parts)


def test_base_models_without_layer_models_are_refused(sd15: Any, sdxl: Any) -> None:
    cross = "CrossAttnDownBlock2D"
    refiner = ("DownBlock2D", cross, cross, "DownBlock2D")
    compiled = SimpleNamespace(unet=SimpleNamespace(config=sd15.unet.config, _orig_mod=None), vae=sd15.vae)
    for pipe, message in (
        (SimpleNamespace(transformer=object(), vae=sd15.vae), "no UNet"),
        (changed(sd15, "unet", in_channels=9), "9 channels"),
        (changed(sd15, "unet", use_linear_projection=True), "Stable Diffusion 2"),
        (changed(sdxl, "unet", down_block_types=refiner), "structure"),
        (changed(sdxl, "unet", addition_embed_type=None), "structure"),
        (changed(sd15, "unet", addition_embed_type="text"), "structure"),
        (changed(sd15, "vae"), "VAE"),
        (compiled, "compiled"),
    ):
        with pytest.raises(Refusal, match=message):
            DiffusersHost(pipe)


def test_fractions_are_placed_on_the_schedulers_timesteps(sd15: Any) -> None:
    assert DiffusersHost(sd15).percent_to_timestep(0.25) == 0.75 * 999
    sd15.scheduler = EulerDiscreteScheduler.from_config(sd15.scheduler.config)
    assert DiffusersHost(sd15).percent_to_timestep(1.0) == 0
    for scheduler in (
        EDMEulerScheduler(),
        EulerDiscreteScheduler.from_config(sd15.scheduler.config, timestep_type="continuous"),
    ):
        sd15.scheduler = scheduler
        with pytest.raises(Refusal, match="start at"):
            DiffusersHost(sd15).percent_to_timestep(0.5)


@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16])
def test_a_mode_s_file_is_kept_once_and_in_half_precision_where_the_pipeline_computes_in_it(
    sd15: Any, layer_files: Path, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of what store and session hold, before, while and after the hooks are in place."""
    file, store = "layer_sd15_joint", WeightStore([layer_files])
    monkeypatch.setattr(DiffusersHost, "precision", precision)

    def count(session: Session) -> int:
        units = next(network for (name, _), network in session._networks.items() if name == file).units
        tensors = [*store._loaded[(layer_files / f"{file}.safetensors").resolve()][2].values()]
        tensors += [parameter for unit in units.values() for parameter in unit.parameters()]
        return sum({part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in tensors}.values())

    with Session(DiffusersHost(sd15), store) as session:
        session.open(plan(LayerOptions(mode="together"), Facts("sd15", 64, 64)))
        before = count(session)
        with session.sampling():
            assert count(session) == before
        assert count(session) == before
    numbers = sum(value.numel() for value in attention_file(sd15.unet, 3).values())
    assert before == numbers * precision.itemsize
