"""A WebUI that is unknown or too old: the script loads with the least that all have; the panel says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# What every WebUI has: neither an API, nor components of its own, nor any module by which one is known.
LEAST = """if True:
    import importlib.util, re, sys
    from types import ModuleType, SimpleNamespace

    def add(name, **contents):
        module = sys.modules[name] = ModuleType(name)
        vars(module).update(contents)
        if "." in name:
            setattr(sys.modules["modules"], name.partition(".")[2], module)
        return module

    def option(*about, **named):
        made = SimpleNamespace(default=about[0])
        made.info = lambda text: made
        return made

    signed, labels = [], {}
    add("modules").__path__ = []
    script = type("Script", (), {"elem_id": lambda self, name: name})
    add("modules.scripts", Script=script, AlwaysVisible=object(), scripts_data=[])
    opts = SimpleNamespace(data={}, data_labels=labels, add_option=labels.__setitem__)
    add("modules.shared", opts=opts, cmd_opts=SimpleNamespace(), sd_model=None, OptionInfo=option)
    add("modules.paths", models_path="/none")
    add("modules.extra_networks")
    add("modules.call_queue", queue_lock=None)
    names = ("on_ui_settings", "on_before_ui", "on_cfg_denoiser", "on_app_started", "on_script_unloaded")
    names += ("on_image_grid", "on_before_image_saved")
    add("modules.script_callbacks", **{name: lambda call, name=name: signed.append((name, call)) for name in names})
    BEFORE
    known = set(sys.modules)
    spec = importlib.util.spec_from_file_location("layerdiffusion.py", "scripts/layerdiffusion.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    import gradio as gr
    from lib_layerdiffusion.refusal import Refusal
    from lib_layerdiffusion.webui import status
    shown = loaded.Script()
    with gr.Blocks():
        assert len(shown.ui(False)) == len(shown.ui(True)) > 10
    assert sorted(name for name, _ in signed) == sorted(names)
    for name, call in signed:
        if name in ("on_ui_settings", "on_before_ui"):
            call()
    assert "layerdiffusion_folder" in labels
    html = status.describe(loaded.extension, "foreground")
    (sentence,) = re.findall("layerdiffusion-note.*?<span>(.*?)</span>", html)[:1]
    hosts = ("backend", "ldm_patched", "modules_forge", "ldm", "sgm", "diffusers")
    assert not [name for name in set(sys.modules) - known if name.partition(".")[0] in hosts]
    AFTER
    dict(signed)["on_script_unloaded"]()
    print(sentence)
"""


def load(before: str = "pass", after: str = "pass") -> str:
    """The sentence that the panel of such a WebUI shows."""
    code = LEAST.replace("BEFORE", before).replace("AFTER", after)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_an_unknown_webui_gets_one_sentence():
    pytest.importorskip("gradio")
    assert "know this WebUI yet" in load()


def test_a_too_old_one_gets_one_sentence():
    pytest.importorskip("gradio")
    assert "update AUTOMATIC1111 to 1.10" in load('add("modules.sd_hijack")')


def test_an_unknown_webui_s_own_api_is_left_alone():
    pytest.importorskip("gradio")
    api = 'add("modules.api"); Api = type("Api", (), {}); add("modules.api.api", Api=Api)'
    assert "know this WebUI yet" in load(api, 'assert not hasattr(Api, "init_script_args")')
