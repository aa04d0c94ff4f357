"""Reads what clients send to the routes: bodies, latents, layers and images, each checked before it is used."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from fastapi import Request

from ..latent_file import LatentFile, read_latent
from ..layers import MAX_LAYERS, Layer
from ..modes import Role
from ..options import EDGES, FIELDS
from ..refusal import Refusal, list_choices
from .base64_images import Opened, count_pixels, decode_base64, load_input_image, open_input_image

Body = Mapping[str, Any]

PREFIX = "/layerdiffusion/v1"
MAX_BODY = 2**27  # bytes
MAX_PIXELS = 2**24  # of an image or a canvas: 4096 x 4096
MAX_PIXELS_TOGETHER = 2**26  # of all images of a request
MAX_REQUESTS = 64  # that are read, wait or are worked on at a time
MAX_OFFSET = 2**15
MAX_NAME = 100  # characters of a layer's name
MAX_COLOUR = 40  # characters of a colour; a longer text is an image
LARGEST_LATENT = 1000.0  # far beyond VAE space, where values are within about 30

# Each route's keys and what they hold.
KEYS: dict[str, dict[str, str]] = {
    "decode": {
        "latent": "a .safetensors file in base64, or a list [4, h, w] or [1, 4, h, w] of numbers in VAE space",
        "image": "what the VAE made of the latent, in base64; left out, the WebUI's VAE makes it",
        "views": "0, 1, 2, 4 or 8: decode quality; 0 takes 2 views, and 8 where these don't agree",
        **{name: FIELDS[name].metadata["help"] for name in EDGES},
    },
    "encode": {"image": "an RGBA image in base64"},
    "composite": {
        "layers": 'from the bottom: a list of {"image": base64, "offset": [x, y]}',
        "background": '"checker", a colour, an image in base64, or null for none',
    },
    "export": {
        "layers": 'from the bottom: a list of {"name", "role", "image": base64, "offset": [x, y]}',
        "format": "psd, ora, zip or png",
    },
}
LAYER_KEYS = {"composite": ("image", "offset"), "export": ("name", "role", "image", "offset")}


async def read_content(request: Request) -> bytes:
    """The body of a request. Refusal if it is too large, or not sent as JSON, which another site's page can't do."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():  # to its end even when too large, or the client wouldn't see the answer
        size += len(part)
        if size <= MAX_BODY:
            parts.append(part)
    if size > MAX_BODY:
        raise Refusal(f"The body has {size} bytes, more than the {MAX_BODY} that are read: send smaller images.")
    if kind != "application/json":
        raise Refusal("The body must be JSON: send it with the header Content-Type: application/json.")
    return b"".join(parts)


def parse_body(content: bytes, name: str) -> Body:
    """A route's JSON object. Refusal when it is none, or has unknown keys."""
    wanted = f"send an object with {', '.join(KEYS[name])}"
    if not content.strip():
        raise Refusal(f"The body is empty: {wanted}.")
    try:
        body = json.loads(content)
    except RecursionError:
        raise Refusal(f"The body is nested too deeply: {wanted}.") from None
    except ValueError as error:
        raise Refusal(f"The body is not JSON ({' '.join(str(error).split())[:80]}): {wanted}.") from None
    return _check_keys(body, KEYS[name], "The body", wanted)


def _check_keys(value: Any, allowed: Sequence[str] | Mapping[str, str], what: str, wanted: str) -> Body:
    if not isinstance(value, dict):
        raise Refusal(f"{what} must be an object, not {show(value)}: {wanted}.")
    for key in value:
        if key not in allowed:
            raise Refusal(f"{what} has a key {show(key)}: {list_choices(key[:60], allowed)}.")
    return value


def need(body: Body, key: str, name: str) -> Any:
    """The value of a key that the route `name` can't do without."""
    if body.get(key) is None:
        raise Refusal(f"{key} is missing: send {KEYS[name][key]}.")
    return body[key]


def read_latent_input(value: Any) -> LatentFile:
    """A latent in VAE space from base64 of a .safetensors file, or from nested lists of numbers."""
    match value:
        case str():
            file = _read_latent_content(value)
        case list():
            file = _read_latent_numbers(value)
        case _:
            raise Refusal(f"latent can't be {show(value)}: send {KEYS['decode']['latent']}.")
    high, wide = file.latent.shape[2:]
    if 64 * high * wide > MAX_PIXELS:
        raise Refusal(
            f"latent is of an image of {8 * wide}x{8 * high}, more than the {MAX_PIXELS} pixels that are allowed here: "
            "decode a smaller one."
        )
    if not bool((file.latent.abs() <= LARGEST_LATENT).all()):  # not with NaN either
        raise Refusal(
            f"latent has NaN or values beyond {LARGEST_LATENT:g}: send it in VAE space, where they are within about 30."
        )
    return file


def _read_latent_content(text: str) -> LatentFile:
    try:
        content = decode_base64(text)
    except ValueError:
        raise Refusal(f"latent is not base64 ({show(text)}): send {KEYS['decode']['latent']}.") from None
    return read_latent(io.BytesIO(content), "latent", f"make one with {PREFIX}/encode")


def _read_latent_numbers(value: list[Any]) -> LatentFile:
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused later
            numbers = np.asarray(value, dtype=np.float32)
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError):
        raise Refusal(f"latent is not a regular list of numbers: send {KEYS['decode']['latent']}.") from None
    if numbers.ndim == 3:
        numbers = numbers[None]
    if numbers.ndim != 4 or numbers.shape[:2] != (1, 4) or not numbers.size:
        raise Refusal(f"latent has the shape {list(numbers.shape)[:6]}: send {KEYS['decode']['latent']}.")
    return LatentFile(torch.from_numpy(numbers), 8 * numbers.shape[3], 8 * numbers.shape[2])


def read_layers(body: Body, name: str, taken: int = 0) -> list[Layer]:
    """The layers. Refusal, before any is decoded, when they and the `taken` pixels are too many together."""
    rows = need(body, "layers", name)
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_LAYERS:
        count = f"{len(rows)} of them" if isinstance(rows, list) else show(rows)
        raise Refusal(f"layers can't be {count}: send a list of 1 to {MAX_LAYERS} objects.")
    opened: list[tuple[str, Opened, Role, tuple[int, int]]] = []
    left = MAX_PIXELS_TOGETHER - taken
    for index, row in enumerate(rows):
        what = f"layers[{index}]"
        _check_keys(row, LAYER_KEYS[name], what, f"send {KEYS[name]['layers']}")
        image = open_input_image(row.get("image"), f"{what}.image", min(MAX_PIXELS, left))
        left -= count_pixels(image)
        role: Any = "foreground" if row.get("role") is None else row["role"]
        if role not in get_args(Role):
            raise Refusal(f"{what}.role can't be {show(role)}: {list_choices(str(role)[:60], get_args(Role))}.")
        opened.append((_read_name(row.get("name"), what, role), image, role, _read_offset(row.get("offset"), what)))
    return [
        Layer(title, load_input_image(image, f"layers[{index}].image"), role, offset)
        for index, (title, image, role, offset) in enumerate(opened)
    ]


def _read_name(value: Any, what: str, default: str) -> str:
    """A layer's name, without what layered files can't hold: control characters and lone surrogates."""
    if not isinstance(value, str | None):
        raise Refusal(f"{what}.name can't be {show(value)}: send a text.")
    kept = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "", value or "").strip()
    return kept[:MAX_NAME] or default


def _read_offset(value: Any, what: str) -> tuple[int, int]:
    if value is None:
        return 0, 0
    whole = isinstance(value, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in value)
    if not whole or len(value) != 2 or max(map(abs, value)) > MAX_OFFSET:
        raise Refusal(
            f"{what}.offset can't be {show(value)}: send [x, y], whole numbers from -{MAX_OFFSET} to {MAX_OFFSET}."
        )
    return value[0], value[1]


def read_background(value: Any) -> Opened | str | tuple[int, ...] | None:
    """A background: an image that isn't decoded yet, a colour by name or numbers, "checker", or None."""
    match value:
        case str() if len(value) <= MAX_COLOUR and value[:5].lower() != "data:":
            return value.strip().lower() or None
        case list():
            if len(value) != 3 or not all(type(each) is int and 0 <= each <= 255 for each in value):
                raise Refusal(f"background can't be {show(value)}: send [red, green, blue], each from 0 to 255.")
            return tuple(value)
        case None:
            return None
        case _:
            return open_input_image(value, "background", MAX_PIXELS)


def show(value: Any) -> str:
    """A value in the short form that refusals name it in."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
