"""Training of a narrow Stable Diffusion from scratch: its loss, words, pictures and files."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.train.autoencoder import read_autoencoder
from lib_layerdiffusion.train.bank import PART, Bank
from lib_layerdiffusion.train.base import (
    COLOURS,
    BaseConfig,
    build_scheduler,
    count_views,
    denoising_loss,
    draw_noise,
    draw_views,
    encode_texts,
    train,
)
from lib_layerdiffusion.train.dataset import Augmentation, Sprite, read_sprites, step_rng
from lib_layerdiffusion.train.scenes import SceneSource
from tests.train.tiny import TINY_BASE

pytestmark = pytest.mark.slow


class Guess(nn.Module):
    """A stand-in for the UNet whose answer depends on everything that it is given."""

    def forward(self, noisy: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Any:
        shift = encoder_hidden_states.mean(dim=(1, 2)) + timesteps / 1000
        return SimpleNamespace(sample=0.3 * noisy + shift[:, None, None, None])


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_loss_is_the_weighted_error_of_the_prediction(prediction: str) -> None:
    torch.manual_seed(0)
    sets, frames, limit = 3, 2, 5.0
    clean, context = torch.randn(sets * frames, 4, 3, 5), torch.randn(sets * frames, 7, 6)
    scheduler = DDIMScheduler.from_config(build_scheduler().config, prediction_type=prediction)
    guess = Guess()
    drawn = draw_noise(clean.shape, scheduler, limit, step_rng(5, 0), frames)
    loss = denoising_loss(guess, clean, context, scheduler, **drawn)

    rng = step_rng(5, 0)
    noise = rng.standard_normal(clean.shape, dtype=np.float32)
    offsets = rng.random(sets)
    weighted = weights = 0.0
    for row in range(sets * frames):
        timestep = int((row // frames + offsets[row // frames]) / sets * 1000)
        signal = float(scheduler.alphas_cumprod[timestep])
        ratio = signal / (1 - signal)
        x, e = clean[row].numpy(), noise[row]
        answer = 0.3 * (signal**0.5 * x + (1 - signal) ** 0.5 * e) + float(context[row].mean()) + timestep / 1000
        if prediction == "epsilon":
            wanted, weight = e, min(ratio, limit) / ratio
        else:
            wanted = signal**0.5 * e - (1 - signal) ** 0.5 * x
            weight = min(ratio + 1, limit) / (ratio + 1)
        weighted += weight * float(((answer - wanted) ** 2).mean())
        weights += weight
    assert loss.item() == pytest.approx(weighted / weights, rel=1e-4)


def test_timesteps_are_stratified_and_shared_by_the_frames_of_a_set() -> None:
    drawn = draw_noise(torch.Size((8, 4, 2, 2)), build_scheduler(), 5.0, step_rng(0, 0), frames=2)
    timesteps = drawn["timesteps"].view(4, 2)
    assert timesteps[:, 0].equal(timesteps[:, 1])
    assert (timesteps[:, 0] // 250).tolist() == [0, 1, 2, 3]


def test_tokenizer_spells_and_knows_its_words(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("Red disc").input_ids
    assert ids[0] == tokenizer.bos_token_id == len(tokenizer) - 2
    assert ids[-1] == tokenizer.eos_token_id == len(tokenizer) - 1
    assert len(ids) == 4  # a word is one token
    for text in ("red disc", "a grey background", "zebra über glass"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text
    assert tokenizer("disc", padding="max_length").input_ids == [ids[0], ids[2], *[ids[-1]] * 75]


def test_texts_are_encoded_in_their_order(sd15_folder: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(sd15_folder)
    texts = ["red disc", "", "red disc", "blue disc"]
    with torch.no_grad():
        hidden = encode_texts(pipeline.tokenizer, pipeline.text_encoder, texts)
        alone = [encode_texts(pipeline.tokenizer, pipeline.text_encoder, [text])[0] for text in texts]
        own, _ = pipeline.encode_prompt(texts, pipeline.device, 1, False)
    assert hidden.shape == (4, 77, 24)
    assert torch.allclose(hidden, torch.stack(alone), atol=1e-5)
    assert torch.allclose(hidden, own, atol=1e-5)


def draw_all(sprites: list[Sprite], backgrounds: list[Sprite], config: BaseConfig) -> tuple[Tensor, list[str]]:
    """What all files of a bank are made of."""
    scenes, alone = SceneSource(sprites, backgrounds), SceneSource(backgrounds)
    bank = Bank(Path("nowhere"), count_views(scenes, alone, config))
    parts = [draw_views(scenes, alone, config, bank, part) for part in range(-(-bank.rows // PART))]
    return torch.cat([pictures for pictures, _ in parts]), [text for _, texts in parts for text in texts]


def test_background_that_the_text_names_is_in_the_picture(archive: Path) -> None:
    small = Augmentation(scale=(0.3, 0.4))
    config = replace(TINY_BASE, size=16, views_per_caption=12, augmentation=small)
    sprites = [sprite for sprite in read_sprites(archive, 20) if sprite.prompt]
    pictures, texts = draw_all(sprites, [], config)
    assert len(pictures) == len(texts) == 12 * len(sprites)
    named = 0
    for picture, text in zip(pictures, texts, strict=True):
        match = re.fullmatch(r"(?:a )?(?:red|blue|glass) disc(?:, (\w+) background)?", text)
        assert match
        if match[1]:
            named += 1
            assert ((picture[:, 0, 0] + 1) / 2).tolist() == pytest.approx(COLOURS[match[1]], abs=1e-5)
    assert 0 < named < len(texts)


def test_words_are_seen_over_backgrounds_and_backgrounds_alone(archive: Path) -> None:
    config = replace(TINY_BASE, size=16, views_per_caption=40, views_per_background=3, scene_share=0.5)
    sprites = [sprite for sprite in read_sprites(archive, 20) if sprite.prompt][:1]
    green = np.full((20, 20, 4), (0, 255, 0, 255), np.uint8)
    pictures, texts = draw_all(sprites, [Sprite("lawn.png", "lawn", green)], config)
    assert len(pictures) == len(texts) == 43
    assert texts[40:] == ["lawn"] * 3
    alone = pictures[40:]
    assert (alone[:, 1] > 0.8).all()
    assert (alone[:, 0] == -1).all()
    blends = [row for row, text in enumerate(texts[:40]) if "lawn" in text]
    assert 10 < len(blends) < 30
    assert {texts[row] for row in blends} == {"red disc, lawn", "red disc in front of lawn"}
    for row in blends:
        assert pictures[row, 0].max() > 0.5  # the disc
        assert pictures[row, 1].max() > 0.5  # the lawn


def test_training_starts_from_an_earlier_model_and_can_be_lengthened(
    archive: Path, vae_folder: Path, tmp_path: Path
) -> None:
    config = replace(
        TINY_BASE,
        data=archive,
        autoencoder=vae_folder,
        views_per_caption=2,
        steps=2,
        batch=2,
        log_every=1,
        grid_every=0,
    )
    train(config, tmp_path / "first")
    further = replace(config, start=tmp_path / "first" / "model", schedule="constant", widths=(4, 4, 8, 8))
    train(further, tmp_path / "parts")
    train(replace(further, steps=4), tmp_path / "parts")
    train(replace(further, steps=4), tmp_path / "whole")
    unet = "model/unet/diffusion_pytorch_model.safetensors"
    weights = [load_file(tmp_path / run / unet) for run in ("parts", "whole")]
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())
    first = load_file(tmp_path / "first" / unet)
    assert {name: value.shape for name, value in first.items()} == {n: v.shape for n, v in weights[0].items()}
    assert (weights[0]["conv_in.weight"] - first["conv_in.weight"]).abs().max() < 0.02
    first_words, words = (CLIPTokenizer.from_pretrained(tmp_path / run / "tokenizer") for run in ("first", "whole"))
    assert first_words("a red disc").input_ids == words("a red disc").input_ids
    folders = [{file.name for file in (tmp_path / run / "tokenizer").iterdir()} for run in ("first", "whole")]
    assert folders[0] == folders[1]
    with pytest.raises(Refusal, match="differs from the configuration"):
        train(replace(further, steps=3), tmp_path / "parts")
    with pytest.raises(Refusal, match="no earlier model"):
        train(replace(further, start=vae_folder), tmp_path / "none")


def test_training_writes_a_pipeline_with_all_attentions(archive: Path, vae_folder: Path, tmp_path: Path) -> None:
    config = replace(
        TINY_BASE,
        data=archive,
        autoencoder=vae_folder,
        views_per_caption=2,
        steps=2,
        batch=2,
        log_every=2,
        grid_every=0,
    )
    train(config, tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    attentions = [name for name, _ in pipeline.unet.named_modules() if name.endswith(("attn1", "attn2"))]
    assert len(attentions) == 32
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    kept = read_autoencoder(vae_folder).state_dict()
    assert all(value.equal(kept[name]) for name, value in pipeline.vae.state_dict().items())
    assert (tmp_path / "log.csv").read_text(encoding="utf-8").count("\n") == 2
