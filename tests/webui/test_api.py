"""The extension's own HTTP routes, in a bare app with a stub of the WebUI's `modules`, and the document about them."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from lib_layerdiffusion import image_file, layers, options
from lib_layerdiffusion.edges import Edges, clean_edges
from lib_layerdiffusion.export import archive
from lib_layerdiffusion.layers import Layer, composite
from lib_layerdiffusion.modes import MODE_NAMES, MODES
from lib_layerdiffusion.options import EDGES, LayerOptions
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.weights import WEIGHTS, WeightStore
from lib_layerdiffusion.weights.header import MAX_HEADER
from tests.seeded import damage

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"
PREFIX = "/layerdiffusion/v1"
POSTS = ("decode", "encode", "composite", "export")
GETS = ("version", "modes", "schema", "weights", "doctor")


class Extension:
    """What the routes ask of the extension."""

    def __init__(self, store: WeightStore, host: Callable[[], Any]) -> None:
        self._store, self._host, self.last_run = store, host, None

    def store(self) -> WeightStore:
        return self._store

    def current_host(self) -> Any:
        return self._host()

    load_host = current_host


class CountingLock:
    """A lock that knows whether it is held, and how often it was."""

    def __init__(self) -> None:
        self.times, self.held, self._lock = 0, False, threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()
        self.held, self.times = True, self.times + 1

    def __exit__(self, *details: object) -> None:
        self.held = False
        self._lock.release()


def no_model() -> Any:
    raise Refusal("No checkpoint is loaded: choose one.")


def add_own_api(app: Any, flags: Any, password: str | None = None) -> None:
    """The WebUI's own API, with the password that its flag `--api-auth` (or `password`) gives it."""
    from fastapi import Depends, HTTPException
    from fastapi.security import HTTPBasic, HTTPBasicCredentials

    pairs = [pair.partition(":")[::2] for pair in (password or flags.api_auth or "").split(",") if pair]

    def auth(credentials: HTTPBasicCredentials = Depends(HTTPBasic())):  # noqa: B008 - FastAPI's form
        if (credentials.username, credentials.password) not in pairs:
            raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})

    if flags.api or getattr(flags, "nowebui", False):
        guards = [Depends(auth)] if pairs else []
        app.add_api_route("/sdapi/v1/txt2img", lambda: None, methods=["POST"], dependencies=guards)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Make a client of an app with the routes; its `lock` is the WebUI's."""
    fastapi = pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    def make(
        host: Callable[[], Any] = no_model,
        store: WeightStore | None = None,
        add: Callable[[Any, Any], None] = add_own_api,
        **flags: Any,
    ) -> Any:
        lock = CountingLock()
        modules, queue, shared = (ModuleType(f"modules{rest}") for rest in ("", ".call_queue", ".shared"))
        queue.queue_lock, shared.cmd_opts = lock, SimpleNamespace(**{"api": True, "api_auth": None} | flags)
        modules.call_queue, modules.shared = queue, shared
        for module in (modules, queue, shared):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        from lib_layerdiffusion.webui import api

        app = fastapi.FastAPI()
        add(app, shared.cmd_opts)
        api.add_routes(None, app, Extension(store or WeightStore([tmp_path], offline=True), host))
        client = TestClient(app, raise_server_exceptions=False)
        client.lock = lock
        return client

    return make


@pytest.fixture
def client(start: Callable[..., Any]) -> Any:
    """Without a model."""
    return start()


@pytest.fixture(scope="module")
def embedded_host() -> Any:
    """The embedded model as the WebUI's loaded one."""
    pytest.importorskip("diffusers")
    from lib_layerdiffusion.embedded import EMBEDDED_FOLDER
    from lib_layerdiffusion.hosts.pipelines import load_pipeline
    from lib_layerdiffusion.stand_in.host import StandInHost
    from lib_layerdiffusion.stand_in.model import LoadedModel

    return StandInHost(LoadedModel(load_pipeline(EMBEDDED_FOLDER, device="cpu", offline=True)))


@pytest.fixture
def loaded(start: Callable[..., Any], embedded_host: Any, embedded_model: Path) -> Any:
    """With the embedded model and its layer files."""
    return start(lambda: embedded_host, WeightStore([embedded_model / "layer_model"], offline=True))


def picture(width: int = 64, height: int = 64) -> Any:
    """A soft-edged disc: RGBA uint8."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - height / 2, columns - width / 2)
    alpha = np.clip((min(width, height) / 2 - 6 - distance) / 6 * 255, 0, 255).astype(np.uint8)
    colour = np.full((height, width, 3), (200, 40, 60), np.uint8)
    return np.dstack([colour, alpha])


def code(image: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def pixels(text: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def post(client: Any, name: str, body: Any = None, **settings: Any) -> Any:
    """Send a body as JSON in ASCII, whatever a version of httpx would make of odd characters."""
    usual = {"content": json.dumps(body), "headers": {"Content-Type": "application/json"}}
    return client.post(f"{PREFIX}/{name}", **(usual | settings))


def good(client: Any, name: str, body: Any) -> Any:
    response = post(client, name, body)
    assert response.status_code == 200, response.text
    return response.json()


def refusal(client: Any, name: str, body: Any = None, **settings: Any) -> str:
    """The one sentence of a refused request."""
    response = post(client, name, body, **settings)
    assert response.status_code == 422, (response.status_code, response.text[:500])
    assert list(response.json()) == ["detail"]
    sentence = response.json()["detail"]
    assert isinstance(sentence, str)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < 400, sentence
    return sentence


# -- what there is


def test_version(client):
    from lib_layerdiffusion import __version__

    assert client.get(f"{PREFIX}/version").json() == {"version": __version__, "api": 1}


def test_schema_is_that_of_the_options(client):
    assert client.get(f"{PREFIX}/schema").json() == LayerOptions.json_schema()


@pytest.mark.parametrize("family", ["sd15", "sdxl", None])
def test_modes_of_the_loaded_family_are_marked(start, family):
    client = start(lambda: SimpleNamespace(family=family, why_not=lambda mode, store: "")) if family else start()
    body = client.get(f"{PREFIX}/modes").json()
    assert body["family"] == family
    assert [(row["name"], row["family"]) for row in body["modes"]] == [(mode.name, mode.family) for mode in MODES]
    assert [row["offered"] for row in body["modes"]] == [mode.family == family for mode in MODES]
    together = body["modes"][1]
    assert together["frames"] == ["foreground", "background", "blend"]
    assert together["label"] == MODES[1].label


def test_weights_say_what_is_missing_and_where_it_comes_from(loaded, embedded_model):
    body = loaded.get(f"{PREFIX}/weights").json()
    rows = {row["name"]: row for row in body["files"]}
    assert list(rows) == list(WEIGHTS)
    found = rows["layer_sd15_transparent_attn"]
    assert (found["state"], found["cure"]) == ("found", "")
    assert Path(found["path"]).parent == embedded_model / "layer_model"
    missing = rows["layer_xl_fg2ble"]
    assert (missing["state"], missing["path"]) == ("missing", None)
    assert "layer_xl_fg2ble.safetensors" in missing["cure"]


def test_the_doctor_answers_in_plain_text(client):
    answer = client.get(f"{PREFIX}/doctor")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "broken  No checkpoint is loaded: choose one." in answer.text.splitlines()


def test_every_route_is_described(client):
    paths = client.get("/openapi.json").json()["paths"]
    own = [path for path in paths if path.startswith(PREFIX)]
    assert sorted(own) == sorted(f"{PREFIX}/{name}" for name in (*GETS, *POSTS))
    schema = paths[f"{PREFIX}/decode"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert list(schema["properties"]) == ["latent", "image", "views", *EDGES]


# -- who may ask


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (None, 401),
        (("user", "wrong"), 401),
        (("other", "pass"), 401),
        (("user", "p:ä2"), 401),
        (("", ""), 401),
        (("user", "pass"), 200),
        (("user2", "p:2"), 200),
    ],
)
def test_the_password_of_the_webui_s_api_holds(start, sent, status):
    client = start(api_auth="user:pass,user2:p:2")
    for name in GETS:
        assert client.get(f"{PREFIX}/{name}", auth=sent).status_code == status
    for name in POSTS:
        response = client.post(f"{PREFIX}/{name}", json={}, auth=sent)
        assert response.status_code == (401 if status == 401 else 422)
        assert "detail" in response.json()
    assert client.lock.times == 0


def test_headers_without_a_password(start):
    client = start(api_auth="user:pass")
    for header in ("Basic", "Basic !!!", "Basic " + base64.b64encode("ä:ö".encode()).decode(), "Bearer user:pass"):
        assert client.get(f"{PREFIX}/version", headers={"Authorization": header}).status_code == 401


def all_statuses(client: Any, **sent: Any) -> set[int]:
    answers = [client.get(f"{PREFIX}/{name}", **sent) for name in GETS]
    answers += [client.post(f"{PREFIX}/{name}", json={}, **sent) for name in POSTS]
    return {answer.status_code for answer in answers}


@pytest.mark.parametrize("flags", [{"auth": "me:secret"}, {"auth_file": "/users.txt"}, {}])
def test_a_password_by_whatever_flag_that_guards_the_webui_s_api_guards_the_routes(start, flags):
    """SD.Next reads others than AUTOMATIC1111, and an unknown WebUI has flags of its own."""
    client = start(add=lambda app, given: add_own_api(app, given, "me:secret"), **flags)
    assert all_statuses(client) == {401}
    assert all_statuses(client, auth=("me", "wrong")) == {401}
    assert all_statuses(client, auth=("me", "secret")) == {200, 422}


@pytest.mark.parametrize("flags", [{"gradio_auth": "me:secret"}, {"gradio_auth_path": "/users.txt"}, {}])
def test_the_page_s_password_guards_the_routes_where_the_api_has_none(start, flags):
    from fastapi import HTTPException, Request

    def add(app: Any, given: Any) -> None:
        def login_check(request: Request) -> None:
            if request.cookies.get("access-token") != "known":
                raise HTTPException(401, "Not authenticated")

        login_check.__annotations__ = {"request": Request, "return": None}
        add_own_api(app, given)
        app.auth = {"me": "secret"}
        app.add_api_route("/login_check", login_check)

    client = start(add=add, **flags)
    assert all_statuses(client) == {401}
    assert all_statuses(client, cookies={"access-token": "known"}) == {200, 422}


@pytest.mark.parametrize("flag", ["api_auth", "auth", "auth_file", "gradio_auth", "gradio_auth_path"])
def test_where_a_password_can_not_be_found_nothing_is_served(start, flag, caplog):
    client = start(add=lambda app, _: add_own_api(app, SimpleNamespace(api=True, api_auth=None)), **{flag: "me:secret"})
    assert all_statuses(client, auth=("me", "secret")) == {404}
    assert "isn't served" in caplog.text


def test_gradio_s_own_login_is_found():
    """The real app of the installed gradio, whose page asks for a password."""
    gradio = pytest.importorskip("gradio")
    from fastapi.testclient import TestClient
    from gradio.routes import App

    from lib_layerdiffusion.webui import api

    with gradio.Blocks() as page:
        gradio.Markdown("page")
    page.auth, page.auth_message = (lambda user, password: password == "secret"), None
    page.validate_queue_settings()
    app = App.create_app(page)
    flags = SimpleNamespace(api=True, api_auth=None)
    add_own_api(app, flags)
    (guard,) = api.find_guards(app, flags)
    app.add_api_route("/guarded", lambda: "in", dependencies=[guard])
    client = TestClient(app)
    assert client.get("/guarded").status_code == 401
    assert client.post("/login", data={"username": "me", "password": "secret"}).status_code == 200
    assert client.get("/guarded").json() == "in"


def test_without_the_webui_s_api_there_are_no_routes(start):
    assert start(api=False, nowebui=False).get(f"{PREFIX}/version").status_code == 404
    assert start(api=False, nowebui=True).get(f"{PREFIX}/version").status_code == 200


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_another_site_s_page_can_t_send_forms(client, kind):
    headers = {"Content-Type": kind} if kind else {}
    content = json.dumps({"layers": [{"image": code(picture())}]}).encode()
    assert "Content-Type: application/json" in refusal(client, "composite", content=content, headers=headers)
    good_kind = {"Content-Type": "application/json; charset=utf-8"}
    assert post(client, "composite", content=content, headers=good_kind).status_code == 200


# -- bodies


def raw(client: Any, name: str, content: bytes) -> str:
    return refusal(client, name, content=content, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("name", POSTS)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"{", "not JSON"),
        (b"\xff\xfe\xfa", "not JSON"),
        (b"image=abc", "not JSON"),
        (b"[]", "must be an object"),
        (b"null", "must be an object"),
        (b'"text"', "must be an object"),
        (b"3", "must be an object"),
        (b"[" * 100_000 + b"]" * 100_000, "deeply"),
        (b'{"latent":' * 50_000 + b"1" + b"}" * 50_000, "deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", ""),
    ],
)
def test_bodies_that_are_not_an_object(client, name, content, said):
    assert said in raw(client, name, content)


@pytest.mark.parametrize("name", POSTS)
def test_too_large_bodies_are_refused_without_being_parsed(client, name, monkeypatch):
    from lib_layerdiffusion.webui import api_requests

    monkeypatch.setattr(api_requests, "MAX_BODY", 1000)
    assert "more than the 1000" in raw(client, name, b'{"image": "' + b"A" * 5000 + b'"}')
    assert "not JSON" in raw(client, name, b"x" * 1000)


@pytest.mark.parametrize(
    ("name", "key", "meant"),
    [("decode", "latents", "latent"), ("encode", "images", "image"), ("composite", "Background", "background")],
)
def test_unknown_keys_are_named_with_the_nearest(client, name, key, meant):
    assert f"did you mean '{meant}'" in refusal(client, name, {key: 1})


def test_unknown_keys_of_layers_are_named(client):
    row = {"image": code(picture()), "offsets": [0, 0]}
    assert "layers[0] has a key 'offsets': did you mean 'offset'" in refusal(client, "export", {"layers": [row]} | PSD)
    assert "layers[1]" in refusal(client, "composite", {"layers": [{"image": code(picture())}, {"role": "blend"}]})
    assert "\\ud800" in refusal(client, "encode", {"\ud800": 1})
    assert len(refusal(client, "encode", {"x" * 100_000: 1})) < 300


@pytest.mark.parametrize(("name", "key"), [("decode", "latent"), ("encode", "image"), ("composite", "layers")])
@pytest.mark.parametrize("value", [0, False, 3.5, "", "../secret", "/etc/passwd", {}, {"a": 1}, [], [None], [[]], None])
def test_wrong_types(client, name, key, value):
    assert key in refusal(client, name, {key: value})


@pytest.mark.parametrize("name", ["encode", "composite", "export"])
def test_paths_are_never_read(client, name, tmp_path):
    path = tmp_path / "secret.png"
    Image.fromarray(picture()).save(path)
    for text in (str(path), f"file://{path}", path.as_uri()):
        body = {"image": text} if name == "encode" else {"layers": [{"image": text}]}
        assert "not base64" in refusal(client, name, body | (PSD if name == "export" else {}))


def test_a_latent_s_path_is_never_read(client, tmp_path):
    path = tmp_path / "latent.safetensors"
    path.write_bytes(save({"latent": torch.zeros(1, 4, 8, 8)}, metadata={"format": "layerdiffusion latent, VAE space"}))
    assert "not base64" in refusal(client, "decode", {"latent": str(path)})


def huge_png(width: int, height: int) -> str:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")).decode()


@pytest.mark.parametrize("side", [4097, 30_000, 2**31 - 1])
def test_huge_images_are_refused_by_their_header(client, side):
    image = huge_png(side, side)
    small = {"image": code(picture())}
    assert "pixels" in refusal(client, "encode", {"image": image})
    assert "pixels" in refusal(client, "composite", {"layers": [{"image": image}]})
    assert "pixels" in refusal(client, "composite", {"layers": [small], "background": image})
    assert "pixels" in refusal(client, "decode", {"latent": np.zeros((4, 8, 8)).tolist(), "image": image})


def test_many_images_are_refused_together(client, monkeypatch):
    from lib_layerdiffusion.webui import api_requests

    monkeypatch.setattr(api_requests, "MAX_PIXELS_TOGETHER", 64 * 64 * 2)
    row = {"image": code(picture())}
    good(client, "composite", {"layers": [row] * 2})
    assert "layers[2].image" in refusal(client, "composite", {"layers": [row] * 3})
    assert "layers[1].image" in refusal(client, "composite", {"layers": [row] * 2, "background": code(picture())})
    assert "1 to 64" in refusal(client, "composite", {"layers": [row] * 65})


@pytest.mark.parametrize("name", ["composite", "export"])
def test_too_many_images_are_refused_before_one_is_decoded(client, monkeypatch, name):
    from PIL.PngImagePlugin import PngImageFile

    from lib_layerdiffusion.webui import api_requests

    decoded: list[Any] = []
    monkeypatch.setattr(api_requests, "MAX_PIXELS_TOGETHER", 64 * 64 * 2)
    monkeypatch.setattr(PngImageFile, "load", lambda image: decoded.append(image))
    body = {"layers": [{"image": code(picture())}] * 3} | (PSD if name == "export" else {})
    assert "layers[2].image" in refusal(client, name, body)
    if name == "composite":
        assert "layers[1].image" in refusal(client, name, body | {"background": code(picture())})
    assert decoded == []


@pytest.mark.parametrize(
    "offset", [5, "1,2", [1], [1, 2, 3], [1.5, 0], [True, False], [None, 0], ["0", "0"], [10**30, 0], {"x": 1}]
)
def test_wrong_offsets(client, offset):
    row = {"image": code(picture()), "offset": offset}
    assert "layers[0].offset" in refusal(client, "composite", {"layers": [row]})


def test_a_canvas_has_a_limit(client):
    row = {"image": code(picture())}
    for name, more in (("composite", {}), ("export", {"format": "ora"})):
        far = {"layers": [row, row | {"offset": [30_000, 30_000]}]} | more
        assert "30064x30064" in refusal(client, name, far)


# -- putting layers together

PSD = {"format": "psd"}


def test_composite_is_that_of_the_layers_module(client):
    background = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    background[..., 3] = 255
    made = good(client, "composite", {"layers": [{"image": code(background)}, {"image": code(picture())}]})
    layers = [Layer("b", background, "background"), Layer("f", picture(), "foreground")]
    assert np.array_equal(pixels(made["image"]), composite(layers))


@pytest.mark.parametrize(
    ("background", "expected"),
    [
        ("checker", "checker"),
        ("white", (255, 255, 255)),
        ("#3366CC", (51, 102, 204)),
        ("rgb(1, 2, 3)", (1, 2, 3)),
        ([9, 8, 7], (9, 8, 7)),
        (None, None),
        ("", None),
    ],
)
def test_backgrounds(client, background, expected):
    made = good(client, "composite", {"layers": [{"image": code(picture())}], "background": background})
    assert np.array_equal(pixels(made["image"]), composite([Layer("f", picture(), "foreground")], expected))


def test_an_image_as_background_is_the_canvas(client):
    background = np.full((80, 100, 3), (1, 2, 3), np.uint8)
    row = {"image": code(picture()), "offset": [50, -4]}
    made = pixels(good(client, "composite", {"layers": [row], "background": code(background)})["image"])
    assert made.shape[:2] == (80, 100)
    expected = composite([Layer("f", picture(), "foreground")], (1, 2, 3))
    assert np.array_equal(made[:60, 50:, :3], expected[4:, :50])
    assert (made[..., 3] == 255).all()
    assert (made[:, :50, :3] == (1, 2, 3)).all()


@pytest.mark.parametrize(
    "background", ["whiteish", "../x.png", [1, 2], [1, 2, 300], [1.0, 2, 3], 5, True, {}, "data:,x"]
)
def test_wrong_backgrounds(client, background):
    refusal(client, "composite", {"layers": [{"image": code(picture())}], "background": background})


def exported(client: Any, format: str, rows: list[dict[str, Any]]) -> io.BytesIO:
    body = good(client, "export", {"layers": rows, "format": format})
    assert body["name"] == f"layers.{format.lower()}"
    return io.BytesIO(base64.b64decode(body["file"]))


ROWS = [
    {"name": "Hintergrund ä", "role": "background", "image": code(picture(64, 48))},
    {"name": "前景 🍎", "role": "foreground", "image": code(picture(20, 10)), "offset": [30, 4]},
]


def test_export_ora(client):
    file = zipfile.ZipFile(exported(client, "ora", ROWS))
    text = file.read("stack.xml").decode()
    assert text.index("前景 🍎") < text.index("Hintergrund ä")  # from the top
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file.read("data/layer1.png")))), picture(20, 10))


def test_export_psd(client):
    psd_tools = pytest.importorskip("psd_tools")
    document = psd_tools.PSDImage.open(exported(client, "PSD", ROWS))
    assert [(layer.name, layer.left, layer.top) for layer in document] == [("Hintergrund ä", 0, 0), ("前景 🍎", 30, 4)]


def test_export_psd_needs_no_package(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "psd_tools", None)
    assert exported(client, "psd", ROWS).read(4) == b"8BPS"


def test_export_zip_and_png(client):
    file = zipfile.ZipFile(exported(client, "zip", ROWS))
    assert file.namelist() == ["01-hintergrund-ä.png", "02-前景.png"]
    layers = [Layer("b", picture(64, 48), "background"), Layer("f", picture(20, 10), "foreground", offset=(30, 4))]
    assert np.array_equal(np.asarray(Image.open(exported(client, "png", ROWS))), composite(layers))


@pytest.mark.parametrize(
    "name", [None, "", "\x00\x1b[31m\n", "\ud800", "../../etc/passwd", "x" * 100_000, "\u202egnp.exe", "<&]]>"]
)
@pytest.mark.parametrize("format", ["ora", "psd", "zip", "png"])
def test_odd_names_make_readable_files(client, format, name):
    if format == "psd":
        pytest.importorskip("psd_tools")
    row = {"image": code(picture()), "name": name}
    content = json.dumps({"layers": [row], "format": format}).encode()
    response = post(client, "export", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text
    file = io.BytesIO(base64.b64decode(response.json()["file"]))
    if format == "psd":
        from psd_tools import PSDImage

        assert len(PSDImage.open(file)) == 1
    elif format == "ora":
        from xml.etree import ElementTree

        ElementTree.fromstring(zipfile.ZipFile(file).read("stack.xml"))


def test_a_zip_of_many_whole_canvases_is_refused_before_it_is_written(client, monkeypatch):
    written = []
    monkeypatch.setattr(archive, "spread", lambda layer, size: written.append(size) or np.zeros((1, 1, 4), np.uint8))
    rows = [{"image": code(picture(8, 8)), "offset": [4088, 4088]}] * 5
    sentence = refusal(client, "export", {"layers": rows, "format": "zip"})
    assert "5 of 4096x4096 have more than the 67108864 pixels that are written: take ORA or PSD" in sentence
    assert written == []
    assert post(client, "export", {"layers": rows[:4], "format": "zip"}).status_code == 200
    assert written == [(4096, 4096)] * 4


class Many(list):
    """Threads that send a request so many times at once, and the `answers` that came so far."""

    def __init__(self, client, name, body, count):
        self.answers = []
        send = lambda: self.answers.append(post(client, name, body))  # noqa: E731
        super().__init__(threading.Thread(target=send) for _ in range(count))
        for thread in self:
            thread.start()

    def join(self):
        for thread in self:
            thread.join(60)
        return self.answers


def wait_for(reached):
    until = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["composite", "export"])
def test_images_are_put_together_one_request_at_a_time(client, monkeypatch, name):
    from lib_layerdiffusion.webui import api

    working, most, free = [], [], threading.Event()

    def watch(stack, *_):
        working.append(None)
        most.append(len(working))
        free.wait(30)
        working.pop()
        return np.zeros((1, 1, 4), np.uint8)

    monkeypatch.setattr(api, "composite", watch)
    monkeypatch.setitem(api.WRITERS, "ora", watch)
    body = {"layers": [{"image": code(picture())}]} | ({} if name == "composite" else {"format": "ora"})
    many = Many(client, name, body, 4)
    wait_for(lambda: working)
    time.sleep(0.5)
    free.set()
    assert [answer.status_code for answer in many.join()] == [200] * 4
    assert most == [1] * 4


def count_threads() -> dict[str, int]:
    """Threads of this process by what their name has: those of the routes' own work, and the server's."""
    names = [thread.name for thread in threading.enumerate()]
    return {part: sum(part in name for name in names) for part in ("layerdiffusion-model", "AnyIO worker")}


def test_requests_that_wait_for_the_queue_hold_no_thread_of_the_server(loaded, monkeypatch):
    """However many there are, and those beyond the limit are told to come later."""
    from lib_layerdiffusion.webui import api

    monkeypatch.setattr(api, "MAX_REQUESTS", 6)
    body = {"image": code(picture(64, 64))}

    with loaded.lock:
        before = count_threads()
        many = Many(loaded, "encode", body, 8)
        wait_for(lambda: len(many.answers) == 2)
        during = count_threads()
    answers = many.join()
    assert during["layerdiffusion-model"] - before["layerdiffusion-model"] <= 1
    assert during["AnyIO worker"] <= before["AnyIO worker"]
    assert sorted(answer.status_code for answer in answers) == [200] * 6 + [503] * 2
    (told,) = {answer.json()["detail"] for answer in answers if answer.status_code == 503}
    assert told == "6 requests are waiting already: send this one later."
    assert post(loaded, "encode", body).status_code == 200


@pytest.mark.parametrize("change", [{"format": "gif"}, {"format": 3}, {"format": None}, {"format": ["psd"]}])
def test_wrong_formats(client, change):
    assert "format" in refusal(client, "export", {"layers": ROWS} | change)


@pytest.mark.parametrize(
    "change",
    [
        {"role": "middle"},
        {"role": 3},
        {"role": 0},
        {"role": False},
        {"role": ""},
        {"role": ["blend"]},
        {"name": 3},
        {"name": ["a"]},
    ],
)
def test_wrong_roles_and_names(client, change):
    key = next(iter(change))
    assert f"layers[0].{key}" in refusal(client, "export", {"layers": [ROWS[0] | change]} | PSD)


def test_nothing_waits_for_the_model_that_doesn_t_use_it(client):
    good(client, "composite", {"layers": [{"image": code(picture())}]})
    good(client, "export", {"layers": ROWS, "format": "ora"})
    for name in GETS:
        assert client.get(f"{PREFIX}/{name}").status_code == 200
    assert client.lock.times == 0


# -- latents


def test_without_a_model_latents_are_refused(client):
    latent = np.zeros((4, 8, 8)).tolist()
    assert "No checkpoint" in refusal(client, "decode", {"latent": latent})
    assert "No checkpoint" in refusal(client, "encode", {"image": code(picture())})
    assert not client.lock.held


def test_an_image_comes_back_from_its_latent(loaded):
    latent = good(loaded, "encode", {"image": code(picture())})["latent"]
    assert load(base64.b64decode(latent))["latent"].shape == (1, 4, 8, 8)
    made = pixels(good(loaded, "decode", {"latent": latent})["image"])
    assert made.shape == (64, 64, 4)
    assert np.abs(made[..., 3].astype(int) - picture()[..., 3]).mean() < 12
    seen = picture()[..., 3] > 200
    assert np.abs(made[seen][:, :3].astype(int) - picture()[seen][:, :3]).mean() < 25
    assert loaded.lock.times == 4  # of each request to see which files it needs, then for its work
    assert not loaded.lock.held


def test_edges_are_cleaned_as_in_a_generation(loaded):
    small = code(picture(40, 50))  # of which the latent has more around it
    body = {"latent": good(loaded, "encode", {"image": small})["latent"], "views": 1}
    plain = pixels(good(loaded, "decode", body)["image"])
    hard = pixels(good(loaded, "decode", body | {"threshold": 0.5, "choke": 1})["image"])
    assert np.array_equal(hard, clean_edges(plain, Edges(threshold=0.5, choke=1)))
    assert not np.array_equal(hard, plain)
    assert "below white_point" in refusal(loaded, "decode", body | {"black_point": 1})


def test_sizes_are_kept(loaded):
    for width, height in ((72, 90), (20, 64)):
        latent = good(loaded, "encode", {"image": code(picture(width, height))})["latent"]
        made = pixels(good(loaded, "decode", {"latent": latent, "views": 1})["image"])
        assert made.shape == (height, width, 4)


def test_views_as_needed_are_two_or_eight(loaded):
    latent = good(loaded, "encode", {"image": code(picture())})["latent"]
    needed, two, eight = (good(loaded, "decode", {"latent": latent, "views": views}) for views in (0, 2, 8))
    assert needed in (two, eight)
    assert two != eight


def test_numbers_are_as_good_as_a_file(loaded):
    latent = good(loaded, "encode", {"image": code(picture())})["latent"]
    numbers = load(base64.b64decode(latent))["latent"]
    expected = good(loaded, "decode", {"latent": latent, "views": 1})
    for value in (numbers.tolist(), numbers[0].tolist()):
        assert good(loaded, "decode", {"latent": value, "views": 1}) == expected


def test_the_webui_s_own_pixels_can_be_given(loaded, embedded_host):
    latent = good(loaded, "encode", {"image": code(picture())})["latent"]
    decoded = embedded_host.decode(load(base64.b64decode(latent))["latent"])[0]
    given = (decoded.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    own = pixels(good(loaded, "decode", {"latent": latent, "views": 1})["image"]).astype(int)
    made = pixels(good(loaded, "decode", {"latent": latent, "views": 1, "image": code(given)})["image"])
    assert np.abs(made - own).max() <= 3
    other = refusal(loaded, "decode", {"latent": latent, "image": code(picture(72, 64))})
    assert "72x64" in other
    assert "64x64" in other


def test_the_model_is_as_before(loaded, embedded_host):
    before = {name: value.clone() for name, value in embedded_host.vae.state_dict().items()}
    hooks = [(name, len(m._forward_hooks)) for name, m in embedded_host.vae.named_modules()]
    good(loaded, "encode", {"image": code(picture())})
    refusal(loaded, "encode", {"image": code(picture(9, 9))[:60]})
    assert hooks == [(name, len(m._forward_hooks)) for name, m in embedded_host.vae.named_modules()]
    for name, value in embedded_host.vae.state_dict().items():
        assert torch.equal(value, before[name])


def latent_file(tensor: torch.Tensor, name: str = "latent", **about: str) -> str:
    metadata = {"format": "layerdiffusion latent, VAE space"} | about
    return base64.b64encode(save({name: tensor}, metadata=metadata)).decode()


@pytest.mark.parametrize(
    "latent",
    [
        np.full((4, 8, 8), np.nan).tolist(),
        np.full((4, 8, 8), np.inf).tolist(),
        np.full((4, 8, 8), 1e38).tolist(),
        np.full((4, 8, 8), 1e300).tolist(),
        [[[10**400]]],
        np.zeros((3, 8, 8)).tolist(),
        np.zeros((2, 4, 8, 8)).tolist(),
        np.zeros((4, 0, 8)).tolist(),
        np.zeros((8, 8)).tolist(),
        [[[1, 2], [3]], 4],
        [["a"]],
        [None] * 4,
        [[[[{}]]]],
        json.loads("[" * 300 + "]" * 300),
        latent_file(torch.full((1, 4, 8, 8), torch.nan)),
        latent_file(torch.full((1, 4, 8, 8), 1e20)),
        latent_file(torch.zeros(1, 3, 8, 8)),
        latent_file(torch.zeros(4, 8, 8)),
        latent_file(torch.zeros(1, 4, 8, 8), name="other"),
        latent_file(torch.zeros(1, 4, 8, 8), format="something"),
        latent_file(torch.zeros(1, 4, 8, 8))[:200],
        base64.b64encode(b"\xff" * 100).decode(),
        base64.b64encode(b"").decode(),
        code(picture()),
        "no base64!",
        "\ud800",
    ],
    ids=lambda value: f"{type(value).__name__}-{str(value)[:12].encode('ascii', 'replace').decode()}",
)
def test_wrong_latents(client, latent):
    content = json.dumps({"latent": latent}).encode()
    sentence = raw(client, "decode", content)
    assert "latent" in sentence.lower()
    assert "/tmp" not in sentence
    assert client.lock.times == 0


def test_latents_have_a_limit(client):
    assert "4800x4000" in refusal(client, "decode", {"latent": latent_file(torch.zeros(1, 4, 500, 600))})


@pytest.mark.parametrize("views", [False, -1, 3, "8", 8.5, True, [8]])
def test_wrong_views(client, views):
    assert "views" in refusal(client, "decode", {"latent": np.zeros((4, 8, 8)).tolist(), "views": views})


def test_missing_weights_are_named(start, embedded_host):
    client = start(lambda: embedded_host)
    assert ".safetensors" in refusal(client, "encode", {"image": code(picture())})


@pytest.mark.parametrize(
    ("name", "body"),
    [("decode", {"latent": np.zeros((4, 8, 8)).tolist(), "views": 1}), ("encode", {"image": code(picture())})],
)
def test_files_are_fetched_before_the_webui_s_queue_has_to_wait(start, embedded_host, embedded_model, name, body):
    store, fetched = WeightStore([embedded_model / "layer_model"], offline=True), []

    def fetch(file: str, *args: Any) -> Any:
        fetched.append((file, client.lock.held))
        return WeightStore.fetch(store, file, *args)

    store.fetch = fetch
    client = start(lambda: embedded_host, store)
    good(client, name, body)
    assert fetched
    first = dict(reversed(fetched))
    assert not any(first.values())


def test_a_family_that_can_not_be_told_offers_no_mode(start):
    def fail() -> Any:
        raise AttributeError("forge_objects")

    body = start(fail).get(f"{PREFIX}/modes").json()
    assert body["family"] is None
    assert not any(row["offered"] for row in body["modes"])


@pytest.mark.parametrize("error", [ValueError("spilled\nmilk \ud800"), RuntimeError("x" * 10_000), KeyError("a")])
def test_what_is_unforeseen_is_a_sentence_too(start, error):
    def fail() -> Any:
        raise error

    client = start(fail)
    response = post(client, "decode", {"latent": np.zeros((4, 8, 8)).tolist()})
    assert response.status_code == 500
    assert type(error).__name__ in response.json()["detail"]
    assert "\n" not in response.json()["detail"]
    assert len(response.json()["detail"]) < 400
    assert not client.lock.held


def test_too_little_memory_is_said(start):
    def fail() -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    assert "memory" in refusal(start(fail), "encode", {"image": code(picture())})


# -- the document


def blocks(language: str) -> list[tuple[str, str]]:
    """Each marked block of a language: its mark (such as "mode: foreground") and its text."""
    found = re.findall(rf"<!-- ([^>]*) -->\n```{language}\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    assert found
    return found


def named(block: tuple[str, str]) -> str:
    return f"{block[0]} {zlib.crc32(block[1].encode()):x}"


@pytest.mark.parametrize("block", blocks("python"), ids=named)
def test_python_examples_compile(block):
    compile(block[1], "docs/api.md", "exec")


def test_base64_is_called_as_linux_and_macos_both_take_it():
    for _, text in blocks("bash"):
        assert set(re.findall(r"\bbase64 (\S+)", text)) <= {"<", "-d"}


def test_every_mode_has_an_example_in_both_languages():
    for language in ("python", "bash"):
        marks = [mark.removeprefix("mode: ") for mark, _ in blocks(language) if mark.startswith("mode: ")]
        assert sorted(marks) == sorted(MODE_NAMES)
    for mark, text in blocks("python"):
        if mark.startswith("mode: "):
            assert f'"mode": "{mark[6:]}"' in text


def test_the_document_names_every_option_and_route():
    text = DOCUMENT.read_text("utf-8")
    for name in LayerOptions().to_dict():
        assert f"`{name}`" in text
    for name in GETS:
        assert f"### GET {PREFIX}/{name}" in text
    for name in POSTS:
        assert f"### POST {PREFIX}/{name}" in text


def test_damaged_bodies_images_and_latents_are_refused_in_a_sentence(client):
    """Always the same ones; each answer is a picture or a refusal, and none waits for the model."""
    rng, image = random.Random(4), base64.b64decode(code(picture(9, 7)))
    latent = base64.b64decode(latent_file(torch.zeros(1, 4, 8, 8)))
    whole = json.dumps({"layers": [{"image": code(picture(9, 7))}], "format": "ora"}).encode()
    statuses = {"composite": [], "decode": [], "export": []}
    for _ in range(60):
        row = {
            "image": base64.b64encode(damage(image, rng)).decode(),
            "offset": rng.choice([[0, 3], [0, -(2**15)], [10**30, 0], [True, 0], [1.5, 0], "00", None, [0], {}]),
        }
        bodies = {
            "composite": json.dumps({"layers": [row]}).encode(),
            "decode": json.dumps({"latent": base64.b64encode(damage(latent, rng)).decode(), "views": 3}).encode(),
            "export": damage(whole, rng),
        }
        for name, content in bodies.items():
            answer = client.post(f"{PREFIX}/{name}", content=content, headers={"Content-Type": "application/json"})
            statuses[name].append(answer.status_code)
            assert answer.status_code == 200 or (
                answer.status_code == 422 and answer.json()["detail"].endswith(".") and len(answer.text) < 1500
            ), answer.text
    assert client.lock.times == 0
    assert set(statuses["decode"]) == {422}
    assert {len(each) for each in statuses.values()} == {60}


@pytest.mark.parametrize("headers", [{"Content-Length": "²"}, {"Content-Type": "²"}, {"Content-Length": "9" * 400}])
def test_odd_headers_get_a_sentence(client, headers):
    raw = {name: value.encode("latin-1") for name, value in ({"Content-Type": "application/json"} | headers).items()}
    answer = client.post(f"{PREFIX}/encode", content=b"{}", headers=raw)
    assert answer.status_code == 422
    assert answer.json()["detail"].endswith(".")


def test_the_document_tells_the_limits():
    from lib_layerdiffusion.webui import api_requests

    text = DOCUMENT.read_text("utf-8").partition("## Limits")[2].partition("## What changed")[0]
    told = dict(re.findall(r"^\| ([a-z][^|]+?) \| (\d+) \|$", text, re.MULTILINE))
    assert {name: int(number) for name, number in told.items()} == {
        "bytes of the body": api_requests.MAX_BODY,
        "pixels of an image, a canvas, or what a latent decodes to": api_requests.MAX_PIXELS,
        "pixels of one side of an image": image_file.MAX_SIDE,
        "pixels of all images together": api_requests.MAX_PIXELS_TOGETHER,
        "layers": layers.MAX_LAYERS,
        "pixels of all canvases of a zip together": options.MAX_PIXELS,
        "absolute value in a latent": api_requests.LARGEST_LATENT,
        "bytes of a latent file's header": MAX_HEADER,
        "requests with a body at a time": api_requests.MAX_REQUESTS,
    }
    assert f"at most {options.MAX_PIXELS} pixels" in text
    assert f"{layers.MAX_TOGETHER} pixels of all layers together" in text


class Stub(BaseHTTPRequestHandler):
    """Checks what a mode's example sends, and answers with as many images as that mode makes."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Content-Type"] == "application/json"
        options = LayerOptions.from_dict(body["alwayson_scripts"]["LayerDiffuse"]["args"])
        mode = next(mode for mode in MODES if mode.name == options.mode)
        for role in mode.inputs:
            assert np.array_equal(pixels(options.image(role)), picture())
        content = json.dumps({"images": [code(picture())] * len(mode.frames)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def stub() -> Iterator[str]:
    """Address of the stub server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Stub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def run_example(language: str, text: str, url: str, folder: Path) -> None:
    """As a reader would, in a folder with `client.py`; LAYERDIFFUSION_STEPS makes it quick."""
    (client_file,) = (text for mark, text in blocks("python") if mark == "file: client.py")
    steps = os.environ.get("LAYERDIFFUSION_STEPS")
    for name, content in (("client.py", client_file), ("example", text)):
        short = re.sub(r'("steps": )\d+', rf"\g<1>{steps}", content) if steps else content
        (folder / name).write_text(short, "utf-8")
    command = [sys.executable] if language == "python" else ["bash", "-eo", "pipefail"]
    environment = os.environ | {"LAYERDIFFUSION_URL": url, "PYTHONPATH": str(folder), "no_proxy": "127.0.0.1"}
    done = subprocess.run([*command, "example"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (text, done.stdout, done.stderr)


@pytest.fixture(params=["python", "bash"])
def language(request: pytest.FixtureRequest) -> str:
    """The examples' two languages; the second where its programs are."""
    if request.param == "bash" and not all(map(shutil.which, ("bash", "curl", "jq", "base64"))):
        pytest.skip("bash, curl, jq or base64 is missing")
    return request.param


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_the_example_of_every_mode_sends_what_the_mode_needs(language, mode, stub, tmp_path):
    for role in ("foreground", "background", "blend"):
        Image.fromarray(picture()).save(tmp_path / f"{role}.png")
    (text,) = (text for mark, text in blocks(language) if mark == f"mode: {mode}")
    run_example(language, text, stub, tmp_path)
    frames = next(row.frames for row in MODES if row.name == mode)
    made = {path.stem.partition("-")[0] for path in tmp_path.glob("*.png") if path.read_bytes()}
    assert made >= set(frames)
    assert mode == "foreground" or len(list(tmp_path.glob("*-*.png"))) == len(frames)


@pytest.fixture(scope="module")
def url() -> str:
    """Address of a WebUI to run the examples against."""
    address = os.environ.get("LAYERDIFFUSION_URL", "").rstrip("/")
    if not address:
        pytest.skip("LAYERDIFFUSION_URL names no WebUI")
    return address


@pytest.fixture(scope="module")
def offered(url: str) -> set[str]:
    """Modes that this WebUI can do: of the loaded family, with their files there."""

    def ask(name: str) -> Any:
        with urllib.request.urlopen(f"{url}{PREFIX}/{name}") as answer:
            return json.load(answer)

    found = {file["name"] for file in ask("weights")["files"] if file["state"] == "found"}
    rows = [mode for mode in ask("modes")["modes"] if mode["offered"]]
    return {mode["name"] for mode in rows if {mode["file"], mode["decoder"] or mode["file"]} <= found}


def test_examples_run(language, url, offered, tmp_path):
    """In the document's order."""
    (inputs,) = (each for each in blocks("python") if each[0] == "inputs")  # needs the foreground that comes first
    examples = [each for each in blocks(language) if each[0] not in ("file: client.py", "inputs")]
    ran = []
    for mark, text in [examples[0], inputs, *examples[1:]]:
        if not mark.startswith("mode: ") or mark[6:] in offered:
            run_example("python" if mark == "inputs" else language, text, url, tmp_path)
            ran.append(mark)
    assert {mark[6:] for mark in ran if mark.startswith("mode: ")} == offered
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            image.load()
    for path in tmp_path.glob("foreground*.png"):
        assert Image.open(path).mode == "RGBA"
    assert zipfile.ZipFile(tmp_path / "layers.ora").testzip() is None
    assert (tmp_path / "decoded.png").is_file()
    assert (tmp_path / "checker.png").is_file()
