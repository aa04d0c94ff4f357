"""The extension's own HTTP routes: what there is, latents to images and back, and putting layers together."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from fastapi import Depends, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from numpy.typing import NDArray
from torch import Tensor

from .. import __version__
from ..export import archive, ora, png, psd
from ..host import Host
from ..latent_file import LatentFile, read_latent
from ..layers import Layer, LayerStack, composite
from ..modes import MODES, Role
from ..options import LayerOptions
from ..planning import MIN_SIZE, Facts, Plan
from ..planning import plan as make_plan
from ..refusal import Refusal, lacks_memory, list_choices
from ..session import Session
from . import doctor, results
from .base64_images import Opened, count_pixels, decode_base64, load_image_code, open_image_code, read_image_code
from .inputs import why_not
from .status import find_host

if TYPE_CHECKING:
    from .extension import Extension

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Body = Mapping[str, Any]

PREFIX = "/layerdiffusion/v1"
MAX_BODY = 2**27  # bytes
MAX_PIXELS = 2**24  # of an image or a canvas: 4096 x 4096
MAX_PIXELS_TOGETHER = 2**26  # of all images of a request
MAX_LAYERS = 64
MAX_OFFSET = 2**15
MAX_NAME = 100  # characters of a layer's name
MAX_COLOUR = 40  # characters of a colour; a longer text is an image
LARGEST_LATENT = 1000.0  # of any use in VAE space, where values are within about 30

# Each route's keys and what they hold.
KEYS: dict[str, dict[str, str]] = {
    "decode": {
        "latent": "a .safetensors file in base64, or a list [4, h, w] or [1, 4, h, w] of numbers in VAE space",
        "image": "what the VAE made of the latent, in base64; left out, the WebUI's VAE makes it",
        "views": "1, 2, 4 or 8: decode quality",
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


def add_routes(demo: Any, app: Any, extension: Extension) -> None:
    """Add the routes to the WebUI's app if its API is switched on, behind that one's password if it has one."""
    from modules import call_queue, shared

    flags = shared.cmd_opts
    if not (getattr(flags, "api", True) or getattr(flags, "nowebui", False)):
        return
    routes = Routes(extension, call_queue.queue_lock)
    allowed = read_credentials(getattr(flags, "api_auth", None) or "")
    settings: dict[str, Any] = {"response_model": None, "tags": ["LayerDiffusion"]}
    settings["dependencies"] = [Depends(make_guard(allowed))] if allowed else []
    for name in ("version", "modes", "schema", "weights", "doctor"):
        app.add_api_route(f"{PREFIX}/{name}", getattr(routes, name), methods=["GET"], **settings)
    for name, keys in KEYS.items():
        endpoint = getattr(routes, name)
        app.add_api_route(
            f"{PREFIX}/{name}", endpoint, methods=["POST"], openapi_extra=_describe_body(keys), **settings
        )


def read_credentials(text: str) -> list[tuple[bytes, bytes]]:
    """Users and passwords of "user:password,user2:password2"."""
    pairs = (pair.partition(":") for pair in text.split(",") if pair)
    return [(user.encode(), password.encode()) for user, _, password in pairs]


def make_guard(allowed: Sequence[tuple[bytes, bytes]]) -> Callable[..., None]:
    """A dependency that lets only those users pass; the time it takes tells nothing about names and passwords."""

    def guard(credentials: HTTPBasicCredentials = Depends(HTTPBasic())) -> None:  # noqa: B008 - FastAPI's form
        name, password = credentials.username.encode(), credentials.password.encode()
        matches = [
            secrets.compare_digest(name, user) & secrets.compare_digest(password, right) for user, right in allowed
        ]
        if not any(matches):
            raise HTTPException(401, "Incorrect username or password", headers={"WWW-Authenticate": "Basic"})

    return guard


class Routes:
    """The endpoints. What uses the model waits for the WebUI's queue; the rest doesn't."""

    def __init__(self, extension: Extension, queue_lock: Any) -> None:
        self.extension = extension
        self.queue_lock = queue_lock

    def version(self) -> JSONResponse:
        """Tell the version of the extension and of these routes."""
        return JSONResponse({"version": __version__, "api": 1})

    def modes(self) -> JSONResponse:
        """List the layer modes, and mark those that the loaded checkpoint can do."""
        return answer(self._list_modes)

    def schema(self) -> JSONResponse:
        """Give the JSON schema of the options, which are the script's `args`."""
        return answer(LayerOptions.json_schema)

    def weights(self) -> JSONResponse:
        """List the weight files: found, missing or damaged, and what to do about it."""
        return answer(self._list_weights)

    def doctor(self) -> PlainTextResponse:
        """Say what is found, missing or damaged, and how the last run ended, as text for a bug report."""
        return PlainTextResponse(doctor.report(self.extension))

    async def decode(self, request: Request) -> JSONResponse:
        """Make the transparent image that a latent holds."""
        return await self._serve(request, "decode", self._decode)

    async def encode(self, request: Request) -> JSONResponse:
        """Make the latent of a transparent image."""
        return await self._serve(request, "encode", self._encode)

    async def composite(self, request: Request) -> JSONResponse:
        """Put layers over each other and over a background."""
        return await self._serve(request, "composite", compose)

    async def export(self, request: Request) -> JSONResponse:
        """Write layers as one file."""
        return await self._serve(request, "export", export)

    async def _serve(self, request: Request, name: str, work: Callable[[Body], Any]) -> JSONResponse:
        try:
            content = await read_content(request)
        except Refusal as refusal:
            return _refuse(refusal)
        return await run_in_threadpool(answer, lambda: work(parse_body(content, name)))

    def _list_modes(self) -> dict[str, Any]:
        host = find_host(self.extension)
        family = None if host is None else host.family
        rows = [
            asdict(mode) | {"offered": host is not None and mode.family == family and not why_not(host, mode.name)}
            for mode in MODES
        ]
        return {"family": family, "modes": rows}

    def _list_weights(self) -> dict[str, Any]:
        store = self.extension.store()
        rows = [asdict(row) | {"path": row.path and str(row.path)} for row in store.check()]
        return {"folders": [str(folder) for folder in store.folders], "files": rows}

    def _decode(self, body: Body) -> dict[str, str]:
        latent = read_latent_code(_need(body, "latent", "decode"))
        options = LayerOptions.from_dict({"views": body.get("views")})
        given = body.get("image")
        image = None if given is None else read_image_code(given, "image", MAX_PIXELS)
        high, wide = (8 * side for side in latent.latent.shape[2:])
        with self._session(options, wide, high) as session:
            pixels = session.host.decode(latent.latent) if image is None else _as_decoded(image, latent)
            if not torch.isfinite(pixels).all():
                raise Refusal("The VAE gave values that are no numbers: load it in float32 or bfloat16.")
            (rgba,) = session.decode_transparent(latent.latent, pixels)
        return {"image": _to_base64_png(rgba[: latent.height, : latent.width])}

    def _encode(self, body: Body) -> dict[str, str]:
        rgba = read_image_code(_need(body, "image", "encode"), "image", MAX_PIXELS)
        height, width = rgba.shape[:2]
        rgba = np.pad(rgba, ((0, max(0, MIN_SIZE - height)), (0, max(0, MIN_SIZE - width)), (0, 0)))
        with (
            self._session(LayerOptions(), rgba.shape[1], rgba.shape[0]) as session,
            session.encoding(rgba) as pixels,
        ):
            latent = session.host.encode(pixels)
        if not torch.isfinite(latent).all():
            raise Refusal("The VAE gave values that are no numbers: load it in float32 or bfloat16.")
        return {"latent": _to_latent_code(LatentFile(latent, width, height))}

    @contextmanager
    def _session(self, options: LayerOptions, width: int, height: int) -> Iterator[Session]:
        """An open Session, with the WebUI's queue held; the queue goes on while missing files are downloaded."""
        with self.queue_lock:
            files = _plan(self.extension.loaded_host(), options, width, height).files
            store = self.extension.store()
        for file in files:
            store.fetch(file)
        with self.queue_lock, Session(self.extension.loaded_host(), store) as session, torch.no_grad():
            session.open(_plan(session.host, options, width, height))
            yield session


def answer(work: Callable[[], Any]) -> JSONResponse:
    """What `work` returns, or the sentence that says why it can't: 422 for a Refusal, 500 for anything unforeseen."""
    try:
        return JSONResponse(work())
    except Refusal as refusal:
        return _refuse(refusal)
    except Exception as error:  # the client gets a sentence, the log the rest
        logger.exception("An API request failed")
        if lacks_memory(error):
            return _refuse(Refusal("There isn't enough memory for this request: send smaller images."))
        said = " ".join(str(error).split())[:200]
        what = f"LayerDiffusion failed ({type(error).__name__}: {said}): see the log, and please report it."
        return _refuse(Refusal(what), status=500)


def _refuse(refusal: Refusal, status: int = 422) -> JSONResponse:
    sentence = str(refusal).encode("utf-8", "replace").decode()  # a lone surrogate can't be sent
    return JSONResponse({"detail": sentence}, status_code=status)


# -- reading requests


async def read_content(request: Request) -> bytes:
    """The body of a request. Refusal unless it is sent as JSON, which another site's page can't do, and within size."""
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
    """A route's JSON object, without unknown keys."""
    wanted = f"send an object with {', '.join(KEYS[name])}"
    if not content.strip():
        raise Refusal(f"The body is empty: {wanted}.")
    try:
        body = json.loads(content)
    except RecursionError:
        raise Refusal(f"The body is nested too deeply: {wanted}.") from None
    except ValueError as error:
        raise Refusal(f"The body is no JSON ({' '.join(str(error).split())[:80]}): {wanted}.") from None
    return _check_keys(body, KEYS[name], "The body", wanted)


def _check_keys(value: Any, allowed: Sequence[str] | Mapping[str, str], what: str, wanted: str) -> Body:
    if not isinstance(value, dict):
        raise Refusal(f"{what} must be an object, not {_show(value)}: {wanted}.")
    for key in value:
        if key not in allowed:
            raise Refusal(f"{what} has a key {_show(key)}: {list_choices(key[:60], allowed)}.")
    return value


def _need(body: Body, key: str, name: str) -> Any:
    if body.get(key) is None:
        raise Refusal(f"There is no {key}: send {KEYS[name][key]}.")
    return body[key]


def read_latent_code(value: Any) -> LatentFile:
    """A latent in VAE space from base64 of a .safetensors file, or from nested lists of numbers."""
    match value:
        case str():
            file = _read_latent_content(value)
        case list():
            file = _read_latent_numbers(value)
        case _:
            raise Refusal(f"latent can't be {_show(value)}: send {KEYS['decode']['latent']}.")
    high, wide = file.latent.shape[2:]
    if 64 * high * wide > MAX_PIXELS:
        raise Refusal(
            f"latent is of an image of {8 * wide}x{8 * high}, more than the {MAX_PIXELS} pixels that are decoded here: "
            "decode a smaller one."
        )
    if not bool((file.latent.abs() <= LARGEST_LATENT).all()):  # not with NaN either
        raise Refusal(
            f"latent has values that are no numbers or beyond {LARGEST_LATENT:g}: send it in VAE space, where they are "
            "within about 30."
        )
    return file


def _read_latent_content(text: str) -> LatentFile:
    try:
        content = decode_base64(text)
    except ValueError:
        raise Refusal(f"latent is no base64 ({_show(text)}): send {KEYS['decode']['latent']}.") from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "latent.safetensors"
        path.write_bytes(content)
        try:
            return read_latent(path)
        except Refusal as refusal:
            said = str(refusal).replace(str(path), "latent")
        raise Refusal(said.replace("`layerdiffusion encode`", f"{PREFIX}/encode"))


def _read_latent_numbers(value: list[Any]) -> LatentFile:
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused later
            numbers = np.asarray(value, dtype=np.float32)
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError):
        raise Refusal(f"latent is no regular list of numbers: send {KEYS['decode']['latent']}.") from None
    if numbers.ndim == 3:
        numbers = numbers[None]
    if numbers.ndim != 4 or numbers.shape[:2] != (1, 4) or not numbers.size:
        raise Refusal(f"latent has the shape {list(numbers.shape)[:6]}: send {KEYS['decode']['latent']}.")
    return LatentFile(torch.from_numpy(numbers), 8 * numbers.shape[3], 8 * numbers.shape[2])


def _read_layers(body: Body, name: str, taken: int = 0) -> list[Layer]:
    """The layers; they and the `taken` pixels have to be few enough together, which is seen before any is decoded."""
    rows = _need(body, "layers", name)
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_LAYERS:
        count = f"{len(rows)} of them" if isinstance(rows, list) else _show(rows)
        raise Refusal(f"layers can't be {count}: send a list of 1 to {MAX_LAYERS} objects.")
    opened: list[tuple[str, Opened, Role, tuple[int, int]]] = []
    left = MAX_PIXELS_TOGETHER - taken
    for index, row in enumerate(rows):
        what = f"layers[{index}]"
        _check_keys(row, LAYER_KEYS[name], what, f"send {KEYS[name]['layers']}")
        image = open_image_code(row.get("image"), f"{what}.image", min(MAX_PIXELS, left))
        left -= count_pixels(image)
        role: Any = "foreground" if row.get("role") is None else row["role"]
        if role not in get_args(Role):
            raise Refusal(f"{what}.role can't be {_show(role)}: {list_choices(str(role)[:60], get_args(Role))}.")
        opened.append((_read_name(row.get("name"), what, role), image, role, _read_offset(row.get("offset"), what)))
    return [
        Layer(title, load_image_code(image, f"layers[{index}].image"), role, offset)
        for index, (title, image, role, offset) in enumerate(opened)
    ]


def _read_name(value: Any, what: str, default: str) -> str:
    """A layer's name, without what no layered file can hold: control characters and halves of characters."""
    if not isinstance(value, str | None):
        raise Refusal(f"{what}.name can't be {_show(value)}: send a text.")
    kept = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "", value or "").strip()
    return kept[:MAX_NAME] or default


def _read_offset(value: Any, what: str) -> tuple[int, int]:
    if value is None:
        return 0, 0
    whole = isinstance(value, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in value)
    if not whole or len(value) != 2 or max(map(abs, value)) > MAX_OFFSET:
        raise Refusal(
            f"{what}.offset can't be {_show(value)}: send [x, y], whole numbers from -{MAX_OFFSET} to {MAX_OFFSET}."
        )
    return value[0], value[1]


def _read_background(value: Any) -> Opened | str | tuple[int, ...] | None:
    match value:
        case str() if len(value) <= MAX_COLOUR and value[:5].lower() != "data:":
            return value.strip().lower() or None
        case list():
            if len(value) != 3 or not all(type(each) is int and 0 <= each <= 255 for each in value):
                raise Refusal(f"background can't be {_show(value)}: send [red, green, blue], each from 0 to 255.")
            return tuple(value)
        case None:
            return None
        case _:
            return open_image_code(value, "background", MAX_PIXELS)


def _stack(layers: Sequence[Layer], size: tuple[int, int] | None = None) -> LayerStack:
    """The layers on a canvas of that size, else from the left top corner as far as they reach."""
    wide, high = size or (
        max(1, *(layer.offset[axis] + layer.image.shape[1 - axis] for layer in layers), 1) for axis in (0, 1)
    )
    if wide * high > MAX_PIXELS:
        raise Refusal(
            f"The layers reach over {wide}x{high}, more than the {MAX_PIXELS} pixels that are made: "
            "use smaller images or offsets."
        )
    return LayerStack(tuple(layers), (wide, high))


def _show(value: Any) -> str:
    """A value as a refusal names it: short."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# -- work


def compose(body: Body) -> dict[str, str]:
    """Layers over each other and over a background, as one image."""
    background = _read_background(body.get("background"))
    if background is None or isinstance(background, str | tuple):
        return {"image": _to_base64_png(composite(_stack(_read_layers(body, "composite")), background))}
    layers = _read_layers(body, "composite", count_pixels(background))
    image = load_image_code(background, "background")
    return {"image": _to_base64_png(composite(_stack(layers, image.shape[1::-1]), image))}


def export(body: Body) -> dict[str, str]:
    """Layers as one file."""
    wanted = _need(body, "format", "export")
    if not isinstance(wanted, str) or wanted.lower() not in WRITERS:
        raise Refusal(f"format can't be {_show(wanted)}: {list_choices(str(wanted)[:60], WRITERS)}.")
    stack = _stack(_read_layers(body, "export"))
    buffer = io.BytesIO()
    WRITERS[wanted.lower()](stack, buffer)
    return {"file": base64.b64encode(buffer.getvalue()).decode(), "name": f"layers.{wanted.lower()}"}


def _write_png(stack: LayerStack, file: io.BytesIO) -> None:
    file.write(png.encode(composite(stack)))


WRITERS: dict[str, Callable[[LayerStack, io.BytesIO], None]] = {
    "psd": psd.write_to,
    "ora": ora.write_to,
    "zip": archive.write_to,
    "png": _write_png,
}


def _plan(host: Host, options: LayerOptions, width: int, height: int) -> Plan:
    """A plan for one transparent image, as the loaded family's foreground mode has it, without sampling."""
    facts = Facts(host.family, width, height, unet_channels=host.unet_channels, transparent_input=True)
    plan = make_plan(options, facts)
    return replace(plan, files=tuple(file for file in plan.files if file != plan.mode.file))


def _as_decoded(image: Pixels, file: LatentFile) -> Tensor:
    """A given image as the VAE would have decoded it: [1, 3, 8h, 8w], 0..1."""
    high, wide = (8 * side for side in file.latent.shape[2:])
    if image.shape[:2] not in ((high, wide), (file.height, file.width)):
        raise Refusal(
            f"image is {image.shape[1]}x{image.shape[0]}, and the latent's is {file.width}x{file.height}: "
            "send the image that belongs to it."
        )
    below, right = high - image.shape[0], wide - image.shape[1]
    image = np.pad(results.on_grey(image), ((0, below), (0, right), (0, 0)), mode="edge")
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255)[None]


def _to_base64_png(image: Pixels) -> str:
    return base64.b64encode(png.encode(image)).decode()


def _to_latent_code(file: LatentFile) -> str:
    return base64.b64encode(file.to_bytes()).decode()


def _describe_body(keys: Mapping[str, str]) -> dict[str, Any]:
    """A request's body for the WebUI's /docs page."""
    schema = {"type": "object", "properties": {name: {"description": text} for name, text in keys.items()}}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
