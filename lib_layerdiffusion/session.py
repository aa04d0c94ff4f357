"""Session: one generation in any host, from open and inject around the sampling to collect, decode and close."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib_layerdiffusion import injection
from lib_layerdiffusion.decoding import HALF, decode_as_fits, pick_half, pick_precision
from lib_layerdiffusion.edges import clean_edges
from lib_layerdiffusion.host import Host, Reserving, Telling
from lib_layerdiffusion.joining import is_own_linear
from lib_layerdiffusion.layers import pad_rgb
from lib_layerdiffusion.modes import Role
from lib_layerdiffusion.planning import Plan
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.shared_attention import ATTENTION_ORDER, AttentionSharingUnit, ControlEncoder
from lib_layerdiffusion.transparent_vae import TransparentDecoder, TransparentEncoder, is_seamless, wrapping
from lib_layerdiffusion.weights import WeightStore
from lib_layerdiffusion.weights.attention_units import read_units
from lib_layerdiffusion.weights.patches import Patch, parse_patches

Image = np.ndarray[Any, Any]
Progress = Callable[[int, int], Any]


class Session:
    """All state of a generation, on one object.

    The order of calls: `open(plan)` loads and checks every file, so that what can be refused is refused before any
    sampling; `with sampling():` around the host's sampler call (again for a second pass); `collect(latents)`;
    `decode()`. `open` may be called again for the next batch and keeps the networks that it has. `close()` undoes
    whatever is still in place; it may be called at any time and twice.
    """

    def __init__(self, host: Host, store: WeightStore) -> None:
        self.host = host
        self.store = store
        self._plan: Plan | None = None
        self._conditions: Mapping[Role, Image] = {}
        self._latents: Tensor | None = None  # VAE space
        self._networks: dict[tuple[str, torch.dtype | None], Any] = {}  # by file and precision, None: as in the file
        self._prepared: Any = None  # what the conditions come to for the UNet, made once
        self._injected = ExitStack()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def plan(self) -> Plan:
        """What is being generated."""
        if self._plan is None:
            raise RuntimeError("the session is not open")
        return self._plan

    def open(self, plan: Plan, conditions: Mapping[Role, Image] | None = None) -> None:
        """Load every file of the plan and check that it fits the model.

        `conditions`: RGBA uint8 [H, W, 4] of the plan's `size` for each input of the mode.
        """
        self._injected.close()
        self._plan, self._latents, self._prepared = plan, None, None
        self._conditions = {role: extend(image, plan) for role, image in (conditions or {}).items()}
        wanted = [(file, self._pick_precision(file)) for file in plan.files]
        self._networks = {key: network for key, network in self._networks.items() if key in wanted}
        for key in wanted:
            self._find_network(*key)
        if plan.mode.file in plan.files:  # else the plan is to encode or decode only
            with self.sampling():
                pass  # hooks that don't fit refuse here, before the host spends time on prompts and noise

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Inject the mode's patches or shared attention into the live UNet for as long as the block lasts."""
        self._injected.close()
        plan, unet = self.plan, self.host.unet
        with ExitStack() as injected:
            self._injected = injected
            active = self._place_window(injected)
            is_plain = self.host.is_plain_linear if isinstance(self.host, Telling) else is_own_linear
            network = self._find_network(plan.mode.file, self._pick_precision(plan.mode.file))
            if isinstance(self.host, Reserving):
                injected.enter_context(self.host.reserve(_count_numbers(network) * self.host.precision.itemsize))
            if isinstance(network, SharedAttention):
                if self._prepared is None:
                    self._prepared = self._control_signal(network.control)
                injected.enter_context(
                    injection.shared_attention(
                        unet, network.units, self._prepared, plan.weight, active=active, is_plain=is_plain
                    )
                )
            else:
                if self._prepared is None:
                    self._prepared = self._concat_latents()
                injected.enter_context(
                    injection.side_path(
                        unet, network, plan.weight, concat=self._prepared, active=active, is_plain=is_plain
                    )
                )
            yield

    @contextmanager
    def encoding(self, rgba: Image) -> Iterator[Tensor]:
        """Let the host's VAE encode `rgba` (uint8 [H, W, 4] of the plan's `size`) with its transparency.

        Inside the block the posterior of that one image is mean + std * offset (LayerDiffusion, arXiv 2402.17113,
        section 3.1). Yields what the VAE has to be given: [1, 3, H, W], -1..1, composited on mid-grey.
        """
        rgba = extend(rgba, self.plan)
        offset = self._offset(rgba)
        with injection.posterior(self.host.vae, lambda moments: _shift(moments, offset)):
            yield _on_grey(rgba)

    @contextmanager
    def encoding_batch(self, images: Callable[[], Sequence[Image]]) -> Iterator[None]:
        """Give the host's own encoding of a batch its transparency: that of sample i is that of image i modulo N.

        `images` is asked for N images, uint8 [H, W, 4] of the plan's `size`, when the first is encoded. Of a mode with
        several frames only the transparent one's samples are changed. Refusal when the host encodes in another size
        (in tiles) or by another network than its VAE.
        """
        offsets: list[Tensor] = []
        frames, own = len(self.plan.frames), self.plan.mode.transparent_frame
        done = 0

        def adjust(moments: Tensor) -> Tensor:
            nonlocal done
            if not offsets:
                offsets.extend(self._offset(extend(image, self.plan)) for image in images())
            first, done = done, done + len(moments)
            rows = [
                _shift(row, offsets[index % len(offsets)]) if index % frames == own else row
                for index, row in enumerate(moments.split(1), start=first)
            ]
            return torch.cat(rows)

        with injection.posterior(self.host.vae, adjust):
            yield
        if not done:
            raise Refusal(
                "The image wasn't encoded by the VAE itself, so its transparency would be lost: "
                'set the VAE encoding method to "Full".'
            )

    def _offset(self, rgba: Image) -> Tensor:
        """The encoder's offset for an image of the plan's sampled size: [1, 4, H/8, W/8], in posterior deviations."""
        encoder = self._networks.get((self.plan.mode.encoder or "", None))
        if not isinstance(encoder, TransparentEncoder):
            raise Refusal(
                f"Layer mode {self.plan.mode.name!r} can't start from a transparent image: choose another mode."
            )
        alpha = rgba[..., 3:].astype(np.float32) / 255
        image = np.concatenate([alpha, pad_rgb(rgba)], axis=2)
        continued = wrapping(encoder) if is_seamless(self.host.vae) else nullcontext()
        with continued, self.host.on_device(encoder) as device, torch.inference_mode():
            return encoder.factor * encoder(_to_tensor(image).to(device))

    def collect(self, latents: Tensor) -> None:
        """Take the sampled latents [images, 4, h, w] in sampler space."""
        if not torch.isfinite(latents).all():
            raise Refusal(
                f"The sampling on {self.host.name} produced NaN or infinite latents: "
                "load the model in float32 or bfloat16, or choose another scheduler or a lower guidance."
            )
        self._latents = latents.detach().float().cpu() / self.host.scaling_factor

    def decode(
        self, pixels: Tensor | None = None, progress: Progress | None = None, views: int | None = None
    ) -> list[dict[Role, Image]]:
        """Decode the collected latents to the frames of each set, by role: straight RGBA uint8 of the plan's size.

        `pixels` [images, 3, H, W], 0..1: what the host decoded already, if it did. `views`: the plan's by default.
        """
        plan, latents = self.plan, self._latents
        if latents is None:
            raise RuntimeError("nothing was collected")
        pixels = (self.host.decode(latents) if pixels is None else pixels).float().cpu()
        images = [to_image(image, plan.size) for image in pixels]
        frames = len(plan.frames)
        if plan.mode.transparent_frame is not None:
            own = slice(plan.mode.transparent_frame, None, frames)
            images[own] = self.decode_transparent(latents[own], pixels[own], progress, views)
        sets = [images[first : first + frames] for first in range(0, len(images), frames)]
        return [dict(zip(plan.frames, each, strict=True)) for each in sets]

    def decode_transparent(
        self,
        latents: Tensor,
        pixels: Tensor | None = None,
        progress: Progress | None = None,
        views: int | None = None,
    ) -> list[Image]:
        """Decode VAE-space latents [B, 4, h, w] (and their pixels [B, 3, 8h, 8w], 0..1) to RGBA at the plan's size."""
        file = self.plan.mode.decoder
        if file is None or file not in self.plan.files:
            raise Refusal(
                f"Layer mode {self.plan.mode.name!r} makes no transparent image: choose another, such as foreground."
            )
        pixels = self.host.decode(latents) if pixels is None else pixels
        decoded = decode_as_fits(
            self.host,
            lambda precision: self._find_network(file, precision),
            pixels.float(),
            latents.float(),
            self.plan.views if views is None else views,
            progress,
        )
        images = (to_image(image[[1, 2, 3, 0]], self.plan.size) for image in decoded)
        return [clean_edges(image, self.plan.edges) for image in images]

    def close(self) -> None:
        """Undo every change to the host's model and let go of latents and networks."""
        self._injected.close()
        self._plan, self._latents, self._prepared = None, None, None
        self._conditions, self._networks = {}, {}

    def _pick_precision(self, file: str) -> torch.dtype | None:
        """What a file's network is kept in: that in which it computes."""
        mode = self.plan.mode
        if file == mode.decoder:
            return pick_precision(self.host)
        return pick_half(self.host) if file == mode.file else None

    def _find_network(self, file: str, precision: torch.dtype | None) -> Any:
        """A file's network, loaded when it is needed first."""
        key = file, precision
        if key not in self._networks:
            self._networks[key] = self._load(*key)
        return self._networks[key]

    def _load(self, file: str, precision: torch.dtype | None) -> Any:
        mode = self.plan.mode
        state = self.store.load(file, half=precision if precision in HALF else None)
        if file == mode.decoder:
            decoder = TransparentDecoder.from_state_dict(state, precision or torch.float32)
            return decoder.eval().requires_grad_(False)
        if file == mode.encoder:
            return TransparentEncoder.from_state_dict(state).eval().requires_grad_(False)
        if mode.kind == "patches":
            patches = parse_patches(state)
            return {self.host.parameter_name(name) or name: patch for name, patch in patches.items()}
        return self._load_shared_attention(state)

    def _load_shared_attention(self, state: Mapping[str, Tensor]) -> SharedAttention:
        names = [self.host.parameter_name(name) or name for name in ATTENTION_ORDER]
        modules = dict(self.host.unet.named_modules())
        missing = [name for name in names if name not in modules]
        if missing:
            raise Refusal(
                f"The UNet of {self.host.name} has no {missing[0]}, as a Stable Diffusion 1.5 UNet has: "
                "load an SD1.5 checkpoint that isn't pruned or distilled."
            )
        units, control = read_units(state, [modules[name] for name in names])
        return SharedAttention(dict(zip(names, units, strict=True)), control and control.float())

    def _place_window(self, injected: ExitStack) -> Callable[[], bool] | None:
        """Watch the UNet's timesteps when the mode is to be active for a part of the sampling only."""
        plan = self.plan
        if plan.start_at <= 0 and plan.stop_at >= 1:
            return None
        start = math.inf if plan.start_at <= 0 else self.host.percent_to_timestep(plan.start_at)
        stop = -math.inf if plan.stop_at >= 1 else self.host.percent_to_timestep(plan.stop_at)
        window = injected.enter_context(injection.timestep_window(self.host.unet, start, stop))
        return lambda: window.active

    def _control_signal(self, control: ControlEncoder | None) -> dict[int, Tensor] | None:
        if control is None:
            return None
        (role,) = self.plan.mode.inputs
        with self.host.on_device(control) as device, torch.inference_mode():
            return control(_on_grey(self._conditions[role]).to(device))

    def _concat_latents(self) -> Tensor | None:
        """Encode the mode's inputs to sampler space and stack them on the channel axis."""
        if not self.plan.mode.inputs:
            return None
        latents = [self.host.encode(_on_grey(self._conditions[role])) for role in self.plan.mode.inputs]
        return torch.cat(latents, dim=1) * self.host.scaling_factor


@dataclass(frozen=True)
class SharedAttention:
    """A file's units by the name of the host's attention module, and its control encoder if it has one."""

    units: Mapping[str, AttentionSharingUnit]
    control: ControlEncoder | None


def extend(image: Image, plan: Plan) -> Image:
    """Continue the edges of an image [H, W, C] to the size that a plan samples, where it is smaller."""
    rows, columns = max(0, plan.height - image.shape[0]), max(0, plan.width - image.shape[1])
    return np.pad(image, ((0, rows), (0, columns), (0, 0)), mode="edge")


def _count_numbers(network: SharedAttention | Mapping[str, Patch]) -> int:
    """Numbers that compute along with the UNet in every step, in its precision."""
    if isinstance(network, SharedAttention):
        tensors = [parameter for unit in network.units.values() for parameter in unit.parameters()]
    else:
        tensors = [v for patch in network.values() for v in vars(patch).values() if isinstance(v, Tensor)]
    return sum(tensor.numel() for tensor in tensors)


def _shift(moments: Tensor, offset: Tensor) -> Tensor:
    """One image's moments, shifted by its offset; Refusal when the host encodes in another size."""
    if moments.shape[2:] != offset.shape[2:]:
        raise Refusal(
            "The VAE encodes in another size than that of the image, so its transparency can't be encoded: "
            "switch off tiled encoding (Tiled VAE), or make the image smaller."
        )
    return injection.fix_moments(moments, offset)


def _on_grey(rgba: Image) -> Tensor:
    """Composite uint8 [H, W, 4] on mid-grey: [1, 3, H, W], -1..1."""
    image = rgba.astype(np.float32) / 255
    return _to_tensor((image[..., :3] * 2 - 1) * image[..., 3:])


def _to_tensor(image: Image) -> Tensor:
    """[H, W, C] to [1, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]


def to_image(pixels: Tensor, size: tuple[int, int]) -> Image:
    """[3 or 4, H, W], 0..1 to RGBA uint8, cropped to `size` (width, height).

    Opaque pixels are cut off and not rounded, as WebUIs do, so that the same request has the same bytes everywhere.
    """
    width, height = size
    values = (pixels[:, :height, :width].clamp(0, 1) * 255).permute(1, 2, 0)
    if values.shape[2] == 3:
        return np.dstack([values.byte().numpy(), np.full((height, width), 255, np.uint8)])
    return np.ascontiguousarray(values.round().byte().numpy())
