"""Train the transparent encoder and decoder against a frozen autoencoder with the paper's joint loss.

LayerDiffusion (arXiv 2402.17113), section 3.1: reconstruction of colour and alpha, identity of what the frozen decoder
makes of the adjusted latent (harmlessness), and a patch discriminator.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from ..refusal import Refusal
from ..transparent_vae import TransparentDecoder, TransparentEncoder
from ..weights import WeightStore
from .autoencoder import draw_noise, gradient_loss, laplacian_loss, read_autoencoder
from .bank import Bank
from .config import Count, Many, Share, Side, Workers, as_metadata, check_stages, find_stage, strict
from .dataset import (
    Augmentation,
    Mixture,
    Sprite,
    TransparentBatch,
    augment,
    draw,
    draw_fade,
    find_prompts,
    list_rows,
    make_background,
    make_photo_background,
    read_sprites,
    reading_size,
    split_sprites,
    step_rng,
)
from .discriminator import Adversary, PatchDiscriminator
from .measures import detail, psnr
from .recipe import DECODER, ENCODER
from .run import Average, Run, cosine, open_accelerator
from .sampled import sample_latents
from .widening import let_through, widen

COARSE_LEVELS = (3, 2)  # the latent's level and the next finer one
SOFTNESS_REACH = 8  # side in pixels of the squares in which half-transparency is compared
VISIBLE = 0.1  # alpha that an eye sees
STRAY_REACH = 4  # pixels around what is visible in which alpha may fade out
LATENT_START = 0.25  # so that the latent is no weaker than the picture's features where they meet


TERMS = ("reconstruction", "likeness", "identity", "coarse", "guide", "stray", "agreement", "adversarial", "matching")


@strict
@dataclass(frozen=True)
class TransparencyConfig:
    """Options of the latent transparency training."""

    data: Path = Path("sprites.zip")
    autoencoder: Path = Path("runs/autoencoder/model")
    seed: int = 3
    decoder_widths: tuple[int, ...] = (16, 16, 32, 48, 48, 48, 48)
    encoder_widths: tuple[int, ...] = (16, 32, 48, 64)
    sizes: tuple[Side, ...] = (64, 128)  # trained one after the other
    size_steps: tuple[Count, ...] = (2000, 1000)
    batches: tuple[Count, ...] = (12, 4)
    accumulate: Count = 1  # batches that make one step
    workers: Workers = 0
    learning_rate: float = 1.5e-3
    reconstruction_weight: float = 1.0
    alpha_square_weight: float = 2.0  # of alpha's squared error beside its absolute one; 0 makes edges sharper
    gradient_weight: float = 0.5  # of the first differences of alpha and of the composite
    laplacian_weight: float = 0.0  # of their Laplacians
    softness_weight: float = 0.0  # of how much alpha near each place lies between 0 and 1: edges as narrow as they are
    corner_weight: float = 0.0  # of alpha's error in the four corner pixels, into which the padding of zeros leaks
    picture_weight: float = 0.0  # likeness, on grey, to the frozen decoder's picture: sharp where that is, if not true
    agreement_weight: float = 0.0  # of how far alpha of two views lies apart: a few do nearly as well as all eight
    stray_weight: float = 0.0  # of alpha that lies apart from all that is visible, in sampled latents
    alpha_margin: float = 0.0  # pixels that are to be 0 or 1 aim so far beyond, so that clipping makes them exact
    identity_weight: float = 1.0
    discriminator_weight: float = 0.01
    matching_weight: float = 0.5  # distance of the discriminator's inner layers' outputs
    discriminator_from: Share = 0.6  # share of the steps without discriminator
    soft_share: Share = 0.3
    prompt_share: Share = 0.3
    fade_share: Share = 0.5
    pairs: bool = True  # images come in pairs of one picture, so that alpha can only be told from the offset
    offset_gain: float = 40.0  # offset in posterior deviations for an encoder's output of 1
    warm_up: Share = 0.3  # share of the steps over which identity and latent noise grow
    coarse_weight: float = 1.0  # alpha read from the decoder's deeper levels, so that they carry it; 0: off
    guide_weight: float = 0.5  # one channel of the offset follows alpha, so that the decoder learns to read it; 0: off
    guide_channel: int = 3  # the one that the frozen decoder heeds least
    guide_amplitude: float = 0.8  # in sampler space
    guide_erase: float = 0.7  # share of the channel's own content that the offset takes away, lest it drown alpha
    start_encoder: Path | None = None  # files of an earlier training to start from; without its encoder, the layer of
    start_decoder: Path | None = None  # the decoder that reads the latent starts anew. A narrower decoder is widened
    picture_path: bool = False  # start_decoder is changed so that at first its colour is the picture's own
    encoder_steps: int = 0  # first steps, in which the encoder alone follows the guide
    decoder_only: bool = False  # leave the encoder as it is, so that UNets that were taught its latents stay right
    latent: bool = True  # False: no offset, and a decoder that sees the picture alone: what could be done without it
    only: str | None = None  # train the parameters alone whose names begin so, such as "decoder.conv_out"
    sampled: Many = 0  # latents in a batch, beside its images, that a UNet sampled; 0: none
    sampler: Path | None = None  # the pipeline that samples them
    sampler_weights: Path | None = None  # the folder of its layer file
    samples: Count = 512  # sampled once and kept beside the checkpoint
    latent_noise: float = 0.08  # largest deviation, in sampler space, added so that sampled latents decode
    ema: Share = 0.998
    log_every: Count = 100
    grid_every: int = 400
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None  # None: as `accelerate config` says
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        check_stages(self.sizes, self.size_steps, self.batches)
        if not (self.latent or self.decoder_only):
            raise Refusal("Without the latent there is nothing for the encoder to learn; set decoder_only = true.")


class LatentTransparency(nn.Module):
    """Encoder, frozen autoencoder and decoder as one module whose forward gives outputs and loss terms.

    While training, the offset is `offset_gain` times the encoder's output; the file is scaled to the published factor.
    """

    def __init__(self, config: TransparencyConfig, vae: AutoencoderKL) -> None:
        super().__init__()
        self.config = config
        self.encoder = TransparentEncoder(config.encoder_widths)
        self.decoder = TransparentDecoder(config.decoder_widths)
        # the published networks start at zero on both sides of the offset; from scratch it is then not found
        nn.init.normal_(self.decoder.latent_conv_in.weight, std=LATENT_START)
        nn.init.normal_(self.encoder.blocks[-1].weight, std=0.2)
        self.encoder.requires_grad_(not config.decoder_only)
        self.coarse_heads = nn.ModuleList(nn.Conv2d(config.decoder_widths[level], 1, 1) for level in COARSE_LEVELS)
        self.coarse: list[Tensor] = []  # features of the last pass that the heads read
        for level in COARSE_LEVELS:
            block = self.decoder.up_blocks[len(config.decoder_widths) - 1 - level]
            block.upsamplers[0].register_forward_hook(lambda _module, _given, output: self.coarse.append(output))
        self.vae = [vae.requires_grad_(False).eval()]  # in a list: neither a submodule nor in the state dict

    def adjust(self, batch: TransparentBatch) -> tuple[Tensor, Tensor]:
        """The posterior's mean and the adjusted latent, VAE space [B, 4, H/8, W/8]."""
        posterior = self.vae[0].encode(batch.grey * 2 - 1).latent_dist
        offset = self.config.offset_gain * self.encoder(torch.cat([batch.alpha, batch.padded], dim=1))
        return posterior.mean, posterior.mean + posterior.std * offset

    def read(self, latent: Tensor, view: int = 0) -> tuple[Tensor, Tensor]:
        """Frozen decoder's picture 0..1 and what the transparent decoder reads from one of its eight views."""
        picture = self.vae[0].decode(latent).sample * 0.5 + 0.5
        return picture, self.look(picture, latent, view)

    def look(self, picture: Tensor, latent: Tensor, view: int) -> Tensor:
        """What the transparent decoder reads from one of the eight views of picture and latent: [B, 4, H, W]."""
        mirrored, quarters = divmod(view, 4)
        seen = (x.flip(-1) if mirrored else x for x in (picture.clamp(0, 1), latent))
        self.coarse.clear()
        output = self.decoder(*(torch.rot90(x, quarters, (-2, -1)) for x in seen))
        return self.turn_back(output, view)

    @staticmethod
    def turn_back(x: Tensor, view: int) -> Tensor:
        mirrored, quarters = divmod(view, 4)
        x = torch.rot90(x, -quarters, (-2, -1))
        return x.flip(-1) if mirrored else x

    def coarse_loss(self, alpha: Tensor, view: int) -> Tensor:
        """Mean absolute error of alpha as small linear heads read it from the decoder's deeper levels.

        Alpha comes in at an eighth of the size; without this the shallow levels, which see only the picture, win.
        """
        errors: list[Tensor] = []
        for head, features in zip(self.coarse_heads, self.coarse, strict=True):
            made = self.turn_back(head(features[: len(alpha)]), view).float()
            errors.append((made - F.avg_pool2d(alpha, alpha.shape[-1] // made.shape[-1])).abs().mean())
        return torch.stack(errors).sum()

    def forward(
        self,
        batch: TransparentBatch,
        noise: Tensor,
        backgrounds: Tensor,
        warmth: float,
        view: int | None,
        sampled: Tensor | None = None,
        other_view: int = 0,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Loss terms, and the decoded premultiplied RGBA [B, 4, H, W], followed by that of the sampled latents.

        `warmth` is the share of the warm-up done; `view` (0..7) is the one that the transparent decoder sees. With None
        the encoder is alone: the guide is the only term, and nothing is decoded. `other_view` is the one that it has to
        agree with. Of `sampled` latents, VAE space, no truth is known; the only terms here that they are in are the
        likeness to the picture, the agreement and stray alpha.
        """
        mean, adjusted = self.adjust(batch)
        guide = self.config.guide_weight * self.guide(mean, adjusted, batch.alpha)
        if view is None:
            return {"guide": guide}, adjusted
        noise = noise * warmth
        latent = adjusted + noise
        given = latent if sampled is None else torch.cat([latent, sampled])
        picture, output = self.read(given, view)
        made = torch.cat([output[:, :1], output[:, 1:] * output[:, :1]], dim=1)
        on_grey, seen = 0.5 + made[:, 1:] - 0.5 * made[:, :1], picture.detach()
        likeness = (
            (on_grey - seen).abs().mean()
            + self.config.gradient_weight * gradient_loss(on_grey, seen)
            + self.config.laplacian_weight * laplacian_loss(on_grey, seen)
        )
        everything, picture, output = output, picture[: len(latent)], output[: len(latent)]
        alpha, colour = output[:, :1], output[:, 1:]
        composite = colour * alpha + backgrounds * (1 - alpha)
        target = batch.padded * batch.alpha + backgrounds * (1 - batch.alpha)
        wanted = aim(alpha, batch.alpha, self.config.alpha_margin)
        reconstruction = (
            (alpha - wanted).abs().mean()
            + self.config.softness_weight * softness_loss(alpha, batch.alpha)
            + self.config.corner_weight * (alpha - wanted)[..., [0, 0, -1, -1], [0, -1, 0, -1]].abs().mean()
            + self.config.alpha_square_weight * (alpha - wanted).pow(2).mean()
            + (composite - target).abs().mean()
            + ((colour - batch.padded).abs() * (0.1 + batch.alpha)).mean()
            + self.config.gradient_weight * (gradient_loss(alpha, wanted) + gradient_loss(composite, target))
            + self.config.laplacian_weight * (laplacian_loss(alpha, wanted) + laplacian_loss(composite, target))
        )
        terms = {
            "reconstruction": self.config.reconstruction_weight * reconstruction,
            "likeness": self.config.picture_weight * likeness,
            "coarse": self.config.coarse_weight * self.coarse_loss(batch.alpha, view),
        }
        if self.config.stray_weight and sampled is not None:
            stray = stray_loss(everything[len(latent) :, :1], self.config.alpha_margin)
            terms["stray"] = self.config.stray_weight * stray
        if self.config.agreement_weight:
            other = self.look(seen, given, other_view)
            apart = (everything[:, :1].clamp(0, 1) - other[:, :1].clamp(0, 1)).abs().mean()
            terms["agreement"] = self.config.agreement_weight * apart
        if not self.config.decoder_only:
            with torch.no_grad():
                wanted = self.vae[0].decode(mean + noise).sample * 0.5 + 0.5
            identity = (picture - wanted).pow(2).mean() * 10
            terms |= {"identity": warmth * self.config.identity_weight * identity, "guide": guide}
        return terms, made

    def guide(self, mean: Tensor, adjusted: Tensor, alpha: Tensor) -> Tensor:
        """Distance of one adjusted channel, in sampler space, to +-amplitude for transparent and opaque.

        What the channel held before stays by the share that isn't erased.
        """
        own, present = (
            x[:, self.config.guide_channel : self.config.guide_channel + 1] * self.vae[0].config.scaling_factor
            for x in (mean, adjusted)
        )
        wanted = self.config.guide_amplitude * (1 - 2 * F.avg_pool2d(alpha, 8))
        return (present - wanted - (1 - self.config.guide_erase) * own).abs().mean()

    def start_from(self, encoder: Path | None, decoder: Path | None) -> None:
        """Load the files that an earlier training wrote; a narrower decoder is widened.

        Without its encoder, the decoder's layer that reads the latent starts anew. In a training without the latent,
        that layer and the encoder's last one are 0 and stay so.
        """
        store = WeightStore([])
        if encoder is not None:
            state = dict(store.load(encoder))
            scale_last(state, TransparentEncoder.factor / self.config.offset_gain)
            self.encoder.load_state_dict(state)
        if decoder is not None:
            state = dict(store.load(decoder))
            state = widen(state, self.config.decoder_widths)
            if self.config.picture_path:
                state = let_through(state)
            if encoder is None:
                state["latent_conv_in.weight"] = self.decoder.latent_conv_in.weight.detach()
            self.decoder.load_state_dict(state)
        if not self.config.latent:
            for layer in (self.encoder.blocks[-1], self.decoder.latent_conv_in):
                layer.requires_grad_(False)
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)


def aim(alpha: Tensor, wanted: Tensor, margin: float) -> Tensor:
    """The alpha that the network's unclipped output is compared with.

    Where 0 or 1 is wanted, any value that the margin beyond it or more is as good: clipping makes it exact.
    """
    if not margin:
        return wanted
    low, high = wanted <= 0, wanted >= 1
    aimed = torch.where(low, alpha.detach().clamp(max=-margin), wanted)
    return torch.where(high, alpha.detach().clamp(min=1 + margin), aimed)


def stray_loss(alpha: Tensor, margin: float) -> Tensor:
    """Mean alpha [B, 1, H, W], and the margin below 0, of pixels farther than STRAY_REACH from any that is VISIBLE."""
    seen = (alpha.detach() > VISIBLE).float()
    near = F.max_pool2d(seen, 2 * STRAY_REACH + 1, stride=1, padding=STRAY_REACH)
    return ((alpha + margin).clamp(min=0) * (1 - near)).mean()


def softness_loss(alpha: Tensor, wanted: Tensor) -> Tensor:
    """Distance of what half-transparency [B, 1, H, W] there is around each place, wherever in it that lies.

    Where a decoder can't know to a pixel where an edge is, all distances of pixels prefer a wide edge in between. This
    one asks for an edge of the right width.
    """
    made, true = (F.avg_pool2d(x * (1 - x), SOFTNESS_REACH, stride=1) for x in (alpha.clamp(0, 1), wanted))
    return (made - true).abs().mean()


def choose_parameters(raw: nn.Module, only: str | None) -> list[nn.Parameter]:
    """The parameters to train; the others get no gradient."""
    for name, parameter in raw.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.startswith(only or ""))
    chosen = [parameter for parameter in raw.parameters() if parameter.requires_grad]
    if not chosen:
        raise Refusal(f"No parameter that can be trained has a name that begins with {only!r}; try decoder.conv_out.")
    return chosen


@dataclass(frozen=True)
class Batches:
    """The batches of one process: all images once in an epoch over all processes, soft ones and prompts more often."""

    config: TransparencyConfig
    images: Mixture
    scaling_factor: float
    rank: int = 0
    processes: int = 1
    bank: Bank | None = None  # sampled latents

    @classmethod
    def of(
        cls,
        sprites: list[Sprite],
        config: TransparencyConfig,
        scaling_factor: float,
        rank: int = 0,
        processes: int = 1,
        bank: Bank | None = None,
    ) -> Batches:
        soft = [sprite for sprite in sprites if sprite.kind == "soft"] or sprites
        shares = (config.soft_share, config.prompt_share)
        images = Mixture((soft, find_prompts(sprites), sprites), shares, config.seed)
        return cls(config, images, scaling_factor, rank, processes, bank)

    def draw(self, step: int) -> dict[str, Any]:
        """What a step's loss is of, as `LatentTransparency` takes it.

        With `pairs` each image is there twice in one placement; `fade_share` of all have their alpha faded at random.
        """
        config, rng = self.config, step_rng(self.config.seed, step, self.rank)
        stage, taken = find_stage(step, config.size_steps, config.batches)
        size, count = config.sizes[stage], config.batches[stage] * config.accumulate
        copies = 2 if config.pairs else 1
        first = (taken * config.accumulate * self.processes + self.rank * count) // copies
        images: list[NDArray[np.float32]] = []
        for sprite in self.images.draw(first, count // copies):
            images += [augment(sprite.premultiplied, size, config.augmentation, rng)] * copies
        fades = [draw_fade(size, rng) if rng.random() < config.fade_share else None for _ in images]
        noise = draw_noise(count, size, config.latent_noise, rng, self.scaling_factor)
        backgrounds = draw_backgrounds(count, size, rng)
        view, turn = int(rng.integers(8)), int(rng.integers(1, 8))
        return {
            "batch": TransparentBatch.of(images, fades),
            "noise": noise,
            "backgrounds": backgrounds,
            "view": view if step >= config.encoder_steps else None,
            "other_view": (view + turn) % 8,
            "sampled": self.read_sampled(step),
        }

    def read_sampled(self, step: int) -> Tensor | None:
        """The sampled latents of a step [N, 4, h, w], VAE space."""
        if self.bank is None:
            return None
        count = self.config.sampled * self.config.accumulate
        rows = list_rows(self.bank.rows, self.config.seed, (step * self.processes + self.rank) * count, count)
        return self.bank.read(rows)["latent"]


def draw_backgrounds(count: int, size: int, rng: np.random.Generator) -> Tensor:
    makers = (make_background, make_photo_background)
    images = [makers[int(rng.integers(2))](size, rng) for _ in range(count)]
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())


def train(config: TransparencyConfig, out: Path) -> None:
    """Train both networks, then write their files with the published keys to `out/model`."""
    check_starts(config)
    accelerator = open_accelerator(config.encoder_steps > 0, config.mixed_precision, config.accumulate)
    torch.manual_seed(config.seed)
    known, held_out = split_sprites(read_sprites(config.data, reading_size(max(config.sizes))))
    vae = read_autoencoder(config.autoencoder).to(accelerator.device)
    raw = LatentTransparency(config, vae)
    raw.start_from(config.start_encoder, config.start_decoder)
    raw.to(accelerator.device)
    raw_judge = PatchDiscriminator(4)
    trained = choose_parameters(raw, config.only)
    average = Average(raw, config.ema)
    steps = sum(config.size_steps)
    optimizer = torch.optim.AdamW(trained, config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    judge_optimizer = torch.optim.AdamW(raw_judge.parameters(), 4e-4, betas=(0.5, 0.9), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(100, steps))
    model, judge, optimizer, judge_optimizer, schedule = accelerator.prepare(
        raw, raw_judge, optimizer, judge_optimizer, schedule
    )
    accelerator.register_for_checkpointing(average)
    adversary = Adversary(raw_judge, judge, judge_optimizer, accelerator, steps, config)
    check = draw_check(held_out, config).to(accelerator.device)
    run = Run(out, config, accelerator, steps, config.log_every)
    rank, processes = accelerator.process_index, accelerator.num_processes
    bank = open_bank(config, known, out / "sampled", accelerator)
    batches = Batches.of(known, config, vae.config.scaling_factor, rank, processes, bank)
    for step, batch in run.draw(batches.draw, config.workers):
        warmth = min(1.0, (step - config.encoder_steps) / (config.warm_up * steps + 1e-9))
        with adversary.facing(step) as face:
            for part in run.divide(batch, model):
                terms, output = model(**part, warmth=warmth)
                shown: TransparentBatch = part["batch"]
                terms |= face(torch.cat([shown.alpha, shown.padded * shown.alpha], dim=1), output)
                accelerator.backward(torch.stack(list(terms.values())).sum())
                run.log(**{name: terms.get(name, 0.0) for name in TERMS})
            run.take_step(model, optimizer, schedule)
        average.update(raw)
        if run.is_due(config.log_every) or run.is_due(config.grid_every):
            quality = evaluate(raw, average, check, run if run.is_due(config.grid_every) else None)
            if run.is_due(config.log_every):
                run.log(**quality)
    if accelerator.is_main_process:
        raw.load_state_dict(average.shadow)
        with run.write_model() as folder:
            write_files(raw, folder, config)
    accelerator.wait_for_everyone()  # whatever comes next finds the model


def check_starts(config: TransparencyConfig) -> None:
    """Refuse what lacks something that it starts from."""
    if config.picture_path and config.start_decoder is None:
        raise Refusal("The picture's path is for a trained decoder; name start_decoder, or set picture_path = false.")
    if config.sampled and not (config.decoder_only and config.sampler and config.sampler_weights):
        raise Refusal(
            "Latents are sampled for a decoder whose encoder stays; set decoder_only = true and name sampler and "
            "sampler_weights, or set sampled = 0."
        )
    if config.sampled and len(set(config.sizes)) > 1:
        raise Refusal("Sampled latents have one size; give one in sizes, or set sampled = 0.")


def open_bank(config: TransparencyConfig, known: list[Sprite], folder: Path, accelerator: Accelerator) -> Bank | None:
    """Latents of the prompts, as the sampler gives them with its layer file; None where the training has none."""
    if not config.sampled or config.sampler is None or config.sampler_weights is None:
        return None
    captions = sorted({sprite.text for sprite in find_prompts(known)})
    given = config.sampler, config.sampler_weights, captions, max(config.sizes), config.samples
    return sample_latents(*given, folder, accelerator)


def draw_check(held_out: list[Sprite], config: TransparencyConfig) -> TransparentBatch:
    """Sixteen held-out images without fading, half of them soft."""
    rng = step_rng(0, 0)
    kinds = [[sprite for sprite in held_out if sprite.kind == kind] for kind in ("opaque", "soft")]
    chosen = [sprite for pool in kinds for sprite in draw(pool or held_out, 8, rng)]
    return TransparentBatch.of([augment(s.premultiplied, config.sizes[-1], config.augmentation, rng) for s in chosen])


@torch.no_grad()
def evaluate(raw: LatentTransparency, average: Average, check: TransparentBatch, run: Run | None) -> dict[str, Tensor]:
    """Alpha error with and without offset, harmlessness and recomposition on held-out images, averaged weights."""
    with average.inside(raw):
        mean, adjusted = raw.adjust(check)
        picture, output = raw.read(adjusted)
        plain, blind = raw.read(mean)
    output = output.clamp(0, 1)
    alpha, colour = output[:, :1], output[:, 1:]
    board = torch.full_like(colour, 0.5)
    board[:, :, :, ::16] = 0.7
    shown, wanted = (c * a + board * (1 - a) for c, a in ((colour, alpha), (check.padded, check.alpha)))
    if run is not None:
        grey = [a.expand(-1, 3, -1, -1) for a in (check.alpha, alpha)]
        run.save_grid("held-out", [list(rows) for rows in (wanted, shown, grey[0], grey[1], picture.clamp(0, 1))])
    return {
        "alpha_mae": (alpha - check.alpha).abs().mean(),
        "alpha_mae_soft": (alpha - check.alpha)[8:].abs().mean(),
        "alpha_mae_without_offset": (blind[:, :1].clamp(0, 1) - check.alpha).abs().mean(),
        "harmless_db": psnr(picture.clamp(0, 1), plain.clamp(0, 1)).mean(),
        "recomposite_db": psnr(shown, wanted).mean(),
        "detail": detail((colour - 0.5) * alpha + 0.5).mean(),
        "detail_wanted": detail(check.grey).mean(),
        "offset": (adjusted - mean).abs().mean(),
    }


def scale_last(encoder: dict[str, Tensor], gain: float) -> None:
    """Multiply the last layer of an encoder's state dict, and with it the offset."""
    last = max(int(name.split(".")[1]) for name in encoder)
    for part in ("weight", "bias"):
        encoder[f"blocks.{last}.{part}"] = encoder[f"blocks.{last}.{part}"] * gain


def write_files(raw: LatentTransparency, folder: Path, config: TransparencyConfig) -> None:
    """Both networks under the published names and keys; the encoder's last layer is scaled to the published factor."""
    encoder = {name: value.detach().cpu().clone() for name, value in raw.encoder.state_dict().items()}
    scale_last(encoder, config.offset_gain / TransparentEncoder.factor)
    decoder = {name: value.detach().cpu().contiguous() for name, value in raw.decoder.state_dict().items()}
    save_file(encoder, folder / f"{ENCODER}.safetensors", as_metadata(config))
    save_file(decoder, folder / f"{DECODER}.safetensors", as_metadata(config))
