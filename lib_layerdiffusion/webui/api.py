"""The extension's own HTTP routes: what is available, latents to images and back, and putting layers together."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from fastapi import Depends, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from numpy.typing import NDArray
from torch import Tensor

from ..edges import Edges, clean_edges
from ..export import archive, ora, png, psd
from ..host import Host
from ..latent_file import LatentFile
from ..layers import Layer, LayerStack, composite, measure
from ..modes import MODES
from ..options import EDGES, LayerOptions
from ..planning import MIN_SIZE, Facts, Plan
from ..planning import plan as make_plan
from ..refusal import Refusal, lacks_memory, list_choices
from ..session import Session
from ..version import __version__
from . import doctor, results
from .api_requests import (
    KEYS,
    MAX_PIXELS,
    MAX_REQUESTS,
    PREFIX,
    Body,
    need,
    parse_body,
    read_background,
    read_content,
    read_latent_input,
    read_layers,
    show,
)
from .base64_images import count_pixels, load_input_image, read_input_image
from .extension import Extension
from .status import find_host

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

HOST_ROUTE = "/sdapi/v1/txt2img"  # of every WebUI with an API
LOGIN_CHECK = "/login_check"  # gradio's, which its page is guarded by
PASSWORD_FLAGS = ("api_auth", "auth", "auth_file", "gradio_auth", "gradio_auth_path")


def add_routes(demo: Any, app: Any, extension: Extension) -> None:
    """Add the routes to the WebUI's app if its API is switched on, behind whatever password that has."""
    from modules import call_queue, shared

    guards = find_guards(app, shared.cmd_opts)
    if guards is None:
        return
    routes = Routes(extension, call_queue.queue_lock)
    settings: dict[str, Any] = {"response_model": None, "tags": ["LayerDiffusion"], "dependencies": guards}
    for name in ("version", "modes", "schema", "weights", "doctor"):
        app.add_api_route(f"{PREFIX}/{name}", getattr(routes, name), methods=["GET"], **settings)
    for name, keys in KEYS.items():
        endpoint = getattr(routes, name)
        app.add_api_route(
            f"{PREFIX}/{name}", endpoint, methods=["POST"], openapi_extra=_describe_body(keys), **settings
        )


def find_guards(app: Any, flags: Any) -> list[Any] | None:
    """What guards the WebUI's own API, as FastAPI's dependencies, or else its page; None where nothing may be added.

    That is so without an API, and where a password is asked for but can't be found in the app.
    """
    routes = {getattr(route, "path", ""): route for route in app.routes}
    own = routes.get(HOST_ROUTE)
    if own is None:
        return None
    if own.dependencies:
        return [*own.dependencies]
    if not any(getattr(flags, flag, None) for flag in PASSWORD_FLAGS) and not getattr(app, "auth", None):
        return []
    page = routes.get(LOGIN_CHECK)
    if page is None or getattr(flags, "api_auth", None):
        logger.error("This WebUI has a password that guards its API in an unknown way, so %s isn't served.", PREFIX)
        return None
    return [Depends(page.endpoint)]


class Routes:
    """The endpoints. What uses the model waits for the WebUI's queue; the rest doesn't.

    Requests with a body are worked on one at a time, of each of those two kinds, which bounds their memory. The others
    wait without a thread, since the server has few, and needs one to interrupt what they wait for.
    """

    def __init__(self, extension: Extension, queue_lock: Any) -> None:
        self.extension = extension
        self.queue_lock = queue_lock
        self._model_worker = ThreadPoolExecutor(1, "layerdiffusion-model")
        self._image_worker = ThreadPoolExecutor(1, "layerdiffusion-images")
        self._present = 0  # requests with a body, being read, waiting or in work

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
        return await self._serve(request, "decode", self._decode, self._model_worker)

    async def encode(self, request: Request) -> JSONResponse:
        """Make the latent of a transparent image."""
        return await self._serve(request, "encode", self._encode, self._model_worker)

    async def composite(self, request: Request) -> JSONResponse:
        """Put layers over each other and over a background."""
        return await self._serve(request, "composite", compose, self._image_worker)

    async def export(self, request: Request) -> JSONResponse:
        """Write layers as one file."""
        return await self._serve(request, "export", export, self._image_worker)

    async def _serve(
        self, request: Request, name: str, work: Callable[[Body], Any], worker: ThreadPoolExecutor
    ) -> JSONResponse:
        if self._present >= MAX_REQUESTS:
            async for _ in request.stream():  # or the client wouldn't see the answer
                pass
            return _refuse(Refusal(f"{MAX_REQUESTS} requests are waiting already: send this one later."), status=503)
        self._present += 1
        try:
            content = await read_content(request)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(worker, answer, lambda: work(parse_body(content, name)))
        except Refusal as refusal:
            return _refuse(refusal)
        finally:
            self._present -= 1

    def _list_modes(self) -> dict[str, Any]:
        host = find_host(self.extension)
        family, store = None if host is None else host.family, self.extension.store()
        rows = [
            asdict(mode)
            | {"offered": host is not None and mode.family == family and not host.why_not(mode.name, store)}
            for mode in MODES
        ]
        return {"family": family, "modes": rows}

    def _list_weights(self) -> dict[str, Any]:
        store = self.extension.store()
        host = find_host(self.extension)
        unfit = {} if host is None else doctor.find_unfit(host, store)
        rows = [
            asdict(row) | {"path": row.path and str(row.path), "cure": unfit.get(row.name, row.cure)}
            for row in store.check()
        ]
        return {"folders": [str(folder) for folder in store.folders], "files": rows}

    def _decode(self, body: Body) -> dict[str, str]:
        latent = read_latent_input(need(body, "latent", "decode"))
        options = LayerOptions.from_dict({"views": body.get("views")})
        edges = Edges.from_dict({name: body.get(name) for name in EDGES})
        given = body.get("image")
        image = None if given is None else read_input_image(given, "image", MAX_PIXELS)
        high, wide = (8 * side for side in latent.latent.shape[2:])
        with self._session(options, wide, high) as session:
            pixels = session.host.decode(latent.latent) if image is None else _as_decoded(image, latent)
            _check_finite(pixels)
            (rgba,) = session.decode_transparent(latent.latent, pixels)
        return {"image": _to_base64_png(clean_edges(rgba[: latent.height, : latent.width], edges))}

    def _encode(self, body: Body) -> dict[str, str]:
        rgba = read_input_image(need(body, "image", "encode"), "image", MAX_PIXELS)
        height, width = rgba.shape[:2]
        rgba = np.pad(rgba, ((0, max(0, MIN_SIZE - height)), (0, max(0, MIN_SIZE - width)), (0, 0)))
        with (
            self._session(LayerOptions(), rgba.shape[1], rgba.shape[0]) as session,
            session.encoding(rgba) as pixels,
        ):
            latent = session.host.encode(pixels)
        _check_finite(latent)
        content = LatentFile(latent, width, height).to_bytes()
        return {"latent": base64.b64encode(content).decode()}

    @contextmanager
    def _session(self, options: LayerOptions, width: int, height: int) -> Iterator[Session]:
        """An open Session, with the WebUI's queue held; other jobs run while missing files are downloaded."""
        with self.queue_lock:
            files = _plan(self.extension.load_host(), options, width, height).files
            store = self.extension.store()
        for file in files:
            store.fetch(file)
        with self.queue_lock, Session(self.extension.load_host(), store) as session, torch.no_grad():
            session.open(_plan(session.host, options, width, height))
            yield session


def answer(work: Callable[[], Any]) -> JSONResponse:
    """What `work` returns, or the sentence that says why it failed: 422 for a Refusal, 500 for anything unforeseen."""
    try:
        return JSONResponse(work())
    except Refusal as refusal:
        return _refuse(refusal)
    except Exception as error:  # the client gets a sentence, the log the rest
        logger.exception("An API request failed")
        if lacks_memory(error):
            return _refuse(Refusal("There isn't enough memory for this request: send smaller images."))
        text = " ".join(str(error).split())[:200]
        what = f"LayerDiffusion failed ({type(error).__name__}: {text}): see the log, and please report it."
        return _refuse(Refusal(what), status=500)


def _refuse(refusal: Refusal, status: int = 422) -> JSONResponse:
    sentence = str(refusal).encode("utf-8", "replace").decode()  # a lone surrogate can't be sent
    return JSONResponse({"detail": sentence}, status_code=status)


def _stack(layers: Sequence[Layer], size: tuple[int, int] | None = None) -> LayerStack:
    """The layers on a canvas of that size, else on one from the top left corner as far as they reach."""
    wide, high = size or measure(layers)
    if wide * high > MAX_PIXELS:
        raise Refusal(
            f"The layers reach over {wide}x{high}, more than the {MAX_PIXELS} pixels that are allowed: "
            "use smaller images or offsets."
        )
    return LayerStack(tuple(layers), (wide, high))


def compose(body: Body) -> dict[str, str]:
    """Layers over each other and over a background, as one image."""
    background = read_background(body.get("background"))
    if background is None or isinstance(background, str | tuple):
        return {"image": _to_base64_png(composite(_stack(read_layers(body, "composite")), background))}
    layers = read_layers(body, "composite", count_pixels(background))
    image = load_input_image(background, "background")
    return {"image": _to_base64_png(composite(_stack(layers, image.shape[1::-1]), image))}


def export(body: Body) -> dict[str, str]:
    """Layers as one file."""
    wanted = need(body, "format", "export")
    if not isinstance(wanted, str) or wanted.lower() not in WRITERS:
        raise Refusal(f"format can't be {show(wanted)}: {list_choices(str(wanted)[:60], WRITERS)}.")
    stack = _stack(read_layers(body, "export"))
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
    """A plan for one transparent image, of the loaded family's foreground mode, without sampling."""
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


def _check_finite(made: Tensor) -> None:
    if not torch.isfinite(made).all():
        raise Refusal("The VAE produced NaN or infinite values: load it in float32 or bfloat16.")


def _to_base64_png(image: Pixels) -> str:
    return base64.b64encode(png.encode(image)).decode()


def _describe_body(keys: Mapping[str, str]) -> dict[str, Any]:
    """A request's body for the WebUI's /docs page."""
    schema = {"type": "object", "properties": {name: {"description": text} for name, text in keys.items()}}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
