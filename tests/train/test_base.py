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
from torch import Tensor, nn
from transformers import CLIPTokenizer

from lib_layerdiffusion.train.autoencoder import read_autoencoder
from lib_layerdiffusion.train.base import (
    COLOURS,
    build_scheduler,
    denoising_loss,
    encode_texts,
    encode_views,
    train,
)
from lib_layerdiffusion.train.dataset import Augmentation, read_sprites, step_rng
from tests.train.tiny import TINY_BASE

pytestmark = pytest.mark.slow


class Guess(nn.Module):
    """A stand-in for the UNet whose answer depends on everything that it is given."""

    def forward(self, noisy: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Any:
        self.timesteps = timesteps
        shift = encoder_hidden_states.mean(dim=(1, 2)) + timesteps / 1000
        return SimpleNamespace(sample=0.3 * noisy + shift[:, None, None, None])


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_loss_is_the_weighted_error_of_the_prediction(prediction: str) -> None:
    torch.manual_seed(0)
    sets, frames, limit = 3, 2, 5.0
    clean, context = torch.randn(sets * frames, 4, 3, 5), torch.randn(sets * frames, 7, 6)
    scheduler = DDIMScheduler.from_config(build_scheduler().config, prediction_type=prediction)
    guess = Guess()
    loss = denoising_loss(guess, clean, context, scheduler, limit, step_rng(5, 0), frames)

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
            wanted, weight = signal**0.5 * e - (1 - signal) ** 0.5 * x, min(ratio, limit) / (ratio + 1)
        weighted += weight * float(((answer - wanted) ** 2).mean())
        weights += weight
    assert loss.item() == pytest.approx(weighted / weights, rel=1e-4)


def test_timesteps_are_stratified_and_shared_by_the_frames_of_a_set() -> None:
    guess = Guess()
    denoising_loss(guess, torch.zeros(8, 4, 2, 2), torch.zeros(8, 1, 1), build_scheduler(), 5.0, step_rng(0, 0), 2)
    timesteps = guess.timesteps.view(4, 2)
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


def test_background_that_the_text_names_is_in_the_picture(archive: Path) -> None:
    def show(pictures: Tensor) -> Any:
        return SimpleNamespace(latent_dist=SimpleNamespace(parameters=pictures))

    vae: Any = SimpleNamespace(encode=show, device="cpu")
    small = Augmentation(scale=(0.3, 0.4))
    config = replace(TINY_BASE, size=16, views_per_caption=12, augmentation=small)
    sprites = [sprite for sprite in read_sprites(archive, 20) if sprite.prompt]
    pictures, texts = encode_views(vae, sprites, config)
    assert len(pictures) == len(texts) == 12 * len(sprites)
    named = 0
    for picture, text in zip(pictures, texts, strict=True):
        match = re.fullmatch(r"(?:a )?(?:red|blue|glass) disc(?:, (\w+) background)?", text)
        assert match
        if match[1]:
            named += 1
            assert ((picture[:, 0, 0] + 1) / 2).tolist() == pytest.approx(COLOURS[match[1]], abs=1e-5)
    assert 0 < named < len(texts)


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
