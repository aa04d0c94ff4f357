"""What users of LayerDiffusion ask for again and again, as sixteen tests; each docstring begins with its number.

Those that need no WebUI lie elsewhere and are named here:
4 no attention over more than 65535 sequences: tests/core/test_shared_attention.py,
  test_frames_attend_without_a_call_for_each_token
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from lib_layerdiffusion import infotext
from lib_layerdiffusion.modes import MODES
from lib_layerdiffusion.stand_in.host import StandInHost
from lib_layerdiffusion.transparent_vae import TransparentDecoder
from lib_layerdiffusion.webui import status
from lib_layerdiffusion.weights import WEIGHTS
from tests import seeded
from tests.webui.families import disc, given, modes_of
from tests.webui.jobs import decode_image, encode_image

pytestmark = pytest.mark.slow

FAST = {"views": 1}
ROOT = Path(__file__).parents[2]


def alpha_of(image: Image.Image) -> Any:
    assert image.mode == "RGBA"
    return np.asarray(image)[..., 3].astype(int)


def colours_of(image: Image.Image) -> Any:
    return np.asarray(image)[..., :3].astype(int)


@pytest.mark.parametrize("size", [(1366, 768), (520, 520), (1000, 1000)])
def test_any_size(families, size):
    """1. Sizes that are not multiples of 64."""
    families.load("sdxl")
    (image,) = families.images(FAST, width=size[0], height=size[1], steps=1)
    assert (image.mode, image.size) == ("RGBA", size)
    assert np.ptp(alpha_of(image)) > 2


def test_a_size_that_is_set_by_another_extension(families):
    """1. The WebUI or an extension may round the size, or choose another, after ours has read it."""
    base, always = families.webui.scripts.Script, families.webui.scripts.AlwaysVisible

    def process(_self: Any, p: Any, *_args: Any) -> None:
        if getattr(p, "layerdiffusion", None):
            p.width, p.height = 128, 64

    about = {"title": lambda self: "Sizes", "show": lambda self, is_img2img: always, "process": process}
    families.webui.add(type("Sizes", (base,), about), True)
    (image,) = families.images(FAST, width=100, height=68)
    assert (image.mode, image.size) == ("RGBA", (128, 64))
    assert "Size: 128x64," in image.info["parameters"]


def test_any_size_of_the_second_pass(families):
    """1. 832x1216, enlarged by 1.5."""
    families.load("sdxl")
    hires = {"enable_hr": True, "hr_upscaler": "Latent", "hr_scale": 1.5, "denoising_strength": 0.5}
    (image,) = families.images(FAST, width=832, height=1216, steps=1, **hires)
    assert (image.mode, image.size) == ("RGBA", (1248, 1824))


@pytest.mark.parametrize("host", ["Forge", "A1111"])
@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "avif"])
def test_a_file_with_alpha_in_any_sample_format(families, tmp_path, kind, host):
    """2. Whatever the format of the samples, a file with real alpha is written, and its infotext parses."""
    webui = families.webui
    webui.act_like(host)
    options = webui.shared.opts
    options.set("samples_format", kind)
    options.set("outdir_txt2img_samples", str(tmp_path))
    (image,) = families.images(FAST, save_images=True)
    (path,) = tmp_path.iterdir()
    saved = Image.open(path)
    assert np.array_equal(alpha_of(saved), alpha_of(image))
    assert np.ptp(alpha_of(saved)) > 2
    parsed = webui.module("infotext_utils").parse_generation_parameters(saved.info["parameters"])
    assert infotext.read(parsed)["mode"] == "foreground"
    assert options.samples_format == kind
    options.set("samples_format", "png")


def test_the_nth_image_belongs_to_the_nth_seed(families):
    """3. Batch size 4 x batch count 3; a batch of 1 in the mode that makes three layers is a whole set."""
    answer = families.ask(FAST, batch_size=4, n_iter=3, seed=100)
    images = [decode_image(image) for image in answer.json()["images"]]
    assert modes_of(images) == ["RGBA"] * 12
    for index in (0, 5, 11):
        (alone,) = families.images(FAST, seed=100 + index)
        assert np.abs(np.asarray(alone).astype(int) - np.asarray(images[index])).max() <= 2
        assert f"Seed: {100 + index}," in images[index].info["parameters"]
    assert len({image.tobytes() for image in images}) == 12
    assert modes_of(families.images({"mode": "together", **FAST})) == ["RGBA", "RGB", "RGB"]


def test_families_take_turns(families):
    """5. SDXL, SD1.5 and SDXL in one process: the third run is as the first.

    That each is decoded by its own decoder: test_failures.py, test_each_family_is_decoded_by_its_own_decoder.
    """
    made = []
    for family in ("sdxl", "sd15", "sdxl"):
        families.load(family)
        made.append(families.images(FAST))
    assert made[0] == made[2]
    assert made[0] != made[1]


def test_an_exception_in_sampling_leaves_the_weights(families, monkeypatch):
    """5. The fixture compares weights and hooks bit for bit, and the next image is as it would have been."""
    before = families.images(FAST)
    unet = families.webui.model.model.diffusion_model
    calls: list[None] = []

    def fail(*args: Any) -> None:
        calls.append(None)
        if len(calls) == 2:
            raise RuntimeError("spilled milk")

    with unet.register_forward_pre_hook(fail):
        answer = families.ask(FAST, steps=4)
    assert answer.status_code == 500
    assert "spilled milk" in answer.json()["errors"]
    assert families.images(FAST) == before


@pytest.mark.parametrize(
    ("layers", "kind"),
    [
        ("object", "RGB"),
        ("object", "data URL"),
        ("object in a list", "RGBA"),
        ("twelve", "RGBA"),
        ("nones", "RGB"),
        ("short", "RGBA"),
    ],
)
def test_every_form_of_an_api_request(families, layers, kind):
    """6. One object, the twelve positional values, Nones, a short list; images with and without alpha."""
    mode = next(row for row in MODES if row.name == "background_blend_to_foreground")
    families.load(mode.family)
    background = given("RGB" if kind == "RGB" else "RGBA")
    blend = given("RGB", seed=5)
    if kind == "data URL":
        background = f"data:image/png;base64,{background}"
    named = {"mode": mode.name, "background_image": background, "blend_image": blend}
    listed: list[Any] = [True, mode.alias, 1.0, 1.0, None, background, blend]
    sent = {
        "object": named,
        "object in a list": [named],
        "twelve": [*listed, "Crop and Resize", False, "", "", ""],
        "nones": [*listed[:2], None, None, *listed[4:], None, None, None, None, None],
        "short": listed,
    }[layers]
    images = families.images(sent)
    assert images[0].mode == "RGBA"
    assert images[0].tobytes() == families.images(named)[0].tobytes()


def add_hook(families: Any, name: str, act: Any, first: bool = True) -> None:
    """Another extension, before or after ours, with one hook, which leaves ordinary jobs alone."""
    base, always = families.webui.scripts.Script, families.webui.scripts.AlwaysVisible
    about = {"title": lambda self: name, "show": lambda self, is_img2img: always}
    about[name] = lambda self, p, args, *rest: act(args) if getattr(p, "layerdiffusion", None) else None
    families.webui.add(type("Other", (base,), about), first)


def paint_red(place: Any) -> None:
    place.image = Image.new("RGB", place.image.size, (250, 10, 10))


@pytest.mark.parametrize("host", ["Forge", "A1111"])
@pytest.mark.parametrize(
    ("hook", "first"),
    [
        ("postprocess_image", True),
        ("postprocess_image_after_composite", True),
        ("postprocess_image_after_composite", False),
        ("postprocess", True),  # ours is the last script, so none comes after it
    ],
)
def test_what_other_extensions_do_to_the_picture(families, host, hook, first):
    """7. Their colours reach the transparent image, whose alpha stays."""
    families.webui.act_like(host)
    (plain,) = families.images(FAST)

    def act(place: Any) -> None:
        if hook == "postprocess":
            place.images[0] = Image.new("RGB", place.images[0].size, (250, 10, 10))
        else:
            paint_red(place)

    add_hook(families, hook, act, first)
    (image,) = families.images(FAST)
    assert np.array_equal(alpha_of(image), alpha_of(plain))
    assert colours_of(image)[..., 0].mean() > colours_of(plain)[..., 0].mean() + 20
    if hook == "postprocess":
        assert (colours_of(image) == (250, 10, 10)).all()


@pytest.mark.parametrize("first", [True, False])
def test_an_upscaler_of_another_extension(families, first):
    """7. An image that is enlarged after all: alpha is enlarged with it."""

    def act(place: Any) -> None:
        place.image = place.image.resize((128, 128))

    add_hook(families, "postprocess_image_after_composite", act, first)
    (image,) = families.images(FAST)
    assert (image.mode, image.size) == ("RGBA", (128, 128))
    assert np.ptp(alpha_of(image)) > 2


def test_a_long_prompt_with_additional_prompts(families):
    """8. 200 tokens with the mode that makes three layers, and a prompt for each; also when only one has one."""
    prompts = {"foreground_prompt": "x, " * 50, "background_prompt": "", "blend_prompt": "y"}
    long = "a b c d e, " * 33
    made = families.images({"mode": "together", **prompts, **FAST}, prompt=long, batch_size=2)
    assert modes_of(made) == ["RGBA", "RGB", "RGB"] * 2


@pytest.mark.parametrize("start", ["RGB", "RGBA", "empty", "LA", "P"])
def test_any_init_image(families, start):
    """9. With alpha, without, empty, or of a kind that cameras and editors make."""
    image = Image.new("RGBA", (64, 64)) if start == "empty" else disc().convert(start)
    made = families.images(FAST, "img2img", init_images=[encode_image(image)], denoising_strength=0.5)
    assert modes_of(made) == ["RGBA"]


def test_a_batch_of_different_init_images(families):
    """9. Each image of the batch starts from its own."""
    starts = [given(seed=seed) for seed in (1, 2)]
    both = families.webui.img2img(
        FAST,
        init_images=[disc(seed=1), disc(seed=2)],
        batch_size=2,
        seed=[1, 1],
        denoising_strength=0.5,
        steps=2,
        prompt="a cat",
    ).images
    for image, start in zip(both, starts, strict=True):
        (alone,) = families.images(FAST, "img2img", init_images=[start], denoising_strength=0.5)
        assert np.abs(np.asarray(image).astype(int) - np.asarray(alone)).max() <= 2
    assert both[0].tobytes() != both[1].tobytes()


@pytest.mark.parametrize("start", ["RGB", "RGBA"])
def test_inpainting_only_the_masked_part(families, start):
    """9. What lies outside the mask stays as it was."""
    image = disc(start, size=(96, 96))
    mask = Image.new("L", image.size)
    mask.paste(255, (30, 30, 62, 62))
    body = {"init_images": [encode_image(image)], "mask": encode_image(mask), "inpaint_full_res": True, "mask_blur": 0}
    (made,) = families.images(FAST, "img2img", denoising_strength=1.0, **body)
    assert (made.mode, made.size) == ("RGBA", (96, 96))
    if start == "RGBA":
        outside = np.asarray(mask) == 0
        assert np.abs(alpha_of(made) - alpha_of(image))[outside].max() <= 1
        seen = outside & (alpha_of(image) > 0)
        assert np.abs(colours_of(made) - colours_of(image))[seen].max() <= 2


def test_an_unknown_webui(families, monkeypatch):
    """10. No adapter fits: the panel says so in a sentence, and so does a request; plain images are made."""
    monkeypatch.delattr(families.webui.shared, "layerdiffusion_host")
    assert "LayerDiffusion doesn&#x27;t know this WebUI yet" in status.describe(families.webui.extension, "foreground")
    assert "doesn't know this WebUI yet" in families.refusal(FAST)
    assert modes_of(families.images()) == ["RGB"]


def test_a_lora_that_is_changed_between_runs(families):
    """11. On, off, changed: the layers' effect is there each time, and gone when they are switched off."""
    networks = families.webui.module("extra_networks")
    weight = families.webui.model.model.diffusion_model.conv_out.weight
    own = weight.data.clone()

    class Network(networks.ExtraNetwork):
        def activate(self, p: Any, params_list: Any) -> None:
            weight.data = own * (1 + sum(float(params.positional[1]) for params in params_list))

        def deactivate(self, p: Any) -> None:
            weight.data = own

    networks.register_extra_network(Network("lora"))
    prompts = ["a cat <lora:style:0.5>", "a cat", "a cat <lora:style:0.1>"]
    plain = [families.images(prompt=prompt)[0] for prompt in prompts]
    layers = [families.images(FAST, prompt=prompt)[0] for prompt in prompts]
    assert len({image.tobytes() for image in layers}) == 3
    for prompt, ordinary, transparent in zip(prompts, plain, layers, strict=True):
        assert not np.array_equal(colours_of(ordinary), colours_of(transparent))
        assert families.images({"enabled": False}, prompt=prompt)[0].tobytes() == ordinary.tobytes()


def test_every_key_of_a_file_takes_effect(families, every_file, tmp_path):
    """12. As many layers of the model are changed as the file has keys for; a key that fits nowhere is refused."""
    families.load("sdxl")
    state = load_file(every_file / "layer_xl_transparent_attn.safetensors")
    unet = families.webui.model.model.diffusion_model
    counts: list[int] = []

    def count(*args: Any) -> None:
        counts.append(sum(bool(module._forward_hooks) for module in unet.modules() if module is not unet))

    with unet.register_forward_pre_hook(count):
        families.images(FAST)
    assert set(counts) == {len({name.partition("::")[0] for name in state})}
    odd = {"diffusion_model.input_blocks.9.9.weight::diff::0": torch.zeros(4, 4)}
    for path in every_file.iterdir():
        if path.stem != "layer_xl_transparent_attn":
            (tmp_path / path.name).symlink_to(path.resolve())
    save_file(state | odd, tmp_path / "layer_xl_transparent_attn.safetensors")
    families.webui.shared.cmd_opts.layerdiffusion_dir = str(tmp_path)
    assert "input_blocks.9.9" in families.refusal(FAST)
    families.webui.shared.cmd_opts.layerdiffusion_dir = str(every_file)


def test_without_diffusers():
    """13. All but the diffusers host: the core and its tests of a generation, all hosts of WebUIs, exports."""
    code = """if True:
        import sys
        sys.modules.update(dict.fromkeys(("diffusers", "transformers", "gradio")))
        import importlib
        for name in ("session", "hosts", "hosts.forge", "weights", "export.psd", "export.ora", "doctor", "cli"):
            importlib.import_module(f"lib_layerdiffusion.{name}")
        import pytest
        words = ["-q", "-p", "no:cacheprovider", "-k", "not package", "tests/core/test_session.py"]
        sys.exit(pytest.main(words))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_offline_without_the_files(families, tmp_path, monkeypatch):
    """14. The sentence has address, folder and size, and comes at once."""
    families.load("sdxl")
    monkeypatch.setattr(StandInHost, "why_not", lambda *_: "")  # as if the tiny UNet had the published width
    families.webui.shared.cmd_opts.layerdiffusion_dir = str(tmp_path)
    sentence = families.refusal(FAST)
    file = WEIGHTS["layer_xl_transparent_attn"]
    for part in (file.url(), str(tmp_path), "743 MB"):
        assert part in sentence


def test_an_infotext_comes_back(families):
    """15. What an image's text says is what was asked for, and nothing empty; it makes the same image again.

    The panel's pasting and the axes of X/Y/Z by themselves: test_infotext.py, test_panel.py and test_xyz.py.
    """
    webui = families.webui
    layers = {"mode": "together", "weight": 0.7, "stop_at": 0.8, "foreground_prompt": "a: b, c", "views": 2}
    first = families.images(layers, steps=4)[0]
    text = first.info["parameters"]
    parsed = webui.module("infotext_utils").parse_generation_parameters(text)
    ours = {name: value for name, value in parsed.items() if name.startswith(infotext.PREFIX)}
    assert all(ours.values())
    assert ": ," not in text
    read = infotext.read(parsed)
    assert {name: read[name] for name in layers} == layers
    options = {name: value for name, value in read.items() if name not in ("enabled",) and value is not None}
    assert families.images(options, steps=4)[0].tobytes() == first.tobytes()


def test_an_axis_of_xyz(families):
    """15. Each image of the plot is made with its value."""
    from lib_layerdiffusion.webui import xyz

    axis = next(each for each in xyz.AXES if each.option == "weight")
    made = []
    for value in ("0.2", "1"):
        p = families.webui.job("txt2img", FAST, prompt="a cat", steps=2)
        setattr(p, xyz.ATTRIBUTE, {axis.option: xyz.read(axis, value)})
        made.append(families.webui.run(p))
    assert "layerdiffusion_weight: 0.2" in made[0].infotexts[0]
    assert "layerdiffusion_weight" not in made[1].infotexts[0]
    assert made[1].images[0].tobytes() == families.images(FAST)[0].tobytes()
    assert made[0].images[0].tobytes() != made[1].images[0].tobytes()


class Operations(TorchDispatchMode):
    """Notes every operation with the largest number of dimensions that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.dimensions: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [each.ndim for each in args if isinstance(each, torch.Tensor)]
        name = func.overloadpacket.__name__
        self.dimensions[name] = max([self.dimensions.get(name, 0), *given])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("views", [2, 4, 8])
def test_the_median_works_on_every_device(views):
    """16. No median, and no sort, of a tensor of more than four dimensions: some devices can't."""
    decoder = seeded.fill(TransparentDecoder(widths=(8,) * 7), 1, gain=2)
    with Operations() as operations:
        decoder.decode(torch.rand(1, 3, 64, 64), torch.randn(1, 4, 8, 8), views=views)
    assert ("minimum" in operations.dimensions) == (views > 2)  # of two views it is the mean
    limited = ("median", "nanmedian", "sort", "kthvalue", "topk", "minimum", "maximum")
    assert max(operations.dimensions.get(name, 0) for name in limited) <= 4
