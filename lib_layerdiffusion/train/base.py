"""Train a narrow Stable Diffusion 1.5 on a finished autoencoder: tokenizer, text encoder and UNet."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Whitespace
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..refusal import Refusal
from .autoencoder import read_autoencoder
from .bank import Bank
from .config import Count, Share, Side, Workers, strict
from .dataset import (
    Augmentation,
    Sprite,
    augment,
    draw_view,
    find_prompts,
    list_rows,
    make_background,
    read_backgrounds,
    read_sprites,
    reading_size,
    split_sprites,
    step_rng,
)
from .run import Average, Run, constant, cosine, open_accelerator
from .scenes import Placement, SceneSource

TOKENS = 77
TEMPLATES = ("{}", "a {}", "{}, {} background")
# name -> sRGB of the plain backgrounds that a caption can ask for
COLOURS = {
    "grey": (0.5, 0.5, 0.5),
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
    "blue": (0.2, 0.35, 0.85),
    "green": (0.2, 0.6, 0.3),
    "pink": (0.95, 0.7, 0.8),
}


@strict
@dataclass(frozen=True)
class BaseConfig:
    """Options of the base model's training."""

    data: Path = Path("sprites.zip")
    backgrounds: Path | None = None  # pictures with captions, which the model learns alone and behind the sprites
    autoencoder: Path = Path("runs/autoencoder/model")
    start: Path | None = None  # an earlier model: its tokenizer and the sizes of its networks come with it
    seed: int = 2
    size: Side = 128
    widths: tuple[int, ...] = (64, 64, 96, 96)
    groups: int = 8
    heads: int = 8
    text_width: int = 96
    text_layers: int = 2
    views_per_caption: Count = 256  # augmented latents encoded for each caption
    scene_share: Share = 0.4  # of them over a background, if there are any
    views_per_background: Count = 96
    steps: Count = 2500
    batch: Count = 16
    accumulate: Count = 1  # batches that make one step
    workers: Workers = 0
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"  # constant: can be lengthened later
    weight_decay: float = 0.01
    snr_limit: float = 5.0  # of the min-SNR weighting
    drop_caption: Share = 0.1
    ema: Share = 0.998
    log_every: Count = 50
    grid_every: int = 500
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None  # None: as `accelerate config` says
    augmentation: Augmentation = field(default_factory=Augmentation)
    placement: Placement = field(default_factory=Placement)


def train_tokenizer(texts: list[str], folder: Path) -> None:
    """Byte-pair encoding in CLIP's own layout: bytes, bytes that end a word, merges, start and end token last."""
    model = Tokenizer(BPE(end_of_word_suffix="</w>"))
    model.normalizer = Lowercase()
    model.pre_tokenizer = Sequence([Whitespace(), ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=1600, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(texts, trainer)
    merges = [tuple(merge) for merge in json.loads(model.to_str())["model"]["merges"]]
    letters = sorted(alphabet)
    words = letters + [letter + "</w>" for letter in letters] + ["".join(merge) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_tokenizer_settings(folder)


def write_tokenizer_settings(folder: Path) -> None:
    """The rest of a tokenizer's folder, in the form that every transformers reads."""
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def build_text_encoder(config: BaseConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_width,
            intermediate_size=config.text_width * 4,
            projection_dim=config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_width // 24,
            max_position_embeddings=TOKENS,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )


def build_unet(config: BaseConfig) -> UNet2DConditionModel:
    """The blocks of Stable Diffusion 1.5 with other widths: all 32 attentions are where the files expect them."""
    return UNet2DConditionModel(
        sample_size=config.size // 8,
        block_out_channels=config.widths,
        layers_per_block=2,
        cross_attention_dim=config.text_width,
        attention_head_dim=config.heads,
        norm_num_groups=config.groups,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule with velocity prediction."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def count_views(scenes: SceneSource, alone: SceneSource, config: BaseConfig) -> int:
    """The pictures that are encoded: of every caption of a sprite, and of every caption of a background."""
    return len(scenes.rows) * config.views_per_caption + len(alone.rows) * config.views_per_background


def draw_views(
    scenes: SceneSource, alone: SceneSource, config: BaseConfig, bank: Bank, part: int
) -> tuple[Tensor, list[str]]:
    """The pictures [N, 3, S, S], -1..1, of one of the bank's files, with their texts.

    Sprites over plain colours and gradients, sprites over backgrounds, and backgrounds alone.
    """
    rng = step_rng(config.seed, part, 1 << 16)
    captions, places = scenes.captions, alone.captions
    pictures: list[NDArray[np.float32]] = []
    texts: list[str] = []
    for row in bank.find_rows(part):
        number, view = divmod(row, config.views_per_caption)
        if number >= len(captions):
            number, view = divmod(row - len(captions) * config.views_per_caption, config.views_per_background)
            said = places[number]
            picture = draw_view(alone.sprites[alone.pick(said, rng, view)], config.size, rng)
        elif scenes.backgrounds and rng.random() < config.scene_share:
            scene = scenes.draw(captions[number], config.size, config.placement, rng, view)
            picture, said = scene.blend, scene.texts["blend"]
        else:
            sprite = scenes.sprites[scenes.pick(captions[number], rng, view)]
            picture, said = draw_plain(sprite, config, rng)
        pictures.append(picture)
        texts.append(said)
    return torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32)) * 2 - 1, texts


@torch.no_grad()
def encode_views(vae: AutoencoderKL, drawn: tuple[Tensor, list[str]]) -> tuple[dict[str, Tensor], list[str]]:
    """The VAE's `moments` [N, 8, s, s] of pictures, and their texts as they are."""
    pictures, texts = drawn
    return {"moments": vae.encode(pictures.to(vae.device)).latent_dist.parameters.cpu()}, texts


def draw_plain(sprite: Sprite, config: BaseConfig, rng: np.random.Generator) -> tuple[NDArray[np.float32], str]:
    """A sprite over a plain colour or gradient [S, S, 3], 0..1, and its caption, which may name the colour."""
    pixels = augment(sprite.premultiplied, config.size, config.augmentation, rng)
    template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
    name = list(COLOURS)[int(rng.integers(len(COLOURS)))]
    named = "background" in template
    background = np.array(COLOURS[name], np.float32) if named else make_background(config.size, rng)
    return pixels[..., :3] + background * (1 - pixels[..., 3:]), template.format(sprite.text, name)


def draw_noise(
    shape: torch.Size, scheduler: DDIMScheduler, limit: float, rng: np.random.Generator, frames: int = 1
) -> dict[str, Tensor]:
    """What latents [sets * frames, 4, h, w], the frame index fastest, are noised with, as `denoising_loss` takes it.

    Timesteps are stratified; the frames of a set share one. Weights are min-SNR's, arXiv 2303.09556, and have a mean
    of 1, so that the losses of a batch's parts have the mean of the whole. For velocities 1 is added to the ratio of
    signal and noise first: else the noisiest steps, which decide shapes and colours, would weigh next to nothing.
    """
    count = shape[0] // frames
    noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    places = (np.arange(count) + rng.random(count)) / count
    timesteps = torch.from_numpy((places * len(scheduler)).astype(np.int64).repeat(frames))
    signal = scheduler.alphas_cumprod.cpu()[timesteps]  # adding noise takes them to its device
    ratio = signal / (1 - signal)
    if scheduler.config.prediction_type == "v_prediction":
        weight = (ratio + 1).clamp(max=limit) * (1 - signal)  # min(SNR + 1, limit) / (SNR + 1)
    else:
        weight = ratio.clamp(max=limit) / ratio
    return {"noise": noise, "timesteps": timesteps, "weight": weight / weight.mean()}


def denoising_loss(
    unet: nn.Module,
    clean: Tensor,
    context: Tensor,
    scheduler: DDIMScheduler,
    noise: Tensor,
    timesteps: Tensor,
    weight: Tensor,
    emphasis: Tensor | None = None,
    **conditions: object,
) -> Tensor:
    """Weighted loss of the model's own prediction (velocity or noise).

    `clean` [B, 4, h, w] in sampler space and `noise` like it; `context` [B, tokens, C]; `timesteps`, `weight` [B];
    `emphasis` [B, 1, h, w]: the weight of each place, 1 without.
    """
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(clean, noise, timesteps) if velocity else noise
    noisy = scheduler.add_noise(clean, noise, timesteps)
    output = unet(noisy, timesteps, encoder_hidden_states=context, **conditions).sample
    error = (output - target).pow(2)
    if emphasis is not None:
        error = error * emphasis
    return (weight * error.mean(dim=(1, 2, 3))).mean()


def encode_texts(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, texts: list[str]) -> Tensor:
    """Texts to contexts [B, 77, C]; each distinct text is encoded once."""
    distinct = list(dict.fromkeys(texts))
    tokens = tokenizer(distinct, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    hidden = encoder(tokens.input_ids.to(encoder.device)).last_hidden_state
    return hidden[[distinct.index(text) for text in texts]]


class BaseModel(nn.Module):
    """UNet and text encoder as one module whose forward is the training loss."""

    def __init__(self, config: BaseConfig, tokenizer: CLIPTokenizer, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self.unet, self.text_encoder = build_networks(config, tokenizer)
        # heads are so narrow here that plain attention is faster than the fused one
        self.unet.set_attn_processor(AttnProcessor())

    def forward(self, clean: Tensor, texts: list[str], **noise: Tensor) -> Tensor:
        context = encode_texts(self.tokenizer, self.text_encoder, texts)
        return denoising_loss(self.unet, clean, context, self.scheduler, **noise)


def build_networks(config: BaseConfig, tokenizer: CLIPTokenizer) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """UNet and text encoder, new or those of the earlier model."""
    if config.start is None:
        return build_unet(config), build_text_encoder(config, tokenizer)
    try:
        unet = UNet2DConditionModel.from_pretrained(config.start, subfolder="unet", local_files_only=True)
        text_encoder = CLIPTextModel.from_pretrained(config.start, subfolder="text_encoder", local_files_only=True)
    except (OSError, ValueError) as error:
        raise _refuse_start(config) from error
    return unet.float(), text_encoder.float()


def prepare_tokenizer(config: BaseConfig, sprites: list[Sprite], out: Path, main: bool) -> None:
    """Put the tokenizer into the run's folder: a new one for the sprites' captions, or the earlier model's."""
    if not main:
        return
    if config.start is None:
        train_tokenizer([s.text for s in sprites] + list(COLOURS) * 8 + ["a background"] * 8, out / "tokenizer")
        return
    files = [config.start / "tokenizer" / name for name in ("vocab.json", "merges.txt")]
    if not all(file.is_file() for file in files):
        raise _refuse_start(config)
    (out / "tokenizer").mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, out / "tokenizer")
    write_tokenizer_settings(out / "tokenizer")


def _refuse_start(config: BaseConfig) -> Refusal:
    return Refusal(f"There is no earlier model in {config.start}; name a diffusers pipeline's folder.")


@dataclass(frozen=True)
class Batches:
    """The batches of one process."""

    config: BaseConfig
    bank: Bank
    texts: list[str]  # of the bank's rows
    scaling_factor: float
    scheduler: DDIMScheduler
    rank: int
    processes: int

    def draw(self, step: int) -> dict[str, Any]:
        """What the model is given in a step: `clean` latents in sampler space, their `texts`, and the noise."""
        config, rng = self.config, step_rng(self.config.seed, step, self.rank)
        count = config.batch * config.accumulate
        rows = list_rows(len(self.texts), config.seed, (step * self.processes + self.rank) * count, count)
        mean, logvar = self.bank.read(rows)["moments"].chunk(2, dim=1)
        noise = torch.from_numpy(rng.standard_normal(mean.shape, dtype=np.float32))
        clean = (mean + (0.5 * logvar).exp() * noise) * self.scaling_factor
        said = ["" if rng.random() < config.drop_caption else self.texts[row] for row in rows]
        return {"clean": clean, "texts": said, **draw_noise(clean.shape, self.scheduler, config.snr_limit, rng)}


def train(config: BaseConfig, out: Path) -> None:
    """Train UNet and text encoder together, then write the pipeline to `out/model`."""
    accelerator = open_accelerator(mixed_precision=config.mixed_precision, accumulate=config.accumulate)
    torch.manual_seed(config.seed)
    sprites = read_sprites(config.data, reading_size(config.size))
    prompts = find_prompts(split_sprites(sprites)[0])
    backgrounds, _ = read_backgrounds(config.backgrounds, config.size)
    vae = read_autoencoder(config.autoencoder).to(accelerator.device).eval()
    prepare_tokenizer(config, [*sprites, *backgrounds], out, accelerator.is_main_process)
    accelerator.wait_for_everyone()
    tokenizer = CLIPTokenizer.from_pretrained(str(out / "tokenizer"))
    raw = BaseModel(config, tokenizer, build_scheduler()).to(accelerator.device)
    average = Average(raw, config.ema)
    optimizer = torch.optim.AdamW(
        raw.parameters(), config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
    rate = constant(100) if config.schedule == "constant" else cosine(100, config.steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model, optimizer, schedule = accelerator.prepare(raw, optimizer, schedule)
    accelerator.register_for_checkpointing(average)
    run = Run(out, config, accelerator, config.steps, config.log_every)
    scenes, alone = SceneSource(prompts, backgrounds), SceneSource(backgrounds)
    bank = Bank(out / "bank", count_views(scenes, alone, config))
    bank.fill(partial(draw_views, scenes, alone, config, bank), partial(encode_views, vae), accelerator, config.workers)
    scaling, rank, processes = vae.config.scaling_factor, accelerator.process_index, accelerator.num_processes
    batches = Batches(config, bank, bank.read_texts(), scaling, raw.scheduler, rank, processes)
    for _, batch in run.draw(batches.draw, config.workers):
        run.lower(model, batch, optimizer, schedule)
        average.update(raw)
        if accelerator.is_main_process and run.is_due(config.grid_every):
            captions = [sprite.text for sprite in prompts] + [background.text for background in backgrounds]
            save_samples(run, assemble(raw, average, vae), list(dict.fromkeys(captions)), config.size)
    if accelerator.is_main_process:
        with run.write_model() as folder:
            assemble(raw, average, vae).save_pretrained(folder)
    accelerator.wait_for_everyone()  # whatever comes next finds the model


def assemble(model: BaseModel, average: Average, vae: AutoencoderKL) -> StableDiffusionPipeline:
    """A pipeline of copies that hold the averaged weights."""
    parts = {"unet": copy.deepcopy(model.unet), "text_encoder": copy.deepcopy(model.text_encoder)}
    for name, part in parts.items():
        own = {
            key.removeprefix(f"{name}."): value for key, value in average.shadow.items() if key.startswith(f"{name}.")
        }
        part.load_state_dict(own)
        part.eval()
    unet, text_encoder = parts["unet"], parts["text_encoder"]
    return StableDiffusionPipeline(
        vae, text_encoder, model.tokenizer, unet, build_scheduler(), None, None, requires_safety_checker=False
    )


def save_samples(run: Run, pipeline: StableDiffusionPipeline, captions: list[str], size: int) -> None:
    """A grid of pictures for twelve captions, spread over all of them."""
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 15, "guidance_scale": 3.0, "width": size, "height": size, "output_type": "pt"}
    shown = [captions[int(place)] for place in np.linspace(0, len(captions) - 1, min(12, len(captions)))]
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(shown))]
    pictures = pipeline(shown, generator=generators, **settings).images.float()
    rows = 1 if len(shown) % 2 else 2
    run.save_grid("samples", [list(row) for row in pictures.chunk(rows)])
