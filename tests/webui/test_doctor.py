"""The report for a bug report: what there is, what is missing, how the last run ended; and that it never fails."""

from __future__ import annotations

import html
import re
from types import SimpleNamespace

import pytest

from lib_layerdiffusion import __version__
from lib_layerdiffusion.refusal import Refusal
from lib_layerdiffusion.webui import doctor, status
from tests.webui.panel_host import make_extension

pytestmark = pytest.mark.slow


def lines_of(extension) -> list[str]:
    lines = doctor.report(extension).splitlines()
    assert all(re.match(r"(ok     |absent |broken ) \S", line) for line in lines)
    return lines


def test_versions_host_checkpoint_and_files_are_named(webui):
    text = "\n".join(lines_of(webui.extension))
    import gradio
    import torch

    assert f"ok      lib_layerdiffusion {__version__}, Python " in text
    assert f"ok      torch {torch.__version__}" in text
    assert f"ok      WebUI stand-in {__version__}, gradio {gradio.__version__}" in text
    assert "ok      WebUI has layerdiffusion_host" in text
    assert "ok      host: the stand-in WebUI" in text
    assert "ok      checkpoint: SD1.5, 4 input channels, UNet in float32 on cpu, VAE in float32 on cpu" in text
    modes = "foreground, together, foreground_to_background, background_to_foreground"
    assert f"ok      layer modes: {modes}\n" in text
    assert "and never downloaded" in text
    assert "ok      layer_sd15_transparent_attn: found" in text
    assert "absent  layer_xl_fg2ble: missing" in text
    assert "pip install diffusers" not in text


def test_a_file_that_can_not_fit_is_not_advised(webui, only_foreground):
    """The stand-in's embedded model, as in a WebUI with its checkpoint; also in /modes, /weights and the status."""
    reason = webui.post("txt2img", {"mode": "together"}).json()["detail"]
    lines = lines_of(webui.extension)
    assert f"absent  layer_sd15_joint: missing (554 MB) -> {reason}" in lines
    rows = {row["name"]: row for row in webui.request("GET", "/layerdiffusion/v1/weights").json()["files"]}
    assert rows["layer_sd15_joint"]["cure"] == reason
    modes = webui.request("GET", "/layerdiffusion/v1/modes").json()["modes"]
    assert [mode["name"] for mode in modes if mode["offered"]] == ["foreground"]
    shown = html.unescape(status.describe(webui.extension, "together"))
    assert reason in shown
    assert "554 MB" not in shown


def test_the_last_run_is_told_with_plan_and_outcome(webui):
    webui.extension.last_run = None
    assert lines_of(webui.extension)[-1] == "absent  no run with layers since the WebUI was started or reloaded"
    webui.txt2img({"weight": 0.9, "views": 1}, batch_size=2, sampler_name="Euler a")
    last = lines_of(webui.extension)[-1]
    assert re.match(
        r"ok      last run \d{4}(-\d\d){2} \d\d(:\d\d){2}, the stand-in WebUI: foreground, weight 0.9; ", last
    )
    assert "; 0 to 1, 1 views, StableDiffusionProcessingTxt2Img 64x64, batch 2 x 1, 4 steps of Euler a: ok" in last
    answer = webui.post("txt2img", {"mode": "foreground_conv"})
    last = lines_of(webui.extension)[-1]
    assert last.startswith("broken  last run")
    assert last.endswith(answer.json()["detail"])


@pytest.mark.parametrize("error", [Refusal("This WebUI is too old."), AttributeError("forge_objects\nis gone")])
def test_what_fails_is_a_line_and_the_rest_is_there(tmp_path, error):
    extension = make_extension(tmp_path, family=error)
    extension.last_run = SimpleNamespace()  # of which nothing can be told
    lines = lines_of(extension)
    said = str(error) if isinstance(error, Refusal) else "AttributeError: forge_objects is gone"
    assert f"broken  {said}" in lines
    assert any("layer_sd15_joint: missing" in line for line in lines)
    assert lines[-1].startswith("broken  AttributeError: ")


def test_it_is_the_text_of_the_route_and_of_the_settings_button(webui):
    from_route = webui.request("GET", "/layerdiffusion/v1/doctor").text
    box = webui.shared.opts.data_labels["layerdiffusion_report"].component
    made = box.args[0]()
    assert from_route == made == doctor.report(webui.extension)
