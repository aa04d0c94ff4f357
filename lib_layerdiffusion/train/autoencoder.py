"""Train a small KL autoencoder of Stable Diffusion's design (factor 8, 4 channels), or sharpen the decoder of one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from ..refusal import Refusal
from ..transparent_vae import TransparentEncoder
from ..weights import WeightStore
from .config import Count, Share, Side, Workers, check_stages, find_stage, strict
from .dataset import (
    Augmentation,
    Mixture,
    Sprite,
    TransparentBatch,
    augment,
    draw,
    draw_fade,
    draw_view,
    find_prompts,
    make_background,
    read_backgrounds,
    read_sprites,
    reading_size,
    split_sprites,
    step_rng,
)
from .discriminator import Adversary, PatchDiscriminator
from .measures import detail, psnr
from .run import Average, Run, cosine, open_accelerator

SCALING_FACTOR = 0.18215
TERMS = ("l1", "gradient", "laplacian", "kl", "guide", "adversarial", "matching")


@strict
@dataclass(frozen=True)
class AutoencoderConfig:
    """Options of the autoencoder's training."""

    data: Path = Path("sprites.zip")
    backgrounds: Path | None = None  # pictures; alone and behind sprites they are among those trained on
    seed: int = 1
    widths: tuple[int, ...] = (24, 48, 64, 64)
    groups: int = 4
    sizes: tuple[Side, ...] = (64, 128)  # trained one after the other
    size_steps: tuple[Count, ...] = (1200, 700)
    batches: tuple[Count, ...] = (16, 8)
    accumulate: Count = 1  # batches that make one step
    workers: Workers = 0
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    gradient_weight: float = 0.5
    laplacian_weight: float = 0.0
    discriminator_weight: float = 0.0  # 0: no discriminator
    discriminator_from: Share = 0.2  # share of the steps without it
    matching_weight: float = 0.5  # distance of the discriminator's inner layers' outputs
    kl_weight: float = 1e-4
    guide_weight: float = 0.2  # the first three latent channels follow the image's own colours at first
    guide_until: Share = 0.4
    start: Path | None = None  # an earlier autoencoder; its decoder alone is trained, so the latents stay what they are
    encoder: Path | None = None  # transparent encoder; half of the pictures get its offset, as generated latents have
    latent_noise: float = 0.0  # largest deviation of noise in sampler space; half of it on latents without offset
    room_channel: int = 3
    room: float = 0.0  # largest shift of that channel, in sampler space, that the decoder learns to disregard
    ema: Share = 0.995
    log_every: Count = 100
    grid_every: int = 400
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None  # None: as `accelerate config` says
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
    sprites: list[Sprite],
    size: int,
    config: AutoencoderConfig,
    rng: np.random.Generator,
    backgrounds: list[Sprite] | None = None,
) -> Tensor:
    """Opaque pictures [B, 3, size, size], -1..1: sprites on mid-grey (half of them), plain colours, gradients.

    With backgrounds a fourth of the pictures are one alone, and another fourth sprites over one.
    """
    pictures: list[np.ndarray] = []
    for sprite in sprites:
        pixels = augment(sprite.premultiplied, size, config.augmentation, rng)
        kind = rng.random()
        if backgrounds and kind < 0.5:
            background = draw_view(draw(backgrounds, 1, rng)[0], size, rng)
            pixels = pixels if kind < 0.25 else np.zeros_like(pixels)
        else:
            background = 0.5 if rng.random() < 0.5 else make_background(size, rng)
        pictures.append(pixels[..., :3] + background * (1 - pixels[..., 3:]))
    batch = np.stack(pictures).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(batch, np.float32)) * 2 - 1


def draw_noise(
    count: int, size: int, largest: float, rng: np.random.Generator, scaling: float = SCALING_FACTOR
) -> Tensor:
    """Latent noise [count, 4, size/8, size/8] in VAE space; each image's deviation is random up to the largest.

    largest: in sampler space, which is VAE space times `scaling`.
    """
    deviation = rng.random((count, 1, 1, 1), dtype=np.float32) * largest / scaling
    return torch.from_numpy(rng.standard_normal((count, 4, size // 8, size // 8), dtype=np.float32) * deviation)


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


def laplacian_loss(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the Laplacians."""
    difference = image - target
    across = difference[..., 1:-1, 2:] + difference[..., 1:-1, :-2]
    down = difference[..., 2:, 1:-1] + difference[..., :-2, 1:-1]
    return (across + down - 4 * difference[..., 1:-1, 1:-1]).abs().mean()


@torch.no_grad()
def adjust(vae: Any, encoder: TransparentEncoder, batch: TransparentBatch) -> tuple[Tensor, Tensor]:
    """The posterior's mean and the adjusted latent mean + std * offset, both [B, 4, H/8, W/8] in VAE space."""
    posterior = vae.encode(batch.grey.to(vae.dtype) * 2 - 1).latent_dist
    offset = encoder.factor * encoder(torch.cat([batch.alpha, batch.padded], dim=1))
    return posterior.mean, posterior.mean + posterior.std * offset.to(vae.dtype)


class AutoencoderLoss(nn.Module):
    """The autoencoder with a forward that gives the reconstruction, KL and guide terms, already weighted."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = build_autoencoder(config) if config.start is None else read_autoencoder(config.start)
        if config.start is not None:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
        self.encoder: list[TransparentEncoder] = []  # in a list: not a submodule
        if config.encoder is not None:
            encoder = TransparentEncoder.from_state_dict(WeightStore([]).load(config.encoder))
            self.encoder.append(encoder.requires_grad_(False).eval())

    def forward(
        self,
        pictures: Tensor,
        sample: Tensor,
        shift: Tensor,
        noise: Tensor,
        guide: float,
        adjusted: TransparentBatch | None = None,
        adjusted_noise: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Weighted terms, what was decoded and what was wanted, [B + A, 3, H, W], -1..1.

        For `pictures` [B, 3, H, W], -1..1, with `shift` [B, 1, H/8, W/8] as `draw_shift` makes it, then for the A
        transparent images that get the offset. `sample` [B, 4, H/8, W/8] is the posterior's own noise, of deviation 1;
        `noise` like it and `adjusted_noise` [A, 4, H/8, W/8] come on top, in VAE space.
        """
        posterior: DiagonalGaussianDistribution = self.vae.encode(pictures).latent_dist
        channel = self.config.room_channel
        around = (0, 0, 0, 0, channel, posterior.mean.shape[1] - 1 - channel)
        latent = posterior.mean + posterior.std * sample + F.pad(shift / SCALING_FACTOR, around) + noise
        wanted = pictures
        if adjusted is not None:
            latent = torch.cat([latent, adjust(self.vae, self.encoder[0], adjusted)[1] + adjusted_noise])
            wanted = torch.cat([pictures, adjusted.grey * 2 - 1])
        output = self.vae.decode(latent).sample.float()
        colours = 2 * F.avg_pool2d(pictures, 8)
        return (
            {
                "l1": (output - wanted).abs().mean(),
                "gradient": self.config.gradient_weight * gradient_loss(output, wanted),
                "laplacian": self.config.laplacian_weight * laplacian_loss(output, wanted),
                "kl": self.config.kl_weight * 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean(),
                "guide": guide * (posterior.mean[:, :3] - colours).abs().mean(),
            },
            output,
            wanted,
        )


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


@dataclass(frozen=True)
class Batches:
    """The batches of one process: all images once in an epoch over all processes, and as many that are prompts.

    So every second picture shows a sprite that the model will have a word for.
    """

    config: AutoencoderConfig
    images: Mixture
    backgrounds: list[Sprite]
    rank: int = 0
    processes: int = 1

    def draw(self, step: int) -> dict[str, Any]:
        """What a step's loss is of, as `AutoencoderLoss` takes it.

        With an encoder, half of the images are transparent ones whose latents get the offset; a third of these have
        their alpha faded at random.
        """
        config, rng = self.config, step_rng(self.config.seed, step, self.rank)
        stage, taken = find_stage(step, config.size_steps, config.batches)
        size, count = config.sizes[stage], config.batches[stage] * config.accumulate
        images = self.images.draw(taken * config.accumulate * self.processes + self.rank * count, count)
        with_offset = count // 2 if config.encoder is not None else 0
        plain = count - with_offset
        sample = rng.standard_normal((plain, 4, size // 8, size // 8), dtype=np.float32)
        drawn: dict[str, Any] = {
            "pictures": draw_pictures(images[with_offset:], size, config, rng, self.backgrounds),
            "sample": torch.from_numpy(sample),
            "shift": draw_shift(plain, size // 8, config.room, rng),
            "noise": draw_noise(plain, size, config.latent_noise / 2, rng),
        }
        if with_offset:
            shown = images[:with_offset]
            placed = [augment(sprite.premultiplied, size, config.augmentation, rng) for sprite in shown]
            fades = [draw_fade(size, rng) if rng.random() < 1 / 3 else None for _ in placed]
            drawn["adjusted"] = TransparentBatch.of(placed, fades)
            drawn["adjusted_noise"] = draw_noise(with_offset, size, config.latent_noise, rng)
        return drawn


def train(config: AutoencoderConfig, out: Path) -> None:
    """Train, then write `out/model` (a diffusers folder); from scratch with the latents' statistics folded in."""
    accelerator = open_accelerator(mixed_precision=config.mixed_precision, accumulate=config.accumulate)
    torch.manual_seed(config.seed)
    known, held_out = split_sprites(read_sprites(config.data, reading_size(max(config.sizes))))
    scenes, other_scenes = read_backgrounds(config.backgrounds, max(config.sizes))
    prompts = find_prompts(known)
    raw = AutoencoderLoss(config).to(accelerator.device)
    for encoder in raw.encoder:
        encoder.to(accelerator.device)
    vae, raw_judge = raw.vae, PatchDiscriminator(3)
    average = Average(vae, config.ema)
    optimizer = torch.optim.AdamW(
        [p for p in raw.parameters() if p.requires_grad],
        config.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=config.weight_decay,
    )
    judge_optimizer = torch.optim.AdamW(raw_judge.parameters(), 4e-4, betas=(0.5, 0.9), weight_decay=0.0)
    steps = sum(config.size_steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(50, steps))
    model, judge, optimizer, judge_optimizer, schedule = accelerator.prepare(
        raw, raw_judge, optimizer, judge_optimizer, schedule
    )
    accelerator.register_for_checkpointing(average)
    adversary = Adversary(raw_judge, judge, judge_optimizer, accelerator, steps, config)
    rng = step_rng(0, 0)
    check = draw_pictures(draw(held_out, 16, rng), config.sizes[-1], config, rng, other_scenes).to(accelerator.device)
    run = Run(out, config, accelerator, steps, config.log_every)
    images = Mixture((prompts, known), (0.5,), config.seed)
    batches = Batches(config, images, scenes, accelerator.process_index, accelerator.num_processes)
    for step, batch in run.draw(batches.draw, config.workers):
        guide = config.guide_weight * max(0.0, 1 - step / (config.guide_until * steps))
        with adversary.facing(step) as face:
            for part in run.divide(batch, model):
                terms, output, wanted = model(**part, guide=guide)
                terms |= face(wanted, output)
                accelerator.backward(torch.stack(list(terms.values())).sum())
                run.log(**{name: terms.get(name, 0.0) for name in TERMS})
            run.take_step(model, optimizer, schedule)
        average.update(vae)
        if run.is_due(config.log_every) or run.is_due(config.grid_every):
            quality = evaluate(vae, average, check, run if run.is_due(config.grid_every) else None)
            if run.is_due(config.log_every):
                run.log(**quality)
    vae.load_state_dict(average.shadow)
    if config.start is None:
        rng = step_rng(0, 1)
        shown = draw_pictures(draw(known, 128, rng), config.sizes[-1], config, rng)
        normalise_latents(vae, shown.to(accelerator.device))
    if accelerator.is_main_process:
        with run.write_model() as folder:
            vae.save_pretrained(folder)
    accelerator.wait_for_everyone()  # whatever comes next finds the model


@torch.no_grad()
def evaluate(vae: AutoencoderKL, average: Average, pictures: Tensor, run: Run | None) -> dict[str, Tensor]:
    """Likeness and detail of the averaged network on held-out pictures; with a run, a grid of them too."""
    with average.inside(vae):
        output = vae.decode(vae.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)
    shown, wanted = output * 0.5 + 0.5, pictures * 0.5 + 0.5
    if run is not None:
        run.save_grid(
            "reconstruction", [list(part) for half in (slice(8), slice(8, 16)) for part in (wanted[half], shown[half])]
        )
    return {"psnr": psnr(shown, wanted).mean(), "detail": detail(shown).mean(), "detail_wanted": detail(wanted).mean()}
