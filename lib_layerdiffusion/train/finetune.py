"""Teach a frozen UNet to generate adjusted latents, by low-rank patches or by attention sharing.

LayerDiffusion (arXiv 2402.17113), sections 3.2 and 3.3. Writes the published formats: `...::lora::0` files for the
patches, `hookers.layers` files for attention sharing with one or several frames, with or without control.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ..hosts.diffusers import DiffusersHost, layer_diffusion
from ..hosts.ldm_names import name_modules, translate
from ..hosts.pipelines import load_pipeline
from ..injection import shared_attention, side_path
from ..layers import composite
from ..modes import Mode, find_mode
from ..refusal import Refusal
from ..shared_attention import ATTENTION_ORDER, AttentionSharingUnit, ControlEncoder
from ..transparent_vae import TransparentEncoder
from ..weights import WeightStore
from ..weights.attention_units import CONTROL_PREFIX, UNITS_PREFIX
from ..weights.patches import FILE_PREFIX, DiffPatch, LoraPatch, Patch
from .bank import Bank
from .base import denoising_loss, draw_noise
from .config import Count, Share, Side, Workers, as_metadata, strict
from .dataset import Augmentation, TransparentBatch, augment, list_rows, step_rng
from .run import Average, Run, constant, cosine, open_accelerator
from .scenes import ROLES, Placement, Scene, SceneSource, make_condition, read_scenes

log = logging.getLogger(__name__)

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
FIRST_CONV = "input_blocks.0.0"
SAMPLES = 8  # captions in a sample grid
SOLID = 0.99  # alpha of what nothing behind it shines through


@strict
@dataclass(frozen=True)
class FinetuneConfig:
    """Options of the UNet's fine-tuning."""

    data: Path = Path("sprites.zip")  # RGBA images, or a metadata.jsonl of scenes
    backgrounds: Path | None = None  # pictures with captions, over which the images are put; None: plain colours
    base: Path = Path("runs/base/model")
    encoder: Path = Path("runs/transparency/model/layer_sd15_vae_transparent_encoder.safetensors")
    form: Literal["attention_sharing", "lora"] = "attention_sharing"
    mode: str = "foreground"
    only_prompts: bool = True  # train on the sprites that the base model has words for
    start: Path | None = None  # an earlier file of the same mode and sizes
    start_foreground: Path | None = None  # a file of the mode foreground, from which the transparent frame begins
    seed: int = 4
    size: Side = 128
    rank: Count = 32
    control_width: Count = 256  # channels of the control signal; 256 as in the published files
    views_per_caption: Count = 256
    steps: Count = 1000
    batch: Count = 16
    accumulate: Count = 1  # batches that make one step
    workers: Workers = 0
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"  # constant: can be lengthened later
    snr_limit: float = 5.0
    known_weight: float = 0.0  # how much more the part of a frame counts that the given images show already
    drop_caption: Share = 0.1
    shared_caption: Share = 0.3  # share of the sets all of whose frames get the blend's caption
    ema: Share = 0.995
    log_every: Count = 50
    grid_every: int = 250
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None  # None: as `accelerate config` says
    augmentation: Augmentation = field(default_factory=Augmentation)  # of the mode that makes a foreground alone
    placement: Placement = field(default_factory=Placement)  # of the other modes


class FinetunedUnet(nn.Module):
    """The trained parameters; forward gives the loss of the frozen UNet with them injected."""

    def __init__(self, config: FinetuneConfig, mode: Mode, host: DiffusersHost, scheduler: Any) -> None:
        super().__init__()
        self.config, self.mode, self.scheduler = config, mode, scheduler
        self.unet = [host.unet.requires_grad_(False).eval()]  # in a list: not a submodule
        names = name_modules(dict(host.unet.config))
        self.places = {place: name for place in self._ldm_places(names, host) if (name := translate(place, names))}
        self.units = nn.ModuleList()
        self.control: ControlEncoder | None = None
        self.ups, self.downs = nn.ParameterList(), nn.ParameterList()
        self.first: nn.Parameter | None = None  # change of the first convolution, which also takes the inputs
        if config.form == "attention_sharing":
            frames, control = len(mode.frames), bool(mode.inputs)
            attentions = [host.unet.get_submodule(self.places[place]) for place in ATTENTION_ORDER]
            width = config.control_width
            self.units.extend(
                AttentionSharingUnit(a, frames, control=control, rank=config.rank, control_channels=width)
                for a in attentions
            )
            self.control = ControlEncoder((min(32, width), min(64, width), min(128, width), width)) if control else None
        else:
            for name in self.places.values():
                linear = host.unet.get_submodule(name)
                self.downs.append(nn.Parameter(torch.randn(config.rank, linear.in_features) / linear.in_features**0.5))
                self.ups.append(nn.Parameter(torch.zeros(linear.out_features, config.rank)))
            if mode.inputs:
                shape = host.unet.conv_in.weight.shape
                self.first = nn.Parameter(torch.zeros(shape[0], mode.first_conv_channels, *shape[2:]))

    def _ldm_places(self, names: dict[str, str], host: DiffusersHost) -> list[str]:
        """LDM names of the attentions (sharing) or of all their projections (lora)."""
        if self.config.form == "attention_sharing":
            return list(ATTENTION_ORDER)
        back = {diffusers: ldm for ldm, diffusers in names.items()}
        linears = (name for name, _ in host.unet.named_modules() if ".attn" in name and name.endswith(PROJECTIONS))
        return [ldm for name in linears if (ldm := translate(name, back))]

    @contextmanager
    def injected(self, control: Tensor | None) -> Iterator[None]:
        """The trained parameters inside the live UNet; `control` as the bank has it, [B, ...]."""
        unet = self.unet[0]
        if self.config.form == "attention_sharing":
            names = (self.places[place] for place in ATTENTION_ORDER)
            signal = self.control(control) if self.control is not None else None
            with shared_attention(unet, dict(zip(names, self.units, strict=True)), control_signal=signal):
                yield
        else:
            weights = (f"{name}.weight" for name in self.places.values())
            factors = zip(weights, self.ups, self.downs, strict=True)
            patches: dict[str, Patch] = {name: LoraPatch(up, down) for name, up, down in factors}
            if self.first is not None:
                patches["conv_in.weight"] = DiffPatch(self.first)
            with side_path(unet, patches, 1.0, concat=control):
                yield

    def forward(
        self,
        clean: Tensor,
        context: Tensor,
        added: dict[str, Tensor] | None,
        control: Tensor | None,
        known: Tensor | None,
        **noise: Tensor,
    ) -> Tensor:
        """`added` are SDXL's conditions, `control` is as in `injected`, `noise` as `draw_noise` gives it.

        `known` [B, 1, h, w], 0..1: the share of a latent pixel that the given images show.
        """
        conditions = {"added_cond_kwargs": added} if added else {}
        emphasis = None if known is None else 1 + self.config.known_weight * known
        with self.injected(control):
            return denoising_loss(
                self.unet[0], clean, context, self.scheduler, emphasis=emphasis, **noise, **conditions
            )

    def published_state(self, averaged: dict[str, Tensor]) -> dict[str, Tensor]:
        """State dict under the keys of the published files."""
        if self.config.form == "lora":
            state: dict[str, Tensor] = {}
            for row, place in enumerate(self.places):
                state[f"{FILE_PREFIX}{place}.weight::lora::0"] = averaged[f"ups.{row}"]
                state[f"{FILE_PREFIX}{place}.weight::lora::1"] = averaged[f"downs.{row}"]
            if self.first is not None:
                state[f"{FILE_PREFIX}{FIRST_CONV}.weight::diff::0"] = averaged["first"]
            return state
        prefixes = {"units": UNITS_PREFIX, "control": CONTROL_PREFIX}
        named = ((name.partition("."), value) for name, value in averaged.items())
        return {f"{prefixes[first]}{rest}": value for (first, _, rest), value in named}

    def start_from(self, file: Path) -> None:
        """Load the parameters of an earlier file of this mode; refused where its tensors are others."""
        known = self.published_state({name: name for name in self.state_dict()})  # type: ignore[arg-type]
        state = WeightStore([]).load(file)
        own = self.state_dict()
        if known.keys() != state.keys() or any(own[str(name)].shape != state[key].shape for key, name in known.items()):
            raise Refusal(
                f"{file} has other tensors than this training; give a file of its mode, rank and control_width."
            )
        self.load_state_dict({str(name): state[key] for key, name in known.items()})

    def start_foreground_from(self, file: Path) -> None:
        """Give the transparent frame the low-rank products of a file that makes a foreground alone."""
        frame = self.mode.transparent_frame
        if self.config.form == "lora" or frame is None or len(self.mode.frames) == 1:
            raise Refusal(f"Layer mode {self.mode.name!r} has no foreground among other frames; drop start_foreground.")
        state = WeightStore([]).load(file)
        own = dict(self.units.named_parameters())
        alone = {name: name.replace(f"_lora.{frame}.", "_lora.0.") for name in own if f"_lora.{frame}." in name}
        found = {name: state.get(f"{UNITS_PREFIX}{other}") for name, other in alone.items()}
        if any(value is None or value.shape != own[name].shape for name, value in found.items()):
            raise Refusal(f"{file} doesn't fit; give a file of the mode foreground with the same rank.")
        self.units.load_state_dict({name: value for name, value in found.items() if value is not None}, strict=False)


def draw_sets(
    source: SceneSource, mode: Mode, config: FinetuneConfig, bank: Bank, part: int
) -> tuple[dict[str, Any], list[list[str]]]:
    """The pictures of one of the bank's files, as `stack_pictures` gives them, with the captions of each set.

    These are those of its frames, and the blend's last.
    """
    rng = step_rng(config.seed, part, 1 << 16)
    captions = source.captions
    scenes: list[Scene] = []
    for row in bank.find_rows(part):
        number, view = divmod(row, config.views_per_caption)
        scenes.append(draw_set(source, captions[number], mode, config, rng, view))
    return stack_pictures(scenes), [[scene.texts[role] for role in (*mode.frames, "blend")] for scene in scenes]


@torch.no_grad()
def encode_sets(
    host: DiffusersHost, encoder: TransparentEncoder, mode: Mode, drawn: tuple[dict[str, Any], list[list[str]]]
) -> tuple[dict[str, Tensor], list[list[str]]]:
    """What N sets of F frames are trained on, and their captions as they are.

    `mean` [N, F, 4, h, w], VAE space, of transparent frames the adjusted latent; `std` like it, of transparent frames
    0, since their offset stands for the sample; for modes with inputs `control` as in `encode_inputs` and `known`
    [N, F, 1, h, w] as in `find_known`.
    """
    pictures, texts = drawn
    frames = [encode_frame(host, encoder, pictures, role, mode) for role in mode.frames]
    mean, std = (torch.stack(parts, dim=1) for parts in zip(*frames, strict=True))
    sets = {"mean": mean, "std": std}
    if mode.inputs:
        alpha = pictures["batch"].alpha
        known = torch.stack([find_known(alpha, role, mode) for role in mode.frames], dim=1)
        factor = alpha.shape[-1] // mean.shape[-1]
        sets["control"] = encode_inputs(host, pictures, mode)
        sets["known"] = functional.avg_pool2d(known.flatten(0, 1), factor).unflatten(0, known.shape[:2])
    return sets, texts


def find_known(alpha: Tensor, role: str, mode: Mode) -> Tensor:
    """Where a frame shows what the mode is given, by the foreground's alpha [B, 1, H, W]; 0 and 1.

    The blend shows the foreground where that is opaque, and the background where there is none; these two are each
    other's there.
    """
    solid, empty = (alpha > SOLID).float(), (alpha == 0).float()
    seen = {("blend", "foreground"): solid, ("blend", "background"): empty, ("background", "blend"): empty}
    return sum((seen[role, given] for given in mode.inputs if (role, given) in seen), torch.zeros_like(alpha))


def draw_set(
    source: SceneSource, caption: str, mode: Mode, config: FinetuneConfig, rng: np.random.Generator, view: int
) -> Scene:
    """A scene; for a mode that makes a foreground alone, an image over nothing."""
    if mode.frames != ("foreground",) or mode.inputs or source.given:
        return source.draw(caption, config.size, config.placement, rng, view)
    sprite = source.sprites[source.pick(caption, rng, view)]
    pixels = augment(sprite.premultiplied, config.size, config.augmentation, rng)
    return Scene(pixels, pixels[..., :3], pixels[..., :3], dict.fromkeys(ROLES, caption))


def stack_pictures(scenes: list[Scene]) -> dict[str, Any]:
    """Roles to opaque pictures [B, 3, H, W] 0..1 (the foreground composited on grey) and `batch` with its alpha."""
    batch = TransparentBatch.of([scene.foreground for scene in scenes])
    opaque = {role: np.stack([getattr(scene, role) for scene in scenes]) for role in ROLES[1:]}
    stacked = {role: torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()) for role, pixels in opaque.items()}
    return {"batch": batch, "foreground": batch.grey, **stacked}


def encode_frame(
    host: DiffusersHost, encoder: TransparentEncoder, pictures: dict[str, Any], role: str, mode: Mode
) -> tuple[Tensor, Tensor]:
    """Mean and deviation of a frame's latents, VAE space; the transparent frame's are its adjusted latent and 0."""
    posterior = host.vae.encode(pictures[role].to(host.vae.device) * 2 - 1).latent_dist
    if mode.transparent_frame is None or mode.frames[mode.transparent_frame] != role:
        return posterior.mean.cpu(), posterior.std.cpu()
    batch: TransparentBatch = pictures["batch"].to(host.vae.device)
    offset = encoder.factor * encoder(torch.cat([batch.alpha, batch.padded], dim=1))
    adjusted = (posterior.mean + posterior.std * offset).cpu()
    return adjusted, torch.zeros_like(adjusted)


def encode_inputs(host: DiffusersHost, pictures: dict[str, Any], mode: Mode) -> Tensor:
    """The mode's given images: one as it is [B, 3, H, W], -1..1, or for patches the latents of all [B, 4k, h, w]."""
    images = [pictures[role] * 2 - 1 for role in mode.inputs]
    if mode.kind == "attention_sharing":
        return images[0]
    latents = [host.vae.encode(image.to(host.vae.device)).latent_dist.mean.cpu() for image in images]
    return torch.cat(latents, dim=1) * host.scaling_factor


@torch.no_grad()
def encode_captions(pipeline: Any, texts: list[str]) -> tuple[dict[str, Tensor], list[str]]:
    """The `context` [N, 77, C] of captions and, for SDXL, their `text_embeds` [N, C]; and the captions as they are."""
    encoded = [
        pipeline.encode_prompt(
            prompt=text, device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        for text in texts
    ]
    tensors = {"context": torch.cat([each[0] for each in encoded]).cpu()}
    if len(encoded[0]) == 4:
        tensors["text_embeds"] = torch.cat([each[2] for each in encoded]).cpu()
    return tensors, texts


def say(texts: list[str], drop: float, shared: float, rng: np.random.Generator) -> list[str]:
    """What the frames of a set are told, of its captions: nothing at all, the blend's for all, or each its own."""
    pick = rng.random()
    *own, blend = texts
    if pick < drop:
        return [""] * len(own)
    return [blend] * len(own) if len(own) > 1 and pick < drop + shared else own


@dataclass(frozen=True)
class Batches:
    """The batches of one process."""

    config: FinetuneConfig
    mode: Mode
    sets: Bank
    texts: list[list[str]]  # the captions of each set
    contexts: Bank
    places: dict[str, int]  # the captions' rows in `contexts`
    scaling_factor: float
    scheduler: DDIMScheduler
    rank: int
    processes: int

    def draw(self, step: int) -> dict[str, Any]:
        """What the model is given in a step."""
        config, rng = self.config, step_rng(self.config.seed, step, self.rank)
        count = config.batch * config.accumulate
        rows = list_rows(self.sets.rows, config.seed, (step * self.processes + self.rank) * count, count)
        sets = self.sets.read(rows)
        mean, std = sets["mean"].flatten(0, 1), sets["std"].flatten(0, 1)
        noise = torch.from_numpy(rng.standard_normal(mean.shape, dtype=np.float32))
        clean = (mean + std * noise) * self.scaling_factor
        said = [say(self.texts[row], config.drop_caption, config.shared_caption, rng) for row in rows]
        conditions = self.contexts.read([self.places[text] for texts in said for text in texts])
        context, added = conditions.pop("context"), None
        if conditions:
            times = torch.tensor([config.size, config.size, 0, 0, config.size, config.size], dtype=torch.float32)
            added = conditions | {"time_ids": times.expand(len(context), -1)}
        drawn = draw_noise(clean.shape, self.scheduler, config.snr_limit, rng, len(self.mode.frames))
        known = sets["known"].flatten(0, 1) if config.known_weight and "known" in sets else None
        control = sets.get("control")
        return {"clean": clean, "context": context, "added": added, "control": control, "known": known, **drawn}


def check_form(form: str, mode: Mode) -> None:
    """Refuse what can't be trained on the loaded base model."""
    if form == "attention_sharing" and mode.kind == "patches":
        raise Refusal(f'Layer mode {mode.name!r} of SDXL takes patches; train it with form = "lora".')
    if form == "lora" and mode.kind == "attention_sharing" and (mode.inputs or len(mode.frames) > 1):
        raise Refusal(
            f"Layer mode {mode.name!r} needs more than low-rank patches; train the mode foreground with them."
        )


def write_file(raw: FinetunedUnet, average: Average, folder: Path) -> None:
    """The averaged parameters as the mode's published file."""
    state = {name: value.cpu().contiguous() for name, value in raw.published_state(average.shadow).items()}
    save_file(state, folder / f"{raw.mode.file}.safetensors", as_metadata(raw.config))


def save_samples(run: Run, raw: FinetunedUnet, average: Average, pipeline: Any, source: SceneSource) -> None:
    """A grid of what the file would make now: one column a caption, one row a layer, over a checkerboard.

    The transparent decoder is looked for beside the encoder.
    """
    config, mode = raw.config, raw.mode
    folder = run.folder / "preview"
    folder.mkdir(exist_ok=True)
    write_file(raw, average, folder)
    store = WeightStore([folder, config.encoder.parent])
    if mode.decoder is not None and store.find(mode.decoder) is None:
        log.warning("There is no sample grid, since %s has no %s.", config.encoder.parent, mode.decoder)
        return
    columns: list[list[Tensor]] = []
    captions, first = source.captions, mode.frames[0]
    for seed, place in enumerate(np.linspace(0, len(captions) - 1, min(SAMPLES, len(captions)))):
        scene = source.draw(captions[int(place)], config.size, config.placement, step_rng(0, seed))
        images = {f"{role}_image": make_condition(scene, role) for role in mode.inputs}
        prompts = {f"{role}_prompt": scene.texts[role] for role in mode.frames} if len(mode.frames) > 1 else {}
        with layer_diffusion(pipeline, mode.name, store, views=1, **images, **prompts) as ld:
            text = "" if prompts else scene.texts[first]
            stack = ld(text, seed=seed, width=config.size, height=config.size, cfg=3.0)
        pictures = [composite([layer], "checker") for layer in stack.layers]
        columns.append([torch.from_numpy(picture).permute(2, 0, 1) / 255 for picture in pictures])
    run.save_grid("samples", [list(row) for row in zip(*columns, strict=True)])


def train(config: FinetuneConfig, out: Path) -> None:
    """Train, then write the patch or attention-sharing file to `out/model`, named as the mode's published file."""
    accelerator = open_accelerator(True, config.mixed_precision, config.accumulate)
    torch.manual_seed(config.seed)
    pipeline: Any = load_pipeline(config.base, device="cpu").to(accelerator.device)
    host = DiffusersHost(pipeline)
    mode = find_mode(config.mode, host.family)
    check_form(config.form, mode)
    encoder = TransparentEncoder.from_state_dict(WeightStore().load(config.encoder)).to(accelerator.device)
    source = read_scenes(config.data, config.backgrounds, config.size, config.only_prompts)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)  # others don't tell the velocity
    raw = FinetunedUnet(config, mode, host, scheduler)
    if config.start is not None:
        raw.start_from(config.start)
    if config.start_foreground is not None:
        raw.start_foreground_from(config.start_foreground)
    raw.to(accelerator.device)
    average = Average(raw, config.ema)
    optimizer = torch.optim.AdamW(raw.parameters(), config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    rate = constant(50) if config.schedule == "constant" else cosine(50, config.steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model, optimizer, schedule = accelerator.prepare(raw, optimizer, schedule)
    accelerator.register_for_checkpointing(average)
    run = Run(out, config, accelerator, config.steps, config.log_every)
    sets = Bank(out / "bank", len(source.rows) * config.views_per_caption)
    sets.fill(
        partial(draw_sets, source, mode, config, sets),
        partial(encode_sets, host, encoder, mode),
        accelerator,
        config.workers,
    )
    texts = sets.read_texts()
    said = list(dict.fromkeys(["", *(text for each in texts for text in each)]))
    contexts = Bank(out / "contexts", len(said))
    contexts.fill(
        lambda part: [said[row] for row in contexts.find_rows(part)], partial(encode_captions, pipeline), accelerator
    )
    rank, processes = accelerator.process_index, accelerator.num_processes
    places = {text: row for row, text in enumerate(said)}
    batches = Batches(config, mode, sets, texts, contexts, places, host.scaling_factor, scheduler, rank, processes)
    for _, batch in run.draw(batches.draw, config.workers):
        run.lower(model, batch, optimizer, schedule)
        average.update(raw)
        if accelerator.is_main_process and run.is_due(config.grid_every):
            save_samples(run, raw, average, pipeline, source)
    if accelerator.is_main_process:
        with run.write_model() as folder:
            write_file(raw, average, folder)
    accelerator.wait_for_everyone()  # whatever comes next finds the model
