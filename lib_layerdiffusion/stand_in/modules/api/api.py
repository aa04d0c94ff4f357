"""The routes under /sdapi/v1, as far as clients of a WebUI need them to make images."""

from __future__ import annotations

import base64
import io
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

from fastapi import Body, Depends, FastAPI, HTTPException
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from .. import errors, images, infotext_utils, scripts, sd_samplers, shared
from ..inputs import read_inputs
from ..processing import (
    StableDiffusionProcessing,
    StableDiffusionProcessingImg2Img,
    StableDiffusionProcessingTxt2Img,
    process_images,
)

REQUEST_ONLY: dict[str, Any] = {
    "sampler_index": None,
    "script_name": None,
    "script_args": [],
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {},
    "infotext": None,
    "include_init_images": False,
}
BASIC = HTTPBasic(auto_error=True)


def decode_base64_to_image(encoding: str) -> Image.Image:
    """An image from base64, with or without the head of a data URL."""
    data = encoding.split(",", 1)[1] if encoding.startswith("data:image/") else encoding
    try:
        return ImageOps.exif_transpose(Image.open(io.BytesIO(base64.b64decode(data))))  # pyright: ignore[reportReturnType]
    except Exception as error:
        raise HTTPException(status_code=500, detail="Invalid encoded image") from error


def encode_pil_to_base64(image: Any) -> str:
    """An image in the user's sample format, of which only PNG keeps alpha; a text is passed on as it is."""
    if isinstance(image, str):
        return image
    kind, buffer = shared.opts.samples_format.lower(), io.BytesIO()
    text = image.info.get("parameters")
    if kind == "png":
        info = PngInfo()
        for name, value in image.info.items():
            if isinstance(name, str) and isinstance(value, str):
                info.add_text(name, value)
        image.save(buffer, format="PNG", pnginfo=info)
    elif kind in ("jpg", "jpeg", "webp"):
        exif = images.make_exif(text or "").tobytes()
        image.convert("RGB").save(
            buffer, format="WEBP" if kind == "webp" else "JPEG", exif=exif, quality=shared.opts.jpeg_quality
        )
    else:
        raise HTTPException(status_code=500, detail="Invalid image format")
    return base64.b64encode(buffer.getvalue()).decode()


def handle_exception(request: Any, error: Exception) -> JSONResponse:
    """The answer when a job fails: an exception may carry `status_code` and `detail`."""
    about = vars(error)
    content = {
        "error": type(error).__name__,
        "detail": about.get("detail", ""),
        "body": about.get("body", ""),
        "errors": str(error),
        "message": str(error),
    }
    return JSONResponse(status_code=int(about.get("status_code", 500)), content=jsonable_encoder(content))


def read_credentials(text: str | None) -> dict[str, str]:
    """Passwords by user, from "user:password,user:password"."""
    pairs = [pair.partition(":") for pair in (text or "").split(",") if pair]
    return {user: password for user, _, password in pairs}


def cast(value: Any, like: Any) -> Any:
    """A value from an infotext in the type of what it replaces."""
    return value if like is None else type(like)(value)


class Api:
    """All routes. An extension may replace a method, such as `init_script_args`, before this is made."""

    def __init__(self, app: FastAPI, queue_lock: Any) -> None:
        self.app = app
        self.queue_lock = queue_lock
        self.credentials = read_credentials(shared.cmd_opts.api_auth)
        self.default_script_arg_txt2img = scripts.scripts_txt2img.default_args()
        self.default_script_arg_img2img = scripts.scripts_img2img.default_args()
        for method, name, endpoint in (
            ("POST", "txt2img", self.text2imgapi),
            ("POST", "img2img", self.img2imgapi),
            ("POST", "png-info", self.pnginfoapi),
            ("GET", "progress", self.progressapi),
            ("POST", "interrupt", self.interruptapi),
            ("POST", "skip", self.skip),
            ("GET", "options", self.get_config),
            ("POST", "options", self.set_config),
            ("GET", "cmd-flags", self.get_cmd_flags),
            ("GET", "samplers", self.get_samplers),
            ("GET", "schedulers", self.get_nothing),
            ("GET", "upscalers", self.get_upscalers),
            ("GET", "latent-upscale-modes", self.get_latent_upscale_modes),
            ("GET", "sd-models", self.get_sd_models),
            ("GET", "sd-vae", self.get_nothing),
            ("GET", "loras", self.get_nothing),
            ("GET", "prompt-styles", self.get_prompt_styles),
            ("GET", "scripts", self.get_scripts_list),
            ("GET", "script-info", self.get_script_info),
            ("GET", "extensions", self.get_nothing),
        ):
            self.add_api_route(f"/sdapi/v1/{name}", endpoint, methods=[method])

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **named: Any) -> None:
        """Add a route, behind the password if there is one."""
        dependencies = [Depends(self.auth)] if self.credentials else []
        self.app.add_api_route(path, endpoint, dependencies=dependencies, response_model=None, **named)

    def auth(self, credentials: HTTPBasicCredentials = Depends(BASIC)) -> bool:  # noqa: B008 - FastAPI's form
        expected = self.credentials.get(credentials.username, "")
        if expected and secrets.compare_digest(credentials.password.encode(), expected.encode()):
            return True
        raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})

    # -- making images

    def text2imgapi(self, body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008 - FastAPI's form
        request = read_request(StableDiffusionProcessingTxt2Img, body)
        return self.generate(request, scripts.scripts_txt2img, self.default_script_arg_txt2img)

    def img2imgapi(self, body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008 - FastAPI's form
        request = read_request(StableDiffusionProcessingImg2Img, body)
        if not request.init_images:
            raise HTTPException(status_code=404, detail="Init image not found")
        return self.generate(request, scripts.scripts_img2img, self.default_script_arg_img2img)

    def generate(self, request: SimpleNamespace, runner: scripts.ScriptRunner, defaults: list[Any]) -> dict[str, Any]:
        """Run one job and answer with its images, the extra ones last."""
        tab = "img2img" if runner.is_img2img else "txt2img"
        from_infotext = self.apply_infotext(request, tab, runner)
        chosen, number = self.get_selectable_script(request.script_name, runner)
        args = self.init_script_args(request, defaults, chosen, number, runner, input_script_args=from_infotext)
        with self.queue_lock:
            p = make_processing(request, tab)
            p.is_api = True
            p.scripts = runner
            try:
                shared.state.begin(job=f"scripts_{tab}")
                p.script_args = tuple(args)
                processed = runner.run(p, *args) if chosen else process_images(p)
            finally:
                shared.state.end()
                p.close()
        made = processed.images if request.send_images else []
        parameters = {name: value for name, value in vars(request).items() if name not in ("kind", "given")}
        if not request.include_init_images:
            parameters |= {name: None for name in ("init_images", "mask") if name in parameters}
        return {
            "images": [encode_pil_to_base64(image) for image in made],
            "parameters": jsonable_encoder(parameters),
            "info": processed.js(),
        }

    def get_selectable_script(self, name: str | None, runner: scripts.ScriptRunner) -> tuple[Any, int]:
        if not name:
            return None, 0
        titles = [script.title().lower() for script in runner.selectable_scripts]
        if name.lower() not in titles:
            raise HTTPException(status_code=422, detail=f"Script '{name}' not found")
        number = titles.index(name.lower())
        return runner.selectable_scripts[number], number

    def init_script_args(
        self,
        request: Any,
        default_script_args: list[Any],
        selectable_scripts: Any,
        selectable_idx: int,
        script_runner: scripts.ScriptRunner,
        *,
        input_script_args: Mapping[int, Any] | None = None,
    ) -> list[Any]:
        """All scripts' arguments: the defaults, and what the request lays over them from the left."""
        args = list(default_script_args)
        for index, value in (input_script_args or {}).items():
            args[index] = value
        if selectable_scripts:
            args[selectable_scripts.args_from : selectable_scripts.args_to] = request.script_args
            args[0] = selectable_idx + 1
        for name, sent in (request.alwayson_scripts or {}).items():
            script = next((each for each in script_runner.scripts if each.title().lower() == name.lower()), None)
            if script is None:
                raise HTTPException(status_code=422, detail=f"always on script {name} not found")
            if not script.alwayson:
                raise HTTPException(422, "Cannot have a selectable script in the always on scripts params")
            values = sent.get("args", [])
            for index in range(min(script.args_to - script.args_from, len(values))):
                args[script.args_from + index] = values[index]
        return args

    def apply_infotext(self, request: SimpleNamespace, tab: str, runner: scripts.ScriptRunner) -> dict[int, Any]:
        """Take what the request leaves out from its `infotext`; returns what that says to scripts."""
        if not request.infotext:
            return {}
        params = infotext_utils.parse_generation_parameters(request.infotext)
        places = {id(component): index for index, component in enumerate(runner.inputs)}
        found: dict[int, Any] = {}
        for each in infotext_utils.paste_fields[tab]["fields"]:
            value = each.function(params) if each.function else params.get(each.label)
            value = value.get("value") if isinstance(value, dict) and "__type__" in value else value
            if value is None:
                continue
            if id(each.component) in places:
                found[places[id(each.component)]] = cast(value, each.component.value)
            elif each.api and each.api not in request.given:
                setattr(request, each.api, cast(value, getattr(request, each.api)))
        return found

    # -- everything else

    def pnginfoapi(self, body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008 - FastAPI's form
        text, items = images.read_info_from_image(decode_base64_to_image(body["image"].strip()))
        params = infotext_utils.parse_generation_parameters(text or "")
        return jsonable_encoder(
            {"info": text or "", "items": {k: str(v) for k, v in items.items()}, "parameters": params}
        )

    def progressapi(self, skip_current_image: bool = False) -> dict[str, Any]:
        state = shared.state
        done, remaining = 0.0, 0.0
        if state.job_count:
            jobs = max(state.job_count, 1)
            done = min(0.01 + state.job_no / jobs + state.sampling_step / max(state.sampling_steps, 1) / jobs, 1)
            spent = time.time() - state.time_start
            remaining = spent / done - spent
        answer = {"progress": done, "eta_relative": remaining, "state": state.dict(), "current_image": None}
        return {**answer, "textinfo": state.textinfo, "current_task": state.job or None}

    def interruptapi(self) -> dict[str, Any]:
        shared.state.interrupt()
        return {}

    def skip(self) -> None:
        shared.state.skip()

    def get_config(self) -> dict[str, Any]:
        opts = shared.opts
        named = {name: getattr(opts, name) for name in opts.data_labels}
        return jsonable_encoder(named | {"sd_model_checkpoint": shared.sd_model.sd_checkpoint_info.title})

    def set_config(self, body: dict[str, Any] = Body(...)) -> None:  # noqa: B008 - FastAPI's form
        for name, value in body.items():
            if name in shared.opts.data_labels:
                shared.opts.set(name, value, is_api=True)
            else:
                errors.report(f"Unknown setting {name}")

    def get_cmd_flags(self) -> dict[str, Any]:
        return jsonable_encoder({name: value for name, value in vars(shared.cmd_opts).items() if name != "api_auth"})

    def get_samplers(self) -> list[dict[str, Any]]:
        return [{"name": s.name, "aliases": list(s.aliases), "options": {}} for s in sd_samplers.all_samplers]

    def get_upscalers(self) -> list[dict[str, Any]]:
        return [{"name": each.name, "model_name": None, "scale": each.scale} for each in shared.sd_upscalers]

    def get_latent_upscale_modes(self) -> list[dict[str, str]]:
        return [{"name": name} for name in shared.latent_upscale_modes]

    def get_sd_models(self) -> list[dict[str, Any]]:
        info = shared.sd_model.sd_checkpoint_info
        about = {"title": info.title, "model_name": info.model_name, "hash": info.shorthash or None}
        return [{**about, "sha256": info.sha256 or None, "filename": info.filename, "config": None}]

    def get_prompt_styles(self) -> list[dict[str, str]]:
        return [style._asdict() for style in shared.prompt_styles.styles.values()]

    def get_scripts_list(self) -> dict[str, list[Any]]:
        runners = {"txt2img": scripts.scripts_txt2img, "img2img": scripts.scripts_img2img}
        return {tab: [script.name for script in runner.scripts if script.name] for tab, runner in runners.items()}

    def get_script_info(self) -> list[Any]:
        both = [*scripts.scripts_txt2img.scripts, *scripts.scripts_img2img.scripts]
        return jsonable_encoder([script.api_info for script in both if script.api_info])

    def get_nothing(self) -> list[Any]:
        return []


def read_request(kind: type[StableDiffusionProcessing], body: Mapping[str, Any]) -> SimpleNamespace:
    """A request with every field; unknown ones are left out, as WebUIs do. HTTPException for a wrong kind."""
    probe = kind()
    known = {each.name: getattr(probe, each.name) for each in fields(kind)} | REQUEST_ONLY | shared.defaults
    given = {name: value for name, value in body.items() if name in known and value is not None}
    return SimpleNamespace(**known | read_inputs(kind, given), kind=kind, given=set(given))


def make_processing(request: SimpleNamespace, tab: str) -> StableDiffusionProcessing:
    """The job that a request asks for."""
    values = {each.name: getattr(request, each.name) for each in fields(request.kind)}
    name = request.sampler_name or request.sampler_index
    if name and name.lower() not in sd_samplers.samplers_map:
        raise HTTPException(status_code=400, detail="Sampler not found")
    values["sampler_name"] = sd_samplers.find_sampler_config(name).name
    values["do_not_save_samples"] = values["do_not_save_grid"] = not request.save_images
    for setting in ("samples", "grids"):
        values[f"outpath_{setting}"] = getattr(shared.opts, f"outdir_{tab}_{setting}")
    values |= {name: dict(values[name]) for name in ("override_settings", "extra_generation_params")}
    if tab == "img2img":
        values["init_images"] = [decode_base64_to_image(image) for image in request.init_images]
        values["mask"] = decode_base64_to_image(request.mask) if request.mask else None
    return request.kind(**values)
