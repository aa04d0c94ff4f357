"""Train a small KL autoencoder of Stable Diffusion's design (factor 8, 4 channels) from scratch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from ..refusal import Refusal
from .config import check_stages
from .dataset import (
    Augmentation,
    Sprite,
    augment,
    draw,
    find_prompts,
    make_background,
    read_sprites,
    reading_size,
    split_sprites,
    step_rng,
)
from .run import Average, Run, cosine, open_accelerator

SCALING_FACTOR = 0.18215


@dataclass(frozen=True)
class AutoencoderConfig:
    """Options of the autoencoder's training."""

    data: Path = Path("sprites.zip")
    seed: int = 1
    widths: tuple[int, ...] = (24, 48, 64, 64)
    groups: int = 4
    sizes: tuple[int, ...] = (64, 128)  # trained one after the other
    size_steps: tuple[int, ...] = (1200, 700)
    batches: tuple[int, ...] = (16, 8)
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    gradient_weight: float = 0.5
    kl_weight: float = 1e-4
    guide_weight: float = 0.2  # the first three latent channels follow the image's own colours at first
    guide_until: float = 0.4
    start: Path | None = None  # an earlier autoencoder; its decoder alone goes on, so the latents stay what they are
    room_channel: int = 3
    room: float = 0.0  # largest shift of that channel, in sampler space, that the decoder learns to disregard
    ema: float = 0.995
    log_every: int = 100
    grid_every: int = 400
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        check_stages(self.sizes, self.size_steps, self.batches)


def read_autoencoder(folder: Path) -> AutoencoderKL:
    """Load the autoencoder from its diffusers folder, or from the `vae` folder of a whole pipeline."""
    inside = folder / "vae"
    try:
        return AutoencoderKL.from_pretrained(inside if inside.is_dir() else folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise Refusal(f"There is no autoencoder in {folder}; name a diffusers folder that holds one.") from error


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """The network, initialised near the identity: residual branches small, resampling as average and copy."""
    torch.manual_seed(config.seed)
    levels = len(config.widths)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.widths,
        layers_per_block=1,
        norm_num_groups=config.groups,
        latent_channels=4,
        sample_size=config.sizes[-1],
        scaling_factor=SCALING_FACTOR,
    )
    with torch.no_grad():
        for name, module in vae.named_modules():
            if not isinstance(module, nn.Conv2d):
                continue
            if name.endswith("conv2"):
                module.weight.mul_(0.1)
            elif "samplers" in name or name.endswith("conv_shortcut"):
                _start_as_copy(module, average="downsamplers" in name)
            elif name in ("quant_conv", "post_quant_conv"):
                module.weight.mul_(0.1)
                nn.init.zeros_(module.bias)
                for i in range(4):
                    module.weight[i, i, 0, 0] += 1
        vae.quant_conv.bias[4:] = -5
    return vae


def _start_as_copy(conv: nn.Conv2d, average: bool) -> None:
    """Let a convolution pass its input channels on (the mean of 2 x 2 where it halves the size)."""
    conv.weight.mul_(0.1)
    nn.init.zeros_(conv.bias)
    for out in range(conv.out_channels):
        source = out % conv.in_channels
        if average:
            conv.weight[out, source, :2, :2] += 0.25
        else:
            centre = conv.kernel_size[0] // 2
            conv.weight[out, source, centre, centre] += 1


def draw_pictures(
    sprites: list[Sprite], count: int, size: int, config: AutoencoderConfig, rng: np.random.Generator
) -> Tensor:
    """Opaque pictures [count, 3, size, size], -1..1: sprites on mid-grey (half of them), plain colours, gradients."""
    pictures: list[np.ndarray] = []
    for sprite in draw(sprites, count, rng):
        pixels = augment(sprite.premultiplied, size, config.augmentation, rng)
        background = 0.5 if rng.random() < 0.5 else make_background(size, rng)
        pictures.append(pixels[..., :3] + background * (1 - pixels[..., 3:]))
    batch = np.stack(pictures).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(batch, np.float32)) * 2 - 1


def draw_shift(count: int, size: int, largest: float, rng: np.random.Generator) -> Tensor:
    """Random fields [count, 1, size, size] between +-largest: smooth, or in patches with sharp borders."""
    fields: list[np.ndarray] = []
    for _ in range(count):
        cells = int(rng.integers(1, 6))
        grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        how = cv2.INTER_LINEAR if rng.random() < 0.5 else cv2.INTER_NEAREST
        fields.append(cv2.resize(grid, (size, size), interpolation=how).reshape(1, size, size))
    return torch.from_numpy(np.stack(fields)) * largest


def gradient_loss(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and vertical first differences."""
    difference = image - target
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


class AutoencoderLoss(nn.Module):
    """The autoencoder with a forward that gives the reconstruction, KL and guide terms, already weighted."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = build_autoencoder(config) if config.start is None else read_autoencoder(config.start)
        if config.start is not None:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)

    def forward(self, pictures: Tensor, guide: float, shift: Tensor) -> dict[str, Tensor]:
        """Weighted terms for pictures [B, 3, H, W], -1..1; `shift` [B, 1, H/8, W/8] as `draw_shift` makes it."""
        posterior: DiagonalGaussianDistribution = self.vae.encode(pictures).latent_dist
        channel = self.config.room_channel
        around = (0, 0, 0, 0, channel, posterior.mean.shape[1] - 1 - channel)
        latent = posterior.sample() + F.pad(shift / SCALING_FACTOR, around)
        output = self.vae.decode(latent).sample
        colours = 2 * F.avg_pool2d(pictures, 8)
        return {
            "l1": (output - pictures).abs().mean(),
            "gradient": self.config.gradient_weight * gradient_loss(output, pictures),
            "kl": self.config.kl_weight * 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean(),
            "guide": guide * (posterior.mean[:, :3] - colours).abs().mean(),
        }


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Fold the latents' mean and deviation into quant_conv and post_quant_conv.

    Afterwards a latent times 0.18215 has mean 0 and deviation 1 per channel, and the decoded picture is as before.
    """
    mean = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(16)])
    centre = mean.mean(dim=(0, 2, 3))
    scale = mean.std(dim=(0, 2, 3)) * SCALING_FACTOR
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += (post.weight[:, :, 0, 0] * centre).sum(dim=1)
    post.weight *= scale[None, :, None, None]
    quant.weight[:4] /= scale[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - centre) / scale
    quant.bias[4:] -= 2 * scale.log()


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures [B, C, H, W] with values in 0..1, one per picture."""
    return -10 * torch.log10((image - target).pow(2).mean(dim=(1, 2, 3)).clamp_min(1e-10))


def train(config: AutoencoderConfig, out: Path) -> None:
    """Train, then write `out/model` (a diffusers folder) with the latents' statistics folded in."""
    accelerator = open_accelerator()
    known, held_out = split_sprites(read_sprites(config.data, reading_size(max(config.sizes))))
    prompts = find_prompts(known)
    raw = AutoencoderLoss(config).to(accelerator.device)
    vae = raw.vae
    average = Average(vae, config.ema)
    optimizer = torch.optim.AdamW(
        [p for p in raw.parameters() if p.requires_grad],
        config.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=config.weight_decay,
    )
    steps = sum(config.size_steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(50, steps))
    model, optimizer, schedule = accelerator.prepare(raw, optimizer, schedule)
    accelerator.register_for_checkpointing(average)
    check = draw_pictures(held_out, 16, config.sizes[-1], config, step_rng(0, 0)).to(accelerator.device)
    run = Run(out, config, accelerator, steps, config.log_every)
    edges = np.cumsum(config.size_steps)
    for step in run:
        stage = int(np.searchsorted(edges, step, side="right"))
        rng = step_rng(config.seed, step, accelerator.process_index)
        # every second picture shows a sprite that the model will have a word for
        count, size = config.batches[stage], config.sizes[stage]
        pictures = torch.cat([draw_pictures(part, count // 2, size, config, rng) for part in (known, prompts)])
        guide = config.guide_weight * max(0.0, 1 - step / (config.guide_until * steps))
        shift = draw_shift(len(pictures), size // 8, config.room, rng)
        terms = model(pictures.to(accelerator.device), guide, shift.to(accelerator.device))
        accelerator.backward(torch.stack(list(terms.values())).sum())
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        average.update(vae)
        run.log(**terms)
        if run.is_due(config.log_every) or run.is_due(config.grid_every):
            quality = evaluate(vae, average, check, run if run.is_due(config.grid_every) else None)
            if run.is_due(config.log_every):
                run.log(psnr=quality)
    vae.load_state_dict(average.shadow)
    if config.start is None:
        normalise_latents(
            vae, draw_pictures(known, 128, config.sizes[-1], config, step_rng(0, 1)).to(accelerator.device)
        )
    if accelerator.is_main_process:
        with run.write_model() as folder:
            vae.save_pretrained(folder)
    accelerator.wait_for_everyone()  # whatever comes next finds the model


@torch.no_grad()
def evaluate(vae: AutoencoderKL, average: Average, pictures: Tensor, run: Run | None) -> Tensor:
    """Mean PSNR of the averaged network on held-out pictures; with a run, a grid of them too."""
    with average.inside(vae):
        output = vae.decode(vae.encode(pictures).latent_dist.sample()).sample.clamp(-1, 1)
    shown, wanted = output * 0.5 + 0.5, pictures * 0.5 + 0.5
    if run is not None:
        run.save_grid("reconstruction", [list(wanted[:8]), list(shown[:8])])
    return psnr(shown, wanted).mean()
