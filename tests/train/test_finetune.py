"""Fine-tuning of a frozen UNet: the files fit the product's own readers and do there what they did in the training."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_layerdiffusion.hosts.diffusers import DiffusersHost, layer_diffusion
from lib_layerdiffusion.injection import shared_attention, side_path
from lib_layerdiffusion.modes import MODES as MODE_TABLE
from lib_layerdiffusion.modes import Mode, find_mode
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.shared_attention import ATTENTION_ORDER
from lib_layerdiffusion.train import finetune
from lib_layerdiffusion.train.autoencoder import adjust
from lib_layerdiffusion.train.bank import Bank
from lib_layerdiffusion.train.base import denoising_loss, draw_noise
from lib_layerdiffusion.train.dataset import (
    Augmentation,
    Sprite,
    TransparentBatch,
    augment,
    read_sprites,
    step_rng,
)
from lib_layerdiffusion.train.finetune import (
    FinetuneConfig,
    FinetunedUnet,
    check_form,
    draw_sets,
    encode_captions,
    encode_sets,
    find_known,
    say,
    train,
)
from lib_layerdiffusion.train.scenes import Placement, SceneSource, compose, make_condition
from lib_layerdiffusion.transparent_vae import TransparentEncoder
from lib_layerdiffusion.weights import WeightStore
from lib_layerdiffusion.weights.attention_units import read_units
from lib_layerdiffusion.weights.patches import DiffPatch, parse_patches
from tests.train.test_shards import discs, write_shards

pytestmark = pytest.mark.slow

TINY = FinetuneConfig(
    size=64, rank=2, control_width=8, views_per_caption=2, steps=2, batch=2, log_every=1, grid_every=0
)
MODES = ["foreground", "together", "background_to_foreground"]


def make(folder: Path, mode: str, form: Any = "attention_sharing") -> tuple[DiffusersHost, FinetunedUnet]:
    """A loaded pipeline and trained parameters that are far from their start."""
    pipeline: Any = DiffusionPipeline.from_pretrained(folder)
    host = DiffusersHost(pipeline)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    raw = FinetunedUnet(replace(TINY, mode=mode, form=form), find_mode(mode, host.family), host, scheduler)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in raw.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return host, raw


def predict(host: DiffusersHost, frames: int) -> Tensor:
    torch.manual_seed(4)
    width = host.unet.config.cross_attention_dim
    added = None
    if host.family == "sdxl":
        added = {"text_embeds": torch.randn(frames, 16), "time_ids": torch.full((frames, 6), 64.0)}
    noisy, context = torch.randn(frames, 4, 8, 8), torch.randn(frames, 77, width)
    with torch.no_grad():
        return host.unet(noisy, torch.tensor(500), context, added_cond_kwargs=added).sample


@contextmanager
def attention_file(host: DiffusersHost, state: dict[str, Tensor], image: Tensor) -> Iterator[None]:
    names = [str(host.parameter_name(name)) for name in ATTENTION_ORDER]
    units, control = read_units(state, [host.unet.get_submodule(name) for name in names])
    signal = control(image) if control is not None else None
    with shared_attention(host.unet, dict(zip(names, units, strict=True)), control_signal=signal):
        yield


@pytest.mark.parametrize("mode", MODES)
def test_attention_file_does_what_the_trained_module_did(sd15_folder: Path, mode: str) -> None:
    host, raw = make(sd15_folder, mode)
    frames = len(raw.mode.frames)
    plain = predict(host, frames)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad(), raw.injected(image):
        trained = predict(host, frames)
    with torch.no_grad(), attention_file(host, raw.published_state(raw.state_dict()), image):
        read = predict(host, frames)
    assert (trained - plain).abs().max() > 1e-3
    assert torch.allclose(read, trained, atol=1e-5)
    assert predict(host, frames).equal(plain)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_patch_file_does_what_the_trained_module_did(family: str, request: pytest.FixtureRequest) -> None:
    host, raw = make(request.getfixturevalue(f"{family}_folder"), "foreground", "lora")
    plain = predict(host, 2)
    with raw.injected(None):
        trained = predict(host, 2)
    patches = parse_patches(raw.published_state(raw.state_dict()))
    projections = [name for name, _ in host.unet.named_parameters() if ".attn" in name and name.endswith("weight")]
    assert len(patches) == len(projections)
    with side_path(host.unet, {str(host.parameter_name(name)): patch for name, patch in patches.items()}, 1.0):
        read = predict(host, 2)
    assert (trained - plain).abs().max() > 1e-3
    assert torch.allclose(read, trained, atol=1e-5)


@pytest.mark.parametrize(("mode", "form"), [*((mode, "attention_sharing") for mode in MODES), ("foreground", "lora")])
def test_gradient_reaches_the_new_parameters_only(sd15_folder: Path, mode: str, form: str) -> None:
    host, raw = make(sd15_folder, mode, form)
    before = {name: value.clone() for name, value in host.unet.state_dict().items()}
    frames = len(raw.mode.frames)
    optimizer = torch.optim.SGD(raw.parameters(), 0.1)
    values: list[float] = []
    clean, context = torch.randn(2 * frames, 4, 8, 8), torch.randn(2 * frames, 77, 24)
    control, known = None, None
    if raw.mode.inputs:
        control, known = torch.rand(2, 3, 64, 64), torch.rand(2 * frames, 1, 8, 8)
    for _ in range(2):
        drawn = draw_noise(clean.shape, raw.scheduler, 5.0, step_rng(0, 0), frames)
        loss = raw(clean, context, None, control, known, **drawn)
        optimizer.zero_grad()
        loss.backward()
        values.append(loss.item())
        optimizer.step()
    idle = {name for name, parameter in raw.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    allowed = ("temporal_q", "temporal_k") if frames == 1 else ("temporal_k.bias",)
    # below 1 x 1 latents, self-attention over a single token has no use for its queries and keys
    assert all(any(part in name for part in (*allowed, "to_q_lora", "to_k_lora")) for name in idle if "units" in name)
    assert values[1] < values[0]
    assert all(parameter.grad is None for parameter in host.unet.parameters())
    assert all(value.equal(before[name]) for name, value in host.unet.state_dict().items())


def make_source(archive: Path, count: int, behind: list[Sprite] | None = None) -> SceneSource:
    return SceneSource(read_sprites(archive, 64)[:count], behind or [])


def encode(
    host: DiffusersHost, encoder: TransparentEncoder, source: SceneSource, mode: Mode, config: FinetuneConfig
) -> tuple[dict[str, Tensor], list[list[str]]]:
    """The first file of a bank."""
    bank = Bank(Path("nowhere"), len(source.captions) * config.views_per_caption)
    return encode_sets(host, encoder, mode, draw_sets(source, mode, config, bank, 0))


def test_transparent_frame_is_adjusted_and_others_keep_their_deviation(
    archive: Path, sd15_folder: Path, encoder_file: Path
) -> None:
    host = DiffusersHost(DiffusionPipeline.from_pretrained(sd15_folder))
    encoder = TransparentEncoder.from_state_dict(load_file(encoder_file))
    green = Sprite("lawn.png", "lawn", np.full((64, 64, 4), (0, 255, 0, 255), np.uint8))
    still = Placement(flip=False, scale=(1, 1), rotate=0, shadow=0)
    config = replace(TINY, placement=still, views_per_caption=1)
    bank, said = encode(host, encoder, make_source(archive, 2, [green]), find_mode("together", "sd15"), config)
    assert [texts[:2] for texts in said] == [["red disc", "lawn"], ["blue disc", "lawn"]]
    assert all(texts[2] == texts[3] and "lawn" in texts[2] for texts in said)
    assert {name: value.shape for name, value in bank.items()} == dict.fromkeys(("mean", "std"), (2, 3, 4, 8, 8))
    assert [bool(bank["std"][:, frame].any()) for frame in range(3)] == [False, True, True]
    for row, sprite in enumerate(read_sprites(archive, 64)[:2]):
        scene = compose(sprite, np.zeros((64, 64, 3), np.float32), "", still, step_rng(0, 0))
        mean, adjusted = adjust(host.vae, encoder, TransparentBatch.of([scene.foreground]))
        assert not torch.allclose(mean, adjusted, atol=1e-2)
        assert torch.allclose(bank["mean"][row, 0], adjusted[0], atol=1e-4)


def test_foreground_alone_is_placed_by_the_augmentation(archive: Path, sd15_folder: Path, encoder_file: Path) -> None:
    host = DiffusersHost(DiffusionPipeline.from_pretrained(sd15_folder))
    encoder = TransparentEncoder.from_state_dict(load_file(encoder_file))
    still = Augmentation(flip=False, scale=(1, 1), rotate=0, shift=0)
    config = replace(TINY, augmentation=still, views_per_caption=1)
    source = make_source(archive, 1)
    bank, said = encode(host, encoder, source, find_mode("foreground", "sd15"), config)
    placed = augment(source.sprites[0].premultiplied, 64, still, step_rng(0, 0))  # nothing in it is random
    adjusted = adjust(host.vae, encoder, TransparentBatch.of([placed]))[1]
    assert torch.allclose(bank["mean"][0], adjusted, atol=1e-4)
    assert said == [["red disc", "red disc"]]


def test_control_image_is_the_input_of_the_mode(archive: Path, sd15_folder: Path, encoder_file: Path) -> None:
    host = DiffusersHost(DiffusionPipeline.from_pretrained(sd15_folder))
    encoder = TransparentEncoder.from_state_dict(load_file(encoder_file))
    config = replace(TINY, views_per_caption=1, placement=Placement(shadow=0))
    mode = find_mode("background_to_foreground", "sd15")
    bank, _ = encode(host, encoder, make_source(archive, 1), mode, config)
    assert bank["control"].shape == (1, 3, 64, 64)
    with torch.no_grad():
        background = host.vae.encode(bank["control"]).latent_dist.mean
        blend = bank["mean"][0, 1]
    # in the corners the blend shows the background; the middle is the motif's
    assert torch.allclose(blend[:, 0, 0], background[0, :, 0, 0], atol=0.2)
    known = bank["known"]
    assert known.shape == (1, 2, 1, 8, 8)
    assert not known[0, 0].any()  # nothing of the foreground is given
    assert known[0, 1, 0, 0, 0] == 1
    assert known[0, 1, 0, 4, 4] < 0.1


@pytest.mark.parametrize(
    ("mode", "family", "role", "wanted"),
    [
        ("background_to_foreground", "sd15", "blend", [1, 0, 0]),
        ("background_to_foreground", "sd15", "foreground", [0, 0, 0]),
        ("foreground_to_background", "sd15", "blend", [0, 0, 1]),
        ("foreground_to_background", "sd15", "background", [0, 0, 0]),
        ("foreground_blend_to_background", "sdxl", "background", [1, 0, 0]),
        ("background_blend_to_foreground", "sdxl", "foreground", [0, 0, 0]),
    ],
)
def test_what_a_frame_shows_of_what_is_given(mode: str, family: str, role: str, wanted: list[int]) -> None:
    alpha = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3)
    assert find_known(alpha, role, find_mode(mode, family)).flatten().tolist() == wanted


def test_emphasis_weighs_each_place() -> None:
    unet = lambda noisy, *_, **__: SimpleNamespace(sample=torch.zeros_like(noisy))  # noqa: E731
    scheduler = DDIMScheduler(prediction_type="epsilon")
    noise = torch.ones(1, 4, 2, 2)
    emphasis = torch.tensor([[1.0, 1.0], [1.0, 5.0]]).reshape(1, 1, 2, 2)
    given = {"noise": noise, "timesteps": torch.tensor([3]), "weight": torch.tensor([2.0])}
    loss = denoising_loss(unet, noise, noise, scheduler, emphasis=emphasis, **given)  # type: ignore[arg-type]
    assert loss.item() == 2 * (1 + 1 + 1 + 5) / 4


def test_frames_are_told_their_own_captions_or_the_blends_or_nothing() -> None:
    rng = step_rng(0, 0)
    said = [tuple(say(["frog", "sea", "frog, sea", "frog, sea"], 0.2, 0.3, rng)) for _ in range(2000)]
    own, blend, none = ("frog", "sea", "frog, sea"), ("frog, sea",) * 3, ("",) * 3
    assert set(said) == {own, blend, none}
    assert said.count(none) / 2000 == pytest.approx(0.2, abs=0.03)
    assert said.count(blend) / 2000 == pytest.approx(0.3, abs=0.03)
    assert {tuple(say(["frog", "frog, sea"], 0.0, 1.0, rng)) for _ in range(9)} == {("frog",)}


@pytest.mark.parametrize("mode", ["together", "background_to_foreground"])
def test_training_starts_from_an_earlier_file(sd15_folder: Path, mode: str, tmp_path: Path) -> None:
    host, raw = make(sd15_folder, mode)
    state = {name: value.clone() for name, value in raw.published_state(raw.state_dict()).items()}
    save_file(state, tmp_path / "earlier.safetensors")
    config = raw.config
    other = FinetunedUnet(config, raw.mode, host, raw.scheduler)
    other.start_from(tmp_path / "earlier.safetensors")
    theirs = other.state_dict()
    assert all(value.equal(theirs[name]) for name, value in raw.state_dict().items())
    wider = FinetunedUnet(replace(config, rank=3), raw.mode, host, raw.scheduler)
    with pytest.raises(Refusal, match="other tensors"):
        wider.start_from(tmp_path / "earlier.safetensors")


@pytest.mark.parametrize("mode", ["together", "background_to_foreground"])
def test_the_foreground_among_frames_starts_from_one_alone(sd15_folder: Path, mode: str, tmp_path: Path) -> None:
    """Its low-rank products alone: what the other frames and the attention between them have stays."""
    host, alone = make(sd15_folder, "foreground")
    save_file(alone.published_state(alone.state_dict()), tmp_path / "alone.safetensors")
    _, raw = make(sd15_folder, mode)
    before = {name: value.clone() for name, value in raw.state_dict().items()}
    raw.start_foreground_from(tmp_path / "alone.safetensors")
    frame = raw.mode.frames.index("foreground")
    theirs = alone.state_dict()
    for name, value in raw.state_dict().items():
        mine = f"_lora.{frame}." in name
        assert value.equal(theirs[name.replace(f"_lora.{frame}.", "_lora.0.")] if mine else before[name])
    with pytest.raises(Refusal, match="drop start_foreground"):
        alone.start_foreground_from(tmp_path / "alone.safetensors")
    other = FinetunedUnet(replace(raw.config, rank=3), raw.mode, host, raw.scheduler)
    with pytest.raises(Refusal, match="same rank"):
        other.start_foreground_from(tmp_path / "alone.safetensors")


def test_control_signal_is_as_wide_as_asked(sd15_folder: Path) -> None:
    host, raw = make(sd15_folder, "background_to_foreground")
    assert raw.control is not None
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    assert {signal.shape[1] for signal in raw.control(image).values()} == {TINY.control_width}
    full = FinetunedUnet(replace(raw.config, control_width=256), raw.mode, host, raw.scheduler)
    sizes = [sum(value.numel() for value in model.state_dict().values()) for model in (raw, full)]
    assert sizes[0] * 10 < sizes[1]
    assert full.control is not None
    assert [full.control.blocks_0[i].out_channels for i in (0, 4, 8, 12)] == [32, 64, 128, 256]  # as published


def test_contexts_of_sdxl_come_with_their_pooled_texts(sdxl_folder: Path) -> None:
    pipeline: Any = DiffusionPipeline.from_pretrained(sdxl_folder)
    encoded, texts = encode_captions(pipeline, ["red disc", "blue disc"])
    own = pipeline.encode_prompt("blue disc", do_classifier_free_guidance=False)
    assert texts == ["red disc", "blue disc"]
    assert encoded["context"].shape == (2, 77, 32)
    assert torch.allclose(encoded["context"][1], own[0][0])
    assert torch.allclose(encoded["text_embeds"][1], own[2][0])
    assert not torch.allclose(encoded["context"][0], own[0][0])


@pytest.mark.parametrize(
    ("form", "mode", "family", "sentence"),
    [
        ("attention_sharing", "foreground", "sdxl", 'form = "lora"'),
        ("lora", "together", "sd15", "more than low-rank patches"),
    ],
)
def test_form_that_the_mode_cannot_have_is_refused(form: str, mode: str, family: str, sentence: str) -> None:
    with pytest.raises(Refusal, match=sentence):
        check_form(form, find_mode(mode, family))


def test_training_writes_the_file_of_the_mode_and_shows_samples(
    archive: Path, sd15_folder: Path, encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "SAMPLES", 1)
    config = replace(TINY, data=archive, base=sd15_folder, encoder=encoder_file, grid_every=2)
    train(config, tmp_path / "run")
    row = find_mode("foreground", "sd15")
    (file,) = (tmp_path / "run" / "model").iterdir()
    assert file.name == f"{row.file}.safetensors"
    host = DiffusersHost(DiffusionPipeline.from_pretrained(sd15_folder))
    attentions = [host.unet.get_submodule(str(host.parameter_name(name))) for name in ATTENTION_ORDER]
    units, control = read_units(load_file(file), attentions)
    assert len(units) == 32
    assert control is None
    assert (tmp_path / "run" / "samples-000002.png").is_file()
    assert load_file(tmp_path / "run" / "preview" / file.name).keys() == load_file(file).keys()


def test_training_on_shards_can_be_lengthened_and_started_from(
    sd15_folder: Path, encoder_file: Path, tmp_path: Path
) -> None:
    data = write_shards(tmp_path / "shards", discs(6))
    config = replace(TINY, base=sd15_folder, encoder=encoder_file, mode="background_to_foreground")
    config = replace(config, data=data, views_per_caption=3, schedule="constant", learning_rate=0.01)
    train(config, tmp_path / "parts")
    train(replace(config, steps=4, workers=2), tmp_path / "parts")
    train(replace(config, steps=4), tmp_path / "whole")
    parts, whole = ((tmp_path / run / "model" / "layer_sd15_bg2fg.safetensors") for run in ("parts", "whole"))
    assert parts.read_bytes() == whole.read_bytes()
    train(replace(config, start=whole, learning_rate=1e-9), tmp_path / "further")
    further, before = load_file(tmp_path / "further" / "model" / whole.name), load_file(whole)
    assert further.keys() == before.keys()
    assert all(torch.allclose(value, before[name], atol=1e-5) for name, value in further.items())


def test_condition_of_a_sample_is_the_motif_or_an_opaque_background(archive: Path) -> None:
    scene = make_source(archive, 1).draw("red disc", 64, Placement(), step_rng(0, 0))
    motif = make_condition(scene, "foreground")
    assert np.array_equal(motif[..., 3] == 255, scene.foreground[..., 3] > 254.5 / 255)
    background = make_condition(scene, "background")
    assert (background[..., 3] == 255).all()
    assert np.abs(background[..., :3] / 255 - scene.background).max() < 1 / 255


CONDITIONAL = [mode.name for mode in MODE_TABLE if mode.family == "sdxl" and mode.inputs]


@pytest.mark.parametrize("name", CONDITIONAL)
def test_sdxl_modes_with_inputs_are_trained_and_their_files_heed_the_inputs(
    archive: Path, sdxl_folder: Path, encoder_file: Path, tmp_path: Path, name: str
) -> None:
    config = replace(TINY, data=archive, base=sdxl_folder, encoder=encoder_file, form="lora", mode=name)
    train(replace(config, learning_rate=0.05, views_per_caption=1, steps=8), tmp_path / "run")
    mode = find_mode(name, "sdxl")
    (file,) = (tmp_path / "run" / "model").iterdir()
    assert file.stem == mode.file
    patches = parse_patches(load_file(file))
    change = patches["input_blocks.0.0.weight"]
    assert isinstance(change, DiffPatch)
    assert change.delta.shape[1] == 4 + 4 * len(mode.inputs)
    assert change.delta[:, 4:].any()
    rows = np.genfromtxt(tmp_path / "run" / "log.csv", delimiter=",", names=True)
    assert rows["loss"][-2:].mean() < rows["loss"][:2].mean()

    host = DiffusersHost(DiffusionPipeline.from_pretrained(sdxl_folder))
    named = {str(host.parameter_name(key)): patch for key, patch in patches.items()}
    torch.manual_seed(5)
    seen: list[Tensor] = []
    for _ in range(2):
        with side_path(host.unet, named, 1.0, concat=torch.randn(1, 4 * len(mode.inputs), 8, 8)):
            seen.append(predict(host, 1))
    assert (seen[0] - seen[1]).abs().max() > 1e-3  # the condition has an effect

    decoder = encoder_file.with_name("layer_sd15_vae_transparent_decoder.safetensors")
    shutil.copy(decoder, file.with_name("vae_transparent_decoder.safetensors"))
    store = WeightStore([file.parent])
    made: list[np.ndarray] = []
    for shade in (0, 255):
        images = {f"{role}_image": np.full((64, 64, 4), (shade, 90, 60, 255), np.uint8) for role in mode.inputs}
        with layer_diffusion(host.pipe, mode.name, store, views=1, **images) as ld:
            made.append(ld("red disc", seed=1, width=64, height=64, steps=2).layers[0].image)
    assert (made[0] != made[1]).any()  # as it has on the picture that comes of it


def test_inputs_of_patches_are_latents_in_the_modes_order(archive: Path, sdxl_folder: Path, encoder_file: Path) -> None:
    host = DiffusersHost(DiffusionPipeline.from_pretrained(sdxl_folder))
    encoder = TransparentEncoder.from_state_dict(load_file(encoder_file))
    mode = find_mode("background_blend_to_foreground", "sdxl")
    config = replace(TINY, form="lora", views_per_caption=1, placement=Placement(shadow=0))
    bank, said = encode(host, encoder, make_source(archive, 1), mode, config)
    assert bank["control"].shape == (1, 8, 8, 8)
    background, blend = bank["control"][0, :4], bank["control"][0, 4:]
    assert torch.allclose(background[:, 0, 0], blend[:, 0, 0], atol=0.2)  # a corner
    assert (background - blend)[:, 3:5, 3:5].abs().max() > 0.01  # the motif
    assert not bank["std"].any()  # the foreground is transparent
    assert [texts[0] for texts in said] == ["red disc"]


def test_sdxl_patches_are_trained_on_noise_prediction(
    archive: Path, sdxl_folder: Path, encoder_file: Path, tmp_path: Path
) -> None:
    config = replace(TINY, data=archive, base=sdxl_folder, encoder=encoder_file, form="lora", grid_every=1)
    train(config, tmp_path / "run")
    state = load_file(tmp_path / "run" / "model" / "layer_xl_transparent_attn.safetensors")
    ups = [value for name, value in state.items() if name.endswith("::lora::0")]
    assert any(value.any() for value in ups)
    assert not list((tmp_path / "run").glob("*.png"))  # SDXL's decoder isn't beside this encoder
    losses = np.loadtxt(tmp_path / "run" / "log.csv", delimiter=",", skiprows=1)
    assert np.isfinite(losses).all()
